"""The SDK's side of back-patching: calibrations."""

import json
from collections.abc import Sequence

from service.calls import Async, Call, Json, Sync, as_bytes, as_data, as_json, at, given, later, now

_PATH = "/v1/backpatch/calibrations"


def _calibrate(  # noqa: PLR0913 - the request's keys
    *,
    model: str,
    examples: Sequence[Json] | str | bytes,
    labels: Sequence[str] = (),
    plans: Sequence[Json] = (),
    windows: Sequence[int] = (),
    search: Json | None = None,
    metric: str | None = None,
    positions: str | None = None,
    choosing: float | None = None,
    control: bool | None = None,
    resamples: int | None = None,
    seed: int | None = None,
    save: str | Json | None = None,
    save_anyway: bool | None = None,
) -> Call[Json]:
    """Begin a calibration: a job, or with `cache_hit` what an equal request found before.

    Args:
        model: A vision-language model.
        examples: Objects, their lines as one text, or the bytes of a zip.
        labels: What answers can be, for examples that do not say.
        plans: The grid; all plans of `windows` when left out.
        windows: Odd.
        search: `first`, `keep`, `answers`.
        metric: `label` or `exact`.
        positions: `visual` or `reference`.
        choosing: Share of the examples that choose.
        control: Whether the same is done in words.
        resamples: Of the bootstrap.
        seed: Of the split and the bootstrap.
        save: The preset that the plan becomes, `name` or `name@alias`, if it helps.
        save_anyway: Even if it does not.
    """
    asked = {
        "model": model,
        "labels": list(labels) or None,
        "plans": list(plans) or None,
        "windows": list(windows) or None,
        "search": search,
        "metric": metric,
        "positions": positions,
        "choosing": choosing,
        "control": control,
        "resamples": resamples,
        "seed": seed,
        "save": _saved(save),
        "save_anyway": save_anyway,
    }
    if isinstance(examples, bytes):
        told: dict[str, str | list[str]] = {"request": json.dumps(given(asked))}
        return Call(
            method="POST",
            path=_PATH,
            read=as_json,
            data=told,
            file=examples,
            filename="examples.zip",
        )
    rows = examples if isinstance(examples, str) else list(examples)
    return Call(method="POST", path=_PATH, read=as_json, json={**given(asked), "examples": rows})


def _saved(save: str | Json | None) -> Json | None:
    if not isinstance(save, str):
        return save
    name, _, alias = save.partition("@")
    return given({"name": name, "alias": alias or None})


def _list_calibrations(*, limit: int = 100, after: str | None = None) -> Call[list[Json]]:
    """Finished calibrations."""
    query = given({"limit": limit, "after": after})
    return Call(method="GET", path=_PATH, read=as_data, query=query)


def _show_calibration(calibration: str) -> Call[Json]:
    """The verdict, the report, and the names of its files."""
    return Call(method="GET", path=at(_PATH + "/{}", calibration), read=as_json)


def _artifact(calibration: str, name: str) -> Call[bytes]:
    """One of its files: `report.md`, `report.json`, `grid-image.png`, `grid-text.png`."""
    return Call(method="GET", path=at(_PATH + "/{}/{}", calibration, name), read=as_bytes)


class BackPatch(Sync):
    """Plans of back-patching, found and judged."""

    calibrate = now(_calibrate)
    list = now(_list_calibrations)
    show = now(_show_calibration)
    artifact = now(_artifact)


class AsyncBackPatch(Async):
    """Plans of back-patching, found and judged."""

    calibrate = later(_calibrate)
    list = later(_list_calibrations)
    show = later(_show_calibration)
    artifact = later(_artifact)
