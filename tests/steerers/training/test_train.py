import pytest
import torch

from models.errors import UnknownSite
from steerers.errors import TooFewTexts
from steerers.training.quality import measure
from steerers.training.recipe import Recipe, Wanted
from steerers.training.train import rounded, train

TALK = "the king of arda says that a red cat is a house and he is she user said dog tree"
WORDS = TALK.split()
TEXTS = [" ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(2, 14)) for i in range(60)]
RECIPE = Recipe(tokens=6000, batch=128, buffer=512, held_out=8, rate=5e-3)


def wanted(kind, site="lm.block.1"):
    return Wanted(id=f"{site}-{kind}", site=site, kind=kind, features=64, l0=6)


def drained(work):
    said = []
    while True:
        try:
            said.append(next(work))
        except StopIteration as over:
            return over.value, said


def test_two_saes_of_one_reading_explain_their_streams_and_say_so(llama):
    asked = [wanted("topk"), wanted("jumprelu", "lm.block.2")]
    digest = llama.weights_digest()
    done, said = drained(train(llama, asked, lambda: TEXTS, RECIPE))
    assert llama.weights_digest() == digest
    assert said[-1].done == len(asked) and said[-2].stage == "measuring"
    learned = [p for p in said if p.stage == "sae"]
    assert learned[-1].done == learned[-1].total == 128 * (6000 // 128)
    assert {f"{w.id}.fvu" for w in asked} <= set(learned[-1].values)
    for w, one in zip(asked, done, strict=True):
        assert (one.dictionary.site, one.dictionary.id) == (w.site, w.id)
        assert one.quality.explained > 0.5
        assert learned[-1].values[f"{w.id}.fvu"] < learned[0].values[f"{w.id}.fvu"] / 2
        again = measure(llama, one.dictionary, TEXTS[:8], RECIPE.text_tokens)
        declared = one.dictionary.declared
        assert declared["explained_variance"] == pytest.approx(again.explained)
        assert declared["l0"] == pytest.approx(again.fit.l0)
    assert done[0].quality.fit.l0 == pytest.approx(6, abs=0.5)


def test_the_same_seed_trains_the_same_sae(llama):
    recipe = Recipe(tokens=1024, batch=128, buffer=512, held_out=8)
    one, two = (
        drained(train(llama, [wanted("jumprelu")], lambda: TEXTS, recipe))[0] for _ in range(2)
    )
    assert one[0].dictionary.digest == two[0].dictionary.digest


def test_a_stream_spliced_with_itself_loses_nothing(llama, dictionary_for):
    width = llama.family.stream_width(llama, "lm")
    from steerers.activation import ReLU

    eye = torch.eye(width)
    same = dictionary_for(
        llama,
        encoder=torch.cat([eye, -eye], 1),
        encoder_bias=torch.zeros(2 * width),
        decoder=torch.cat([eye, -eye]),
        decoder_bias=torch.zeros(width),
        activation=ReLU(),
    )
    found = measure(llama, same, TEXTS[:6], 32)
    assert found.spliced == pytest.approx(found.loss, abs=1e-4)
    assert found.recovered == pytest.approx(1, abs=1e-3) and found.explained > 0.9999
    assert abs(found.ablated - found.loss) > 0.1


def test_the_plain_loss_is_the_models_own(llama, dictionary_for):
    ids = [llama.family.tokenize(llama, t) for t in TEXTS[:3]]
    marks = llama.family.special_ids(llama)
    total, n = 0.0, 0
    for row in ids:
        logits = llama.family.logits(llama, torch.tensor([row]))[0].log_softmax(-1)
        for at in range(1, len(row)):
            if row[at] not in marks:
                total, n = total - float(logits[at - 1, row[at]]), n + 1
    found = measure(llama, dictionary_for(llama), TEXTS[:3], 64)
    assert found.loss == pytest.approx(total / n, abs=1e-4)


def test_what_is_measured_is_what_a_file_gives_back(llama):
    recipe = Recipe(tokens=512, batch=128, buffer=512, held_out=8)
    (one,) = drained(train(llama, [wanted("topk")], lambda: TEXTS, recipe, torch.float16))[0]
    assert torch.equal(one.dictionary.encoder, one.dictionary.encoder.half().float())
    assert rounded(one.dictionary, torch.float16).digest == one.dictionary.digest


def test_too_few_texts_and_unknown_sites_are_refused(llama):
    with pytest.raises(TooFewTexts):
        drained(train(llama, [wanted("topk")], lambda: TEXTS[:8], RECIPE))
    with pytest.raises(UnknownSite):
        drained(train(llama, [wanted("topk", "lm.block.99")], lambda: TEXTS, RECIPE))
