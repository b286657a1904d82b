"""The bench for GPUs, on a small shape and on whatever machine this is."""

import math

import pytest
import torch

from benches import bench_gpu
from benches.figures import NotHere
from benches.shapes import SD15, SMALL, save_shape


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch.compile tells what it does
def test_all_of_it_runs_on_a_small_shape_without_a_gpu():
    found = list(bench_gpu.run("cpu", smoke=True))
    assert all(math.isfinite(figure.value) for figure in found)
    assert len({figure.name for figure in found}) == len(found) >= 15


def test_the_whole_shape_asks_for_a_gpu():
    with pytest.raises(NotHere, match="CPU"):
        list(bench_gpu.run("cpu"))


def test_the_shape_is_the_published_one():
    assert SD15.unet == (320, 640, 1280, 1280) and SD15.coder == (128, 256, 512, 512)
    assert (SD15.blocks, SD15.width, SD15.heads, SD15.layers) == (12, 768, 8, 2)
    with torch.device("meta"):
        from benches.shapes import _coder, _unet

        unet, coder = _unet(SD15), _coder(SD15)
    # The published counts of parameters.
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in coder.parameters()) == 83_653_863
    assert unet.config.sample_size == 64


def test_weights_are_saved_in_the_type_that_was_asked_for(tmp_path):
    folder = save_shape(SMALL, tmp_path, "cpu", torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32
    size = sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
    assert 1e5 < size < 1e7


def test_a_part_that_breaks_and_a_part_too_late_leave_the_other_figures(monkeypatch):
    def broken(_bench, _sizes):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(bench_gpu, "PARTS", (broken, bench_gpu.against_none))
    names = []
    with pytest.raises(ExceptionGroup) as told:
        keep(bench_gpu.run("cpu", smoke=True), names)
    assert "8 rows with 8 edits / 8 unedited, pictures per second" in names
    assert [type(e) for e in told.value.exceptions] == [RuntimeError]
    monkeypatch.setattr(bench_gpu, "PARTS", (bench_gpu.against_none,))
    with pytest.raises(ExceptionGroup, match="parts without figures"):
        list(bench_gpu.run("cpu", smoke=True, seconds=0.0))


def keep(figures, names):
    """Names, as long as there are any."""
    for figure in figures:
        names.append(figure.name)
