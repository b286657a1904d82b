import pytest
import torch

from models.decoder import masks
from models.slot_cache import PrefixCache, SlotCache
from tests.models.language.conftest import prompt

CAPACITY = 40


def last_logits(hosted, cache, slot, ids, start):
    return hosted.family.step(hosted, torch.tensor([ids]), cache, [slot], [start])[0]


def test_a_row_that_is_moved_goes_on_as_it_would_have(hosted):
    ids, cache = prompt(hosted, 13), hosted.family.new_cache(hosted, 3, CAPACITY)
    last_logits(hosted, cache, 2, ids[:12], 0)
    wanted = last_logits(hosted, cache, 2, ids[12:], 12)
    cache.move(2, 0, 12)
    cache.clear(2)
    assert torch.equal(last_logits(hosted, cache, 0, ids[12:], 12), wanted)


def test_a_kept_prefix_is_continued_by_another_row(hosted):
    ids, family = prompt(hosted, 15), hosted.family
    cache, other = (family.new_cache(hosted, 2, CAPACITY) for _ in range(2))
    wanted = last_logits(hosted, cache, 0, ids, 0)
    prefix = cache.copy_prefix(0, 12)
    assert prefix.tokens == 12 and prefix.nbytes == cache.nbytes * 12 // (2 * CAPACITY)
    other.load_prefix(1, prefix.first(10))
    found = last_logits(hosted, other, 1, ids[10:], 10)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_layers_behind_a_prefix_run_for_many_rows_as_they_would_in_full(hosted):
    """Only the last token's stream changes, at layer 1: what an output score measures."""
    ids, family, first = prompt(hosted, 11), hosted.family, 2
    cache = family.new_cache(hosted, 1, CAPACITY)
    with torch.inference_mode(), hosted.captured("lm.block.1") as seen:
        wanted = last_logits(hosted, cache, 0, ids, 0)
        last = seen["lm.block.1"][0][:, -1:]
    prefix = PrefixCache(cache.copy_prefix(0, len(ids) - 1))
    streams = torch.cat([last, last.flip(-1), last])
    with torch.inference_mode():
        left = family.run_layers(hosted, streams, first, prefix)
        found = family.soft_cap(hosted, family.unembed(hosted, left[:, 0]))
    torch.testing.assert_close(found[0], wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[2], found[0], atol=1e-6, rtol=1e-6)
    assert float((found[1] - found[0]).abs().max()) > 0.05


def test_nan_in_a_cleared_slot_does_not_reach_the_next_row(hosted_toy):
    hosted = hosted_toy("llama")
    ids, cache = prompt(hosted, 6), hosted.family.new_cache(hosted, 2, CAPACITY)
    wanted = last_logits(hosted, cache, 0, ids, 0)
    for layer in cache.slot_layers:
        layer.keys[0], layer.values[0] = float("nan"), float("nan")
    cache.clear(0)
    both = torch.tensor([ids, ids])
    hosted.family.step(hosted, torch.tensor([prompt(hosted, 20)]), cache, [1], [0])
    found = hosted.family.step(hosted, both, cache, [0, 1], [0, 20])
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("slots", "starts", "tokens"),
    [([0, 0], [1, 1], 1), ([0], [0, 1], 1), ([2], [0], 1), ([-1], [0], 1), ([], [], 1),
     ([0], [8], 1), ([0], [0], 9), ([0], [-1], 1), ([0], [0], 0)],
)  # fmt: skip
def test_rows_that_do_not_fit_are_refused_before_anything_is_written(slots, starts, tokens):
    cache = SlotCache([(1, 2)], slots=2, capacity=8)
    with pytest.raises(ValueError, match=r"slot|fit"):
        cache.open(slots, starts, tokens)
    assert cache.slot_layers[0].window is None


def test_nobody_writes_without_saying_where():
    cache = SlotCache([(1, 2)], slots=2, capacity=8)
    with pytest.raises(RuntimeError, match="open"):
        cache.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), 0)
    with pytest.raises(ValueError, match="open"):
        cache.starts(1)


def test_new_keys_stand_at_each_rows_own_position():
    cache = SlotCache([(2, 3)], slots=4, capacity=8)
    new = torch.arange(24.0).reshape(2, 2, 2, 3) + 1
    cache.open([3, 1], [5, 0], 2)
    keys, values = cache.update(new, -new, 0)
    held = cache.slot_layers[0]
    assert torch.equal(held.keys[3, :, 5:7], new[0]) and torch.equal(held.keys[1, :, 0:2], new[1])
    assert torch.equal(held.values[3, :, 5:7], -new[0])
    assert int((held.keys != 0).sum()) == new.numel()
    assert torch.equal(keys, held.keys[[3, 1], :, :7]) and torch.equal(values, -keys)


def test_rows_side_by_side_are_read_without_a_copy():
    cache = SlotCache([(2, 3)], slots=4, capacity=8)
    cache.open([1, 2], [5, 0], 1)
    keys, _ = cache.update(torch.ones(2, 2, 1, 3), torch.ones(2, 2, 1, 3), 0)
    assert keys.data_ptr() == cache.slot_layers[0].keys[1].data_ptr()


def test_masks_hide_what_is_ahead_and_what_the_window_has_passed(hosted_toy):
    decoder = hosted_toy("gemma2").family.decoder(hosted_toy("gemma2"))
    positions = torch.tensor([[10, 11], [2, 3]])
    found = masks(decoder, positions, (10, 2), torch.float32, eager=True)
    full, sliding = (found[kind] == 0 for kind in ("full_attention", "sliding_attention"))
    assert full[0, 0].sum(-1).tolist() == [11, 12] and full[1, 0].sum(-1).tolist() == [3, 4]
    assert sliding[0, 0].sum(-1).tolist() == [8, 8] and sliding[1, 0].sum(-1).tolist() == [3, 4]
    assert sliding[0, 0, 1].nonzero().flatten().tolist() == list(range(4, 12))


def test_no_mask_is_built_where_every_key_is_seen(hosted_toy):
    decoder = hosted_toy("llama").family.decoder(hosted_toy("llama"))
    level, ragged = torch.tensor([[4], [4]]), torch.tensor([[4], [3]])
    assert masks(decoder, level, (4, 4), torch.float32, eager=True)["full_attention"] is None
    assert masks(decoder, ragged, (4, 3), torch.float32, eager=False)["full_attention"] is not None
