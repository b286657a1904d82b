"""What the editors refuse."""

from models.errors import Refusal


class EmptyTarget(Refusal):
    """The fact says nothing new."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            problem, remedy="Name a target that differs from the prompt.", param="target"
        )


class SubjectCut(Refusal):
    """The subject, or a sentence that the fit needs, does not fit into the text encoder."""

    def __init__(self, prompt: str, tokens: int, limit: int) -> None:
        super().__init__(
            f"{prompt!r} has {tokens} tokens; the text encoder reads {limit}.",
            remedy="Shorten the prompt or the subject.",
            param="prompt",
        )


class SubjectMerges(Refusal):
    """The subject's last token also covers what follows it."""

    def __init__(self, prompt: str, subject: str) -> None:
        super().__init__(
            f"In {prompt!r} the last token of {subject!r} also covers its neighbour.",
            remedy="Put a space behind the subject, or make the neighbour part of it.",
            param="subject",
        )


class AlreadyTrue(Refusal):
    """The model believes the fact already."""

    def __init__(self, prompt: str, target: str, surely: float) -> None:
        super().__init__(
            f"For {prompt!r} the model already means {target!r} ({surely:.3f} of 1).",
            remedy="Nothing needs editing; name a `source` if the two only look alike to it.",
            param="target",
        )


class NoPull(Refusal):
    """The objective was weaker than the decay: there is no edit."""

    def __init__(self, share: float) -> None:
        super().__init__(
            f"The fit moved the value by only {share:.3f} of its norm and missed the target.",
            remedy="Try a higher rate, more steps, another layer or another wording of the target.",
            param="target",
        )


class NotFinite(Refusal):
    """Loss, key or moment is not a finite number."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is not finite.",
            remedy="Lower the rate or host in float32.",
            param="options.rate",
        )


class BadMoment(Refusal):
    """Second moments that do not belong to this tower and block, or cannot be factored."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, remedy="Collect the moments again with a larger corpus.")


class NoCorpus(Refusal):
    """The hosted model names no corpus for the second moment of its keys."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"{model} has no corpus of captions to measure its keys on.",
            remedy="Set `corpus` for the model in the configuration.",
            param="model",
        )


class UnreadableLayer(Refusal):
    """A block that does not exist, or that the pipeline does not read."""

    def __init__(self, block: int, valid: str) -> None:
        super().__init__(
            f"An edit at block {block} cannot reach the picture.",
            remedy=f"Choose a block from {valid}.",
            param="options.block",
        )


class NoProjection(Refusal):
    """The pipeline lacks the text projection that the objective needs."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"{model} has no text projection: the objective is measured behind it.",
            remedy="Set `projection` to the folder of the full CLIP, or `space` to eos_state.",
            param="options.space",
        )


class BadImage(Refusal):
    """An image target that is no image, or a pipeline that cannot look at one."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, remedy="Send PNG, JPEG or WebP files.", param="target_images")


class BadPreprocessor(Refusal):
    """The full CLIP's `preprocessor_config.json` cannot be followed."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            problem,
            remedy="Put the file that belongs to this CLIP into its folder, or take it out.",
            param="target_images",
        )


class BadTemplates(Refusal):
    """Sentences of a user's file or a model's folder that a fact cannot be spoken in."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            problem,
            remedy="Give nine sentences with one {} each: a JSON list, or one a line.",
            param="templates",
        )


class BadOrder(Refusal):
    """A `prompt_order` that does not order the prompts of this fit."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            problem,
            remedy="Name prompts once each, 0 for the edit prompt; mode reference only.",
            param="options.prompt_order",
        )


class BadRegulariser(Refusal):
    """A KL regulariser that this fit cannot measure."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            problem,
            remedy="Give all of `kl`, `negatives`, `negative_images` in mode reference, else none.",
            param="options.kl",
        )


class BadDelta(Refusal):
    """A delta file that cannot be trusted."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, remedy="Export it again from the service that made it.")


class BadAdapter(Refusal):
    """A LoRA adapter that cannot become an edit."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, remedy="Send a PEFT folder as zip or a LoRA safetensors file.")


class MixedLayers(Refusal):
    """Edits of several blocks in one request: their keys would not be exact."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"The edits of one request lie in several blocks: {where}.",
            remedy="Fit them again in one block.",
            param="edits",
        )


class EditsConflict(Refusal):
    """Two edits want different things at nearly the same key."""

    def __init__(self, pair: str, measure: str) -> None:
        super().__init__(
            f"{pair} cannot both hold: {measure}.",
            remedy="Drop one of them, or register an edit that replaces it.",
            param="edits",
        )
