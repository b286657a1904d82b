"""A worker whose process has ended is known to its machine, and to no other."""

import os
import signal
import subprocess
import sys

import pytest

from service import processes
from service.processes import is_gone, machine, worker_name

pytestmark = pytest.mark.skipif(machine() is None, reason="the kernel does not say")
SAYS = "from service.processes import worker_name as w; print(w(), flush=True); input()"


@pytest.fixture
def other():
    """A process of its own, and the name of a worker of it."""
    child = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", SAYS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        yield child, child.stdout.readline().strip()
        child.kill()


def test_workers_of_one_process_have_names_of_their_own_and_are_there():
    assert len({worker_name() for _ in range(5)}) == 5
    assert not is_gone(worker_name())


def test_a_killed_process_is_gone_even_before_anybody_asks_how_it_ended(other):
    child, name = other
    assert not is_gone(name)
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still in the table
    assert is_gone(name)
    child.wait()
    assert is_gone(name)


def test_a_later_process_of_the_same_number_is_another(other):
    child, name = other
    host, seen, pid, began, fresh = name.rsplit("-", 4)
    assert int(pid) == child.pid
    earlier = "-".join((host, seen, pid, str(int(began) - 1), fresh))
    assert is_gone(earlier) and not is_gone(name)


def test_of_other_machines_and_of_names_that_say_nothing_nobody_is_gone(other, monkeypatch):
    child, name = other
    child.kill()
    child.wait()
    for told in (name.replace(machine(), "0" * 16), "w1", "host-1a2b3c4d", ""):
        assert not is_gone(told), told
    assert is_gone(name)
    monkeypatch.setattr(processes, "machine", lambda: None)  # a kernel that does not say
    assert not is_gone(name)
    assert not is_gone(worker_name())


def test_what_may_not_be_asked_is_there(other, monkeypatch):
    _, name = other

    def refused(_pid, _signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert not is_gone(name)
