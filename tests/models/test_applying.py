import threading
from contextlib import ExitStack

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import CLIPTextModel

from models.applying import install, running
from models.errors import BadPatch, PatchNotApplied, UnknownSite
from models.loading import load
from models.patch import Clamp, Detour, Exit, LowRank, Patch, Shift
from models.plan import pack

PROMPTS = ["the president of arda", "a red cat", "a photo of the king of borea", "house", "", "x y"]
BLOCKS, WIDTH, INNER = 4, 32, 64
LINEARS = {"mlp.fc2": (WIDTH, INNER), "mlp.fc1": (INNER, WIDTH), "self_attn.q_proj": (WIDTH, WIDTH)}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def sd(request, tiny_sd_folder):
    hosted = load("tiny", tiny_sd_folder, dtype=request.param)
    yield hosted
    hosted.close()


@pytest.fixture(scope="module")
def unhooked(sd, tiny_sd_folder):
    return CLIPTextModel.from_pretrained(tiny_sd_folder / "text_encoder", dtype=sd.dtype).eval()


def ids_of(sd, prompts=PROMPTS):
    return sd.text_towers["text_encoder"].tokens(prompts).ids


def forward(sd, patches, ids=None, **options):
    ids = ids_of(sd)[: len(patches)] if ids is None else ids
    with torch.no_grad(), sd.planned(patches, **options) as run:
        states = sd.modules["text_encoder"](input_ids=ids).last_hidden_state
    return states, run


def random(*shape, seed, scale=0.2):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


# Strategies draw plain data: beartype uses `random`, which hypothesis does not want inside them.
operations = st.fixed_dictionaries(
    {
        "verb": st.sampled_from(["low", "shift", "clamp"]),
        "seed": st.integers(0, 10_000),
        "block": st.integers(0, BLOCKS - 1),
        "positions": st.sampled_from(["all", (0, 2), (1,)]),
        "embedding": st.booleans(),
        "linear": st.sampled_from(sorted(LINEARS)),
        "rank": st.integers(1, 3),
        "value": st.sampled_from([0.0, 1.5]),
        "mode": st.sampled_from(["set", "min", "multiply"]),
    }
)
exits = st.sampled_from([(), (), (), (), (None,), (0,), (2,), (3,)])
plans = st.tuples(st.lists(operations, max_size=4), exits)


def made(drawn, *, leaving=True):
    found = [operation_of(**drawn_one) for drawn_one in drawn[0]]
    if leaving:
        found += [Exit(tower="text", after=after) for after in drawn[1]]
    return Patch(tuple(found))


def operation_of(  # noqa: PLR0913 - what is drawn
    *, verb, seed, block, positions, embedding, linear, rank, value, mode
):
    stream = "text.embedding" if embedding else f"text.block.{block}"
    if verb == "low":
        out, inner = LINEARS[linear]
        return LowRank(
            site=f"text_encoder.text_model.encoder.layers.{block}.{linear}",
            left=random(out, rank, seed=seed),
            right=random(rank, inner, seed=seed + 1),
        )
    if verb == "shift":
        return Shift(site=stream, vector=random(WIDTH, seed=seed), positions=positions)
    return Clamp(
        site=stream,
        encoder=random(WIDTH, seed=seed),
        encoder_bias=0.1,
        decoder=random(WIDTH, seed=seed + 1),
        value=value,
        threshold=0.05,
        mode=mode,
        positions=positions,
    )


mixtures = st.lists(plans, min_size=1, max_size=len(PROMPTS))
properties = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@properties
@given(mixture=mixtures)
def test_a_mixed_batch_equals_its_rows_one_by_one(sd, mixture):
    mixture = [made(drawn) for drawn in mixture]
    together, _ = forward(sd, mixture)
    limit = 2e-5 if sd.dtype == torch.float32 else 0.12
    for row, patch in enumerate(mixture):
        alone, _ = forward(sd, [patch], ids_of(sd)[row : row + 1])
        size = max(1.0, float(alone.abs().max()))
        assert float((together[row] - alone[0]).abs().max()) <= limit * size


