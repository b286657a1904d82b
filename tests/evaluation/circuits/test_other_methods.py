"""Flow routes, optimal ablation and sampled masks against their formulas, written out."""

import math

import pytest
import torch

from evaluation.circuits.flow_routes import flow_routes
from evaluation.circuits.optimal import Learning, optimal_vectors, prompt_losses
from evaluation.circuits.replacements import mean_vectors
from evaluation.circuits.sampled_masks import Sampling, draw_masks, masked_logits, sampled_masks
from evaluation.circuits.written import run


def test_flow_routes_are_shares_of_what_comes_closer(anatomy, batches, slow, close, drain):
    plainly, graph = slow(anatomy), anatomy.graph
    off = torch.zeros(graph.sources, dtype=torch.float64)
    expected = torch.zeros(graph.real.shape, dtype=torch.float64)
    for batch in batches:
        outputs, _ = plainly.run(batch.clean)
        _, constant = plainly.inputs(batch.clean)
        for v in range(graph.destinations):
            limit = int(graph.limits[v])
            layer = math.ceil((limit - 1) / (graph.heads + 1))
            x = plainly.read(layer, limit, outputs, constant, off, None)
            y = torch.stack(outputs[:limit])
            p = (x.abs().sum(-1) - (x - y).abs().sum(-1)).clamp(min=0)
            share = (p / p.sum(0)).nan_to_num()
            expected[:limit, v] += share.mean(-1).sum(-1) / 5
    found = drain(flow_routes(anatomy, batches)).edges
    close(anatomy.family.kind, found, expected)
    sums = found.sum(0)
    assert ((sums > 0) & (sums < 1 + 1e-9)).all()


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_a_vector_stands_in_for_one_source_at_every_token(anatomies, batches, slow, close, kind):
    anatomy, plainly = anatomies[kind], slow(anatomies[kind])
    graph, ids = anatomy.graph, batches[1].clean
    draw = torch.Generator().manual_seed(2)
    vectors = torch.randn(graph.sources, graph.width, generator=draw, dtype=torch.float64)
    found = prompt_losses(anatomy, range(graph.sources), vectors, ids).detach()
    expected = []
    for u in range(graph.sources):
        held = {u: vectors[u].expand(*ids.shape, -1)}
        # The last token's logits of every prefix are the logits of every token.
        loss = [
            torch.nn.functional.cross_entropy(
                plainly.run(ids[:, :t], held={u: held[u][:, :t]})[1], ids[:, t]
            )
            for t in range(1, ids.shape[1])
        ]
        expected.append(sum(loss) / len(loss))
    close(kind, found, torch.stack(expected))


def test_learned_vectors_hurt_less_than_means(anatomies, batches, drain):
    anatomy, ids = anatomies["llama"], batches[1].clean
    every = range(anatomy.graph.sources)
    how = Learning(steps=60, rate=3e-2, sources=6)
    learned = drain(optimal_vectors(anatomy, batches[1:], how))
    before = prompt_losses(anatomy, every, mean_vectors(anatomy, batches[1:]), ids)
    after = prompt_losses(anatomy, every, learned, ids)
    assert (after <= before + 1e-6).all()
    assert (before - after).max() > 0.1


def test_sources_learned_together_are_sources_learned_alone(anatomies, batches, close, drain):
    anatomy = anatomies["gpt2"]
    some = [
        drain(optimal_vectors(anatomy, batches[:1], Learning(steps=20, sources=n))) for n in (3, 11)
    ]
    close("gpt2", some[0], some[1], times=1e4)


def test_masks_between_switches_mix(anatomy, batches, slow, close):
    plainly, batch, graph = slow(anatomy), batches[1], anatomy.graph
    draw = torch.Generator().manual_seed(3)
    masks = torch.rand(graph.real.shape, generator=draw, dtype=torch.float64)
    base, _ = run(anatomy, batch.corrupted)
    rows = masks.expand(len(batch.clean), -1, -1)
    found = masked_logits(anatomy, batch.clean, batch.corrupted, base, rows)
    others, _ = plainly.run(batch.corrupted)
    expected = plainly.run(batch.clean, 1 - masks, others)[1]
    close(anatomy.family.kind, found.detach(), expected)


def test_drawn_masks_are_mixed_as_often_as_the_window_is_wide(anatomies):
    graph = anatomies["gpt2"].graph
    parameters = torch.full(graph.real.shape, 0.5, dtype=torch.float64).requires_grad_()
    masks = draw_masks(parameters, graph, 4000, torch.Generator().manual_seed(0))
    theta = 1 / (1 + math.exp(-0.5))
    real = masks.detach()[:, graph.real]
    assert float(real.mean()) == pytest.approx(theta, abs=0.01)
    mixed = ((real > 0) & (real < 1)).double().mean()
    assert float(mixed) == pytest.approx(theta * (1 - theta), abs=0.01)
    assert not masks.detach()[:, ~graph.real].any()
    (slope,) = torch.autograd.grad(masks.sum(), parameters)
    # As if alpha were theta in every row.
    assert float(slope[graph.real].mean()) == pytest.approx(4000 * theta * (1 - theta), rel=0.01)


def test_sampling_is_the_same_for_the_same_seed(anatomies, batches, drain):
    anatomy = anatomies["gpt2"]
    runs = [
        drain(sampled_masks(anatomy, batches, Sampling(passes=2, seed=seed))).edges
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    real = runs[0][anatomy.graph.real]
    assert ((real > 0) & (real < 1)).all()


def test_a_price_alone_closes_every_edge(anatomies, batches, drain):
    graph = anatomies["gpt2"].graph
    few, many = (
        drain(sampled_masks(anatomies["gpt2"], batches[:1], Sampling(passes=8, price=price))).edges
        for price in (0.0, 10.0)
    )
    assert (many[graph.real] < few[graph.real]).all()
