import pytest
import torch

from models import hosted as hosted_module
from models.errors import UnknownSite
from models.loading import load
from models.patch import LowRank, Patch, Shift


def test_weights_are_read_only_and_the_same_after_everything(tiny_sd):
    before = tiny_sd.weights_digest()
    site = tiny_sd.text_towers["text_encoder"].fc2_site(0)
    patch = Patch((LowRank(site=site, left=torch.ones(32, 1), right=torch.ones(1, 64)),))
    tiny_sd.family.encode(tiny_sd, ["a red cat", "a"], [patch, Patch()])
    modules = [*tiny_sd.modules.values(), tiny_sd.clip]
    assert not any(w.requires_grad for module in modules for w in module.parameters())
    assert not any(module.training for module in modules)
    assert tiny_sd.weights_digest() == before


def test_the_digest_of_the_weights_sees_one_changed_number(tiny_sd):
    before, weight = tiny_sd.weights_digest(), tiny_sd.text_towers["text_encoder"].fc2(0).weight
    kept = float(weight[0, 0])
    with torch.no_grad():
        weight[0, 0] = kept + 1
    changed = tiny_sd.weights_digest()
    with torch.no_grad():
        weight[0, 0] = kept
    assert changed != before == tiny_sd.weights_digest()


def test_a_linear_site_shows_its_input_and_its_output(tiny_sd):
    tower = tiny_sd.text_towers["text_encoder"]
    site, ids = tower.fc2_site(1), tower.tokens(["a red cat"]).ids
    with torch.no_grad(), tiny_sd.captured(site, f"{site}:out") as seen:
        tower.module(input_ids=ids)
        tower.module(input_ids=ids)
    assert [t.shape for t in seen[site]] == [(1, 5, 64)] * 2
    with torch.no_grad():
        torch.testing.assert_close(tower.fc2(1)(seen[site][0]), seen[f"{site}:out"][0])


def test_looking_at_a_place_that_is_not_there_is_refused(tiny_sd):
    with pytest.raises(UnknownSite), tiny_sd.captured("text.block.9"):
        pass


def test_two_readers_at_once_both_see_everything(tiny_sd):
    tower = tiny_sd.text_towers["text_encoder"]
    ids = tower.tokens(["a red cat"]).ids
    with torch.no_grad(), tiny_sd.captured("text.block.0") as outer:
        with tiny_sd.captured("text.block.0", "text.block.1") as inner:
            tower.module(input_ids=ids)
        tower.module(input_ids=ids)
    assert len(outer["text.block.0"]) == 2
    assert torch.equal(outer["text.block.0"][0], inner["text.block.0"][0])
    assert len(inner["text.block.1"]) == 1


def test_rows_may_point_into_a_list_of_distinct_patches(tiny_sd):
    tower = tiny_sd.text_towers["text_encoder"]
    patch = Patch((Shift(site="text.block.0", vector=torch.ones(32)),))
    ids = tower.tokens(["a red cat"] * 3).ids
    with torch.no_grad(), tiny_sd.planned([patch], [-1, 0, -1]) as run:
        states = tower.module(input_ids=ids).last_hidden_state
    assert run.rows_changed == {1}
    assert torch.equal(states[0], states[2])
    assert not torch.allclose(states[0], states[1])


def test_tables_are_packed_once_for_the_same_patches(tiny_sd):
    tower = tiny_sd.text_towers["text_encoder"]
    site = tower.fc2_site(0)
    made = [
        Patch((LowRank(site=site, left=torch.ones(32, 1), right=torch.ones(1, 64)),))
        for _ in range(2)
    ]
    plans = []
    for patch in made:
        with torch.no_grad(), tiny_sd.planned([patch, Patch()]) as run:
            tower.module(input_ids=tower.tokens(["a", "red"]).ids)
        plans.append(run.plan)
    assert plans[0] is plans[1]


def test_a_plan_made_under_inference_mode_can_be_used_in_a_fit(tiny_sd):
    tower = tiny_sd.text_towers["text_encoder"]
    site = tower.fc2_site(3)
    edit = LowRank(site=site, left=torch.full((32, 1), 0.3), right=torch.ones(1, 64))
    ids = tower.tokens(["a red cat"]).ids
    with torch.inference_mode(), tiny_sd.planned([Patch((edit,))]):
        tower.module(input_ids=ids)
    stream = torch.zeros(1, 5, 32, requires_grad=True)
    with tiny_sd.planned([Patch((edit,))]):
        tower.continued(tower.embed(ids) + stream, 0).sum().backward()
    assert stream.grad is not None


def test_a_closed_model_has_no_hooks_left(tiny_sd_folder):
    hosted = load("short-lived", tiny_sd_folder)
    encoder = hosted.modules["text_encoder"]
    assert any(module._forward_hooks for module in encoder.modules())
    hosted.close()
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in encoder.modules()
    )


def test_a_tally_shows_every_run_of_this_model_inside_its_block(tiny_sd, tiny_sdxl):
    patch = Patch((Shift(site="text.block.0", vector=torch.ones(32), positions=(1, 2)),))
    with tiny_sd.tallied() as runs:
        tiny_sd.family.encode(tiny_sd, ["a red cat", "a"], [Patch(), patch])
        tiny_sdxl.family.encode(tiny_sdxl, ["a red cat"], [patch])
    assert [run.tokens_changed(1) for run in runs] == [2]
    tiny_sd.family.encode(tiny_sd, ["a"], [patch])
    assert len(runs) == 1


def test_what_repeats_a_counted_pass_is_in_nobodys_tally(tiny_sd, tiny_sdxl):
    patch = Patch((Shift(site="text.block.0", vector=torch.ones(32), positions=(1, 2)),))
    with tiny_sd.tallied() as runs, tiny_sdxl.tallied() as others:
        with tiny_sd.untallied():
            tiny_sd.family.encode(tiny_sd, ["a"], [patch])
            tiny_sdxl.family.encode(tiny_sdxl, ["a"], [patch])
        tiny_sd.family.encode(tiny_sd, ["a red cat"], [patch])
    assert [run.tokens_changed(0) for run in runs] == [2]
    assert len(others) == 1


def test_rows_of_the_same_patch_objects_are_hashed_and_packed_once(tiny_sd, monkeypatch):
    site, packed = "text.block.0", []
    width = tiny_sd.family.stream_width(tiny_sd, "text")
    rows = [Patch((Shift(site=site, vector=torch.full((width,), float(i))),)) for i in (1, 2)]
    with tiny_sd.planned(rows) as run:
        run.changed.update({(row, site): 1 for row in range(2)})
    monkeypatch.setattr(hosted_module, "_fitted", lambda o: packed.append(o))
    with tiny_sd.planned(list(rows)) as again:
        again.changed.update({(row, site): 1 for row in range(2)})
    assert again.plan is run.plan and not packed


def test_a_patch_that_is_fitted_never_meets_the_plan_of_an_equal_one(tiny_sd):
    site = "text.block.0"
    width = tiny_sd.family.stream_width(tiny_sd, "text")
    vector = torch.ones(width)
    fitted = torch.ones(width, requires_grad=True)
    plain, trial = (Patch((Shift(site=site, vector=v),)) for v in (vector, fitted))
    assert plain == trial
    plans = []
    for patch in (plain, trial):
        with tiny_sd.planned([patch]) as run:
            run.changed[0, site] = 1
        plans.append(run.plan)
    assert [plan.shifts[site].vector.requires_grad for plan in plans] == [False, True]