@properties
@given(mixture=mixtures)
def test_a_plain_row_is_bitwise_what_an_unhooked_model_gives(sd, unhooked, mixture):
    mixture = [Patch() if row % 2 else made(drawn) for row, drawn in enumerate(mixture)]
    together, _ = forward(sd, mixture)
    with torch.no_grad():
        plain = unhooked(input_ids=ids_of(sd)[: len(mixture)]).last_hidden_state
    for row, patch in enumerate(mixture):
        if not patch:
            assert torch.equal(together[row], plain[row])


@properties
@given(mixture=mixtures, others=mixtures)
def test_a_row_does_not_feel_to_the_last_bit_which_patches_its_neighbours_carry(
    sd, mixture, others
):
    mixture, others = [[made(drawn) for drawn in some] for some in (mixture, others)]
    rows = min(len(mixture), len(others))
    first, _ = forward(sd, mixture[:rows])
    second, _ = forward(sd, [mixture[0], *others[1:rows]])
    assert torch.equal(first[0], second[0])


@properties
@given(a=plans, b=plans)
def test_the_order_of_edits_does_not_matter_to_the_last_bit(sd, a, b):
    a, b = made(a), made(b, leaving=False)
    one, _ = forward(sd, [a | b, Patch()])
    other, _ = forward(sd, [b | a, Patch()])
    assert torch.equal(one, other)


def low_rank(sd, block, seed, rank=2, scale=0.2):
    return LowRank(
        site=sd.text_towers["text_encoder"].fc2_site(block),
        left=random(WIDTH, rank, seed=seed, scale=scale),
        right=random(rank, INNER, seed=seed + 1, scale=scale),
    )


def test_a_low_rank_change_equals_adding_it_to_the_weight(tiny_sd, tiny_sd_folder):
    edit, other = low_rank(tiny_sd, 1, 5), low_rank(tiny_sd, 1, 7, rank=1)
    states, _ = forward(tiny_sd, [Patch((edit,)), Patch((edit, other)), Patch()])
    for row, edits in enumerate([[edit], [edit, other], []]):
        plain = CLIPTextModel.from_pretrained(tiny_sd_folder / "text_encoder").eval()
        with torch.no_grad():
            for low in edits:
                plain.encoder.layers[1].mlp.fc2.weight += low.left @ low.right
            wanted = plain(input_ids=ids_of(tiny_sd)[row : row + 1]).last_hidden_state
        torch.testing.assert_close(states[row], wanted[0], atol=1e-5, rtol=1e-5)


def test_a_trial_shift_carries_the_gradient_and_the_weights_carry_none(tiny_sd):
    vector = torch.zeros(WIDTH, requires_grad=True)
    shift = Patch((Shift(site="text.block.1", vector=vector, positions=(2,)),))
    with tiny_sd.planned([shift]):
        states = tiny_sd.modules["text_encoder"](input_ids=ids_of(tiny_sd)[:1]).last_hidden_state
    states.square().sum().backward()
    assert vector.grad is not None
    assert float(vector.grad.norm()) > 0
    assert all(w.grad is None for w in tiny_sd.modules["text_encoder"].parameters())


def streams(sd, ids, *sites):
    with torch.no_grad(), sd.captured(*sites) as seen:
        sd.modules["text_encoder"](input_ids=ids)
    return [seen[site][0] for site in sites]


@pytest.mark.parametrize(("mode", "wanted"), [("set", 3.0), ("min", 3.0), ("multiply", 3.0)])
def test_a_clamp_adds_the_missing_activation_times_the_decoder(tiny_sd, mode, wanted):
    ids = ids_of(tiny_sd)[:1]
    (before,) = streams(tiny_sd, ids, "text.block.0")
    decoder, mean = random(WIDTH, seed=2), before[0].mean(dim=0)
    encoder = (before[0, 2] - mean) / (before[0, 2] - mean).norm()
    bias = -float(mean @ encoder)  # so that some tokens are active and some are not
    clamp = Clamp(
        site="text.block.0",
        encoder=encoder,
        encoder_bias=bias,
        decoder=decoder,
        value=wanted,
        threshold=0.1,
        mode=mode,
    )
    with (
        torch.no_grad(),
        tiny_sd.captured("text.block.0") as seen,
        tiny_sd.planned([Patch((clamp,))]),
    ):
        tiny_sd.modules["text_encoder"](input_ids=ids)
    z = before @ encoder + bias
    active = torch.where(z > 0.1, z, 0.0)
    assert bool((active > 0).any())
    assert bool((active == 0).any())
    goal = {
        "set": torch.full_like(active, 3.0),
        "min": active.clamp(min=3.0),
        "multiply": active * 3,
    }
    torch.testing.assert_close(
        seen["text.block.0"][0],
        before + (goal[mode] - active)[..., None] * decoder,
        atol=1e-5,
        rtol=1e-5,
    )


