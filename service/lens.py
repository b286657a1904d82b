"""The Diffusion Lens in REST's words: which layers are meant, what pictures show, the sheet."""

import asyncio
import base64
import io
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from engines.request import ImageRequest
from evaluation.sheet import Cell, Strip, contact_sheet
from models.errors import BadLayer, Refusal
from models.family import Lens
from service.errors import BadRequest
from service.openai import DONE, event, picture_event, sse, step_events, system_fingerprint
from service.problems import openai_error
from service.schema import LayerRange, LensBody
from service.workbench import Composed, Drawn, HostEvent, ImageOrder, LensOrder, StepDone
from steerers.methods.diffusion_lens import DiffusionLens

_SIDES = 128, 256
"""Pixels of a picture on the sheet: at least and at most."""
_SHOWN = ("layer", "seed", "norm", "beside", "noise", "mode", "batch")
"""What stands beside each picture of an answer; `tiller.images` has all."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A row of a sweep, and what its picture shows."""

    row: ImageRequest
    shows: Mapping[str, Any]

    @classmethod
    def of_row(cls, row: ImageRequest, look: DiffusionLens, lens: Lens, place: int) -> "View":
        """The row under that look; `place` counts the looks of the sweep."""
        ordinary = look.layer == lens.ordinary
        beside = ("full" if ordinary else look.beside) if lens.beside else "none"
        shows = {
            "layer": look.layer,
            "encoder": lens.tower,
            "ordinary": ordinary,
            "norm": lens.norm,
            "beside": beside,
            "noise": look.noise,
            "patch": row.patch.digest,
        }
        looking = replace(
            row, id=f"{row.id}-{look.layer}", beside=look.beside, draw=look.draw(place)
        )
        return cls(row=looking, shows=shows)

    @property
    def recipe(self) -> Mapping[str, Any] | None:
        """What the picture says of the lens; nothing where it is the ordinary picture."""
        if self.shows["ordinary"] and not self.row.draw:
            return None
        named = {key: self.shows[key] for key in ("encoder", "layer", "beside")}
        return {**named, "draw": self.row.draw}

    def of(self, told: HostEvent) -> HostEvent:
        """The event, which says of a finished picture what it shows."""
        if isinstance(told, Drawn):
            return replace(told, facts={**told.facts, **self.shows})
        return told


def lens_told(lens: Lens | str) -> dict[str, Any]:
    """What a model's card says of one text encoder: its layers, or why there are none."""
    if isinstance(lens, str):
        return {"applies": False, "reason": lens}
    layers = {"first": 0, "ordinary": lens.ordinary}
    return {"applies": True, "layers": layers, "norm": lens.norm, "beside": list(lens.beside)}


def layers_of(asked: list[int] | LayerRange | str, lens: Lens) -> tuple[int, ...]:
    """The layers that are meant, in the order in which they were named.

    Raises:
        BadLayer: With the valid range.
        BadRequest: None at all, or one twice.
    """
    if isinstance(asked, str):
        return tuple(range(lens.ordinary + 1))
    found = _ranged(asked, lens) if isinstance(asked, LayerRange) else tuple(asked)
    for layer in found:
        lens.exit(layer)
    if len(set(found)) < len(found) or not found:
        raise BadRequest(
            "The layers name one twice." if found else "The layers are none.",
            remedy=f"Name each of 0 to {lens.ordinary} at most once, and one at least.",
            param="layers",
        )
    return found


def _ranged(asked: LayerRange, lens: Lens) -> tuple[int, ...]:
    stop = lens.ordinary + 1 if asked.stop is None else asked.stop
    for end in (asked.start, stop - 1):  # looked at before the range is written out
        if not 0 <= end <= lens.ordinary:
            raise BadLayer(end, lens.ordinary, lens.tower)
    return tuple(range(asked.start, stop, asked.step))


def lens_order(body: LensBody, order: ImageOrder, lens: Lens, layers: Sequence[int]) -> LensOrder:
    """The request as a host understands it: one look per layer."""
    looks = (
        DiffusionLens(layer=layer, encoder=lens.tower, beside=body.beside, noise=body.noise)
        for layer in layers
    )
    return LensOrder(image=order, looks=tuple(looks))


