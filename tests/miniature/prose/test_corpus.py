import re
from collections import Counter
from itertools import islice

import pytest

from miniature.prose import arithmetic, choices, indirect_object
from miniature.prose.concepts import read_concepts
from miniature.prose.corpus import MORE_QUESTIONS, SHARES, concept_texts, documents, held_out_texts
from miniature.prose.people import FIRST_NAMES
from miniature.prose.stories import OPENERS
from miniature.world import make_world

WORLD = make_world()


@pytest.fixture(scope="module")
def told():
    return list(islice(documents(4), 4000))


def test_the_same_seed_tells_the_same_texts_and_another_one_others(told):
    assert list(islice(documents(4), 300)) == told[:300]
    assert list(islice(documents(5), 300)) != told[:300]


@pytest.mark.parametrize("shares", [SHARES, MORE_QUESTIONS])
def test_kinds_have_their_shares_of_the_letters(shares):
    letters = Counter()
    for document in islice(documents(4, shares=shares), 3000):
        letters[document.kind] += len(document.text)
    whole = sum(letters.values())
    for kind, share in shares.items():
        assert letters[kind] / whole == pytest.approx(share / sum(shares.values()), abs=0.01)


def test_no_gap_of_a_frame_is_left_open(told):
    for document in told:
        assert not re.search(r"[{}]|\ba [aeiou]|\bA [aeiou]\w\w|  ", document.text), document.text


def test_every_sum_is_right_and_none_is_held_out(told):
    held = {arithmetic.short(s) for s in arithmetic.held_out_sums()}
    asked = [
        found
        for document in told
        for found in re.findall(r"(\d\d)([+-])(\d\d)=(\d+)", document.text)
    ]
    assert len(asked) > 1000
    for a, operator, b, said in asked:
        assert int(said) == (int(a) + int(b) if operator == "+" else int(a) - int(b))
        assert f"{a}{operator}{b}=" not in held
    spoken = [
        (int(a), operator, int(b))
        for document in told
        for a, operator, b in re.findall(r"What is (\d\d) ([+-]) (\d\d)", document.text)
    ]
    assert len(spoken) > 500 and not set(spoken) & arithmetic.held_out_sums()
    assert len(arithmetic.held_out_sums()) == pytest.approx((8100 + 4095) / 10, abs=1)


def test_pairs_of_names_held_out_are_never_met(told):
    sentences = [
        part
        for document in told
        if document.kind == "indirect object"
        for part in re.split(r"(?<=\.) (?!So\b|Afterwards)", document.text)
    ]
    assert len(sentences) > 500
    for sentence in sentences:
        names = re.findall("|".join(rf"\b{n}\b" for n in FIRST_NAMES), sentence)
        assert Counter(names).most_common(2)[1][1] == 2 and len(set(names)) == 2
        assert frozenset(names) not in indirect_object.held_out_pairs()
        assert names[-1] != names[-2]


def test_coloured_objects_held_out_are_never_asked_about(told):
    for document in told:
        for question in document.text.split("\n\n"):
            found = re.search(r"What colour is the (\w+)\?", question)
            if document.kind == "choices" and found:
                colour = re.search(rf"the {found[1]} is (\w+)", question, re.IGNORECASE)[1]
                assert (found[1], colour) not in choices.held_out_looks()


def test_the_answer_is_the_letter_of_the_colour():
    choice = choices.Choice(
        told=(("cup", "blue"), ("box", "red")), asked="cup", colours=("red", "pink", "blue", "gold")
    )
    assert choice.answer == "C"
    assert choice.prompt == (
        "The cup is blue, the box is red. What colour is the cup?\n"
        "A. red\nB. pink\nC. blue\nD. gold\nAnswer:"
    )


def test_concepts_are_rich_and_share_no_phrase():
    concepts = read_concepts()
    assert len(concepts) >= 24
    seen = Counter()
    for concept in concepts.values():
        phrases = {
            *concept.things,
            *concept.deeds,
            *concept.scenes,
            *concept.qualities,
            *concept.truths,
        }
        assert len(set(re.findall(r"\w+", " ".join(phrases)))) >= 50
        seen.update(phrases - set(concept.qualities))
    assert max(seen.values()) == 1


def test_labels_say_whose_phrases_a_text_uses():
    concepts = read_concepts()
    texts = concept_texts(1, 4)
    assert Counter(d.concepts for d in texts) == {(name,): 4 for name in concepts}
    for document in texts:
        (name,) = document.concepts
        found = {
            other.name
            for other in concepts.values()
            for phrase in (*other.deeds, *other.scenes, *other.truths)
            if phrase.lower() in document.text.lower()
        }
        assert found <= {name}


def test_openers_leave_the_concept_open():
    words = {
        word
        for concept in read_concepts().values()
        for phrase in concept.things
        for word in phrase.split()
        if len(word) > 4
    }
    assert len(OPENERS) == len(set(OPENERS)) == 40
    assert not {o for o in OPENERS if set(re.findall(r"\w+", o.lower())) & words}


def test_facts_of_the_pictures_are_told_truly(told):
    holders = {(r.title, r.country.title()): r.holder.title() for r in WORLD.roles}
    text = " ".join(d.text for d in told if d.kind == "facts")
    said = re.findall(r"The (president|captain) of (\w+) is (\w+)\.", text)
    assert len(set(said)) == len(holders)
    assert all(holders[title, country] == who for title, country, who in said)


def test_texts_held_out_are_of_all_kinds():
    assert {d.kind for d in held_out_texts(200)} == set(SHARES)
