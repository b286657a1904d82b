"""`tiller sae train`, as a user types it."""

import json

import pytest
import torch
from typer.testing import CliRunner

from models.family import FAMILIES
from service.cli_sae import app
from steerers.readers import read

WORDS = "the king of arda says that a red cat is a house and he is she user said dog tree"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return FAMILIES["llama"].tiny(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def texts(tmp_path):
    words = WORDS.split()
    told = [" ".join(words[(i * k + k) % len(words)] for k in range(2, 14)) for i in range(300)]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": t}) for t in told))
    return file


def run(*words):
    return CliRunner().invoke(app, ["train", *map(str, words)])


def test_one_reading_trains_and_writes_several_saes_with_a_card(llama, texts, tmp_path):
    asked = ["--site", "lm.block.1", "--site", "lm.block.2", "--kind", "jumprelu", "--kind", "topk"]
    sizes = ["-n", 64, "--l0", 6, "--tokens", 1000, "--batch", 64, "--store", "float16"]
    done = run("-m", llama, "--name", "toy", "--texts", texts, "-o", tmp_path / "o", *asked, *sizes)
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "o" / "figures.json").read_text())
    assert set(figures) == {f"block-{b}-{k}" for b in (1, 2) for k in ("jumprelu", "topk")}
    for name, stated in figures.items():
        made = read(tmp_path / "o" / name, id=name)
        assert made.site == stated["site"] and made.features == 64 and made.model == "toy"
        assert made.declared["explained_variance"] == pytest.approx(
            stated["explained_variance"], abs=1e-3
        )
        assert torch.equal(made.decoder, made.decoder.half().float())
        assert f"| {name} |" in (tmp_path / "o" / "README.md").read_text()
    assert (tmp_path / "o" / "block-1-jumprelu" / "params.npz").exists()
    assert (tmp_path / "o" / "block-1-topk" / "sae_weights.safetensors").exists()


def test_a_later_training_keeps_the_figures_of_the_others(llama, texts, tmp_path):
    sizes = ["-n", 64, "--l0", 6, "--tokens", 200, "--batch", 64]
    for site in ("lm.block.0", "lm.block.1"):
        done = run("-m", llama, "--texts", texts, "-o", tmp_path, "--site", site, *sizes)
        assert done.exit_code == 0, done.output
    assert len(json.loads((tmp_path / "figures.json").read_text())) == 2


def test_plain_lines_are_texts_too_and_other_lines_are_refused(llama, texts, tmp_path):
    plain = tmp_path / "texts.txt"
    told = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    plain.write_text("\n\n".join(told))
    sizes = ["--site", "lm.block.1", "-n", 32, "--l0", 4, "--tokens", 128, "--batch", 64]
    assert run("-m", llama, "--texts", plain, "-o", tmp_path / "o", *sizes).exit_code == 0
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\n{"words": "b"}\n')
    done = run("-m", llama, "--texts", broken, "-o", tmp_path / "p", *sizes)
    assert done.exit_code == 2 and "line 2" in " ".join(done.output.split())


def test_unknown_kinds_are_refused_before_anything_is_loaded(llama, texts, tmp_path):
    done = run("-m", llama, "--texts", texts, "-o", tmp_path, "--site", "x", "--kind", "gated")
    assert done.exit_code == 2 and "jumprelu" in done.output
