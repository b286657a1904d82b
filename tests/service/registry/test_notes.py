import pytest

from service.registry.errors import BadRecord, LeaseLost
from service.registry.limits import Limits


def begun(registry, worker):
    return registry.jobs.lease(worker, ["fit"], ["sd"], 3600.0)


@pytest.fixture
def job(registry):
    registry.jobs.create("acme", "fit", "sd", {}, "ann")
    return begun(registry, "w1")


def test_notes_are_kept_in_order_and_the_next_worker_finds_them(registry, job):
    for number in range(3):
        registry.notes.add(job.id, "w1", {"n": number})
    registry.jobs.release(job.id, "w1")
    again = begun(registry, "w2")
    assert again.id == job.id
    assert registry.notes.of(job.id) == [{"n": 0}, {"n": 1}, {"n": 2}]
    with pytest.raises(LeaseLost):
        registry.notes.add(job.id, "w1", {"n": 9})
    registry.notes.add(job.id, "w2", {"n": 3})
    registry.notes.forget(job.id, "w2")
    assert registry.notes.of(job.id) == []


def test_notes_are_bounded(opened, job):
    small = opened(limits=Limits(notes_bytes=40))
    small.notes.add(job.id, "w1", {"n": 1})
    with pytest.raises(BadRecord, match="40"):
        small.notes.add(job.id, "w1", {"n": "a long one, in words that differ from each other"})


def test_nobody_has_notes_of_a_job_that_is_not_there(registry):
    assert registry.notes.of("job_none") == []
