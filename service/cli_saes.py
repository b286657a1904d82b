"""`tiller sae`, `tiller vector` and `tiller preset` against a service.

`tiller sae train`, which needs none, is the first command of the same group.
"""

import json
from collections.abc import Callable, Iterator
from heapq import merge
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from service.calls import given
from service.cli_chat import steering_of
from service.cli_sae import app as sae
from service.cli_sae import told
from service.cli_shared import Alias, ApiKey, IfMatch, Url, bar, err, out
from service.client import DEFAULT_URL, Tiller
from service.client_language import SEER

vector = typer.Typer(no_args_is_help=True, help="Directions: learn, import, promote.")
preset = typer.Typer(no_args_is_help=True, help="Steering under a name: put, promote, roll back.")

Sae = Annotated[str, typer.Argument(help="The dictionary's id.")]
Name = Annotated[str, typer.Argument(help="Its name.")]
Number = Annotated[int, typer.Argument(help="The version.")]
Model = Annotated[str, typer.Option("--model", "-m")]
Texts = Annotated[
    Path, typer.Option(exists=True, dir_okay=False, help='One a line, or JSONL with "text".')
]
Wait = Annotated[bool, typer.Option(help="Wait until it is done.")]
LANGUAGE = "miniature-lm"
_SHOWN = 8
"""Tokens of a feature in a table."""


