"""Swaps equal the library's own forward with plain hooks, one row at a time."""

from contextlib import ExitStack

import pytest
import torch

from evaluation.variables.featurizers import FULL, Directions, Featurizer
from evaluation.variables.trials import Trial, Trials
from evaluation.variables.units import Unit, head_width, width
from models.errors import PatchNotApplied
from models.family import FAMILIES
from models.loading import load
from tests.evaluation.variables.conftest import drawn, held_plainly, swapped_plainly, tabled

EVERY = torch.arange(3)


def turned(d, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(d, n, generator=generator)).Q
    return Featurizer(kind="das", features=Directions(rotation=rotation))


def hooks_of(hosted):
    return sum(len(m._forward_pre_hooks) for m in hosted.modules["lm"].modules())


def plainly(hosted, swap, handle, featurizers):
    """Logits behind the base's last token, every unit swapped by hooks of the library's forward."""
    changes = []
    for unit, featurizer in zip(handle, featurizers, strict=True):
        here, there = swap.positions.get(unit.position, (slice(None), slice(None)))
        source = held_plainly(hosted, swap.counterfactual, unit, there)
        changes.append((unit, here, lambda x, f=featurizer, s=source: f(x, s)))
    with torch.no_grad():
        return swapped_plainly(hosted, swap.base, changes)[len(swap.base) - 1]


@pytest.mark.parametrize("featurizer", ["full", "subspace"])
@pytest.mark.parametrize("position", ["mid", "last_token"])
def test_a_stream_swap_is_the_library_s_forward_with_a_hook(decoder, position, featurizer):
    # Longer than the window of layers that look back only so far.
    swaps = drawn(decoder, ((7, 9), (13, 7), (12, 12)))
    for layer in range(len(decoder.family.decoder(decoder).layers)):
        unit = Unit(layer=layer, position=position)
        made = FULL if featurizer == "full" else turned(width(decoder, unit), 5)
        trials = Trials(hosted=decoder, table=tabled(swaps), units=(unit,))
        found = trials.logits([Trial((unit,), (made,))], EVERY)[0, :, 0]
        plain = torch.stack([plainly(decoder, swap, (unit,), (made,)) for swap in swaps])
        torch.testing.assert_close(found, plain, atol=2e-4, rtol=2e-4)


def test_heads_are_swapped_before_w_o_and_jointly_over_layers(decoder):
    lengths = ((8, 8), (7, 7), (9, 9))
    swaps = drawn(decoder, lengths)
    handle = tuple(Unit(layer=i, head=h, position="all") for i, h in ((0, 2), (2, 1), (2, 3)))
    made = tuple(turned(head_width(decoder, u.layer), 3, seed) for seed, u in enumerate(handle))
    trials = Trials(hosted=decoder, table=tabled(swaps, ("all",)), units=handle)
    found = trials.logits([Trial(handle, made)], EVERY)[0, :, 0]
    plain = torch.stack([plainly(decoder, swap, handle, made) for swap in swaps])
    torch.testing.assert_close(found, plain, atol=2e-4, rtol=2e-4)
    assert not torch.allclose(plain, torch.stack([unswapped(decoder, s) for s in swaps]), atol=1e-2)


def unswapped(hosted, swap):
    with torch.no_grad():
        return swapped_plainly(hosted, swap.base, [])[len(swap.base) - 1]


def test_a_counterfactual_that_is_the_base_changes_nothing(decoder):
    swaps = [
        type(s)(**{**vars(s), "counterfactual": s.base, "positions": {"mid": (3, 3)}})
        for s in drawn(decoder)
    ]
    unit, head = Unit(layer=1, position="mid"), Unit(layer=2, position="mid", head=1)
    trials = Trials(hosted=decoder, table=tabled(swaps, ("mid",)), units=(unit, head))
    own = turned(width(decoder, unit), 4)
    found = trials.logits([Trial((unit,), (own,)), Trial((unit, head), (FULL, FULL))], EVERY)
    plain = torch.stack([unswapped(decoder, swap) for swap in swaps])
    torch.testing.assert_close(found[0, :, 0], plain, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(found[1, :, 0], plain, atol=2e-4, rtol=2e-4)


def test_the_whole_stream_at_all_positions_gives_the_counterfactual_s_answer(decoder):
    swaps = drawn(decoder, ((8, 8), (6, 6)))
    for layer in range(len(decoder.family.decoder(decoder).layers)):
        unit = Unit(layer=layer, position="all")
        trials = Trials(hosted=decoder, table=tabled(swaps, ("all",)), units=(unit,))
        found = trials.logits([Trial((unit,), (FULL,))], torch.arange(2))[0, :, 0]
        with torch.no_grad():
            plain = [swapped_plainly(decoder, s.counterfactual, [])[-1] for s in swaps]
        torch.testing.assert_close(found, torch.stack(plain), atol=2e-4, rtol=2e-4)


def test_as_many_directions_as_numbers_are_the_whole_unit(llama):
    unit = Unit(layer=1, position="mid")
    trials = Trials(hosted=llama, table=tabled(drawn(llama)), units=(unit,))
    d = width(llama, unit)
    whole, rotated = trials.logits(
        [Trial((unit,), (FULL,)), Trial((unit,), (turned(d, d),))], EVERY
    )
    torch.testing.assert_close(rotated, whole, atol=1e-4, rtol=1e-4)


def test_an_empty_choice_is_the_base(llama):
    unit = Unit(layer=1, position="mid")
    swaps = drawn(llama)
    trials = Trials(hosted=llama, table=tabled(swaps), units=(unit,))
    nothing = turned(width(llama, unit), 4).choosing(())
    assert nothing.empty
    found = trials.logits([Trial((unit,), (nothing,))], EVERY)[0, :, 0]
    plain = torch.stack([unswapped(llama, swap) for swap in swaps])
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)


