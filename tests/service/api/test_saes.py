"""Dictionaries over REST, on a tiny Llama and a random SAE."""

import itertools
import json
from dataclasses import asdict

import pytest

from steerers.input_score import INPUT_PAPER

MODEL, SAE = "tiny-lm", "toy"
FEATURES = 48
WAIT = {"Prefer": "wait=60"}


def problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["remedy"]
    return told


def ok(answer, status=200):
    assert answer.status_code == status, answer.text
    return answer.json()


def found(http, **query):
    return ok(http.get(f"/v1/saes/{SAE}/features", params=query))


def done(answer):
    job = ok(answer)
    assert job["state"] == "succeeded", job
    return job["result"]


@pytest.fixture
def http(speaking):
    return speaking


@pytest.fixture(scope="module")
def scored(speaker_url):
    """The result of a job that scored every feature."""
    import httpx2

    with httpx2.Client(base_url=speaker_url, timeout=60) as http:
        return done(http.post(f"/v1/saes/{SAE}/scores", json={}, headers=WAIT))


def test_dictionaries_are_listed_and_shown(http):
    (one,) = ok(http.get("/v1/saes"))["data"]
    shown = ok(http.get(f"/v1/saes/{SAE}"))
    assert (one["id"], one["model"], one["site"]) == (SAE, MODEL, "lm.block.1")
    assert (shown["features"], shown["width"], shown["activation"]) == (FEATURES, 32, "jumprelu")
    assert shown["digest"] == one["digest"]
    unknown = problem(http.get("/v1/saes/other"), 404)
    assert (unknown["code"], unknown["param"]) == ("unknown_dictionary", "sae")
    assert problem(http.get(f"/v1/saes/{SAE}?modle=x"), 422)["param"] == "modle"


def test_features_are_listed_in_pages(http):
    seen, after = [], None
    while True:
        page = found(http, limit=20, **({"after": after} if after else {}))
        seen += [one["feature"] for one in page["data"]]
        if not page["has_more"]:
            break
        after = page["next_cursor"]
    assert seen == list(range(FEATURES))


def test_a_feature_tells_its_tokens_and_is_scored_when_it_is_looked_at(http):
    told = ok(http.get(f"/v1/saes/{SAE}/features/5"))
    assert len(told["promotes"]) == len(told["suppresses"]) == 20
    assert told["promotes"][0]["logit"] > told["promotes"][-1]["logit"]
    assert told["suppresses"][0]["logit"] < told["suppresses"][-1]["logit"]
    assert 0 <= told["scores"]["output_score"] < 1
    assert told["scores"]["p_max_after"] > 0
    (again,) = [one for one in found(http, limit=10)["data"] if one["feature"] == 5]
    assert again["scores"] == told["scores"]
    paper = ok(http.get(f"/v1/saes/{SAE}/features/5?settings=paper"))
    assert paper["scores"]["output_score"] != told["scores"]["output_score"]
    assert problem(http.get(f"/v1/saes/{SAE}/features/48"), 404)["code"] == "unknown_feature"


def test_a_scores_job_takes_what_is_missing(http, scored):
    assert scored["coverage"]["scored"] == FEATURES
    again = done(http.post(f"/v1/saes/{SAE}/scores", json={}, headers=WAIT))
    assert (again["scored"], again["skipped"]) == (0, FEATURES)
    some = {"features": [3, 1, 3], "settings": "paper"}
    paper = done(http.post(f"/v1/saes/{SAE}/scores", json=some, headers=WAIT))
    assert paper["scored"] + paper["skipped"] == 2
    assert paper["settings"]["prompt"] == "In my experience,"
    assert ok(http.get(f"/v1/saes/{SAE}"))["scores"]["scored"] == FEATURES


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"feature": [1]}, 422, "feature"),
        ({"features": [48]}, 404, "features"),
        ({"features": []}, 422, "features"),
        ({"settings": "mine"}, 422, "settings"),
        ({"settings": {"factr": 1}}, 422, "settings.factr"),
        ({"settings": {"tokens": 0}}, 422, "settings.tokens"),
        ({"settings": {"prompt": ""}}, 422, "settings.prompt"),
    ],
)
def test_scores_that_cannot_be_taken_make_no_job(http, body, status, param):
    assert problem(http.post(f"/v1/saes/{SAE}/scores", json=body), status)["param"] == param


