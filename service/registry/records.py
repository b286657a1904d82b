"""What the registry hands out: plain frozen data, no database behind it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

Checks = Literal["ready", "failed_checks", "unmeasured"]
Status = Literal["ready", "failed_checks", "unmeasured", "retired", "blocked"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Json = Mapping[str, Any]
T = TypeVar("T")
Expected = int | Literal["*"] | None
"""The generation that a caller has seen: 0 for "it is not there", "*" for any, None: not asked."""


@dataclass(frozen=True, kw_only=True)
class Page(Generic[T]):
    """Some of a longer list.

    Attributes:
        next_cursor: What to send as `after` for the next page; None on the last.
    """

    items: tuple[T, ...]
    has_more: bool
    next_cursor: str | None


@dataclass(frozen=True, kw_only=True)
class Version:
    """One immutable state of an edit or a preset.

    Attributes:
        digest: SHA-256 of the file, 64 hexadecimal digits.
        fingerprint: Of the base weights that it was made for.
        parent: The version that it grew from, if the caller said so.
        created_at: Seconds since 1970, as all times here.
    """

    tenant: str
    name: str
    number: int
    kind: str
    digest: str
    model: str
    fingerprint: str
    header: Json
    report: Json | None
    status: Status
    parent: str | None
    job: str | None
    size: int
    created_at: float
    created_by: str

    @property
    def reference(self) -> str:
        """How a request names exactly this version."""
        return f"{self.name}@{self.number}"


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A name that moves. Its generation grows with every move, also over a deletion."""

    name: str
    alias: str
    version: int
    generation: int
    moved_at: float
    moved_by: str


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A name with its versions (1 to `versions`, without gaps) and aliases."""

    tenant: str
    name: str
    kind: str
    versions: int
    aliases: tuple[Alias, ...]
    created_at: float
    created_by: str


@dataclass(frozen=True, kw_only=True)
class Newest:
    """A name with what its newest version says of itself, for lists."""

    name: str
    number: int
    model: str
    header: Json
    job: str | None
    created_at: float
    created_by: str


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A named bundle that unmodified OpenAI clients use as a model.

    Attributes:
        edits: References (`potus@live`), resolved anew at each request.
        settings: What else belongs to it (strengths, steering, back-patch): the caller's JSON.
    """

    tenant: str
    name: str
    model: str
    edits: tuple[str, ...]
    settings: Json
    generation: int
    changed_at: float
    changed_by: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """Long work: who asked, how far it is, what came of it.

    Attributes:
        progress: 0 to 1.
        log: The last lines; empty in lists.
        payload: What to do; empty in lists.
        problem: `{"code", "problem", "remedy", "param"}` of a failed job.
        attempts: How often a worker has begun it.
    """

    id: str
    tenant: str
    kind: str
    model: str
    state: JobState
    progress: float
    stage: str
    log: tuple[str, ...]
    payload: Json
    result: Json | None
    problem: Json | None
    attempts: int
    cancelling: bool
    worker: str | None
    created_at: float
    created_by: str
    started_at: float | None
    finished_at: float | None

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """Something that happened to a job; `seq` counts from 1 within the job."""

    seq: int
    at: float
    state: JobState
    progress: float
    stage: str
    line: str


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key without its secret, which nobody can read again."""

    id: str
    tenant: str
    name: str
    scopes: tuple[str, ...]
    created_at: float
    created_by: str
    expires_at: float | None
    revoked_at: float | None


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """Who did what to which thing, when; `digest` covers the row and all rows before it."""

    seq: int
    at: float
    tenant: str
    actor: str
    action: str
    subject: str
    detail: Json
    digest: str


@dataclass(frozen=True, kw_only=True)
class Event:
    """The audit as machines read it: what changed, in order."""

    seq: int
    at: float
    tenant: str
    action: str
    subject: str
    detail: Json


@dataclass(frozen=True, kw_only=True)
class ChainReport:
    """What a walk over the audit found.

    Attributes:
        head: Digest of the last row: note it elsewhere, and a cut-off tail shows too.
        broken_at: The first `seq` that is missing or does not fit, None if all do.
    """

    rows: int
    head: str
    broken_at: int | None


@dataclass(frozen=True, kw_only=True)
class Health:
    """What a walk over index and blobs found; all tuples empty means sound.

    Attributes:
        missing: Digests that a version needs and the store lacks.
        corrupt: Digests whose bytes have another hash.
        gaps: Names whose numbers are not 1, 2, 3, ...
    """

    versions: int
    blobs: int
    missing: tuple[str, ...]
    corrupt: tuple[str, ...]
    gaps: tuple[str, ...]
    chain: ChainReport

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.missing or self.corrupt or self.gaps) and self.chain.broken_at is None


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What gc removed.

    Attributes:
        orphans: Digests of files that no version had.
        parts: Names of unfinished files.
        retired: Digests of files whose every version was retired long ago.
        nbytes: Of all of them.
    """

    orphans: tuple[str, ...]
    parts: tuple[str, ...]
    retired: tuple[str, ...]
    nbytes: int
    jobs: int


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Which scores are meant: of which weights and dictionary, taken how.

    Attributes:
        fingerprint: Of the model's weights.
        sae: The dictionary's digest.
        settings: Digest of the settings that they are taken with.
    """

    fingerprint: str
    sae: str
    settings: str


@dataclass(frozen=True, kw_only=True)
class FeatureScore:
    """What steering with one feature does to the next token.

    Attributes:
        output_score: None where the pass gave no number; `reason` says why.
        peak: Probability of the likeliest of the feature's lens tokens.
        rank: How many tokens of the vocabulary are likelier than that one.
        p_max_before: The largest probability without steering.
        p_max_after: The largest probability with it.
        a_max: The strongest code at the scored token, which the steering is a multiple of.
        tokens: The feature's lens tokens, best first.
    """

    feature: int
    output_score: float | None
    peak: float | None = None
    rank: int | None = None
    p_max_before: float | None = None
    p_max_after: float | None = None
    a_max: float | None = None
    tokens: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many features of a measure are scored, and how many of those reach each threshold."""

    scored: int
    reach: Mapping[float, int]


@dataclass(frozen=True, kw_only=True)
class FeatureLabel:
    """What somebody says a feature is about."""

    feature: int
    label: str
    source: str


@dataclass(frozen=True, kw_only=True)
class SnippetSet:
    """A sample of texts in which the strongest places of each feature were looked up.

    Attributes:
        told: Digest and size of the sample.
    """

    id: int
    tenant: str
    fingerprint: str
    sae: str
    told: Json
    created_at: float
    created_by: str


@dataclass(frozen=True, kw_only=True)
class FeatureSnippets:
    """Where one feature was strongest.

    Attributes:
        strongest: Its largest activation in the sample.
        input_score: Share of its snippets whose strongest token is one of its lens tokens.
        snippets: `{"tokens", "values", ...}` each, the strongest first.
    """

    feature: int
    strongest: float
    input_score: float | None
    snippets: tuple[Json, ...]
