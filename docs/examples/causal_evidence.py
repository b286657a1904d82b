"""One question, from a circuit to steering to an audit: how does the miniature choose a letter?

Asked of a running service (`TILLER_URL`); docs/causal-evidence.md tells what comes out and why.
"""

from typing import Any

import torch

from editors.delta import Delta, Factors
from service.client import Tiller

MODEL = "miniature-lm"


def main() -> None:
    """Ask, step by step."""
    with Tiller() as tiller:
        rows = tiller.datasets.make(
            model=MODEL,
            generator="mcqa",
            vocabulary="miniature",
            n=80,
            seed=1,
            pair_set="answerPosition",
            sets=["answerPosition"],
        )
        circuit(tiller, rows)
        layer = advice(tiller, rows)
        steer(tiller, rows, layer)
        gate(tiller, rows)
        audit(tiller, rows)


def found(tiller: Tiller, kind: str, **asked: Any) -> dict[str, Any]:
    """What an evaluation finds, or found before."""
    begun = tiller.evaluations.start(kind, model=MODEL, **asked)
    return begun if begun.get("cache_hit") else tiller.jobs.wait(begun["id"])["result"]


def circuit(tiller: Tiller, rows: dict[str, Any]) -> None:
    """Which heads and MLPs carry the choice?"""
    report = found(tiller, "circuit", dataset=rows["id"], budget={"max_examples": 24})["report"]
    f = {point["k"]: point["f_absolute"] for point in report["curve"]}
    print(f"CMD {report['cmd']:.2f}, CPR {report['cpr']:.2f}; f {f[0.05]:.2f} at 5 %, {f[0.2]:.2f}")
    print("strongest:", ", ".join(node["name"] for node in report["top_nodes"][:5]))
    assert report["cmd"] < 0.3 < report["floor"]["cmd"]


def advice(tiller: Tiller, rows: dict[str, Any]) -> int:
    """At which layer does the last token know the letter?"""
    params, few = {"operation": "sae"}, {"max_examples": 12}
    report = found(tiller, "layer_advice", dataset=rows["id"], params=params, budget=few)["report"]
    first, last = report["recommended"]
    print(f"steer at layers {first} to {last}")
    return first


def steer(tiller: Tiller, rows: dict[str, Any], layer: int) -> None:
    """Eight learned directions carry the letter there; their mean move sets it."""
    params = {
        "variable": "answer",
        "layers": [layer],
        "positions": ["last_token"],
        "featurizer": {"kind": "das", "n": 8},
        "save": {"name": "say-b", "toward": " B"},
    }
    result = found(tiller, "causal_variable", dataset=rows["id"], params=params)
    iia = result["report"]["per_layer_max"][str(layer)]
    nothing = result["report"]["control"]["no_op"]["answerPosition"]
    print(f"IIA {iia:.2f} at layer {layer}; doing nothing scores {nothing:.2f}")
    assert iia > nothing + 0.3

    told = tiller.datasets.rows(rows["id"])["swaps"]
    asked = [row["base"] for row in told if row["base_answer"] == " A"][:8]
    named = f"say-b@{result['vector']['version']}"
    steering = {"vectors": [{"name": named, "strength": 2.0}]}
    settings = {"model": MODEL, "max_tokens": 1, "temperature": 0.0}
    plain = [tiller.complete(prompt, **settings)[0].text for prompt in asked]
    moved = [tiller.complete(prompt, **settings, steering=steering)[0].text for prompt in asked]
    print("plain:", "".join(plain), " steered:", "".join(moved))
    assert plain.count(" B") == 0 < moved.count(" B")


def gate(tiller: Tiller, rows: dict[str, Any]) -> None:
    """Would single SAE features do as well?"""
    params = {"sae": "block-4-topk", "features": [7], "variable": "answer", "draws": 2}
    report = found(tiller, "feature_gate", dataset=rows["id"], params=params)["report"]
    for one in report["gates"]:
        print(f"feature {one['features'][0]}: IIA {one['iia']['value']:.2f}, {one['verdict']}")
    print(f"the whole stream: {report['iia_full_vector']['value']:.2f}")


def audit(tiller: Tiller, rows: dict[str, Any]) -> None:
    """What does an adapter from elsewhere change beside what it is for?"""
    card = tiller.models.show(MODEL)
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(192, 1, generator=draw), torch.randn(1, 512, generator=draw)
    none = (torch.zeros(0, 512), torch.zeros(0, 512), torch.zeros(0, 192))
    base = {"model": MODEL, "fingerprint": card["fingerprint"]}
    delta = Delta(
        {"base": base, "method": "by hand"},
        {"lm.layers.3.mlp.down_proj": Factors(2 * left, right, *none)},
    )
    version = tiller.edits.import_("from-elsewhere", delta.data, model=MODEL)
    named = f"from-elsewhere@{version['version']}"
    sums = tiller.datasets.make(
        model=MODEL,
        generator="arithmetic-subtraction",
        vocabulary="miniature",
        n=24,
        answers="first",
    )
    report = found(
        tiller,
        "edit_audit",
        edits=[named],
        suites={"letters": rows["id"], "differences": sums["id"]},
        params={"steps": 2},
        budget={"max_examples": 20},
    )["report"]
    for suite in report["suites"]:
        told = f"{suite['name']}: {suite['unchanged']:.2f} unchanged"
        print(told, f"drift {suite['drift']:.3f}, {suite['verdict']}")
    print(f"audit: {report['verdict']}")


if __name__ == "__main__":
    main()