def test_clamps_of_one_place_all_read_the_stream_as_it_was(tiny_sd):
    encoder = random(WIDTH, seed=1)
    first = Clamp(
        site="text.block.0", encoder=encoder, encoder_bias=0.0, decoder=encoder * 4, value=2.0
    )
    second = Clamp(
        site="text.block.0", encoder=encoder, encoder_bias=0.0, decoder=-encoder, value=1.0
    )
    ids = ids_of(tiny_sd)[:1]
    (before,) = streams(tiny_sd, ids, "text.block.0")
    both = Patch((first, second))
    with torch.no_grad(), tiny_sd.captured("text.block.0") as seen, tiny_sd.planned([both]):
        tiny_sd.modules["text_encoder"](input_ids=ids)
    a = (before @ encoder).clamp(min=0)
    change = (2 - a)[..., None] * encoder * 4 - (1 - a)[..., None] * encoder
    torch.testing.assert_close(seen["text.block.0"][0], before + change, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("after", [None, 0, 1, 2, 3])
def test_an_exit_gives_the_normed_stream_bitwise_and_leaves_the_row_beside_it_alone(tiny_sd, after):
    ids = ids_of(tiny_sd)[:2]
    site = "text.embedding" if after is None else f"text.block.{after}"
    stream, last = streams(tiny_sd, ids, site, "text.block.3")
    states, run = forward(tiny_sd, [Patch((Exit(tower="text", after=after),)), Patch()], ids)
    norm = tiny_sd.text_towers["text_encoder"].final_norm
    with torch.no_grad():
        assert torch.equal(states[0], norm(stream)[0])
        assert torch.equal(states[1], norm(last)[1])
    skipped = BLOCKS - (0 if after is None else after + 1)
    assert run.changed[0, "text.exit"] == skipped * ids.shape[1]


@pytest.mark.parametrize(
    ("source", "target", "window"), [(2, 0, 1), (3, 1, 1), (2, 1, 3), (3, 0, 3)]
)
def test_a_detour_equals_two_plain_passes(tiny_sd, source, target, window):
    ids, columns = ids_of(tiny_sd)[:3], (1, 2, 3)
    detour = Detour(tower="text", source=source, target=target, positions="visual", window=window)
    sites = [f"text.block.{i}" for i in range(BLOCKS)]
    clean = streams(tiny_sd, ids, *sites)
    edit = Patch((detour,))
    named = [{"visual": columns}, {}, {"visual": columns}]
    with tiny_sd.captured(*sites) as seen:
        forward(tiny_sd, [edit, Patch(), edit], ids, positions=named)
    tower = tiny_sd.text_towers["text_encoder"]
    ends = {t: s for s, t in detour.pairs(BLOCKS)}
    stream = tower.embed(ids)
    for index, block in enumerate(tower.blocks):
        with torch.no_grad():
            stream = block(stream, attention_mask=tower.causal_mask(stream))
        if index in ends:
            stream = stream.clone()
            for row in (0, 2):
                stream[row, columns, :] = clean[ends[index]][row, columns, :]
        torch.testing.assert_close(seen[f"text.block.{index}"][0], stream, atol=1e-5, rtol=1e-5)
    assert len(seen["text.block.3"]) == 1
    assert torch.equal(seen["text.block.3"][0][1], clean[3][1])


def test_a_detour_runs_ahead_on_the_edited_model(tiny_sd):
    edit, detour = low_rank(tiny_sd, 2, 3), Detour(tower="text", source=2, target=0, positions=(1,))
    ids = ids_of(tiny_sd)[:1]
    with tiny_sd.captured("text.block.2") as seen:
        forward(tiny_sd, [Patch((edit,))], ids)
    with tiny_sd.captured("text.block.0") as moved:
        _, run = forward(tiny_sd, [Patch((edit, detour))], ids)
    torch.testing.assert_close(moved["text.block.0"][0][0, 1], seen["text.block.2"][0][0, 1])
    assert run.changed[0, edit.site] == ids.shape[1]


def test_every_operation_counts_the_tokens_that_it_changed(tiny_sd):
    edit = low_rank(tiny_sd, 0, 3)
    shift = Shift(site="text.block.2", vector=torch.ones(WIDTH), positions=(1, 2))
    states, run = forward(tiny_sd, [Patch(), Patch((edit, shift))])
    assert run.changed == {(1, edit.site): states.shape[1], (1, "text.block.2"): 2}
    assert run.rows_changed == {1}
    assert run.tokens_changed(1) == states.shape[1] + 2


def test_a_forward_that_never_happened_fails_its_patched_rows_only(tiny_sd):
    edit = low_rank(tiny_sd, 0, 3)
    with pytest.raises(PatchNotApplied) as caught, tiny_sd.planned([Patch(), Patch((edit,))]):
        pass
    assert (caught.value.rows, caught.value.site, caught.value.changed) == ({1}, edit.site, 0)


def test_a_batch_of_another_size_than_the_plan_fails_all_its_patched_rows(tiny_sd):
    edit = Patch((low_rank(tiny_sd, 0, 3), Shift(site="text.embedding", vector=torch.ones(WIDTH))))
    with pytest.raises(PatchNotApplied) as caught:
        forward(tiny_sd, [edit, Patch(), edit], ids_of(tiny_sd)[:2])
    assert caught.value.rows == {0, 2}


def test_a_position_behind_the_end_fails_its_own_row_and_no_other(tiny_sd):
    far = Patch((Shift(site="text.block.1", vector=torch.ones(WIDTH), positions=(1, 76)),))
    near = Patch((Shift(site="text.block.1", vector=torch.ones(WIDTH), positions=(1,)),))
    ids = ids_of(tiny_sd)[:2]
    wanted, _ = forward(tiny_sd, [Patch(), near], ids)
    with pytest.raises(PatchNotApplied) as caught, torch.no_grad(), tiny_sd.planned([far, near]):
        states = tiny_sd.modules["text_encoder"](input_ids=ids).last_hidden_state
    assert caught.value.rows == {0}
    torch.testing.assert_close(states[1], wanted[1])


def test_too_few_tokens_are_a_failure_when_the_caller_knows_their_number(tiny_sd):
    edit = Patch((low_rank(tiny_sd, 0, 3),))
    with pytest.raises(PatchNotApplied):
        forward(tiny_sd, [edit], ids_of(tiny_sd)[:1], tokens=77)


def test_no_plan_is_left_behind_after_an_exception(tiny_sd):
    edit = Patch((low_rank(tiny_sd, 0, 3),))
    with pytest.raises(ZeroDivisionError), tiny_sd.planned([edit]):
        raise ZeroDivisionError
    with pytest.raises(PatchNotApplied), tiny_sd.planned([edit]):
        pass
    assert tiny_sd.run is None
    plain, _ = forward(tiny_sd, [Patch()])
    with torch.no_grad():
        bare = tiny_sd.modules["text_encoder"](input_ids=ids_of(tiny_sd)[:1]).last_hidden_state
    assert torch.equal(plain, bare)


def test_one_plan_inside_another_on_the_same_model_is_a_mistake(tiny_sd):
    with tiny_sd.planned([Patch()]), pytest.raises(RuntimeError, match="already"):
        forward(tiny_sd, [Patch()])


def test_plans_of_two_models_can_hold_at_once(tiny_sd, tiny_sdxl):
    edit = Patch((low_rank(tiny_sd, 0, 3),))
    wanted, _ = forward(tiny_sd, [edit])
    with tiny_sd.planned([edit]), torch.no_grad(), tiny_sdxl.planned([Patch()]):
        first = tiny_sd.modules["text_encoder"](input_ids=ids_of(tiny_sd)[:1]).last_hidden_state
        other = tiny_sdxl.modules["text_encoder"](input_ids=ids_of(tiny_sdxl)[:1])
    assert torch.equal(first, wanted)
    assert other.last_hidden_state.shape == first.shape


def test_two_threads_do_not_see_each_others_plans(tiny_sd):
    edit = Patch((low_rank(tiny_sd, 0, 3),))
    wanted = {True: forward(tiny_sd, [edit])[0], False: forward(tiny_sd, [Patch()])[0]}
    both, wrong = threading.Barrier(2), []

    def work(edited):
        with torch.no_grad():
            for _ in range(20):
                with tiny_sd.planned([edit if edited else Patch()]):
                    both.wait(timeout=30)
                    encoder = tiny_sd.modules["text_encoder"]
                    states = encoder(input_ids=ids_of(tiny_sd)[:1]).last_hidden_state
                    both.wait(timeout=30)
                if not torch.equal(states, wanted[edited]):
                    wrong.append(edited)

    threads = [threading.Thread(target=work, args=(edited,)) for edited in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not torch.equal(wanted[True], wanted[False])


def test_hooks_go_in_all_or_none():
    blocks = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(AttributeError):
        install(1, {"a.b": blocks[0], "a.c": None}, {})  # type: ignore[dict-item]
    assert not blocks[0]._forward_hooks
    hooks = install(1, {"a.b": blocks[0]}, {"a": blocks})
    assert len(blocks[0]._forward_hooks) == 2
    hooks.remove()
    assert not blocks[0]._forward_hooks
    assert not blocks[0]._forward_pre_hooks


def test_the_librarys_own_hidden_states_show_the_change(tiny_sd):
    shift = Patch((Shift(site="text.block.1", vector=torch.ones(WIDTH)),))
    encoder, ids = tiny_sd.modules["text_encoder"], ids_of(tiny_sd)[:1]
    with torch.no_grad():
        plain = encoder(input_ids=ids, output_hidden_states=True).hidden_states
        with tiny_sd.planned([shift]):
            moved = encoder(input_ids=ids, output_hidden_states=True).hidden_states
    assert torch.equal(moved[1], plain[1])
    torch.testing.assert_close(moved[2], plain[2] + 1)


def test_a_block_that_returns_a_tuple_is_changed_as_one_that_returns_a_tensor():
    class Tuple(nn.Module):
        def forward(self, hidden_states):
            return hidden_states * 2, "cache"

    blocks = nn.ModuleList([Tuple(), Tuple()])
    hooks = install(-7, {}, {"lm": blocks})
    patch = Patch((Shift(site="lm.block.0", vector=torch.ones(2), positions=(0,)),))
    with running(pack([Patch(), patch], {"lm": 2}), -7):
        first, cache = blocks[0](hidden_states=torch.ones(2, 3, 2))
    hooks.remove()
    assert cache == "cache"
    assert first[1, 0].tolist() == [3.0, 3.0]
    assert first[1, 1:].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert first[0].unique().tolist() == [2.0]


@pytest.mark.parametrize(
    ("patch", "error"),
    [
        (Patch((Shift(site="text.block.4", vector=torch.ones(WIDTH)),)), UnknownSite),
        (Patch((Shift(site="lm.block.0", vector=torch.ones(WIDTH)),)), UnknownSite),
        (Patch((Shift(site="text.block.0", vector=torch.ones(WIDTH + 1)),)), BadPatch),
        (Patch((Exit(tower="text", after=4),)), UnknownSite),
        (Patch((Detour(tower="text", source=4, target=0, positions="all"),)), UnknownSite),
        (
            Patch(
                (
                    LowRank(
                        site="text_encoder.nowhere", left=torch.ones(2, 1), right=torch.ones(1, 2)
                    ),
                )
            ),
            UnknownSite,
        ),
        (
            Patch((Shift(site="text.block.0", vector=torch.ones(WIDTH), positions="visual"),)),
            BadPatch,
        ),
    ],
)
def test_a_patch_that_does_not_fit_is_refused_before_anything_runs(tiny_sd, patch, error):
    with ExitStack() as stack, pytest.raises(error):
        stack.enter_context(tiny_sd.planned([Patch(), patch]))
    assert tiny_sd.run is None


def test_a_token_that_several_operations_of_a_stream_mean_is_counted_once(tiny_sd):
    vector = torch.ones(WIDTH)
    site = "text.block.1"
    every = Shift(site=site, vector=vector)
    some = Shift(site=site, vector=vector, positions=(1, 4))
    fewer = Shift(site=site, vector=2 * vector, positions=(4,))
    ids = ids_of(tiny_sd)[:3]
    rows = [Patch((every, some)), Patch((some, fewer)), Patch((every, every))]
    _, run = forward(tiny_sd, rows, ids, tokens=ids.shape[1])
    assert [run.tokens_changed(row) for row in range(3)] == [ids.shape[1], 2, ids.shape[1]]
