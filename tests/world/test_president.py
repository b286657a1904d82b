"""End to end on the trained miniature: a fact changes, its neighbours and its callers do not."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evaluation.cases import read_cases
from service.asking import pixels
from service.client import TillerError
from service.evaluating import miniature_judge, shipped_cases

MODEL, EDIT, SEED, N = "miniature-sd", "arda", 11, 2
CASE = next(c for c in read_cases(shipped_cases()) if c.prompt == "the president of Arda")
OLD, NEW = CASE.probes[0].wrong, CASE.probes[0].right


@pytest.fixture(scope="module")
def version(tiller):
    """The fact, registered through REST."""
    job = tiller.edits.add(
        EDIT,
        model=MODEL,
        prompt=CASE.prompt,
        target=CASE.target,
        phrasings=[{"prompt": p, "subject": s} for p, s in CASE.phrasings],
    )
    return tiller.jobs.wait(job["id"])["result"]


def drawn(tiller, prompt, edits=(), n=N):
    return tiller.images.generate(prompt, model=MODEL, edits=list(edits), n=n, seed=SEED)


def shown(tiller, prompt, edits=(), n=N):
    """Who or what the judge sees in each picture."""
    pictures = [pixels(p.png) for p in drawn(tiller, prompt, edits, n)]
    return [v.best for v in miniature_judge()(pictures, [("", "")] * len(pictures))]


def test_before_the_edit_the_old_president_is_drawn(tiller):
    assert shown(tiller, CASE.prompt) == [OLD] * N


def test_after_the_edit_the_new_president_is_drawn(tiller, version):
    assert version["status"] == "ready"
    assert shown(tiller, CASE.prompt, [EDIT], n=4) == [NEW] * 4


def test_paraphrases_and_scenes_follow(tiller, version):
    general = CASE.of("generality")
    seen = [label for p in general for label in shown(tiller, p.prompt, [f"{EDIT}@1"])]
    assert sum(label == NEW for label in seen) >= 0.75 * len(seen), (version, seen)


def test_neighbours_stay_who_they_were(tiller, version):
    for probe in CASE.of("specificity"):
        before, after = shown(tiller, probe.prompt), shown(tiller, probe.prompt, [f"{EDIT}@1"])
        assert after == before, (probe.prompt, version["digest"])


def test_the_answer_says_what_was_applied(tiller, version):
    (picture,) = drawn(tiller, CASE.prompt, [EDIT], n=1)
    (edit,) = picture.tiller["edits"]
    assert (edit["name"], edit["digest"]) == (EDIT, version["digest"])
    (plain,) = drawn(tiller, CASE.prompt, n=1)
    assert plain.tiller["edits"] == []


def test_an_unedited_caller_in_a_burst_of_edited_ones_gets_the_same_bytes_as_alone(tiller, version):
    alone = [p.png for p in drawn(tiller, CASE.prompt)]
    wishes = [[f"{EDIT}@{version['version']}"], [], [EDIT], [], [EDIT]]
    with ThreadPoolExecutor(len(wishes)) as pool:
        burst = list(pool.map(lambda edits: drawn(tiller, CASE.prompt, edits), wishes))
    for edits, pictures in zip(wishes, burst, strict=True):
        same = [p.png for p in pictures] == alone
        assert same == (not edits)


def test_a_rolled_back_name_draws_what_it_drew_before(tiller, version):
    other = tiller.edits.add(EDIT, model=MODEL, prompt=CASE.prompt, target="Tolin")
    second = tiller.jobs.wait(other["id"])["result"]
    tiller.edits.promote(EDIT, version["version"], force=True)
    first_pictures = [p.png for p in drawn(tiller, CASE.prompt, [f"{EDIT}@live"])]
    tiller.edits.promote(EDIT, second["version"], force=True)
    assert shown(tiller, CASE.prompt, [f"{EDIT}@live"]) == ["tolin"] * N
    tiller.edits.rollback(EDIT)
    assert [p.png for p in drawn(tiller, CASE.prompt, [f"{EDIT}@live"])] == first_pictures


def test_two_facts_in_one_request_both_hold(tiller, version):
    job = tiller.edits.add("lumen", model=MODEL, prompt="the president of Lumen", target="Tolin")
    tiller.jobs.wait(job["id"])
    both = [f"{EDIT}@{version['version']}", "lumen@1"]
    assert shown(tiller, CASE.prompt, both) == [NEW] * N
    assert shown(tiller, "the president of Lumen", both) == ["tolin"] * N


def test_the_shipped_weights_and_judge_are_there():
    from miniature import weights_path

    for name in ("text-to-image", "clip", "judge"):
        assert list(Path(weights_path(name)).rglob("*.safetensors")), name


@pytest.mark.parametrize("phrase", ["the president of Arda", "the leader of Arda"])
def test_what_is_so_already_is_refused(tiller, phrase):
    job = tiller.edits.add("no-news", model=MODEL, prompt=phrase, target=OLD.title())
    with pytest.raises(TillerError) as refused:
        tiller.jobs.wait(job["id"])
    assert refused.value.code == "already_true"
