"""Rows at their own positions equal the library's `generate`, one by one."""

from dataclasses import dataclass, field

import pytest
import torch

from tests.models.language.conftest import generated, library_logits, prompt

CAPACITY = 64


@dataclass
class Row:
    slot: int
    ids: list[int]
    joins: int
    pieces: tuple[int, ...]
    said: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.ids) + len(self.said) - 1


def prefill(hosted, cache, row: Row) -> None:
    """Pieces of any length, the last of them a single token."""
    start = 0
    for piece in row.pieces:
        ids = torch.tensor([row.ids[start : start + piece]])
        logits = hosted.family.step(hosted, ids, cache, [row.slot], [start])
        start += piece
    assert start == len(row.ids)
    row.said.append(int(logits[0].argmax()))


def decode(hosted, cache, rows: list[Row]) -> None:
    ids = torch.tensor([[row.said[-1]] for row in rows])
    slots, starts = [row.slot for row in rows], [row.length for row in rows]
    logits = hosted.family.step(hosted, ids, cache, slots, starts)
    for row, own in zip(rows, logits, strict=True):
        row.said.append(int(own.argmax()))


def test_rows_that_join_at_different_times_say_what_each_says_alone(hosted):
    rows = [
        Row(2, prompt(hosted, 17), 0, (8, 8, 1)),
        Row(0, prompt(hosted, 3), 0, (3,)),
        Row(3, prompt(hosted, 26), 4, (26,)),
        Row(1, prompt(hosted, 9), 7, (4, 5)),
    ]
    cache = hosted.family.new_cache(hosted, 4, CAPACITY)
    for now in range(16):
        for row in rows:
            if row.joins == now:
                prefill(hosted, cache, row)
        active = [row for row in rows if row.joins <= now and len(row.said) < 12]
        if active:
            decode(hosted, cache, active)
    for row in rows:
        wanted = generated(hosted, row.ids, len(row.said))
        assert len(row.said) >= 8 and row.said == wanted


def test_log_probabilities_are_the_librarys_however_a_prompt_arrives(hosted):
    ids = prompt(hosted, 29)
    cache, start, found = hosted.family.new_cache(hosted, 2, CAPACITY), 0, []
    for piece in (8, 8, 1, 12):
        part = torch.tensor([ids[start : start + piece]])
        found.append(hosted.family.step(hosted, part, cache, [1], [start], every=True)[0])
        start += piece
    wanted = library_logits(hosted, ids)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(
        torch.cat(found).log_softmax(-1), wanted.log_softmax(-1), atol=1e-4, rtol=0
    )
    plain = hosted.family.logits(hosted, torch.tensor([ids]))[0]
    torch.testing.assert_close(plain.log_softmax(-1), wanted.log_softmax(-1), atol=1e-4, rtol=0)
    assert float(wanted.softmax(-1).amax(-1).mean()) > 3 / wanted.shape[-1]


def test_several_rows_bring_pieces_of_one_length_to_their_own_positions(hosted):
    texts = [prompt(hosted, 14, seed) for seed in range(3)]
    cache, starts = hosted.family.new_cache(hosted, 3, CAPACITY), [10, 2, 7]
    for slot, (ids, start) in enumerate(zip(texts, starts, strict=True)):
        hosted.family.step(hosted, torch.tensor([ids[:start]]), cache, [slot], [0])
    new = torch.tensor([ids[s : s + 4] for ids, s in zip(texts, starts, strict=True)])
    found = hosted.family.step(hosted, new, cache, [0, 1, 2], starts, every=True)
    for row, (ids, start) in enumerate(zip(texts, starts, strict=True)):
        wanted = library_logits(hosted, ids[: start + 4])[start:]
        torch.testing.assert_close(found[row], wanted, atol=1e-4, rtol=1e-4)


def test_slots_in_any_order_give_the_same(hosted):
    texts = [prompt(hosted, length) for length in (5, 11, 8)]
    answers = []
    for slots in ([0, 1, 2], [3, 0, 2]):
        cache = hosted.family.new_cache(hosted, 4, CAPACITY)
        for slot, ids in zip(slots, texts, strict=True):
            hosted.family.step(hosted, torch.tensor([ids[:-1]]), cache, [slot], [0])
        last = torch.tensor([ids[-1:] for ids in texts])
        answers.append(hosted.family.step(hosted, last, cache, slots, [4, 10, 7]))
    torch.testing.assert_close(answers[0], answers[1], atol=1e-6, rtol=1e-6)


def test_what_a_slot_held_before_is_not_seen(hosted):
    family, ids = hosted.family, prompt(hosted, 6)
    cache = family.new_cache(hosted, 2, CAPACITY)
    fresh = family.step(hosted, torch.tensor([ids]), cache, [0], [0])
    family.step(hosted, torch.tensor([prompt(hosted, 30)] * 2), cache, [0, 1], [0, 0])
    again = family.step(hosted, torch.tensor([ids, ids]), cache, [0, 1], [0, 0])
    torch.testing.assert_close(again, fresh.expand(2, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_in_bfloat16_logits_are_float32_and_near(kind, hosted_toy, toy_folder):
    from models.loading import load

    model, ids = load("half", toy_folder(kind), dtype="bfloat16"), prompt(hosted_toy(kind), 12)
    cache = model.family.new_cache(model, 1, CAPACITY)
    found = model.family.step(model, torch.tensor([ids]), cache, [0], [0])
    assert found.dtype == torch.float32
    assert cache.slot_layers[0].keys.dtype == torch.bfloat16
    wanted = library_logits(hosted_toy(kind), ids)[-1:]
    assert float((found - wanted).abs().max()) < 0.15 * float(wanted.std())
    model.close()
