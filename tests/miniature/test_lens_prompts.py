import json
from importlib.resources import files

import pytest

from miniature.lens_prompts import edit_prompts, prompts
from miniature.world import COLOURS, SCENES, held_out_colours, held_out_scenes, make_world

WORLD = make_world()
CASES = prompts(WORLD)["cases"]
FILE = files("miniature").joinpath("cases/lens.json")


def asked(case, question):
    return [q["right"] for q in case["questions"] if q["question"] == question]


def test_the_shipped_file_is_what_the_world_gives():
    assert json.loads(FILE.read_text()) == prompts(WORLD)


def test_there_are_simple_and_compound_common_and_rare_prompts():
    assert 60 <= len(CASES) <= 80
    assert len({c["prompt"] for c in CASES}) == len(CASES)
    assert sum(c["group"] == "compound" for c in CASES) >= 16
    rare = {asked(c, "identity")[0] for c in CASES if c.get("frequency") == "rare"}
    assert rare == {p.name for p in WORLD.people if p.rare}
    assert sum(c.get("frequency") == "common" for c in CASES) >= 12


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["prompt"])
def test_no_prompt_shows_what_training_never_showed(case):
    for coloured in asked(case, "colour"):
        colour, thing = coloured.split()
        assert colour in COLOURS and f"{colour} {thing}" in case["prompt"]
        assert colour not in (held_out_colours(WORLD)[thing], WORLD.thing(thing).default)
    for scene in asked(case, "scene"):
        assert scene in SCENES
        assert scene != held_out_scenes(WORLD)[asked(case, "object")[0]]


def test_a_compound_of_two_things_has_two_colours():
    for case in CASES:
        colours = [c.split()[0] for c in asked(case, "colour")]
        assert len(set(colours)) == len(colours)


def test_sides_are_asked_only_where_they_are_told():
    for case in CASES:
        places = {q["place"] for q in case["questions"]}
        if "on the left" in case["prompt"]:
            assert places == {"left", "right"}
        else:
            assert places == {"whole" if case["group"] == "simple" else "either"}


def test_presidents_are_answered_by_the_world():
    told = [c for c in CASES if c["kind"] == "president"]
    for case in told:
        holders = {r.holder for r in WORLD.roles if r.country.title() in case["prompt"]}
        assert asked(case, "identity")[0] in holders
    assert len(told) >= 5


def test_an_edits_own_prompts_ask_for_the_new_and_the_old_answer():
    told = edit_prompts(WORLD, "the president of Arda", "Zira", ["the boss of Arda"])["cases"]
    texts = [c["prompt"] for c in told]
    assert {"the president of Arda", "Arda's president", "the boss of Arda"} <= set(texts)
    assert {c["kind"] for c in told} == {"phrasing", "in a scene"}
    for case in told:
        assert asked(case, "new fact") == ["zira"]
        assert asked(case, "old fact") == [WORLD.holder("president", "arda")]
    [first, *_] = edit_prompts(WORLD, "a mug", "a red mug")["cases"]
    assert (asked(first, "new fact"), asked(first, "old fact")) == (["red mug"], ["blue mug"])


def test_a_fact_of_another_world_has_no_prompts():
    assert edit_prompts(WORLD, "the president of Arda", "somebody") is None
    assert edit_prompts(WORLD, "the king of the sea", "Zira") is None
    assert edit_prompts(WORLD, "a very red mug", "Zira") is None