def test_scores_are_measured_as_asked(http):
    plain = {"settings": {"factor": 0.0}, "features": [2]}
    result = done(http.post(f"/v1/saes/{SAE}/scores", json=plain, headers=WAIT))
    assert result["settings"]["factor"] == 0.0
    assert result["coverage"]["scored"] == 1


def test_the_best_features_come_first_and_a_least_score_is_kept_to(http, scored):
    assert scored
    page = found(http, min_output_score=0.0, limit=48)
    scores = [one["scores"]["output_score"] for one in page["data"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == FEATURES
    least = scores[10]
    kept = found(http, min_output_score=least, limit=48)
    assert len(kept["data"]) == kept["search"]["kept"] == 11
    assert kept["search"]["scored"] == FEATURES


def test_features_are_found_by_a_token_that_they_promote(http):
    text = ok(http.get(f"/v1/saes/{SAE}/features/25"))["promotes"]
    (king,) = [one for one in text if one["token"].strip() == "king"]
    page = found(http, token=king["token"], limit=48)
    assert 25 in [one["feature"] for one in page["data"]]
    for one in page["data"]:
        ids = {
            t["id"] for t in ok(http.get(f"/v1/saes/{SAE}/features/{one['feature']}"))["promotes"]
        }
        assert ids & {t["id"] for t in page["search"]["tokens"]}
    nothing = found(http, **{"token": "several tokens at once"})
    assert nothing["data"] == nothing["search"]["tokens"] == []
    assert "is 'several tokens at once'" in nothing["search"]["reason"]


def test_a_concept_gives_what_steering_would_choose_from(http):
    page = found(http, concept="King", min_output_score=0.0)
    scores = {one["feature"]: one["scores"]["output_score"] for one in page["data"]}
    # Two falling lines: features whose first lens places speak for them, then the others.
    assert sum(a < b for a, b in itertools.pairwise(scores.values())) <= 1
    told = page["search"]
    assert told["candidates"] == told["kept"] + len(told["dropped"])
    assert told["kept"] > 0
    best = max(scores, key=lambda feature: scores[feature])
    strict = found(http, concept="King", min_output_score=scores[best])
    assert [one["feature"] for one in strict["data"]] == [best]
    assert strict["search"]["coverage"] == pytest.approx(1 / told["candidates"])


def test_two_searches_at_once_are_refused(http):
    answer = http.get(f"/v1/saes/{SAE}/features", params={"concept": "a", "token": "b"})
    assert problem(answer, 422)["param"] == "token"
    answer = http.get(f"/v1/saes/{SAE}/features", params={"after": "x"})
    assert problem(answer, 422)["param"] == "after"


def test_labels_are_put_as_json_or_lines_and_found(http):
    labels = [{"feature": 7, "label": "Winter and snow"}, {"feature": 9, "label": "the sea"}]
    told = ok(http.put(f"/v1/saes/{SAE}/labels", json={"labels": labels, "source": "ann"}))
    assert told["put"] == 2
    lines = "\n".join(json.dumps({"feature": f, "label": "snowy"}) for f in (7, 11))
    kind = {"Content-Type": "application/jsonl"}
    ok(http.put(f"/v1/saes/{SAE}/labels", content=lines, headers=kind))
    page = found(http, label="SNOW")
    assert [one["feature"] for one in page["data"]] == [7, 11]
    assert {one["source"] for one in page["data"][0]["labels"]} == {"ann", "user"}
    concept = found(http, concept="winter", min_output_score=0.0)
    assert [one["feature"] for one in concept["data"]] == [7]
    ok(http.put(f"/v1/saes/{SAE}/labels", json={"labels": [{"feature": 11, "label": ""}]}))
    assert [one["feature"] for one in found(http, label="snow")["data"]] == [7]
    strict = found(http, label="snow", min_output_score=1.0)
    assert strict["search"] == {"candidates": 1, "kept": 0}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"labels": [{"feature": 48, "label": "x"}]}, 404, "features"),
        ({"labels": [{"feature": 1, "lable": "x"}]}, 422, "labels[0].lable"),
        ({"labels": [{"feature": 1, "label": "x"}] * 2}, 422, "labels"),
        ({"labels": [{"feature": 1, "label": "\n"}]}, 422, "label"),
    ],
)
def test_labels_that_cannot_be_kept_are_refused(http, body, status, param):
    assert problem(http.put(f"/v1/saes/{SAE}/labels", json=body), status)["param"] == param


