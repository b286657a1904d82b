"""What the registry refuses, and what the caller can do instead."""

from typing import Self

from models.errors import Refusal

_LISTS = {"edit": "/v1/edits", "preset": "/v1/presets", "vector": "/v1/vectors"}
_LISTS |= {"dataset": "/v1/datasets", "evaluation": "/v1/evaluations"}
_LISTS |= {"calibration": "/v1/backpatch/calibrations"}
NAME = "edit, preset or vector"
"""What a name may be the name of, where all of them may stand."""


class _Referring:
    """A refusal of a reference to a version; it says what was looked for, and where it stood."""

    def __init__(self, *told: str, what: str = "edit", param: str | None = "edits") -> None:
        self.told, self.what = told, what
        problem, remedy = self.words(what, *told)
        super().__init__(problem, remedy=remedy, param=param)  # type: ignore[call-arg]

    @staticmethod
    def words(what: str, *told: str) -> tuple[str, str]:
        """The problem and the remedy."""
        raise NotImplementedError

    def at(self, what: str, param: str) -> Self:
        """The same at another key of the request, where such names belong."""
        return type(self)(*self.told, what=what, param=param)


class _Found(_Referring):
    """The name is there, so that its kind is known."""

    def at(self, what: str, param: str) -> Self:  # noqa: ARG002 - it is what it is
        """The same at another key of the request."""
        return super().at(self.what, param)


def _lists(what: str) -> str:
    return _LISTS.get(what, "/v1/edits, /v1/presets and /v1/vectors")


def _address(what: str, name: str) -> str:
    return f"{_LISTS.get(what, '/v1/edits')}/{name}"


class BadName(Refusal):
    """A name outside the registry's grammar."""

    def __init__(self, what: str, name: str) -> None:
        super().__init__(
            f"{name[:80]!r} is not a name for {what}.",
            remedy="Use 1 to 64 of a-z, 0-9, '.', '_' and '-'; begin with a letter or digit; "
            "an alias begins with a letter and has at most 32.",
            param="name",
        )


class BadReference(_Referring, Refusal):
    """A text that does not name a version."""

    @staticmethod
    def words(what: str, *told: str) -> tuple[str, str]:
        """The problem and the remedy."""
        name = {"preset": "winter", "vector": "happy"}.get(what, "potus")
        return (
            f"{told[0][:120]!r} does not name a version.",
            f"Write {name}, {name}@3, {name}@live or sha256:<64 hexadecimal digits>.",
        )


class BadRecord(Refusal):
    """Data that cannot be kept as JSON, or not within the registry's bounds."""

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(
            f"The {what} cannot be kept: {problem}.",
            remedy="Send finite numbers, texts, lists and objects within the stated limits.",
            param=what,
        )


