import threading

import pytest
import sqlalchemy as sa

from service.registry import index as module
from service.registry.errors import BadStore, IndexUnavailable
from service.registry.index import open_index


@pytest.mark.parametrize(
    "url",
    ["", "potus", "mysql://x/y", "sqlite://", "sqlite:///:memory:", "sqlite:///a?mode=ro"],
)
def test_only_a_sqlite_file_or_postgresql_will_do(url):
    with pytest.raises(BadStore):
        open_index(url)


def test_a_refused_address_does_not_show_its_password():
    with pytest.raises(BadStore) as caught:
        open_index("mysql://me:geheim@host/x")
    assert "geheim" not in str(caught.value)


def test_sqlite_writes_ahead_and_syncs_every_commit(tmp_path):
    index = open_index(f"sqlite:///{tmp_path}/index.sqlite")
    with index.reading() as connection:
        pragmas = {
            name: connection.execute(sa.text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    index.close()


def test_readers_see_one_moment_and_do_not_wait_for_a_writer(registry, add, opened):
    add()
    other = opened()
    with registry.index.reading() as connection:
        count = sa.text("SELECT count(*) FROM versions")
        assert connection.execute(count).scalar() == 1
        with other.index.writing() as writer:
            writer.execute(sa.text("UPDATE versions SET model = 'x'"))
            assert other.names.resolve("acme", "potus@1").model == "sd"
        model = connection.execute(sa.text("SELECT model FROM versions")).scalar()
        assert model == "sd"
    assert registry.names.resolve("acme", "potus@1").model == "x"


def test_a_transaction_that_raises_leaves_nothing(registry, add):
    add()

    def change_and_raise():
        with registry.index.writing() as connection:
            connection.execute(sa.text("UPDATE versions SET model = 'x'"))
            raise KeyError

    with pytest.raises(KeyError):
        change_and_raise()
    assert registry.names.resolve("acme", "potus@1").model == "sd"
    assert add().number == 2


@pytest.mark.parametrize("same_process", [True, False])
def test_a_writer_waits_for_the_other_and_not_for_ever(opened, monkeypatch, same_process):
    patient = opened()
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    hurried = opened()
    holder = hurried if same_process else patient
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with holder.index.writing():
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(30)
    with pytest.raises(IndexUnavailable) as caught, hurried.index.writing():
        pass
    assert caught.value.retry_after > 0
    monkeypatch.undo()
    threading.Timer(0.2, leave.set).start()
    with patient.index.writing():
        assert leave.is_set()
    thread.join()


def test_a_database_that_is_away_is_said_so(tmp_path):
    index = open_index(f"postgresql://tiller@/none?host={tmp_path}")
    with pytest.raises(IndexUnavailable), index.reading():
        pass
    index.close()
