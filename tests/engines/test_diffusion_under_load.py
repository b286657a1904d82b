"""`exact` under load: one request again and again while others come, go, fail and are cancelled."""

import random
import threading
from contextlib import contextmanager

import pytest
import torch

from engines.diffusion import DiffusionEngine
from engines.request import LAST, Finished, ImageRequest, Step
from models.loading import load
from models.patch import LowRank, Patch

SITE = "text_encoder.text_model.encoder.layers.1.mlp.fc2"
SAMPLERS = ("ddim", "euler", "pndm", "lcm", "dpmpp_2m", None)
SIZES = ((16, 16), (32, 16), (16, 32), (None, None))
CROWD, SLOTS, REPEATS = 5, 4, 4


def edit(seed, size=1.0):
    drawn = torch.Generator().manual_seed(seed)
    left = size * torch.randn(32, 1, generator=drawn)
    return Patch((LowRank(site=SITE, left=left, right=torch.randn(1, 64, generator=drawn)),))


FIXED = {
    "edited": ImageRequest(
        id="edited", prompt="the president of arda", negative_prompt="a tree", seed=7, steps=6,
        guidance=5.0, sampler="dpmpp_2m", patch=edit(3),
    ),
    "noisy": ImageRequest(  # its sampler draws from the row's generator at every step
        id="noisy", prompt="a red cat", seed=8, steps=5, guidance=2.5, sampler="lcm",
        height=32, width=16, patch=edit(4), patch_negative=False,
    ),
    "unguided": ImageRequest(
        id="unguided", prompt="a blue house", seed=9, steps=7, guidance=1.0, sampler="pndm",
    ),
}  # fmt: skip


class Watched(DiffusionEngine):
    """Remembers final latents, and in which company rows stood."""

    def __init__(self, *args, **named):
        self.latents, self.company = {}, {}
        super().__init__(*args, **named)

    def _denoise(self, rows, key):
        for row in rows:
            beside = frozenset(r.ticket.request.id for r in rows if r is not row)
            self.company.setdefault(row.ticket.request.id, set()).add((row.slot, beside))
        return super()._denoise(rows, key)

    def _finished(self, row):
        self.latents.setdefault(row.ticket.request.id, []).append(row.latents.clone())
        return super()._finished(row)


def draw(engine, request, leaves_at=None):
    """The row's last event; it is cancelled after so many steps."""
    over, last, held = threading.Event(), [], threading.Event()

    def tell(event):
        if isinstance(event, Step) and event.done == leaves_at:
            assert held.wait(60)
            ticket.cancel()
        if isinstance(event, LAST):
            last.append(event)
            over.set()

    ticket = engine.submit(request, tell)
    held.set()
    assert over.wait(60)
    return last[0]


class Crowd:
    """Threads whose rows differ in everything; some leave early, some fail on the way."""

    def __init__(self, engine):
        self.engine, self.ends, self.stop = engine, [], threading.Event()

    def ask(self, number):
        dice, i = random.Random(number), 0  # noqa: S311 - a test's dice
        while not self.stop.is_set():
            i += 1
            steps = dice.randint(2, 9)
            height, width = dice.choice(SIZES)
            request = ImageRequest(
                id=f"{number}-{i}",
                prompt=f"a {dice.choice(('red', 'blue', 'green'))} cat {dice.randint(1, 50)}",
                negative_prompt=dice.choice((None, "a man", "a tree")),
                seed=dice.randrange(2**40),
                steps=steps,
                guidance=dice.choice((1.0, 2.0, 7.5, 12.0)),
                sampler=dice.choice(SAMPLERS),
                height=height,
                width=width,
                # Now and then one that overflows: its row fails, in the middle of the others.
                patch=dice.choice((Patch(), edit(i), edit(i), edit(i, size=1e38))),
                patch_negative=dice.random() < 0.5,
                previews=dice.choice((0, 0, 2)),
            )
            leaves_at = dice.randint(1, steps) if dice.random() < 0.25 else None
            self.ends.append(draw(self.engine, request, leaves_at))

    @contextmanager
    def around(self):
        threads = [threading.Thread(target=self.ask, args=(i,)) for i in range(CROWD)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()


DTYPES = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "mixed": {"dtype": "float32", "denoiser_dtype": "bfloat16"},
}


@pytest.fixture(scope="module", params=DTYPES)
def engine_of_each_dtype(tiny_sd_folder, request):
    engine = Watched(load("tiny", tiny_sd_folder, **DTYPES[request.param]), slots=SLOTS)
    yield engine
    engine.stop()


def test_a_request_draws_the_same_bits_alone_and_in_a_busy_churning_batch(engine_of_each_dtype):
    engine = engine_of_each_dtype
    alone = {name: draw(engine, request).image for name, request in FIXED.items()}
    engine.company.clear()
    with Crowd(engine).around() as crowd:
        for _ in range(REPEATS):
            for name, request in FIXED.items():
                assert (draw(engine, request).image == alone[name]).all()
    for name in FIXED:
        first, *later = engine.latents[name]
        assert len(later) == REPEATS
        assert all(torch.equal(first, latents) for latents in later)
    assert_it_was_busy(engine, crowd)


def assert_it_was_busy(engine, crowd):
    """The crowd came and went, and the fixed rows stood in other slots beside others."""
    kinds = {type(end).__name__ for end in crowd.ends}
    assert kinds == {"Finished", "Failed", "Cancelled"}, kinds
    assert len(crowd.ends) > 10
    stood = [of for name in FIXED for of in engine.company[name]]
    assert len({slot for slot, _ in stood}) > 1
    assert len({beside for _, beside in stood}) > 10
    assert any(len(beside) > 1 for _, beside in stood)


def test_in_fast_mode_the_crowd_moves_the_last_bits_only(tiny_sd):
    engine = Watched(tiny_sd, slots=SLOTS, mode="fast")
    try:
        alone = {name: draw(engine, request).image for name, request in FIXED.items()}
        with Crowd(engine).around():
            for name, request in FIXED.items():
                busy = draw(engine, request)
                assert isinstance(busy, Finished) and busy.mode == "fast"
                assert abs(busy.image.astype(int) - alone[name]).max() <= 1
    finally:
        engine.stop()
