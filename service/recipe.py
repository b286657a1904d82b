"""What a picture says about itself: its whole request in PNG text chunks, to be drawn again.

Everything that decides the pixels is in it: edits by their digests, so that a moved alias changes
nothing. Nothing else is: no key, no tenant, no request id, no address, no path.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from typing import Any

from service.errors import NoRecipe, OtherWeights, SeenThroughLens

KEY, LINE = "tiller", "parameters"
"""The chunks' keys: ours as JSON, and the line that picture viewers know."""

BOUND = 64 * 2**10
"""Bytes of all chunks together; a longer recipe is left out, and the picture says so."""

_WEIGHTS = ("fingerprint", "pipeline")
_CIRCUMSTANCES = ("mode", "slots", "dtype", "denoiser_dtype", "device", "version")
_NEEDED = ("prompt", "seed", "steps", "guidance_scale", "size", "model")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one picture was drawn.

    Attributes:
        sampler: None for the model's own.
        size: WIDTHxHEIGHT.
        fingerprint: Of the text encoders, for which edits are made.
        pipeline: Of the whole folder: denoiser, decoder and configurations as well.
        edits: Each with name (`potus@3`), digest and strength.
        patch: The digest of what they compose to.
        lens: For a layer of a text encoder: encoder, layer, beside and which noise of the seed;
            None for an ordinary picture, and for a lens's ordinary layer, which is one.
        slot, batch: Where the row stood, and the widest denoiser call; in fast mode only, where
            they move bits: in exact mode the same request gives the same file.
        done: Steps taken so far; None when the picture is finished.
        denoiser_dtype: What the denoiser computed in; pictures that do not say it: in `dtype`.
        version: Of Tiller.
    """

    prompt: str
    negative_prompt: str | None = None
    negative_edits: str = "same"
    seed: int
    steps: int
    guidance_scale: float
    sampler: str | None = None
    size: str
    model: str
    fingerprint: str = ""
    pipeline: str = ""
    edits: tuple[Mapping[str, Any], ...] = ()
    patch: str = ""
    lens: Mapping[str, Any] | None = None
    mode: str = ""
    slots: int | None = None
    slot: int | None = None
    batch: int | None = None
    done: int | None = None
    dtype: str = ""
    denoiser_dtype: str = ""
    device: str = ""
    version: str = version("tiller")

    @property
    def line(self) -> str:
        """For people, in the form that picture viewers know."""
        asked = {
            "Steps": self.steps,
            "Sampler": self.sampler or "the model's own",
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed,
            "Size": self.size,
            "Model": self.model,
            "Edits": " ".join(f"{e['name']}:{e['strength']:g}" for e in self.edits) or "none",
            "Version": f"Tiller {self.version}",
        }
        told = ", ".join(f"{key}: {value}" for key, value in asked.items())
        negative = [f"Negative prompt: {self.negative_prompt}"] if self.negative_prompt else []
        return "\n".join([self.prompt, *negative, told])

    def chunks(self) -> dict[str, str]:
        """The text chunks of the picture, of bounded size."""
        whole = {KEY: _json(asdict(self)), LINE: self.line}
        size = sum(len(text.encode()) for text in whole.values())
        return whole if size <= BOUND else {KEY: _json({"left_out": size})}

    @classmethod
    def read(cls, png: bytes) -> "Recipe":
        """What a picture says; its pixels are not decoded.

        Raises:
            NoRecipe: Nothing, or nothing that can be read.
        """
        told = _told(png)
        if "left_out" in told:
            raise NoRecipe(f"Its recipe was too long to be kept ({told['left_out']} bytes).")
        if missing := [key for key in _NEEDED if key not in told]:
            raise NoRecipe(f"Its recipe lacks {', '.join(missing)}.")
        if not _are_edits(told.get("edits", [])):
            raise NoRecipe("What it says of its edits cannot be read.")
        lens = told.get("lens")
        if lens is not None and not (
            isinstance(lens, dict) and {"encoder", "layer"} <= lens.keys()
        ):
            raise NoRecipe("What it says of its lens cannot be read.")
        known = {f.name for f in fields(cls)}
        said = {key: value for key, value in told.items() if key in known}
        return cls(**{"version": "", **said, "edits": tuple(told.get("edits", ()))})

    def request(self, model: str | None = None) -> dict[str, Any]:
        """The same request by digests, as keys of `POST /v1/images/generations`.

        Raises:
            SeenThroughLens: No such request draws it.
        """
        if self.lens is not None:
            raise SeenThroughLens(self.lens["layer"], self.lens["encoder"], self.seed)
        return {
            "model": model or self.model,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "negative_edits": self.negative_edits,
            "seed": self.seed,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "sampler": self.sampler,
            "size": self.size,
            "edits": [
                {"name": f"sha256:{e['digest']}", "strength": e["strength"]} for e in self.edits
            ],
        }

    def differences(self, card: Mapping[str, Any], *, force: bool = False) -> tuple[str, ...]:
        """What is not as it was, as sentences; `card` is what the service tells of its model.

        Raises:
            OtherWeights: It has other weights, and nobody forces it.
        """
        here = {**card, "version": card.get("tiller", {}).get("version")}
        weights = self._against(here, _WEIGHTS)
        if weights and not force:
            raise OtherWeights(self.model, " ".join(weights))
        found = [*weights, *self._against(here, _CIRCUMSTANCES)]
        if self.mode == "fast":
            found.append("It was drawn in fast mode, where company moves the last bits.")
        if self.done is not None:
            found.append(f"It is a preview after {self.done} steps; drawn is the whole picture.")
        return tuple(found)

    def _against(self, here: Mapping[str, Any], keys: tuple[str, ...]) -> list[str]:
        whole = replace(self, denoiser_dtype=self.denoiser_dtype or self.dtype)
        then = {key: getattr(whole, key) for key in keys}
        return [
            f"Its {key} was {_short(was)}, here it is {_short(here.get(key))}."
            for key, was in then.items()
            if was and was != here.get(key)
        ]


def _are_edits(told: object) -> bool:
    needed = {"name", "digest", "strength"}
    return isinstance(told, list) and all(isinstance(e, dict) and needed <= e.keys() for e in told)


def _short(value: object) -> str:
    """Digests by their beginning."""
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def _json(told: Mapping[str, Any]) -> str:
    return json.dumps(told, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _told(png: bytes) -> dict[str, Any]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as opened:
            text = opened.info.get(KEY)
    except (OSError, ValueError, SyntaxError):
        raise NoRecipe("It is not a PNG file.") from None
    try:
        told = json.loads(text or "null")
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise NoRecipe("It was not drawn by Tiller, or its text was taken out.")
    return told
