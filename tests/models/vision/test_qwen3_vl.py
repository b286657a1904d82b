"""Qwen3-VL, dense and mixed: features behind early layers are a part of the stream."""

from dataclasses import replace

import pytest
import torch

from models.sight import Shown
from tests.models.vision.equality import EqualsTheLibrary


class TestQwen3VL(EqualsTheLibrary):
    kind = "qwen3_vl"

    def test_without_the_added_features_the_answer_is_another(self, hosted):
        ids, shown = self.shown(hosted, "one picture")
        assert [tuple(of.shape) for of in shown.seen.deep] == [(len(shown.sight.visual), 32)] * 2
        for kept in (0, 1):
            less = Shown(sight=shown.sight, seen=replace(shown.seen, deep=shown.seen.deep[:kept]))
            found = [
                hosted.family.logits(hosted, torch.tensor([ids]), [own])[0, -1]
                for own in (shown, less)
            ]
            assert float((found[0] - found[1]).abs().max()) > 0.1

    def test_the_stream_behind_a_layer_has_the_features_and_only_where_the_picture_stands(
        self, hosted
    ):
        ids, shown = self.shown(hosted, "a picture behind a text")
        entered, layers = {}, hosted.family.decoder(hosted).layers
        hooks = [
            layer.register_forward_pre_hook(
                lambda _m, args, index=index: entered.update({index: args[0][0]})
            )
            for index, layer in enumerate(layers)
        ]
        left = []
        hooks.append(layers[0].register_forward_hook(lambda _m, _a, out: left.append(out[0])))
        hosted.family.logits(hosted, torch.tensor([ids]), [shown])
        for hook in hooks:
            hook.remove()
        added = entered[1] - left[0]
        columns = list(shown.sight.visual)
        torch.testing.assert_close(added[columns], shown.seen.deep[0], atol=1e-5, rtol=1e-5)
        added[columns] = 0
        assert torch.equal(added, torch.zeros_like(added))

    @pytest.mark.parametrize("name", ["a wide one", "two pictures"])
    def test_the_paper_would_patch_the_pads(self, hosted, name):
        sight = self.shown(hosted, name)[1].sight
        assert sight.reference == sight.visual


class TestQwen3VLMoe(EqualsTheLibrary):
    kind = "qwen3_vl_moe"

    def test_each_token_chooses_experts_and_not_all_the_same(self, hosted):
        ids, shown = self.shown(hosted, "one picture")
        chosen = []
        gate = hosted.family.decoder(hosted).layers[0].mlp.gate
        hook = gate.register_forward_hook(lambda _m, _a, out: chosen.append(out[2]))
        hosted.family.logits(hosted, torch.tensor([ids]), [shown])
        hook.remove()
        assert chosen[0].shape == (len(ids), 2) and len(chosen[0].unique()) == 4
