"""Calibrations of back-patching over HTTP: asked for, swept, kept, saved, taken up again."""

import base64
import io
import json
import struct
import threading
import time
import zipfile
import zlib

import httpx2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from evaluation.backpatch.sweep import Sweep
from models.family import FAMILIES
from models.loading import load
from service import cli_backpatch
from service.calibrating import CALIBRATE, Calibrations, identity, payload_of
from service.calibration_examples import examples_of, of_archive
from service.client import Tiller, TillerError
from service.errors import BadRequest, TooMuch
from service.registry.kinds import POLICY
from service.schema_backpatch import CalibrationBody
from service.settings import Limits, Model, Server, Settings

MODEL, SPEAKER = "seeing", "speaker"
WAIT = {"Prefer": "wait=60"}
CALIBRATIONS = "/v1/backpatch/calibrations"
LABELS = ["cat", "dog"]
PLANS = [{"source": 3, "target": 1}, {"source": 2, "target": 0}]


def png(seed, side=32):
    pixels = np.random.RandomState(seed).randint(0, 255, (side, side, 3), dtype=np.uint8)
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


def uri(data):
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def row(number, **changes):
    told = {
        "image": uri(png(number)),
        "question": f"is this a man {number}",
        "answer": LABELS[number % 2],
        "description": f"a photo of {number}",
    }
    return {**told, **changes}


def rows(count=12):
    return [row(number) for number in range(count)]


def zip_of(files, **members):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, **members}.items():
            archive.writestr(name, data)
    return held.getvalue()


def archive(count=12):
    lines = [json.dumps(row(n, image=f"pictures/{n}.png")) for n in range(count)]
    files = {f"pictures/{n}.png": png(n) for n in range(count)}
    return zip_of({"examples.jsonl": "\n".join(lines), **files})


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    return FAMILIES["qwen2_vl"].tiny(tmp_path_factory.mktemp("weights") / MODEL)


@pytest.fixture(scope="module")
def service(tmp_path_factory, serving, seeing):
    home = tmp_path_factory.mktemp("home")
    folders = {
        MODEL: seeing,
        SPEAKER: FAMILIES["llama"].tiny(home / SPEAKER),
    }
    models = tuple(Model(name=name, path=str(folder)) for name, folder in folders.items())
    limits = Limits(wait_seconds=60.0, calibration_examples=40, calibration_plans=100)
    settings = Settings(home=home / "state", server=Server(port=0), models=models, limits=limits)
    with serving(settings) as found:
        yield found


