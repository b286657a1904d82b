"""The registry as one thing: open it, use its parts, close it."""

from dataclasses import dataclass

from service.registry.audit import Audit, Events
from service.registry.blobs import Blobs, open_blobs
from service.registry.edits import Edits
from service.registry.idempotency import Idempotency
from service.registry.index import Index, open_index
from service.registry.jobs import Jobs
from service.registry.keys import Keys
from service.registry.labels import Labels
from service.registry.limits import Limits
from service.registry.names import Names
from service.registry.notes import Notes
from service.registry.presets import Presets
from service.registry.records import Health, Swept
from service.registry.schema import upgrade
from service.registry.scores import Scores
from service.registry.snippets import Snippets
from service.registry.sweeping import Sweeper
from service.registry.variants import Variants


@dataclass(frozen=True, kw_only=True)
class Registry:
    """All that is kept; every method is synchronous and may be called from any thread.

    Methods raise `Refusal`s: those that they name, and `IndexUnavailable`.
    """

    index: Index
    store: Blobs
    edits: Edits
    names: Names
    variants: Variants
    presets: Presets
    scores: Scores
    labels: Labels
    snippets: Snippets
    jobs: Jobs
    notes: Notes
    keys: Keys
    idempotency: Idempotency
    audit: Audit
    events: Events
    sweeper: Sweeper

    def gc(self, older_than: float = 3600.0) -> Swept:
        """Remove what nobody needs; see `Sweeper.gc`.

        Args:
            older_than: Seconds; younger files are spared, for they may be on their way in.
        """
        return self.sweeper.gc(older_than)

    def verify(self) -> Health:
        """Whether every file, number and audit row is as it was written."""
        return self.sweeper.verify()

    def close(self) -> None:
        """Give the database's connections back."""
        self.index.close()


def open_registry(index_url: str, blobs_url: str, limits: Limits | None = None) -> Registry:
    """Open the registry and bring its schema up to date.

    Args:
        index_url: `sqlite:///<file on a local disk>` or `postgresql://...`.
        blobs_url: A local folder, or an fsspec address (`s3://...`).
        limits: Bounds; the defaults if None.

    Raises:
        BadStore: An address that cannot be used.
        RemoteDisk: SQLite on a network filesystem.
        NewerIndex: The index was written by a newer release.
        IndexUnavailable: The database does not answer.
    """
    bounds = limits or Limits()
    store = open_blobs(blobs_url)
    index = open_index(index_url)
    try:
        with index.writing() as connection:
            upgrade(connection)
    except BaseException:
        index.close()
        raise
    edits = Edits(index=index, blobs=store, limits=bounds)
    return Registry(
        index=index,
        store=store,
        edits=edits,
        names=Names(index=index, limits=bounds),
        variants=Variants(index=index, limits=bounds),
        presets=Presets(edits=edits),
        scores=Scores(index=index, limits=bounds),
        labels=Labels(index=index, limits=bounds),
        snippets=Snippets(index=index, limits=bounds),
        jobs=Jobs(index=index, limits=bounds),
        notes=Notes(index=index, limits=bounds),
        keys=Keys(index=index, limits=bounds),
        idempotency=Idempotency(index=index, limits=bounds),
        audit=Audit(index=index, limits=bounds),
        events=Events(index=index, limits=bounds),
        sweeper=Sweeper(index=index, store=store, limits=bounds),
    )
