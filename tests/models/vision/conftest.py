"""Every family that sees, as a tiny member; pictures; the library's own forward as the oracle."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from PIL import Image

from models.family import FAMILIES
from models.loading import load
from models.sight import Shown
from models.vision_language import with_pictures

SEEING = sorted(kind for kind, family in FAMILIES.items() if family.modality == "vision-language")


def picture(width, height, seed):
    pixels = np.random.RandomState(seed).randint(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


ONE, TWO = [picture(48, 48, 1)], [picture(48, 48, 2), picture(64, 32, 3)]


def messages(*parts):
    """A conversation of one question; None stands for a picture."""
    content = [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]
    return [{"role": "user", "content": content}]


PROMPTS = {
    "one picture": (messages(None, "the king of arda"), ONE),
    "two pictures": (messages(None, "a red cat", None, "the house of borea"), TWO),
    "a picture behind a text": (messages("is the president of arda in this photo", None), ONE),
}


@pytest.fixture(scope="module", params=SEEING)
def hosted(request, tmp_path_factory):
    family = FAMILIES[request.param]
    hosted = load("tiny", family.tiny(tmp_path_factory.mktemp(family.kind)))
    yield hosted
    hosted.close()


class Prompt:
    """One prompt as the processor reads it, for the library and for us."""

    def __init__(self, hosted, messages, pictures):
        self.hosted, self.messages, self.pictures = hosted, messages, pictures
        ids, self.sight = hosted.family.look(hosted, messages, pictures)
        self.ids = torch.tensor([ids])
        seen = None if self.sight is None else hosted.family.see(hosted, self.sight)
        self.shown = None if self.sight is None else Shown(sight=self.sight, seen=seen)
        self.read = dict(hosted.family.read_prompt(hosted, with_pictures(messages, pictures)))

    @torch.no_grad()
    def library(self):
        """The library's own logits."""
        return self.hosted.modules["lm"](**self.read).logits.float()

    def ours(self, patch=None):
        """Ours, in one forward."""
        if patch is None:
            return self.hosted.family.logits(self.hosted, self.ids, [self.shown])
        with self.hosted.planned([patch], tokens=self.ids.shape[1]):
            return self.hosted.family.logits(self.hosted, self.ids, [self.shown])


@pytest.fixture(scope="module")
def prompts(hosted):
    return {name: Prompt(hosted, *of) for name, of in PROMPTS.items()}


class TwoPasses:
    """Back-patching as it is defined: a clean pass, then one with later states written early.

    The stream behind a block is read and written where the next block takes it in.
    """

    def __init__(self, hosted):
        self.layers = hosted.family.decoder(hosted).layers
        self.last = len(self.layers) - 1

    def hooked(self, undo, index, act):
        """Call `act` with the stream behind a block; what it returns goes on."""
        if index == self.last:
            undo.callback(self.layers[index].register_forward_hook(lambda _m, _a, o: act(o)).remove)
            return

        def before(_module, args, kwargs):
            if args:
                return (act(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": act(kwargs["hidden_states"])}

        hook = self.layers[index + 1].register_forward_pre_hook(before, with_kwargs=True)
        undo.callback(hook.remove)

    def __call__(self, forward, pairs, columns, loops=1):
        """What `forward` returns in the last pass.

        Args:
            forward: One pass of the library's model.
            pairs: (source, target) of all that is written.
            columns: The columns, of batch row 0; or a list of them for each row.
            loops: Patched passes.
        """
        kept = {}
        for turn in range(loops + 1):
            found = {}
            with ExitStack() as undo:
                # Overwritten first, captured behind that.
                for source, target in pairs if turn else ():
                    self.hooked(undo, target, self.writing(kept[source], columns))
                for source, _ in pairs:
                    self.hooked(undo, source, self.keeping(found, source))
                said = forward()
            kept = found
        return said

    @staticmethod
    def writing(values, columns):
        def act(stream):
            of_rows = columns if isinstance(columns[0], list) else [columns]
            if stream.shape[1] <= max(of_rows[0]):
                return stream  # a decoding step
            changed = stream.clone()
            for row, here in enumerate(of_rows):
                changed[row, here] = values[row, here]
            return changed

        return act

    @staticmethod
    def keeping(found, source):
        def act(stream):
            found.setdefault(source, stream)
            return stream

        return act


@pytest.fixture(scope="module")
def two_passes(hosted):
    return TwoPasses(hosted)