def test_trials_that_share_a_forward_do_not_meet(decoder):
    units = [Unit(layer=1, position=p) for p in ("mid", "last_token")]
    trials = Trials(hosted=decoder, table=tabled(drawn(decoder)), units=tuple(units))
    wanted = [Trial((u,), (turned(width(decoder, u), 3, i),)) for i, u in enumerate(units)]
    shared = trials.logits(wanted, EVERY)
    for trial, found in zip(wanted, shared, strict=True):
        for row in range(3):
            alone = trials.logits([trial], torch.tensor([row]))[0, 0]
            torch.testing.assert_close(found[row], alone, atol=1e-4, rtol=1e-4)


def test_clean_parts_beyond_the_budget_are_read_again(llama, monkeypatch):
    monkeypatch.setattr("evaluation.variables.trials.ROWS", 2)
    unit = Unit(layer=0, position="mid")
    wanted = [Trial((unit,), (FULL,))]
    kept = Trials(hosted=llama, table=tabled(drawn(llama)), units=(unit,))
    bare = Trials(hosted=llama, table=tabled(drawn(llama)), units=(unit,), budget=0)
    order = torch.tensor([2, 0])
    torch.testing.assert_close(kept.logits(wanted, order), bare.logits(wanted, order))
    for _ in range(3):
        kept.logits(wanted, order)
        bare.logits(wanted, order)
    assert kept.cost.forwards < bare.cost.forwards


def test_trials_share_only_what_begins_alike(llama):
    swaps = drawn(llama, ((12, 12), (12, 12), (12, 12)))
    units = [Unit(layer=i, position=p) for i in (0, 1) for p in ("mid", "last_token", "all")]
    table = tabled(swaps, ("mid", "last_token", "all"))
    trials = Trials(hosted=llama, table=table, units=tuple(units))
    groups = list(trials.together([Trial((u,), (FULL,)) for u in units], 3))
    # `mid` is 10 tokens before the end at most, `all` 12: like enough; `last_token` is one.
    assert sorted(map(sorted, groups)) == [[0, 2], [1], [3, 5], [4]]


def test_only_the_layers_above_and_the_tokens_behind_run_again(llama):
    unit = Unit(layer=1, position="last_token")
    trials = Trials(hosted=llama, table=tabled(drawn(llama)), units=(unit,))
    wanted = [Trial((unit,), (FULL,))]
    trials.logits(wanted, EVERY)
    seen = []
    with ExitStack() as undo:
        for number, layer in enumerate(llama.family.decoder(llama).layers):
            hook = layer.register_forward_pre_hook(
                lambda _m, args, i=number: seen.append((i, args[0].shape[1]))
            )
            undo.callback(hook.remove)
        trials.logits(wanted, EVERY)
    assert seen == [(2, 1), (3, 1)]


def test_in_float64_nothing_is_left_but_the_logits_own_rounding(tmp_path):
    hosted = load("exact", FAMILIES["gpt2"].tiny(tmp_path / "gpt2", seed=4))
    hosted.modules["lm"].double()
    hosted.dtype = torch.float64
    swaps = drawn(hosted)
    for unit in (Unit(layer=1, position="mid"), Unit(layer=1, position="mid", head=2)):
        d, seed = width(hosted, unit), torch.Generator().manual_seed(2)
        w = torch.linalg.qr(torch.randn(d, 3, generator=seed, dtype=torch.float64)).Q
        made = Featurizer(kind="das", features=Directions(rotation=w))
        trials = Trials(hosted=hosted, table=tabled(swaps), units=(unit,))
        found = trials.logits([Trial((unit,), (made,))], EVERY)[0, :, 0]
        plain = torch.stack([plainly(hosted, swap, (unit,), (made,)) for swap in swaps])
        torch.testing.assert_close(found, plain, atol=1e-6, rtol=3e-7)
    hosted.close()


def test_a_swap_that_is_not_made_is_an_error_and_leaves_no_hook(llama, monkeypatch):
    unit = Unit(layer=1, position="mid")
    trials = Trials(hosted=llama, table=tabled(drawn(llama)), units=(unit,))
    before = hooks_of(llama)

    def broken(_base, _source):
        raise RuntimeError("in the middle of a forward")

    with pytest.raises(RuntimeError, match="in the middle"):
        trials.logits([Trial((unit,), (broken,))], EVERY)
    assert hooks_of(llama) == before
    layers = llama.family.decoder(llama).layers
    monkeypatch.setattr(layers[2], "_call_impl", lambda stream, **_: stream)
    with pytest.raises(PatchNotApplied):
        trials.logits([Trial((unit,), (FULL,))], EVERY)
    assert hooks_of(llama) == before
