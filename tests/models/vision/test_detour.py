"""Back-patching in one forward equals two plain passes of the library, in every family."""

import pytest
import torch

from models.errors import BadPatch
from models.patch import Detour, LowRank, Patch, Shift
from tests.models.vision.conftest import ONE, PROMPTS, Prompt, messages

LAYERS = 4
PAIRS = [(s, d) for s in range(LAYERS) for d in range(s)]
WRONG = 1e-3
"""Every mistake moves a logit by more; exact schedules agree within 1e-5."""


def detour(source, target, columns, **changes):
    return Detour(tower="lm", source=source, target=target, positions=tuple(columns), **changes)


def close(ours, wanted):
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PROMPTS)
def test_without_a_plan_the_logits_are_the_librarys(prompts, name):
    close(prompts[name].ours(), prompts[name].library())


def test_another_picture_is_another_answer(hosted, prompts):
    other = Prompt(hosted, PROMPTS["one picture"][0], [PROMPTS["two pictures"][1][0]])
    assert other.ids.equal(prompts["one picture"].ids)
    moved = other.ours()[0, -1] - prompts["one picture"].ours()[0, -1]
    assert moved.abs().max() > 0.1


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("window", [1, 3])
def test_every_pair_equals_two_plain_passes(prompts, two_passes, name, window):
    prompt = prompts[name]
    plain = prompt.ours()[0, -1]
    columns = list(prompt.sight.visual)
    moves = []
    for source, target in PAIRS:
        one = detour(source, target, columns, window=window)
        wanted = two_passes(prompt.library, one.pairs(LAYERS), columns)
        close(prompt.ours(Patch((one,))), wanted)
        moves.append((wanted[0, -1] - plain).abs().max().item())
    assert min(moves) > WRONG, moves


@pytest.mark.parametrize("loops", [2, 3])
@pytest.mark.parametrize("window", [1, 3])
def test_loops_equal_as_many_patched_passes(prompts, two_passes, loops, window):
    prompt = prompts["two pictures"]
    columns = list(prompt.sight.visual)
    once = prompt.ours(Patch((detour(2, 1, columns, window=window),)))
    one = detour(2, 1, columns, window=window, loops=loops)
    again = prompt.ours(Patch((one,)))
    close(again, two_passes(prompt.library, one.pairs(LAYERS), columns, loops))
    assert (again - once)[0, -1].abs().max() > WRONG


def test_the_references_columns_equal_two_plain_passes(prompts, two_passes):
    prompt = prompts["two pictures"]
    columns = list(prompt.sight.reference)
    wanted = two_passes(prompt.library, [(3, 0)], columns)
    close(prompt.ours(Patch((detour(3, 0, columns),))), wanted)


def test_columns_of_words_can_be_named_without_any_picture(hosted, two_passes):
    if hosted.family.kind.startswith("paligemma"):
        pytest.skip("it takes no text without a picture")
    prompt = Prompt(hosted, messages("the king of arda is a red cat"), [])
    columns = [2, 3, 5]
    wanted = two_passes(prompt.library, [(3, 1)], columns)
    close(prompt.ours(Patch((detour(3, 1, columns),))), wanted)


def test_several_pairs_are_written_from_one_clean_pass(prompts, two_passes):
    prompt = prompts["one picture"]
    columns = list(prompt.sight.visual)
    patch = Patch((detour(3, 0, columns), detour(2, 1, columns)))
    close(prompt.ours(patch), two_passes(prompt.library, [(3, 0), (2, 1)], columns))


def test_steering_and_edits_happen_in_the_clean_pass_too_and_before_it_is_read(
    hosted, prompts, two_passes
):
    prompt = prompts["one picture"]
    columns = list(prompt.sight.visual)
    width = hosted.family.decoder(hosted).width
    drawn = torch.Generator().manual_seed(0)
    shifts = [
        Shift(site=f"lm.block.{i}", vector=torch.randn(width, generator=drawn), positions=at)
        for i, at in ((0, tuple(columns[:2])), (1, "all"), (2, tuple(columns)))
    ]
    site = next(name for name in hosted.linears if name.endswith("2.mlp.down_proj"))
    linear = hosted.linears[site]
    low = LowRank(
        site=site,
        left=0.3 * torch.randn(linear.out_features, 1, generator=drawn),
        right=0.3 * torch.randn(1, linear.in_features, generator=drawn),
    )
    changes = Patch((*shifts, low))

    def patched():
        with hosted.planned([changes]):
            return prompt.library()

    for source, target in ((2, 0), (3, 1)):
        wanted = two_passes(patched, [(source, target)], columns)
        close(prompt.ours(changes | Patch((detour(source, target, columns),))), wanted)


