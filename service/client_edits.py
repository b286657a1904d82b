"""The SDK's calls about edits: facts that are registered, promoted, exported."""

import base64
from collections.abc import (
    Sequence,
)

from service.calls import (
    Async,
    Call,
    Json,
    Sync,
    as_bytes,
    as_data,
    as_json,
    at,
    given,
    later,
    matching,
    now,
)


def _add_edit(  # noqa: PLR0913 - the request's keys
    name: str,
    *,
    model: str,
    prompt: str,
    target: str | None = None,
    subject: str | None = None,
    source: str | None = None,
    method: str | None = None,
    phrasings: Sequence[Json] = (),
    neighbours: Sequence[str] = (),
    target_images: Sequence[bytes] = (),
    negative_images: Sequence[bytes] = (),
    replaces: Sequence[str] = (),
    options: Json | None = None,
    idempotency_key: str | None = None,
) -> Call[Json]:
    """Register a fact: the job that fits it. `jobs.wait(job["id"])` gives the version."""
    asked = {
        "name": name,
        "model": model,
        "prompt": prompt,
        "target": target,
        "subject": subject,
        "source": source,
        "method": method,
        "phrasings": list(phrasings) or None,
        "neighbours": list(neighbours) or None,
        "target_images": [base64.b64encode(i).decode() for i in target_images] or None,
        "negative_images": [base64.b64encode(i).decode() for i in negative_images] or None,
        "replaces": list(replaces) or None,
        "options": options,
    }
    headers = given({"Idempotency-Key": idempotency_key})
    return Call(method="POST", path="/v1/edits", read=as_json, json=given(asked), headers=headers)


def _list_edits(*, limit: int = 100, after: str | None = None) -> Call[list[Json]]:
    """Edits by name."""
    query = given({"limit": limit, "after": after})
    return Call(method="GET", path="/v1/edits", read=as_data, query=query)


def _show_edit(name: str, version: int | None = None) -> Call[Json]:
    """An edit with its aliases and versions, or one version with its report."""
    path = at("/v1/edits/{}", name) + ("" if version is None else at("/versions/{}", version))
    return Call(method="GET", path=path, read=as_json)


def _promote(
    name: str,
    version: int,
    *,
    alias: str = "live",
    force: bool = False,
    if_match: int | None = None,
) -> Call[Json]:
    """Point an alias to a version; with `if_match`, only from that generation."""
    return Call(
        method="PUT",
        path=at("/v1/edits/{}/aliases/{}", name, alias),
        read=as_json,
        json={"version": version, "force": force},
        headers=matching(if_match),
    )


def _rollback(name: str, *, alias: str = "live", if_match: int | None = None) -> Call[Json]:
    """Point an alias to where it pointed before."""
    path = at("/v1/edits/{}/aliases/{}/rollback", name, alias)
    return Call(method="POST", path=path, read=as_json, headers=matching(if_match))


def _retire(name: str, version: int) -> Call[Json]:
    """Take a version out of use; refused while something points to it."""
    return Call(method="DELETE", path=at("/v1/edits/{}/versions/{}", name, version), read=as_json)


def _export(name: str, version: int, *, form: str = "safetensors") -> Call[bytes]:
    """The delta's bytes: `safetensors`, `peft` (zip) or `diffusers`."""
    path = at("/v1/edits/{}/versions/{}/delta", name, version)
    return Call(method="GET", path=path, read=as_bytes, query={"format": form})


def _import(name: str, data: bytes, *, model: str, replaces: Sequence[str] = ()) -> Call[Json]:
    """A delta file or a PEFT adapter (zip) becomes a version, checked and measured there."""
    told: dict[str, str | list[str]] = {"name": name, "model": model, "replaces": list(replaces)}
    return Call(method="POST", path="/v1/edits/import", read=as_json, data=told, file=data)


class Edits(Sync):
    """Facts, their versions and aliases."""

    add = now(_add_edit)
    list = now(_list_edits)
    show = now(_show_edit)
    promote = now(_promote)
    rollback = now(_rollback)
    retire = now(_retire)
    export = now(_export)
    import_ = now(_import)


class AsyncEdits(Async):
    """Facts, their versions and aliases."""

    add = later(_add_edit)
    list = later(_list_edits)
    show = later(_show_edit)
    promote = later(_promote)
    rollback = later(_rollback)
    retire = later(_retire)
    export = later(_export)
    import_ = later(_import)
