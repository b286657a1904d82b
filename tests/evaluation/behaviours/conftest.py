"""The shipped language model, and a small GPT-2 that learned one behaviour; loaded once."""

import pytest
import torch

from evaluation.behaviours.learned import SHORT, learn
from miniature import weights_path
from models.hosted import HostedModel
from models.loading import load


@pytest.fixture(scope="session")
def miniature_lm() -> HostedModel:
    return load("miniature-lm", weights_path("language"))


@pytest.fixture(scope="session")
def learned_gpt2(tmp_path_factory) -> HostedModel:
    folder = tmp_path_factory.mktemp("learned") / "gpt2"
    for _ in learn(folder, SHORT):
        pass
    return load("learned-gpt2", folder)


@pytest.fixture(scope="session")
def answers():
    """Whether greedy writing says each answer, of (hosted, [(prompt ids, answer ids)])."""

    @torch.inference_mode()
    def said(hosted: HostedModel, asked) -> float:
        right = 0
        for prompt, answer in asked:
            ids = list(prompt)
            for _ in answer:
                ids.append(int(hosted.family.logits(hosted, torch.tensor([ids]))[0, -1].argmax()))
            right += ids[len(prompt) :] == list(answer)
        return right / len(asked)

    return said
