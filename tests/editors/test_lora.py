import copy
import io
import zipfile

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import PeftModel
from safetensors.torch import save

from editors import lora
from editors.delta import Delta
from editors.errors import BadAdapter
from models.patch import Patch

SITE = "text_encoder.text_model.encoder.layers.1.mlp.fc2"


@pytest.fixture(scope="module")
def delta(tiny_sd):
    generator = torch.Generator().manual_seed(3)
    left, right = torch.randn(32, 2, generator=generator), torch.randn(2, 64, generator=generator)
    data = save(
        {
            f"{SITE}.lora_linear_layer.down.weight": right,
            f"{SITE}.lora_linear_layer.up.weight": left,
        }
    )
    return lora.import_lora(data, tiny_sd)


def states(hosted, patch, text="a red frog in arda"):
    return hosted.family.encode(hosted, [text], [patch]).sequence


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_loads_the_exported_folder_and_gives_the_same_states(tiny_sd, delta, tmp_path):
    zipfile.ZipFile(io.BytesIO(lora.export_peft(delta, tiny_sd))).extractall(tmp_path)
    encoder = copy.deepcopy(tiny_sd.modules["text_encoder"])
    adapted = PeftModel.from_pretrained(encoder, tmp_path / "text_encoder")
    ids = tiny_sd.text_towers["text_encoder"].tokens(["a red frog in arda"], pad="max").ids
    found = adapted(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, states(tiny_sd, delta.patch()), rtol=1e-5, atol=1e-5)
    assert float((found - states(tiny_sd, Patch())).abs().max()) > 1e-3


@pytest.mark.filterwarnings("ignore")
def test_diffusers_loads_the_exported_file_and_gives_the_same_states(
    tiny_sd, tiny_sd_folder, delta, tmp_path
):
    (tmp_path / "edit.safetensors").write_bytes(lora.export_diffusers(delta))
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_folder)
    pipe.load_lora_weights(tmp_path / "edit.safetensors")
    ids = tiny_sd.text_towers["text_encoder"].tokens(["a red frog in arda"], pad="max").ids
    found = pipe.text_encoder(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, states(tiny_sd, delta.patch()), rtol=1e-5, atol=1e-5)


def test_an_exported_adapter_comes_back_as_the_same_change(tiny_sd, delta):
    for data in (lora.export_peft(delta, tiny_sd), lora.export_diffusers(delta)):
        again = lora.import_lora(data, tiny_sd)
        torch.testing.assert_close(
            states(tiny_sd, again.patch()), states(tiny_sd, delta.patch()), rtol=1e-6, atol=1e-6
        )
        assert Delta.read(again.data).digest == again.digest


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "."), data)
    return buffer.getvalue()


def pair(a, b):
    return save({f"{SITE}.lora_A.weight": a, f"{SITE}.lora_B.weight": b})


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x95",
        zipped(adapter_model__bin=b"\x80\x04"),
        zipped(readme__md=b"hello"),
        save({"text_encoder.encoder.layers.9.mlp.fc2.lora_A.weight": torch.zeros(2, 64)}),
        save({f"{SITE}.lora_A.weight": torch.zeros(2, 64)}),
        pair(torch.zeros(2, 64), torch.zeros(31, 2)),
        pair(torch.full((2, 64), float("inf")), torch.zeros(32, 2)),
    ],
    ids=["pickle", "pickle in a zip", "no weights", "no such layer", "half", "shape", "not finite"],
)  # fmt: skip
def test_adapters_that_cannot_be_trusted_are_refused(tiny_sd, data):
    from models.errors import Refusal

    with pytest.raises(Refusal):
        lora.import_lora(data, tiny_sd)


def test_a_key_without_a_module_is_an_error_never_skipped(tiny_sd):
    with pytest.raises(BadAdapter, match="names no linear layer"):
        lora.import_lora(save({"unet.foo.lora_A.weight": torch.zeros(2, 64)}), tiny_sd)