def test_rows_with_other_plans_or_none_stand_side_by_side(hosted, prompts):
    prompt = prompts["two pictures"]
    columns = list(prompt.sight.visual)
    width = hosted.family.decoder(hosted).width
    shift = Shift(site="lm.block.1", vector=torch.ones(width))
    patches = [
        Patch(),
        Patch((detour(3, 0, columns),)),
        Patch((shift,)),
        Patch((detour(2, 1, columns, window=3), shift)),
        Patch((detour(3, 0, columns[:3]), shift)),
        Patch((detour(3, 0, columns, loops=2),)),
    ]
    ids, shown = prompt.ids.expand(len(patches), -1), [prompt.shown] * len(patches)
    with hosted.planned(patches, tokens=ids.shape[1]) as run:
        together = hosted.family.logits(hosted, ids, shown)
    plain = hosted.family.logits(hosted, ids, shown)
    assert torch.equal(together[0], plain[0])
    for row, patch in enumerate(patches):
        close(together[row : row + 1], prompt.ours(patch))
    assert run.changed[1, "lm.block.0:detour"] == len(columns)
    assert run.changed[4, "lm.block.0:detour"] == 3
    assert run.changed[3, "lm.block.1"] == ids.shape[1], "nothing is counted in the run ahead"


def test_a_prompt_whose_beginning_is_held_by_a_slot_makes_the_same_detour(hosted, prompts):
    family, prompt = hosted.family, prompts["a picture behind a text"]
    if prompt.sight.joint and prompt.sight.joint[0][0] == 0:
        pytest.skip("its whole prompt is read at once")
    columns, length = list(prompt.sight.visual), prompt.ids.shape[1]
    begun = min(prompt.sight.spans)[0] - 1
    one = Patch((detour(3, 1, columns, window=3),))
    cache = family.new_cache(hosted, 3, 128)
    family.step(hosted, prompt.ids[:, :begun], cache, (1,), (0,))
    family.step(hosted, prompt.ids[:, :begun].repeat(2, 1), cache, (0, 2), (0, 0))
    for slots in ((1,), (2, 0)):
        rows = len(slots)
        ids = prompt.ids[:, begun:].expand(rows, -1)
        patches = [one.within(begun, length - begun, length)] * rows
        with hosted.planned(patches, tokens=length - begun):
            said = family.step(
                hosted, ids, cache, slots, (begun,) * rows, shown=[prompt.shown] * rows
            )
        close(said, prompt.ours(one)[:, -1].expand(rows, -1))


def test_what_is_generated_behind_a_detour_is_what_the_library_generates(
    hosted, prompts, two_passes
):
    family, prompt = hosted.family, prompts["two pictures"]
    columns, length = list(prompt.sight.visual), prompt.ids.shape[1]
    model = hosted.modules["lm"]

    @torch.no_grad()
    def generate():
        return model.generate(
            **prompt.read, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, length:].tolist()

    wanted = two_passes(generate, [(3, 1)], columns)
    cache = family.new_cache(hosted, 1, 128)
    one, shown = Patch((detour(3, 1, columns),)), [prompt.shown]
    with hosted.planned([one], tokens=length):
        said = family.step(hosted, prompt.ids, cache, (0,), (0,), shown=shown)
    found = []
    for at in range(length, length + 6):
        found.append(int(said.argmax()))
        said = family.step(hosted, torch.tensor([found[-1:]]), cache, (0,), (at,), shown=shown)
    assert found == wanted


def test_windows_that_meet_are_refused(hosted):
    columns = (1, 2)
    patch = Patch((detour(3, 1, columns, window=3), detour(2, 0, columns)))
    with pytest.raises(BadPatch, match="windows"):
        hosted.check(patch)


def test_a_row_makes_all_its_detours_in_one_manner():
    with pytest.raises(BadPatch, match="equally often"):
        Patch((detour(3, 1, (1, 2)), detour(2, 0, (1, 2), loops=2)))
    with pytest.raises(BadPatch, match="same tokens"):
        Patch((detour(3, 1, (1, 2)), detour(2, 0, (1,))))


@torch.no_grad()
def test_a_batch_that_the_library_pads_on_the_left_says_what_our_rows_say(hosted, two_passes):
    """Our rows are never padded: each stands at its own positions."""
    rows = [
        Prompt(hosted, messages(None, "the king of arda"), ONE),
        Prompt(hosted, messages(None, "a red cat and a house of the president"), ONE),
    ]
    longest = max(row.ids.shape[1] for row in rows)
    left = [longest - row.ids.shape[1] for row in rows]
    assert min(left) == 0 < max(left)
    read = padded(rows, left)
    columns = [[c + more for c in row.sight.visual] for row, more in zip(rows, left, strict=True)]
    wanted = two_passes(lambda: hosted.modules["lm"](**read).logits, [(3, 1)], columns)
    for at, row in enumerate(rows):
        ours = row.ours(Patch((detour(3, 1, row.sight.visual, window=1),)))
        close(ours[0, -1], wanted[at, -1].float())


def padded(rows, left):
    """What the processor made of the rows, side by side, with padding in front."""
    found = {}
    for name, tensor in rows[0].read.items():
        of_tokens = tensor.shape == rows[0].ids.shape
        found[name] = torch.cat(
            [
                torch.nn.functional.pad(row.read[name], (more, 0)) if of_tokens else row.read[name]
                for row, more in zip(rows, left, strict=True)
            ]
        )
    return found
