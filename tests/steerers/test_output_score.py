"""The fast scores against the reference's procedure: encode, raise, decode, add the error."""

import math

import pytest
import torch

from models.decoder import find_decoder
from models.errors import UnknownSite
from steerers.activation import TopK
from steerers.errors import UnknownFeature, WrongDictionary
from steerers.lens import lens
from steerers.output_score import Scorer, scores
from steerers.score import PAPER, REFERENCE, VARIANTS, Score, ScoreSettings, statistics

ALL = range(48)


class Reference:
    """A library model of its own, one feature at a time, whole prompts, in float64."""

    def __init__(self, hosted, dictionary):
        model = hosted.family.model.from_pretrained(
            hosted.path, dtype=torch.float64, attn_implementation="eager"
        )
        self.model, self.parts, self.dictionary = model.eval(), find_decoder(model), dictionary
        self.hosted = hosted

    def ids(self, prompt):
        return torch.tensor([self.hosted.parts["tokenizer"].tokenizer(prompt).input_ids])

    @torch.no_grad()
    def logits(self, prompt, feature=None, factor=0.0, *, replace=False):
        block = int(self.dictionary.site.rpartition(".")[2])

        def hook(_module, _args, output):
            stream = output[0] if isinstance(output, tuple) else output
            changed = self.changed(stream, feature, factor, replace=replace)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = self.parts.layers[block].register_forward_hook(hook)
        try:
            return self.model(self.ids(prompt), use_cache=False).logits[0, -1]
        finally:
            handle.remove()

    def changed(self, stream, feature, factor, *, replace):
        """Decode(a~) + (x - decode(a)) at the last token; the paper leaves the error out."""
        x = stream[0].float()
        codes = self.dictionary.encode(x)
        rebuilt = self.dictionary.decode(codes, x).double()
        if feature is not None:
            codes = codes.clone()
            codes[-1, feature] += factor * codes[-1].max()
        steered = self.dictionary.decode(codes, x).double()
        if replace:
            return steered[None]
        error = stream[0] - rebuilt
        changed = stream.clone()
        changed[0, -1] = (steered + error)[-1]
        return changed

    @torch.no_grad()
    def tokens(self, feature, k):
        row = self.dictionary.decoder[feature].double()
        return self.parts.head(self.parts.norm(row)).argsort(descending=True)[:k]

    def formula(self, logits, tokens):
        order = logits.argsort(descending=True).tolist()
        probabilities = logits.softmax(0)
        rank = min(order.index(int(t)) for t in tokens)
        return (1 - rank / len(order)) * float(probabilities[tokens].max())

    def output_score(self, feature, settings):
        tokens = self.tokens(feature, settings.tokens)
        steered = self.logits(
            settings.prompt, feature, settings.factor, replace=settings.reconstruct
        )
        prior = 0.0
        if settings.subtract_prior:
            with torch.no_grad():
                plain = self.model(self.ids(settings.prompt)).logits[0, -1]
            prior = self.formula(plain, tokens)
        return self.formula(steered, tokens) - prior


def check_against_full_passes(hosted, dictionary):
    reference = Reference(hosted, dictionary)
    settings = ScoreSettings(prompt="the president of arda is", factor=3.0)
    found = Scorer(hosted=hosted, dictionary=dictionary, settings=settings).score(ALL)
    wanted = [reference.output_score(f, settings) for f in range(0, 48, 5)]
    ours = [s.output_score for s in found[::5]]
    assert ours == pytest.approx(wanted, rel=5e-3, abs=2e-5)
    assert max(ours) > 1.2 * min(ours), "scores that are all alike prove nothing"


def test_scores_equal_one_full_pass_per_feature(decoder, dictionary_for):
    if not decoder.family.keeps_bits:
        pytest.skip("the library multiplies its experts in no float64")
    check_against_full_passes(decoder, dictionary_for(decoder, "lm.block.2"))


@pytest.mark.parametrize("site", ["lm.block.0", "lm.block.3"])
def test_and_at_the_first_and_the_last_layer(capped, dictionary_for, site):
    check_against_full_passes(capped, dictionary_for(capped, site))


@pytest.mark.parametrize("variant", VARIANTS)
def test_named_variants_equal_their_formula(capped, dictionary_for, variant):
    dictionary, settings = dictionary_for(capped), VARIANTS[variant]
    reference = Reference(capped, dictionary)
    found = Scorer(hosted=capped, dictionary=dictionary, settings=settings).score([3, 11, 40])
    wanted = [reference.output_score(f, settings) for f in (3, 11, 40)]
    assert [s.output_score for s in found] == pytest.approx(wanted, abs=2e-4)


def test_the_closed_form_is_what_encode_decode_and_error_give(llama, dictionary_for):
    dictionary = dictionary_for(llama)
    x = torch.randn(5, dictionary.width, generator=torch.Generator().manual_seed(2))
    reference = Reference(llama, dictionary)
    a_max = dictionary.a_max(x[-1])
    for feature in (0, 7, 46):
        theirs = reference.changed(x.double()[None], feature, 10.0, replace=False)[0]
        ours = x.double()
        ours[-1] += 10.0 * a_max * dictionary.decoder[feature].double()
        torch.testing.assert_close(theirs, ours, atol=2e-5, rtol=1e-6)


