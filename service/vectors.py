"""Directions as versions: learned from two lists of texts by a job, or imported from a file."""

import hashlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from models.errors import MethodNotApplicable, Refusal, UnknownSite, WrongBase
from models.hosted import HostedModel
from models.progress import Progress
from models.site import Site
from service.jobs import Task
from service.lineage import TOOL, newest, parent_of
from service.owned import at_once, drained
from service.owning import Background
from service.questions import AdoptedVector, AdoptVector
from service.registry import Registry
from service.registry.kinds import VECTOR
from service.registry.records import Job
from service.registry.tables import canonical
from steerers.control_vectors import Vectors, read_vectors
from steerers.errors import BadVector, SiteNotDeclared
from steerers.lens import language_of
from steerers.mean_difference import MeanDifference, mean_difference
from steerers.score import REFERENCE
from steerers.streams import streams

LEARN = "vector"
NO_STREAM = "its layers do not follow its embeddings in one stack, so there is no stream."


def learning(hosted: HostedModel, registry: Registry) -> Task:
    """Jobs of the kind `LEARN`: two lists of texts become a version."""

    def begin(job: Job) -> Generator[Progress, None, MeanDifference]:
        told = job.payload
        return mean_difference(
            hosted,
            told["positives"],
            told["negatives"],
            sites_of(hosted, told),
            pool=told["pool"],
            tokens=told["tokens"],
        )

    def end(job: Job, learned: MeanDifference) -> dict[str, Any]:
        return _registered(registry, hosted, job, learned)

    return Task(begin=begin, end=end, shares={"positives": (0.0, 1.0), "negatives": (0.0, 1.0)})


def sites_of(hosted: HostedModel, payload: Mapping[str, Any]) -> list[str]:
    """Where a direction is learned: as asked, else behind the middle block.

    Raises:
        BadSite, UnknownSite: There is no such stream.
        BadVector: A linear layer, which no direction is added to.
        MethodNotApplicable: The model has no stream.
    """
    language_of(hosted, "control_vector")
    if not hosted.towers:
        raise MethodNotApplicable("control_vector", hosted.family.title, NO_STREAM)
    (tower, blocks), *_ = hosted.towers.items()
    sites = payload["sites"] or [f"{tower}.block.{(len(blocks) - 1) // 2}"]
    try:
        for site in sites:
            _check(hosted, site)
    except Refusal as refusal:
        refusal.param = "sites"
        raise
    return sites


def _check(hosted: HostedModel, site: str) -> int:
    """The width of a stream site."""
    place = Site.parse(site)
    if place.kind != "stream":
        raise BadVector(
            f"{site} is a linear layer; a direction is added to a stream.",
            "Name a stream: lm.block.12 is what leaves that layer.",
        )
    blocks = hosted.towers.get(place.tower)
    if blocks is None or (place.block or 0) >= len(blocks):
        raise UnknownSite(site, hosted.name)
    return hosted.family.stream_width(hosted, place.tower)


def _registered(
    registry: Registry, hosted: HostedModel, job: Job, learned: MeanDifference
) -> dict[str, Any]:
    told = job.payload
    texts = canonical([told["positives"], told["negatives"]])
    header = {
        "base": {"model": hosted.name, "fingerprint": hosted.fingerprint},
        "method": "mean_difference",
        "settings": {
            "sites": sorted(learned.vectors),
            "pool": told["pool"],
            "tokens": told["tokens"],
        },
        "texts": {
            "digest": hashlib.sha256(texts.encode()).hexdigest(),
            "positives": len(told["positives"]),
            "negatives": len(told["negatives"]),
        },
        "tool": TOOL,
    }
    vectors = Vectors(header, learned.vectors)
    report = sizes_of(vectors, learned.stream_norms)
    report["tokens"] = {"positives": learned.positives, "negatives": learned.negatives}
    report["cut"] = dict(zip(("positives", "negatives"), learned.cut, strict=True))
    name = told["name"]
    before = newest(registry, job.tenant, name)
    version = registry.edits.register(
        job.tenant,
        name,
        job.model,
        hosted.fingerprint,
        vectors.data,
        header=header,
        report=report,
        actor=job.created_by,
        kind=VECTOR,
        parent=parent_of(vectors.digest, before),
        job=job.id,
    )
    return {
        "vector": version.name,
        "version": version.number,
        "digest": version.digest,
        "status": version.status,
        "report": version.report,
        "location": f"/v1/vectors/{version.name}/versions/{version.number}",
    }


def sizes_of(vectors: Vectors, stream_norms: Mapping[str, float]) -> dict[str, Any]:
    """How long each direction is, by itself and beside the stream."""
    norms = {site: float(v.norm()) for site, v in vectors.vectors.items()}
    return {
        "norms": norms,
        "stream_norms": dict(stream_norms),
        "ratios": {site: norm / stream_norms[site] for site, norm in norms.items()},
    }


def adopted(hosted: HostedModel, background: Background, arrival: AdoptVector) -> AdoptedVector:
    """A control-vector file from outside, checked against the model and measured.

    A file of ours stays as it is, so that its digest stays what it was elsewhere.

    Raises:
        BadFile, BadVector, PickleRefused, SiteNotDeclared: The file.
        UnknownSite, WrongBase: It is of another model.
    """
    with _in_form(arrival):
        vectors = _own(hosted, arrival) or _foreign(hosted, arrival)
        for site, vector in vectors.vectors.items():
            width = _check(hosted, site)
            if len(vector) != width:
                raise BadVector(f"The vector of {site} has {len(vector)} numbers, not {width}.")
    norms = drained(background, at_once(lambda: neutral_norms(hosted, list(vectors.vectors))))
    return AdoptedVector(
        data=vectors.data, header=dict(vectors.header), report=sizes_of(vectors, norms)
    )


@contextmanager
def _in_form(arrival: AdoptVector) -> Iterator[None]:
    """What is wrong with the file names the form's field: `site` where one is given or missing."""
    try:
        yield
    except Refusal as refusal:
        of_site = arrival.site is not None or isinstance(refusal, SiteNotDeclared)
        refusal.param = "site" if of_site and refusal.param == "site" else "file"
        raise


def _own(hosted: HostedModel, arrival: AdoptVector) -> Vectors | None:
    try:
        vectors = Vectors.read(arrival.data)
    except BadVector:
        return None
    base = vectors.header.get("base", {}).get("fingerprint", "")
    if base != hosted.fingerprint:
        raise WrongBase(arrival.file, base, hosted.name, hosted.fingerprint)
    return vectors


def _foreign(hosted: HostedModel, arrival: AdoptVector) -> Vectors:
    with TemporaryDirectory(prefix="tiller-vector-") as folder:
        # Of the caller's name only the ending: it says how the file is read.
        file = Path(folder) / f"vector{Path(arrival.file).suffix.lower()}"
        file.write_bytes(arrival.data)
        found = read_vectors(file, site=arrival.site)
    source = {"sha256": hashlib.sha256(arrival.data).hexdigest(), "bytes": len(arrival.data)}
    header = {
        "base": {"model": hosted.name, "fingerprint": hosted.fingerprint},
        "method": "import",
        "source": source,
        "tool": TOOL,
    }
    return Vectors(header, found)


def neutral_norms(hosted: HostedModel, sites: Sequence[str]) -> dict[str, float]:
    """Of the last token of the neutral prompt, on the owner thread."""
    ids = language_of(hosted, "control_vector").tokenize(hosted, REFERENCE.prompt)
    read = streams(hosted, torch.tensor([ids]), sites)
    return {site: float(read[site][0, -1].float().norm()) for site in sites}
