"""The protocol on a world of plain colours: the judge reads them, the edit is a table of words."""

import json

import numpy as np
import pytest

from editors.progress import Progress
from evaluation.errors import NothingToJudge
from evaluation.facts import FactSettings, Fitted, evaluate_facts
from evaluation.judge import Verdict
from evaluation.protocol import Case, Journal, Probe
from evaluation.report import write
from models.errors import Refusal

COLOURS = {"red": (200, 0, 0), "blue": (0, 0, 200), "green": (0, 160, 0)}
NATURAL = {"mug": "blue", "frog": "green", "ball": "red"}


def picture(colour, seed):
    flat = np.full((8, 8, 3), COLOURS[colour], dtype=np.uint8)
    flat[0, 0] = seed
    return flat


def judge(pictures, answers):
    assert len(pictures) == len(answers)
    seen = [next(c for c, rgb in COLOURS.items() if tuple(p[4, 4]) == rgb) for p in pictures]
    return [Verdict(best=c, probabilities={c: 1.0}) for c in seen]


def case(thing, colour, *, kind="appearance", row=0):
    old, other = NATURAL[thing], "frog" if thing != "frog" else "mug"
    return Case(
        key=f"{row}: a {thing} -> a {colour} {thing}",
        kind=kind,
        prompt=f"a {thing}",
        target=f"a {colour} {thing}",
        probes=(
            Probe(
                part="efficacy",
                prompt=f"a {thing}",
                right=colour,
                wrong=old,
                oracle=f"a {colour} {thing}",
            ),
            Probe(
                part="generality",
                prompt=f"the {thing} at sea",
                right=colour,
                wrong=old,
                oracle=f"the {colour} {thing} at sea",
                tag="scene",
            ),
            Probe(
                part="specificity",
                prompt=f"a {other}",
                right=NATURAL[other],
                wrong=colour,
                tag="object",
            ),
        ),
    )


def everywhere(edit, prompt):
    return bool(edit and prompt)


def nowhere(edit, prompt):
    return not everywhere(edit, prompt)


def own_thing(edit, prompt):
    return edit[0] in prompt


class World:
    """Draws the colour that the words name, or the thing's own; an edit gives a thing a colour."""

    def __init__(self, reaches=everywhere):
        self.edits, self.reaches, self.drawn, self.fits = {}, reaches, [], 0

    def fit(self, case):
        self.fits += 1
        yield Progress(stage="fit", done=1, total=1)
        name = f"{case.prompt}@1"
        *_, colour, thing = case.target.split()
        self.edits[name] = (thing, colour)
        return Fitted(edit=name, digest="d" * 64, report={})

    def draw(self, drawings):
        for wanted in drawings:
            self.drawn.append(wanted)
            words = wanted.prompt.split()
            thing = next(w for w in words if w in NATURAL)
            colour = next((w for w in words if w in COLOURS), NATURAL[thing])
            edited = self.edits.get(wanted.edit)
            if edited and self.reaches(edited, wanted.prompt):
                colour = edited[1]
            yield picture(colour, wanted.seed)


def run(world, cases, folder):
    settings = FactSettings(seeds=(0, 1))
    journal = Journal(folder / "scores.jsonl", {"seeds": list(settings.seeds)})
    steps = evaluate_facts(cases, world.draw, world.fit, judge, journal, settings)
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            return end.value, seen, journal


def shares(report, arm="edited", group="all"):
    return {part: e.value for part, e in report.groups[group][arm].parts.items()}


def test_a_perfect_edit_scores_one_everywhere(tmp_path):
    world = World(reaches=own_thing)
    report, _, _ = run(world, [case("mug", "red"), case("frog", "red", row=1)], tmp_path)
    assert shares(report) == {"efficacy": 1.0, "generality": 1.0, "specificity": 1.0}
    assert report.groups["all"]["edited"].harmonic == pytest.approx(1.0)
    assert report.validity == 1.0


def test_an_edit_that_changes_nothing_has_specificity_only(tmp_path):
    report, _, _ = run(World(reaches=nowhere), [case("mug", "red")], tmp_path)
    assert shares(report) == {"efficacy": 0.0, "generality": 0.0, "specificity": 1.0}
    assert report.groups["all"]["edited"].harmonic == 0.0
    assert shares(report, "base") == shares(report)


def test_an_edit_that_leaks_has_no_specificity(tmp_path):
    report, _, _ = run(World(), [case("mug", "red")], tmp_path)
    assert shares(report)["specificity"] == 0.0
    assert shares(report, "base")["specificity"] == 1.0
    assert shares(report, "oracle") == {"efficacy": 1.0, "generality": 1.0}


