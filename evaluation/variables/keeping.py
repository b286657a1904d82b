"""Which rows a study may use: they know the variable and the positions, and the model is right."""

from collections.abc import Iterable
from dataclasses import replace

from evaluation.behaviours.pairs import Dropped
from evaluation.behaviours.swaps import PreparedSwaps, SwapIds
from evaluation.variables.errors import NothingKept
from evaluation.variables.objective import Checker
from evaluation.variables.score import competent
from evaluation.variables.table import usable
from models.hosted import HostedModel


def keep(  # noqa: PLR0913 - what makes a row usable, each by its name
    hosted: HostedModel,
    swaps: PreparedSwaps,
    variable: str,
    positions: Iterable[str],
    *,
    new_tokens: int,
    right: Checker,
    first: int = 0,
) -> tuple[tuple[SwapIds, ...], tuple[Dropped, ...]]:
    """Usable rows, and all others by their numbers among everything that was brought.

    Args:
        hosted: Whose answers decide.
        swaps: Interchanges in its tokens.
        variable: Which is swapped.
        positions: That are swapped at.
        new_tokens: Of an answer.
        right: Whether an answer is the expected one.
        first: The number of the first row.

    Raises:
        NothingKept: No row is left.
    """
    if not swaps.kept:
        why = swaps.dropped[0].reason if swaps.dropped else "there are no interchanges"
        raise NothingKept(why)
    gone = {row.row for row in swaps.dropped}
    numbers = [i for i in range(len(swaps.kept) + len(gone)) if i not in gone]
    able, unable = usable(swaps.kept, variable, positions)
    left = {row.row for row in unable}
    rest = [number for i, number in enumerate(numbers) if i not in left]
    able_and_right = competent(hosted, able, new_tokens, right)
    dropped = [
        *swaps.dropped,
        *(replace(row, row=numbers[row.row]) for row in unable),
        *(replace(row, row=rest[row.row]) for row in able_and_right.dropped),
    ]
    moved: list[Dropped] = [replace(row, row=first + row.row) for row in dropped]
    return able_and_right.kept, tuple(sorted(moved, key=lambda row: row.row))
