"""Advice and an audit of a text encoder, on a random Stable Diffusion toy and its edit."""

from service.client import Tiller

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
        advice = found(tiller, "layer_advice", dataset=rows["id"], params={"operation": "refact"})[
            "report"
        ]
        assert advice["by"] == "subject_mlp" and advice["pairs"] + len(advice["dropped"]) == 4
        assert {"subject", "last", "subject_mlp"} == set(advice["layers"][0]["effects"])
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
