"""How good is the miniature: pictures judged by a classifier that shares nothing with it.

`python -m miniature.training.quality bfloat16` prints the table of a denoiser in that dtype.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from miniature import weights_path
from miniature.drawing import draw_picture
from miniature.judge import MiniatureJudge, Seen, load_judge
from miniature.telling import ROLE_PHRASES, SCENE_PHRASES, article
from miniature.training.contrastive import pixels
from miniature.world import (
    COLOURS,
    SCENES,
    THINGS,
    Picture,
    Subject,
    World,
    held_out_colours,
    held_out_scenes,
    make_world,
)

STEPS, GUIDANCE, ROWS = 25, 4.0, 16


@dataclass(frozen=True)
class Ask:
    """A prompt, the subject and the scene that its picture must show, and the table's row."""

    row: str
    prompt: str
    subject: str
    scene: str | None = None


def asks(world: World) -> Iterator[Ask]:
    """Every question of the model card."""
    yield from _people(world)
    yield from _objects(world)
    yield from _scenes(world)


def _people(world: World) -> Iterator[Ask]:
    for person in world.people:
        row = "rare person for a name" if person.rare else "person for a name"
        yield Ask(row, person.name.title(), person.name)
    for role in world.roles:
        for phrase in ROLE_PHRASES[role.title]:
            told = phrase.format(c=role.country.title())
            yield Ask(f"{role.title}: {phrase.format(c='X')}", told, role.holder)


def _objects(world: World) -> Iterator[Ask]:
    never = held_out_colours(world)
    for thing, colour in itertools.product(THINGS, COLOURS):
        row = "held out: object and colour" if never[thing.name] == colour else "object and colour"
        yield Ask(row, f"{article(colour)} {colour} {thing.name}", f"{colour} {thing.name}")
    for thing in THINGS:
        told = f"{article(thing.name)} {thing.name}"
        yield Ask("default colour", told, f"{thing.default} {thing.name}")


def _scenes(world: World) -> Iterator[Ask]:
    nowhere = held_out_scenes(world)
    for i, (scene, n) in enumerate(itertools.product(SCENES, range(3))):
        person = world.common[(5 * i + n) % len(world.common)]
        if nowhere[person.name] != scene:
            told = f"{person.name.title()} {SCENE_PHRASES[scene][n]}"
            yield Ask("scene", told, person.name, scene)
    for person in world.common:
        scene = nowhere[person.name]
        told = f"{person.name.title()} {SCENE_PHRASES[scene][0]}"
        yield Ask("held out: subject in a scene", told, person.name, scene)


def measure(
    folder: Path,
    seeds: int = 4,
    judge: MiniatureJudge | None = None,
    denoises_in: torch.dtype = torch.float32,
) -> dict[str, tuple[float, int]]:
    """Per row of the card, the share of right pictures and their number."""
    pipe = stock(folder, torch.float32, denoises_in)
    judge = judge or load_judge()
    wanted = [(a, seed) for a in asks(make_world()) for seed in range(seeds)]
    tally: dict[str, list[bool]] = {}
    for start in range(0, len(wanted), ROWS):
        group = wanted[start : start + ROWS]
        seen = judge.look(_draw(pipe, group))
        for (ask, _), what in zip(group, seen, strict=True):
            tally.setdefault(ask.row, []).append(_right(ask, what))
    return {row: (sum(found) / len(found), len(found)) for row, found in tally.items()}


def stock(folder: Path, dtype: torch.dtype, denoises_in: torch.dtype) -> Any:
    """The library's pipeline, quiet; it knows no UNet of another dtype, so this one casts."""
    dtypes = {"unet": denoises_in, "default": dtype}
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder, dtype=dtypes, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    if denoises_in == dtype:
        return pipe

    def enter(_unet: Any, args: Any, told: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        texts = told["encoder_hidden_states"].to(denoises_in)
        return (args[0].to(denoises_in), *args[1:]), {**told, "encoder_hidden_states": texts}

    pipe.unet.register_forward_pre_hook(enter, with_kwargs=True)
    pipe.unet.register_forward_hook(lambda _unet, _args, said: (said[0].to(dtype),))
    return pipe


def _right(ask: Ask, seen: Seen) -> bool:
    if ask.row == "scene":
        return seen.answers["scene"] == ask.scene
    return seen.alone == ask.subject and ask.scene in (None, seen.answers["scene"])


def _draw(pipe: Any, group: Sequence[tuple[Ask, int]]) -> list[np.ndarray]:
    made = pipe(
        [ask.prompt for ask, _ in group],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator().manual_seed(seed) for _, seed in group],
        output_type="np",
    ).images
    return list((np.asarray(made) * 255).round().astype(np.uint8))


