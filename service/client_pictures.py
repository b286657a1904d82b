"""The SDK's pictures: drawn, drawn again, compared, looked through."""

import base64
import functools
from collections.abc import (
    Generator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Any

import httpx2

from service.calls import (
    Async,
    Call,
    Json,
    Sync,
    TillerError,
    all_later,
    all_now,
    each,
    each_later,
    given,
    later,
    now,
    show_model,
)
from service.comparing import compared_sheet, largest_difference
from service.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG and how it was made."""

    png: bytes
    seed: int
    tiller: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Redrawn:
    """A picture that was drawn again from what it says of itself.

    Attributes:
        recipe: What it said.
        differences: What is not as it was when it was drawn, as sentences; mostly none.
        off: The largest difference of the two pictures, in levels of 255: 0 is equal to the bit,
            None means that the file at hand has another size.
    """

    picture: Picture
    recipe: Recipe
    differences: tuple[str, ...]
    off: int | None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The same prompt and seeds without edits and with each of them.

    Attributes:
        pictures: By label, `without` first, in the order of the seeds.
        sheet: All of them in one PNG, labelled.
    """

    pictures: Mapping[str, Sequence[Picture]] = field(repr=False)
    sheet: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class LensPicture(Picture):
    """What a text encoder knows at one layer.

    Attributes:
        layer: 0 is what enters the first block; the last is the ordinary picture.
        norm: What was done to the layer's state: `final norm` or `none`.
        beside: What other ways to the denoiser said: `blank`, `full`, or `none` if there are none.
    """

    layer: int
    norm: str
    beside: str


@dataclass(frozen=True, kw_only=True)
class LensView:
    """A prompt through the lens: a picture per layer and seed, and all of them on one sheet."""

    pictures: Sequence[LensPicture]
    sheet: bytes = field(repr=False)
    tiller: Mapping[str, Any] = field(repr=False)


def _pictures(response: httpx2.Response) -> list[Picture]:
    body = response.json()
    tiller = body["tiller"]
    return [
        Picture(png=base64.b64decode(shown["b64_json"]), seed=made["seed"], tiller=tiller)
        for shown, made in zip(body["data"], tiller["images"], strict=True)
    ]


def _lens_view(response: httpx2.Response) -> LensView:
    body = response.json()
    tiller = body["tiller"]
    pictures = [
        LensPicture(
            png=base64.b64decode(shown["b64_json"]),
            tiller=tiller,
            **{key: shown[key] for key in ("seed", "layer", "norm", "beside")},
        )
        for shown in body["data"]
    ]
    sheet = base64.b64decode(body["sheet"]["b64_json"])
    return LensView(pictures=pictures, sheet=sheet, tiller=tiller)


def _generate(  # noqa: PLR0913 - the request's keys
    prompt: str,
    *,
    model: str,
    edits: Sequence[str | Json] = (),
    n: int = 1,
    seed: int | None = None,
    size: str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    negative_edits: str | None = None,
    sampler: str | None = None,
) -> Call[list[Picture]]:
    """Draw `n` pictures; `edits` are names ("potus@live") or {"name", "strength"}."""
    asked = {
        "model": model,
        "prompt": prompt,
        "n": n,
        "edits": list(edits) or None,
        "seed": seed,
        "size": size,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "negative_edits": negative_edits,
        "sampler": sampler,
    }
    path = "/v1/images/generations"
    return Call(method="POST", path=path, read=_pictures, json=given(asked))


def _redraw(
    png: bytes, *, model: str | None = None, force: bool = False
) -> Generator[Call[Any], Any, Redrawn]:
    """Draw a picture again, edits by their digests, however their aliases moved since.

    Args:
        png: A picture that Tiller drew, as it was given out.
        model: Where its model has another name by now.
        force: Draw it by other weights too; it will be another picture.

    Raises:
        NoRecipe: It does not say how it was drawn.
        OtherWeights: The model has other weights now, and nobody forces it.
    """
    recipe = Recipe.read(png)
    card = yield show_model(model or recipe.model)
    if "fingerprint" not in card:
        problem = f"The model {card['id']} is not ready ({card.get('state')})."
        raise TillerError(problem, remedy="Ask again soon.", code="not_ready", status=503)
    differences = recipe.differences(card, force=force)
    [picture] = yield _generate(**recipe.request(model))
    off = largest_difference(png, picture.png)
    return Redrawn(picture=picture, recipe=recipe, differences=differences, off=off)


def _compare(  # noqa: PLR0913 - the request's keys
    prompt: str,
    compared: Sequence[str | Json],
    *,
    model: str,
    edits: Sequence[str | Json] = (),
    n: int = 1,
    seed: int | None = None,
    size: str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    negative_edits: str | None = None,
    sampler: str | None = None,
) -> Generator[Call[Any], Any, Compared]:
    """Draw `n` seeds without and with each of the compared edits; `edits` apply to all of them."""
    generate = functools.partial(
        _generate,
        prompt,
        model=model,
        n=n,
        size=size,
        steps=steps,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        negative_edits=negative_edits,
        sampler=sampler,
    )
    before = yield generate(edits=edits, seed=seed)
    pictures = {"without": before}
    for edit in compared:
        after = yield generate(edits=[*edits, edit], seed=before[0].seed)
        pictures[f"with {_applied(edit, after[0].tiller['edits'][-1])}"] = after
    everywhere = ", ".join(_name(e) for e in before[0].tiller["edits"])
    sheet = compared_sheet(
        prompt,
        [picture.seed for picture in before],
        {label: [picture.png for picture in of] for label, of in pictures.items()},
        note=f"{model}, everywhere with {everywhere}" if everywhere else model,
    )
    return Compared(pictures=pictures, sheet=sheet)


def _applied(asked: str | Json, told: Json) -> str:
    """`potus@live = potus@3 x 0.5`: as it was asked for, and what that meant."""
    name = asked if isinstance(asked, str) else asked["name"]
    return name if name == _name(told) else f"{name} = {_name(told)}"


def _name(edit: Json) -> str:
    strength = "" if edit["strength"] == 1 else f" x {edit['strength']:g}"
    return f"{edit['name']}@{edit['version']}{strength}"


def _lens(  # noqa: PLR0913 - the request's keys
    prompt: str,
    *,
    model: str,
    layers: Sequence[int] | Json | str | None = None,
    encoder: str | None = None,
    beside: str | None = None,
    noise: str | None = None,
    edits: Sequence[str | Json] = (),
    n: int = 1,
    seed: int | None = None,
    size: str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    negative_edits: str | None = None,
    sampler: str | None = None,
) -> Call[LensView]:
    """Draw a prompt from each layer of a text encoder: what does it know by then?

    `layers` are a list, `{"start", "stop", "step"}` as Python's range, or "all"; `n` seeds each.
    """
    picture = _generate(
        prompt,
        model=model,
        edits=edits,
        n=n,
        seed=seed,
        size=size,
        steps=steps,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        negative_edits=negative_edits,
        sampler=sampler,
    )
    looked = {"layers": layers, "encoder": encoder, "beside": beside, "noise": noise}
    if layers is not None and not isinstance(layers, str | dict):
        looked["layers"] = list(layers)
    asked = {**(picture.json or {}), **given(looked)}
    return Call(method="POST", path="/v1/images/lens", read=_lens_view, json=asked)


class Images(Sync):
    """Drawing; `lens_events` tells a sweep as it goes on: steps, pictures, then the sheet."""

    generate = now(_generate)
    lens = now(_lens)
    lens_events = each(_lens)
    redraw = all_now(_redraw)
    compare = all_now(_compare)


class AsyncImages(Async):
    """Drawing; `lens_events` tells a sweep as it goes on: steps, pictures, then the sheet."""

    generate = later(_generate)
    lens = later(_lens)
    lens_events = each_later(_lens)
    redraw = all_later(_redraw)
    compare = all_later(_compare)
