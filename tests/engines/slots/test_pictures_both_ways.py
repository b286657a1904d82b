"""Prompts that see themselves both ways (PaliGemma) are read whole, whatever the budget."""

import pytest
import torch

from models.family import FAMILIES
from models.loading import load
from models.patch import Patch, Shift
from tests.engines.slots.test_pictures import BACK, alone, asked, picture


@pytest.fixture(scope="module", params=["paligemma", "paligemma2"])
def seeing(request, tmp_path_factory):
    hosted = load("tiny", FAMILIES[request.param].tiny(tmp_path_factory.mktemp(request.param)))
    yield hosted
    hosted.close()


@pytest.mark.parametrize("budget", [8, 512])
def test_rows_of_different_lengths_and_plans_write_what_each_writes_alone(seeing, desk, budget):
    first, second = picture(48, 48, 1), picture(64, 32, 2)
    drawn = torch.Generator().manual_seed(0)
    width = seeing.family.decoder(seeing).width
    shift = Shift(site="lm.block.1", vector=torch.randn(width, generator=drawn))
    requests = [
        asked(seeing, first, "the king of arda"),
        asked(seeing, first, "the king of arda", patch=BACK),
        asked(seeing, first, second, "is it a red cat?", patch=BACK | Patch((shift,))),
        asked(seeing, second, "the photo", patch=Patch((shift,))),
    ]
    assert min(len(request.ids) for request in requests) > 8
    told = desk.ask(desk.engine(seeing, slots=3, budget=budget, capacity=160), *requests)
    found = [tell.ids for tell in told]
    assert found == [alone(seeing, request) for request in requests]
    assert found[0] != found[1], "the plan is felt"
    assert told[2].last.tokens_changed["lm.block.1:detour"] == 32


def test_nothing_of_a_prompt_is_kept_for_another_question(seeing, desk):
    shown = picture(48, 48, 1)
    first, other = asked(seeing, shown, "the king of arda"), asked(seeing, shown, "a cat")
    engine = desk.engine(seeing, block=4)
    assert desk.ask(engine, first)[0].ids == alone(seeing, first)
    (told,) = desk.ask(engine, other)
    assert told.ids == alone(seeing, other)
    assert told.last.cached_tokens == 0