def test_an_edit_that_knows_its_own_words_only_lacks_generality(tmp_path):
    world = World(reaches=lambda edit, prompt: prompt == f"a {edit[0]}")
    report, _, _ = run(world, [case("mug", "red")], tmp_path)
    assert shares(report)["generality"] == 0.0
    assert report.tags["generality: scene"].value == 0.0
    assert report.tags["specificity: object"].value == 1.0


def test_a_refused_fit_counts_as_drawn_unedited_and_is_named(tmp_path):
    class NoPull(Refusal):
        pass

    def refuse(case):
        yield Progress(stage="fit", done=0, total=1)
        raise NoPull(f"{case.key}: no pull", remedy="none")

    world = World()
    world.fit = refuse
    report, _, _ = run(world, [case("mug", "red")], tmp_path)
    assert shares(report) == {"efficacy": 0.0, "generality": 0.0, "specificity": 1.0}
    assert report.refused == {"0: a mug -> a red mug": "no_pull"}


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path):
    cases = [case("mug", "red"), case("frog", "red", row=1)]
    first = World(reaches=own_thing)
    run(first, cases[:1], tmp_path)
    second = World(reaches=own_thing)
    report, _, _ = run(second, cases, tmp_path)
    assert (first.fits, second.fits) == (1, 1)
    whole, _, _ = run(World(own_thing), cases, tmp_path / "new")
    assert [d.scores for d in report.done] == [d.scores for d in whole.done]


def test_pictures_of_the_unedited_model_are_drawn_once_for_all_cases(tmp_path):
    world = World()
    run(world, [case("mug", "red"), case("mug", "green", row=1)], tmp_path)
    plain = [d for d in world.drawn if d.edit is None]
    assert len(plain) == len(set(plain))


def test_kinds_are_reported_apart(tmp_path):
    world = World(reaches=lambda edit, prompt: edit[0] == "mug" and prompt)
    cases = [case("mug", "red", kind="role"), case("frog", "red", row=1)]
    report, _, _ = run(world, cases, tmp_path)
    assert shares(report, group="role")["efficacy"] == 1.0
    assert shares(report, group="appearance")["efficacy"] == 0.0
    assert shares(report)["efficacy"] == 0.5


def test_progress_counts_every_picture(tmp_path):
    _, seen, _ = run(World(), [case("mug", "red")], tmp_path)
    drawn = [s for s in seen if s.stage == "draw"]
    assert [s.done for s in drawn] == list(range(1, drawn[0].total + 1))


def test_nothing_to_judge_is_refused(tmp_path):
    with pytest.raises(NothingToJudge):
        run(World(), [], tmp_path)


def test_the_report_is_written_as_json_page_and_sheet(tmp_path):
    report, _, journal = run(World(), [case("mug", "red")], tmp_path)
    told, page, sheet = write(report, journal, tmp_path / "out")
    assert json.loads(told.read_text())["groups"]["all"]["edited"]["efficacy"]["value"] == 1.0
    assert "| all | edited | 100.0 [100.0, 100.0] ±0.0 |" in page.read_text()
    from PIL import Image

    pixels = np.asarray(Image.open(sheet)).reshape(-1, 3)
    assert (pixels == COLOURS["red"]).all(1).any()  # the edited mug is on the sheet
    assert (pixels == COLOURS["blue"]).all(1).any()  # and the mug that was


def test_cakes_criterion_compares_with_the_unedited_models_own_pictures(tmp_path):
    def alike(pictures, answers):
        """Likeness is how strong the asked colour is; fresh pictures of it set the bar."""
        seen = judge(pictures, answers)
        return [
            Verdict(best=v.best, probabilities=v.probabilities, similarity=float(v.best == right))
            for v, (right, _) in zip(seen, answers, strict=True)
        ]

    class Speaking(World):
        def draw(self, drawings):
            for wanted in drawings:
                if wanted.prompt in COLOURS:  # the bare answer, as the bar asks for it
                    yield picture(wanted.prompt, wanted.seed)
                else:
                    yield from super().draw([wanted])

    world = Speaking(reaches=nowhere)
    settings = FactSettings(seeds=(0, 1), cake_seeds=5)
    journal = Journal(tmp_path / "scores.jsonl", {})
    steps = evaluate_facts([case("mug", "red")], world.draw, world.fit, alike, journal, settings)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        report = end.value
    assert report.groups["all"]["edited"].cake == {
        "efficacy": 0.0,
        "generality": 0.0,
        "specificity": 1.0,
    }
    assert report.groups["all"]["oracle"].cake["efficacy"] == 1.0
    assert (
        Journal(tmp_path / "scores.jsonl", {}).bars
        == journal.bars
        == {
            "red": 1.0,
            "green": 1.0,
        }
    )