@sae.command("list")
def sae_list(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Every dictionary, and how many of its features are scored and usable."""
    with Tiller(url, api_key) as tiller:
        rows = tiller.saes.list()
    table = Table("sae", "model", "site", "scored", "usable", "strong", "digest")
    for one in rows:
        scores = one["scores"]
        counts = [f"{scores['scored']} of {scores['of']}", str(scores["usable"])]
        counts.append(str(scores["strong"]))
        table.add_row(one["id"], one["model"], one["site"], *counts, one["digest"][:16])
    out.print(table)
    for one in rows:
        if one["scores"]["scored"] < one["scores"]["of"]:
            err.print(f"tiller sae score {one['id']} scores the features that are not scored yet")
            break


@sae.command("features")
def sae_features(  # noqa: PLR0913, PLR0917 - one argument per option
    concept: Annotated[str | None, typer.Option(help="A word or a few: winter")] = None,
    token: Annotated[str | None, typer.Option(help="A token that they promote.")] = None,
    label: Annotated[str | None, typer.Option(help="A part of a label.")] = None,
    min_output_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="For a concept: 0.01 unless said.")
    ] = None,
    which: Annotated[str | None, typer.Option("--sae", help="Default: every one.")] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=200)] = 10,
    settings: Annotated[str, typer.Option(help="reference or paper")] = "reference",
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Features by concept, token, label or output score, the best first."""
    asked = {"concept": concept, "token": token, "label": label}
    more = {"min_output_score": min_output_score, "limit": limit, "settings": settings}
    rows: list[list[tuple[str, dict[str, Any]]]] = []
    with Tiller(url, api_key) as tiller:
        names = [which] if which else [one["id"] for one in tiller.saes.list()]
        for name in names:
            with err.status(f"searching {name}"):
                found = tiller.saes.features(name, **asked, **more)
            rows.append([(name, one) for one in found["data"]])
            if found["search"] is not None:
                line = f"{name}: {_coverage(found['search'])}"
                out.print(line, highlight=False, markup=False)
    if not any(rows):
        err.print(_nothing(names, concept), highlight=False)
        return
    table = Table("sae", "feature", "output score", "promotes", "labels")
    searched = any(value is not None for value in (concept, token, label, min_output_score))
    for name, one in best_first(rows) if searched else chain(*rows):
        table.add_row(name, str(one["feature"]), *_of_feature(one))
    out.print(table)


def best_first(rows: list[list[tuple[str, dict[str, Any]]]]) -> Iterator[tuple[str, Any]]:
    """Features of several SAEs as one list, each SAE's in the service's order."""
    return iter(merge(*rows, key=_rank))


def _rank(row: tuple[str, dict[str, Any]]) -> tuple[bool, float]:
    """As the service ranks those of one SAE: labelled ones, then by output score."""
    score = (row[1]["scores"] or {}).get("output_score")
    return not row[1]["labels"], 1.0 if score is None else -score


def _nothing(names: list[str], concept: str | None) -> str:
    if not names:
        return "no hosted model has an SAE; docs/steering.md tells how one is added"
    if concept is not None:
        return "no feature; say it in other words, or lower --min-output-score"
    return f"no feature; tiller sae score {names[0]} scores those that are not scored yet"


@sae.command("show")
def sae_show(
    which: Sae,
    feature: Annotated[int, typer.Argument(help="Its number.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """One feature as JSON: tokens, scores, labels, snippets."""
    with Tiller(url, api_key) as tiller:
        out.print_json(data=tiller.saes.feature(which, feature))


@sae.command("score")
def sae_score(
    which: Sae,
    features: Annotated[list[int] | None, typer.Option("--feature", help="Default: all.")] = None,
    settings: Annotated[str, typer.Option(help="reference or paper")] = "reference",
    wait: Wait = True,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Take output scores; those that are there already are not taken again."""
    with Tiller(url, api_key) as tiller:
        job = tiller.saes.score(which, features, settings=settings)
        result = _done(tiller, job, f"scoring {which}", wait=wait)
    if result is not None:
        covered = result["coverage"]
        counts = ", ".join(f"{covered[key]} {key}" for key in ("scored", "usable", "strong"))
        done = f"scored {result['scored']}, skipped {result['skipped']}"
        out.print(f"{done}; of {covered['features']} features {counts}")


@sae.command("snippets")
def sae_snippets(
    which: Sae,
    texts: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Default: the model's own.")
    ] = None,
    per_feature: Annotated[int, typer.Option(min=1, max=50)] = 10,
    wait: Wait = True,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Look up where each feature is strongest in texts; input scores follow from it."""
    with Tiller(url, api_key) as tiller:
        given = None if texts is None else list(told(texts))
        job = tiller.saes.snippets(which, given, per_feature=per_feature)
        result = _done(tiller, job, f"reading for {which}", wait=wait)
    if result is not None:
        sample = result["sample"]
        read = f"{sample['texts']} texts, {sample['tokens']} tokens"
        out.print(f"{read}; {result['active']} of {result['features']} features were active")


@sae.command("label")
def sae_label(  # noqa: PLR0913, PLR0917 - one argument per option
    which: Sae,
    feature: Annotated[int | None, typer.Argument(help="Its number.")] = None,
    label: Annotated[str | None, typer.Argument(help="What it is about; '' removes it.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help='JSONL: {"feature": 3, "label": "winter"} a line.'
        ),
    ] = None,
    source: Annotated[str, typer.Option(help="Who says so.")] = "user",
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Say what features are about; concepts are found in labels, too."""
    if (file is None) == (feature is None or label is None):
        raise typer.BadParameter("Give a feature and its label, or a --file of them.")
    labels = dict(_labels(file)) if file is not None else {feature: label}
    with Tiller(url, api_key) as tiller:
        done = tiller.saes.label(which, labels, source=source)  # type: ignore[arg-type]
    out.print(f"{done['put']} put; {which} has {done['labels']} labels")


def _labels(file: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                one = json.loads(line)
                yield int(one["feature"]), str(one["label"])
            except (ValueError, KeyError, TypeError) as error:
                raise typer.BadParameter(f"line {number} of {file} is no label") from error


def _of_feature(one: dict[str, Any]) -> tuple[str, str, str]:
    score = (one["scores"] or {}).get("output_score")
    tokens = " ".join(repr(t["token"])[1:-1] for t in one["promotes"][:_SHOWN])
    labels = "; ".join(label["label"] for label in one["labels"])
    return "" if score is None else f"{score:.3g}", tokens, labels


def _coverage(search: dict[str, Any]) -> str:
    known = ("candidates", "scored", "kept")
    return search.get("reason") or ", ".join(
        f"{search[key]} {key}" for key in known if key in search
    )


# --- vectors -------------------------------------------------------------------------------------


@vector.command("learn")
def vector_learn(  # noqa: PLR0913, PLR0917 - one argument per option
    name: Name,
    positives: Texts,
    negatives: Texts,
    model: Model = LANGUAGE,
    sites: Annotated[
        list[str] | None, typer.Option("--site", help="lm.block.3; default: the middle block.")
    ] = None,
    pool: Annotated[str, typer.Option(help="tokens or last")] = "tokens",
    wait: Wait = True,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Learn a direction: the mean of some texts minus the mean of others."""
    with Tiller(url, api_key) as tiller:
        above, below = list(told(positives)), list(told(negatives))
        job = tiller.vectors.learn(name, above, below, model=model, sites=sites or (), pool=pool)
        result = _done(tiller, job, f"learning {name}", wait=wait)
        if result is not None:
            _show_vector(tiller.vectors.show(name, result["version"]))


@vector.command("import")
def vector_import(
    name: Name,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    model: Model = LANGUAGE,
    site: Annotated[str | None, typer.Option(help="Where a file without sites is meant.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """A control-vector file (GGUF, safetensors, npz, npy) becomes a version."""
    with Tiller(url, api_key) as tiller:
        data = file.read_bytes()
        _show_vector(tiller.vectors.import_(name, data, model=model, file=file.name, site=site))


@vector.command("export")
def vector_export(
    name: Name,
    version: Number,
    output: Annotated[Path, typer.Option("--output", "-o")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Download a direction as safetensors."""
    with Tiller(url, api_key) as tiller:
        data = tiller.vectors.export(name, version)
    output.write_bytes(data)
    out.print(f"{output}  {len(data)} bytes")


def _show_vector(version: dict[str, Any]) -> None:
    out.print(f"[green]✓[/] {version['vector']}@{version['version']}  {version['status']}")
    out.print(f"  digest {version['digest']}", highlight=False)
    for site, ratio in version["report"]["ratios"].items():
        out.print(f"  {site}  {ratio:.3f} of the stream's norm", highlight=False)


# --- presets -------------------------------------------------------------------------------------


@preset.command("put")
def preset_put(  # noqa: PLR0913, PLR0917 - one argument per option
    name: Name,
    steer: Annotated[
        list[str] | None,
        typer.Option("--steer", "-s", help='"the sea=1.5", or "sae:1234=2" for one feature.'),
    ] = None,
    vectors: Annotated[list[str] | None, typer.Option("--vector", help="happy@live=1.5")] = None,
    mode: Annotated[str | None, typer.Option(help="What strengths mean: amp, raw, ...")] = None,
    count: Annotated[int | None, typer.Option(min=1, max=5, help="Features of a concept.")] = None,
    positions: Annotated[
        str | None, typer.Option(help="last_and_generated, all, ...; of a plan: visual, reference.")
    ] = None,
    min_output_score: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    source: Annotated[int | None, typer.Option(help="A plan of back-patching: from there")] = None,
    target: Annotated[int | None, typer.Option(help="back to there.")] = None,
    window: Annotated[int | None, typer.Option(help="Its window.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help=f"Default: {LANGUAGE}; of a plan, {SEER}."),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Keep steering, or a plan, as the name's next version; a concept's features are chosen now."""
    plan = given({"source": source, "target": target, "window": window})
    if plan:
        if steer or vectors or mode or count or min_output_score is not None:
            raise typer.BadParameter("A preset keeps steering, or a plan of back-patching.")
        plan |= given({"positions": positions})
        with Tiller(url, api_key) as tiller:
            version = tiller.presets.put(name, backpatch=plan, model=model or SEER)
        out.print(f"[green]✓[/] {name}@{version['version']}  {version['digest']}", highlight=False)
        return
    settings = {
        "mode": mode,
        "count": count,
        "positions": positions,
        "min_output_score": min_output_score,
    }
    steering = one_entry(steering_of(steer or (), (), vectors or (), None))
    steering |= {key: value for key, value in settings.items() if value is not None}
    with Tiller(url, api_key) as tiller:
        version = tiller.presets.put(name, steering, model=model or LANGUAGE)
    out.print(f"[green]✓[/] {name}@{version['version']}  {version['digest']}", highlight=False)
    for report in version["report"]["steering"]:
        for one in report.get("features", ()):
            score = one["output_score"]
            scored = "no output score" if score is None else f"output score {score:.3g}"
            out.print(f"  {one['sae']}:{one['feature']}  {scored}", highlight=False)
        for site in report.get("sites", ()):
            out.print(f"  {site['site']}  {site['ratio']:.2f} of the stream's norm")


def one_entry(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Several entries of a request as the one that a preset keeps.

    Raises:
        BadParameter: A concept beside other things, or nothing at all.
    """
    if any("concept" in entry for entry in entries) and len(entries) > 1:
        raise typer.BadParameter("A preset keeps one concept, or features and vectors.")
    kept: dict[str, Any] = {}
    for entry in entries:
        for key, value in entry.items():
            kept[key] = [*kept[key], *value] if key in kept else value
    if not kept:
        raise typer.BadParameter(
            "Say where to steer, --steer or --vector; or name a plan, --source and --target."
        )
    return kept


# --- names, of either kind -----------------------------------------------------------------------


def _names(group: typer.Typer, word: str, noun: Callable[[Tiller], Any]) -> None:
    """`list`, `show`, `promote`, `rollback` and `retire` of one kind of names."""

    @group.command("list", help=f"All {word}s.")
    def list_names(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
        with Tiller(url, api_key) as tiller:
            rows = noun(tiller).list(limit=1000)
        table = Table(word, "versions", "aliases")
        for row in rows:
            aliases = ", ".join(f"{a['alias']} -> {a['version']}" for a in row["aliases"])
            table.add_row(row["name"], str(row["versions"]), aliases)
        out.print(table)

    @group.command("show", help=f"A {word} and its versions, or one version, as JSON.")
    def show(
        name: Name,
        version: Annotated[int | None, typer.Argument(help="One version.")] = None,
        url: Url = DEFAULT_URL,
        api_key: ApiKey = None,
    ) -> None:
        with Tiller(url, api_key) as tiller:
            out.print_json(data=noun(tiller).show(name, version))

    @group.command("promote", help="Point an alias to a version.")
    def promote(
        name: Name,
        version: Number,
        alias: Alias = "live",
        if_match: IfMatch = None,
        url: Url = DEFAULT_URL,
        api_key: ApiKey = None,
    ) -> None:
        with Tiller(url, api_key) as tiller:
            _moved(word, noun(tiller).promote(name, version, alias=alias, if_match=if_match))

    @group.command("rollback", help="Point an alias to where it pointed before.")
    def rollback(
        name: Name,
        alias: Alias = "live",
        if_match: IfMatch = None,
        url: Url = DEFAULT_URL,
        api_key: ApiKey = None,
    ) -> None:
        with Tiller(url, api_key) as tiller:
            _moved(word, noun(tiller).rollback(name, alias=alias, if_match=if_match))

    @group.command("retire", help="Take a version out of use.")
    def retire(name: Name, version: Number, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
        with Tiller(url, api_key) as tiller:
            retired = noun(tiller).retire(name, version)
        out.print(f"{name}@{retired['version']} is {retired['status']}")


_names(vector, "vector", lambda tiller: tiller.vectors)
_names(preset, "preset", lambda tiller: tiller.presets)


def _moved(word: str, alias: dict[str, Any]) -> None:
    name, generation = alias[word], alias["generation"]
    out.print(f"{name}@{alias['alias']} -> {name}@{alias['version']}  (generation {generation})")


def _done(tiller: Tiller, job: dict[str, Any], title: str, *, wait: bool) -> Any:
    """The job's result; None if nobody waits for it."""
    if not wait:
        out.print(job["id"])
        return None
    with bar(title) as progress:
        return tiller.jobs.wait(job["id"], progress)["result"]
