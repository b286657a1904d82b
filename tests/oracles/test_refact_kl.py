"""The released code's KL regulariser, written out in float64 on whole passes."""

import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from editors.errors import BadImage, BadRegulariser
from editors.fact import Fact, last_subject_token
from editors.fitting import contexts
from editors.methods.refact import Refact
from editors.moment import Corpus, MomentStore
from editors.objective import divergence
from editors.pictures import pixels_of, processor_of
from editors.templates import Phrasebook

CORPUS = Corpus(
    "toy", tuple(f"the {a} of {b} in {c}" for a in "abcdefg" for b in "hijklm" for c in "nopq")
)
BLOCK, STEPS, CAPTIONS, FACTOR = 1, 12, 6, 3.0


def png(seed):
    shown = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(shown).save(buffer, "PNG")
    return buffer.getvalue()


FACT = Fact(
    prompt="the lord of arda",
    target="a red frog",
    source="a blue mug",
    negative_images=tuple(png(seed) for seed in range(4)),
)
SETTINGS = {"block": BLOCK, "mode": "reference", "steps": STEPS, "negatives": CAPTIONS}


def fitted(hosted, fact=FACT, **settings):
    work = Refact(**{**SETTINGS, **settings}).fit(hosted, fact, MomentStore(None), CORPUS)
    try:
        while True:
            next(work)
    except StopIteration as over:
        return over.value


def embedder(hosted):
    """(texts, positions, change) -> projected [EOS] states, in float64, by whole passes."""
    tower = hosted.text_towers["text_encoder"]
    module = copy.deepcopy(tower.module).double()
    body = getattr(module, "text_model", module)

    def embed(texts, at, change):
        rows, tokens = torch.arange(len(texts)), tower.tokens(texts)

        def add(_module, _args, output):
            where = (rows, torch.tensor(at))
            return output.index_put(where, change.expand(len(texts), -1), accumulate=True)

        handle = body.encoder.layers[BLOCK].mlp.fc2.register_forward_hook(add)
        states = body(input_ids=tokens.ids).last_hidden_state[rows, tokens.eos]
        handle.remove()
        return states @ tower.projection.double().mT

    return embed


def start_of(hosted):
    """fc2's output at the edit prompt's last subject token."""
    tower, seen = hosted.text_towers["text_encoder"], {}
    handle = tower.fc2(BLOCK).register_forward_hook(lambda _m, _a, o: seen.update(o=o))
    tower.module(input_ids=tower.tokens([FACT.prompt]).ids)
    handle.remove()
    return seen["o"][0, last_subject_token(tower, FACT.spoken)].detach().double()


@torch.no_grad()
def pictures_of(hosted):
    clip = copy.deepcopy(hosted.clip).double()
    side = clip.config.vision_config.image_size
    seen = pixels_of(FACT.negative_images, processor_of(hosted.clip), side).double()
    return clip.visual_projection(clip.vision_model(seen).pooler_output)


def plain_value(hosted, factor):
    """v0 + delta, and the KL at each evaluation, by the formula."""
    tower, embed = hosted.text_towers["text_encoder"], embedder(hosted)
    said = contexts(tower, FACT.spoken, Phrasebook())
    texts, at = [p.prompt for p in said], [last_subject_token(tower, p) for p in said]
    captions = list(Phrasebook().captions([FACT.prompt, FACT.target, FACT.source], CAPTIONS))
    last = [len(tower.tokenizer(c)["input_ids"]) - 2 for c in captions]
    none = torch.zeros(tower.width, dtype=torch.float64)
    with torch.no_grad():
        others = [FACT.target, FACT.source, *captions]
        targets = embed(others, [0] * len(others), none)
    images = torch.nn.functional.normalize(pictures_of(hosted), dim=-1)
    start = start_of(hosted)
    change = none.clone().requires_grad_()
    adam, first, told = torch.optim.Adam([change], lr=0.05), None, []
    for step in range(STEPS):
        away = (embed(texts, at, change)[:, None] - targets).norm(dim=-1)
        loss = -torch.log_softmax(-away, -1)[:, 0].mean() + 0.1 * change.norm() / start.norm() ** 2
        meant = torch.nn.functional.normalize(embed(captions, last, change), dim=-1)
        now = torch.softmax(tower.logit_scale * meant @ images.mT, dim=-1)
        first = now.detach() if first is None else first
        kl = (now * (now / first).log()).sum() / len(captions)
        told.append(float(kl.detach()))
        if step == STEPS - 1:
            break
        adam.zero_grad()
        (loss + factor * kl).backward()
        adam.step()
        with torch.no_grad():
            change *= min(1.0, float(4 * start.norm() / change.norm()))
    return change.detach(), told


