"""Prompts that were read before: found again by content, and only by all of it."""

from dataclasses import replace

import pytest
import torch

from engines.slots.request import Finished
from models.patch import LowRank, Patch, Shift
from tests.engines.slots.conftest import TEXTS, generated, patch

VECTOR = torch.linspace(-2, 2, 32)
LONG = " ".join(TEXTS)


def shift(positions="all"):
    return Patch((Shift(site="lm.block.0", vector=VECTOR, positions=positions),))


def asked(desk, engine, *rows):
    """One after another, so that each knows what the others left."""
    return [desk.ask(engine, row)[0].last for row in rows]


def test_a_known_prompt_is_not_read_again_and_is_answered_alike(desk, tiny_llama):
    engine, row = desk.engine(tiny_llama), desk.row(tiny_llama, LONG)
    first, again = asked(desk, engine, row, row)
    assert first.ids == again.ids == generated(tiny_llama, row)
    assert (first.cached_tokens, again.cached_tokens) == (0, (len(row.ids) - 1) // 16 * 16)
    assert engine.load()["prefix_hit_tokens"] == again.cached_tokens > 0
    assert again.first_token > 0


@pytest.mark.parametrize(
    "other",
    [
        shift(),
        shift("prompt"),
        shift((3,)),
        Patch(
            (
                LowRank(
                    site="lm.layers.0.mlp.down_proj", left=VECTOR[:, None], right=torch.ones(1, 64)
                ),
            )
        ),
    ],
)
def test_a_steered_prefix_is_never_served_to_a_plain_row_nor_the_other_way(desk, tiny_llama, other):
    plain = desk.row(tiny_llama, LONG)
    steered = replace(plain, patch=other)
    for order in ((steered, plain), (plain, steered)):
        found = asked(desk, desk.engine(tiny_llama), *order)
        assert [of.cached_tokens for of in found] == [0, 0]
        assert found[order.index(plain)].ids == generated(tiny_llama, plain)


def test_a_row_that_is_steered_behind_the_prompt_shares_the_plain_prefix(desk, tiny_llama):
    plain = desk.row(tiny_llama, LONG)
    steered = replace(plain, patch=shift("generated"))
    known, fresh = (
        asked(desk, desk.engine(tiny_llama, cache_bytes=size), plain, steered)
        for size in (2**24, 0)
    )
    assert known[1].cached_tokens > 0 and fresh[1].cached_tokens == 0
    assert known[1].ids == fresh[1].ids != known[0].ids


def test_where_the_last_token_is_steered_only_prompts_that_end_elsewhere_share(desk, tiny_llama):
    ids = desk.row(tiny_llama, LONG).ids[:33]
    longer = desk.row(tiny_llama, ids, patch=shift("last"))
    shorter = replace(longer, ids=ids[:32])
    engine = desk.engine(tiny_llama)
    found = asked(desk, engine, shorter, longer, replace(shorter, ids=(*ids[:32], *ids[:8])))
    assert [of.cached_tokens for of in found] == [0, 16, 32]
    alone = [asked(desk, desk.engine(tiny_llama, cache_bytes=0), r)[0] for r in (shorter, longer)]
    assert [of.ids for of in found[:2]] == [of.ids for of in alone]


def test_cached_tokens_count_as_changed_as_they_were_when_they_were_read(desk, tiny_llama):
    both = shift() | patch(2) | shift((1, 20))
    row = desk.row(tiny_llama, LONG, patch=both)
    first, again = asked(desk, desk.engine(tiny_llama), row, row)
    assert again.cached_tokens > 0 and first.tokens_changed == again.tokens_changed


def test_an_answer_becomes_part_of_the_next_prompt(desk, tiny_llama):
    engine, row = desk.engine(tiny_llama), desk.row(tiny_llama, LONG, max_tokens=40)
    (first,) = asked(desk, engine, row)
    after = replace(row, ids=(*row.ids, *first.ids, 5), max_tokens=6)
    (second,) = asked(desk, engine, after)
    assert second.cached_tokens > len(row.ids)
    assert second.ids == generated(tiny_llama, after)


def test_texts_of_one_prompt_read_it_once(desk, tiny_llama):
    engine, row = desk.engine(tiny_llama), desk.row(tiny_llama, LONG, n=3)
    (tell,) = desk.ask(engine, row)
    assert tell.over.wait(60)
    cached = {e.choice: e.cached_tokens for e in tell.events if isinstance(e, Finished)}
    assert cached[0] == 0 and cached[1] == cached[2] > 0


def test_it_is_bounded_in_bytes(desk, tiny_llama):
    engine = desk.engine(tiny_llama, cache_bytes=20_000)
    asked(desk, engine, *(desk.row(tiny_llama, text) for text in (LONG, LONG[20:])))
    kept = engine.scheduler.prefixes.kept
    assert 0 < kept.used <= 20_000 and len(kept) > 0
    assert len(kept) * 16 < len(desk.row(tiny_llama, LONG).ids) * 2


def test_other_weights_dtypes_and_attention_have_other_keys(desk, tiny_llama, monkeypatch):
    engine = desk.engine(tiny_llama)
    prefixes, seen = engine.scheduler.prefixes, set()
    row = engine._admitted(desk.row(tiny_llama, LONG), lambda _: None)[0]

    def keys():
        made = type(prefixes)(tiny_llama, tiny_llama.family, 1000)
        seen.add(next(made.keys(row, 1)))

    keys()
    monkeypatch.setattr(tiny_llama, "fingerprint", "other")
    keys()
    monkeypatch.setattr(tiny_llama, "dtype", torch.bfloat16)
    keys()
    monkeypatch.setattr(tiny_llama.family, "default_attention", "eager")
    keys()
    assert len(seen) == 4
