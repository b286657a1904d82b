from itertools import pairwise

import pytest
import torch

from evaluation.audit import EditAudit, Suite, audit
from evaluation.behaviours.pairs import Pair
from miniature import weights_path
from miniature.world import make_world
from models.loading import load
from models.patch import LowRank, Patch
from service.vocabularies import vocabularies

SITE = "lm.layers.3.mlp.down_proj"


@pytest.fixture(scope="module")
def miniature_lm():
    return load("miniature-lm", weights_path("language"))


@pytest.fixture(scope="module")
def suites():
    told = vocabularies()["miniature"].behaviours()
    return [
        Suite(name="indirect object", pairs=tuple(told["ioi"].pairs(10, 1))),
        Suite(name="choices", pairs=tuple(told["mcqa"].pairs(3, 1))),
    ]


def change(hosted, size):
    weight = hosted.linears[SITE].weight
    draw = torch.Generator().manual_seed(1)
    left = torch.randn((weight.shape[0], 1), generator=draw)
    right = torch.randn((1, weight.shape[1]), generator=draw)
    return Patch((LowRank(site=SITE, left=left * size, right=right),))


def drain(work):
    while True:
        try:
            next(work)
        except StopIteration as over:
            return over.value


def test_a_change_of_nothing_changes_nothing_and_passes(miniature_lm, suites):
    before = miniature_lm.weights_digest()
    found = drain(audit(miniature_lm, change(miniature_lm, 1e-9), suites, EditAudit(steps=2)))
    first, few = found.suites
    assert first.m_before == pytest.approx(first.m_after, abs=1e-4) and first.unchanged == 1.0
    assert first.circuit.score_correlation == pytest.approx(1.0, abs=1e-5)
    assert first.circuit.change == pytest.approx(0.0, abs=1e-3)
    assert first.circuit.cmd_before == pytest.approx(first.circuit.cmd_after, abs=1e-3)
    assert set(first.circuit.f_before) == {"0.05", "0.1", "0.2"}
    assert (first.verdict, few.verdict, found.verdict) == ("pass", "inconclusive", "inconclusive")
    assert few.dropped == () and few.pairs == 3
    assert miniature_lm.weights_digest() == before


def test_a_large_change_is_seen_in_probes_and_circuit(miniature_lm, suites):
    found = drain(audit(miniature_lm, change(miniature_lm, 3.0), suites[:1], EditAudit(steps=2)))
    (told,) = found.suites
    assert told.drift > 0.05 and told.m_after != pytest.approx(told.m_before, abs=0.1)
    assert told.circuit.score_correlation < 0.999
    assert told.verdict == "fail" == found.verdict
    assert found.as_dict()["suites"][0]["circuit"]["f_after"].keys() == {"0.05", "0.1", "0.2"}


def test_a_text_encoder_is_audited_by_what_it_is_near_to():
    hosted = load("miniature-sd", weights_path("text-to-image"))
    tower = hosted.text_towers["text_encoder"]
    weight = tower.fc2(2).weight
    draw = torch.Generator().manual_seed(1)
    left = torch.randn((weight.shape[0], 1), generator=draw)
    right = torch.randn((1, weight.shape[1]), generator=draw)
    patch = Patch((LowRank(site=tower.fc2_site(2), left=left, right=right),))
    named = [r for r in make_world().roles if r.title == "president"][:6]
    pairs = tuple(
        Pair(
            clean=f"the president of {a.country}",
            corrupted=f"the president of {b.country}",
            correct=a.holder,
            incorrect=b.holder,
        )
        for a, b in pairwise(named)
    )
    suite, settings = [Suite(name="presidents", pairs=pairs)], EditAudit(least=3)
    found = drain(audit(hosted, patch, suite, settings)).suites[0]
    assert found.drift > 1e-3 and found.circuit is None
    assert found.right_before == 1.0 and found.verdict in {"pass", "fail"}
    still = drain(audit(hosted, Patch(), suite, settings)).suites[0]
    assert still.drift == pytest.approx(0.0, abs=1e-6) and still.verdict == "pass"
