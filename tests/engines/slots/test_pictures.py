"""Rows with pictures among rows of words: as the library generates them one by one."""

import numpy as np
import pytest
import torch
from PIL import Image

from engines.errors import BadGeneration
from engines.slots.request import GREEDY, Cancelled, Failed, Finished, Generation
from models.errors import BadPatch
from models.family import FAMILIES
from models.loading import load
from models.patch import Detour, Patch, Shift
from models.sight import Shown
from tests.engines.slots.conftest import Told, too_much

LAYERS, BACK = 4, Patch((Detour(tower="lm", source=3, target=1, window=1),))
"""A causal family with three axes, one that adds features behind its first layers, and one whose
pictures see themselves in both directions."""
KINDS = ("qwen2_vl", "qwen3_vl", "gemma3")


def picture(width, height, seed):
    pixels = np.random.RandomState(seed).randint(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def asked(hosted, *parts, patch=None, **changes):
    """One question; pictures stand among its words."""
    pictures = [part for part in parts if not isinstance(part, str)]
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in parts
    ]
    ids, sight = hosted.family.look(hosted, [{"role": "user", "content": content}], pictures)
    stated = {"ids": tuple(ids), "sight": sight, "patch": patch or Patch(), "max_tokens": 8}
    return Generation(id="row", ignore_eos=True, **(stated | {"sampling": GREEDY} | changes))


@pytest.fixture(scope="module", params=KINDS)
def seeing(request, tmp_path_factory):
    hosted = load("tiny", FAMILIES[request.param].tiny(tmp_path_factory.mktemp(request.param)))
    yield hosted
    hosted.close()


def alone(hosted, request):
    """The same tokens from forwards of this row only, without engine, cache and pieces.

    That a forward is right, detour included, is tested against the library in
    `tests/models/vision`.
    """
    family, ids = hosted.family, list(request.ids)
    shown = []
    if request.sight is not None:
        shown = [Shown(sight=request.sight, seen=family.see(hosted, request.sight))]
    patch = request.placed
    for _ in range(request.max_tokens):
        tokens = torch.tensor([ids])
        meant = patch.within(0, len(ids), len(request.ids))
        with hosted.planned([meant]):
            ids.append(int(family.logits(hosted, tokens, shown)[0, -1].argmax()))
    return tuple(ids[len(request.ids) :])


def mixture(hosted):
    width = hosted.family.decoder(hosted).width
    generator = torch.Generator().manual_seed(0)
    shift = Shift(site="lm.block.1", vector=torch.randn(width, generator=generator))
    first, second = picture(48, 48, 1), picture(64, 32, 2)
    return [
        asked(hosted, first, "the king of arda"),
        asked(hosted, first, "the king of arda", patch=BACK),
        asked(hosted, "a red cat and a house"),
        asked(hosted, "is it ", second, " or ", first, "?", patch=BACK),
        asked(hosted, second, "the photo", patch=Patch((shift,))),
        asked(hosted, second, "the photo", patch=BACK | Patch((shift,))),
        asked(hosted, "the president", patch=Patch((shift,))),
    ]


@pytest.mark.parametrize("budget", [8, 512])
def test_rows_with_pictures_plans_and_words_write_what_each_writes_alone(seeing, desk, budget):
    requests = mixture(seeing)
    engine = desk.engine(seeing, slots=3, budget=budget, capacity=160)
    told = desk.ask(engine, *requests)
    found = [tell.ids for tell in told]
    assert found == [alone(seeing, request) for request in requests]
    assert (found[0], found[4]) != (found[1], found[5]), "the plan is felt"
    assert told[3].last.tokens_changed["lm.block.1:detour"] == len(requests[3].sight.visual)


def test_a_second_question_about_a_picture_skips_it(seeing, desk):
    shown = picture(64, 64, 5)
    first = asked(seeing, shown, "the king of arda is a man")
    second = asked(seeing, shown, "a cat")
    engine = desk.engine(seeing, block=4)
    assert desk.ask(engine, first)[0].ids == alone(seeing, first)
    (told,) = desk.ask(engine, second)
    assert told.ids == alone(seeing, second)
    assert told.last.cached_tokens >= max(second.sight.visual)
    assert engine.load()["sights_asked"] == 1


@pytest.mark.parametrize("patch", [Patch(), BACK], ids=["plain", "planned"])
@pytest.mark.parametrize("before", ["", "a ", "the king ", "the king of arda "])
def test_another_question_finds_the_picture_wherever_in_a_block_it_ends(
    seeing, desk, before, patch
):
    shown = [before, picture(64, 64, 5)] if before else [picture(64, 64, 5)]
    first, second = (
        asked(seeing, *shown, question, patch=patch) for question in ("where?", "who is it?")
    )
    engine = desk.engine(seeing)
    told = [desk.ask(engine, request)[0] for request in (first, second)]
    assert [of.ids for of in told] == [alone(seeing, request) for request in (first, second)]
    assert told[1].last.cached_tokens > max(second.sight.visual)
    assert told[0].last.tokens_changed == told[1].last.tokens_changed
    assert engine.load()["sights_asked"] == 1


def test_a_plan_is_never_served_to_a_plain_row_and_counts_when_it_is_known(seeing, desk):
    shown = picture(64, 64, 5)
    plain = asked(seeing, shown, "the king of arda is a man")
    planned = asked(seeing, shown, "the king of arda is a man", patch=BACK)
    engine = desk.engine(seeing, block=4)
    fresh, told, again, after = (
        desk.ask(engine, request)[0] for request in (plain, planned, planned, plain)
    )
    assert fresh.ids == after.ids == alone(seeing, plain)
    assert told.ids == again.ids == alone(seeing, planned)
    assert again.last.cached_tokens > max(planned.sight.visual)
    assert told.last.tokens_changed == again.last.tokens_changed
    load = engine.load()
    assert (load["sights_asked"], load["sights_known"]) == (2, 1), "it was seen once"


