import pytest

from miniature import weights_path
from miniature.prose import arithmetic
from miniature.tasks import TASKS, accuracy


def test_questions_are_the_same_for_the_same_seed_and_their_answers_differ():
    for ask in TASKS.values():
        asked = ask(40, 3)
        assert asked == ask(40, 3) != ask(40, 4)
        assert all(q.right != q.wrong for q in asked)
        assert len({q.prompt for q in asked}) == 40


def test_sums_asked_are_those_held_out():
    short = {arithmetic.short(s) for s in arithmetic.held_out_sums()}
    assert all(q.prompt in short for q in TASKS["arithmetic"](200, 0))


@pytest.mark.parametrize("task", TASKS)
def test_the_miniature_solves_what_it_never_saw(task, miniature_language):
    """Fails if the weights are others, or decode otherwise than they were measured."""
    model, words = miniature_language
    assert accuracy(model, words, TASKS[task](50, 1)) > 0.9


def test_right_must_be_said_whole(miniature_language):
    from dataclasses import replace

    model, words = miniature_language
    asked = TASKS["arithmetic"](20, 1)
    shorter = [replace(q, right=q.right[:-1]) for q in asked if len(q.right) > 1]
    assert accuracy(model, words, shorter) < 0.1
    assert accuracy(model, words, [replace(q, right=q.wrong) for q in asked]) < 0.1


def test_its_tokens_are_what_the_tasks_need(miniature_language):
    from miniature.prose.people import FIRST_NAMES

    _, words = miniature_language
    assert words("23+45=", add_special_tokens=False)["input_ids"].__len__() == 6
    for word in (*FIRST_NAMES, "A", "B", "C", "D"):
        assert len(words(f" {word}", add_special_tokens=False)["input_ids"]) == 1
    assert (weights_path("language") / "chat_template.jinja").exists()