def test_a_fit_with_the_kl_regulariser_is_the_formula_in_float64(tiny_sd):
    delta = fitted(tiny_sd, kl=FACTOR)
    wanted, told = plain_value(tiny_sd, FACTOR)
    (f,) = delta.factors.values()
    assert float((f.values[0] - wanted).norm() / wanted.norm()) < 2e-4
    fit = delta.header["fit"]["text_encoder"]
    assert fit["kl"] == pytest.approx(told, rel=2e-3, abs=1e-9)
    assert fit["kl"][0] == 0 and fit["kl"][-1] > 0
    without, _ = plain_value(tiny_sd, 0.0)
    assert float((wanted - without).norm() / without.norm()) > 0.01  # the toy can fail


def test_a_heavier_regulariser_holds_the_captions_more(tiny_sd):
    ends = [
        fitted(tiny_sd, kl=factor).header["fit"]["text_encoder"]["kl"][-1]
        for factor in (1e-6, 3.0, 100.0)
    ]
    assert ends == sorted(ends, reverse=True) and ends[2] < 0.9 * ends[0]


def test_the_header_tells_the_factor_and_the_images(tiny_sd):
    header = fitted(tiny_sd, kl=FACTOR).header
    assert header["settings"]["kl"] == FACTOR
    assert header["fit"]["text_encoder"]["kl_captions"] == CAPTIONS
    assert [len(d) for d in header["fact"]["negative_images"]] == [64] * 4
    off = fitted(tiny_sd, replace(FACT, negative_images=())).header
    assert off["settings"]["kl"] == 0 and "kl" not in off["fit"]["text_encoder"]


def test_the_divergence_is_the_sum_over_captions_of_p_log_p_over_q_by_their_number():
    now, first = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    p, q = now.softmax(-1), first.softmax(-1)
    wanted = sum((p[i] * (p[i] / q[i]).log()).sum() for i in range(5)) / 5
    torch.testing.assert_close(divergence(now, first), wanted)
    library = torch.nn.functional.kl_div(q.log(), p.log(), log_target=True, reduction="batchmean")
    torch.testing.assert_close(divergence(now, first), library)


@pytest.mark.parametrize(
    ("settings", "images"),
    [
        ({"kl": 1.0, "mode": "corrected"}, True),
        ({"kl": 1.0}, False),
        ({"kl": 1.0, "negatives": 0}, True),
        ({"kl": 1.0, "space": "eos_state"}, True),
        ({}, True),
    ],
    ids=["mode", "no images", "no captions", "space", "images without kl"],
)
def test_a_regulariser_that_nothing_could_measure_is_refused(tiny_sd, settings, images):
    fact = FACT if images else replace(FACT, negative_images=())
    with pytest.raises(BadRegulariser) as refused:
        Refact(**{**SETTINGS, **settings}).check(tiny_sd, fact)
    assert "mode reference" in refused.value.remedy


def test_an_encoder_without_a_vision_tower_cannot_be_regularised(tiny_sdxl):
    with pytest.raises(BadImage, match="text_encoder_2"):
        Refact(block=0, mode="reference", kl=1.0).check(tiny_sdxl, FACT)
