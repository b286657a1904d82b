"""`tiller sae`, `tiller vector` and `tiller preset`, as a user types them."""

import asyncio
import json
import re
import sys

import pytest

from service import cli, cli_shared
from service.cli_saes import best_first
from service.client import AsyncTiller, Tiller, TillerError

MODEL, SAE = "tiny-lm", "toy"


@pytest.fixture
def done(speaker_url, monkeypatch, capsys):
    """A function: the standard output of a command that must succeed."""
    monkeypatch.setenv("TILLER_URL", speaker_url)
    for console in (cli_shared.out, cli_shared.err):
        monkeypatch.setattr(console, "width", 200)

    def command(*words, code=0, err=False):
        monkeypatch.setattr(sys, "argv", ["tiller", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
            ended = 0
        except SystemExit as end:
            ended = end.code or 0
        told = capsys.readouterr()
        assert ended == code, told.err
        return told.err if code or err else told.out

    return command


def test_features_are_scored_searched_and_shown(done):
    assert re.search(rf"{SAE} .*{MODEL} .*lm.block.1", done("sae", "list"))
    assert "of 48 features 48 scored" in done("sae", "score", SAE)
    assert "skipped 48" in done("sae", "score", SAE)
    told = done("sae", "features", "--concept", "king", "--min-output-score", 0)
    assert re.search(r"toy: \d+ candidates, \d+ kept", told)
    assert "king" in told
    best = done("sae", "features", "--min-output-score", 0, "-n", 3, "--sae", SAE)
    assert best.count(SAE) >= 3
    assert json.loads(done("sae", "show", SAE, 3))["feature"] == 3


def test_features_of_several_dictionaries_stand_best_first():
    def found(*features):
        scores = [None if s is None else {"output_score": s} for s, _ in features]
        return [
            ("x", {"scores": s, "labels": labels})
            for s, (_, labels) in zip(scores, features, strict=True)
        ]

    label = [{"label": "the sea"}]
    first, second = found((0.2, label), (0.9, []), (None, [])), found((0.5, label), (0.3, []))
    told = [(row[1]["scores"] or {}).get("output_score") for row in best_first([first, second])]
    assert told == [0.5, 0.2, 0.9, 0.3, None]


def test_a_search_that_finds_nothing_says_what_to_do(done):
    assert "other words" in done("sae", "features", "--concept", "zyzzyva", err=True)
    assert "Sparse autoencoders" in done("sae", "--help")


def test_labels_come_one_by_one_or_from_a_file(done, tmp_path):
    assert "1 put" in done("sae", "label", SAE, 21, "harbours")
    file = tmp_path / "labels.jsonl"
    lines = [{"feature": f, "label": "lighthouses"} for f in (22, 23)]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert "2 put" in done("sae", "label", SAE, "--file", file)
    told = done("sae", "features", "--label", "lighthouse")
    assert told.count("lighthouses") == 2
    file.write_text('{"feature": 1}')
    assert "line 1" in done("sae", "label", SAE, "--file", file, code=2)
    assert "a feature and its label" in done("sae", "label", SAE, code=2)


def test_snippets_are_collected_from_a_file(done, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("the king of the sea\na red boat\n" * 6)
    told = done("sae", "snippets", SAE, "--texts", file, "--per-feature", 3)
    assert "12 texts" in told


def test_a_vector_is_learned_exported_imported_promoted_and_rolled_back(done, tmp_path):
    above, below = tmp_path / "above.txt", tmp_path / "below.jsonl"
    above.write_text("the king\na king\n")
    below.write_text(json.dumps({"text": "the sea"}))
    learned = ("--positives", above, "--negatives", below, "-m", MODEL)
    told = done("vector", "learn", "typed-vector", *learned)
    digest = re.search(r"digest ([0-9a-f]{64})", told)[1]
    assert re.search(r"lm.block.1 +\d\.\d{3} of the stream", told)
    out = tmp_path / "v.safetensors"
    assert "bytes" in done("vector", "export", "typed-vector", 1, "-o", out)
    assert digest in done("vector", "import", "typed-again", out, "-m", MODEL)
    done("vector", "learn", "typed-vector", *learned, "--pool", "last")
    done("vector", "promote", "typed-vector", 1)
    assert "typed-vector@2" in done("vector", "promote", "typed-vector", 2)
    assert "typed-vector@live -> typed-vector@1" in done("vector", "rollback", "typed-vector")
    assert "retired" in done("vector", "retire", "typed-vector", 2)
    assert "typed-again" in done("vector", "list")
    assert json.loads(done("vector", "show", "typed-vector", 1))["digest"] == digest


def test_a_preset_is_put_promoted_and_rolled_back(done):
    first = ("--steer", f"{SAE}:4=1.5", "--steer", f"{SAE}:6=0.5", "-m", MODEL)
    told = done("preset", "put", "typed", *first)
    assert f"{SAE}:4" in told
    assert f"{SAE}:6" in told
    concept = ("--steer", "king=0.5", "--count", 2, "--min-output-score", 0, "-m", MODEL)
    assert "typed@2" in done("preset", "put", "typed", *concept)
    assert "typed@live -> typed@1" in done("preset", "promote", "typed", 1)
    moved = done("preset", "promote", "typed", 2)
    generation = int(re.search(r"generation (\d+)", moved)[1])
    assert "→" in done("preset", "promote", "typed", 1, "--if-match", generation - 1, code=1)
    assert "typed@live -> typed@1" in done("preset", "rollback", "typed")
    assert "typed" in done("preset", "list")
    assert json.loads(done("preset", "show", "typed"))["versions"] == 2
    assert "one concept" in done("preset", "put", "x", "-s", "a=1", "-s", "b=1", code=2)
    assert "where to steer" in done("preset", "put", "x", code=2)


def test_the_sdk_says_what_the_service_refuses(speaker_url):
    with Tiller(speaker_url) as tiller:
        with pytest.raises(TillerError) as caught:
            tiller.saes.feature(SAE, 48)
        assert (caught.value.code, caught.value.status) == ("unknown_feature", 404)
        with pytest.raises(TillerError) as caught:
            tiller.presets.put("x", {"concept": "zzz", "strength": 1.0}, model=MODEL)
        assert caught.value.code == "concept_not_covered"


def test_the_sdk_can_be_awaited(speaker_url):
    async def run():
        async with AsyncTiller(speaker_url) as tiller:
            (one,) = await tiller.saes.list()
            assert one["id"] == SAE
            job = await tiller.saes.score(SAE, [1, 2])
            assert (await tiller.jobs.wait(job["id"]))["state"] == "succeeded"
            version = await tiller.presets.put(
                "awaited", {"features": [{"sae": SAE, "feature": 1, "strength": 1.0}]}, model=MODEL
            )
            assert version["version"] == 1
            assert (await tiller.vectors.list(limit=1000)) is not None

    asyncio.run(run())
