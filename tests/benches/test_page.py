"""What every bench returns can be shown and kept, and one that breaks does not take the others."""

import io
import types

import numpy as np
import pytest
from rich.console import Console

from benches import bench_fit, bench_gateway, bench_registry
from benches.__main__ import every_name, main, run_all
from benches.figures import Figure, NotHere, by_turns, quantile, speed_up
from benches.page import Page, Section, markdown, table

SAMPLES = {
    "circuits": [Figure(name="CPU time, plain / ours", value=27.0, unit="x", least=10)],
    "engine": [speed_up("8 rows with 8 edits / 8 unedited", [2.0, 3.0], [1.0, 3.1], 0.98)],
    "fit": bench_fit.figures(7, {"suffix": 0.1, "longest": 0.5, "77": 1.0}, 4.0),
    "gateway": bench_gateway.figures(
        "one process",
        bench_gateway.Times(whole=[0.01], engine=[0.004], routes={"/livez": [1e-3]}, stale=0),
        5.0,
    ),
    "backpatch": [Figure(name="detour / plain prefill, 9 → 2 (bound 1.397)", value=1.4, most=1.5)],
    "gpu": [Figure(name="8 at once, fast", value=12.3, unit="pictures per second")],
    "lens": [Figure(name="engine / stock pipeline", value=1.01, unit="x", most=1.03)],
    "modes": [Figure(name="exact, float32: largest difference", value=0.0, most=0.0)],
    "ray": bench_gateway.figures(
        "Ray Serve",
        bench_gateway.Times(whole=[0.01], engine=[0.004], routes={"/v1/models": [1e-3]}, stale=1),
        None,
    ),
    "scores": [Figure(name="features per second, 256 at once / one by one", value=47.0, least=100)],
    "slots": [speed_up("every row steered otherwise / unsteered", [2.0, 3.0], [1.9, 2.9], 0.97)],
    "registry": [
        *bench_registry.registered([0.01, 0.2], [0.001], 1.0, dense=True),
        *bench_registry.flips(1, [0.01], [0.001], 0.02),
    ],
}


def shown(*tables):
    console = Console(file=io.StringIO(), width=200)
    for one in tables:
        console.print(one)
    return console.file.getvalue()


def a_section(figures):
    return Section(about="How.", command="python -m benches", when="2026-01-02", figures=figures)


def test_every_bench_has_a_sample_here():
    assert set(every_name()) <= set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_figure_stands_in_the_table_and_on_the_page(name):
    figures = SAMPLES[name]
    text, page = shown(table(name, figures)), markdown({name: a_section(figures)})
    for figure in figures:
        assert figure.name in text and f"| {figure.name} |" in page


def test_a_page_reads_what_it_wrote(tmp_path):
    page = Page(tmp_path)
    for name, figures in SAMPLES.items():
        page.put(name, a_section(figures))
    assert page.read() == {name: a_section(figures) for name, figures in SAMPLES.items()}
    assert page.text.read_text() == markdown(page.read())


@pytest.mark.parametrize(
    ("bounds", "target", "passed"),
    [
        ({}, "", None),
        ({"least": 2.0}, "≥ 2 x", True),
        ({"least": 2.5}, "≥ 2.5 x", False),
        ({"most": 2.0}, "≤ 2 x", True),
        ({"most": 1.03}, "≤ 1.03 x", False),
    ],
)
def test_a_target_is_shown_and_judged(bounds, target, passed):
    figure = Figure(name="f", value=2.0, unit="x", **bounds)
    assert figure.cells[2] == target and figure.passed is passed


def test_numbers_of_numpy_are_kept_too(tmp_path):
    page = Page(tmp_path)
    page.put("modes", a_section([Figure(name="f", value=np.uint8(3), most=4)]))
    assert page.read()["modes"].figures[0].value == 3.0


def test_what_is_no_number_reaches_no_target():
    assert Figure(name="f", value=float("nan"), least=1.0).passed is False
    assert Figure(name="f", value=float("nan"), most=1.0).passed is False


def test_sides_take_turns():
    ticks, order = iter(range(100)), []
    took = by_turns(lambda: next(ticks), lambda: order.append("a"), lambda: order.append("b"), 2)
    assert order == ["b", "a", "a", "b"] and took == ([1, 1], [1, 1])
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0


def find(name):
    """Benches that are no files."""

    def broken():
        raise RuntimeError("a worker was lost")

    def elsewhere():
        raise NotHere("There is no CUDA device on this machine.")

    def missed(device):
        return [Figure(name=f"ratio on {device}", value=1.0, least=2.0)]

    runs = {
        "good": lambda: SAMPLES["gpu"],
        "broken": broken,
        "elsewhere": elsewhere,
        "missed": missed,
    }
    return types.SimpleNamespace(run=runs[name], __doc__="How.")


@pytest.mark.parametrize("breaks", ["broken", "elsewhere"])
def test_a_bench_that_breaks_loses_nobody_elses_section(tmp_path, breaks):
    console, page = Console(file=io.StringIO(), width=200), Page(tmp_path)
    page.put("earlier", a_section(SAMPLES["lens"]))
    status = run_all([breaks, "good"], find, {"device": "cpu"}, page, console)
    told = console.file.getvalue()
    assert status == 1 and f"Broken: {breaks}" in told
    assert ("worker was lost" in told) == ("Traceback" in told) == (breaks == "broken")
    assert set(page.read()) == {"earlier", "good"}


def test_a_missed_target_is_named_and_an_old_one_is_not(tmp_path):
    console, page = Console(file=io.StringIO(), width=200), Page(tmp_path)
    assert run_all(["missed"], find, {"device": "cpu"}, page, console) == 1
    assert "Missed: missed on cpu: ratio on cpu" in console.file.getvalue()
    assert run_all(["good"], find, {"device": "cpu"}, page, console) == 0


def test_without_cuda_the_gpu_bench_says_so(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("benches.__main__.Page", lambda _folder: None)
    assert main(["gpu", "--device", "cuda"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "There is no CUDA device on this machine." in told and "Traceback" not in told


def test_figures_that_came_before_a_bench_broke_are_kept(tmp_path):
    def run(device):
        yield Figure(name=f"first on {device}", value=1.0)
        raise RuntimeError("the device was lost")

    console, page = Console(file=io.StringIO(), width=200), Page(tmp_path / "new" / "folder")
    module = types.SimpleNamespace(run=run, __doc__="How.", machine=lambda: " On one card.")
    assert run_all(["gpu"], lambda _name: module, {"device": "cpu"}, page, console) == 1
    assert "0.0 s  first on cpu: 1" in console.file.getvalue()
    kept = page.read()["gpu on cpu"]
    assert [f.name for f in kept.figures] == ["first on cpu"] and kept.about == "How. On one card."
