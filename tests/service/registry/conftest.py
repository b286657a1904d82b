"""One suite, two databases: SQLite in a temporary folder, and a PostgreSQL that is started."""

import itertools
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from service.registry import open_registry
from service.registry.tables import INDEX

ROOT = Path(__file__).parents[3]
NURSERY = Path(__file__).with_name("nursery.py")


def postgres_binary(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


class Postgres:
    """A server of this test run: a unix socket in its own folder, no port, no password."""

    def __init__(self) -> None:
        # Not in pytest's folder: that belongs to root, whom PostgreSQL refuses to run as.
        self.folder = Path(tempfile.mkdtemp(prefix="tiller-pg-"))

    def start(self) -> None:
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        data = str(self.folder / "data")
        self.run("initdb", "-D", data, "-U", "tiller", "-A", "trust", "-E", "UTF8", "--no-locale")
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c fsync=off"
        log = str(self.folder / "log")
        self.run("pg_ctl", "-D", data, "-w", "-t", "60", "-l", log, "-o", options, "start")
        self.create("tiller")
        open_registry(self.url("tiller"), str(self.folder / "none")).close()

    def run(self, name: str, *arguments: str) -> None:
        user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        subprocess.run(  # noqa: S603
            [str(postgres_binary(name)), *arguments],
            check=True,
            capture_output=arguments[-1] != "start",
            stdout=subprocess.DEVNULL if arguments[-1] == "start" else None,
            cwd="/",
            **user,
        )

    def create(self, database: str) -> None:
        with self.admin("postgres") as admin:
            admin.execute(f'CREATE DATABASE "{database}"')

    def emptied(self) -> str:
        """The migrated database without a row: much faster than one database per test."""
        tables = ", ".join(f'"{table.name}"' for table in INDEX.sorted_tables)
        with self.admin("tiller") as admin:
            admin.execute("SET session_replication_role = replica")  # past the audit's trigger
            admin.execute(f"TRUNCATE {tables} RESTART IDENTITY")
        return self.url("tiller")

    def admin(self, database: str) -> psycopg.Connection:
        return psycopg.connect(
            host=str(self.folder), user="tiller", dbname=database, autocommit=True
        )

    def url(self, database: str) -> str:
        return f"postgresql://tiller@/{database}?host={self.folder}"

    def stop(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self.run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres():
    if postgres_binary("initdb") is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory) -> Path:
    """An SQLite index without a row: copying it is much faster than migrating."""
    folder = tmp_path_factory.mktemp("migrated")
    open_registry(f"sqlite:///{folder}/index.sqlite", str(folder / "blobs")).close()
    return folder / "index.sqlite"


@pytest.fixture(params=["sqlite", "postgresql"])
def index_url(request, tmp_path, migrated) -> str:
    if request.param == "sqlite":
        shutil.copy(migrated, tmp_path / "index.sqlite")
        return f"sqlite:///{tmp_path}/index.sqlite"
    return request.getfixturevalue("postgres").emptied()


@pytest.fixture
def blobs_url(tmp_path) -> str:
    return str(tmp_path / "blobs")


@pytest.fixture
def opened(index_url, blobs_url):
    """Opens the same registry as often as a test likes, and closes all."""
    registries = []

    def again(limits=None):
        registries.append(open_registry(index_url, blobs_url, limits))
        return registries[-1]

    yield again
    for registry in registries:
        registry.close()


@pytest.fixture
def registry(opened):
    return opened()


@pytest.fixture
def add(registry):
    """Registers a version with sensible fields; what a test cares about it passes."""
    bodies = itertools.count()

    def add(name="potus", *, data=None, status="ready", tenant="acme", **more):
        body = data if data is not None else f"delta {next(bodies)}".encode()
        values = {"model": "sd", "fingerprint": "f" * 64, "header": {"site": "x"}, "actor": "ann"}
        return registry.edits.register(tenant, name, data=body, status=status, **{**values, **more})

    return add


class Nursery:
    """A light process that has imported the registry and forks a child per command."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(NURSERY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def say(self, *words: str) -> None:
        assert self.process.stdin
        self.process.stdin.write("\t".join(words) + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def fork(self, *words: str) -> int:
        """Start a child with a command; its process id."""
        self.say(*words)
        return int(self.hear())

    def rest(self) -> list[str]:
        """What the child said until it died."""
        return list(iter(self.hear, "dead"))

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture
def nursery():
    process = Nursery()
    yield process
    process.close()
