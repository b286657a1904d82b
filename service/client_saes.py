"""The SDK's dictionaries, presets and vectors."""

from collections.abc import Callable, Mapping, Sequence

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

# --- dictionaries --------------------------------------------------------------------------------


def _list_saes() -> Call[list[Json]]:
    """Every dictionary of every hosted model."""
    return Call(method="GET", path="/v1/saes", read=as_data)


def _show_sae(sae: str, *, model: str | None = None) -> Call[Json]:
    """One dictionary: size, site, digest, how much of it is scored."""
    return Call(
        method="GET", path=at("/v1/saes/{}", sae), read=as_json, query=given({"model": model})
    )


def _find_features(  # noqa: PLR0913 - the request's keys
    sae: str,
    *,
    concept: str | None = None,
    token: str | None = None,
    label: str | None = None,
    min_output_score: float | None = None,
    settings: str | None = None,
    limit: int | None = None,
    after: str | None = None,
    model: str | None = None,
) -> Call[Json]:
    """A page of features: `data`, and in `search` what was looked for and how much was kept."""
    query = {
        "concept": concept,
        "token": token,
        "label": label,
        "min_output_score": min_output_score,
        "settings": settings,
        "limit": limit,
        "after": after,
        "model": model,
    }
    path = at("/v1/saes/{}/features", sae)
    return Call(method="GET", path=path, read=as_json, query=given(query))


def _show_feature(
    sae: str, feature: int, *, settings: str | None = None, model: str | None = None
) -> Call[Json]:
    """One feature: tokens, scores (taken now if need be), snippets."""
    path = at("/v1/saes/{}/features/{}", sae, feature)
    query = given({"settings": settings, "model": model})
    return Call(method="GET", path=path, read=as_json, query=query)


def _score(
    sae: str,
    features: Sequence[int] | None = None,
    *,
    settings: str | Json | None = None,
    model: str | None = None,
) -> Call[Json]:
    """Begin to take output scores, of all features if none are named: the answer is a job."""
    asked = {"features": None if features is None else list(features), "settings": settings}
    return Call(
        method="POST",
        path=at("/v1/saes/{}/scores", sae),
        read=as_json,
        json=given(asked),
        query=given({"model": model}),
    )


def _label(
    sae: str, labels: Mapping[int, str], *, source: str = "user", model: str | None = None
) -> Call[Json]:
    """Say what features are about; an empty text removes a label."""
    told = [{"feature": feature, "label": text} for feature, text in labels.items()]
    return Call(
        method="PUT",
        path=at("/v1/saes/{}/labels", sae),
        read=as_json,
        json={"labels": told, "source": source},
        query=given({"model": model}),
    )


def _snippets(
    sae: str,
    texts: Sequence[str] | None = None,
    *,
    per_feature: int | None = None,
    tokens: int | None = None,
    model: str | None = None,
) -> Call[Json]:
    """Begin to look up where each feature is strongest: the answer is a job."""
    asked = {
        "texts": None if texts is None else list(texts),
        "per_feature": per_feature,
        "tokens": tokens,
    }
    return Call(
        method="POST",
        path=at("/v1/saes/{}/snippets", sae),
        read=as_json,
        json=given(asked),
        query=given({"model": model}),
    )


class Saes(Sync):
    """Dictionaries and their features."""

    list = now(_list_saes)
    show = now(_show_sae)
    features = now(_find_features)
    feature = now(_show_feature)
    score = now(_score)
    label = now(_label)
    snippets = now(_snippets)


class AsyncSaes(Async):
    """Dictionaries and their features."""

    list = later(_list_saes)
    show = later(_show_sae)
    features = later(_find_features)
    feature = later(_show_feature)
    score = later(_score)
    label = later(_label)
    snippets = later(_snippets)


# --- names with versions -------------------------------------------------------------------------


def _listing(path: str) -> Callable[..., Call[list[Json]]]:
    def names(*, limit: int = 100, after: str | None = None) -> Call[list[Json]]:
        """The names of this kind."""
        query = given({"limit": limit, "after": after})
        return Call(method="GET", path=path, read=as_data, query=query)

    return names


def _showing(path: str) -> Callable[..., Call[Json]]:
    def show(name: str, version: int | None = None) -> Call[Json]:
        """A name with its aliases and versions, or one version."""
        where = at(path + "/{}", name) + ("" if version is None else at("/versions/{}", version))
        return Call(method="GET", path=where, read=as_json)

    return show


