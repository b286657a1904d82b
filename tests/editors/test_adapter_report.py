import copy

import pytest
import torch

from editors.adapter_report import measure_adapter
from editors.delta import Delta, Factors
from editors.moment import Corpus
from editors.templates import phrasebook_of

SITE = "text_encoder.text_model.encoder.layers.0.mlp.fc2"
CORPUS = Corpus("c", ("a red house", "a small boat by the sea", "an old king", "a tree"))


def adapter(hosted, size, sites=(SITE,)):
    generator = torch.Generator().manual_seed(5)
    factors = {}
    for site in sites:
        out, inner = hosted.linears[site].weight.shape
        left = size * torch.randn(out, 2, generator=generator)
        right = torch.randn(2, inner, generator=generator)
        none = torch.zeros(0, inner)
        factors[site] = Factors(left, right, none, none, torch.zeros(0, out))
    return Delta({"method": "lora"}, factors)


def measured(hosted, delta):
    steps = measure_adapter(hosted, delta, CORPUS, "why")
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_the_leak_is_the_change_of_each_token_one_text_at_a_time(tiny_sd):
    delta = adapter(tiny_sd, 0.1)
    factors, tower = delta.factors[SITE], next(iter(tiny_sd.text_towers.values()))
    change = own = 0.0
    for text in CORPUS.texts:
        with torch.no_grad(), tiny_sd.captured(SITE, f"{SITE}:out") as seen:
            tower.module(input_ids=tower.tokens([text]).ids)
        moved = seen[SITE][0].double() @ (factors.left @ factors.right).double().mT
        change += float(moved.square().sum())
        own += float(seen[f"{SITE}:out"][0].double().square().sum())
    report = measured(tiny_sd, delta)
    assert report.leak == report.sites[SITE].leak == pytest.approx((change / own) ** 0.5, rel=1e-4)


def test_the_drift_is_that_of_an_encoder_whose_weight_was_really_changed(tiny_sd):
    delta = adapter(tiny_sd, 0.1)
    tower = next(iter(tiny_sd.text_towers.values()))
    ids = tower.tokens(["", *phrasebook_of(tiny_sd).captions([], 40)], pad="max").ids
    edited = copy.deepcopy(tower.module)
    factors = delta.factors[SITE]
    with torch.no_grad():
        edited.get_submodule(_path(tiny_sd)).weight += factors.left @ factors.right
        before, after = (
            m(input_ids=ids, output_hidden_states=True).hidden_states[-1].double()
            for m in (copy.deepcopy(tower.module), edited)
        )
    wanted = float((after - before).norm() / before.norm())
    assert measured(tiny_sd, delta).drift == pytest.approx(wanted, rel=1e-3)


def _path(hosted):
    wanted = hosted.linears[SITE]
    named = hosted.modules["text_encoder"].named_modules()
    return next(name for name, found in named if found is wanted)


def test_a_change_of_nothing_measures_as_nothing(tiny_sd):
    report = measured(tiny_sd, adapter(tiny_sd, 0.0))
    assert (report.leak, report.drift, report.sites[SITE].norm) == (0, 0, 0)
    assert report.as_dict()["passed"] is None


def test_every_changed_layer_is_measured_and_the_worst_leak_counts(tiny_sd):
    other = SITE.replace("mlp.fc2", "self_attn.q_proj")
    report = measured(tiny_sd, adapter(tiny_sd, 0.2, (SITE, other)))
    assert set(report.sites) == {SITE, other}
    assert report.leak == max(s.leak for s in report.sites.values())
    assert all(s.rank == 2 and s.relative > 0 for s in report.sites.values())


def test_both_encoders_of_sdxl_are_looked_at(tiny_sdxl):
    site = next(s for s in tiny_sdxl.linears if s.startswith("text_encoder_2.") and "fc2" in s)
    report = measured(tiny_sdxl, adapter(tiny_sdxl, 0.1, (site,)))
    assert report.drift > 0
    assert report.leak > 0
