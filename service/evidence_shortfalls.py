"""By how much a gate or an audit misses a policy: every threshold that is not met."""

from collections.abc import Iterator, Mapping
from typing import Any

from service.settings import Evidence

Told = Mapping[str, Any]


def gate_shortfalls(told: Told, asked: Evidence) -> tuple[str, ...]:
    """What a gate's measurements lack, whatever its own params said; nothing if it is enough."""
    return tuple(_of_gate(told, asked))


def _of_gate(told: Told, asked: Evidence) -> Iterator[str]:
    bar = max(
        asked.tau * told["iia_full_vector"]["value"],
        told["iia_random_matched"]["value"] + asked.margin,
    )
    if told["kept"] < asked.rows:
        yield f"{told['kept']} rows kept, needed {asked.rows}"
    if told["iia"]["value"] < bar:
        yield f"iia {told['iia']['value']:.3g}, needed {bar:.3g}"
    if (moved := told["off_target_kl"]) is None:
        yield "off_target_kl not measured"
    elif moved["value"] > asked.kappa:
        yield f"off_target_kl {moved['value']:.3g}, at most {asked.kappa:g}"


def audit_shortfalls(told: Told, asked: Evidence) -> tuple[str, ...]:
    """The same of an audit: of each of its suites."""
    return tuple(
        f"suite {suite['name']}: {lack}"
        for suite in told["suites"]
        for lack in _of_suite(suite, asked)
    )


def _of_suite(suite: Told, asked: Evidence) -> Iterator[str]:
    if suite["pairs"] < asked.pairs:
        yield f"{suite['pairs']} pairs kept, needed {asked.pairs}"
    if suite["unchanged"] is None:
        yield "too few pairs for its params, so nothing was measured"
        return
    if (changed := 1 - suite["unchanged"]) > asked.tolerance:
        yield f"decisions changed {changed:.3g}, at most {asked.tolerance:g}"
    if (circuit := suite["circuit"]) is None:
        return
    for size, before in circuit["f_before"].items():
        place, after = f"f of the old circuit at {100 * float(size):g} %", circuit["f_after"][size]
        if before is None or after is None:
            yield f"{place} cannot be told"
        elif abs(after - before) > asked.tolerance:
            yield f"{place} changed {abs(after - before):.3g}, at most {asked.tolerance:g}"


def missed(word: str, told: Told | None, lacks: tuple[str, ...]) -> str:
    """Why something is not verified: nothing speaks for it, or what speaks is not enough."""
    if told is None:
        return f"no {word} was made in these weights"
    verdict = f"verdict {told['verdict']} by its own params"
    if "strength" in told:  # of a gate: it says nothing of a larger one
        verdict += f", at strength {told['strength']:g}"
    return f"{told['evaluation']} ({verdict}) misses the policy: {', '.join(lacks)}"