def test_a_feature_scores_alone_what_it_scores_in_any_batch(capped, dictionary_for):
    scorer = Scorer(hosted=capped, dictionary=dictionary_for(capped))
    together = scorer.score(ALL)
    for feature in (0, 13, 47):
        (alone,) = scorer.score([feature])
        assert alone.tokens == together[feature].tokens
        assert alone.rank == together[feature].rank
        assert alone.output_score == pytest.approx(together[feature].output_score, abs=1e-5)
        assert alone.p_max_after == pytest.approx(together[feature].p_max_after, abs=1e-5)


def test_lens_tokens_that_are_known_are_not_looked_up_again(capped, dictionary_for, monkeypatch):
    dictionary = dictionary_for(capped)
    scorer = Scorer(hosted=capped, dictionary=dictionary)
    plain, known = scorer.score([3, 11, 40]), lens(capped, dictionary, [3, 11, 40]).ids
    parts = scores(scorer, [3, 11, 40], 2, known)
    monkeypatch.setattr("steerers.output_score.lens", None)  # whoever calls it breaks
    assert scorer.score([3, 11, 40], known) == plain
    found = [score for part in parts for score in part.scores]
    assert [s.tokens for s in found] == [s.tokens for s in plain]
    assert [s.output_score for s in found] == pytest.approx(
        [s.output_score for s in plain], abs=1e-5
    )
    fewer = ScoreSettings(tokens=5)
    (few,) = Scorer(hosted=capped, dictionary=dictionary, settings=fewer).score([11], known[1:2])
    assert few.tokens == plain[1].tokens[:5]


def test_fewer_lens_tokens_than_are_asked_for_are_looked_up(capped, dictionary_for):
    dictionary = dictionary_for(capped)
    scorer = Scorer(hosted=capped, dictionary=dictionary)
    assert scorer.score([3], lens(capped, dictionary, [3], 7).ids) == scorer.score([3])


