import pytest
import torch
from torch import nn

from models.toys import seeded, toy_tokenizer, wake


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_the_tokenizer_is_a_real_one_and_reads_back_the_same(tmp_path, pad):
    made = toy_tokenizer(tmp_path / "tokenizer", pad=pad)
    read = type(made).from_pretrained(tmp_path / "tokenizer")
    text = "The president of Arda, xyz!"
    assert read(text).input_ids == made(text).input_ids
    assert read.pad_token == pad
    assert read.eos_token_id == len(read) - 1
    assert "president" in read.decode(read(text).input_ids)


def test_known_words_are_one_token_and_others_are_spelled(tmp_path):
    made = toy_tokenizer(tmp_path)
    assert len(made("president").input_ids) == 3
    assert len(made("xyz").input_ids) == 5


def test_waking_draws_matrices_of_the_stated_spread_and_leaves_vectors():
    layer = nn.Linear(400, 300)
    bias = layer.bias.clone()
    wake(layer, 1, spread=2.0)
    assert float((torch.randn(500, 400) @ layer.weight.detach().T).std()) == pytest.approx(
        2.0, rel=0.05
    )
    assert torch.equal(layer.bias, bias)


def test_a_seed_holds_inside_its_block_only():
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    drawn = []
    for _ in range(2):
        with seeded(1):
            drawn.append(float(torch.rand(1)))
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.rand(1), wanted)
