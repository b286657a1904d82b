"""`tiller sae`: dictionaries for a decoder's streams, trained on this machine without a service."""

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import models.progress
from models.loading import load
from steerers.training.recipe import KINDS, Kind, Recipe, Wanted
from steerers.training.train import STAGE, Trained, train
from steerers.writers import write_gemma_scope, write_saelens

app = typer.Typer(
    no_args_is_help=True,
    help="Sparse autoencoders: find, score and label their features; train new ones.",
)
out, err = Console(), Console(stderr=True)
STORED = {"float32": torch.float32, "float16": torch.float16}


@app.callback()
def sae() -> None:
    """A group, so that `train` keeps its name."""


@app.command("train")
def train_command(  # noqa: PLR0913, PLR0917 - one argument per option
    model: Annotated[str, typer.Option("--model", "-m", help="A folder or a hub id.")],
    texts: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help='One a line, or JSONL with "text".')
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder; one inside per SAE.")],
    site: Annotated[list[str], typer.Option("--site", help="As lm.block.3; may be repeated.")],
    name: Annotated[
        str | None, typer.Option(help="What the files call the model; its folder's name if unsaid.")
    ] = None,
    kind: Annotated[
        list[str], typer.Option("--kind", help=f"{', '.join(KINDS)}; may be repeated.")
    ] = ["jumprelu"],  # noqa: B006 - typer copies it
    features: Annotated[int, typer.Option("--features", "-n", min=1)] = 4096,
    l0: Annotated[int, typer.Option(min=1, help="Active features per token.")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="Seen in training.")] = 2_000_000,
    batch: Annotated[int, typer.Option(min=1)] = 2048,
    rate: Annotated[float, typer.Option(help="The largest learning rate.")] = 2e-3,
    bfloat16: Annotated[bool, typer.Option(help="Multiply in bfloat16.")] = False,
    store: Annotated[str, typer.Option(help=f"Of the files: {', '.join(STORED)}.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the model.")] = "float32",
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train SAEs of some streams in one reading of the texts; write them with a card.

    JumpReLU goes into Gemma Scope's layout, TopK and BatchTopK into SAELens'.
    """
    if store not in STORED or not set(kind) <= set(KINDS):
        raise typer.BadParameter(f"kinds are {', '.join(KINDS)}; files are {', '.join(STORED)}")
    wanted = [
        Wanted(
            id=f"{s.removeprefix('lm.').replace('.', '-')}-{k}",
            site=s,
            kind=cast(Kind, k),
            features=features,
            l0=l0,
        )
        for s in dict.fromkeys(site)
        for k in dict.fromkeys(kind)
    ]
    recipe = Recipe(tokens=tokens, batch=batch, rate=rate, bfloat16=bfloat16, seed=seed)
    hosted = load(name or Path(model).name, model, dtype=dtype, device=device)
    try:
        done = _watched(train(hosted, wanted, lambda: told(texts), recipe, STORED[store]))
    finally:
        hosted.close()
    for one, asked in zip(done, wanted, strict=True):
        write = write_gemma_scope if asked.kind == "jumprelu" else write_saelens
        write(output / asked.id, one.dictionary, dtype=STORED[store])
    out.print(write_card(output, wanted, done), soft_wrap=True)


def told(file: Path) -> Iterator[str]:
    """The texts of a file, one a line, or the `text` of each line of a .jsonl; never all at once.

    Raises:
        BadParameter: A line of a .jsonl without a text.
    """
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if file.suffix != ".jsonl":
                yield line.strip()
                continue
            try:
                yield str(json.loads(line)["text"])
            except (ValueError, KeyError, TypeError) as error:
                raise typer.BadParameter(f"line {number} of {file} has no text") from error


def write_card(folder: Path, wanted: list[Wanted], done: list[Trained]) -> str:
    """`figures.json` with what was measured, and `README.md` over all SAEs of the folder.

    SAEs that stand there already and were not trained anew keep their figures.
    """
    file = folder / "figures.json"
    figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for asked, one in zip(wanted, done, strict=True):
        found = one.quality
        figures[asked.id] = {
            "site": asked.site,
            "kind": asked.kind,
            "features": asked.features,
            "l0": round(found.fit.l0, 2),
            "explained_variance": round(found.explained, 4),
            "dead": found.fit.dead,
            "loss": round(found.loss, 4),
            "spliced": round(found.spliced, 4),
            "recovered": round(found.recovered, 4),
            "tokens": found.fit.tokens,
        }
    text = json.dumps(figures, indent=1, sort_keys=True)
    file.write_text(text + "\n", encoding="utf-8")
    rows = [
        f"| {name} | {f['site']} | {f['kind']} | {f['features']} | {f['l0']:.1f} "
        f"| {100 * f['explained_variance']:.1f} % | {f['dead']} "
        f"| {f['loss']:.3f} -> {f['spliced']:.3f} | {100 * f['recovered']:.1f} % |"
        for name, f in sorted(figures.items())
    ]
    model = done[0].dictionary.model if done else None
    card = "\n".join([_CARD.format(model=model), *rows, ""])
    (folder / "README.md").write_text(card, encoding="utf-8")
    return card


_CARD = """# SAEs of {model}'s residual stream

Trained by `tiller sae train`, measured on texts held out. L0: active features per token. Dead:
features active at none of the measured tokens. Loss: the model's cross-entropy per token in nats,
plain and with the SAE's output in the place of the stream; recovered is the share of the way back
from a stream of zeros. Marks of the tokenizer are neither encoded nor counted.

| SAE | site | kind | features | L0 | explained variance | dead | loss | recovered |
|---|---|---|---|---|---|---|---|---|"""


def _watched(steps: Generator[models.progress.Progress, None, list[Trained]]) -> list[Trained]:
    """Drain the work behind a bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as bars:
        task = bars.add_task("reading", total=None)
        while True:
            try:
                now = next(steps)
            except StopIteration as over:
                return over.value
            told = "  ".join(
                f"{name.removesuffix('.fvu')} {value:.3f}"
                for name, value in now.values.items()
                if name.endswith(".fvu")
            )
            words = f"FVU {told}" if now.stage == STAGE else now.stage
            bars.update(task, completed=now.done, total=now.total, description=words)
