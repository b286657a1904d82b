"""A UNet that remembers its texts says what it said before, to the last bit."""

import copy
import gc

import pytest
import torch

from models.cross_attention import remember_texts
from models.toys import toy_unet


@pytest.fixture
def unets():
    plain = toy_unet(3, cross_attention_dim=32).eval()
    remembering = copy.deepcopy(plain)
    assert remember_texts(remembering) > 0
    return plain, remembering


@torch.inference_mode()
def test_the_same_texts_are_projected_once_and_others_again(unets):
    plain, remembering = unets
    layer = next(m for n, m in remembering.named_modules() if n.endswith("attn2.to_k"))
    projected = []
    project = layer.forward.project
    layer.forward.project = lambda texts: projected.append(1) or project(texts)
    size = plain.config.sample_size
    latents, texts, others = torch.randn(2, 4, size, size), *torch.randn(2, 2, 5, 32).unbind()
    for step, said in ((9, texts), (4, texts), (9, others), (4, texts)):
        asked = (latents, torch.full((2,), step))
        wanted = plain(*asked, encoder_hidden_states=said).sample
        assert torch.equal(remembering(*asked, encoder_hidden_states=said).sample, wanted)
    assert len(projected) == 3  # the second step read what the first had projected


def test_texts_that_may_still_change_are_not_remembered(unets):
    plain, remembering = unets
    size = plain.config.sample_size
    texts = torch.randn(1, 5, 32)
    asked = (torch.randn(1, 4, size, size), torch.tensor([3]))
    with torch.no_grad():
        remembering(*asked, encoder_hidden_states=texts)
        texts.mul_(2.0)
        wanted = plain(*asked, encoder_hidden_states=texts).sample
        assert torch.equal(remembering(*asked, encoder_hidden_states=texts).sample, wanted)


@torch.inference_mode()
def test_nothing_is_kept_of_texts_that_are_gone(unets):
    remembering = unets[1]
    layer = next(m for n, m in remembering.named_modules() if n.endswith("attn2.to_v"))
    texts = torch.randn(1, 5, 32)
    layer(texts)
    assert layer.forward.last is not None
    del texts
    gc.collect()
    assert layer.forward.last is None
