"""Each row carries its own patch through prefill and decoding; plain rows keep their bits."""

import pytest
import torch

from models.errors import PatchNotApplied
from models.patch import Clamp, LowRank, Patch, Shift
from tests.models.language.conftest import library_logits, prompt

CAPACITY = 48


def patches(hosted) -> list[Patch]:
    """Six rows: five different changes, plain ones between."""
    width = hosted.family.stream_width(hosted, "lm")
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    site = next(s for s in hosted.linears if s.endswith(("down_proj", "mlp.c_proj")))
    out, inner = hosted.linears[site].weight.shape
    clamp = Clamp(
        site="lm.block.2",
        encoder=draw(width),
        encoder_bias=0.1,
        decoder=draw(width),
        value=2.0,
        positions="last_and_generated",
    )
    low_rank = LowRank(site=site, left=0.3 * draw(out, 2), right=0.3 * draw(2, inner))
    return [
        Patch((Shift(site="lm.block.1", vector=draw(width)),)),
        Patch(),
        Patch((clamp,)),
        Patch((low_rank,)),
        Patch(),
        Patch((low_rank, Shift(site="lm.block.1", vector=draw(width), positions="generated"))),
        Patch(tuple(Shift(site="lm.embedding", vector=draw(width)) for _ in range(3))),
    ]


def run(hosted, texts, planned, slots, counts=None):
    """Prefill in pieces of 8, then 6 tokens all together; logits of every decoding step."""
    family, said, found = hosted.family, [], []
    cache = family.new_cache(hosted, len(texts), CAPACITY)
    for slot, ids, patch in zip(slots, texts, planned, strict=True):
        for start in range(0, len(ids), 8):
            part = ids[start : start + 8]
            with hosted.planned([patch.within(start, len(part), len(ids))], tokens=len(part)):
                logits = family.step(hosted, torch.tensor([part]), cache, [slot], [start])
        said.append(int(logits.argmax()))
    for step in range(6):
        starts = [len(ids) + step for ids in texts]
        now = [p.within(s, 1, len(ids)) for p, s, ids in zip(planned, starts, texts, strict=True)]
        with hosted.planned(now, tokens=1) as force:
            logits = family.step(hosted, torch.tensor(said)[:, None], cache, slots, starts)
        if counts is not None:
            counts.append([force.tokens_changed(row) for row in range(len(texts))])
        found.append(logits)
        said = logits.argmax(-1).tolist()
    return torch.stack(found, dim=1)


def test_every_row_carries_its_own_patch_as_it_would_alone(hosted):
    planned, counts = patches(hosted), []
    texts = [prompt(hosted, 9 + 2 * row) for row in range(len(planned))]
    together = run(hosted, texts, planned, list(range(len(texts))), counts)
    assert counts == [[1, 0, 1, 1, 0, 2, 1]] * 6
    for row, (ids, patch) in enumerate(zip(texts, planned, strict=True)):
        alone = run(hosted, [ids], [patch], [0])
        torch.testing.assert_close(together[row], alone[0], atol=2e-4, rtol=2e-4)


def test_a_patch_moves_its_row_and_no_bit_of_a_plain_one(hosted):
    planned = patches(hosted)
    texts = [prompt(hosted, 9 + 2 * row) for row in range(len(planned))]
    slots = list(range(len(texts)))
    plain = run(hosted, texts, [Patch()] * len(texts), slots)
    mixed = run(hosted, texts, planned, slots)
    for row, patch in enumerate(planned):
        if patch:
            assert float((mixed[row] - plain[row]).abs().amax()) > 1e-2
        else:
            torch.testing.assert_close(
                mixed[row], plain[row], atol=0 if hosted.family.keeps_bits else 1e-5, rtol=0
            )


def test_a_low_rank_is_what_the_changed_weight_would_say(hosted):
    site = next(s for s in hosted.linears if s.endswith(("o_proj", "attn.c_proj")))
    weight, generator = hosted.linears[site].weight, torch.Generator().manual_seed(1)
    left = torch.randn(weight.shape[0], 3, generator=generator)
    right = 0.2 * torch.randn(3, weight.shape[1], generator=generator)
    ids = prompt(hosted, 20)
    with hosted.planned([Patch((LowRank(site=site, left=left, right=right),))], tokens=20):
        found = hosted.family.logits(hosted, torch.tensor([ids]))[0]
    before = weight.data.clone()
    try:
        weight.data += left @ right
        wanted = library_logits(hosted, ids)
    finally:
        weight.data.copy_(before)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    assert float((wanted - library_logits(hosted, ids)).abs().max()) > 0.1


def test_a_change_that_never_ran_is_an_error(hosted_toy):
    hosted = hosted_toy("llama")
    width = hosted.family.stream_width(hosted, "lm")
    patch = Patch((Shift(site="lm.block.0", vector=torch.ones(width)),))
    stream = torch.zeros(1, 2, width)
    with pytest.raises(PatchNotApplied), hosted.planned([patch], tokens=2):
        hosted.family.run_layers(hosted, stream, 2)
