from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from service.registry import open_registry
from service.registry.errors import NewerIndex
from service.registry.schema import revision
from service.registry.tables import INDEX, REVISION


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(registry):
    with registry.index.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, INDEX) == []
        assert revision(connection) == REVISION


def test_opening_again_changes_nothing(opened, add):
    version = add()
    again = opened()
    assert again.edits.version("acme", "potus", 1) == version


def test_an_index_of_a_newer_release_is_refused_and_left_alone(registry, opened):
    set_revision(registry, "9999")
    with pytest.raises(NewerIndex, match="9999"):
        opened()
    with registry.index.reading() as connection:
        assert revision(connection) == "9999"
    set_revision(registry, REVISION)


def set_revision(registry, number):
    with registry.index.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :n"), {"n": number})


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_many_may_open_an_empty_index_at_once(kind, request, tmp_path):
    url = f"sqlite:///{tmp_path}/empty.sqlite"
    if kind == "postgresql":
        postgres = request.getfixturevalue("postgres")
        postgres.create("empty")
        url = postgres.url("empty")

    def open_once(_):
        registry = open_registry(url, str(tmp_path / "blobs"))
        try:
            return registry.events.latest()
        finally:
            registry.close()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(open_once, range(4))) == [0, 0, 0, 0]
