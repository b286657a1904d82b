"""The SDK's calls about models, their variants and the keys of callers."""

from collections.abc import (
    Sequence,
)

from service.calls import (
    Async,
    Call,
    Json,
    Sync,
    as_data,
    as_json,
    at,
    given,
    later,
    now,
    show_model,
)


def _list_models() -> Call[list[Json]]:
    """Hosted models and variants."""
    return Call(method="GET", path="/v1/models", read=as_data)


def _list_variants() -> Call[list[Json]]:
    """Variants of this tenant."""
    return Call(method="GET", path="/v1/variants", read=as_data)


def _put_variant(name: str, *, model: str, edits: Sequence[str | Json]) -> Call[Json]:
    """A model and edits under one name."""
    body = {"model": model, "edits": list(edits)}
    return Call(method="PUT", path=at("/v1/variants/{}", name), read=as_json, json=body)


def _delete_variant(name: str) -> Call[Json]:
    """Forget a variant; its edits stay."""
    return Call(method="DELETE", path=at("/v1/variants/{}", name), read=as_json)


def _create_key(name: str, *, scopes: Sequence[str], days: int | None = None) -> Call[Json]:
    """A new API key; its `secret` is in this answer only."""
    body = given({"name": name, "scopes": list(scopes), "days": days})
    return Call(method="POST", path="/v1/keys", read=as_json, json=body)


def _list_keys() -> Call[list[Json]]:
    """API keys, without secrets."""
    return Call(method="GET", path="/v1/keys", read=as_data)


def _revoke_key(key: str) -> Call[Json]:
    """The key stops working."""
    return Call(method="DELETE", path=at("/v1/keys/{}", key), read=as_json)


def _ready() -> Call[Json]:
    """Readiness per model."""
    return Call(method="GET", path="/readyz", read=as_json)


class Models(Sync):
    """What is hosted."""

    list = now(_list_models)
    show = now(show_model)
    ready = now(_ready)


class AsyncModels(Async):
    """What is hosted."""

    list = later(_list_models)
    show = later(show_model)
    ready = later(_ready)


class Variants(Sync):
    """Models and edits under one name."""

    list = now(_list_variants)
    put = now(_put_variant)
    delete = now(_delete_variant)


class AsyncVariants(Async):
    """Models and edits under one name."""

    list = later(_list_variants)
    put = later(_put_variant)
    delete = later(_delete_variant)


class Keys(Sync):
    """API keys; needs the scope `keys:admin`."""

    create = now(_create_key)
    list = now(_list_keys)
    revoke = now(_revoke_key)


class AsyncKeys(Async):
    """API keys; needs the scope `keys:admin`."""

    create = later(_create_key)
    list = later(_list_keys)
    revoke = later(_revoke_key)