def test_what_is_kept_of_logits_is_the_same_before_and_after_their_cap():
    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)) * 40
    tokens = torch.tensor([[4, 9], [100, 2], [7, 8]])
    before = statistics(logits.clone(), tokens, cap=30.0)
    z = torch.tanh(logits.double() / 30) * 30
    best = z.gather(1, tokens).amax(1)
    assert before.above.tolist() == (z > best[:, None]).sum(1).tolist()
    torch.testing.assert_close(before.best.double(), best, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(before.log_total.double(), z.logsumexp(1), atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(before.peak, (best - z.logsumexp(1)).exp(), atol=1e-7, rtol=2e-5)
    torch.testing.assert_close(before.p_max, z.softmax(1).amax(1), atol=1e-7, rtol=2e-5)


def test_no_strength_gives_the_unsteered_value(capped, dictionary_for):
    settings = ScoreSettings(factor=0.0)
    scorer = Scorer(hosted=capped, dictionary=dictionary_for(capped), settings=settings)
    ids = torch.tensor([capped.family.tokenize(capped, settings.prompt)])
    plain = capped.family.logits(capped, ids)[0, -1:]
    for score in scorer.score([1, 20]):
        told = statistics(plain, torch.tensor([score.tokens]))
        assert score.output_score == pytest.approx(float(told.output), abs=1e-5)
        assert score.p_max_after == pytest.approx(score.p_max_before, abs=1e-5)
        assert score.delta_confidence == pytest.approx(0.0, abs=1e-4)


def test_scores_lie_between_nothing_and_one(capped, dictionary_for):
    for factor in (-10.0, 1.0, 10.0, 100.0):
        settings = ScoreSettings(factor=factor)
        scorer = Scorer(hosted=capped, dictionary=dictionary_for(capped), settings=settings)
        assert all(0 <= s.output_score <= 1 for s in scorer.score(ALL))


def test_delta_confidence_is_the_fall_of_the_largest_probability(llama, dictionary_for):
    dictionary = dictionary_for(llama)
    reference = Reference(llama, dictionary)
    (score,) = Scorer(hosted=llama, dictionary=dictionary).score([9])
    before = reference.logits(REFERENCE.prompt).softmax(0).max()
    after = reference.logits(REFERENCE.prompt, 9, REFERENCE.factor).softmax(0).max()
    assert score.p_max_before == pytest.approx(float(before), abs=1e-4)
    assert score.p_max_after == pytest.approx(float(after), abs=1e-4)
    assert score.delta_confidence == pytest.approx(math.log(before) - math.log(after), abs=1e-3)


def test_where_no_code_is_active_scores_are_unsteered_and_a_is_zero(llama, dictionary_for):
    asleep = dictionary_for(llama, encoder_bias=torch.full((48,), -1e4))
    scorer = Scorer(hosted=llama, dictionary=asleep)
    assert scorer.neutral.a_max == 0
    for score in scorer.score([0, 30]):
        assert score.a_max == 0 and score.p_max_after == pytest.approx(score.p_max_before, abs=1e-5)
        told = statistics(scorer.prompt.logits[None], torch.tensor([score.tokens]))
        assert score.output_score == pytest.approx(float(told.output), abs=1e-5)


def test_logits_that_are_not_finite_give_a_reason_and_spoil_no_neighbour(llama, dictionary_for):
    dictionary = dictionary_for(llama)
    clean = Scorer(hosted=llama, dictionary=dictionary).score([4, 5])
    dictionary.decoder[4] *= 1e38
    (bad, good) = Scorer(hosted=llama, dictionary=dictionary).score([4, 5])
    assert bad.output_score is bad.peak is bad.rank is bad.delta_confidence is None and bad.reason
    assert good.output_score == pytest.approx(clean[1].output_score, abs=1e-5)


def test_ranks_count_strictly_larger_logits():
    logits = torch.tensor([[2.0, 2.0, 1.0, 0.0], [0.0, 3.0, 1.0, 3.0]])
    told = statistics(logits, torch.tensor([[1, 3], [0, 2]]))
    assert told.above.tolist() == [0, 2]
    p = logits.double().softmax(1)
    assert told.output.tolist() == pytest.approx([float(p[0, 1]), 0.5 * float(p[1, 2])])


def test_an_input_norm_scales_the_change_as_decoding_does(llama, dictionary_for):
    dictionary = dictionary_for(llama, input_norm="layer_norm", subtracts_decoder_bias=True)
    reference = Reference(llama, dictionary)
    (score,) = Scorer(hosted=llama, dictionary=dictionary).score([9])
    assert score.output_score == pytest.approx(reference.output_score(9, REFERENCE), abs=2e-4)


def test_top_k_codes_count_in_a(llama, dictionary_for):
    dictionary = dictionary_for(llama, activation=TopK(k=3))
    reference = Reference(llama, dictionary)
    (score,) = Scorer(hosted=llama, dictionary=dictionary).score([9])
    assert score.output_score == pytest.approx(reference.output_score(9, REFERENCE), abs=2e-4)


def test_the_stream_that_enters_the_first_layer_can_be_scored(llama, dictionary_for):
    scorer = Scorer(hosted=llama, dictionary=dictionary_for(llama, "lm.embedding"))
    ids = torch.tensor([llama.family.tokenize(llama, REFERENCE.prompt)])
    decoder = llama.parts["decoder"]
    with torch.no_grad():
        stream = decoder.embed(ids)
        x = stream[0, -1].clone()
        a_max = scorer.dictionary.a_max(x)
        stream[0, -1] = x + 10.0 * a_max * scorer.dictionary.decoder[6]
        logits = llama.modules["lm"](inputs_embeds=stream, use_cache=False).logits[0, -1:]
    (score,) = scorer.score([6])
    told = statistics(logits, torch.tensor([score.tokens]))
    assert score.output_score == pytest.approx(float(told.output), abs=1e-5)


def test_one_reading_of_the_prompt_serves_all_sites(llama, dictionary_for):
    from steerers.prompted import prompted

    sites = ["lm.block.0", "lm.block.2"]
    ids = llama.family.tokenize(llama, REFERENCE.prompt)
    read = prompted(llama, ids, sites)
    for site in sites:
        dictionary = dictionary_for(llama, site)
        shared = Scorer(hosted=llama, dictionary=dictionary, read=read).score([1, 2])
        assert shared == Scorer(hosted=llama, dictionary=dictionary).score([1, 2])


def test_batches_are_finished_records_and_can_be_taken_up_again(llama, dictionary_for):
    scorer = Scorer(hosted=llama, dictionary=dictionary_for(llama))
    work = scores(scorer, ALL, batch=20)
    first = next(work)
    assert [s.feature for s in first.scores] == list(range(20))
    assert (first.progress.done, first.progress.total) == (20, 48)
    work.close()  # the crash
    kept = {s.feature: s for s in first.scores}
    missing = [f for f in ALL if f not in kept]
    for part in scores(scorer, missing, batch=20):
        kept |= {s.feature: s for s in part.scores}
    assert sorted(kept) == list(ALL)
    ours = [kept[f].output_score for f in ALL]
    assert ours == pytest.approx([s.output_score for s in scorer.score(ALL)], abs=1e-5)


def test_records_survive_json(llama, dictionary_for):
    (score,) = Scorer(hosted=llama, dictionary=dictionary_for(llama)).score([3])
    assert Score.from_dict(score.as_dict()) == score


def test_what_does_not_fit_is_refused(llama, dictionary_for):
    dictionary = dictionary_for(llama)
    with pytest.raises(UnknownFeature):
        Scorer(hosted=llama, dictionary=dictionary).score([48])
    with pytest.raises(UnknownSite):
        Scorer(hosted=llama, dictionary=dictionary_for(llama, "lm.block.40"))
    from tests.steerers.conftest import random_dictionary

    with pytest.raises(WrongDictionary):
        Scorer(hosted=llama, dictionary=random_dictionary(16))


def test_scoring_changes_no_weight(llama, dictionary_for):
    before = llama.weights_digest()
    Scorer(hosted=llama, dictionary=dictionary_for(llama), settings=PAPER).score([0])
    assert llama.weights_digest() == before