def _promoting(path: str) -> Callable[..., Call[Json]]:
    def promote(
        name: str, version: int, *, alias: str = "live", if_match: int | None = None
    ) -> Call[Json]:
        """Point an alias to a version; with `if_match`, only from that generation."""
        return Call(
            method="PUT",
            path=at(path + "/{}/aliases/{}", name, alias),
            read=as_json,
            json={"version": version},
            headers=matching(if_match),
        )

    return promote


def _rolling_back(path: str) -> Callable[..., Call[Json]]:
    def rollback(name: str, *, alias: str = "live", if_match: int | None = None) -> Call[Json]:
        """Point an alias to where it pointed before."""
        where = at(path + "/{}/aliases/{}/rollback", name, alias)
        return Call(method="POST", path=where, read=as_json, headers=matching(if_match))

    return rollback


def _retiring(path: str) -> Callable[..., Call[Json]]:
    def retire(name: str, version: int) -> Call[Json]:
        """Take a version out of use; refused while something points to it."""
        return Call(method="DELETE", path=at(path + "/{}/versions/{}", name, version), read=as_json)

    return retire


def _put_preset(
    name: str, steering: Json | None = None, *, model: str, backpatch: Json | None = None
) -> Call[Json]:
    """Keep steering, or a plan of back-patching, as a request has it, as the next version."""
    body = given({"model": model, "steering": steering, "backpatch": backpatch})
    return Call(method="PUT", path=at("/v1/presets/{}", name), read=as_json, json=body)


def _learn_vector(  # noqa: PLR0913 - the request's keys
    name: str,
    positives: Sequence[str],
    negatives: Sequence[str],
    *,
    model: str,
    sites: Sequence[str] = (),
    pool: str | None = None,
    tokens: int | None = None,
) -> Call[Json]:
    """Begin to learn a direction from two lists of texts: the answer is a job."""
    asked = {
        "name": name,
        "model": model,
        "positives": list(positives),
        "negatives": list(negatives),
        "sites": list(sites) or None,
        "pool": pool,
        "tokens": tokens,
    }
    return Call(method="POST", path="/v1/vectors", read=as_json, json=given(asked))


def _import_vector(
    name: str, data: bytes, *, model: str, file: str, site: str | None = None
) -> Call[Json]:
    """A control-vector file becomes a version; the ending of `file` says how it is read."""
    told = given({"name": name, "model": model, "site": site})
    path = "/v1/vectors/import"
    return Call(method="POST", path=path, read=as_json, data=told, file=data, filename=file)


def _export_vector(name: str, version: int) -> Call[bytes]:
    """The safetensors file."""
    path = at("/v1/vectors/{}/versions/{}/file", name, version)
    return Call(method="GET", path=path, read=as_bytes)


class Presets(Sync):
    """Steering under a name."""

    put = now(_put_preset)
    list = now(_listing("/v1/presets"))
    show = now(_showing("/v1/presets"))
    promote = now(_promoting("/v1/presets"))
    rollback = now(_rolling_back("/v1/presets"))
    retire = now(_retiring("/v1/presets"))


class AsyncPresets(Async):
    """Steering under a name."""

    put = later(_put_preset)
    list = later(_listing("/v1/presets"))
    show = later(_showing("/v1/presets"))
    promote = later(_promoting("/v1/presets"))
    rollback = later(_rolling_back("/v1/presets"))
    retire = later(_retiring("/v1/presets"))


class Vectors(Sync):
    """Directions."""

    learn = now(_learn_vector)
    import_ = now(_import_vector)
    export = now(_export_vector)
    list = now(_listing("/v1/vectors"))
    show = now(_showing("/v1/vectors"))
    promote = now(_promoting("/v1/vectors"))
    rollback = now(_rolling_back("/v1/vectors"))
    retire = now(_retiring("/v1/vectors"))


class AsyncVectors(Async):
    """Directions."""

    learn = later(_learn_vector)
    import_ = later(_import_vector)
    export = later(_export_vector)
    list = later(_listing("/v1/vectors"))
    show = later(_showing("/v1/vectors"))
    promote = later(_promoting("/v1/vectors"))
    rollback = later(_rolling_back("/v1/vectors"))
    retire = later(_retiring("/v1/vectors"))
