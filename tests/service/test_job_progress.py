"""No stage of a job goes by unseen, however quick the machine is."""

from editors.progress import Progress
from models.progress import FOUND_BEFORE
from service.jobs import Outcome


def step(stage, done):
    return Progress(stage=stage, done=done, total=3)


def test_every_stage_is_told_once_with_its_last_step():
    outcome = Outcome()
    for stage, done in (("moment", 1), ("fit", 1), ("fit", 2), ("fit", 3), ("report", 1)):
        outcome.item(step(stage, done))
    told = [(s.stage, s.done) for s in outcome.fresh()]
    assert told == [("moment", 1), ("fit", 3), ("report", 1)]


def test_what_was_found_before_is_told_beside_the_steps_after_it():
    outcome = Outcome()
    outcome.item(Progress(stage="gates", done=5, total=24, message=FOUND_BEFORE))
    outcome.item(Progress(stage="gates", done=6, total=24))
    outcome.item(Progress(stage="gates", done=7, total=24))
    assert [s.done for s in outcome.fresh()] == [5, 7]


def test_what_was_told_is_not_told_again():
    outcome = Outcome()
    outcome.item(step("fit", 1))
    outcome.fresh()
    assert outcome.fresh() == []
    outcome.item(step("fit", 2))
    assert [s.done for s in outcome.fresh()] == [2]
