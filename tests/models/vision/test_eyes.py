"""Processors as hubs bring them: whose template takes what, and where it is written."""

import pytest

from models.errors import NoChatTemplate
from models.eyes import Eyes
from models.family import FAMILIES
from models.loading import load
from tests.models.vision.equality import picture

_OF_THE_USER_ALONE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<start_of_turn>"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""As Pixtral's: what others say is a text to it, never parts."""


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    hosted = load("toy", FAMILIES["gemma3"].tiny(tmp_path_factory.mktemp("gemma3")))
    yield hosted.parts["eyes"]
    hosted.close()


@pytest.fixture
def template(eyes, monkeypatch):
    """Where a template is written, and what it says."""

    def written(of_processor, of_tokenizer):
        monkeypatch.setattr(eyes.processor, "chat_template", of_processor)
        monkeypatch.setattr(eyes.processor.tokenizer, "chat_template", of_tokenizer)

    return written


def conversation() -> list[dict]:
    asked = [{"type": "image", "image": picture(16, 16)}, {"type": "text", "text": "a dog?"}]
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
        {"role": "user", "content": [{"type": "text", "text": "is it red?"}]},
    ]


def spelled(eyes: Eyes) -> str:
    return eyes.processor.tokenizer.decode(eyes.read(conversation(), "toy")["input_ids"][0])


def test_a_template_that_wants_texts_of_the_assistant_gets_them(eyes, template):
    template(_OF_THE_USER_ALONE, None)
    assert "<end_of_image>\n\na dog?a cat<eos><start_of_turn>is it red?" in spelled(eyes)


def test_a_template_of_the_tokenizer_alone_is_found(eyes, template):
    own = eyes.processor.chat_template
    wanted = spelled(eyes)
    template(None, own)
    assert spelled(eyes) == wanted
    template(None, None)
    with pytest.raises(NoChatTemplate):
        eyes.read(conversation(), "toy")
