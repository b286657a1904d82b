"""The six tasks, by name."""

from itertools import islice

from miniature.sight import colour_order, counting, feeling, person, scene, sums
from miniature.sight.item import Item, Split, Task, items

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        counting.TASK,
        colour_order.TASK,
        sums.TASK,
        person.TASK,
        feeling.TASK,
        scene.TASK,
    )
}


def some(name: str, split: Split, n: int, seed: int = 0) -> list[Item]:
    """The first n items of a task, a split and a seed.

    Raises:
        KeyError: There is no such task.
    """
    return list(islice(items(TASKS[name], split, seed), n))
