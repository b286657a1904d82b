"""The index: one database, two kinds of transactions.

`writing()` is exclusive across threads and processes (`BEGIN IMMEDIATE`, or an advisory lock), so
that what is read inside it (the next number, the alias's generation, the audit's last row) is still
true when it is written. `reading()` sees one moment. `working()` is for rows that have their own
lock (jobs): exclusive on SQLite, ordinary on PostgreSQL.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import URL, Connection, Engine, event, make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.registry.disk import refuse_remote_disk
from service.registry.errors import BadStore, IndexUnavailable

_PATIENCE = 20.0
"""Seconds that a writer waits for the others."""

_ASK_SECONDS = 0.004
"""How often a writer that has just come asks SQLite whether it is its turn."""

_LONG_SECONDS = 0.02
"""After so long it asks twice as often, after twice that three times, and so on."""

_ADVISORY = 0x7111E5
"""The lock's number in PostgreSQL; other programs in the same database must not use it."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """The database behind the registry; safe to use from many threads."""

    engine: Engine
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is one local file."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one moment and changes nothing."""
        options: dict[str, Any] = (
            {}
            if self.is_sqlite
            else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )
        with _translated(), self.engine.connect() as connection:
            connection.execution_options(**options)
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """The one transaction that may add versions, move names and extend the audit."""
        with self._immediate() as connection:
            if not self.is_sqlite:
                connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_ADVISORY})"))
            yield connection

    @contextmanager
    def working(self) -> Iterator[Connection]:
        """A transaction that changes rows which it locks one by one."""
        with self._immediate() as connection:
            yield connection

    @contextmanager
    def _immediate(self) -> Iterator[Connection]:
        if not self.is_sqlite:
            with _translated(), self.engine.begin() as connection:
                yield connection
            return
        # SQLite's waiters poll; threads of one process take turns instead.
        with self._held_turn(), _translated(), self.engine.connect() as connection:
            connection.execution_options(tiller_exclusive=True)
            with connection.begin():
                yield connection

    @contextmanager
    def _held_turn(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=_PATIENCE):
            raise IndexUnavailable("the other writers of this process do not finish")
        try:
            yield
        finally:
            self._turn.release()

    def now(self, connection: Connection) -> float:
        """Seconds since 1970 by the database's clock: workers' clocks may differ."""
        if self.is_sqlite:
            return time.time()
        return float(
            connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
        )

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()


def open_index(url: str) -> Index:
    """Connect to `sqlite:///<file>` or `postgresql://...`; the schema is not looked at.

    Raises:
        BadStore: Another kind of database, or an address that makes no sense.
        RemoteDisk: SQLite on a network filesystem.
    """
    try:
        address = make_url(url)
    except ArgumentError:
        raise BadStore(url.partition(":")[0], "not a database address") from None
    if address.drivername.partition("+")[0] == "sqlite":
        return Index(engine=_sqlite(address))
    if address.drivername.partition("+")[0] in ("postgresql", "postgres"):
        return Index(engine=_postgresql(address))
    raise BadStore(address.render_as_string(), "neither SQLite nor PostgreSQL")


def _sqlite(address: URL) -> Engine:
    if not address.database or address.database == ":memory:" or address.query:
        raise BadStore(address.render_as_string(), "the index is one plain file")
    file = Path(address.database).absolute()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    refuse_remote_disk(file.parent)
    engine = sa.create_engine(
        URL.create("sqlite+pysqlite", database=str(file)),
        connect_args={"timeout": _PATIENCE},
        pool_size=8,
        max_overflow=56,
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "trusted_schema=OFF",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get("tiller_exclusive"):
        _begin_exclusively(connection)
    else:
        connection.exec_driver_sql("BEGIN")


def _begin_exclusively(connection: Connection) -> None:
    """BEGIN IMMEDIATE; who has waited longer asks more often.

    SQLite's own waiting asks less and less often, at last every 0.1 s: a writer that waits long is
    overtaken again and again by those that have just come.
    """
    began = time.monotonic()
    sqlite: Any = connection.connection.driver_connection
    sqlite.execute("PRAGMA busy_timeout=0")
    try:
        while not _got_turn(sqlite):
            waited = time.monotonic() - began
            if waited > _PATIENCE:
                raise IndexUnavailable("other processes keep writing")
            time.sleep(_ASK_SECONDS / (1 + waited / _LONG_SECONDS))
    finally:
        sqlite.execute(f"PRAGMA busy_timeout={round(1000 * _PATIENCE)}")


def _got_turn(sqlite: sqlite3.Connection) -> bool:
    try:
        sqlite.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:  # the low byte: any kind of busy
            raise IndexUnavailable(str(error)) from error
        return False
    return True


def _postgresql(address: URL) -> Engine:
    return sa.create_engine(
        address.set(drivername="postgresql+psycopg"),
        pool_size=8,
        max_overflow=24,
        pool_timeout=_PATIENCE,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": 10,
            "options": f"-c lock_timeout={round(1000 * _PATIENCE)}",
        },
    )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise IndexUnavailable(str(error.orig)) from error
    except PoolTimeout as error:
        raise IndexUnavailable("all its connections are taken") from error
