"""Run as a program: forks children that use the registry, so that tests can kill them.

One line is one command, its words separated by tabs; the answer is the child's process id, then
what the child says, then "dead".
"""

import os
import sys
from collections.abc import Callable

import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite.pysqlite  # noqa: F401  (imported once, before the forks)

from service.registry import Registry, open_registry


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def register_for_ever(registry: Registry) -> None:
    say("open")
    while True:
        data = os.urandom(40_000)
        version = registry.edits.register(
            "acme", "potus", "sd", "f" * 64, data, {"site": "x"}, actor="child"
        )
        say(f"{version.number} {version.digest}")


def lease_and_hang(registry: Registry) -> None:
    job = registry.jobs.lease("child", ["fit"], ["sd"], 0.3)
    say(job.id if job else "none")
    os.read(0, 1)  # nothing comes: the parent reads from a copy that it holds


COMMANDS: dict[str, Callable[[Registry], None]] = {
    "register": register_for_ever,
    "lease": lease_and_hang,
}


def main() -> None:
    for line in sys.stdin:
        command, index_url, blobs_url = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            try:
                COMMANDS[command](open_registry(index_url, blobs_url))
            finally:
                os._exit(1)
        say(str(child))
        os.waitpid(child, 0)
        say("dead")


if __name__ == "__main__":
    main()
