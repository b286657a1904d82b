"""What evaluations and their policies refuse."""

from collections.abc import Mapping, Sequence

from models.errors import Refusal

_GATED = 10
"""Features of a concept that a refusal says to gate."""


class FeatureNotVerified(Refusal):
    """The model's policy asks for a passed feature gate before a feature may steer.

    Args:
        why: By feature.
        bars: The policy's thresholds.
        concepts: By concept that they were found for: all features that were, the best first.
        allowed: Whether a request may go on with what is not verified.
    """

    def __init__(
        self,
        sae: str,
        why: Mapping[int, str],
        model: str,
        bars: str,
        *,
        concepts: Mapping[str, Sequence[int]] | None = None,
        allowed: bool = False,
    ) -> None:
        named = ", ".join(map(str, why))
        found = [one for some in (concepts or {}).values() for one in some[:_GATED]]
        gated = ", ".join(map(str, dict.fromkeys((*why, *found))))
        about = "".join(_none_of(concept, some) for concept, some in (concepts or {}).items())
        alike = set(why.values())
        reasons = alike if len(alike) == 1 else [f"{f}: {reason}" for f, reason in why.items()]
        unless = ' Or send "unverified": "allow", which the policy permits.' if allowed else ""
        super().__init__(
            f"No feature_gate was passed by feature {named} of {sae} in {model}: "
            f"{'; '.join(reasons)}.{about}",
            remedy=f'POST /v1/evaluations with kind "feature_gate", model "{model}", a dataset '
            f'about the concept and params {{"sae": "{sae}", "features": [{gated}], '
            f'"variable": ...}} (tiller evidence gate {sae} {gated.replace(",", "")} '
            "--variable ... --task ...); steer with it once what that measures meets the policy, "
            f"whatever its own verdict: {bars} (GET /v1/policies).{unless}",
            param="steering",
        )


def _none_of(concept: str, found: Sequence[int]) -> str:
    some = ", ".join(map(str, found[:_GATED]))
    more = f" and {len(found) - _GATED} more" if len(found) > _GATED else ""
    return (
        f" None of the features found for {concept!r} has passed; they are, the best first: "
        f"{some}{more}. A concept is steered with those that pass."
    )


class EditNotAudited(Refusal):
    """The model's policy asks for a passed audit before an edit takes an alias."""

    def __init__(self, reference: str, model: str, why: str, bars: str) -> None:
        super().__init__(
            f"No edit_audit was passed by {reference} in {model}: {why}.",
            remedy=f'POST /v1/evaluations with kind "edit_audit", model "{model}", '
            f'edits ["{reference}"] and suites of what it should leave alone; '
            "move the alias once what that measures meets the policy, whatever its own verdict: "
            f"{bars} (GET /v1/policies).",
            param="version",
        )


class EvaluationTooLong(Refusal):
    """An evaluation that used up its own budget."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"It was not ready within the {seconds:g} seconds of its budget.",
            remedy="Ask for fewer examples, layers or units, or for a longer budget.max_seconds.",
            param="budget.max_seconds",
        )


class NoSuchArtifact(Refusal):
    """An evaluation has no file of that name, or nothing to export in that format.

    Args:
        left_out: Of a file that its kind has, why this evaluation's was left out, and what to do.
    """

    def __init__(
        self,
        evaluation: str,
        name: str,
        there: Sequence[str],
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        has = f"It has: {', '.join(there)}."
        why = "" if left_out is None else f" {left_out['problem']}"
        super().__init__(
            f"{evaluation} has no {name!r}.{why}",
            remedy=has if left_out is None else f"{left_out['remedy']} {has}",
            param="name",
        )


class WrongRows(Refusal):
    """A data set without the rows that a kind of evaluation reads."""

    def __init__(self, kind: str, rows: str, dataset: str) -> None:
        super().__init__(
            f"{kind} reads {rows}, and {dataset} has none.",
            remedy=f"POST /v1/datasets with {rows}, or with a generator, which makes both.",
            param="dataset",
        )


class PolicyTooLoose(Refusal):
    """A tenant's policy that would let through what the operator's does not."""

    def __init__(self, model: str, key: str, value: object, floor: object) -> None:
        super().__init__(
            f"{key} {value!r} is looser than the operator's {floor!r} for {model}.",
            remedy=f"Leave {key} out, or ask for as much as the operator or more.",
            param=key,
        )


class NoAdvice(Refusal):
    """A fact edit whose block is `auto`, where no evaluation advised one."""

    def __init__(self, model: str, method: str) -> None:
        super().__init__(
            f"No layer_advice about {method} was found for {model} in these weights.",
            remedy=f'POST /v1/evaluations with kind "layer_advice", model "{model}", pairs about '
            f'such facts and params {{"operation": "{method}"}}; or name the block.',
            param="options.block",
        )
