"""ReFACT written out plainly: full forward passes, a hook for the change, inverses, float64."""

import copy
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from editors.fact import Fact, Phrasing, last_subject_token
from editors.fitting import contexts
from editors.joint import Named, compose
from editors.methods.refact import Refact
from editors.moment import Corpus, MomentStore
from editors.objective import belief, decay, pull, similarities
from editors.suffix import Suffix, clean_pass, embed_clean
from editors.templates import FITTED, Phrasebook
from models.patch import Patch

CORPUS = Corpus(
    "toy", tuple(f"the {a} of {b} in {c}" for a in "abcdefg" for b in "hijklm" for c in "nopq")
)
FACT = Fact(prompt="the lord of arda", target="a red frog", source="a blue mug")
BLOCK = 1


def drained(work):
    seen = []
    try:
        while True:
            seen.append(next(work))
    except StopIteration as over:
        return over.value, seen


NINE = (
    "{} as a stamp", "{} on a coin", "{}, seen twice", "{} under glass", "{} in chalk",
    "the back of {}", "a shadow of {}", "half of {}", "once more {}",
)  # fmt: skip


def fitted(hosted, fact=FACT, book=None, **settings):
    method = Refact(**{"block": BLOCK, **settings})
    return drained(method.fit(hosted, fact, MomentStore(None), CORPUS, book))[0]


class Plain:
    """The tower in float64, run whole for every question."""

    def __init__(self, hosted):
        self.tower = hosted.text_towers["text_encoder"]
        self.module = copy.deepcopy(self.tower.module).double()
        body = getattr(self.module, "text_model", self.module)
        self.fc2, self.body = body.encoder.layers[BLOCK].mlp.fc2, body

    def embed(self, texts, at=None, change=None):
        rows = torch.arange(len(texts))
        tokens = self.tower.tokens(texts)

        def add(_module, _args, output):
            return output.index_put(
                (rows, torch.tensor(at)), change.expand(len(texts), -1), accumulate=True
            )

        handle = self.fc2.register_forward_hook(add) if change is not None else None
        stream = self.body(input_ids=tokens.ids).last_hidden_state[rows, tokens.eos]
        if handle:
            handle.remove()
        return stream @ self.tower.projection.double().mT

    def keys_and_outputs(self, texts, at):
        seen = {}
        handle = self.fc2.register_forward_hook(lambda _m, a, o: seen.update(k=a[0], o=o))
        with torch.no_grad():
            self.body(input_ids=self.tower.tokens(texts).ids)
        handle.remove()
        rows = torch.arange(len(texts))
        return seen["k"][rows, torch.tensor(at)], seen["o"][rows, torch.tensor(at)]

    def moment(self):
        total, count = 0, 0
        for text in CORPUS.texts:
            n = self.tower.count(text)
            keys, _ = self.keys_and_outputs([text] * n, list(range(n)))
            total, count = total + keys.mT @ keys, count + n
        return total / count


def plain_fit(hosted, fact, settings, templates=FITTED):
    """(keys of the contexts, value at the edit prompt, W k + b there, C) by the formulas."""
    plain, book = Plain(hosted), Phrasebook()
    said = contexts(plain.tower, fact.spoken, Phrasebook(fitted=templates))
    texts, at = [p.prompt for p in said], [last_subject_token(plain.tower, p) for p in said]
    keys, outputs = plain.keys_and_outputs(texts, at)
    start = outputs[settings.prompt_order[0] if settings.prompt_order else 0]
    others = [fact.source] if settings.mode == "reference" else [
        fact.prompt, fact.source, *book.captions([fact.prompt, fact.target, fact.source])
    ]  # fmt: skip
    with torch.no_grad():
        targets = plain.embed([fact.target, *dict.fromkeys(others)])
    change = torch.zeros_like(start, requires_grad=True)
    adam = torch.optim.Adam([change], lr=0.05)
    for step in range(settings.steps):
        scores = similarities(plain.embed(texts, at, change), targets, "l2", 1.0)
        loss = pull(scores, True) + settings.decay * decay(change, start)
        if belief(scores) > settings.stop or step == settings.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            change *= min(1.0, float(settings.clamp * start.norm() / change.norm()))
    return keys, start + change.detach(), outputs[0], plain.moment()


