"""Steering and edits of chat on a tiny Llama with a random dictionary."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from engines.errors import LogitsNotANumber
from engines.slots.row import Row
from service.steering import Steering

MODEL, SAE = "tiny-lm", "toy"
SAID = [{"role": "user", "content": "the king of the sea"}]
PATH = "/v1/chat/completions"
ANY = {"min_output_score": 0, "on_low_score": "allow"}


def feature(number=7, strength=3.0, **changes):
    return {"features": [{"sae": SAE, "feature": number, "strength": strength}], **ANY, **changes}


def body(**changes):
    return {"model": MODEL, "messages": SAID, "max_tokens": 8, "seed": 3, **changes}


def answered(http, **changes):
    answer = http.post(PATH, json=body(**changes))
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(http, status, **changes):
    answer = http.post(PATH, json=body(**changes))
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def said(answer):
    return [choice["message"]["content"] for choice in answer["choices"]]


def test_a_feature_changes_the_answer_and_the_answer_says_how(speaking):
    plain, steered = answered(speaking), answered(speaking, steering=feature())
    assert said(plain) != said(steered)
    [report] = steered["tiller"]["steering"]
    [chosen] = report["features"]
    assert (chosen["sae"], chosen["feature"], chosen["site"]) == (SAE, 7, "lm.block.1")
    assert chosen["sae_digest"]
    assert report["sites"][0]["ratio"] == pytest.approx(
        report["sites"][0]["vector_norm"] / report["sites"][0]["stream_norm"]
    )
    [told] = steered["tiller"]["choices"]
    # The last prompt token once, then every token that is written but the last.
    assert told["tokens_steered"] == told["completion_tokens"]
    assert plain["tiller"]["choices"][0]["tokens_steered"] == 0
    assert steered["system_fingerprint"] != plain["system_fingerprint"]


def test_a_plain_caller_beside_it_is_not_moved(speaking):
    plain = said(answered(speaking, temperature=0))
    answered(speaking, temperature=0, steering=feature(strength=4))
    assert said(answered(speaking, temperature=0)) == plain


def test_several_entries_add_up_in_any_order(speaking):
    first, second = feature(3), feature(9, mode="unit")
    both = answered(speaking, steering=[first, second])
    other = answered(speaking, steering=[second, first])
    assert both["tiller"]["patch"] == other["tiller"]["patch"]
    assert said(both) == said(other)
    assert len(both["tiller"]["steering"]) == 2


def test_compare_says_both_side_by_side(speaking):
    plain, steered = answered(speaking, n=2), answered(speaking, n=2, steering=feature())
    both = answered(speaking, n=2, steering=feature(), compare=True)
    assert said(both) == said(steered)
    twins = both["tiller"]["plain"]
    assert [t["message"]["content"] for t in twins] == said(plain)
    assert [t["index"] for t in twins] == [0, 1]
    assert both["usage"]["completion_tokens"] == steered["usage"]["completion_tokens"]
    assert both["tiller"]["plain_usage"] == plain["usage"] | {
        "prompt_tokens_details": both["tiller"]["plain_usage"]["prompt_tokens_details"]
    }


def test_a_streamed_comparison_tags_the_twins_by_their_index(speaking):
    text = speaking.post(PATH, json=body(stream=True, steering=feature(), compare=True, n=2)).text
    lines = [x.removeprefix("data: ") for x in text.splitlines() if x.startswith("data: ")]
    chunks = [json.loads(line) for line in lines[:-1]]
    found = dict.fromkeys(range(4), "")
    for chunk in chunks:
        for choice in chunk["choices"]:
            found[choice["index"]] += choice["delta"].get("content", "")
            assert choice.get("tiller", {}).get("plain", False) == (choice["index"] >= 2)
    whole = answered(speaking, n=2, steering=feature(), compare=True)
    assert [found[0], found[1]] == said(whole)
    assert [found[2], found[3]] == [t["message"]["content"] for t in whole["tiller"]["plain"]]
    assert [("tiller" in c) for c in chunks].count(True) == 1
    assert chunks[-1]["tiller"]["steering"][0]["features"]


def test_comparing_nothing_is_refused(speaking):
    assert refused(speaking, 422, compare=True)["param"] == "compare"


@pytest.mark.parametrize("mode", ["amp", "raw", "unit", "clamp", "min_clamp", "multiply", "ablate"])
def test_every_mode_moves_the_rows_it_should(speaking, mode):
    strength = None if mode == "ablate" else 2.5
    told = answered(speaking, steering=feature(strength=strength, mode=mode))["tiller"]
    assert told["steering"][0]["mode"] == mode
    assert told["choices"][0]["tokens_steered"] > 0


@pytest.mark.parametrize("positions", ["last_and_generated", "all", "prompt", "generated"])
def test_positions_say_which_tokens_are_steered(speaking, positions):
    told = answered(speaking, steering=feature(positions=positions))["tiller"]["choices"][0]
    # The last token that is written is never read again.
    prompt, written = told["prompt_tokens"], told["completion_tokens"] - 1
    wanted = {
        "last_and_generated": 1 + written,
        "all": prompt + written,
        "prompt": prompt,
        "generated": written,
    }
    assert told["tokens_steered"] == wanted[positions]


def test_a_cached_prompt_that_was_steered_is_counted_and_never_shared_with_a_plain_row(speaking):
    said_before = [{"role": "user", "content": "the king of arda and the house of the dog " * 3}]
    asked = {"messages": said_before, "temperature": 0}
    plain = answered(speaking, **asked)
    steered = [answered(speaking, steering=feature(positions="all"), **asked) for _ in range(2)]
    told = [answer["tiller"]["choices"][0] for answer in steered]
    assert told[1]["cached_tokens"] > 0
    assert told[0]["tokens_steered"] == told[1]["tokens_steered"]
    assert said(steered[0]) == said(steered[1]) != said(plain)
    again = answered(speaking, **asked)
    assert said(again) == said(plain)


def test_a_prompt_of_its_own_gives_another_a_max(speaking):
    neutral = answered(speaking, steering=feature())["tiller"]["steering"][0]
    own = answered(speaking, steering=feature(a_max="prompt"))["tiller"]["steering"][0]
    assert own["a_max"] == "prompt"
    assert own["sites"][0]["vector_norm"] != neutral["sites"][0]["vector_norm"]


@pytest.mark.parametrize(
    ("steering", "status", "code"),
    [
        ({"features": [{"sae": SAE, "feature": 48, "strength": 1}]}, 404, "unknown_feature"),
        ({"features": [{"sae": "none", "feature": 1, "strength": 1}]}, 404, "unknown_dictionary"),
        (feature() | {"min_output_score": 1, "on_low_score": "reject"}, 422, "low_output_score"),
        (feature(strength=900), 422, "too_strong"),
        (feature(strength=2000), 422, "too_much"),
        (feature(a_max="live"), 422, "bad_steering"),
        ({"mode": "amp"}, 422, "bad_steering"),
        ({"concept": "sea"}, 422, "bad_steering"),
        ({"strength": 1}, 422, "bad_steering"),
        ({"concept": "sea", "strength": 1, **feature()}, 422, "bad_steering"),
        ({"preset": "winter", "mode": "amp"}, 422, "bad_steering"),
        ({"preset": "never-made"}, 404, "unknown_name"),
        ({"vectors": [{"name": "nobody"}]}, 404, "unknown_name"),
        ({"concept": "zyzzyva", "strength": 1}, 422, "concept_not_covered"),
        ([feature()] * 17, 422, "too_much"),
        ([feature(), feature(strength=-3.0)], 422, "nothing_to_steer"),
        (
            [feature(mode="clamp", strength=1), feature(mode="clamp", strength=2)],
            422,
            "clamped_twice",
        ),
        ([feature(mode="ablate", strength=None), feature(mode="multiply")], 422, "clamped_twice"),
    ],
)
def test_steering_that_cannot_be_is_refused(speaking, steering, status, code):
    assert refused(speaking, status, steering=steering)["code"] == code


def test_a_concept_finds_its_features_and_says_which(speaking):
    steering = {"concept": "king", "strength": 2, "count": 2, **ANY}
    [report] = answered(speaking, steering=steering)["tiller"]["steering"]
    assert [one["concept"] for one in report["features"]] == ["king", "king"]
    [search] = report["concepts"]
    assert search["concept"] == "king"
    assert search["candidates"] >= 2


def test_the_bound_holds_for_the_sum_of_all_entries(speaking):
    once = answered(speaking, steering=feature())["tiller"]["steering_sum"][0]["ratio"]
    strength = 3.0 * 6 / once  # six times the stream's norm, ten are allowed
    alone = answered(speaking, steering=feature(strength=strength))["tiller"]
    assert alone["steering_sum"][0]["ratio"] == pytest.approx(6, rel=1e-3)
    assert len(alone["warnings"]) == 1
    told = refused(speaking, 422, steering=[feature(strength=strength)] * 2)
    assert told["code"] == "too_strong"
    # What does not meet at any token does not add up.
    apart = [feature(strength=strength, positions=p) for p in ("prompt", "generated")]
    (site,) = answered(speaking, steering=apart)["tiller"]["steering_sum"]
    assert site["ratio"] == pytest.approx(6, rel=1e-3)


def test_parts_and_the_whole_are_told(speaking):
    told = answered(speaking, steering=[feature(), feature(strength=-1.0)])["tiller"]
    parts = [report["sites"][0]["vector_norm"] for report in told["steering"]]
    (site,) = told["steering_sum"]
    assert site["vector_norm"] == pytest.approx(parts[0] - parts[1], rel=1e-4)
    same = answered(speaking, steering=feature(strength=2.0))["tiller"]
    assert same["steering_sum"][0]["vector_norm"] == pytest.approx(site["vector_norm"], rel=1e-4)


def test_one_clamp_named_twice_acts_once(speaking):
    clamped = feature(mode="ablate", strength=None, positions="all")
    once, twice = answered(speaking, steering=clamped), answered(speaking, steering=[clamped] * 2)
    assert once["tiller"]["patch"] == twice["tiller"]["patch"]
    assert said(once) == said(twice)


def test_a_clamp_may_be_told_in_units_of_a(speaking):
    told = answered(speaking, steering=feature(mode="clamp", strength=2.0, clamp_in="a_max"))
    (one,) = told["tiller"]["steering"][0]["features"]
    plain = answered(speaking, steering=feature(mode="clamp", strength=2.0 * one["a_max"]))
    assert plain["tiller"]["patch"] == told["tiller"]["patch"]


VECTORS = {"vectors": [{"name": "nobody"}]}
CONCEPT = {"concept": "king", "strength": 1}


@pytest.mark.parametrize(
    ("steering", "param"),
    [
        (VECTORS | {"sae": SAE}, "sae"),
        (VECTORS | {"count": 2}, "count"),
        (VECTORS | {"min_output_score": 0}, "min_output_score"),
        (VECTORS | {"on_low_score": "warn"}, "on_low_score"),
        (VECTORS | {"a_max": "prompt"}, "a_max"),
        (VECTORS | {"mode": "amp"}, "mode"),
        (feature(count=2), "count"),
        (feature(sae=SAE), "sae"),
        (feature(unit="unit"), "unit"),
        (feature(sites=["lm.block.1"]), "sites"),
        (feature(clamp_in="max"), "clamp_in"),
        (feature(strength=None), "features[0].strength"),
        (feature(mode="ablate", strength=1), "features[0].strength"),
        (CONCEPT | {"mode": "ablate"}, "strength"),
        (CONCEPT | {"concept": "  "}, "concept"),
    ],
)
def test_a_key_that_would_change_nothing_is_refused_by_name(speaking, steering, param):
    assert refused(speaking, 422, steering=steering)["param"] == f"steering.{param}"


def test_a_broken_choice_leaves_the_others_their_answer(speaking, monkeypatch):
    whole = answered(speaking, n=3)
    took = Row._take

    def takes(row, chosen):
        if row.choice == 1 and len(row.tokens) > row.prompt + 2:
            raise LogitsNotANumber(len(row.tokens))
        took(row, chosen)

    monkeypatch.setattr(Row, "_take", takes)
    broken = answered(speaking, n=3)
    assert [c["finish_reason"] == "error" for c in broken["choices"]] == [False, True, False]
    assert [said(broken)[i] for i in (0, 2)] == [said(whole)[i] for i in (0, 2)]
    errors = [told.get("error", {}).get("code") for told in broken["tiller"]["choices"]]
    assert errors == [None, "logits_not_a_number", None]
    text = speaking.post(PATH, json=body(n=3, stream=True)).text
    lines = [x.removeprefix("data: ") for x in text.splitlines() if x.startswith("data: ")]
    chunks = [json.loads(line) for line in lines[:-1]]
    ends = {c["choices"][0]["index"]: c["choices"][0]["finish_reason"] for c in chunks}
    assert ends[1] == "error"
    assert chunks[-1]["tiller"]["choices"][1]["error"]["code"] == "logits_not_a_number"


def test_a_broken_twin_leaves_the_choices_their_answer(speaking, monkeypatch):
    took = Row._take

    def takes(row, chosen):
        if not row.request.patch:
            raise LogitsNotANumber(len(row.tokens))
        took(row, chosen)

    monkeypatch.setattr(Row, "_take", takes)
    told = answered(speaking, steering=feature(), compare=True)
    assert told["choices"][0]["finish_reason"] != "error"
    assert told["tiller"]["plain"][0]["finish_reason"] == "error"
    assert told["tiller"]["plain_choices"][0]["error"]["code"] == "logits_not_a_number"
    # If no choice is left there is no answer.
    assert refused(speaking, 422)["code"] == "logits_not_a_number"


def test_plans_that_wait_keep_nobody_else_waiting_and_end_with_their_callers(
    speaker_url, speaking, monkeypatch
):
    planning, ended = [], []

    def plan(_self, _order, _ids, patience, _sight):
        planning.append(1)
        try:
            patience.wait(threading.Event().wait)
        finally:
            ended.append(1)

    with monkeypatch.context() as patched:
        patched.setattr(Steering, "plan", plan)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(_impatient, speaker_url) for _ in range(8)]
            started = time.monotonic()
            assert speaking.get("/v1/edits").status_code == 200
            assert said(answered(speaking))
            assert time.monotonic() - started < 1.5
            assert all(one.result() for one in asked)
        until = time.monotonic() + 10
        while len(ended) < len(planning) and time.monotonic() < until:
            time.sleep(0.05)
        assert 4 <= len(ended) == len(planning)
    assert answered(speaking, steering=feature())


def _impatient(url):
    with httpx2.Client(base_url=url, timeout=2.0) as client:
        try:
            client.post(PATH, json=body(steering=feature()))
        except httpx2.TimeoutException:
            return True
    return False
