import json
from itertools import pairwise

import pytest
import torch

from evaluation import advice
from evaluation.advice import LayerAdvice, advise
from evaluation.behaviours.pairs import Pair, prepare
from evaluation.edited import merged
from evaluation.errors import NothingToTrace, NotInWeights
from evaluation.evidence_plots import advice_png
from evaluation.evidence_report import page
from evaluation.tracing import Trace, prepare_texts, trace_decoder, trace_encoder
from miniature import weights_path
from miniature.world import make_world
from models.errors import MethodNotApplicable
from models.loading import load
from models.patch import LowRank, Patch, Shift
from service.vocabularies import vocabularies

WORLD = make_world()


@pytest.fixture(scope="module")
def miniature_lm():
    return load("miniature-lm", weights_path("language"))


@pytest.fixture(scope="module")
def miniature_sd():
    return load("miniature-sd", weights_path("text-to-image"))


@pytest.fixture(scope="module")
def sums():
    return vocabularies()["miniature"].behaviours()["ioi"].pairs(6, 3)


@pytest.fixture(scope="module")
def presidents():
    named = [r for r in WORLD.roles if r.title == "president"][:7]
    return [
        Pair(
            clean=f"the president of {a.country}",
            corrupted=f"the president of {b.country}",
            correct=a.holder,
            incorrect=b.holder,
        )
        for a, b in pairwise(named)
    ]


def drain(work):
    told = []
    while True:
        try:
            told.append(next(work))
        except StopIteration as over:
            return told, over.value


def test_a_restored_stream_is_what_a_plain_replacement_gives(miniature_lm, sums):
    """Against hooks of the test's own, which put the clean stream there."""
    (pair, *_) = prepare(sums, miniature_lm).kept
    (trace,) = trace_decoder(miniature_lm, [pair])
    layers = miniature_lm.towers["lm"]
    at = [i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupted, strict=True)) if a != b][-1]
    for layer in (0, 2, 4):
        kept = {}

        def keep(_module, _args, out, kept=kept):
            kept["stream"] = out.clone()

        def put(_module, _args, out, kept=kept):
            changed = out.clone()
            changed[:, at] = kept["stream"][:, at]
            return changed

        ids = [torch.tensor([told]) for told in (pair.clean, pair.corrupted)]
        with torch.inference_mode():
            hook = layers[layer].register_forward_hook(keep)
            miniature_lm.family.logits(miniature_lm, ids[0])
            hook.remove()
            hook = layers[layer].register_forward_hook(put)
            logits = miniature_lm.family.logits(miniature_lm, ids[1])[0, -1]
            hook.remove()
        wanted = logits[pair.correct] - logits[pair.incorrect]
        torch.testing.assert_close(
            trace.restored["subject"][layer].float(), wanted, rtol=1e-4, atol=1e-4
        )


def test_the_last_layer_at_the_last_token_restores_everything(miniature_lm, miniature_sd, sums):
    for trace in trace_decoder(miniature_lm, prepare(sums, miniature_lm).kept):
        assert float(trace.restored["last"][-1]) == pytest.approx(trace.clean, abs=1e-3)
    tower = miniature_sd.text_towers["text_encoder"]
    told = Pair(clean="a blue car", corrupted="a red car", correct="blue", incorrect="red")
    for trace in trace_encoder(miniature_sd, tower, [told]):
        assert float(trace.restored["last"][-1]) == pytest.approx(trace.clean, abs=1e-4)
        assert float(trace.restored["last"][0]) != pytest.approx(trace.clean, abs=1e-4)


def test_the_miniature_decides_late_at_the_last_token(miniature_lm, sums):
    told, found = drain(advise(miniature_lm, sums, LayerAdvice(operation="sae", steps=2)))
    assert {step.stage for step in told} == {"tracing", "attribution"}
    assert found.m_clean > 5 > -5 > found.m_corrupted
    last = [layer.effects["last"].value for layer in found.layers]
    assert last[0] < 0.1 and last[-1] == pytest.approx(1.0, abs=1e-3)
    assert found.ranked and len(found.layers) - 1 not in found.ranked
    first, until = found.recommended
    assert first <= found.ranked[0] <= until
    for layer in found.layers:
        assert layer.effects["last"].low <= layer.effects["last"].value + 1e-9
        assert layer.score.low <= layer.score.value <= layer.score.high
    strongest = max(found.layers, key=lambda layer: layer.score.value)
    assert strongest.score.value > 1


def test_a_fact_is_edited_where_its_subject_is_still_read(miniature_sd, presidents):
    _, found = drain(advise(miniature_sd, presidents, LayerAdvice(operation="refact")))
    subject = [layer.effects["subject"].value for layer in found.layers]
    assert found.pairs >= 4 and subject[0] > 0.8
    assert subject[-1] == pytest.approx(0.0, abs=1e-3)  # behind the last block [EOS] reads nothing
    assert found.recommended is not None
    first, last = found.recommended
    assert subject[last] >= 0.5 and first <= found.ranked[0] <= last
    assert found.as_dict()["layers"][0]["effects"]["subject_mlp"]["low"] is not None