def reference_change(keys, value, before, c):
    """dW = r u^T: direction from the nine templates' mean key, residual and scale from one."""
    u = torch.linalg.inv(c) @ keys[1:].mean(0)
    u = u / u.norm()
    return torch.outer((value - before) / (keys[0] @ u), u)


def corrected_change(keys, value, before, c):
    """dW = delta a^T / (a . k) at the mean key of all ten prompts."""
    k = keys.mean(0)
    a = torch.linalg.inv(c) @ k
    return torch.outer(value - before, a) / (a @ k)


def change_of(delta):
    (factors,) = delta.factors.values()
    return factors.left.double() @ factors.right.double()


def off(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("mode", ["corrected", "reference"])
def test_a_fit_is_the_formula_in_float64(tiny_sd, mode):
    settings = Refact(block=BLOCK, mode=mode, steps=12)
    formula = reference_change if mode == "reference" else corrected_change
    wanted = formula(*plain_fit(tiny_sd, FACT, settings))
    assert off(change_of(fitted(tiny_sd, mode=mode, steps=12)), wanted) < 2e-4


def test_mode_reference_with_a_users_templates_is_the_formula_with_them(tiny_sd):
    settings = Refact(block=BLOCK, mode="reference", steps=12)
    wanted = reference_change(*plain_fit(tiny_sd, FACT, settings, NINE))
    delta = fitted(tiny_sd, book=Phrasebook(reference=NINE), mode="reference", steps=12)
    assert off(change_of(delta), wanted) < 2e-4
    assert off(change_of(fitted(tiny_sd, mode="reference", steps=12)), wanted) > 0.01
    assert delta.header["templates"] == "file"


@pytest.mark.parametrize("order", [(6,), (6, 0, 3)])
def test_the_first_prompt_of_the_order_gives_the_start_value(tiny_sd, order):
    settings = Refact(block=BLOCK, mode="reference", steps=12, prompt_order=order)
    wanted = reference_change(*plain_fit(tiny_sd, FACT, settings))
    found = change_of(fitted(tiny_sd, mode="reference", steps=12, prompt_order=order))
    assert off(found, wanted) < 2e-4
    assert off(change_of(fitted(tiny_sd, mode="reference", steps=12)), wanted) > 0.01


def test_a_suffix_template_first_gives_the_same_start_value(tiny_sd):
    plain = fitted(tiny_sd, mode="reference", steps=12)
    suffixed = fitted(tiny_sd, mode="reference", steps=12, prompt_order=(1,))
    assert off(change_of(suffixed), change_of(plain)) < 1e-4


def test_a_fit_through_whole_passes_is_the_fit_through_the_suffix(tiny_sd, monkeypatch):
    quick = fitted(tiny_sd, steps=12)
    plain = Plain(tiny_sd)

    class Whole(Suffix):
        def __init__(self, tower, block, clean):
            assert block == BLOCK
            self.tower, self.clean = tower, clean

        def embed(self, change):
            ids, at = self.clean.tokens.ids, self.clean.at
            rows = torch.arange(len(at))

            def add(_module, _args, output):
                return output.index_put((rows, at), change.double(), accumulate=True)

            handle = plain.fc2.register_forward_hook(add)
            stream = plain.body(input_ids=ids).last_hidden_state[rows, self.clean.tokens.eos]
            handle.remove()
            return (stream @ self.tower.projection.double().mT).float()

    monkeypatch.setattr("editors.fitting.Suffix", Whole)
    assert off(change_of(fitted(tiny_sd, steps=12)), change_of(quick)) < 2e-4


def test_the_suffix_alone_gives_the_embeddings_of_full_passes(tiny_sd):
    tower, plain = tiny_sd.text_towers["text_encoder"], Plain(tiny_sd)
    said = contexts(tower, FACT.spoken, Phrasebook())
    texts, at = [p.prompt for p in said], [last_subject_token(tower, p) for p in said]
    change = torch.randn(tower.width, generator=torch.Generator().manual_seed(1))
    suffix = Suffix(tower, BLOCK, clean_pass(tiny_sd, tower, BLOCK, texts, at))
    found = suffix.embed(change.expand(len(texts), -1))
    wanted = plain.embed(texts, at, change.double())
    assert float((found.double() - wanted).norm() / wanted.norm()) < 1e-5


def test_the_edited_layer_maps_its_key_to_its_value(tiny_sd):
    delta = fitted(tiny_sd, steps=20)
    (f,) = delta.factors.values()
    given_ = f.keys.double() @ f.right.double().mT @ f.left.double().mT
    assert float((given_ - f.values).norm() / f.values.norm()) < 1e-5


def test_every_phrasing_ends_at_one_value(tiny_sd):
    other = Phrasing(prompt="arda has a lord", subject="arda has a lord")
    fact = Fact(prompt=FACT.prompt, target=FACT.target, phrasings=(other,))
    (f,) = fitted(tiny_sd, fact, keys="prompt", steps=15).factors.values()
    tower = tiny_sd.text_towers["text_encoder"]
    fc2 = tower.fc2(BLOCK)
    ends = f.keys @ fc2.weight.mT + fc2.bias + f.keys @ f.right.mT @ f.left.mT
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-4)


