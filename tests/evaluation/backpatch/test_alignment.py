"""Visual tokens beside the words that tell the same."""

import pytest
import torch

from evaluation.backpatch.alignment import align, cosines
from evaluation.backpatch.example import Example
from evaluation.errors import UnusableExamples
from models.family import FAMILIES
from models.loading import load
from tests.evaluation.backpatch.test_calibration import example


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    hosted = load("tiny", FAMILIES["qwen2_vl"].tiny(tmp_path_factory.mktemp("aligned")))
    yield hosted
    hosted.close()


def drained(steps):
    while True:
        try:
            next(steps)
        except StopIteration as over:
            return over.value


def test_a_cosine_of_two_examples_is_the_mean_over_all_pairs_of_their_tokens():
    generator = torch.Generator().manual_seed(0)
    seen = [torch.randn(2, tokens, 5, generator=generator) for tokens in (3, 4, 2)]
    read = [torch.randn(2, tokens, 5, generator=generator) for tokens in (2, 5, 3)]
    found = cosines(seen, read)
    for layer, other in ((0, 0), (0, 1), (1, 0)):
        a = torch.cat([one[layer] for one in seen])
        b = torch.cat([one[other] for one in read])
        pairs = [
            torch.cosine_similarity(v - a.mean(0), w - b.mean(0), dim=0)
            for v in seen[1][layer]
            for w in read[2][other]
        ]
        torch.testing.assert_close(found[layer, other, 1, 2], torch.stack(pairs).mean())


def test_what_stands_at_the_words_is_nearest_to_itself_and_noise_is_at_chance():
    generator = torch.Generator().manual_seed(1)
    words = [torch.randn(1, 4, 32, generator=generator) for _ in range(40)]
    noise = [torch.randn(1, 6, 32, generator=generator) for _ in range(40)]
    own = cosines(words, words)[0, 0]
    assert bool((own.argmax(dim=1) == torch.arange(40)).all())
    other = cosines(noise, words)[0, 0]
    above = (other.diagonal()[:, None] > other).float().mean()
    assert 0.35 < above < 0.65


def test_a_model_is_compared_layer_by_layer(hosted):
    found = drained(align(hosted, [example(n) for n in range(8)]))
    assert found.examples == 8
    assert [len(found.nearer), len(found.nearer[0]), len(found.same_layer)] == [4, 4, 4]
    for layer, share in enumerate(found.same_layer):
        assert share.value == pytest.approx(found.nearer[layer][layer])
        assert share.low <= share.value <= share.high
        assert 0 <= share.value <= 1 and -1 <= found.own[layer][layer] <= 1
        assert found.last_layer[layer].value == pytest.approx(found.nearer[layer][3])


def test_descriptions_are_needed_and_must_differ(hosted):
    plain = [example(n, described=None, description=None) for n in range(8)]
    with pytest.raises(UnusableExamples, match="too few"):
        drained(align(hosted, plain))
    alike: list[Example] = [example(1, id=str(n)) for n in range(8)]
    with pytest.raises(UnusableExamples, match="say the same"):
        drained(align(hosted, alike))
