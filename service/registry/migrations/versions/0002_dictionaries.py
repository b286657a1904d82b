"""What is known of dictionaries' features: scores, labels, snippets."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

_TABLES = ("snippets", "feature_scores", "snippet_sets", "score_sets", "feature_labels")
"""In the order in which they can be removed."""


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "score_sets",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("sae", sa.String(length=64), nullable=False),
        sa.Column("settings", sa.String(length=64), nullable=False),
        sa.Column("told", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_score_sets")),
        sa.UniqueConstraint(
            "fingerprint", "sae", "settings", name=op.f("uq_score_sets_fingerprint_sae_settings")
        ),
    )
    op.create_table(
        "feature_scores",
        sa.Column("scores", _ID, nullable=False),
        sa.Column("feature", sa.Integer(), nullable=False),
        sa.Column("output_score", sa.Double(), nullable=True),
        sa.Column("peak", sa.Double(), nullable=True),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("p_max_before", sa.Double(), nullable=True),
        sa.Column("p_max_after", sa.Double(), nullable=True),
        sa.Column("a_max", sa.Double(), nullable=True),
        sa.Column("tokens", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("scored_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["scores"],
            ["score_sets.id"],
            name=op.f("fk_feature_scores_scores"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("scores", "feature", name=op.f("pk_feature_scores")),
    )
    op.create_index(
        "ix_feature_scores_scores_output_score", "feature_scores", ["scores", "output_score"]
    )
    op.create_table(
        "feature_labels",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("sae", sa.String(length=64), nullable=False),
        sa.Column("feature", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("folded", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant", "sae", "feature", "source", name=op.f("pk_feature_labels")
        ),
    )
    op.create_table(
        "snippet_sets",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("sae", sa.String(length=64), nullable=False),
        sa.Column("told", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snippet_sets")),
    )
    op.create_index("ix_snippet_sets_sae", "snippet_sets", ["sae", "fingerprint", "tenant"])
    op.create_table(
        "snippets",
        sa.Column("sample", _ID, nullable=False),
        sa.Column("feature", sa.Integer(), nullable=False),
        sa.Column("strongest", sa.Double(), nullable=False),
        sa.Column("input_score", sa.Double(), nullable=True),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["sample"],
            ["snippet_sets.id"],
            name=op.f("fk_snippets_sample"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("sample", "feature", name=op.f("pk_snippets")),
    )


def downgrade() -> None:
    """Remove what was known."""
    for table in _TABLES:
        op.drop_table(table)