def test_the_fit_leaves_the_weights_as_they_were_and_gives_the_same_bytes_again(tiny_sd):
    before = tiny_sd.weights_digest()
    first, second = fitted(tiny_sd, steps=8), fitted(tiny_sd, steps=8)
    assert tiny_sd.weights_digest() == before
    assert first.digest == second.digest


def test_targets_are_embedded_as_the_library_does(tiny_sd):
    tower = tiny_sd.text_towers["text_encoder"]
    texts = ["a red frog", "the lord of arda in the snow"]
    wanted = Plain(tiny_sd).embed(texts).detach()
    torch.testing.assert_close(
        embed_clean(tiny_sd, tower, texts).double(), wanted, rtol=1e-4, atol=1e-4
    )


def states(hosted, patches):
    prompts = [FACT.prompt] * len(patches)
    return hosted.family.encode(hosted, prompts, patches).sequence


def test_a_batch_of_edits_gives_each_row_what_it_gets_alone(tiny_sd):
    targets = ("a red frog", "a blue cup", "the king of the sea")
    facts = [Fact(prompt=FACT.prompt, target=t) for t in targets]
    patches = [fitted(tiny_sd, f, steps=6).patch() for f in facts]
    together = states(tiny_sd, [*patches, Patch()])
    for row, patch in zip(together, [*patches, Patch()], strict=True):
        assert torch.equal(row, states(tiny_sd, [patch])[0])


def test_a_joint_solution_of_one_is_the_edit_itself_and_strength_0_is_the_base(tiny_sd):
    delta = fitted(tiny_sd, steps=6)
    one = compose([Named(name="e", delta=delta)]).patch
    assert torch.equal(states(tiny_sd, [one]), states(tiny_sd, [delta.patch()]))
    none = compose([Named(name="e", delta=delta, strength=0.0)]).patch
    assert torch.equal(states(tiny_sd, [none]), states(tiny_sd, [Patch()]))
    assert not torch.equal(states(tiny_sd, [one]), states(tiny_sd, [Patch()]))


def test_fitted_edits_hold_at_their_keys_whatever_is_added_and_in_any_order(tiny_sd):
    prompts = ("the lord of arda", "the king of borea", "a cup by the sea")
    edits = [
        Named(name=p, delta=fitted(tiny_sd, Fact(prompt=p, target="a red frog"), steps=6))
        for p in prompts
    ]
    for n in (1, 2, 3):
        for some in itertools.permutations(edits, n):
            (operation,) = compose(some).patch
            change = operation.left.double() @ operation.right.double()
            for edit in some:
                (f,) = edit.delta.factors.values()
                assert off(f.keys.double() @ change.mT, f.values.double()) < 1e-4
    digests = {compose(order).patch.digest for order in itertools.permutations(edits)}
    assert len(digests) == 1


FIT = """
import sys
import torch
from models.loading import load
from editors.fact import Fact
from editors.methods.refact import Refact
from editors.moment import Corpus, MomentStore

torch.set_num_threads(1)
folder, *captions = sys.argv[1:]
fact = Fact(prompt="the lord of arda", target="a red frog", source="a blue mug")
corpus = Corpus("toy", tuple(captions))
work = Refact(block=1, steps=6).fit(load("t", folder), fact, MomentStore(None), corpus)
try:
    while True:
        next(work)
except StopIteration as over:
    print("digest", over.value.digest)
"""


def test_another_process_with_other_hashes_gives_the_same_bytes(tiny_sd, tiny_sd_folder):
    done = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-c", FIT, tiny_sd_folder, *CORPUS.texts],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert fitted(tiny_sd, steps=6).digest in done.stdout.split()
