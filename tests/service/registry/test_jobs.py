import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.registry import errors
from service.registry.limits import Limits
from service.registry.tables import jobs

FOREVER = 3600.0


def create(registry, tenant="acme", kind="fit", model="sd", **more):
    return registry.jobs.create(tenant, kind, model, {"name": "potus"}, "ann", **more)


def lease(registry, worker="w1", seconds=FOREVER):
    return registry.jobs.lease(worker, ["fit"], ["sd"], seconds)


def run_out(registry, job):
    """What a long silence does, without waiting for it."""
    with registry.index.working() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(until=1.0))


def test_a_job_goes_from_the_queue_to_its_result(registry):
    job = create(registry)
    assert (job.state, job.progress, job.attempts, job.payload) == (
        "queued",
        0.0,
        0,
        {"name": "potus"},
    )
    begun = lease(registry)
    assert (begun.id, begun.state, begun.worker, begun.attempts) == (job.id, "running", "w1", 1)
    assert registry.jobs.heartbeat(job.id, "w1", 0.5, "value", "loss 0.3") is False
    half = registry.jobs.get(job.id)
    assert (half.progress, half.stage, half.log) == (0.5, "value", ("begun by w1", "loss 0.3"))
    done = registry.jobs.finish(job.id, "w1", {"version": 3})
    assert (done.state, done.result, done.progress, done.over) == (
        "succeeded",
        {"version": 3},
        1.0,
        True,
    )
    assert done.created_at <= done.started_at <= done.finished_at
    assert registry.jobs.get(job.id) == done
    states = [(e.seq, e.state, e.line) for e in registry.jobs.events(job.id)]
    assert states == [
        (1, "queued", ""),
        (2, "running", "begun by w1"),
        (3, "running", "loss 0.3"),
        (4, "succeeded", ""),
    ]
    assert [e.seq for e in registry.jobs.events(job.id, after=3)] == [4]


def test_a_failed_job_keeps_its_problem(registry):
    job = create(registry)
    lease(registry)
    failed = registry.jobs.fail(job.id, "w1", {"code": "no_pull", "problem": "p"})
    assert (failed.state, failed.problem["code"]) == ("failed", "no_pull")
    with pytest.raises(errors.LeaseLost):
        registry.jobs.finish(job.id, "w1", {})


def test_a_worker_gets_only_what_it_can_do_and_the_oldest_first(registry):
    create(registry, kind="score")
    create(registry, model="lm")
    first, second = create(registry), create(registry)
    assert lease(registry).id == first.id
    assert lease(registry).id == second.id
    assert lease(registry) is None
    assert registry.jobs.lease("w", ["fit", "score"], ["sd"], FOREVER).kind == "score"
    assert registry.jobs.lease("w", [], [], FOREVER) is None


def test_no_job_is_leased_twice(opened):
    several = [opened() for _ in range(2)]
    made = {create(several[0]).id for _ in range(12)}
    gate = threading.Barrier(6)

    def work(worker):
        gate.wait()
        found = []
        while (job := lease(several[worker % 2], f"w{worker}")) is not None:
            found.append(job.id)
        return found

    with ThreadPoolExecutor(6) as pool:
        leased = [job for found in pool.map(work, range(6)) for job in found]
    assert len(leased) == 12
    assert set(leased) == made


