"""Each row's next token against transformers' processors and the formulas."""

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engines.slots import sampling as ours
from engines.slots.admission import COLDEST, HOTTEST, LEAST_REPETITION, MOST_REPETITION
from engines.slots.request import GREEDY, Sampling
from engines.slots.sampling import Draws, choose, distribution, row_seed

VOCAB = 700


def logits(rows=1, seed=0):
    return 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def draws(sampling=GREEDY, **changes):
    return Draws(sampling, **({"seed": 0, "choice": 0, "prompt": (), "vocab": VOCAB} | changes))


def went(scores, rows):
    """What the rows choose and go on with."""
    found = choose(scores, rows)
    for row, pick in zip(rows, found, strict=True):
        row.took(pick.token)
    return found


SETTINGS = (
    Sampling(temperature=0.7),
    Sampling(top_k=5),
    Sampling(top_p=0.9),
    Sampling(top_p=0.2, temperature=1.5),
    Sampling(min_p=0.1),
    Sampling(temperature=2.0, top_k=50, top_p=0.8, min_p=0.02),
    Sampling(temperature=50.0, top_p=0.95),
)


@pytest.mark.parametrize("stated", SETTINGS)
def test_the_distribution_is_that_of_the_librarys_processors(stated):
    scores = logits()
    scores = TemperatureLogitsWarper(stated.temperature)(None, scores)
    if stated.top_k:
        scores = TopKLogitsWarper(stated.top_k)(None, scores)
    if stated.top_p < 1:
        scores = TopPLogitsWarper(stated.top_p)(None, scores)
    if stated.min_p:
        scores = MinPLogitsWarper(stated.min_p)(None, scores)
    found = distribution(logits(), [stated])
    torch.testing.assert_close(found, scores.softmax(dim=-1), atol=1e-6, rtol=1e-5)


def test_rows_of_different_settings_have_their_own_distributions():
    several = distribution(logits(len(SETTINGS)), SETTINGS)
    for i, stated in enumerate(SETTINGS):
        alone = distribution(logits(len(SETTINGS))[i : i + 1], [stated])
        assert torch.equal(several[i : i + 1], alone)


def test_penalties_and_bias_are_the_formulas():
    prompt, generated, scores = (1, 2, 3), (3, 3, 4), logits()[0]
    stated = Sampling(
        temperature=0.0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        repetition_penalty=1.3,
        logit_bias={7: 4.0, 3: -1.0},
    )
    row = draws(stated, prompt=prompt)
    for token in generated:
        row.took(token)
    wanted = scores.clone()
    wanted[7] += 4.0
    wanted[3] -= 1.0
    seen = torch.tensor([[*prompt, *generated]])
    wanted = RepetitionPenaltyLogitsProcessor(1.3)(seen, wanted[None])[0]
    wanted[3] -= 0.5 + 2 * 0.25
    wanted[4] -= 0.5 + 0.25
    found = scores.clone()
    row.shape(found)
    torch.testing.assert_close(found, wanted)


def test_greedy_rows_take_the_largest_after_bias_and_penalties():
    scores = logits(2)
    best = scores.argmax(dim=-1).tolist()
    banned = Sampling(temperature=0.0, logit_bias={best[1]: -100.0})
    first, second = choose(scores, [draws(), draws(banned)])
    assert first.token == best[0]
    assert second.token == scores[1].topk(2).indices[1]


def test_log_probabilities_are_the_models_own_before_bias_and_temperature():
    scores = logits(2)
    heat = Sampling(temperature=1.7, logit_bias={5: 100.0})
    rows = [draws(heat, logprobs=3), draws(GREEDY, logprobs=0)]
    forced, greedy = choose(scores, rows)
    logs = scores.log_softmax(dim=-1)
    assert forced.token == 5 and forced.logprob == pytest.approx(float(logs[0, 5]))
    top = logs[0].topk(3)
    assert [token for token, _ in forced.top] == top.indices.tolist()
    assert [logprob for _, logprob in forced.top] == pytest.approx(top.values.tolist())
    assert greedy.top == () and greedy.logprob == pytest.approx(float(logs[1].max()))


