"""Rows in slots: they join by reading their prompt, write one token a step, and leave.

Rows that write stand in slots 0, 1, ... in order, so that a step sees their keys and values without
copying them; behind them stand those that still read. A hole is filled by the last row. Prompts are
read between two steps, in pieces of a token budget; rows of one length side by side. A row that has
let `patience` steps of others by is due: beyond the budget the oldest such prompt, and no other, is
read to its end between two steps. So a row that joins alone lets no more steps by until its first
token, of several each waits one step more at most than the one before it, and nobody who writes
waits for more than the budget and one prompt, however many are due.
"""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from engines.errors import LogitsNotANumber
from engines.slots.prefix import Known, Prefixes
from engines.slots.row import Row
from engines.slots.sampling import Chosen, choose
from engines.slots.sights import Sights
from engines.slots.waiting import Waiting
from models.errors import PatchNotApplied
from models.hosted import HostedModel
from models.language import Language
from models.patch import Patch
from models.sight import Shown

_log = logging.getLogger(__name__)
Said = Float[Tensor, "rows vocab"] | Sequence[Float[Tensor, " vocab"] | None]
"""Logits behind each row's last token; None of a row that failed."""


class Scheduler:
    """The rows of one model; owner thread only.

    Args:
        hosted: The model.
        family: Its family.
        prefixes: What is known of prompts.
        slots: Rows that are held at once.
        capacity: Tokens of each, prompt included.
        budget: Tokens of prompts that are read between two steps.
        patience: Steps of others until a row is due; None if the budget is never exceeded.
        patch_bytes: Of all patches that are held at once.
        sights: What is known of pictures.
    """

    def __init__(  # noqa: PLR0913 - every bound is stated by name
        self,
        hosted: HostedModel,
        family: Language,
        prefixes: Prefixes,
        *,
        slots: int,
        capacity: int,
        budget: int,
        patience: int | None,
        patch_bytes: int,
        sights: Sights,
    ) -> None:
        self.sights = sights
        self.hosted, self.family, self.prefixes = hosted, family, prefixes
        self.slots, self.budget, self.patience = slots, budget, patience
        self.patch_bytes = patch_bytes
        self.cache = family.new_cache(hosted, slots, capacity)
        self.writing: list[Row] = []
        self.reading: list[Row] = []
        self.steps = self.read_tokens = self.written_tokens = 0

    @property
    def rows(self) -> list[Row]:
        """In the order of their slots."""
        return [*self.writing, *self.reading]

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return self.slots - len(self.writing) - len(self.reading)

    def sweep(self) -> None:
        """Rows that were cancelled or are too late leave."""
        for row in self.rows:
            ending = row.ending()
            if ending is not None:
                row.ticket.hear(ending)
                self._leave(row)

    def read(self, waiting: Waiting) -> None:
        """Rows join and read their prompts, up to the budget; beyond it one that is due."""
        spent = 0
        while spent < self.budget and (self.reading or self._joins(waiting, due=False)):
            if self.reading:
                spent += self._piece(self.budget - spent)
        if self.reading or self._joins(waiting, due=True):
            while self.reading and self._is_due(self.reading):
                self._piece(self.budget)

    def write(self, waiting: Waiting) -> None:
        """One token for every row that writes, in one forward."""
        if not self.writing:
            return
        beside = [*self.reading, *waiting.first(self.free)]
        rows = list(self.writing)
        ids = [row.tokens[row.done :] for row in rows]
        self._choose(rows, self._run(rows, ids, [_meant(row) for row in rows], first=0))
        for row in rows:
            if row.over:
                self._leave(row)
        self.steps += 1
        self.written_tokens += len(rows)
        for row in beside:
            row.let_by += 1

    def clear(self) -> list[Row]:
        """All rows, which are forgotten."""
        rows, self.writing, self.reading = self.rows, [], []
        return rows

    # --- joining ----------------------------------------------------------------------------------

    def _is_due(self, rows: Sequence[Row]) -> bool:
        if self.patience is None or not self.writing:
            return False
        return max(row.let_by for row in rows) + 1 >= self.patience

    def _joins(self, waiting: Waiting, *, due: bool) -> bool:
        """Rows of one length take slots side by side; False if nobody can join now.

        Args:
            waiting: Those who may.
            due: Only if the first of them is due.
        """
        come = self._affordable(waiting.first(self.free))
        if not come or (due and not self._is_due(come[:1])):
            return False
        group = self._alike(come)
        self.reading += [row for row, _ in group]
        waiting.take(self.reading)
        for at, (row, known) in enumerate(group, len(self.writing)):
            row.begin()
            try:
                self.prefixes.load(row, known, self.cache, at)
            except Exception as broken:  # noqa: BLE001 - one bad row never ends the others
                row.fail(broken)
        for row in [row for row, _ in group if row.over]:
            self._leave(row)
        return True

    def _affordable(self, rows: Sequence[Row]) -> list[Row]:
        """The first of them whose patches can be held beside those that are; one at least."""
        held = sum(row.request.patch.nbytes for row in self.rows)
        found: list[Row] = []
        for row in rows:
            held += row.request.patch.nbytes
            if held > self.patch_bytes and (found or self.writing or self.reading):
                break
            found.append(row)
        return found

    def _alike(self, come: Sequence[Row]) -> list[tuple[Row, Known]]:
        """The first row, and others with as many tokens left to read.

        Not side by side: prompts with a common beginning, the second of which will be known.
        """
        found: list[tuple[Row, Known]] = []
        missing: set[str] = set()
        left = 0
        for row in come:
            known = self._known(row)
            left = left or row.prompt - known.tokens
            fits = (len(found) + 1) * left <= self.budget or not found
            if row.prompt - known.tokens == left and known.missing not in missing and fits:
                found.append((row, known))
                missing |= {known.missing} if known.missing else set()
        return found

    def _known(self, row: Row) -> Known:
        """What is known of its prompt; nothing, where looking it up breaks."""
        try:
            return self.prefixes.find(row)
        except Exception:  # noqa: BLE001 - one bad row never ends the others
            _log.exception("What is known of %s was not found", row.request.id)
            return Known([], None)

    # --- forwards ---------------------------------------------------------------------------------

    def _piece(self, budget: int) -> int:
        """The next piece of the prompts that are being read; how many tokens it had."""
        rows = list(self.reading)
        tokens = _uncut(rows, min(rows[0].reading, max(1, budget // len(rows))))
        ids = [row.tokens[row.done : row.done + tokens] for row in rows]
        patches = [_meant(row, tokens) for row in rows]
        last = tokens == rows[0].reading
        said = self._run(rows, ids, patches, first=len(self.writing))
        if last:
            # Whoever has read its prompt stands next to those that write already.
            self.writing, self.reading = [*self.writing, *self.reading], []
            self._choose(rows, said)
        for row in rows:
            if row.over:
                self._leave(row)
            elif last:
                self._keep(row)
        self.read_tokens += tokens * len(rows)
        return tokens * len(rows)

    def _choose(self, rows: Sequence[Row], said: Said) -> None:
        """The rows' next tokens, all at once; rows that failed stand beside."""
        going = [i for i, row in enumerate(rows) if not row.over]
        if not going:
            return
        if isinstance(said, Tensor) and len(going) == len(rows):
            logits = said
        else:
            logits = torch.stack([one for i in going if (one := said[i]) is not None])
        those = [rows[i] for i in going]
        for row, pick in zip(those, _chosen(those, logits), strict=True):
            if isinstance(pick, Chosen):
                row.take(pick)
            else:
                row.fail(pick or LogitsNotANumber(row.done))

    def _run(
        self,
        rows: Sequence[Row],
        ids: Sequence[list[int]],
        patches: Sequence[Patch],
        *,
        first: int,
    ) -> Said:
        """Run the rows' new tokens; if the forward breaks, each row is tried by itself."""
        try:
            said = self._step(rows, ids, patches, first)
        except Exception as broken:  # noqa: BLE001 - one bad row never ends the others
            if len(rows) == 1:
                rows[0].fail(broken)
                return [None]
            _log.warning("A forward of %d rows broke: %s", len(rows), broken)
            alone = zip(rows, ids, patches, range(first, first + len(rows)), strict=True)
            found = [self._run([r], [i], [p], first=at) for r, i, p, at in alone]
            return [said[0] for said in found]
        for row, new in zip(rows, ids, strict=True):
            row.done += len(new)
            row.batch = max(row.batch, len(rows))
        return said

    def _step(
        self, rows: Sequence[Row], ids: Sequence[list[int]], patches: Sequence[Patch], first: int
    ) -> Said:
        new = torch.tensor(ids, device=self.hosted.device)
        slots, starts = range(first, first + len(rows)), [row.done for row in rows]
        shown = self._shown(rows, new.shape[1])
        if not any(patches):
            return self.family.step(self.hosted, new, self.cache, slots, starts, shown=shown)
        run = logits = None
        try:
            with self.hosted.planned(patches, tokens=new.shape[1]) as run:
                logits = self.family.step(self.hosted, new, self.cache, slots, starts, shown=shown)
        except PatchNotApplied as missed:
            for at in missed.rows:
                rows[at].fail(missed)
        if run is None or logits is None:
            raise RuntimeError("A forward ended without a word.")
        for (at, place), tokens in run.changed.items():
            rows[at].changed[place] += tokens
        return logits

    def _shown(self, rows: Sequence[Row], tokens: int) -> list[Shown | None]:
        """The rows' pictures, looked at where one of their columns is run now."""
        if all(row.shown is None for row in rows):
            return []
        for row in rows:
            if row.shown is None:
                continue
            if row.shown.here(row.done, tokens)[0]:
                row.shown = self.sights.look(row.shown, row.request.realm)
            elif row.done >= row.prompt:
                row.shown = Shown(sight=row.shown.sight)  # what was seen is read
        return [row.shown for row in rows]

    # --- leaving ----------------------------------------------------------------------------------

    def _keep(self, row: Row) -> None:
        """Let others know what the row has read and written; nothing hangs on it."""
        try:
            self.prefixes.store(row, self.cache, self.rows.index(row))
        except Exception:  # noqa: BLE001 - as said
            _log.exception("What %s has read was not kept", row.request.id)

    def _leave(self, row: Row) -> None:
        """Free the row's slot; what may not be finite must not stay behind another row's end."""
        at = self.rows.index(row)
        if row.finished:
            self._keep(row)
        else:
            self.cache.clear(at)
        if at < len(self.writing):
            at = self._fill(self.writing, at, 0)
            self.writing.pop()
            if self.reading:
                self._move(at + len(self.reading), at, self.reading[-1])
                self.reading.insert(0, self.reading.pop())
        else:
            self._fill(self.reading, at - len(self.writing), len(self.writing))
            self.reading.pop()

    def _fill(self, rows: list[Row], at: int, first: int) -> int:
        """The last of these rows takes that place; which slot is empty now."""
        last = len(rows) - 1
        if at != last:
            self._move(first + last, first + at, rows[last])
            rows[at] = rows[last]
        return first + last

    def _move(self, source: int, target: int, row: Row) -> None:
        self.cache.move(source, target, row.done)


def _meant(row: Row, tokens: int = 1) -> Patch:
    """What the row's patch does to its next tokens; the row ends if that cannot be said."""
    try:
        return row.within(row.done, tokens)
    except Exception as broken:  # noqa: BLE001 - one bad row never ends the others
        row.fail(broken)
        return Patch()


def _uncut(rows: Sequence[Row], tokens: int) -> int:
    """So many tokens, or more, that no row's piece ends inside what must be whole."""
    while True:
        needed = max(row.whole(row.done + tokens) - row.done for row in rows)
        if needed <= tokens:
            return tokens
        tokens = needed


def _chosen(
    rows: Sequence[Row], logits: Float[Tensor, "rows vocab"]
) -> list[Chosen | Exception | None]:
    """Each row's next token; if choosing breaks, each row is tried by itself."""
    try:
        return list(choose(logits, [row.draws for row in rows]))
    except Exception as broken:  # noqa: BLE001 - as said
        if len(rows) == 1:
            return [broken]
        _log.warning("A choice of %d rows broke: %s", len(rows), broken)
        return [_chosen([row], logits[i : i + 1])[0] for i, row in enumerate(rows)]
