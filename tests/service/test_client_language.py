"""The SDK's and the command line's way to a language model."""

import asyncio

import pytest
import typer
from typer.testing import CliRunner

from service import cli
from service.cli_chat import steering_of
from service.client import AsyncTiller, Tiller, TillerError
from service.client_language import words, words_later

MODEL, SAE = "tiny-lm", "toy"
STEERING = {
    "features": [{"sae": SAE, "feature": 7, "strength": 3}],
    "min_output_score": 0,
    "on_low_score": "allow",
}
ASKED = {"model": MODEL, "max_tokens": 6, "seed": 3}


@pytest.fixture
def tiller(speaker_url):
    with Tiller(speaker_url) as client:
        yield client


def test_chat_gives_texts_with_what_was_applied(tiller):
    [plain] = tiller.chat("the king of the sea", **ASKED)
    [steered] = tiller.chat("the king of the sea", steering=STEERING, compare=True, **ASKED)
    assert steered.text != plain.text
    assert steered.plain == plain.text
    assert plain.plain is None
    assert steered.finish in ("stop", "length")
    assert steered.tiller["steering"][0]["features"][0]["feature"] == 7
    assert steered.usage["completion_tokens"] > 0


def test_completions_and_more_keys(tiller):
    both = tiller.complete(["the king", "the house"], more={"top_k": 5}, **ASKED)
    assert len(both) == 2
    assert all(isinstance(one.text, str) for one in both)


def test_a_stream_says_the_same_words(tiller):
    [whole] = tiller.chat("the king of the sea", **ASKED)
    events = tiller.texts.chat_events("the king of the sea", **ASKED)
    assert "".join(words(events)) == whole.text


def test_the_async_client_does_the_same(tiller, speaker_url):
    [whole] = tiller.chat("the king of the sea", **ASKED)

    async def ask():
        async with AsyncTiller(speaker_url) as client:
            [text] = await client.chat("the king of the sea", **ASKED)
            said = [w async for w in words_later(client.texts.complete_events("a king", **ASKED))]
        return text.text, "".join(said)

    text, said = asyncio.run(ask())
    assert text == whole.text
    assert said == tiller.complete("a king", **ASKED)[0].text


def test_a_refusal_has_its_code(tiller):
    with pytest.raises(TillerError) as refused:
        tiller.chat("x", model=MODEL, steering={"preset": "nobody"})
    assert (refused.value.code, refused.value.status) == ("unknown_name", 404)


def test_what_stands_behind_steer():
    assert steering_of(
        ["the sea=1.5", "toy:7=-2"], ["winter@live"], ["kind=0.5", "calm"], None
    ) == [
        {"concept": "the sea", "strength": 1.5},
        {"features": [{"sae": "toy", "feature": 7, "strength": -2.0}]},
        {"vectors": [{"name": "kind", "strength": 0.5}]},
        {"vectors": [{"name": "calm", "strength": 1.0}]},
        {"preset": "winter@live"},
    ]
    assert steering_of(["a=b=2"], (), (), "unit") == [
        {"concept": "a=b", "strength": 2.0, "mode": "unit"}
    ]
    assert steering_of(["toy:7"], (), (), "ablate") == [
        {"features": [{"sae": "toy", "feature": 7}], "mode": "ablate"}
    ]
    for wrong in ("the sea", "=1", "the sea=much"):
        with pytest.raises(typer.BadParameter):
            steering_of([wrong], (), (), None)


@pytest.fixture
def ran(speaker_url):
    """A function: what `tiller chat` prints, and its exit code."""

    def run(*words, typed=None):
        asked = ["chat", *words, "--url", speaker_url, "-m", MODEL, "--max-tokens", "6"]
        return CliRunner().invoke(cli.app, asked, input=typed)

    return run


def test_the_command_answers_one_message(ran, tiller):
    done = ran("the king of the sea", "--seed", "3")
    assert done.exit_code == 0, done.output
    # The terminal is spared control characters, which a random toy writes.
    text = tiller.chat("the king of the sea", **ASKED)[0].text
    assert "".join(filter(str.isprintable, text)) in "".join(filter(str.isprintable, done.output))


@pytest.mark.parametrize("nothing", ["", "  "])
def test_the_command_refuses_to_say_nothing(ran, nothing):
    done = ran(nothing)
    assert done.exit_code == 2
    assert "Say something" in done.output


def test_the_command_compares(ran):
    done = ran("the king", "--vector", "nobody", "--compare")
    assert isinstance(done.exception, TillerError)
    done = ran("the king", "--steer", "toy:7=3", "--mode", "raw", "--compare", "--seed", "3")
    refused = isinstance(done.exception, TillerError) and done.exception.code
    # A random toy's features have low scores: the refusal says so, with the score.
    assert refused == "low_output_score" or ("steered" in done.output and "plain" in done.output)


def test_the_command_holds_a_conversation(ran):
    done = ran("--seed", "3", typed="the king\n\nthe sea\n")
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    assert len(lines) >= 2
