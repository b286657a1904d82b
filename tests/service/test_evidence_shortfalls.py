"""What a refusal says of evidence that is not enough."""

from service.evidence_errors import EditNotAudited, FeatureNotVerified
from service.evidence_shortfalls import audit_shortfalls, gate_shortfalls, missed
from service.settings import Evidence

POLICY = Evidence(tau=0.5, margin=0.1, kappa=0.1, rows=50, tolerance=0.05, pairs=10)
GATE = {
    "evaluation": "evaluation-1",
    "verdict": "fail",
    "kept": 60,
    "strength": 1.0,
    "iia": {"value": 0.21},
    "iia_random_matched": {"value": 0.02},
    "iia_full_vector": {"value": 0.82},
    "off_target_kl": {"value": 0.01},
}
SUITE = {"name": "letters", "pairs": 12, "unchanged": 1.0, "circuit": None}


def test_a_gate_tells_each_threshold_that_it_misses():
    assert gate_shortfalls(GATE, POLICY) == ("iia 0.21, needed 0.41",)
    few = {**GATE, "iia": {"value": 0.5}, "kept": 8, "off_target_kl": {"value": 0.3}}
    lacks = ("8 rows kept, needed 50", "off_target_kl 0.3, at most 0.1")
    assert gate_shortfalls(few, POLICY) == lacks
    unmeasured = {**GATE, "iia": {"value": 0.5}, "off_target_kl": None}
    assert gate_shortfalls(unmeasured, POLICY) == ("off_target_kl not measured",)
    assert gate_shortfalls({**GATE, "iia": {"value": 0.41}}, POLICY) == ()


def test_no_gate_and_one_that_is_not_enough_are_told_apart():
    none = missed("gate", None, ())
    failed = missed("gate", GATE, gate_shortfalls(GATE, POLICY))
    told = FeatureNotVerified("sae", {7: none, 9: failed}, "m", "tau 0.5")
    assert "7: no gate was made in these weights" in told.problem
    assert "9: evaluation-1 (verdict fail by its own params, at strength 1)" in told.problem
    assert "iia 0.21, needed 0.41" in told.problem and "tau 0.5" in told.remedy
    alike = FeatureNotVerified("sae", {7: none, 9: none}, "m", "tau 0.5").problem
    assert alike.endswith("in m: no gate was made in these weights.")


def test_an_audit_tells_what_each_suite_misses():
    circuit = {"f_before": {"0.05": 0.5, "0.1": None}, "f_after": {"0.05": 0.7, "0.1": 0.4}}
    suites = [
        SUITE,
        {**SUITE, "name": "few", "pairs": 3, "unchanged": None},
        {**SUITE, "name": "moved", "unchanged": 0.75, "circuit": circuit},
    ]
    assert audit_shortfalls({"suites": [SUITE]}, POLICY) == ()
    assert audit_shortfalls({"suites": suites}, POLICY) == (
        "suite few: 3 pairs kept, needed 10",
        "suite few: too few pairs for its params, so nothing was measured",
        "suite moved: decisions changed 0.25, at most 0.05",
        "suite moved: f of the old circuit at 5 % changed 0.2, at most 0.05",
        "suite moved: f of the old circuit at 10 % cannot be told",
    )
    told = EditNotAudited("potus@3", "m", missed("audit of it alone", None, ()), "pairs 10")
    assert told.problem == (
        "No edit_audit was passed by potus@3 in m: no audit of it alone was made in these weights."
    )
