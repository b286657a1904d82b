"""Who or what is in a picture: a classifier that has seen drawn pictures only.

It shares nothing with the pipeline that it judges: neither weights nor pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from miniature import weights_path
from miniature.world import COLOURS, SCENES, STYLES, THINGS, World, make_world

NOBODY, PLAIN = "nobody", "plain"


def labels(world: World) -> dict[str, list[str]]:
    """What each head can answer."""
    things = [f"{colour} {thing.name}" for thing in THINGS for colour in COLOURS]
    subjects = [NOBODY, *(p.name for p in world.people), *things]
    return {
        "left": subjects,
        "right": subjects,
        "scene": [PLAIN, *SCENES],
        "style": [PLAIN, *STYLES],
    }


class JudgeNet(nn.Module):
    """Five strided convolutions and a head per question, about 0.6 M parameters."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for inner, outer in pairwise(widths):
            layers += [nn.Conv2d(inner, outer, 3, 2, 1), nn.BatchNorm2d(outer), nn.ReLU()]
            layers += [nn.Conv2d(outer, outer, 3, 1, 1), nn.BatchNorm2d(outer), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.mix = nn.Sequential(nn.Flatten(), nn.Linear(128 * 16, 96), nn.ReLU(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict({q: nn.Linear(96, len(a)) for q, a in answers.items()})

    def forward(self, pictures: Float[Tensor, "n 3 64 64"]) -> dict[str, Tensor]:
        """Logits per question."""
        seen = self.mix(self.body(pictures))
        return {question: head(seen) for question, head in self.heads.items()}


@dataclass(frozen=True)
class Seen:
    """What is in one picture: for each question an answer and all probabilities."""

    answers: dict[str, str]
    shares: dict[str, dict[str, float]]

    @property
    def alone(self) -> str:
        """The subject, if it is the same in both halves of the picture, else nobody."""
        return self.answers["left"] if self.answers["left"] == self.answers["right"] else NOBODY


class MiniatureJudge:
    """Judges pictures of 64 x 64 pixels."""

    def __init__(self, net: JudgeNet, answers: dict[str, list[str]]) -> None:
        self.net, self.labels = net.eval().requires_grad_(False), answers

    @torch.inference_mode()
    def look(self, pictures: Sequence[np.ndarray]) -> list[Seen]:
        """Every question about every picture (64, 64, 3) uint8."""
        found: list[Seen] = []
        for start in range(0, len(pictures), 64):
            stack = torch.from_numpy(np.stack(list(pictures[start : start + 64])))
            logits = self.net(stack.permute(0, 3, 1, 2).float() / 127.5 - 1)
            shares = {q: torch.softmax(v, -1) for q, v in logits.items()}
            found += [self._seen({q: v[i] for q, v in shares.items()}) for i in range(len(stack))]
        return found

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[tuple[str, dict[str, float]]]:
        """Per picture its one subject (a name, or "colour thing") and how probable each is."""
        return [(seen.alone, _joined(seen)) for seen in self.look(pictures)]

    def _seen(self, shares: dict[str, Tensor]) -> Seen:
        named = {q: dict(zip(self.labels[q], v.tolist(), strict=True)) for q, v in shares.items()}
        return Seen({q: max(v, key=v.__getitem__) for q, v in named.items()}, named)


def _joined(seen: Seen) -> dict[str, float]:
    left, right = seen.shares["left"], seen.shares["right"]
    return {label: (left[label] * right[label]) ** 0.5 for label in left}


def load_judge() -> MiniatureJudge:
    """The shipped judge."""
    answers = labels(make_world())
    net = JudgeNet(answers)
    weights = load_file(weights_path("judge") / "judge.safetensors")
    net.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in weights.items()})
    return MiniatureJudge(net, answers)