def test_a_heartbeat_keeps_the_lease_and_silence_loses_it(registry):
    job = create(registry)
    lease(registry, "w1")
    run_out(registry, job)
    registry.jobs.heartbeat(job.id, "w1", 0.1, "value")  # late, but nobody has taken it over
    assert lease(registry, "w2") is None
    told = len(registry.jobs.events(job.id))
    registry.jobs.heartbeat(job.id, "w1", 0.1, "value")  # nothing new: no event
    assert len(registry.jobs.events(job.id)) == told
    run_out(registry, job)
    taken = lease(registry, "w2")
    assert (taken.id, taken.worker, taken.attempts) == (job.id, "w2", 2)
    for act in (
        lambda: registry.jobs.heartbeat(job.id, "w1", 0.2, "value"),
        lambda: registry.jobs.finish(job.id, "w1", {}),
        lambda: registry.jobs.fail(job.id, "w1", {}),
        lambda: registry.jobs.stopped(job.id, "w1"),
        lambda: registry.jobs.release(job.id, "w1"),
    ):
        with pytest.raises(errors.LeaseLost):
            act()
    assert registry.jobs.finish(job.id, "w2", {}).state == "succeeded"


def test_a_killed_workers_job_is_taken_over(registry, nursery, index_url, blobs_url):
    job = create(registry)
    child = nursery.fork("lease", index_url, blobs_url)
    assert nursery.hear() == job.id
    os.kill(child, signal.SIGKILL)
    assert nursery.rest() == []
    assert registry.jobs.get(job.id).state == "running"
    until = time.monotonic() + 10
    while (taken := lease(registry, "w2")) is None and time.monotonic() < until:
        time.sleep(0.05)
    assert taken
    assert (taken.id, taken.attempts) == (job.id, 2)
    assert "its worker was lost" in taken.log
    assert registry.jobs.finish(job.id, "w2", {}).state == "succeeded"


def test_a_job_of_a_worker_that_is_known_to_be_gone_waits_for_no_lease(registry, opened):
    """A live worker's job is left alone, whoever asks, and one of two takes what is lost."""
    lost, live = create(registry), create(registry)
    assert lease(registry, "dead").id == lost.id and lease(registry, "alive").id == live.id
    other = opened()  # a second service of the same registry

    def ask(of, worker, gone):
        return of.jobs.lease(worker, ["fit"], ["sd"], FOREVER, gone=gone)

    assert ask(other, "w3", lambda _: False) is None
    taken = ask(registry, "w2", lambda worker: worker == "dead")
    assert (taken.id, taken.worker, taken.attempts) == (lost.id, "w2", 2)
    assert "its worker was lost" in taken.log
    assert ask(other, "w3", lambda worker: worker == "dead") is None
    assert registry.jobs.get(live.id).worker == "alive"
    with pytest.raises(errors.LeaseLost):
        registry.jobs.heartbeat(lost.id, "dead", 0.5, "value")


def test_a_job_that_loses_every_worker_fails_and_is_never_stuck(opened):
    registry = opened(Limits(attempts=2))
    job = create(registry)
    for attempt in (1, 2):
        assert lease(registry, f"w{attempt}").attempts == attempt
        run_out(registry, job)
    # A worker for something else altogether looks after it, too.
    assert registry.jobs.lease("w3", ["score"], ["lm"], FOREVER) is None
    lost = registry.jobs.get(job.id)
    assert (lost.state, lost.problem["code"]) == ("failed", "worker_lost")


def test_a_job_that_nobody_begins_fails_in_the_end(registry):
    job = create(registry, model="no-longer-hosted")
    assert lease(registry) is None
    assert registry.jobs.get(job.id).state == "queued"
    run_out(registry, job)
    assert lease(registry) is None
    assert registry.jobs.get(job.id).problem["code"] == "waited_too_long"


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_by_its_worker(registry):
    waiting, running = create(registry), None
    assert registry.jobs.cancel(waiting.id, "ann").state == "cancelled"
    assert lease(registry) is None
    running = create(registry)
    lease(registry)
    asked = registry.jobs.cancel(running.id, "ann", "acme")
    assert (asked.state, asked.cancelling) == ("running", True)
    events = len(registry.jobs.events(running.id))
    assert registry.jobs.cancel(running.id, "ann").cancelling  # twice is once
    assert len(registry.jobs.events(running.id)) == events
    assert registry.jobs.heartbeat(running.id, "w1", 0.2, "value") is True
    assert registry.jobs.stopped(running.id, "w1").state == "cancelled"
    assert registry.jobs.cancel(running.id, "ann").state == "cancelled"
    assert [r.action for r in registry.audit.list("acme").items].count("job.cancel") == 2


