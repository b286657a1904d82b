"""The fast scores are the gradients of the switch function, edge by edge."""

import pytest
import torch

from evaluation.circuits.attribution import Gradually, attribute
from evaluation.circuits.batches import in_batches, reference_weights
from evaluation.circuits.points import Cost
from evaluation.circuits.replacements import mean_vectors, replacement

STEPS = 3


def differences(slow, batch):
    clean, _ = slow.run(batch.clean)
    corrupted, _ = slow.run(batch.corrupted)
    return clean, corrupted, [b - a for a, b in zip(clean, corrupted, strict=True)]


def plain(slow, batches, method, *, carried=False):
    """The definition, from autograd through the switch function."""
    total = 0.0
    for batch in batches:
        clean, corrupted, d = differences(slow, batch)
        d = slow.carried(clean, d) if carried else d
        if method == "eap":
            total = total + slow.slope(batch, d)
        elif method == "clean-corrupted":
            other = slow.slope(batch, d, entering=corrupted[0])
            total = total + (slow.slope(batch, d) + other) / 2
        elif method == "eap-ig-inputs":
            ways = [corrupted[0] + k / STEPS * (clean[0] - corrupted[0]) for k in range(STEPS)]
            total = total + sum(slow.slope(batch, d, entering=e) for e in ways) / STEPS
        else:
            g = slow.graph
            groups = [[0]]
            for layer in range(g.layers):
                groups += [[g.head(layer, h) for h in range(g.heads)], [g.mlp(layer)]]
            for group in groups:
                for k in range(1, STEPS + 1):
                    held = {u: k / STEPS * clean[u] + (1 - k / STEPS) * corrupted[u] for u in group}
                    total = total + slow.slope(batch, d, held=held) / (STEPS * len(groups))
    return total


def fast(anatomy, batches, drain, **how):
    return drain(attribute(anatomy, batches, Gradually(steps=STEPS, **how)))


@pytest.mark.parametrize(
    "method", ["eap", "clean-corrupted", "eap-ig-inputs", "eap-ig-activations"]
)
def test_scores_are_the_gradients_of_the_switches(anatomy, batches, slow, close, drain, method):
    found = fast(anatomy, batches, drain, method=method).edges
    close(anatomy.family.kind, found, plain(slow(anatomy), batches, method))
    assert not found[~anatomy.graph.real].any()


def test_gemmas_heads_can_be_carried_through_the_norm_behind_them(
    anatomies, batches, slow, close, drain
):
    anatomy, plainly = anatomies["gemma2"], slow(anatomies["gemma2"])
    found = fast(anatomy, batches, drain, method="eap", exact_postnorm=True).edges
    close("gemma2", found, sum(plainly.mixing_slope(batch) for batch in batches))
    found = fast(anatomy, batches, drain, exact_postnorm=True).edges
    close("gemma2", found, plain(plainly, batches, "eap-ig-inputs", carried=True))


def test_gemmas_parity_form_leaves_the_norm_behind_the_heads_out(anatomies, batches, drain):
    anatomy = anatomies["gemma2"]
    exact = fast(anatomy, batches, drain, method="eap", exact_postnorm=True).edges
    parity = fast(anatomy, batches, drain, method="eap").edges
    heads = [anatomy.graph.head(layer, h) for layer in range(2) for h in range(4)]
    others = [u for u in range(anatomy.graph.sources) if u not in heads]
    assert torch.equal(exact[others], parity[others])
    assert (exact[heads] - parity[heads]).abs().max() > 0.1 * exact.abs().max()


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean-positional", "mean-reference"])
def test_other_replacements_are_differences_to_what_they_say(
    anatomies, batches, slow, close, drain, ablation
):
    anatomy = anatomies["gpt2"]
    plainly = slow(anatomy)
    runs = [plainly.run(batch.clean)[0] for batch in batches]
    tokens = sum(batch.clean.numel() for batch in batches)
    prompts = sum(len(batch.rows) for batch in batches)

    def instead(u, length):
        if ablation == "zero":
            return torch.zeros(anatomy.graph.width).double()
        if ablation == "mean":
            return sum(run[u].sum((0, 1)) for run in runs) / tokens
        if ablation == "mean-positional":
            return torch.stack([
                torch.cat([run[u][:, t] for run in runs if run[u].shape[1] > t]).mean(0)
                for t in range(length)
            ])  # fmt: skip
        last = [run[v][:, -1].sum(0) / run[v].shape[1] for run in runs for v in range(len(run))]
        return sum(last) / (prompts * anatomy.graph.sources)

    expected = sum(
        plainly.slope(batch, [instead(u, batch.clean.shape[1]) - run[u] for u in range(len(run))])
        for batch, run in zip(batches, runs, strict=True)
    )
    other = replacement(anatomy, ablation, batches, Cost())
    found = drain(attribute(anatomy, batches, Gradually(method="eap"), other)).edges
    close("gpt2", found, expected)


