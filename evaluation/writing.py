"""Texts of a hosted language model for an evaluation: many rows at once; how likely they are."""

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor

from engines.slots.choosing import engine_for
from engines.slots.request import LAST, Event, Failed, Finished, Generation, Sampling
from models.hosted import HostedModel
from models.language import Language
from models.patch import Patch


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One text to write."""

    prompt: tuple[int, ...]
    patch: Patch = field(default_factory=Patch)
    seed: int = 0
    tokens: int = 20
    temperature: float = 0.7


@dataclass(frozen=True, kw_only=True)
class Text:
    """What was written."""

    text: str
    ids: tuple[int, ...]


class Writer:
    """An engine of its own over a hosted model, for the length of a `with` block."""

    def __init__(self, hosted: HostedModel, *, slots: int = 32) -> None:
        assert isinstance(hosted.family, Language)  # noqa: S101 - the caller chose the model
        self.hosted, self.family = hosted, hosted.family
        self.engine = engine_for(hosted, slots=slots, max_waiting=_WAITING)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.engine.stop()

    def tokens(self, text: str) -> tuple[int, ...]:
        """The ids of a beginning, marks included."""
        return tuple(self.family.tokenize(self.hosted, text))

    def conversation(self, text: str) -> tuple[int, ...]:
        """The ids of a user's message up to where the answer begins."""
        return tuple(self.family.chat(self.hosted, [{"role": "user", "content": text}]))

    def write(self, asked: Sequence[Asked]) -> list[Text]:
        """All texts, in order; a row that fails is raised as its refusal."""
        found: list[Text] = []
        for start in range(0, len(asked), _WAITING):
            found += self._some(asked[start : start + _WAITING])
        return found

    def _some(self, asked: Sequence[Asked]) -> list[Text]:
        ends: dict[int, Event] = {}
        over = threading.Semaphore(0)

        def tell(index: int, event: Event) -> None:
            if isinstance(event, LAST):
                ends[index] = event
                over.release()

        for index, ask in enumerate(asked):
            self.engine.submit(_generation(index, ask), functools.partial(tell, index))
        for _ in asked:
            over.acquire()
        return [_text(ends[index]) for index in range(len(asked))]

    @torch.inference_mode()
    def perplexities(self, texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[float]:
        """Of each (prompt, continuation): exp of the mean surprise of the continuation's tokens.

        Under the unsteered model. Infinite for an empty continuation.
        """
        found: list[float] = []
        for start in range(0, len(texts), _READ_AT_ONCE):
            found += self._read(texts[start : start + _READ_AT_ONCE])
        return found

    def _read(self, texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[float]:
        # Rows are padded behind their ends, where no token of theirs looks.
        longest = max(len(prompt) + len(text) for prompt, text in texts)
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, (prompt, text) in enumerate(texts):
            ids[row, : len(prompt) + len(text)] = torch.tensor(prompt + text)
        said = self.family.logits(self.hosted, ids.to(self.hosted.device)).log_softmax(-1).cpu()
        return [_surprise(said[row], *text) for row, text in enumerate(texts)]


_WAITING, _READ_AT_ONCE = 4096, 64


def _surprise(said: Tensor, prompt: tuple[int, ...], text: tuple[int, ...]) -> float:
    if not text:
        return float("inf")
    first = len(prompt)
    rows = said[first - 1 : first - 1 + len(text)]
    return float((-rows.gather(1, torch.tensor(text)[:, None]).mean()).exp())


def _generation(index: int, ask: Asked) -> Generation:
    return Generation(
        id=str(index),
        ids=ask.prompt,
        patch=ask.patch,
        sampling=Sampling(temperature=ask.temperature),
        max_tokens=ask.tokens,
        seed=ask.seed,
        seconds=3600.0,
    )


def _text(end: Event) -> Text:
    if isinstance(end, Failed):
        raise end.why
    assert isinstance(end, Finished)  # noqa: S101 - nobody cancels here
    return Text(text=end.text, ids=end.ids)