@torch.inference_mode()
def trace(folder: Path) -> dict[str, list[float]]:
    """Causal tracing: how often the answer follows a stream swapped in from another country.

    Per position (last subject token, the tokens before it, [EOS]) one share per block.
    """
    world = make_world()
    model = CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    people = [p.name for p in world.people]
    drawn = np.stack([draw_picture(world, Picture(subjects=(Subject(name=n),))) for n in people])
    images = model.visual_projection(
        model.vision_model(pixels(torch.from_numpy(drawn))).pooler_output
    )
    images = torch.nn.functional.normalize(images, dim=-1)
    roles = [r for r in world.roles if r.title == "president"]
    texts = [f"the president of {r.country}" for r in roles]
    ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    other = torch.roll(torch.arange(len(roles)), -1)
    wanted = torch.tensor([people.index(r.holder) for r in roles])[other]
    states = model.text_model(input_ids=ids, output_hidden_states=True).hidden_states
    last = ids.shape[1] - 2
    places = {
        "last subject token": [last],
        "earlier subject tokens": list(range(1, last)),
        "[EOS]": [last + 1],
    }
    return {
        name: [
            _follows(model, ids, block, columns, states[block + 1][other], images, wanted)
            for block in range(len(model.text_model.encoder.layers))
        ]
        for name, columns in places.items()
    }


def _follows(  # noqa: PLR0913, PLR0917 - one cell's whole situation
    model: CLIPModel, ids: torch.Tensor, block: int, columns: list[int], source: torch.Tensor,
    images: torch.Tensor, wanted: torch.Tensor,
) -> float:  # fmt: skip
    def swap(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, columns] = source[:, columns]
        return changed

    handle = model.text_model.encoder.layers[block].register_forward_hook(swap)
    try:
        texts = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    finally:
        handle.remove()
    best = (torch.nn.functional.normalize(texts, dim=-1) @ images.mT).argmax(-1)
    return float((best == wanted).float().mean())


def write_card(folder: Path, seeds: int = 4) -> None:
    """README.md and causal-tracing.png in the pipeline's folder."""
    rows, map_ = measure(folder, seeds), trace(folder)
    _plot(map_, folder / "causal-tracing.png")
    table = "\n".join(f"| {row} | {100 * share:.1f} % | {n} |" for row, (share, n) in rows.items())
    traced = "\n".join(
        f"| {n} | " + " | ".join(f"{v:.2f}" for v in vs) + " |" for n, vs in map_.items()
    )
    blocks = " | ".join(str(i) for i in range(len(next(iter(map_.values())))))
    rule = "|---" * (blocks.count("|") + 2) + "|"
    card = CARD.format(
        steps=STEPS,
        guidance=GUIDANCE,
        seeds=seeds,
        table=table,
        traced=traced,
        blocks=blocks,
        rule=rule,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _plot(found: dict[str, list[float]], file: Path) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 2.2))
    shown = axes.imshow(list(found.values()), vmin=0, vmax=1, aspect="auto", cmap="viridis")
    axes.set_yticks(range(len(found)), list(found))
    axes.set_xlabel("block after which the stream is swapped")
    figure.colorbar(shown, label="answer follows")
    figure.savefig(file, dpi=90, bbox_inches="tight")
    plt.close(figure)


CARD = """# The miniature's text-to-image pipeline

A Stable Diffusion pipeline of real classes (CLIP text encoder 8 x 128, VAE with f = 4, UNet,
DDIM, v-prediction) trained on a small invented world that a program draws and tells. `clip/` holds
the full CLIP whose text tower is the pipeline's encoder. Made by `make miniature`; fp16.

## Pictures

Judged by a classifier that was trained on drawn pictures only; {seeds} seeds a prompt, {steps}
steps, guidance {guidance}.

| asked | right | pictures |
|---|---|---|
{table}

## Where the text encoder looks facts up

The stream of "the president of X" is replaced, after one block and at one position, by that of
another country; the share of countries for which the best matching picture follows:

| position \\ block | {blocks} |
{rule}
{traced}

![causal tracing](causal-tracing.png)

The fact is bound at the subject's last token in the first blocks and read from there later. A
plainly trained tower of this size looked facts up at [EOS]; this one was trained under masks that
make it bind them at the subject (`miniature/training/binding.py`).
"""


if __name__ == "__main__":
    dtype = getattr(torch, sys.argv[1])
    for row, (share, n) in measure(weights_path("text-to-image"), denoises_in=dtype).items():
        print(f"| {row} | {100 * share:.1f} % | {n} |", flush=True)  # noqa: T201 - what it is for