def test_another_picture_or_another_realm_shares_nothing_behind_the_picture(seeing, desk):
    engine = desk.engine(seeing, block=4)
    words = "the king of arda"
    first = asked(seeing, picture(48, 48, 1), words)
    other = asked(seeing, picture(48, 48, 2), words)
    stranger = asked(seeing, picture(48, 48, 1), words, realm="another")
    told = [desk.ask(engine, request)[0] for request in (first, other, stranger)]
    assert told[1].ids == alone(seeing, other)
    assert told[1].last.cached_tokens <= other.sight.visual[0]
    assert told[2].last.cached_tokens == 0
    assert engine.load()["sights_known"] == 0


@pytest.mark.parametrize("block", [4, 16])
def test_a_conversation_that_gains_a_picture_finds_the_one_before(seeing, desk, block):
    shown, more, other = picture(48, 48, 1), picture(64, 32, 2), picture(64, 32, 3)
    first = asked(seeing, "the king", shown, "who is it?")
    second = asked(seeing, "the king", shown, "who is it?", more, "and who is it?")
    third = asked(seeing, "the king", shown, "who is it?", other, "and who is it?")
    swapped = asked(seeing, "the king", more, "who is it?", shown, "and who is it?")
    engine = desk.engine(seeing, block=block, capacity=160)
    requests = (first, second, third, second, swapped)
    told = [desk.ask(engine, request)[0] for request in requests]
    assert [of.ids for of in told] == [alone(seeing, request) for request in requests]
    cached = [of.last.cached_tokens for of in told]
    assert cached[0] == 0
    assert first.sight.spans[0][1] <= cached[1] <= second.sight.spans[1][0]
    assert cached[1] <= cached[2] <= third.sight.spans[1][0], "the second one is another"
    assert cached[3] >= second.sight.spans[1][1]
    assert cached[4] <= swapped.sight.spans[0][0], "they stand the other way round"


def test_a_plan_over_two_pictures_finds_neither_of_a_plan_over_one(seeing, desk):
    """What the second one is written from was read beside the first one unpatched."""
    shown, more = picture(48, 48, 1), picture(64, 32, 2)
    first = asked(seeing, shown, "who is it?", patch=BACK)
    second = asked(seeing, shown, "who is it?", more, "and who is it?", patch=BACK)
    engine = desk.engine(seeing, block=4, capacity=160)
    told = [desk.ask(engine, request)[0] for request in (first, second, second)]
    assert [of.ids for of in told] == [
        alone(seeing, request) for request in (first, second, second)
    ]
    assert told[1].last.cached_tokens <= second.sight.visual[0]
    assert told[2].last.cached_tokens > second.sight.visual[-1]
    assert told[1].last.tokens_changed == told[2].last.tokens_changed


def test_a_row_whose_picture_cannot_be_seen_fails_alone(seeing, desk, monkeypatch):
    broken = asked(seeing, picture(48, 48, 9), "the king of arda")
    right = asked(seeing, picture(48, 48, 1), "the king of arda")
    see = seeing.family.see

    def blind(hosted, sight):
        if sight is broken.sight:
            raise RuntimeError("no light")
        return see(hosted, sight)

    monkeypatch.setattr(seeing.family, "see", blind)
    engine = desk.engine(seeing)
    go_on = desk.held(engine)
    told = desk.ask(engine, broken, right)
    go_on.set()
    assert isinstance(told[0].last, Failed)
    assert told[1].ids == alone(seeing, right)


def test_a_row_that_ends_in_nan_spoils_no_picture(seeing, desk):
    bad = asked(seeing, picture(48, 48, 1), "the king", patch=too_much() | BACK)
    right = asked(seeing, picture(48, 48, 1), "the king", patch=BACK)
    engine = desk.engine(seeing)
    told = desk.ask(engine, bad, right)
    assert isinstance(told[0].last, Failed)
    assert isinstance(told[1].last, Finished)
    assert told[1].ids == alone(seeing, right)


def test_a_row_with_a_picture_can_be_cancelled_and_streams(seeing, desk):
    engine = desk.engine(seeing)
    request = asked(seeing, picture(48, 48, 1), "the king", max_tokens=60)
    (told,) = desk.ask(engine, request)
    assert isinstance(told.last, Finished)
    assert len(told.tokens()) == 60
    go_on, left = desk.held(engine), Told()
    engine.submit(request, left).cancel()
    go_on.set()
    assert isinstance(left.last, Cancelled)


def test_a_plan_without_a_picture_is_refused(seeing, desk):
    engine = desk.engine(seeing)
    with pytest.raises(BadPatch, match="no picture"):
        desk.ask(engine, asked(seeing, "the king", patch=BACK))


def test_back_patching_behind_the_prompt_is_refused(seeing, desk):
    engine = desk.engine(seeing)
    late = Patch((Detour(tower="lm", source=3, target=1, positions=(2, 60)),))
    with pytest.raises(BadPatch, match="prompt"):
        desk.ask(engine, asked(seeing, "the king", patch=late, max_tokens=60))


def test_a_model_of_words_refuses_pictures(tiny_llama, desk, seeing):
    engine = desk.engine(tiny_llama)
    shown = asked(seeing, picture(48, 48, 1), "the king")
    with pytest.raises(BadGeneration, match="no pictures"):
        desk.ask(engine, Generation(id="row", ids=(1, 2), sight=shown.sight, max_tokens=2))
