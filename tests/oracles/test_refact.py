"""ReFACT written out plainly: full forward passes, a hook for the change, inverses, float64."""

import copy

import pytest
import torch

from editors.fact import Fact, Phrasing, last_subject_token
from editors.methods.refact import Refact, contexts
from editors.moment import Corpus, MomentStore
from editors.objective import belief, decay, pull, similarities
from editors.suffix import Suffix, clean_pass, embed_clean
from editors.templates import Phrasebook

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


def fitted(hosted, fact=FACT, **settings):
    return drained(Refact(block=BLOCK, **settings).fit(hosted, fact, MomentStore(None), CORPUS))[0]


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


def plain_fit(hosted, fact, settings):
    """(keys of the contexts, value at the edit prompt, W k + b there, C) by the formulas."""
    plain, book = Plain(hosted), Phrasebook()
    said = contexts(plain.tower, fact.spoken, book)
    texts, at = [p.prompt for p in said], [last_subject_token(plain.tower, p) for p in said]
    keys, outputs = plain.keys_and_outputs(texts, at)
    start = outputs[0]
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


@pytest.mark.parametrize("mode", ["corrected", "reference"])
def test_a_fit_is_the_formula_in_float64(tiny_sd, mode):
    settings = Refact(block=BLOCK, mode=mode, steps=12)
    keys, value, before, c = plain_fit(tiny_sd, FACT, settings)
    if mode == "reference":
        bar = keys[1:].mean(0)
        u = torch.linalg.inv(c) @ bar
        u = u / u.norm()
        wanted = torch.outer((value - before) / (keys[0] @ u), u)
    else:
        k = keys.mean(0)
        a = torch.linalg.inv(c) @ k
        wanted = torch.outer(value - before, a) / (a @ k)
    factors = fitted(tiny_sd, mode=mode, steps=12).factors[
        "text_encoder.text_model.encoder.layers.1.mlp.fc2"
    ]
    found = factors.left.double() @ factors.right.double()
    assert float((found - wanted).norm() / wanted.norm()) < 2e-4


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
