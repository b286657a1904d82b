"""A language model's adapter, made by the real `peft`, changes its decoder's linear layers."""

import copy
import io
import zipfile

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save

from editors import lora
from editors.delta import Delta
from editors.errors import BadAdapter
from models.family import FAMILIES
from models.loading import load
from models.patch import Patch

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "gpt2": ["c_attn", "c_proj"],
}
IDS = torch.tensor([[1, 20, 33, 47, 5, 6, 7, 90]])
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=sorted(TARGETS))
def hosted(request, tmp_path_factory):
    hosted = load("tiny", FAMILIES[request.param].tiny(tmp_path_factory.mktemp(request.param)))
    yield hosted
    hosted.close()


@pytest.fixture
def adapted(hosted):
    """The library's own model of that class, with a random adapter."""
    config = LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS[hosted.family.kind])
    plain = hosted.family.model.from_pretrained(hosted.path).eval()
    adapted = get_peft_model(plain, config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    return adapted


def zipped(folder) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    return buffer.getvalue()


def said(hosted, patch: Patch) -> torch.Tensor:
    with torch.inference_mode(), hosted.planned([patch], tokens=IDS.shape[1]):
        return hosted.family.logits(hosted, IDS)


def test_an_imported_adapter_says_what_peft_says(hosted, adapted, tmp_path):
    adapted.save_pretrained(tmp_path)
    delta = lora.import_lora(zipped(tmp_path), hosted)
    with torch.inference_mode():
        wanted = adapted(IDS).logits
    torch.testing.assert_close(said(hosted, delta.patch()), wanted, atol=1e-5, rtol=1e-5)
    assert float((wanted - said(hosted, Patch())).abs().max()) > 0.1


def test_an_exported_delta_is_loaded_by_peft_and_comes_back(hosted, adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "own")
    delta = lora.import_lora(zipped(tmp_path / "own"), hosted)
    exported = lora.export_peft(delta, hosted)
    zipfile.ZipFile(io.BytesIO(exported)).extractall(tmp_path)
    plain = hosted.family.model.from_pretrained(hosted.path).eval()
    with torch.inference_mode():
        again = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "lm")(IDS).logits
    torch.testing.assert_close(said(hosted, delta.patch()), again, atol=1e-5, rtol=1e-5)
    back = lora.import_lora(exported, hosted)
    assert back.patch() == delta.patch()
    assert Delta.read(back.data).header["base"]["fingerprint"] == hosted.fingerprint


def test_an_adapter_of_the_head_is_refused_not_dropped(hosted):
    data = {f"base_model.model.lm_head.lora_{s}.weight": torch.zeros(2, 2) for s in "AB"}
    with pytest.raises(BadAdapter, match="names no linear layer"):
        lora.import_lora(save(data), hosted)