def test_a_line_that_is_no_label_is_refused(http):
    kind = {"Content-Type": "application/jsonl"}
    answer = http.put(f"/v1/saes/{SAE}/labels", content="{}\nno", headers=kind)
    assert problem(answer, 422)["code"] == "bad_request"


def test_snippets_show_where_a_feature_is_strongest(http):
    texts = ["the king of the sea", "a red boat in the snow", "a green house at night"] * 5
    asked = {"texts": texts, "per_feature": 4}
    result = done(http.post(f"/v1/saes/{SAE}/snippets", json=asked, headers=WAIT))
    assert result["sample"]["texts"] == 15
    assert result["active"] > 0
    told = ok(http.get(f"/v1/saes/{SAE}/features/5"))
    assert 0 < len(told["snippets"]) <= 4
    assert told["strongest"] == pytest.approx(told["snippets"][0]["maxValue"], abs=1e-4)
    for one in told["snippets"]:
        assert len(one["tokens"]) == len(one["values"])
        assert one["values"][one["maxValueTokenIndex"]] == one["maxValue"] == max(one["values"])
        spelt = "".join(one["tokens"]).strip()
        assert any(spelt in text for text in texts)
    assert 0 <= told["input_score"] <= 1
    own = done(http.post(f"/v1/saes/{SAE}/snippets", json={}, headers=WAIT))
    assert own["sample"]["own"]
    assert ok(http.get(f"/v1/saes/{SAE}"))["snippets"]["texts"] == own["sample"]["texts"] == 100


def test_the_same_idempotency_key_scores_once(http):
    headers = {"Idempotency-Key": "score-once"}
    first = http.post(f"/v1/saes/{SAE}/scores", json={"features": [1]}, headers=headers)
    again = http.post(f"/v1/saes/{SAE}/scores", json={"features": [1]}, headers=headers)
    assert first.status_code == again.status_code == 202
    assert again.json()["id"] == first.json()["id"]


def test_what_was_done_is_in_the_audit(http):
    ok(http.put(f"/v1/saes/{SAE}/labels", json={"labels": [{"feature": 1, "label": "x"}]}))
    actions = [row["action"] for row in ok(http.get("/v1/audit?limit=1000"))["data"]]
    assert "labels.put" in actions


def test_input_scores_are_counted_as_the_paper_says_if_that_is_asked_for(http):
    asked = {"settings": "paper"}
    result = done(http.post(f"/v1/saes/{SAE}/snippets", json=asked, headers=WAIT))
    counted = result["sample"]["input_scores"]
    assert counted == {**asdict(INPUT_PAPER), "digest": INPUT_PAPER.digest}
    assert ok(http.get(f"/v1/saes/{SAE}"))["snippets"]["input_scores"] == counted
    # More sentences than there are: nobody has a score.
    asked = {"settings": {"min_sentences": 1000, "counting": "tokens"}}
    done(http.post(f"/v1/saes/{SAE}/snippets", json=asked, headers=WAIT))
    told = ok(http.get(f"/v1/saes/{SAE}/features?limit=48"))["data"]
    assert {one["input_score"] for one in told} == {None}
    unknown = http.post(f"/v1/saes/{SAE}/snippets", json={"settings": "ours"})
    assert unknown.status_code == 422
