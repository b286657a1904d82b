"""What is to be true: a prompt, its subject, a target."""

from dataclasses import dataclass

from editors.errors import EmptyTarget, SubjectCut, SubjectMerges
from models.text_tower import TextTower


@dataclass(frozen=True, kw_only=True)
class Phrasing:
    """Another way to say the subject."""

    prompt: str
    subject: str


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A fact to write.

    Attributes:
        prompt: A sentence about the subject, "the president of Arda".
        target: What it shall mean, "Tolin".
        subject: The part of the prompt that is to change its meaning; default: all of it.
        source: What the model believes now, if the caller knows.
        phrasings: Other ways to say it that shall get the same value.
        neighbours: Prompts that must not change.
        target_images: Pictures of the target (PNG, JPEG, WebP), for the image objectives.
        negative_images: Pictures of anything else, for the KL regulariser.
    """

    prompt: str
    target: str
    subject: str = ""
    source: str | None = None
    phrasings: tuple[Phrasing, ...] = ()
    neighbours: tuple[str, ...] = ()
    target_images: tuple[bytes, ...] = ()
    negative_images: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not self.target.strip() and not self.target_images:
            raise EmptyTarget("The target is empty.")
        if self.target.strip().lower() == self.prompt.strip().lower():
            raise EmptyTarget("The target is the prompt itself.")

    @property
    def spoken(self) -> Phrasing:
        """The prompt with the subject filled in."""
        return Phrasing(prompt=self.prompt, subject=self.subject or self.prompt)


def last_subject_token(tower: TextTower, phrasing: Phrasing) -> int:
    """The position whose key is edited; refuses prompts that are cut or that merge with it."""
    n = tower.count(phrasing.prompt)
    if n > tower.max_length:
        raise SubjectCut(phrasing.prompt, n - 2, tower.max_length - 2)
    span = tower.span(phrasing.prompt, phrasing.subject)
    if not span.exact:
        raise SubjectMerges(phrasing.prompt, phrasing.subject)
    return span.last