@pytest.fixture(scope="module")
def http(service):
    with httpx2.Client(base_url=service[0], timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def tiller(service):
    with Tiller(service[0]) as client:
        yield client


def ask(http, **changes):
    body = {"model": MODEL, "examples": rows(), "labels": LABELS, "plans": PLANS, **changes}
    return http.post(CALIBRATIONS, json=body, headers=WAIT)


@pytest.fixture(scope="module")
def result(http):
    answer = ask(http)
    assert answer.status_code == 200, answer.text
    assert answer.json()["state"] == "succeeded", answer.text
    return answer.json()["result"]


def test_a_calibration_tells_gain_control_and_verdict_in_numbers_a_page_and_pictures(http, result):
    found = http.get(result["location"]).json()
    report = found["report"]
    assert found["verdict"] == result["verdict"] == report["verdict"]
    assert report["image"]["gain"]["examples"] == 6
    assert {(t["place"]["source"], t["place"]["target"]) for t in report["image"]["tried"]} == {
        (3, 1),
        (2, 0),
    }
    assert report["text"]["gain"]["low"] <= report["text"]["gain"]["high"]
    assert set(report["gap"]) == {"ahead", "closed", "without", "draws", "reason"}
    assert (report["gap"]["closed"] is None) == bool(report["gap"]["reason"])
    assert report["image"]["gain"]["clusters"] == report["image"]["gain"]["examples"]
    assert report["provenance"]["fingerprint"] == found["fingerprint"]
    page = http.get(f"{result['location']}/report.md")
    assert page.headers["content-type"].startswith("text/markdown")
    assert result["verdict"] in page.text
    for file in ("grid-image.png", "grid-text.png"):
        drawn = http.get(f"{result['location']}/{file}")
        assert Image.open(io.BytesIO(drawn.content)).size[0] > 200
    assert http.get(f"{result['location']}/report.json").json() == report
    missing = http.get(f"{result['location']}/nothing.png")
    assert (missing.status_code, missing.json()["code"]) == (404, "no_such_artifact")
    assert found["id"] in [one["id"] for one in http.get(CALIBRATIONS).json()["data"]]


def test_the_same_request_is_answered_at_once_and_an_archive_is_the_same_request(http, result):
    again = ask(http)
    assert again.json()["cache_hit"] is True
    assert again.json()["id"] == result["calibration"]
    told = {"model": MODEL, "labels": LABELS, "plans": PLANS}
    sent = http.post(
        CALIBRATIONS,
        data={"request": json.dumps(told)},
        files={"file": ("counting.zip", archive(), "application/zip")},
    )
    assert sent.json().get("id") == result["calibration"], sent.text
    lines = "\n".join(json.dumps(one) for one in rows())
    assert ask(http, examples=lines).json()["id"] == result["calibration"]
    other = ask(http, seed=1, control=False)
    assert other.json()["result"]["calibration"] != result["calibration"]
    assert other.json()["result"]["control"] is None


def test_what_does_not_help_is_saved_only_anyway_and_the_preset_can_be_asked_for(http, result):
    assert not result["helps"], "a random toy with balanced labels"
    asked = {"name": "seeing-better", "alias": "live"}
    refused = ask(http, save=asked).json()["preset"]
    assert refused == {"saved": False, "reason": result["verdict"]}
    assert http.get("/v1/presets/seeing-better").status_code == 404
    saved = ask(http, save=asked, save_anyway=True).json()["preset"]
    assert saved["saved"] and saved["alias"] == "live"
    preset = http.get(saved["location"]).json()
    plan = result["backpatch"]
    assert preset["backpatch"]["source"] == plan["source"]
    assert preset["backpatch"]["target"] == plan["target"]
    calibration = preset["calibration"]
    assert calibration["gain"] == result["gain"] and calibration["control"] == result["control"]
    assert calibration["data"].startswith("sha256:")
    assert calibration["gap"]["draws"] == 2000
    assert preset["fingerprint"] == calibration["fingerprint"]
    content = [
        {"type": "image_url", "image_url": {"url": uri(png(3))}},
        {"type": "text", "text": "is this a man"},
    ]
    said = http.post(
        "/v1/chat/completions",
        json={
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 2,
            "backpatch": {"preset": "seeing-better@live"},
        },
    )
    assert said.status_code == 200, said.text
    told = said.json()["tiller"]["backpatch"]
    assert f"'source': {plan['source']}" in str(told) and "seeing-better" in str(told)


REFUSED = [
    ({"model": "nobody"}, 404, "model"),
    ({"model": SPEAKER}, 409, "model"),
    ({"examples": []}, 422, "examples"),
    ({"examples": "{"}, 422, "examples"),
    ({"examples": [row(0, image="https://x.org/a.png")]}, 422, "examples[0].image"),
    ({"examples": [row(0, image=uri(b"no picture"))]}, 422, "examples[0].image"),
    ({"examples": [row(0, image=uri(png(0)[:60]))]}, 422, "examples[0].image"),
    ({"examples": [row(0, colour="red")]}, 422, "examples[0].colour"),
    ({"examples": [row(0, images=[uri(png(0))])]}, 422, "examples[0]"),
    ({"examples": [row(0, text="nothing of it")]}, 422, "examples[0]"),
    ({"examples": [row(n, id="a") for n in range(2)]}, 422, "examples[1].id"),
    ({"examples": [row(0)] * 41}, 422, "examples"),
    ({"plans": [{"source": 1, "target": 1}]}, 422, "plans[0].source"),
    ({"plans": [{"source": 4, "target": 1}]}, 422, "plans[0].source"),
    ({"plans": [{"source": 3, "target": 1, "window": 2}]}, 422, "plans[0].window"),
    ({"windows": [2]}, 422, "windows[0]"),
    ({"choosing": 1.0}, 422, "choosing"),
    ({"search": {"keep": 0}}, 422, "search.keep"),
    ({"metric": "bleu"}, 422, "metric"),
    ({"save": {"name": "No Name"}}, 422, "save.name"),
    ({"examples": rows(7)}, 422, "examples"),
    ({"examples": [row(n, image=uri(png(n % 3))) for n in range(12)]}, 422, "examples"),
    ({"examples": rows(12), "choosing": 0.9}, 422, "choosing"),
    ({"examples": rows(12), "choosing": 0.05}, 422, "choosing"),
    ({"search": {"answers": 5}}, 422, "search.answers"),
    ({"examples": [row(0, image=None, images=[uri(png(0))] * 9)]}, 422, "examples[0].images"),
    ({"model": f"{SPEAKER}+cheerful"}, 404, "model"),
    ({"labels": ["cat"]}, 422, "labels"),
    ({"labels": [], "examples": [row(n, answer="cat") for n in range(12)]}, 422, "labels"),
    ({"sav": {"name": "typo"}}, 422, "sav"),
]


@pytest.mark.parametrize(("changes", "status", "param"), REFUSED)
def test_what_cannot_be_calibrated_is_refused_by_name(http, changes, status, param):
    answer = ask(http, **changes)
    assert answer.status_code == status, answer.text
    assert answer.json()["param"] == param, answer.text
    assert answer.json()["remedy"]


def test_a_key_that_is_null_is_not_given(http, result):
    nulls = dict.fromkeys(("windows", "search", "save", "seed", "control"))
    rows_with_nulls = [{**row, "images": None, "text": None} for row in rows()]
    assert ask(http, examples=rows_with_nulls, **nulls).json()["id"] == result["calibration"]
    whole = ask(http, plans=None, examples=None)
    assert whole.json()["param"] == "examples", whole.text


def test_a_variant_is_calibrated_by_the_model_behind_it(http):
    assert http.put("/v1/variants/kind", json={"model": MODEL, "edits": []}).status_code == 200
    for name in ("kind", f"{MODEL}+counting@live"):
        told = ask(http, model=name).json()
        assert (told["code"], told["param"]) == ("unknown_model", "model")
        assert f"{MODEL} with changes" in told["detail"] and told["remedy"] == f"Name {MODEL}."


@pytest.mark.usefixtures("result")
def test_a_list_of_jobs_does_not_say_that_their_logs_are_empty(http):
    jobs = http.get("/v1/jobs").json()["data"]
    assert jobs and all("log" not in job for job in jobs)
    assert http.get(f"/v1/jobs/{jobs[0]['id']}").json()["log"]


def test_an_unknown_calibration_is_told_where_they_are_listed(http):
    told = http.get(f"{CALIBRATIONS}/nothing").json()
    assert "GET /v1/backpatch/calibrations" in told["remedy"]


def test_a_preset_that_would_have_the_name_of_something_else_is_refused_at_once(service, http):
    presets = service[1].registry.presets
    presets.put("default", POLICY, "taken", MODEL, "any", {"a": 1}, actor="test")
    answer = ask(http, save={"name": "taken"}, seed=7)
    assert (answer.status_code, answer.json()["code"]) == (409, "kind_differs")
    assert answer.json()["param"] == "name"


def test_a_bomb_is_refused_before_it_is_decoded(http):
    def chunk(kind, data):
        told = kind + data
        return struct.pack(">I", len(data)) + told + struct.pack(">I", zlib.crc32(told))

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    answer = ask(http, examples=[row(0, image=uri(bomb))])
    assert answer.status_code == 422 and answer.json()["param"] == "examples[0].image"


def zipped_with(name, mode=0):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as written:
        written.writestr("examples.jsonl", json.dumps(row(0, image="a.png")))
        told = zipfile.ZipInfo(name)
        told.external_attr = mode << 16
        written.writestr(told, b"x")
    return held.getvalue()


BAD_ZIPS = [
    b"no zip at all",
    archive()[:-40],
    zip_of({"lines.jsonl": "{}"}),
    zip_of({"examples.jsonl": "{"}),
    zip_of({"examples.jsonl": b"\xff\xfe"}),
    zip_of({"examples.jsonl": json.dumps(row(0, image="gone.png"))}),
    zip_of({"examples.jsonl": json.dumps(row(0, image="../../etc/passwd"))}),
    zipped_with("../a.png"),
    zipped_with("/a.png"),
    zipped_with("c:\\a.png"),
    zipped_with("link.png", 0o120777),
]


@pytest.mark.parametrize("data", BAD_ZIPS, ids=range(len(BAD_ZIPS)))
def test_an_archive_that_is_not_to_be_trusted_is_refused(data):
    with pytest.raises(BadRequest):
        of_archive(data, LABELS, Limits())


def test_a_zip_bomb_is_not_unpacked_whatever_its_directory_says():
    limits = Limits(calibration_bytes=2**20)
    bomb = zip_of({"examples.jsonl": b"\0" * 2**22})
    with pytest.raises(TooMuch):
        of_archive(bomb, LABELS, limits)
    size = struct.pack("<I", 2**22)
    lying = bomb.replace(size, struct.pack("<I", 100))
    with pytest.raises((TooMuch, BadRequest)):
        of_archive(lying, LABELS, limits)


def test_a_form_is_held_to_its_two_fields(http):
    told = json.dumps({"model": MODEL, "examples": rows(1)})
    both = http.post(CALIBRATIONS, data={"request": told}, files={"file": archive()})
    assert both.json()["param"] == "examples"
    lacking = http.post(CALIBRATIONS, files={"file": archive()})
    assert (lacking.status_code, lacking.json()["param"]) == (422, "request")


def test_examples_are_kept_in_order_with_each_picture_once():
    lines = [json.dumps(row(n, image="one.png")) for n in range(3)]
    data = zip_of({"examples.jsonl": "\n".join(lines), "one.png": png(7)})
    kept = of_archive(data, (), Limits())
    with zipfile.ZipFile(io.BytesIO(kept.data)) as opened:
        assert sum(name.startswith("pictures/") for name in opened.namelist()) == 1
    found = examples_of(kept.data)
    assert [one.id for one in found] == ["0", "1", "2"]
    assert found[0].labels == ("cat", "dog"), "all answers, where nobody says"
    assert found[1].pictures[0].size == (32, 32)
    assert found[1].described == [
        {"role": "user", "content": "a photo of 1 is this a man 1"},
    ]


# --- jobs -----------------------------------------------------------------------------------------


def test_a_calibration_is_cancelled_between_two_steps(http, monkeypatch):
    begun, gate = threading.Event(), threading.Event()
    clean = Sweep.clean

    def slow(self, case):
        begun.set()
        gate.wait(20)
        return clean(self, case)

    monkeypatch.setattr(Sweep, "clean", slow)
    job = http.post(CALIBRATIONS, json={"model": MODEL, "examples": rows(16), "seed": 9}).json()
    assert begun.wait(60)
    assert http.delete(f"/v1/jobs/{job['id']}").status_code == 202
    gate.set()
    for _ in range(200):
        found = http.get(f"/v1/jobs/{job['id']}").json()
        if found["state"] == "cancelled":
            break
        time.sleep(0.1)
    assert found["state"] == "cancelled"


def test_a_lost_job_goes_on_from_its_notes_and_ends_as_if_it_had_not_been_lost(
    service, http, result, seeing, monkeypatch
):
    registry = service[1].registry
    kept = http.get(result["location"]).json()
    body = CalibrationBody(model=MODEL, examples=[], labels=LABELS, plans=PLANS)
    digest = registry.edits.version("default", result["calibration"], 1).header["examples"]
    payload = payload_of(body, digest)
    payload["id"] = identity(payload, kept["fingerprint"])
    assert payload["id"] == result["calibration"]
    # A model that nobody hosts: the service's own worker leaves the job to this test.
    job = registry.jobs.create("default", CALIBRATE, "elsewhere", payload, "ann")
    hosted = load(MODEL, seeing)
    monkeypatch.setattr("service.calibrating._NOTE_SECONDS", 0.0)

    def lease(worker):
        return registry.jobs.lease(worker, [CALIBRATE], ["elsewhere"], 60.0)

    first = lease("first")
    calibrations = Calibrations(hosted, registry)
    run = calibrations.begin(first)
    while len(registry.notes.of(job.id)) < 5:
        calibrations.keep(first, next(run))
    run.close()
    known = {k for note in registry.notes.of(job.id) for k in note["answers"]}
    assert known
    registry.jobs.release(job.id, "first")
    second, asked, clean = lease("second"), [], Sweep.clean

    def counted(self, case):
        asked.append((case.form, case.id))
        return clean(self, case)

    monkeypatch.setattr(Sweep, "clean", counted)
    again = Calibrations(hosted, registry)
    run = again.begin(second)
    try:
        while True:
            again.keep(second, next(run))
    except StopIteration as over:
        ended = over.value
    told = {k: v for k, v in json.loads(json.dumps(ended.as_dict())).items() if k != "seconds"}
    assert told["image"] == kept["report"]["image"]
    assert told["answered"] == kept["report"]["answered"]
    asked_whole = {("image", str(n)) for n in range(12)} | {("text", str(n)) for n in range(12)}
    assert set(asked) < asked_whole, "what was noted is not asked again"
    hosted.close()
    again.end(second, ended)
    registry.jobs.finish(job.id, "second", {})
    assert registry.notes.of(job.id) == []


# --- SDK and command line -------------------------------------------------------------------------


def test_the_sdk_and_the_command_line_ask_for_the_same(service, tiller, result, tmp_path):
    found = tiller.backpatch.calibrate(
        model=MODEL, examples=archive(), labels=LABELS, plans=PLANS, save="from-sdk"
    )
    assert found["id"] == result["calibration"] and found["preset"]["saved"] is False
    assert result["verdict"] in tiller.backpatch.artifact(found["id"], "report.md").decode()
    with pytest.raises(TillerError, match="odd"):
        tiller.backpatch.calibrate(model=MODEL, examples=rows(), windows=[4])
    (tmp_path / "counting.zip").write_bytes(archive())
    folder = tmp_path / "counting"
    with zipfile.ZipFile(tmp_path / "counting.zip") as packed:
        packed.extractall(folder)
    for where in (tmp_path / "counting.zip", folder, folder / "examples.jsonl"):
        words = ["calibrate", "--model", MODEL, "--examples", str(where), "--url", service[0]]
        words += ["--label", "cat", "--label", "dog", "--plan", "3:1", "--plan", "2:0:1"]
        words += ["--save", "from-cli@live", "--save-anyway", "-o", str(tmp_path / "out")]
        ended = CliRunner().invoke(cli_backpatch.app, words)
        assert ended.exit_code == 0, ended.output
        assert result["calibration"] in ended.output and "from-cli@live" in ended.output
    assert (tmp_path / "out" / "grid-image.png").stat().st_size > 1000
    gone = [w if not w.endswith(".jsonl") else "gone.zip" for w in words]
    assert CliRunner().invoke(cli_backpatch.app, gone).exit_code == 2
    (tmp_path / "p0.png").write_bytes(png(0))
    picture = [w if not w.endswith(".jsonl") else str(tmp_path / "p0.png") for w in words]
    drawn = CliRunner().invoke(cli_backpatch.app, picture)
    assert drawn.exit_code == 2
    assert "neither a zip, a folder nor lines" in " ".join(drawn.output.replace("│", "").split())
    marked = "\ufeff" + (folder / "examples.jsonl").read_text()
    (folder / "examples.jsonl").write_text(marked)  # as some editors begin a file
    ended = CliRunner().invoke(cli_backpatch.app, words)
    assert ended.exit_code == 0, ended.output
    (folder / "examples.jsonl").write_text("[1]\n")
    odd = CliRunner().invoke(cli_backpatch.app, words)
    assert odd.exit_code == 2 and "is not an object" in " ".join(odd.output.split())
    shown = CliRunner().invoke(cli_backpatch.app, ["show", "--url", service[0]])
    assert shown.exit_code == 0 and "calibration" in shown.output
