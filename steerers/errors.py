"""What the steerers refuse."""

from collections.abc import Sequence

from models.errors import Refusal


class BadDictionary(Refusal):
    """An SAE whose tensors or conventions do not fit together."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            problem, remedy="Check that the files are complete and of one SAE.", param="sae"
        )


class WrongDictionary(Refusal):
    """An SAE that was not trained on this model, by its site or its width."""

    def __init__(self, sae: str, problem: str) -> None:
        super().__init__(
            f"{sae} does not fit the model: {problem}",
            remedy="Use an SAE that was trained on this model.",
            param="sae",
        )


class UnsupportedDictionary(Refusal):
    """An SAE of a kind that is not read: named, never guessed."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(
            f"{where} is not read: {what}.",
            remedy="Use a ReLU, JumpReLU, TopK, BatchTopK, Matryoshka or gated SAE of a stream.",
            param="sae",
        )


class UnsupportedHook(Refusal):
    """A place of the model that no stream site names."""

    def __init__(self, hook: str, what: str) -> None:
        super().__init__(
            f"An SAE or vector at {hook!r} cannot be used: {what}.",
            remedy="Use one of a decoder layer's output (hook_resid_post) or of the embedding.",
            param="site",
        )


class SiteNotDeclared(Refusal):
    """Neither the files nor their path say where an SAE or vector belongs."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where} does not say which site it belongs to.",
            remedy="Name it, like lm.block.12: as `site`, or in a `tiller.json` beside the files.",
            param="site",
        )


class UnknownLayout(Refusal):
    """A folder or file in which no reader knows an SAE."""

    def __init__(self, where: str, found: str, known: str) -> None:
        super().__init__(
            f"{where} holds no SAE that is known; it has {found or 'no files'}.",
            remedy=f"Give the folder or file of one SAE in a layout of: {known}.",
            param="sae",
        )


class PickleRefused(Refusal):
    """A file that would have to run code to be read."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(
            f"{where} is not read: {why}.",
            remedy="Save its plain tensors as safetensors.",
            param="path",
        )


class BadFile(Refusal):
    """A file of tensors that is broken, too large, or lacks what it should hold."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, remedy="Download or export it again.", param="path")


class FilesNotFound(Refusal):
    """A folder or file that does not exist, or a hub id that cannot be fetched."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"There is nothing at {where}.",
            remedy="Give a folder, a file, or owner/repository/folder on the hub.",
            param="path",
        )


class CannotWrite(Refusal):
    """An SAE that a published layout has no words for."""

    def __init__(self, sae: str, layout: str, why: str) -> None:
        super().__init__(
            f"{sae} cannot be written as {layout}: {why}.",
            remedy="Write it in the other layout.",
            param="format",
        )


class BadVector(Refusal):
    """A control vector that is none: another shape, not finite, or zero."""

    def __init__(
        self,
        problem: str,
        remedy: str = "Give one finite vector that is not zero for each site.",
    ) -> None:
        super().__init__(problem, remedy=remedy, param="vector")


class UnknownFeature(Refusal):
    """A feature number that the SAE does not have."""

    def __init__(self, sae: str, feature: int, features: int) -> None:
        super().__init__(
            f"{sae} has no feature {feature}.",
            remedy=f"Features count from 0 to {features - 1}.",
            param="features",
        )


class UnknownDictionary(Refusal):
    """A request names an SAE or a vector that is not there."""

    def __init__(self, what: str, name: str, known: str) -> None:
        super().__init__(
            f"There is no {what} {name!r}.",
            remedy=f"Use one of: {known or 'none is loaded'}.",
            param="steering",
        )


class LowOutputScore(Refusal):
    """A feature that steers too little, or for which no score could be computed."""

    def __init__(self, sae: str, feature: int, score: float | None, minimum: float) -> None:
        told = "no output score" if score is None else f"output score {score:.3g}"
        super().__init__(
            f"Feature {feature} of {sae} has {told}; {minimum:g} is asked for.",
            remedy="Take another feature, lower min_output_score, or set on_low_score to warn.",
            param="features",
        )
        self.feature, self.score, self.minimum = feature, score, minimum


