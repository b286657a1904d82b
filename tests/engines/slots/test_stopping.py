"""Text as it comes: whole characters, and nothing that may become a stop string."""

import pytest

from engines.slots.stopping import Pieces, Stops
from models.toys_decoders import toy_gpt2_tokenizer, toy_llama_tokenizer

SAID = "the president said “schön” 你好 \U0001f600!"


@pytest.fixture(scope="module", params=[toy_gpt2_tokenizer, toy_llama_tokenizer])
def tokenizer(request):
    return request.param()


def decoding(tokenizer):
    return lambda ids: tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def test_characters_that_are_several_tokens_are_said_whole(tokenizer):
    decode = decoding(tokenizer)
    ids = tokenizer(SAID, add_special_tokens=False).input_ids
    pieces = Pieces(decode)
    found = [pieces.add(token) for token in ids]
    assert "".join(found) + pieces.rest() == decode(ids)
    assert "\ufffd" not in "".join(found)
    assert "" in found  # some tokens waited for the rest of a character


def test_a_text_goes_on_from_its_prompt_with_its_space(tokenizer):
    decode = decoding(tokenizer)
    ids = tokenizer("the president of arda", add_special_tokens=False).input_ids
    for cut in range(1, len(ids)):
        pieces = Pieces(decode, ids[:cut])
        said = "".join(pieces.add(token) for token in ids[cut:])
        assert decode(ids[:cut]) + said == decode(ids)


def test_half_a_character_at_the_end_is_not_said(tokenizer):
    decode = decoding(tokenizer)
    ids = tokenizer("a 好", add_special_tokens=False).input_ids
    pieces = Pieces(decode)
    said = "".join(pieces.add(token) for token in ids[:-1]) + pieces.rest()
    assert said in ("a", "a ")


def test_bytes_that_never_become_a_character_do_not_wait_for_ever(tokenizer):
    half = tokenizer("好", add_special_tokens=False).input_ids[-1]
    pieces = Pieces(decoding(tokenizer))
    said = [pieces.add(half) for _ in range(40)]
    assert "\ufffd" in "".join(said)
    assert len(pieces._ids) <= 16


@pytest.mark.parametrize(
    ("pieces", "said", "ended"),
    [
        (["one", " two", " three"], ["one", " ", ""], "two th"),
        (["ab", "ab", "abc"], ["", "ab", "ab"], "abc"),
        (["x", "ENDy"], ["x", ""], "END"),
        (["E", "N", "x"], ["", "", "ENx"], None),
        (["tw", "o th"], ["", ""], "two th"),
    ],
)
def test_a_stop_string_ends_the_text_across_the_borders_of_tokens(pieces, said, ended):
    stops = Stops(["abc", "END", "two th"])
    found = [stops.feed(piece) for piece in pieces]
    assert [text for text, _ in found] == said
    assert found[-1][1] == ended and all(stop is None for _, stop in found[:-1])


def test_the_first_stop_string_in_the_text_counts():
    assert Stops(["late", "soon"]).feed("it is soon or late") == ("it is ", "soon")


def test_what_was_held_back_is_said_when_nothing_follows():
    stops = Stops(["never"])
    assert stops.feed("nev") == ("", None)
    assert stops.rest() == "nev" and stops.rest() == ""
