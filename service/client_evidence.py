"""The SDK's side of data sets and evaluations."""

from collections.abc import Mapping, Sequence

from service.calls import (
    Async,
    Call,
    Json,
    Sync,
    TillerError,
    as_bytes,
    as_data,
    as_json,
    at,
    given,
    later,
    now,
)
from service.params import not_finite


def _make_dataset(  # noqa: PLR0913 - the request's keys
    *,
    model: str,
    pairs: Sequence[Json] = (),
    swaps: Sequence[Json] = (),
    pictures: Sequence[Json] = (),
    task: str | None = None,
    rows: Sequence[Json] = (),
    generator: str | None = None,
    vocabulary: str | None = None,
    n: int | None = None,
    seed: int | None = None,
    pair_set: str | None = None,
    sets: Sequence[str] = (),
    variable: str | None = None,
    answers: str | None = None,
) -> Call[Json]:
    """Keep rows, a public task's rows, or what a generator draws; says which rows fall out."""
    asked = {
        "model": model,
        "pairs": list(pairs) or None,
        "swaps": list(swaps) or None,
        "pictures": list(pictures) or None,
        "task": task,
        "rows": list(rows) or None,
        "generator": generator,
        "vocabulary": vocabulary,
        "n": n,
        "seed": seed,
        "pair_set": pair_set,
        "sets": list(sets) or None,
        "variable": variable,
        "answers": answers,
    }
    return Call(method="POST", path="/v1/datasets", read=as_json, json=given(asked))


def _list_datasets(
    *, limit: int = 100, after: str | None = None, model: str | None = None
) -> Call[list[Json]]:
    """Data sets, newest first; those of one model."""
    query = given({"limit": limit, "after": after, "model": model})
    return Call(method="GET", path="/v1/datasets", read=as_data, query=query)


def _show_dataset(dataset: str) -> Call[Json]:
    """How it was made, and which rows fell out."""
    return Call(method="GET", path=at("/v1/datasets/{}", dataset), read=as_json)


def _dataset_rows(dataset: str) -> Call[Json]:
    """All its rows."""
    return Call(method="GET", path=at("/v1/datasets/{}/rows", dataset), read=as_json)


def _start(  # noqa: PLR0913 - the request's keys
    kind: str,
    *,
    model: str,
    dataset: str | None = None,
    suites: Mapping[str, str] | None = None,
    edits: Sequence[str] = (),
    params: Json | None = None,
    budget: Json | None = None,
    seed: int | None = None,
) -> Call[Json]:
    """Begin an evaluation: a job, or with `cache_hit` what an equal request found before."""
    for path in not_finite(params or {}):
        raise TillerError(
            f"{path} is no finite number.", remedy="Send a finite number.", code="bad_request"
        )
    asked = {
        "kind": kind,
        "model": model,
        "dataset": dataset,
        "suites": dict(suites) if suites else None,
        "edits": list(edits) or None,
        "params": params,
        "budget": budget,
        "seed": seed,
    }
    return Call(method="POST", path="/v1/evaluations", read=as_json, json=given(asked))


def _list_evaluations(
    *,
    limit: int = 100,
    after: str | None = None,
    model: str | None = None,
    kind: str | None = None,
) -> Call[list[Json]]:
    """Finished evaluations, newest first; those of one model, or of one kind."""
    query = given({"limit": limit, "after": after, "model": model, "kind": kind})
    return Call(method="GET", path="/v1/evaluations", read=as_data, query=query)


def _show_evaluation(evaluation: str) -> Call[Json]:
    """The report, and the names of its files."""
    return Call(method="GET", path=at("/v1/evaluations/{}", evaluation), read=as_json)


def _artifact(evaluation: str, name: str) -> Call[bytes]:
    """One of its files."""
    path = at("/v1/evaluations/{}/artifacts/{}", evaluation, name)
    return Call(method="GET", path=path, read=as_bytes)


def _export(
    evaluation: str,
    format: str,
    task: str,
    model: str | None = None,
) -> Call[bytes]:
    """A zip in the layout of MIB's submissions."""
    body = given({"format": format, "task": task, "model": model})
    path = at("/v1/evaluations/{}/export", evaluation)
    return Call(method="POST", path=path, read=as_bytes, json=body)


def _policies() -> Call[list[Json]]:
    """Which evidence each model asks for."""
    return Call(method="GET", path="/v1/policies", read=as_data)


def _set_policy(
    *,
    model: str | None = None,
    feature_gate: str | None = None,
    edit_audit: str | None = None,
    unverified: str | None = None,
    thresholds: Json | None = None,
) -> Call[list[Json]]:
    """Ask for more than the operator does; all policies as they are then."""
    asked = {
        "model": model,
        "feature_gate": feature_gate,
        "edit_audit": edit_audit,
        "unverified": unverified,
        "thresholds": thresholds,
    }
    return Call(method="POST", path="/v1/policies", read=as_data, json=given(asked))


class Datasets(Sync):
    """Rows of prompts."""

    make = now(_make_dataset)
    list = now(_list_datasets)
    show = now(_show_dataset)
    rows = now(_dataset_rows)


class AsyncDatasets(Async):
    """Rows of prompts."""

    make = later(_make_dataset)
    list = later(_list_datasets)
    show = later(_show_dataset)
    rows = later(_dataset_rows)


class Evaluations(Sync):
    """Causal evidence."""

    start = now(_start)
    list = now(_list_evaluations)
    show = now(_show_evaluation)
    artifact = now(_artifact)
    export = now(_export)
    policies = now(_policies)
    set_policy = now(_set_policy)


class AsyncEvaluations(Async):
    """Causal evidence."""

    start = later(_start)
    list = later(_list_evaluations)
    show = later(_show_evaluation)
    artifact = later(_artifact)
    export = later(_export)
    policies = later(_policies)
    set_policy = later(_set_policy)