def test_a_lost_worker_with_a_cancelled_job_leaves_it_cancelled(registry):
    job = create(registry)
    lease(registry, "w1")
    registry.jobs.cancel(job.id, "ann")
    run_out(registry, job)
    assert lease(registry) is None
    assert registry.jobs.get(job.id).state == "cancelled"


def test_a_job_that_is_given_back_waits_again_and_the_attempt_does_not_count(registry):
    job = create(registry)
    lease(registry)
    assert registry.jobs.release(job.id, "w1").state == "queued"
    assert lease(registry, "w2").attempts == 1
    registry.jobs.cancel(job.id, "ann")
    assert registry.jobs.release(job.id, "w2").state == "cancelled"


def test_jobs_are_listed_newest_first_without_their_payload(registry):
    made = [create(registry).id for _ in range(3)]
    create(registry, tenant="other")
    first = registry.jobs.list("acme", 2)
    assert [j.id for j in first.items] == made[:0:-1]
    assert first.items[0].payload == {}
    rest = registry.jobs.list("acme", 2, first.next_cursor)
    assert ([j.id for j in rest.items], rest.has_more) == (made[:1], False)
    assert len(registry.jobs.list(None).items) == 4


def test_another_tenants_job_is_an_unknown_job(registry):
    job = create(registry)
    for act in (
        lambda: registry.jobs.get(job.id, "other"),
        lambda: registry.jobs.cancel(job.id, "eve", "other"),
        lambda: registry.jobs.events(job.id, 0, "other"),
        lambda: registry.jobs.get("job_0"),
    ):
        with pytest.raises(errors.UnknownJob):
            act()


def test_one_tenants_queue_is_bounded_and_the_others_are_free(registry):
    for _ in range(3):
        create(registry, most=3)
    with pytest.raises(errors.TooManyJobs) as caught:
        create(registry, most=3)
    assert caught.value.retry_after > 0
    create(registry, tenant="other", most=3)
    lease(registry)
    with pytest.raises(errors.TooManyJobs):
        create(registry, most=3)  # a running one counts


def test_a_talkative_job_keeps_only_its_last_lines(opened):
    registry = opened(Limits(log_lines=5, line_bytes=10))
    job = create(registry)
    lease(registry)
    for number in range(12):
        registry.jobs.heartbeat(job.id, "w1", number / 12, "value", f"{number}\x00\n" + "ü" * 9)
    events = registry.jobs.events(job.id)
    assert [e.seq for e in events] == [10, 11, 12, 13, 14]
    assert events[-1].line == "11  üüü"
    assert len(registry.jobs.get(job.id).log) == 5


@pytest.mark.parametrize("progress", [-1.0, 2.0, float("inf")])
def test_progress_stays_between_zero_and_one(registry, progress):
    job = create(registry)
    lease(registry)
    registry.jobs.heartbeat(job.id, "w1", progress, "value")
    assert registry.jobs.get(job.id).progress in (0.0, 1.0)
    with pytest.raises(errors.BadRecord):
        registry.jobs.heartbeat(job.id, "w1", float("nan"), "value")


def test_bad_jobs_are_refused(opened):
    registry = opened(Limits(payload_bytes=10))
    with pytest.raises(errors.BadRecord, match="payload"):
        registry.jobs.create("acme", "fit", "sd", {"x": "y" * 10}, "ann")
    with pytest.raises(errors.BadRecord, match="kind"):
        registry.jobs.create("acme", "", "sd", {}, "ann")
    for seconds in (0, -1, float("inf"), float("nan")):
        with pytest.raises(errors.BadRecord):
            registry.jobs.lease("w", ["fit"], ["sd"], seconds)
