"""Gates on the miniature: sets of SAE features that carry a letter, features that do not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluation.behaviours.swaps import PreparedSwaps, prepare_swaps
from evaluation.gate_bars import plot
from evaluation.gate_meter import Meter
from evaluation.gates import FeatureGate, Gate, Measured, gate, judged
from evaluation.variables.errors import BadStudy
from evaluation.variables.objective import contains
from evaluation.variables.table import table
from evaluation.variables.trials import Trials
from evaluation.variables.units import Unit
from miniature import weights_path
from models.loading import load
from models.patch import Patch, Shift
from service.settings import Evidence
from service.vocabularies import miniature
from steerers.errors import UnknownFeature, WrongDictionary
from steerers.output_score import Scorer
from steerers.readers import read
from tests.steerers.conftest import random_dictionary

TEXTS = ("Once upon a time there was a ship.", "The forest is green.", "Ann bought a hat.")


@pytest.fixture(scope="module")
def hosted():
    model = load("miniature-lm", weights_path("language"))
    yield model
    model.close()


@pytest.fixture(scope="module")
def sae():
    return read(weights_path("saes") / "block-4-topk")


@pytest.fixture(scope="module")
def swaps(hosted):
    told = miniature().behaviours()["mcqa"].swaps(60, seed=3, sets=["answerPosition"])
    return prepare_swaps(told, hosted)


@pytest.fixture(scope="module")
def meter(hosted, sae, swaps):
    rows = table(swaps.kept, "answer", ["last_token"])
    trials = Trials(hosted=hosted, table=rows, units=(Unit(layer=4, position="last_token"),))
    return Meter(trials=trials, dictionary=sae, checker=contains, new_tokens=1, strength=1.0)


@pytest.fixture(scope="module")
def far(meter):
    """The sixteen features that swaps move the furthest."""
    return tuple(meter._reach.argsort(descending=True)[:16].tolist())


@pytest.fixture(scope="module")
def report(hosted, sae, swaps, far):
    return drained(
        gate(hosted, sae, swaps, TEXTS, Gate(variable="answer", features=far, jointly=True))
    )


def drained(work):
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def test_a_set_that_carries_the_letter_passes_where_matched_ones_would_not(report, far):
    (only,) = report.gates
    assert only.features == far and report.kept == 60 and report.no_op == 0
    assert only.verdict == "pass" and not only.reasons
    assert only.iia.value >= only.bar >= report.iia_full_vector.value / 2
    assert only.iia_random_matched.value <= 0.1
    assert only.iia.low <= only.iia.value <= only.iia.high
    assert only.effect_on_metric.low > 0 and only.effect_on_metric.rows == 60
    assert 0 < only.off_target_kl.value <= Gate(variable="x", features=(1,)).kappa


def test_single_features_raise_the_answer_and_are_no_handles(hosted, sae, swaps, far):
    asked = Gate(variable="answer", features=far[:2], draws=2)
    found = drained(gate(hosted, sae, swaps, TEXTS, asked))
    scores = Scorer(hosted=hosted, dictionary=sae).score(far[:2])
    for one, score in zip(found.gates, scores, strict=True):
        assert one.verdict == "fail" and any("IIA" in reason for reason in one.reasons)
        assert one.effect_on_metric.low > 0 and 0 < one.effect_on_metric.rows < 60
        assert one.output_score == score.output_score
    json.dumps(found.as_dict())


def test_steering_is_what_a_request_does(hosted, sae, meter, swaps, far):
    feature = far[0]
    shift = Shift(site=sae.site, vector=meter.coefficient * sae.decoder[feature], positions="last")
    base, source = (held[:, 0] for held in meter._held)
    more = (sae.encode(source) - sae.encode(base))[:, feature] > 0
    raised = []
    for swap in (s for s, m in zip(swaps.kept, more.tolist(), strict=True) if m):
        ids = torch.tensor([swap.base])
        last = replace(shift, positions=(len(swap.base) - 1,))
        with torch.no_grad():
            plain = hosted.family.logits(hosted, ids)[0, -1]
            with hosted.planned([Patch((last,))]):
                steered = hosted.family.logits(hosted, ids)[0, -1]
        wanted, own = swap.expected["answer"][0], swap.base_answer[0]
        raised.append(float((steered - plain)[wanted] - (steered - plain)[own]))
    np.testing.assert_allclose(meter.effect((feature,)), raised, atol=1e-3)


def test_the_off_target_kl_is_the_formula_text_by_text(hosted, sae, meter, far):
    found = meter.off_target(far[:2], TEXTS)
    vector = meter.coefficient * sae.decoder[list(far[:2])].mean(0)
    patch = Patch((Shift(site=sae.site, vector=vector, positions="all"),))
    for text, own in zip(TEXTS, found, strict=True):
        ids = torch.tensor([hosted.family.tokenize(hosted, text)])
        with torch.no_grad():
            p = hosted.family.logits(hosted, ids)[0].double().log_softmax(-1)
            with hosted.planned([patch]):
                q = hosted.family.logits(hosted, ids)[0].double().log_softmax(-1)
        assert own == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)


def test_matched_features_move_the_stream_as_far_and_are_others(meter, far):
    drawn = meter.matched(far[:4], 3, seed=0)
    assert drawn == meter.matched(far[:4], 3, seed=0) != meter.matched(far[:4], 3, seed=1)
    for some in drawn:
        assert len(set(some)) == 4 and not set(some) & set(far[:4])
    quiet = int(meter._reach.argsort()[0])
    assert float(meter._reach[list(meter.matched((quiet,), 1, 0)[0])].sum()) == 0.0


def at(value, rows=60):
    return Measured(value=value, low=value, high=value, rows=rows)


def test_the_policy_by_its_numbers():
    found = FeatureGate(
        features=(1,),
        iia=at(0.45),
        iia_random_matched=at(0.1),
        effect_on_metric=None,
        off_target_kl=at(0.05),
        output_score=None,
        bar=0.0,
        verdict="inconclusive",
        reasons=(),
    )
    policy = Gate(variable="x", features=(1,))

    def verdict(changed=found, full=0.8, kept=60, no_op=0.0, **stated):
        return judged(changed, at(full), kept, no_op, replace(policy, **stated))

    assert verdict().verdict == "pass" and verdict().bar == 0.4
    assert verdict(full=1.0).verdict == "fail" and verdict(full=1.0).bar == 0.5
    assert verdict(tau=0.46).verdict == "fail"
    assert verdict(margin=0.4).verdict == "fail" and verdict(margin=0.4).bar == 0.5
    assert verdict(kappa=0.02).verdict == "fail"
    assert verdict(kept=49).verdict == "inconclusive"
    assert verdict(kept=49, least=40).verdict == "pass"
    assert verdict(full=0.3, no_op=0.3).verdict == "inconclusive"
    assert verdict(replace(found, off_target_kl=None)).verdict == "inconclusive"
    assert len(verdict(replace(found, iia=at(0.1)), kept=2).reasons) == 2


def test_a_gate_that_is_asked_plainly_is_as_strict_as_a_plain_policy():
    policy, asked = Evidence(), Gate(variable="x", features=(1,))
    assert (policy.kappa, policy.margin) == (asked.kappa, asked.margin)
    assert (policy.rows, policy.tau, asked.tau) == (asked.least, 0.5, None)


def test_what_does_not_fit_is_refused(hosted, sae, swaps):
    few = PreparedSwaps(kept=swaps.kept[:4], dropped=())

    def asked(dictionary=sae, **stated):
        told = {"variable": "answer", "features": (0,), **stated}
        return drained(gate(hosted, dictionary, few, TEXTS, Gate(**told)))

    with pytest.raises(UnknownFeature):
        asked(features=(1536,))
    with pytest.raises(WrongDictionary):
        asked(random_dictionary(8))
    with pytest.raises(BadStudy, match="as many other"):
        asked(random_dictionary(192, features=48), features=tuple(range(40)), jointly=True)
    with pytest.raises(BadStudy, match="embedding"):
        asked(random_dictionary(192, site="lm.embedding"))


def test_bars_are_drawn(report, tmp_path):
    plot(report, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
