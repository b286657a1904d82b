"""What an unfinished job has found so far."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "job_notes",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("job", _ID, nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job"], ["jobs.seq"], name=op.f("fk_job_notes_job"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_notes")),
    )
    op.create_index("ix_job_notes_job", "job_notes", ["job", "id"])


def downgrade() -> None:
    """Remove it."""
    op.drop_table("job_notes")
