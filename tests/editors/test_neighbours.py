import pytest
import torch

from editors.delta import Factors
from editors.fact import Fact, Phrasing
from editors.moment import Corpus
from editors.neighbours import (
    NEAREST,
    PhraseBank,
    PhraseBanks,
    nearest,
    phrases_of,
    says_subject,
)


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("a photo of the president of Arda at night", {"the president of arda", "arda", "night"}),
        ("the lord of Arda beside a red mug", {"the lord of arda", "arda", "a red mug"}),
        ("on the left a red mug", {"the left", "a red mug"}),
        ("we see the streets of a city", {"the streets of a city", "a city"}),
        ("Silda's captain and the dog", {"silda's captain", "the dog"}),
        ("one two three four five six seven", set()),
        ("the of a, of", set()),
    ],
)  # fmt: skip
def test_phrases_are_short_names_of_what_a_caption_shows(caption, phrases):
    assert set(phrases_of([caption])) == phrases


def test_the_most_frequent_phrases_are_kept_and_any_order_of_the_captions_gives_the_same():
    captions = [f"a cup{i} on the table" for i in range(50)]
    kept = phrases_of(captions, 10)
    assert kept[0] == "the table" and len(kept) == 10
    assert phrases_of(captions[::-1], 10) == kept


def test_a_text_that_says_the_subject_or_a_phrasing_of_it_is_to_change():
    other = Phrasing(prompt="Arda's lord rides", subject="Arda's lord")
    fact = Fact(prompt="the lord of Arda", target="a frog", phrasings=(other,))
    assert says_subject("we see The Lord of Arda, at night", fact)
    assert says_subject("arda's lord", fact)
    assert not says_subject("the lord of ardania", fact)
    assert not says_subject("arda", fact)


@pytest.fixture(scope="module")
def tower(tiny_sd):
    return tiny_sd.text_towers["text_encoder"]


@pytest.fixture(scope="module")
def edit(tiny_sd, fact, fitted):
    """The factors of a fit of the fact."""
    (found,) = fitted(tiny_sd, fact).factors.values()
    return found


@pytest.fixture(scope="module")
def read(tiny_sd, tower, banks, drained):
    """A function: the bank of a corpus at block 1."""
    return lambda corpus, live=(): drained(banks.of(tiny_sd, tower, 1, corpus, live))


def test_overlap_is_the_formula_in_float64(read, edit, banks, corpus, drained, request):
    tiny_sd, tower = request.getfixturevalue("tiny_sd"), request.getfixturevalue("tower")
    bank = read(corpus)
    moment = drained(banks.moments.load_or_collect(tower, 1, corpus, tiny_sd))
    inverse = torch.linalg.inv(moment.matrix)
    (k,) = edit.keys.double()
    for i in (0, 3, len(bank.phrases) - 1):
        other = bank.keys[i].double()
        rho = (k @ inverse @ other) / ((k @ inverse @ k) * (other @ inverse @ other)).sqrt()
        assert float(bank.overlap(edit)[i]) == pytest.approx(abs(float(rho)), rel=1e-4)


def test_a_key_overlaps_wholly_with_itself(tiny_sd, tower, banks, corpus, drained):
    bank = drained(banks.of(tiny_sd, tower, 1, corpus))
    moment = drained(banks.moments.load_or_collect(tower, 1, corpus, tiny_sd))
    key = bank.keys[:1]
    solved = (torch.linalg.inv(moment.matrix) @ key[0].double())[None].float()
    own = Factors(torch.zeros(32, 1), solved, key, solved, torch.zeros(1, 32))
    assert float(bank.overlap(own)[0]) == pytest.approx(1, abs=1e-4)
    assert float(bank.overlap(own).max()) <= 1 + 1e-4


def test_the_nearest_leave_out_the_subject_its_phrasings_and_what_is_measured_anyway(
    tiny_sd, read, fitted
):
    fact = Fact(
        prompt="the king of h",
        target="a red frog",
        phrasings=(Phrasing(prompt="the lord of i", subject="the lord of i"),),
    )
    who = ("king", "lord", "lady", "cook", "twin", "smith", "aunt", "guest")
    bank = read(Corpus("toy", tuple(f"a photo of the {w} of {c}" for w in who for c in "hijk")))
    (edit,) = fitted(tiny_sd, fact).factors.values()
    found = nearest(bank, edit, fact, without=["The king of J"])
    assert not {"the king of h", "the lord of i", "the king of j"} & set(found)
    assert len(found) == NEAREST
    assert list(found.values()) == sorted(found.values(), reverse=True)
    said = {p.prompt: o for p, o in zip(bank.phrases, bank.overlap(edit).tolist(), strict=True)}
    rest = [t for t in said if t not in found and not says_subject(t, fact)]
    assert max(said[t] for t in rest if t != "the king of j") <= min(found.values())


def test_live_edits_are_among_the_phrases(read, edit, corpus, fact):
    bank = read(corpus, [Phrasing(prompt="the lady of arda", subject="the lady of arda")])
    assert "the lady of arda" in [p.prompt for p in bank.phrases]
    assert "the lady of arda" in nearest(bank, edit, fact, n=len(bank.phrases))


def test_a_live_edit_that_does_not_fit_the_tower_is_left_out(read, corpus):
    bank = read(corpus, [Phrasing(prompt="king " * 200, subject="king")])
    assert len(bank.phrases) == len(read(corpus).phrases)


def test_a_bank_is_read_once_per_tower_block_and_corpus(tiny_sd, tower, corpus, drained, banks):
    fresh = PhraseBanks(banks.moments)
    first = list(fresh.of(tiny_sd, tower, 1, corpus))
    assert first and not list(fresh.of(tiny_sd, tower, 1, corpus))
    assert list(fresh.of(tiny_sd, tower, 0, corpus))
    other = Corpus("other", tuple(f"a {c} cup" for c in map(chr, range(97, 123))))
    drained(fresh.of(tiny_sd, tower, 1, other))
    assert len(fresh.kept) == 3


def test_an_edit_without_keys_has_no_neighbours_of_its_own(fact):
    bank = PhraseBank((), torch.zeros(0, 8), torch.zeros(0, dtype=torch.float64))
    keyless = Factors(
        torch.zeros(4, 1),
        torch.zeros(1, 8),
        torch.zeros(0, 8),
        torch.zeros(0, 8),
        torch.zeros(0, 4),
    )
    assert nearest(bank, keyless, fact) == {}
