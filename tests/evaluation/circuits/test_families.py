"""Every family that has a graph: its scores are the slopes of its own circuit runs."""

import pytest
import torch

from evaluation.circuits import running
from evaluation.circuits.anatomy import find_anatomy
from evaluation.circuits.attribution import Gradually, attribute
from evaluation.circuits.batches import in_batches
from evaluation.circuits.errors import NoGraph
from evaluation.circuits.points import Cost
from evaluation.circuits.running import know
from evaluation.circuits.sampled_masks import masked_logits
from evaluation.circuits.selection import full
from models.family import FAMILIES
from models.loading import load

KINDS = ("gpt2", "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral")


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return FAMILIES[request.param].tiny(tmp_path_factory.mktemp("families") / request.param)


def test_scores_are_the_slopes_of_the_masks(folder, pairs, drain):
    anatomy = find_anatomy(load("tiny", folder))
    [batch] = in_batches(pairs[1:4:2], 64, anatomy.device)
    how = Gradually(method="eap", exact_postnorm=True)
    scores = drain(attribute(anatomy, [batch], how)).edges
    known = know(anatomy, batch, Cost())
    graph = anatomy.graph
    masks = torch.ones(graph.real.shape).requires_grad_()
    rows = masks.expand(len(batch.clean), -1, -1)
    logits = masked_logits(anatomy, batch.clean, batch.corrupted, known.seen, rows)
    margins = batch.margins(logits)
    torch.testing.assert_close(margins.detach(), known.full, rtol=1e-3, atol=1e-3)
    (slope,) = torch.autograd.grad((batch.weights * margins).sum(), masks)
    found = slope.double() * graph.real
    assert (scores - found).abs().max() < 2e-3 * scores.abs().max()
    whole = running._margins(anatomy, known, full(graph), graph.sources)
    torch.testing.assert_close(whole, known.full, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_half_precision_finds_the_same_order(kind, tmp_path, pairs, drain):
    FAMILIES[kind].tiny(tmp_path / kind)
    scores = []
    for dtype in ("float32", "bfloat16"):
        anatomy = find_anatomy(load("tiny", tmp_path / kind, dtype=dtype))
        batches = list(in_batches(pairs, 64, anatomy.device))
        found = drain(attribute(anatomy, batches, Gradually(neurons=True)))
        assert (found.neurons.sum(1) - found.edges.sum(1)).abs().max() < 1e-4
        scores.append(found.edges[anatomy.graph.real])
        known = [know(anatomy, batch, Cost()) for batch in batches]
        whole = torch.cat(
            [
                running._margins(anatomy, k, full(anatomy.graph), anatomy.graph.sources)
                for k in known
            ]
        )
        clean = torch.cat([k.full for k in known])
        assert (whole - clean).abs().max() < (1e-3 if dtype == "float32" else 0.5)
    assert torch.corrcoef(torch.stack(scores))[0, 1] > 0.97


@pytest.mark.parametrize("kind", ["phi3", "any_language"])
def test_what_cannot_be_taken_apart_is_refused(kind, tmp_path):
    FAMILIES[kind].tiny(tmp_path / kind)
    with pytest.raises(NoGraph):
        find_anatomy(load("tiny", tmp_path / kind))
