"""One text at a time through the library's own `generate`: the reference, and odd architectures.

Recurrent models and encoder-decoders keep states that no slot can hold; the library knows how. Ours
is only what happens between two forwards: a logits processor, the last of all, hands the scores to
the row and makes its choice the only one. So sampling, stops, log-probabilities, events, cancels
and deadlines are the slot engine's own. What a model's own generation settings force or forbid is
kept; beams and draws of the library are not used.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from engines.errors import AllTokensOnly, LogitsNotANumber
from engines.slots.engine import Kind, LanguageEngine
from engines.slots.request import Generation
from engines.slots.row import Row
from engines.slots.sampling import choose
from models.hosted import HostedModel


class GenerateEngine(LanguageEngine):
    """Rows one after another; patches reach all tokens of a text, or are refused.

    Args:
        hosted: A language model.
        settings: As of `LanguageEngine`.
    """

    kind: Kind = "generate"

    def __init__(self, hosted: HostedModel, **settings: Any) -> None:
        super().__init__(hosted, slots=1, **settings)
        self._row: Row | None = None
        self._owner.start()

    def check_patch(self, request: Generation) -> None:
        """As ever; AllTokensOnly where some tokens are meant: nobody says which they are."""
        super().check_patch(request)
        for operation in request.patch:
            if getattr(operation, "positions", "all") != "all":
                raise AllTokensOnly(self.hosted.name)

    def rows(self) -> list[Row]:
        """The one that is written."""
        return [] if self._row is None else [self._row]

    def sweep(self) -> None:
        """Nothing: between two rounds no text is half written."""

    def work(self) -> None:
        """Write one text to its end."""
        for row in self.waiting.first(1):
            self._row = row
            self.waiting.take([row])
            row.begin()
            row.batch = 1
            try:
                self._write(row)
                if not row.over:
                    raise RuntimeError("The library ended a text that was not over.")  # noqa: TRY301
            except Exception as broken:  # noqa: BLE001 - one bad row never ends the others
                row.fail(broken)
            finally:
                self._row = None

    def forget(self) -> list[Row]:
        """Nothing is half written."""
        return []

    def _write(self, row: Row) -> None:
        with self.hosted.planned([row.request.patch]):
            self._generate(row)

    def _generate(self, row: Row) -> None:
        ids = torch.tensor([row.request.ids], device=self.hosted.device)
        stated: dict[str, Any] = {"max_new_tokens": row.limit + 1, "pad_token_id": 0}
        if row.request.ignore_eos:
            # A token that does not exist: otherwise the library would end the text.
            stated["eos_token_id"] = self.told.vocab
        settings = GenerationConfig(**stated, do_sample=False, num_beams=1)
        self.hosted.modules["lm"].generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=LogitsProcessorList([_Choosing(row, self.hosted, self._between)]),
            stopping_criteria=StoppingCriteriaList([_Over(row)]),
        )

    def _between(self) -> None:
        """Between two tokens: a sign of life, and whoever waits in vain hears so."""
        self._owner.beat()
        self.waiting.sweep()


class _Choosing(LogitsProcessor):
    """The row chooses; everything else becomes impossible."""

    def __init__(self, row: Row, hosted: HostedModel, between: Callable[[], None]) -> None:
        self.row, self.hosted, self.between = row, hosted, between

    def __call__(
        self,
        input_ids: Int[Tensor, "rows tokens"],  # noqa: ARG002 - the row knows what it has
        scores: Float[Tensor, "rows vocab"],
    ) -> Float[Tensor, "rows vocab"]:
        self.between()
        row, run = self.row, self.hosted.run
        if run is not None:
            run.verify()
            row.changed.clear()
            row.changed.update({place: n for (_, place), n in run.changed.items()})
        (pick,) = choose(scores, [row.draws])
        if pick is None:
            raise LogitsNotANumber(len(row.tokens))
        row.take(pick)
        return torch.full_like(scores, -torch.inf).index_fill_(
            1, torch.tensor([pick.token], device=scores.device), 0.0
        )


class _Over(StoppingCriteria):
    """Looked at after every token: the text ended, was cancelled or is too late."""

    def __init__(self, row: Row) -> None:
        self.row = row

    def __call__(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        scores: Any,  # noqa: ARG002
        **_kwargs: Any,
    ) -> Any:
        ending = self.row.ending()
        if ending is not None:
            self.row.ticket.hear(ending)
        return torch.tensor([self.row.over] * len(input_ids), device=input_ids.device)
