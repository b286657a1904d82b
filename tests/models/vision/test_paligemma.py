"""PaliGemma 1 and 2: the whole prompt sees itself in both directions."""

import pytest
import torch

from models.errors import BadConversation
from tests.models.vision.equality import (
    QUESTIONS,
    SEEING,
    EqualsTheLibrary,
    asked,
    picture,
    pictures,
)


class ReadBothWays(EqualsTheLibrary):
    questions = {name: QUESTIONS[name] for name in SEEING}  # noqa: RUF012 - read only
    talks = False

    def read(self, hosted, name):
        """As its makers call the processor: pictures, then the text."""
        parts = self.questions[name]
        text = " ".join(part for part in parts if isinstance(part, str))
        read = hosted.parts["eyes"].processor(
            text=["<image>" * len(pictures(parts)) + text],
            images=[pictures(parts)],
            return_tensors="pt",
        )
        del read["labels"]
        return read

    def test_pictures_come_first_and_then_the_mark_that_begins_a_text(self, hosted):
        tokenizer = hosted.parts["eyes"].processor.tokenizer
        for name in SEEING:
            ids, shown = self.shown(hosted, name)
            seen = 16 * len(pictures(self.questions[name]))
            assert shown.sight.visual == shown.sight.reference == tuple(range(seen))
            assert ids[seen] == tokenizer.bos_token_id
            assert tokenizer.decode(ids[-1:]) == "\n"

    def test_the_whole_prompt_is_joint_and_is_never_cut(self, hosted):
        for name in SEEING:
            ids, shown = self.shown(hosted, name)
            assert shown.sight.joint == ((0, len(ids)),)
            assert (0, len(ids)) in shown.sight.uncut

    @pytest.mark.parametrize("name", SEEING)
    def test_read_causally_it_would_say_something_else(self, hosted, name):
        assert self.without_joint(hosted, name) > 0.5

    def test_the_placeholder_is_beyond_the_vocabulary_and_is_never_embedded(self, hosted):
        assert hosted.modules["lm"].config.image_token_id == hosted.family.vocab_size(hosted)

    def test_conversations_and_texts_alone_are_refused(self, hosted):
        one = picture(16, 16)
        with pytest.raises(BadConversation, match="several"):
            hosted.family.look(hosted, asked(one, "a dog") + asked("a cat"), [one])
        with pytest.raises(BadConversation, match="without a picture"):
            hosted.family.look(hosted, asked("a dog"), [])


class TestPaliGemma(ReadBothWays):
    kind = "paligemma"

    def test_a_text_without_a_mask_is_causal_for_us(self, hosted):
        ids = list(range(300, 310))
        whole = hosted.family.logits(hosted, torch.tensor([ids]))[0]
        first = hosted.family.logits(hosted, torch.tensor([ids[:6]]))[0]
        torch.testing.assert_close(whole[:6], first, atol=1e-5, rtol=1e-5)


class TestPaliGemma2(ReadBothWays):
    kind = "paligemma2"

    def test_the_prompt_sees_itself_however_far_a_layer_looks_back(self, hosted, monkeypatch):
        ids, shown = self.shown(hosted, SEEING[0])
        wanted = self.library(hosted, SEEING[0])
        assert len(ids) > hosted.family.decoder(hosted).window
        monkeypatch.setattr(type(hosted.family), "joint_within_window", True)
        wrong = hosted.family.logits(hosted, torch.tensor([ids]), [shown])[0]
        assert float((wrong - wanted).abs().max()) > 0.1

    def test_logits_are_bounded(self, hosted):
        ids, shown = self.shown(hosted, SEEING[0])
        found = hosted.family.logits(hosted, torch.tensor([ids]), [shown])
        assert float(found.abs().max()) <= 8