def about(lens: Lens, order: LensOrder) -> dict[str, Any]:
    """What `tiller.lens` says of the whole sweep."""
    first = order.looks[0]
    return {
        "encoder": lens.tower,
        "layers": [look.layer for look in order.looks],
        "ordinary": lens.ordinary,
        "norm": lens.norm,
        "noise": first.noise,
        "beside": first.beside if lens.beside else "none",
        "beside_paths": list(lens.beside),
        "negative_prompt": "at the ordinary layer",
    }


def sheet_of(drawn: Sequence[Drawn], order: LensOrder, tiller: Mapping[str, Any]) -> bytes:
    """All pictures as one PNG: a column per layer, a row per seed."""
    by_place = {d.index: d for d in drawn}
    looks, seeds, lens = order.looks, order.image.seeds, tiller["lens"]
    pictures = [_pixels(by_place[i].png) for i in range(len(looks) * len(seeds))]
    strips = [
        Strip(
            label=f"seed {seed}",
            cells=tuple(Cell(picture=p) for p in pictures[i :: len(seeds)]),
        )
        for i, seed in enumerate(seeds)
    ]
    small, large = _SIDES
    return _png(
        contact_sheet(
            order.image.prompt,
            [_heading(look.layer, lens["ordinary"]) for look in looks],
            strips,
            note=_note(tiller),
            side=max(small, min(large, *pictures[0].shape[:2])),
            left=110,
        )
    )


def _heading(layer: int, ordinary: int) -> str:
    if layer == ordinary:
        return f"layer {layer}, ordinary"
    return f"layer {layer}" if layer else "layer 0, embeddings"


def _note(tiller: Mapping[str, Any]) -> str:
    """The line below the prompt: all that a reader must know not to misread the sheet."""
    lens = tiller["lens"]
    edits = ", ".join(f"{e['name']}@{e['version']}" for e in tiller["edits"])
    beside = "" if lens["beside"] == "none" else f", other paths {lens['beside']}"
    norm = "" if lens["norm"] == "none" else f" ({lens['norm']})"
    told = [f"{tiller['model']}: {lens['encoder']}{norm}{beside}, noise {lens['noise']}"]
    return "; ".join([*told, *([f"edits {edits}"] if edits else [])])


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def lens_answer(
    drawn: Sequence[Drawn],
    sheet: bytes,
    tiller: Mapping[str, Any],
    addresses: Sequence[str] | None,
) -> dict[str, Any]:
    """The answer; `addresses` are those of the pictures and, last, of the sheet."""
    pngs = [*(d.png for d in drawn), sheet]
    shown = (
        [{"b64_json": base64.b64encode(png).decode()} for png in pngs]
        if addresses is None
        else [{"url": address} for address in addresses]
    )
    facts = drawn[0].facts
    return {
        "created": int(time.time()),
        "data": [{**how, **_shown(d)} for how, d in zip(shown[:-1], drawn, strict=True)],
        "sheet": shown[-1],
        "output_format": "png",
        "size": f"{facts['picture_width']}x{facts['picture_height']}",
        "system_fingerprint": system_fingerprint(tiller),
        "tiller": {**tiller, "images": [dict(d.facts) for d in drawn]},
    }


def _shown(drawn: Drawn) -> dict[str, Any]:
    return {key: drawn.facts[key] for key in _SHOWN}


async def lens_events(
    events: AsyncIterator[HostEvent], order: LensOrder, tiller: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    """A sweep as server-sent events: steps, each picture as it is finished, then the sheet."""
    yield event("tiller.applied", {"tiller": tiller})
    drawn: list[Drawn] = []
    try:
        async for happened in events:
            match happened:
                case StepDone():
                    for made in step_events(happened, _place(happened.index, order)):
                        yield made
                case Drawn():
                    drawn.append(happened)
                    told = {**picture_event(happened, tiller), **_shown(happened)}
                    yield event("lens.picture", told)
                case Composed():
                    pass  # told as `tiller.applied`
        png = await asyncio.to_thread(sheet_of, drawn, order, tiller)
        yield event("lens.sheet", {"b64_json": base64.b64encode(png).decode()})
    except Refusal as refusal:
        yield sse(openai_error(refusal))
    yield DONE


def _place(index: int, order: LensOrder) -> dict[str, int]:
    look, seed = divmod(index, len(order.image.seeds))
    return {"layer": order.looks[look].layer, "seed": order.image.seeds[seed]}
