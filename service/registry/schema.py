"""The index's schema: made and kept up to date by Alembic, in one transaction, by one process."""

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection

from service.registry.errors import NewerIndex
from service.registry.tables import REVISION

_HERE = Path(__file__).parent / "migrations"


def upgrade(connection: Connection) -> None:
    """Bring the schema to `REVISION`; the caller holds the one write transaction.

    Raises:
        NewerIndex: The index was written by a release that this one does not know.
    """
    if revision(connection) == REVISION:
        return
    # Alembic takes a third of a second to import: only when there is something for it to do.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    has = revision(connection)
    if has is not None and has not in known:
        raise NewerIndex(has, REVISION)
    command.upgrade(config, REVISION)


def revision(connection: Connection) -> str | None:
    """The schema's revision, None for an empty database."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
