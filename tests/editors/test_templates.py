import json

import pytest

from editors.errors import BadTemplates
from editors.templates import FITTED, Phrasebook, phrasebook_of, read_templates, with_reference

NINE = (
    "{} as a stamp",
    "{} on a coin",
    "{}, seen twice",
    "{} under glass",
    "{} in chalk",
    "the back of {}",
    "a shadow of {}",
    "half of {}",
    "once more {}",
)


@pytest.fixture
def written(tmp_path):
    def write(text, name="nine.txt"):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return file

    return write


def test_a_file_may_be_json_or_one_sentence_a_line(written):
    assert read_templates(written(json.dumps(NINE), "nine.json")) == NINE
    assert read_templates(written("\n\n".join(NINE) + "\n")) == NINE


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "\n".join(NINE[:8])),
        ("a.txt", "\n".join((*NINE, "ten {}"))),
        ("a.txt", "\n".join((*NINE[:8], NINE[0]))),
        ("a.txt", "\n".join((*NINE[:8], "no slot"))),
        ("a.txt", "\n".join((*NINE[:8], "{} and {}"))),
        ("a.txt", "\n".join((*NINE[:8], "{name} here"))),
        ("a.txt", "\n".join((*NINE[:8], "{0} {}"))),
        ("a.txt", ""),
        ("a.txt", "{} x\n" * 20_000),
        ("a.json", "not json"),
        ("a.json", '{"a": 1}'),
        ("a.json", json.dumps([*NINE[:8], 9])),
    ],
    ids=["eight", "ten", "twice", "none", "two", "named", "numbered", "empty", "big", "broken",
         "object", "number"],
)  # fmt: skip
def test_anything_but_nine_sentences_with_one_slot_each_is_refused(written, name, text):
    with pytest.raises(BadTemplates) as refused:
        read_templates(written(text, name))
    assert "nine" in refused.value.remedy


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadTemplates, match="cannot be read"):
        read_templates(tmp_path / "none.txt")


def test_only_mode_reference_reads_the_file():
    book = Phrasebook(reference=NINE)
    assert (book.of("reference").fitted, book.origin("reference")) == (NINE, "file")
    assert (book.of("corrected").fitted, book.origin("corrected")) == (FITTED, "own")
    assert Phrasebook().origin("reference") == "own"
    assert Phrasebook().of("reference").fitted == FITTED


def test_the_digest_tells_which_sentences_were_fitted():
    book = Phrasebook(reference=NINE)
    same = Phrasebook().digests("reference")
    assert book.digests("corrected") == same
    assert book.digests("reference")["templates"] != same["templates"]
    assert book.digests("reference")["captions"] == same["captions"]


def test_a_models_own_sentences_stay_beside_the_users_file(tiny_sd, written, monkeypatch):
    own = {"templates": {"fitted": ["{} here"]}, "refact": {"block": 1}}
    told = with_reference(own, read_templates(written("\n".join(NINE))))
    monkeypatch.setattr(tiny_sd, "defaults", told)
    book = phrasebook_of(tiny_sd)
    assert (book.fitted, book.reference) == (("{} here",), NINE)
    assert told["refact"] == {"block": 1}


@pytest.mark.parametrize(
    "told",
    [{"fited": []}, {"fitted": "a {}"}, {"fitted": [1]}, {"held_out": ["no slot"]}],
    ids=["unknown", "text", "number", "no slot"],
)
def test_a_model_whose_sentences_cannot_be_spoken_is_refused(tiny_sd, monkeypatch, told):
    monkeypatch.setattr(tiny_sd, "defaults", {"templates": told})
    with pytest.raises(BadTemplates):
        phrasebook_of(tiny_sd)
