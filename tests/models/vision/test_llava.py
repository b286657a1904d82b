"""LLaVA 1.5: a square of patches from the tower's last layer but one, without its class token."""

import torch

from models.family import FAMILIES
from tests.models.vision.equality import EqualsTheLibrary


class TestLlava(EqualsTheLibrary):
    kind = "llava"

    def test_every_picture_is_the_same_number_of_tokens_and_all_of_them_the_papers(self, hosted):
        sight = self.shown(hosted, "two pictures")[1].sight
        assert [end - first for first, end in sight.spans] == [9, 9]
        assert sight.reference == sight.visual

    def test_what_is_seen_is_the_layer_before_the_last_without_the_class_token(self, hosted):
        shown, model = self.shown(hosted, "one picture")[1], hosted.modules["lm"].model
        with torch.inference_mode():
            states = model.vision_tower(
                shown.sight.inputs["pixel_values"], output_hidden_states=True
            ).hidden_states
            wanted = model.multi_modal_projector(states[-2][:, 1:])
        torch.testing.assert_close(shown.seen.features, wanted[0])

    def test_pixtral_is_of_its_class_and_not_of_its_family(self, hosted, tmp_path):
        pixtral = FAMILIES["pixtral"]
        folder = pixtral.tiny(tmp_path)
        assert pixtral.model is hosted.family.model
        assert pixtral.matches(folder) and not pixtral.matches(hosted.path)
        assert hosted.family.matches(hosted.path) and not hosted.family.matches(folder)
