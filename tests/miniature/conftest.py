"""The shipped language model, loaded once."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from miniature import weights_path


@pytest.fixture(scope="session")
def miniature_language():
    folder = weights_path("language")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
