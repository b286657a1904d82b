"""The index's tables, the same on SQLite and PostgreSQL; `migrations/` makes them.

Times are seconds since 1970. JSON is kept as canonical text (sorted keys, no spaces), so that its
hash means something.
"""

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy import (
    Column,
    ForeignKey,
    Index,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect

INDEX = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

REVISION = "0003"
"""The schema that this release reads and writes; the last file in `migrations/versions`."""


def canonical(value: Any) -> str:
    """The one text of a JSON value.

    Raises:
        TypeError: Something that JSON does not have.
        ValueError: NaN or an infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


class Canonical(sa.types.TypeDecorator[Any]):
    """A JSON value in a text column."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """To the database; None is SQL's NULL."""
        return None if value is None else canonical(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002
        """From the database."""
        return None if value is None else json.loads(value)


class Whole(sa.types.TypeDecorator[int]):
    """A whole number; one that no column holds is told as the largest, so that nothing has it.

    Paths, bodies and headers bring numbers of any size to be looked for, and a database fails at
    those. What is written are the registry's own counts, which stay far below.
    """

    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        """To the database."""
        return None if value is None else max(-_MOST_WHOLE, min(value, _MOST_WHOLE))


_MOST_WHOLE = 2**31 - 1
BigId = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""Only a column of exactly INTEGER counts by itself in SQLite."""


blobs = Table(
    "blobs",
    INDEX,
    Column("digest", sa.String(64), primary_key=True),
    Column("size", sa.BigInteger, nullable=False),
    Column("created_at", sa.Double, nullable=False),
    Column("swept_at", sa.Double),
)

edits = Table(
    "edits",
    INDEX,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("created_at", sa.Double, nullable=False),
    Column("created_by", Text, nullable=False),
    UniqueConstraint("tenant", "name"),
)

versions = Table(
    "versions",
    INDEX,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("edit", BigId, ForeignKey("edits.id"), nullable=False),
    Column("number", Whole, nullable=False),
    Column("digest", sa.String(64), ForeignKey("blobs.digest"), nullable=False),
    Column("model", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("header", Canonical, nullable=False),
    Column("report", Canonical),
    Column("checks", Text, nullable=False),
    Column("parent", Text),
    Column("job", Text),
    Column("created_at", sa.Double, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("retired_at", sa.Double),
    Column("blocked_at", sa.Double),
    UniqueConstraint("edit", "number"),
    UniqueConstraint("job"),
    Index("ix_versions_digest", "digest"),
)

aliases = Table(
    "aliases",
    INDEX,
    Column("edit", BigId, ForeignKey("edits.id"), nullable=False),
    Column("alias", Text, nullable=False),
    Column("number", Whole),  # NULL: deleted; the row stays so that generations never repeat
    Column("generation", Whole, nullable=False),
    Column("moved_at", sa.Double, nullable=False),
    Column("moved_by", Text, nullable=False),
    PrimaryKeyConstraint("edit", "alias"),
)

alias_states = Table(
    "alias_states",
    INDEX,
    Column("edit", BigId, ForeignKey("edits.id"), nullable=False),
    Column("alias", Text, nullable=False),
    Column("generation", Whole, nullable=False),
    Column("number", Whole, nullable=False),
    Column("before", Whole),  # the generation that a rollback from here goes back to
    PrimaryKeyConstraint("edit", "alias", "generation"),
)

variants = Table(
    "variants",
    INDEX,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("model", Text),  # NULL: deleted, for the same reason
    Column("settings", Canonical, nullable=False),
    Column("generation", Whole, nullable=False),
    Column("changed_at", sa.Double, nullable=False),
    Column("changed_by", Text, nullable=False),
    UniqueConstraint("tenant", "name"),
)

variant_edits = Table(
    "variant_edits",
    INDEX,
    Column("variant", BigId, ForeignKey("variants.id"), nullable=False),
    Column("position", Whole, nullable=False),
    Column("reference", Text, nullable=False),
    PrimaryKeyConstraint("variant", "position"),
    Index("ix_variant_edits_reference", "reference"),
)

jobs = Table(
    "jobs",
    INDEX,
    Column("seq", BigId, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("payload", Canonical, nullable=False),
    Column("state", Text, nullable=False),
    Column("progress", sa.Double, nullable=False),
    Column("stage", Text, nullable=False),
    Column("result", Canonical),
    Column("problem", Canonical),
    Column("attempts", Whole, nullable=False),
    Column("cancelling", sa.Boolean, nullable=False),
    Column("worker", Text),
    Column("lease_seconds", sa.Double),
    Column("until", sa.Double, nullable=False),  # running: the lease's end; queued: patience's end
    Column("told", Whole, nullable=False),
    Column("created_at", sa.Double, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("started_at", sa.Double),
    Column("finished_at", sa.Double),
    UniqueConstraint("id"),
    Index("ix_jobs_state_seq", "state", "seq"),
    Index("ix_jobs_tenant_seq", "tenant", "seq"),
)

job_events = Table(
    "job_events",
    INDEX,
    Column("job", BigId, ForeignKey("jobs.seq", ondelete="CASCADE"), nullable=False),
    Column("seq", Whole, nullable=False),
    Column("at", sa.Double, nullable=False),
    Column("state", Text, nullable=False),
    Column("progress", sa.Double, nullable=False),
    Column("stage", Text, nullable=False),
    Column("line", Text, nullable=False),
    PrimaryKeyConstraint("job", "seq"),
)

job_notes = Table(
    "job_notes",
    INDEX,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("job", BigId, ForeignKey("jobs.seq", ondelete="CASCADE"), nullable=False),
    Column("packed", sa.LargeBinary, nullable=False),  # zlib of the note's JSON
    Index("ix_job_notes_job", "job", "id"),
)

keys = Table(
    "keys",
    INDEX,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("hash", sa.String(64), nullable=False),
    Column("scopes", Canonical, nullable=False),
    Column("created_at", sa.Double, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at", sa.Double),
    Column("revoked_at", sa.Double),
    Index("ix_keys_tenant", "tenant"),
)

claims = Table(
    "claims",
    INDEX,
    Column("tenant", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("body_hash", Text, nullable=False),
    Column("response", Canonical),
    Column("begun_at", sa.Double, nullable=False),
    Column("expires_at", sa.Double, nullable=False),
    PrimaryKeyConstraint("tenant", "key"),
    Index("ix_claims_expires_at", "expires_at"),
)

audit = Table(
    "audit",
    INDEX,
    Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    Column("at", sa.Double, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),  # as hashed
    Column("digest", sa.String(64), nullable=False),
    Index("ix_audit_tenant_seq", "tenant", "seq"),
)

score_sets = Table(
    "score_sets",
    INDEX,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("fingerprint", Text, nullable=False),
    Column("sae", sa.String(64), nullable=False),
    Column("settings", sa.String(64), nullable=False),
    Column("told", Canonical, nullable=False),  # what the digest in `settings` stands for
    Column("created_at", sa.Double, nullable=False),
    UniqueConstraint("fingerprint", "sae", "settings"),
)

feature_scores = Table(
    "feature_scores",
    INDEX,
    Column("scores", BigId, ForeignKey("score_sets.id", ondelete="CASCADE"), nullable=False),
    Column("feature", Whole, nullable=False),
    Column("output_score", sa.Double),  # NULL: the pass gave no number; `reason` says why
    Column("peak", sa.Double),
    Column("rank", Whole),
    Column("p_max_before", sa.Double),
    Column("p_max_after", sa.Double),
    Column("a_max", sa.Double),
    Column("tokens", Canonical, nullable=False),
    Column("reason", Text, nullable=False),
    Column("scored_at", sa.Double, nullable=False),
    PrimaryKeyConstraint("scores", "feature"),
    Index("ix_feature_scores_scores_output_score", "scores", "output_score"),
)

feature_labels = Table(
    "feature_labels",
    INDEX,
    Column("tenant", Text, nullable=False),
    Column("sae", sa.String(64), nullable=False),
    Column("feature", Whole, nullable=False),
    Column("source", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("folded", Text, nullable=False),  # as searched: Unicode's caseless form
    Column("changed_at", sa.Double, nullable=False),
    Column("changed_by", Text, nullable=False),
    PrimaryKeyConstraint("tenant", "sae", "feature", "source"),
)

snippet_sets = Table(
    "snippet_sets",
    INDEX,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("tenant", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("sae", sa.String(64), nullable=False),
    Column("told", Canonical, nullable=False),  # the sample: its digest, texts, tokens
    Column("created_at", sa.Double, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("finished_at", sa.Double),  # NULL: still being written; nobody reads it
    Index("ix_snippet_sets_sae", "sae", "fingerprint", "tenant"),
)

snippets = Table(
    "snippets",
    INDEX,
    Column("sample", BigId, ForeignKey("snippet_sets.id", ondelete="CASCADE"), nullable=False),
    Column("feature", Whole, nullable=False),
    Column("strongest", sa.Double, nullable=False),
    Column("input_score", sa.Double),  # NULL: too few snippets
    Column("packed", sa.LargeBinary, nullable=False),  # zlib of the snippets' JSON
    PrimaryKeyConstraint("sample", "feature"),
)