class ConceptNotCovered(Refusal):
    """No feature of the SAE is found for a concept, or none of them steers."""

    def __init__(
        self, concept: str, saes: Sequence[str], candidates: int, best: float | None
    ) -> None:
        do = "does" if len(saes) == 1 else "do"
        lower = "lower min_output_score or " if best is not None else "or "
        super().__init__(
            f"{_and(saes)} {do} not cover {concept!r}: {_found(candidates, best)}."
            if saes
            else f"There is no SAE in which {concept!r} could be found.",
            remedy=f"Say it in other words, {lower}name a feature.",
            param="concept",
        )
        self.concept, self.candidates, self.best = concept, candidates, best


def _and(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _found(candidates: int, best: float | None) -> str:
    if not candidates:
        return "no feature promotes its words or has them in a label"
    some = "one candidate" if candidates == 1 else f"{candidates} candidates"
    return f"{some}, {'no output score' if best is None else f'best output score {best:.3g}'}"


class TooStrong(Refusal):
    """A change that is large beside the stream that it changes."""

    def __init__(self, site: str, ratio: float, bound: float) -> None:
        super().__init__(
            f"The change at {site} is {ratio:.3g} times the stream's norm; {bound:g} is allowed.",
            remedy="Lower the strength.",
            param="strength",
        )
        self.ratio, self.bound = ratio, bound


class ClampedTwice(Refusal):
    """One feature is to have two activations at one token."""

    def __init__(self, site: str) -> None:
        super().__init__(
            f"A feature at {site} is held twice at one token, in different ways.",
            remedy="Name each feature once in modes clamp, min_clamp, multiply and ablate.",
            param="features",
        )


class BadStrength(Refusal):
    """A strength that is missing, not finite, or that the mode does not take."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, remedy="Give one finite number.", param="strength")


class NothingToSteer(Refusal):
    """The change would be zero, or there is no token that it could change."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, remedy="Leave steering out for a plain answer.", param="steering")


class ModeNotPossible(Refusal):
    """A mode that this SAE, or the engine, cannot do."""

    def __init__(self, mode: str, sae: str, reason: str) -> None:
        super().__init__(
            f"{mode} is not possible with {sae}: {reason}",
            remedy="Use mode amp with a_max neutral, or another SAE.",
            param="mode",
        )


class NoActivations(Refusal):
    """A unit of strength that needs activations which nobody has collected."""

    def __init__(self, sae: str, feature: int) -> None:
        super().__init__(
            f"The largest activation of feature {feature} of {sae} is not known.",
            remedy="POST /v1/saes/{id}/snippets reads texts for it; or use mode amp.",
            param="mode",
        )


class PromptNeeded(Refusal):
    """A plan that depends on the request's own tokens, without them."""

    def __init__(self, setting: str) -> None:
        super().__init__(
            f"{setting} depends on the prompt, and there is none.",
            remedy="Leave it out, or plan with the prompt's tokens.",
            param=setting,
        )


class BadRecord(Refusal):
    """An activation record that is not in Neuronpedia's shape."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            problem, remedy='Give {"activations": [{"tokens": [...], "values": [...]}]}.'
        )


class TooFewTexts(Refusal):
    """Too few texts, or too few tokens in them, to learn from."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, remedy="Give more texts.", param="texts")


class BadBackPatch(Refusal):
    """A plan of back-patching that leads nowhere in this model."""

    def __init__(self, problem: str, key: str, remedy: str = "") -> None:
        super().__init__(
            problem,
            remedy=remedy
            or "Use 0 <= target < source < layers and an odd window; `GET /v1/models` tells "
            "the layers, and a calibration finds a plan.",
            param=key,
        )
