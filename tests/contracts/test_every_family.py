"""What must hold for every family, whichever there are."""

import inspect
import time
from pathlib import Path

import pytest
import torch

from models.errors import BadLayer
from models.family import FAMILIES, Family, Lens, TextToImage
from models.fingerprint import fingerprint
from models.loading import load
from models.patch import Exit, LowRank, Patch, Shift

METHODS = {"refact", "lora", "diffusion_lens", "sae", "control_vector", "back_patch"}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def hosted(family, tmp_path_factory):
    hosted = load("tiny", family.tiny(tmp_path_factory.mktemp(family.kind)))
    yield hosted
    hosted.close()


def everything(hosted) -> Patch:
    """One operation of each verb that every tower can carry."""
    found = []
    for tower, blocks in hosted.towers.items():
        width = hosted.family.stream_width(hosted, tower)
        found += [
            Shift(site=f"{tower}.block.0", vector=torch.ones(width), positions=(1, 2)),
            Exit(tower=tower, after=len(blocks) - 2),
        ]
    for tower in hosted.text_towers.values():
        fc2 = tower.fc2(0)
        change = {"left": torch.ones(fc2.out_features, 1), "right": torch.ones(1, fc2.in_features)}
        found.append(LowRank(site=tower.fc2_site(0), **{n: 0.1 * t for n, t in change.items()}))
    return Patch(tuple(found))


def test_it_says_for_every_method_whether_it_applies_or_why_not(family):
    assert set(family.applies) >= METHODS
    assert all(reason is None or reason.endswith(".") for reason in family.applies.values())


def test_it_knows_its_own_folder_and_no_other(family, hosted, tmp_path):
    assert [f for f in FAMILIES.values() if f.matches(hosted.path)] == [family]
    assert not family.matches(tmp_path)


def test_its_toy_is_the_same_each_time_and_another_with_another_seed(family, tmp_path):
    folders = [family.tiny(tmp_path / str(i), seed) for i, seed in enumerate((0, 0, 1))]
    encoder = "text_encoder" if isinstance(family, TextToImage) else "."
    found = [fingerprint(folder / encoder) for folder in folders]
    assert found[0] == found[1] != found[2]


def test_making_a_toy_does_not_disturb_the_callers_random_numbers(family, tmp_path):
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    family.tiny(tmp_path / "toy")
    assert torch.equal(torch.rand(2), wanted)


def test_its_toy_is_small_and_quick(family, tmp_path):
    began = time.process_time()
    hosted = load("quick", family.tiny(tmp_path / "toy"))
    assert time.process_time() - began < 3
    hosted.close()
    assert sum(f.stat().st_size for f in hosted.path.rglob("*")) < 3_000_000


def test_every_linear_site_is_a_path_below_its_encoder(family, hosted):
    for site, module in hosted.linears.items():
        assert site.partition(".")[0] in family.towers
        assert isinstance(module, torch.nn.Linear)


def test_facts_are_edited_at_the_historic_path_of_clips_second_linear(family, hosted):
    for attribute, tower in hosted.text_towers.items():
        assert tower.fc2_site(0) == f"{attribute}.text_model.encoder.layers.0.mlp.fc2"
        assert tower.fc2_site(0) in hosted.linears
    assert bool(hosted.text_towers) == (family.applies["refact"] is None)


def looked_at(hosted) -> list[Lens]:
    if not isinstance(hosted.family, TextToImage):
        return []
    return [lens for lens in hosted.family.lenses(hosted).values() if isinstance(lens, Lens)]


def test_the_lens_says_of_every_encoder_how_it_looks_or_why_it_cannot(family, hosted):
    if isinstance(family, TextToImage):
        lenses = family.lenses(hosted)
        assert set(lenses) == set(hosted.towers)
        assert all(isinstance(lens, Lens) or lens.endswith(".") for lens in lenses.values())
    assert bool(looked_at(hosted)) == (family.applies["diffusion_lens"] is None)


def test_the_ordinary_layer_is_the_ordinary_reading_and_each_other_layer_another(family, hosted):
    for lens in looked_at(hosted):
        patches = [lens.exit(layer) for layer in range(lens.ordinary + 1)]
        found = family.encode(hosted, ["a red cat"] * len(patches), patches)
        plain = family.encode(hosted, ["a red cat"], [Patch()])
        torch.testing.assert_close(found.sequence[-1:], plain.sequence, atol=1e-5, rtol=1e-5)
        steps = (found.sequence[1:] - found.sequence[:-1]).abs().amax(dim=(1, 2))
        assert bool((steps > 0.05).all()), steps


@pytest.mark.parametrize("layer", [-1, 99])
def test_a_layer_that_is_not_there_is_refused(hosted, layer):
    for lens in looked_at(hosted):
        with pytest.raises(BadLayer):
            lens.exit(layer)


def test_a_patched_row_leaves_the_row_beside_it_alone(family, hosted):
    if not isinstance(family, TextToImage):
        pytest.skip("its rows are tested in tests/models/language")
    prompts, plain = ["a red cat", "the king of borea"], [Patch(), Patch()]
    before, digest = family.encode(hosted, prompts, plain), hosted.weights_digest()
    after = family.encode(hosted, prompts, [everything(hosted), Patch()])
    assert not torch.allclose(before.sequence[0], after.sequence[0], atol=1e-2)
    assert torch.equal(before.sequence[1], after.sequence[1])
    if before.pooled is not None and after.pooled is not None:
        assert torch.equal(before.pooled[1], after.pooled[1])
    assert hosted.weights_digest() == digest


def test_a_row_reads_the_same_alone_and_in_company(family, hosted):
    if not isinstance(family, TextToImage):
        pytest.skip("its rows are tested in tests/models/language")
    patch = everything(hosted)
    rows = family.encode(hosted, ["a", "a red cat", "house"], [Patch(), patch, patch])
    alone = family.encode(hosted, ["a red cat"], [patch])
    torch.testing.assert_close(rows.sequence[1], alone.sequence[0], atol=1e-5, rtol=1e-5)
    stacked = type(rows).stack([rows.row(0), rows.row(1), rows.row(2)])
    assert torch.equal(stacked.sequence, rows.sequence)
    assert stacked.nbytes == rows.nbytes


def test_it_is_shown_in_its_page_of_the_docs(family):
    page = Path(__file__).parents[2] / "docs" / "extend" / "family.md"
    assert f"`{family.kind}`" in page.read_text()


def test_what_a_request_leaves_out_is_as_the_stock_pipeline_has_it(family):
    if not isinstance(family, TextToImage):
        pytest.skip("its requests leave sampling to the model's generation settings")
    known = inspect.signature(family.pipeline.__call__).parameters
    scale = known.get("true_cfg_scale") if family.kind == "qwen_image" else known["guidance_scale"]
    assert family.default_steps == known["num_inference_steps"].default
    assert family.default_guidance == scale.default