class BadPage(Refusal):
    """A `limit` or `after` that no page has."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"There is no such page: {problem}.",
            remedy="Use a limit from 1 to 1000 and the `next_cursor` of the page before.",
            param="after",
        )


class UnknownEdit(_Referring, Refusal):
    """No edit of that name."""

    @staticmethod
    def words(what: str, *told: str) -> tuple[str, str]:
        """The problem and the remedy."""
        makes = "; POST /v1/edits registers one" if what == "edit" else ""
        return f"There is no {what} {told[0]!r}.", f"GET {_lists(what)} lists the names{makes}."

    def at(self, what: str, param: str) -> "UnknownEdit":
        """As an edit, or as any other name."""
        return (
            UnknownEdit(*self.told, param=param)
            if what == "edit"
            else UnknownName(what, self.told[0], param)
        )


class UnknownName(UnknownEdit):
    """No preset or vector of that name; it may be the name of something else."""

    def __init__(self, what: str, name: str, param: str = "name") -> None:
        super().__init__(name, what=what, param=param)


class UnknownVersion(_Found, Refusal):
    """The name exists, the version does not."""

    @staticmethod
    def words(what: str, *told: str) -> tuple[str, str]:
        """The problem and the remedy."""
        name, version = told
        return f"{name} has no version {version}.", f"GET {_address(what, name)} lists them."


class UnknownAlias(_Found, Refusal):
    """The name exists, the alias does not."""

    @staticmethod
    def words(what: str, *told: str) -> tuple[str, str]:
        """The problem and the remedy."""
        name, alias = told
        return (
            f"{name} has no alias {alias!r}.",
            f"PUT {_address(what, name)}/aliases/{alias} makes it.",
        )


class UnknownDigest(_Referring, Refusal):
    """No version of the tenant has this digest."""

    @staticmethod
    def words(what: str, *told: str) -> tuple[str, str]:  # noqa: ARG004 - the same for all
        """The problem and the remedy."""
        return (
            f"No version has the digest {told[0][:16]}.",
            "Use the digest that the version's own page shows.",
        )


class NoReadyVersion(_Referring, Refusal):
    """A bare name with no version that passed its checks and is neither retired nor blocked."""

    @staticmethod
    def words(what: str, *told: str) -> tuple[str, str]:  # noqa: ARG004 - the same for all
        """The problem and the remedy."""
        name = told[0]
        return (
            f"{name} has no version that is ready and no alias 'live'.",
            f"Name a version ({name}@3), move the alias 'live' or register a new version.",
        )


class VersionRetired(_Referring, Refusal):
    """A version that was taken out of use."""

    @staticmethod
    def words(what: str, *told: str) -> tuple[str, str]:  # noqa: ARG004 - the same for all
        """The problem and the remedy."""
        return f"{told[0]} is retired.", "Use another version, or register it again."


class VersionBlocked(_Referring, Refusal):
    """A version that the operator forbids, whatever name or digest asks for it."""

    @staticmethod
    def words(what: str, *told: str) -> tuple[str, str]:  # noqa: ARG004 - the same for all
        """The problem and the remedy."""
        return f"{told[0]} is blocked.", "Use another version; an operator can lift the block."


OF_REFERENCES = (
    BadReference,
    UnknownEdit,
    UnknownVersion,
    UnknownAlias,
    UnknownDigest,
    NoReadyVersion,
    VersionRetired,
    VersionBlocked,
)
"""What a reference may be refused for: each can say it `at` another key, of another kind."""


class InUse(Refusal):
    """A version that an alias or a variant still points to, or an alias that a variant names."""

    def __init__(self, name: str, users: str) -> None:
        super().__init__(
            f"{name} is in use by {users}.", remedy="Change or delete those first, then try again."
        )


class ChecksFailed(Refusal):
    """An alias may not point to a version whose measured report fell below the thresholds."""

    def __init__(self, version: str) -> None:
        super().__init__(
            f"{version} failed its checks.",
            remedy="Read its report and fit it again, or repeat with force if you accept it.",
            param="version",
        )


class NotMeasured(Refusal):
    """An alias may not point unasked to a version of which nobody knows what it does."""

    def __init__(self, version: str) -> None:
        super().__init__(
            f"{version} states no fact, so nothing says whether it does what it should.",
            remedy="Look at its pictures by number, then repeat with force if you accept it.",
            param="version",
        )


class AliasMoved(Refusal):
    """Somebody else moved the alias (or changed the variant) first."""

    def __init__(self, alias: str, expected: int | str | None, generation: int) -> None:
        problem = (
            f"{alias} has generation {generation}, not {expected}: somebody changed it meanwhile."
        )
        remedy = "Read it again, decide again, and send its present generation as If-Match."
        if expected == "*":
            problem, remedy = f"{alias} is not there.", "Leave If-Match out to make it."
        if expected == 0:
            problem = f"{alias} is there already: its generation is {generation}."
        super().__init__(problem, remedy=remedy, param="If-Match" if expected else "If-None-Match")
        self.generation = generation


class NothingToRollBack(Refusal):
    """The alias never pointed anywhere else that can still be used."""

    def __init__(self, alias: str) -> None:
        super().__init__(
            f"{alias} has no earlier version to go back to.",
            remedy="Move the alias to a version by number.",
        )


class KindDiffers(Refusal):
    """A name that already belongs to another kind of thing."""

    def __init__(self, name: str, has: str, asked: str) -> None:
        super().__init__(
            f"{name!r} is the name of a {has}, not of a {asked}.",
            remedy="Choose another name: edits and presets share one set of names.",
            param="name",
        )


class UnknownVariant(Refusal):
    """No variant of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"There is no variant {name!r}.", remedy="GET /v1/variants lists them.", param="model"
        )


