"""Advice and an audit of a text encoder, on a random Stable Diffusion toy and its edit."""

import pytest

from service.client import Tiller, TillerError

MODEL = "tiny"


def found(tiller, kind, **asked):
    return tiller.jobs.wait(tiller.evaluations.start(kind, model=MODEL, **asked)["id"])["result"]


def test_an_edit_of_a_text_encoder_is_advised_on_and_audited(url, edit):
    pairs = [
        {
            "clean": f"the {a} of the sea",
            "corrupted": f"the {b} of the sea",
            "correct": f"the {a} of the sea",
            "incorrect": f"the {b} of the sea",
        }
        for a, b in (("king", "boat"), ("boat", "tree"), ("tree", "king"), ("cup", "king"))
    ]
    with Tiller(url) as tiller:
        rows = tiller.datasets.make(model=MODEL, pairs=pairs)
        assert rows["n"] == 4 and "pairs" not in rows  # its tokens are looked at by the job
        fact = {
            "model": MODEL,
            "prompt": "the king of the sea",
            "subject": "king",
            "target": "a red boat",
            "options": {"steps": 5, "block": "auto"},
        }
        with pytest.raises(TillerError) as refused:
            tiller.edits.add("advised", **fact)
        assert refused.value.code == "no_advice"
        assert "layer_advice" in refused.value.remedy
        advice = found(tiller, "layer_advice", dataset=rows["id"], params={"operation": "refact"})[
            "report"
        ]
        assert advice["by"] == "subject_mlp" and advice["pairs"] + len(advice["dropped"]) == 4
        assert {"subject", "last", "subject_mlp"} == set(advice["layers"][0]["effects"])
        best, *_ = advice["ranked"]
        made = tiller.jobs.wait(tiller.edits.add("advised", **fact)["id"])["result"]
        version = tiller.edits.show("advised", made["version"])
        assert version["header"]["settings"]["block"] == best
        audit = found(
            tiller,
            "edit_audit",
            edits=[f"{edit}@1"],
            suites={"others": rows["id"]},
            params={"least": 1},
        )["report"]
        (suite,) = audit["suites"]
        assert suite["drift"] > 0 and suite["circuit"] is None
        assert audit["verdict"] in ("pass", "fail")
