import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.registry import errors
from service.registry.limits import Limits


def test_the_second_sender_gets_the_first_answer(registry):
    kept = registry.idempotency
    assert kept.begin("acme", "key", "hash") is None
    with pytest.raises(errors.StillInProgress):
        kept.begin("acme", "key", "hash")
    kept.finish("acme", "key", {"status": 202, "body": "ü"})
    assert kept.begin("acme", "key", "hash") == {"status": 202, "body": "ü"}
    with pytest.raises(errors.BodyDiffers):
        kept.begin("acme", "key", "other hash")
    assert kept.begin("other", "key", "other hash") is None


def test_an_abandoned_key_can_be_used_again_and_an_answered_one_not(registry):
    kept = registry.idempotency
    kept.begin("acme", "key", "hash")
    kept.abandon("acme", "key")
    assert kept.begin("acme", "key", "other hash") is None
    kept.finish("acme", "key", {})
    kept.abandon("acme", "key")
    assert kept.begin("acme", "key", "other hash") == {}


def test_a_lost_request_frees_its_key_and_an_old_answer_is_forgotten(opened):
    kept = opened(Limits(claim_seconds=0.05, idempotency_seconds=0.05)).idempotency
    kept.begin("acme", "key", "hash")
    time.sleep(0.1)
    assert kept.begin("acme", "key", "other hash") is None
    kept.finish("acme", "key", {})
    time.sleep(0.1)
    assert kept.begin("acme", "key", "third hash") is None


def test_of_many_senders_one_is_the_first(opened):
    several = [opened() for _ in range(2)]
    gate = threading.Barrier(6)

    def send(number):
        gate.wait()
        try:
            return several[number % 2].idempotency.begin("acme", "key", "hash")
        except errors.StillInProgress:
            return "wait"

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(send, range(6)))
    assert sorted(map(str, answers)) == ["None"] + ["wait"] * 5


def test_keys_and_answers_are_bounded(opened):
    kept = opened(Limits(response_bytes=10)).idempotency
    with pytest.raises(errors.BadRecord):
        kept.begin("acme", "k" * 600, "hash")
    kept.begin("acme", "key", "hash")
    with pytest.raises(errors.BadRecord):
        kept.finish("acme", "key", {"x": "y" * 10})
