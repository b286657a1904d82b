"""The judge, trained on drawn pictures that the pipeline never learned from."""

from collections.abc import Generator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from miniature.judge import NOBODY, PLAIN, JudgeNet, labels
from miniature.training.bank import Bank
from miniature.training.contrastive import pixels
from miniature.world import Picture, Subject, World


def answers_of(picture: Picture) -> dict[str, str]:
    """The true answer to every question about a picture."""
    told = [_label(s) for s in picture.subjects] or [NOBODY]
    return {
        "left": told[0],
        "right": told[-1],
        "scene": picture.scene or PLAIN,
        "style": picture.style or PLAIN,
    }


def _label(subject: Subject) -> str:
    return subject.name if subject.colour is None else f"{subject.colour} {subject.name}"


def train_judge(
    world: World, bank: Bank, folder: Path, *, steps: int = 2500, batch: int = 64, seed: int = 5
) -> Generator[tuple[int, float], None, float]:
    """Yield (step, loss), save in fp16, return the share of right answers on the last tenth."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    known = labels(world)
    truth = _truth(bank, known)
    n = len(bank.shown) * 9 // 10
    net = JudgeNet(known)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    for step in range(steps):
        chosen = draw.integers(n, size=batch)
        seen = _worn(pixels(torch.from_numpy(bank.pixels[chosen])))
        with torch.autocast("cpu", torch.bfloat16):
            said = net(seen)
        cross = torch.nn.functional.cross_entropy
        loss = sum(cross(said[q].float(), truth[q][chosen], label_smoothing=0.02) for q in known)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[union-attr]
        optimiser.step()
        schedule.step()
        yield step, float(loss)
    folder.mkdir(parents=True, exist_ok=True)
    half = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file(half, folder / "judge.safetensors")
    return _accuracy(net.eval(), bank, truth, n)


def _truth(bank: Bank, known: dict[str, list[str]]) -> dict[str, Tensor]:
    told = [answers_of(p) for p in bank.shown]
    return {q: torch.tensor([answers.index(t[q]) for t in told]) for q, answers in known.items()}


def _worn(pictures: Tensor) -> Tensor:
    """A little noise, blur, shift and fading, so that a soft picture is still recognised."""
    worn = pictures + 0.06 * torch.randn_like(pictures)
    worn = worn * (1 + 0.1 * torch.randn(len(worn), 3, 1, 1)) + 0.05 * torch.randn(
        len(worn), 3, 1, 1
    )
    if torch.rand(()) < 0.5:
        worn = torch.nn.functional.avg_pool2d(worn, 3, 1, 1)
    moves = [int(x) for x in torch.randint(-2, 3, (2,))]
    return torch.roll(worn, moves, (2, 3))


@torch.inference_mode()
def _accuracy(net: JudgeNet, bank: Bank, truth: dict[str, Tensor], start: int) -> float:
    right = []
    for at in range(start, len(bank.shown), 128):
        said = net(pixels(torch.from_numpy(bank.pixels[at : at + 128])))
        right += [(said[q].argmax(-1) == truth[q][at : at + 128]).float().mean() for q in truth]
    return float(torch.stack(right).mean())