def test_a_row_draws_the_same_alone_and_in_company():
    stated = [Sampling(temperature=0.8 + 0.1 * i, top_p=0.9 - 0.05 * i) for i in range(6)]
    scores = [logits(6, seed) for seed in range(20)]
    together = [draws(s, seed=i) for i, s in enumerate(stated)]
    found = [[pick.token for pick in went(of, together)] for of in scores]
    for i, s in enumerate(stated):
        row = draws(s, seed=i)
        assert [went(of[i : i + 1], [row])[0].token for of in scores] == [f[i] for f in found]


def test_draws_follow_the_distribution():
    row, scores, count = draws(Sampling(top_k=4)), logits(), 4000
    found = torch.tensor([went(scores, [row])[0].token for _ in range(count)])
    wanted = distribution(scores, [Sampling(top_k=4)])[0]
    shares = torch.bincount(found, minlength=VOCAB) / count
    assert float((shares - wanted).abs().max()) < 0.04
    assert set(found.tolist()) <= set(wanted.nonzero()[:, 0].tolist())


def test_texts_of_one_seed_do_not_begin_alike():
    assert len({row_seed(seed, choice) for seed in range(5) for choice in range(5)}) == 25


def test_a_wide_nucleus_is_found_by_sorting_everything(monkeypatch):
    stated = [Sampling(top_p=0.99, temperature=9.0), Sampling(top_p=0.1)]
    wide = distribution(logits(2), stated)
    monkeypatch.setattr(ours, "_HEAD", 16)
    assert torch.equal(distribution(logits(2), stated), wide)
    assert int((wide[0] > 0).sum()) > 512


@pytest.mark.parametrize("spoiled", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_has_no_token_and_its_neighbours_have_theirs(spoiled):
    scores = logits(3)
    scores[1, 3] = spoiled
    rows = [draws(Sampling(), seed=i, logprobs=2) for i in range(3)]
    found = choose(scores, rows)
    assert found[1] is None
    alone = [choose(logits(3)[i : i + 1], [draws(Sampling(), seed=i)])[0] for i in (0, 2)]
    assert [found[0].token, found[2].token] == [pick.token for pick in alone]


def test_a_choice_comes_out_again_until_it_is_taken():
    row, scores = draws(Sampling(temperature=5.0), seed=3), logits()
    first, again = (choose(scores, [row])[0].token for _ in range(2))
    assert first == again
    later = [went(scores, [row])[0].token for _ in range(8)]
    assert later[0] == first and len(set(later)) > 1


@pytest.mark.parametrize(
    "stated",
    [
        Sampling(temperature=1e-50),
        Sampling(temperature=1e-50, presence_penalty=0.5),
        Sampling(temperature=0.0, repetition_penalty=1e-43),
        Sampling(repetition_penalty=1e-43),
        Sampling(repetition_penalty=1e-50, presence_penalty=0.1),
    ],
)
def test_what_float32_cannot_hold_has_no_token_and_spoils_no_neighbour(stated):
    scores = logits(3)
    prompt = range(VOCAB)
    rows = [draws(Sampling(), seed=0), draws(stated, prompt=prompt), draws(Sampling(), seed=2)]
    first, bad, last = choose(scores, rows)
    assert bad is None
    alone = [choose(scores[i : i + 1], [draws(Sampling(), seed=i)])[0] for i in (0, 2)]
    assert [first, last] == alone


def test_the_bounds_of_what_is_let_in_are_finite_for_any_logits():
    scores = torch.cat([logits(1), 1e30 * logits(1)])
    for heat in (COLDEST, HOTTEST):
        for penalty in (LEAST_REPETITION, MOST_REPETITION):
            stated = Sampling(temperature=heat, repetition_penalty=penalty, presence_penalty=2.0)
            rows = [draws(stated, prompt=range(VOCAB)) for _ in scores]
            assert all(0 <= pick.token < VOCAB for pick in choose(scores, rows))


def test_a_tiny_temperature_is_nearly_greedy():
    scores = logits(4)
    rows = [draws(Sampling(temperature=1e-30), seed=i) for i in range(4)]
    assert [pick.token for pick in choose(scores, rows)] == scores.argmax(dim=-1).tolist()
