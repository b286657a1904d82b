"""What must hold for a family that sees: it reads as the library's own forward reads.

A family's test file makes a subclass named `Test...` and says its kind; the checks are inherited.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from models.family import FAMILIES
from models.loading import load
from models.sight import Shown
from models.vision_language import with_pictures

CAPACITY = 160
WRITTEN = 8
NEAR = {"atol": 1e-4, "rtol": 1e-4}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coarse colours, so that resizing leaves two pictures different."""
    drawn = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(drawn).resize((width, height), Image.Resampling.BILINEAR)


def asked(*parts: str | Image.Image) -> list[dict]:
    """One message of the user, its texts and pictures in this order."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


QUESTIONS: dict[str, list[str | Image.Image]] = {
    "one picture": [picture(16, 16), "say the dog"],
    "a wide one": [picture(48, 17, 1), "what is a house?"],
    "a tall one": [picture(16, 40, 2), "what is a house?"],
    "two pictures": [picture(24, 24, 3), picture(40, 16, 4), "is the cat red?"],
    "a picture behind a text": ["the king said that", picture(20, 20, 5), "is a man"],
    "a text alone": ["the king of arda is a green house"],
}
SEEING = [name for name, parts in QUESTIONS.items() if len(parts) > 1]


def pictures(parts) -> list[Image.Image]:
    return [part for part in parts if not isinstance(part, str)]


class EqualsTheLibrary:
    """The checks; `questions` are those that the family takes."""

    kind: str
    questions: dict[str, list[str | Image.Image]] = QUESTIONS
    talks = True
    """Whether it was made for conversations."""

    @pytest.fixture(scope="class")
    @classmethod
    def hosted(cls, tmp_path_factory):
        hosted = load("toy", FAMILIES[cls.kind].tiny(tmp_path_factory.mktemp(cls.kind)))
        yield hosted
        hosted.close()

    def read(self, hosted, name: str) -> dict[str, torch.Tensor]:
        """What the library's forward takes for a question, from the family's own processor."""
        left = pictures(self.questions[name])
        messages = asked(*self.questions[name])
        for part in messages[0]["content"]:
            if part["type"] == "image":
                part["image"] = left.pop(0)
        processor = hosted.parts["eyes"].processor
        return processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def shown(self, hosted, name: str) -> tuple[list[int], Shown | None]:
        parts = self.questions[name]
        ids, sight = hosted.family.look(hosted, asked(*parts), pictures(parts))
        if sight is None:
            return ids, None
        return ids, Shown(sight=sight, seen=hosted.family.see(hosted, sight))

    def library(self, hosted, name: str) -> torch.Tensor:
        """(tokens, vocab) logits."""
        with torch.inference_mode():
            return hosted.modules["lm"](**self.read(hosted, name)).logits[0].float()

    def generated(self, hosted, name: str) -> list[int]:
        """The library's greedy answer."""
        read = self.read(hosted, name)
        with torch.inference_mode():
            found = hosted.modules["lm"].generate(
                **read,
                max_new_tokens=WRITTEN,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return found[0, read["input_ids"].shape[1] :].tolist()

    def test_logits_of_every_token_are_the_librarys(self, hosted):
        for name in self.questions:
            ids, shown = self.shown(hosted, name)
            found = hosted.family.logits(hosted, torch.tensor([ids]), [shown])[0]
            assert self.read(hosted, name)["input_ids"][0].tolist() == ids
            torch.testing.assert_close(found, self.library(hosted, name), **NEAR)

    def test_in_half_precision_it_is_still_the_librarys(self, hosted):
        """The same sums in the same order: a position that is off by one would be seen here."""
        half, name = load("half", hosted.path, dtype="bfloat16"), SEEING[0]
        ids, shown = self.shown(half, name)
        found = half.family.logits(half, torch.tensor([ids]), [shown])[0]
        read = {
            key: of.to(half.dtype) if of.is_floating_point() else of
            for key, of in self.read(half, name).items()
        }
        with torch.inference_mode():
            wanted = half.modules["lm"](**read).logits[0].float()
        half.close()
        assert found.dtype == torch.float32
        assert float((found - wanted).abs().max()) < 0.03 * float(wanted.std())

    def test_what_is_written_is_what_the_librarys_generate_writes(self, hosted):
        """Rows of all questions, of different lengths, go on side by side."""
        cache = hosted.family.new_cache(hosted, len(self.questions), CAPACITY)
        said, lengths, shown = [], [], []
        for slot, name in enumerate(self.questions):
            ids, own = self.shown(hosted, name)
            logits = hosted.family.step(
                hosted, torch.tensor([ids]), cache, [slot], [0], shown=[own]
            )
            said.append([int(logits[0].argmax())])
            lengths.append(len(ids))
            shown.append(own)
        for more in range(WRITTEN - 1):
            ids = torch.tensor([own[-1:] for own in said])
            starts = [length + more for length in lengths]
            logits = hosted.family.step(
                hosted, ids, cache, list(range(len(said))), starts, shown=shown
            )
            for own, new in zip(said, logits, strict=True):
                own.append(int(new.argmax()))
        assert said == [self.generated(hosted, name) for name in self.questions]

    def test_rows_of_one_length_are_read_side_by_side(self, hosted):
        """Another picture, another place of a picture, and a text without one."""
        name = SEEING[0]
        first, other = self.shown(hosted, name), self._another(hosted, name)
        assert len(first[0]) == len(other[0])
        rows = [first, other, ([7] * len(first[0]), None)]
        cache = hosted.family.new_cache(hosted, 3, CAPACITY)
        ids, shown = torch.tensor([ids for ids, _ in rows]), [own for _, own in rows]
        found = hosted.family.step(hosted, ids, cache, [2, 0, 1], [0] * 3, every=True, shown=shown)
        for row, (one, own) in enumerate(rows):
            alone = hosted.family.logits(hosted, torch.tensor([one]), [own])[0]
            torch.testing.assert_close(found[row], alone, atol=2e-5, rtol=2e-5)

    def test_another_picture_is_another_answer(self, hosted):
        """The toy is awake, or nothing here would mean anything."""
        name = SEEING[0]
        found = [
            hosted.family.logits(hosted, torch.tensor([ids]), [shown])[0, -1]
            for ids, shown in (self.shown(hosted, name), self._another(hosted, name))
        ]
        assert float((found[0] - found[1]).abs().max()) > 0.5
        assert float(found[0].softmax(-1).max()) > 3 / len(found[0])

    def _another(self, hosted, name: str):
        """The same question about a picture of the same size."""
        parts = [
            part if isinstance(part, str) else picture(*part.size, seed=77)
            for part in self.questions[name]
        ]
        ids, sight = hosted.family.look(hosted, asked(*parts), pictures(parts))
        return ids, Shown(sight=sight, seen=hosted.family.see(hosted, sight))

    def test_a_prompt_may_arrive_in_pieces_that_cut_no_picture(self, hosted):
        for name in self.questions:
            ids, shown = self.shown(hosted, name)
            uncut = shown.sight.uncut if shown else ()
            cache, start, found = hosted.family.new_cache(hosted, 1, CAPACITY), 0, []
            while start < len(ids):
                end = min(start + 5, len(ids))
                end = max([end, *(stop for first, stop in uncut if first < end < stop)])
                part = torch.tensor([ids[start:end]])
                found += hosted.family.step(
                    hosted, part, cache, [0], [start], every=True, shown=[shown]
                )
                start = end
            torch.testing.assert_close(torch.cat(found), self.library(hosted, name), **NEAR)

    def test_a_conversation_goes_on_behind_a_picture(self, hosted):
        if not self.talks:
            pytest.skip("it was not made for conversations")
        one = picture(24, 24, 8)
        messages = [
            *asked(one, "is it a cat?"),
            {"role": "assistant", "content": "a green house"},
            *asked("what is it?"),
        ]
        ids, sight = hosted.family.look(hosted, messages, [one])
        said = hosted.family.detokenize(hosted, ids, special=True)
        assert "a green house" in said and "[{" not in said
        shown = Shown(sight=sight, seen=hosted.family.see(hosted, sight))
        found = hosted.family.logits(hosted, torch.tensor([ids]), [shown])[0]
        read = hosted.family.read_prompt(hosted, with_pictures(messages, [one]))
        with torch.inference_mode():
            wanted = hosted.modules["lm"](**read).logits[0].float()
        torch.testing.assert_close(found, wanted, **NEAR)

    def test_visual_columns_are_those_of_the_placeholders(self, hosted):
        image = hosted.modules["lm"].config.image_token_id
        for name in SEEING:
            ids, shown = self.shown(hosted, name)
            assert shown is not None
            wanted = tuple(column for column, token in enumerate(ids) if token == image)
            assert shown.sight.visual == wanted
            assert len(shown.features().features) == len(wanted)
            assert shown.sight.pictures == len(pictures(self.questions[name]))

    def test_each_picture_is_one_span_that_holds_its_columns(self, hosted):
        for name in SEEING:
            sight = self.shown(hosted, name)[1].sight
            held = [c for first, end in sight.spans for c in range(first, end)]
            assert set(sight.visual) <= set(held) and len(sight.spans) == sight.pictures

    def without_joint(self, hosted, name: str) -> float:
        """How far the answer moves if nobody says which tokens see each other both ways."""
        ids, shown = self.shown(hosted, name)
        assert shown is not None
        causal = Shown(sight=replace(shown.sight, joint=()), seen=shown.seen)
        found = [
            hosted.family.logits(hosted, torch.tensor([ids]), [own])[0, -1]
            for own in (shown, causal)
        ]
        return float((found[0] - found[1]).abs().max())
