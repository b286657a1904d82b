"""Prompts that were read before: found again by content, and only by all of it."""

import json
import time
from dataclasses import replace

import pytest
import torch

from engines.slots.request import Finished
from engines.slots.row import Row
from models.family import FAMILIES
from models.loading import load
from models.patch import Clamp, LowRank, Patch, Shift
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


def test_rows_of_two_realms_share_nothing(desk, tiny_llama):
    engine = desk.engine(tiny_llama)
    ours = desk.row(tiny_llama, LONG, realm="acme")
    theirs, nobodys = replace(ours, realm="globex"), replace(ours, realm="")
    found = asked(desk, engine, ours, theirs, nobodys, ours, theirs, nobodys)
    cached = [of.cached_tokens for of in found]
    assert cached[:3] == [0, 0, 0] and min(cached[3:]) > 0
    assert {of.ids for of in found} == {generated(tiny_llama, ours)}


def test_every_block_of_a_row_is_hashed_once(desk, tiny_llama, monkeypatch):
    engine, asked_for = desk.engine(tiny_llama), []
    within = Row.within

    def noted(self, start, tokens=1):
        if tokens == 16:
            asked_for.append(start)
        return within(self, start, tokens)

    monkeypatch.setattr(Row, "within", noted)
    prefixes = engine.scheduler.prefixes
    row = engine._admitted(desk.row(tiny_llama, LONG, patch=shift((1, 2))), lambda _: None)[0]
    prefixes.keys(row, 1)
    keys = prefixes.keys(row, 2)
    assert prefixes.keys(row, 2) == keys and asked_for == [0, 16]


def test_a_long_prompt_that_is_changed_at_named_tokens_costs_no_twice_the_plain_one(desk, tmp_path):
    folder = FAMILIES["llama"].tiny(tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    engine = desk.engine(hosted := load("long", folder), capacity=2000)
    places = tuple(at for at in range(1800) if at % 50)
    clamps = tuple(
        Clamp(
            site="lm.block.1",
            encoder=0.01 * VECTOR,
            encoder_bias=0.0,
            decoder=0.01 * VECTOR,
            value=number,
            positions=places,
        )
        for number in (0.1, 0.2, 0.3)
    )

    def seconds(first, patch):
        row = desk.row(hosted, (first, *(5 + i * 7 % 400 for i in range(1799))), patch=patch)
        started = time.process_time()
        (found,) = asked(desk, engine, row)
        assert found.cached_tokens == 0
        return time.process_time() - started

    turns = [(seconds(5 + i, Patch()), seconds(15 + i, Patch(clamps))) for i in range(4)]
    plain, steered = (min(of) for of in zip(*turns[1:], strict=True))
    assert steered < 2 * plain


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
        seen.add(made.keys(row, 1)[0])

    keys()
    monkeypatch.setattr(tiny_llama, "fingerprint", "other")
    keys()
    monkeypatch.setattr(tiny_llama, "dtype", torch.bfloat16)
    keys()
    monkeypatch.setattr(tiny_llama.family, "default_attention", "eager")
    keys()
    assert len(seen) == 4