def test_learned_vectors_replace_like_any_other(anatomies, batches, drain, close):
    anatomy = anatomies["llama"]
    vectors = mean_vectors(anatomy, batches)
    mean = replacement(anatomy, "mean", batches, Cost())
    learned = replacement(anatomy, "optimal", batches, Cost(), vectors)
    scores = [
        drain(attribute(anatomy, batches, Gradually(method="eap"), other)).edges
        for other in (mean, learned)
    ]
    close("llama", scores[1], scores[0])


def test_nodes_and_neurons_are_sums_of_edges(anatomy, batches, slow, close, drain):
    scores = fast(anatomy, batches, drain, neurons=True)
    close("gpt2", scores.neurons.sum(1), scores.edges.sum(1))
    assert torch.equal(scores.nodes, scores.edges.sum(1))
    # A neuron of the input is its part of the difference alone.
    batch = batches[0]
    plainly = slow(anatomy)
    _, corrupted, d = differences(plainly, batch)
    clean = plainly.run(batch.clean)[0]
    one = [torch.zeros_like(x) for x in d]
    one[0][..., 3] = d[0][..., 3]
    ways = [corrupted[0] + k / STEPS * (clean[0] - corrupted[0]) for k in range(STEPS)]
    expected = sum(plainly.slope(batch, one, entering=e)[0].sum() for e in ways) / STEPS
    found = fast(anatomy, [batch], drain, neurons=True).neurons
    size = found.abs().max()
    assert abs(found[0, 3] - expected) <= 1e-4 * size


def test_the_same_replacement_as_now_scores_nothing(anatomy, batches, drain):
    from dataclasses import replace

    same = [replace(batch, corrupted=batch.clean) for batch in batches]
    assert not fast(anatomy, same, drain).edges.any()


def test_clean_corrupted_is_the_mean_of_eap_and_one_step(anatomy, batches, close, drain):
    def scores(method, steps=1):
        return drain(attribute(anatomy, batches, Gradually(method=method, steps=steps))).edges

    both = (scores("eap") + scores("eap-ig-inputs")) / 2
    close("gpt2", scores("clean-corrupted"), both, times=1e3)


def test_order_and_batching_of_examples_do_not_matter(anatomies, pairs, close, drain):
    anatomy = anatomies["qwen2"]
    together = list(in_batches(pairs, 64, anatomy.device))
    alone = list(in_batches(pairs[::-1], 1, anatomy.device))
    assert len(alone) == 5 > len(together)
    a, b = (fast(anatomy, some, drain).edges for some in (together, alone))
    close("qwen2", a, b)


def test_the_references_weights_count_a_short_last_batch_too_much():
    assert reference_weights(5, 2) == [0.1, 0.1, 0.1, 0.1, 0.2]


def test_the_references_node_scores_differ_at_mlps_alone(anatomies, batches, drain):
    anatomy = anatomies["gpt2"]
    ours = fast(anatomy, batches, drain, method="eap").nodes
    theirs = fast(anatomy, batches, drain, method="eap", parity=frozenset({"mlp-nodes"})).nodes
    mlps = [anatomy.graph.mlp(layer) for layer in range(2)]
    assert (ours != theirs).nonzero().flatten().tolist() == mlps


def test_the_references_node_integral_is_a_right_sum(anatomies, batches, slow, drain, close):
    anatomy, plainly, total = anatomies["gpt2"], slow(anatomies["gpt2"]), 0.0
    for batch in batches:
        clean, corrupted, d = differences(plainly, batch)
        for k in range(1, STEPS + 1):
            way = corrupted[0] + k / STEPS * (clean[0] - corrupted[0])
            total = total + plainly.slope(batch, d, entering=way).sum(1) / STEPS
    found = fast(anatomy, batches, drain, parity=frozenset({"node-integrals"}))
    close("gpt2", found.nodes, total)
    close("gpt2", found.edges, fast(anatomy, batches, drain).edges)


def test_where_the_reference_holds_a_rotary_embedding_layer_0_reads_nothing(
    anatomies, batches, drain
):
    anatomy = anatomies["llama"]
    ours = fast(anatomy, batches, drain, method="eap-ig-activations").edges
    theirs = fast(
        anatomy, batches, drain, method="eap-ig-activations", parity=frozenset({"held-embedding"})
    ).edges
    differs = (ours - theirs).abs().sum(0) > 1e-9
    assert differs[: 3 * anatomy.graph.heads].any()
    assert not differs[3 * anatomy.graph.heads :].any()


def test_nothing_of_it_stays_in_the_model(anatomies, batches, drain):
    anatomy = anatomies["llama"]
    model = anatomy.hosted.modules["lm"]

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()), [
            layer.attention.num_key_value_groups for layer in anatomy.layers
        ]

    before = hooks()
    fast(anatomy, batches, drain)
    steps = attribute(anatomy, batches, Gradually())
    next(steps)
    steps.close()
    assert hooks() == before