class UnknownJob(Refusal):
    """No job of that id, or not one of the caller's."""

    def __init__(self, job: str) -> None:
        super().__init__(f"There is no job {job[:80]!r}.", remedy="GET /v1/jobs lists yours.")


class LeaseLost(Refusal):
    """The worker was silent for too long (or the job is over): somebody else has the job."""

    def __init__(self, job: str, worker: str) -> None:
        super().__init__(
            f"{worker} no longer holds the job {job}.",
            remedy="Stop working on it; its new worker answers for it.",
        )


class UnknownApiKey(Refusal):
    """No API key of that id, or not one of the caller's."""

    def __init__(self, key: str) -> None:
        super().__init__(f"There is no API key {key[:80]!r}.", remedy="GET /v1/keys lists yours.")


class StillInProgress(Refusal):
    """The same Idempotency-Key came again before its first request was answered."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"The request with Idempotency-Key {key[:80]!r} is still in progress.",
            remedy="Wait for its answer, or repeat in a few seconds.",
            param="Idempotency-Key",
        )
        self.retry_after = 2.0


class BodyDiffers(Refusal):
    """An Idempotency-Key that was used before, for another body."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"Idempotency-Key {key[:80]!r} was used for another body.",
            remedy="Use a new key for a new request.",
            param="Idempotency-Key",
        )


class RegistryFull(Refusal):
    """A bound on how much the registry keeps of one thing."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(
            f"There are already {limit} {what}, the most that is allowed.",
            remedy="Remove some that are not needed, or ask the operator to raise the limit.",
        )


class TooManyJobs(Refusal):
    """The tenant has as many unfinished jobs as one tenant may."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} jobs are already waiting or running.",
            remedy="Wait until one ends, or cancel one.",
        )
        self.retry_after = 30.0


class BlobMissing(Refusal):
    """A digest whose file is not in the store."""

    def __init__(self, digest: str) -> None:
        super().__init__(
            f"The file {digest[:16]} is not in the store.",
            remedy="Register the version again; `tiller registry verify` lists what is missing.",
        )


class BlobCorrupt(Refusal):
    """A file whose bytes no longer have the hash in its name; it is never handed out."""

    def __init__(self, digest: str) -> None:
        super().__init__(
            f"The file {digest[:16]} is damaged: its bytes have another hash.",
            remedy="Register the same data again, which repairs it, or restore a backup.",
        )


class BadStore(Refusal):
    """An address for the index or the blobs that cannot be used; the service does not start."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(
            f"{url}: {problem}.",
            remedy="Index: sqlite:///<file on a local disk> or postgresql://...; blobs: a local "
            "folder, s3://..., gs://... with the matching fsspec package installed.",
        )


class RemoteDisk(Refusal):
    """SQLite on a network filesystem, whose locks lie: the service does not start."""

    def __init__(self, path: str, filesystem: str) -> None:
        super().__init__(
            f"{path} lies on a {filesystem} filesystem; SQLite would corrupt the index there.",
            remedy="Put the index on a local disk, or use PostgreSQL.",
        )


class NewerIndex(Refusal):
    """The index was written by a newer release."""

    def __init__(self, revision: str, known: str) -> None:
        super().__init__(
            f"The index has schema {revision}; this release knows up to {known}.",
            remedy="Install the release that wrote it, or a newer one.",
        )


class IndexUnavailable(Refusal):
    """The database did not answer in time."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The registry's database is not available: {why[:200]}.",
            remedy="Try again in a few seconds; nothing was changed.",
        )
        self.retry_after = 2.0