def test_pairs_that_cannot_be_traced_fall_out_or_are_refused(miniature_sd, miniature_lm, sums):
    tower = miniature_sd.text_towers["text_encoder"]
    same = Pair(clean="a car", corrupted="a car", correct="x", incorrect="y")
    longer = Pair(clean="a car", corrupted="a blue car", correct="x", incorrect="y")
    kept, dropped = prepare_texts(tower, [same, longer])
    assert not kept and len(dropped) == 2
    with pytest.raises(NothingToTrace):
        drain(advise(miniature_sd, [same], LayerAdvice(operation="refact")))
    turned = [
        Pair(clean=p.corrupted, corrupted=p.clean, correct=p.correct, incorrect=p.incorrect)
        for p in sums
    ]
    with pytest.raises(NothingToTrace, match="below"):
        drain(advise(miniature_lm, turned, LayerAdvice(operation="sae")))
    with pytest.raises(MethodNotApplicable):
        drain(advise(miniature_lm, sums, LayerAdvice(operation="refact")))
    with pytest.raises(MethodNotApplicable):
        drain(advise(miniature_sd, sums, LayerAdvice(operation="sae")))


def trace(clean, corrupted, *restored):
    told = torch.tensor(restored, dtype=torch.float64)
    return Trace(clean=clean, corrupted=corrupted, restored={"last": told})


def test_where_the_loss_may_be_nothing_no_share_is_told(miniature_lm, monkeypatch):
    """The interval of the loss covers 0, or nearly: a ratio would be of any size."""
    settings = LayerAdvice(operation="sae", steps=1)
    told = vocabularies()["miniature"].behaviours()["ioi"].pairs(4, 3)
    for losses, why in (
        ((4.0, -3.9, 0.5, -0.1), "covers 0"),
        ((0.011, 0.009, 0.05, 0.008), "begins below 0.01"),
    ):
        traces = [trace(loss, 0.0, loss / 2, loss) for loss in losses]
        monkeypatch.setattr(advice, "trace_decoder", lambda *_, t=traces: iter(t))
        _, found = drain(advise(miniature_lm, told, settings))
        assert why in found.inconclusive and found.lost.value == pytest.approx(sum(losses) / 4)
        assert found.lost.low < 0.01 and found.recommended is None and not found.ranked
        assert all(not layer.effects for layer in found.layers) and len(found.layers) == 2
        text = page("layer_advice", json.loads(json.dumps(found.as_dict())), {})
        assert "**Inconclusive**" in text and why in text and "**none**" in text
        assert advice_png(found).startswith(b"\x89PNG")


def test_where_the_loss_is_sure_intervals_hold_their_value(miniature_lm, monkeypatch):
    settings = LayerAdvice(operation="sae", steps=1)
    told = vocabularies()["miniature"].behaviours()["ioi"].pairs(4, 3)
    traces = [trace(loss, 0.0, loss * 0.75, loss) for loss in (4.0, 3.0, 5.0, 4.0)]
    monkeypatch.setattr(advice, "trace_decoder", lambda *_: iter(traces))
    _, found = drain(advise(miniature_lm, told, settings))
    assert found.inconclusive is None and found.ranked == (0,)
    effect = found.layers[0].effects["last"]
    assert (effect.low, effect.value, effect.high) == pytest.approx((0.75, 0.75, 0.75))
    assert found.lost.low < found.lost.value == 4.0 < found.lost.high


def test_a_merged_edit_is_the_patch_and_leaves_the_very_weights(miniature_lm, sums):
    (pair, *_) = prepare(sums, miniature_lm).kept
    site = "lm.layers.2.mlp.down_proj"
    weight = miniature_lm.linears[site].weight
    draw = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(s, generator=draw) * 0.2 for s in ((weight.shape[0], 2), (2, weight.shape[1]))
    )
    patch = Patch((LowRank(site=site, left=left, right=right),))
    ids, before = torch.tensor([pair.clean]), miniature_lm.weights_digest()
    with torch.inference_mode():
        plain = miniature_lm.family.logits(miniature_lm, ids)
        with miniature_lm.planned([patch]):
            wanted = miniature_lm.family.logits(miniature_lm, ids)
        with merged(miniature_lm, patch):
            found = miniature_lm.family.logits(miniature_lm, ids)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert float((found - plain).abs().max()) > 0.1
    assert miniature_lm.weights_digest() == before
    shift = Patch((Shift(site="lm.block.1", vector=torch.ones(192)),))
    with pytest.raises(NotInWeights), merged(miniature_lm, patch | shift):
        pass
    assert miniature_lm.weights_digest() == before
