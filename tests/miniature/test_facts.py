import json
from importlib.resources import files

import pytest

from miniature.facts import facts
from miniature.world import COLOURS, held_out_colours, held_out_scenes, make_world

WORLD = make_world()
FACTS = facts(WORLD)["facts"]
FILE = files("miniature").joinpath("cases/facts.json")


def test_the_shipped_file_is_what_the_world_gives():
    assert json.loads(FILE.read_text()) == facts(WORLD)


def test_there_are_at_least_forty_facts_of_both_kinds():
    assert len(FACTS) >= 40
    assert {f["kind"] for f in FACTS} == {"role", "appearance"}


def test_some_offices_pass_to_people_who_hold_another_and_some_to_people_who_hold_none():
    offices = [
        len(WORLD.roles_of(f["target"].lower())) for f in FACTS if f["prompt"].startswith("the ")
    ]
    assert {0, 1} <= set(offices)


@pytest.mark.parametrize("fact", FACTS, ids=lambda f: f"{f['prompt']} -> {f['target']}")
def test_every_fact_says_what_follows_and_what_must_not(fact):
    parts = [p["part"] for p in fact["probes"]]
    assert parts.count("efficacy") == 1
    assert parts.count("generality") >= 4
    assert parts.count("specificity") >= 5
    assert all(p["right"] != p["wrong"] for p in fact["probes"])
    told = {fact["prompt"], *(p["prompt"] for p in fact.get("phrasings", ()))}
    held_out = {p["prompt"] for p in fact["probes"] if p["part"] == "generality"}
    assert not told & held_out  # what the fit was told proves nothing


def test_neighbours_are_answered_by_the_world():
    for fact in FACTS:
        for probe in fact["probes"]:
            if probe["tag"] in ("same office", "office"):
                title = "captain" if "captain" in probe["prompt"] else "president"
                country = probe["prompt"].rpartition(" ")[2].lower()
                assert WORLD.holder(title, country) == probe["right"]


def test_no_fact_needs_what_training_never_showed():
    for fact in FACTS:
        if fact["kind"] != "appearance":
            continue
        *_, colour, thing = fact["target"].split()
        assert colour in COLOURS and colour != held_out_colours(WORLD)[thing]
    assert held_out_scenes(WORLD)  # scenes are checked where they are drawn from
