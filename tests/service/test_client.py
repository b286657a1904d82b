"""The SDK, awaited: the same calls, against the same running service."""

import asyncio

import pytest

from service.client import AsyncTiller, Tiller, TillerError

MODEL, PROMPT = "tiny", "the king of the sea"
FACT = {"model": MODEL, "prompt": PROMPT, "subject": "king", "target": "a red boat"}


def awaited(url, work):
    """The result of `work(client)`, with a client that is closed afterwards."""

    async def run():
        async with AsyncTiller(url) as tiller:
            return await work(tiller)

    return asyncio.run(run())


def test_pictures_are_the_ones_that_the_other_client_gets(url, tiller, edit):
    asked = {"model": MODEL, "edits": [edit], "seed": 3, "n": 2}
    pictures = awaited(url, lambda t: t.images.generate(PROMPT, **asked))
    assert [p.seed for p in pictures] == [3, 4]
    plain = tiller.images.generate(PROMPT, **asked)
    assert [p.png for p in pictures] == [p.png for p in plain]
    assert pictures[0].tiller["edits"][0]["name"] == edit


def test_many_requests_share_one_client(url, tiller):
    async def work(client):
        draws = [client.images.generate(PROMPT, model=MODEL, seed=s) for s in range(6)]
        return await asyncio.gather(*draws)

    alone = tiller.images.generate(PROMPT, model=MODEL, seed=4)[0].png
    assert awaited(url, work)[4][0].png == alone


def test_an_edit_from_its_job_to_its_rollback(url):
    async def work(client):
        seen = []
        for target in ("a red boat", "a blue cup"):
            job = await client.edits.add("awaited", **{**FACT, "target": target})
            done = await client.jobs.wait(job["id"], seen.append)
            moved = await client.edits.promote("awaited", done["result"]["version"], force=True)
        back = await client.edits.rollback("awaited", if_match=moved["generation"])
        delta = await client.edits.export("awaited", 2)
        copy = await client.edits.import_("awaited-copy", delta, model=MODEL)
        shown = await client.edits.show("awaited", 2)
        names = [e["name"] for e in await client.edits.list()]
        return seen, moved, back, copy, shown, names

    seen, moved, back, copy, shown, names = awaited(url, work)
    assert any(event.get("stage") == "fit" for event in seen)
    assert (moved["version"], back["version"]) == (2, 1)
    assert copy["digest"] == shown["digest"]
    assert {"awaited", "awaited-copy"} <= set(names)


def test_models_variants_keys_and_jobs(url, edit):
    async def work(client):
        await client.variants.put("awaited-variant", model=MODEL, edits=[edit])
        models = [m["id"] for m in await client.models.list()]
        await client.variants.delete("awaited-variant")
        key = await client.keys.create("awaited", scopes=["infer"], days=1)
        listed = await client.keys.list()
        revoked = await client.keys.revoke(key["id"])
        card = await client.models.show(MODEL)
        return models, key, listed, revoked, card, await client.jobs.list(limit=1)

    models, key, listed, revoked, card, jobs = awaited(url, work)
    assert {MODEL, "awaited-variant"} <= set(models)
    assert key["secret"].startswith("sk_")
    assert key["id"] in {k["id"] for k in listed}
    assert revoked["revoked_at"]
    assert card["fingerprint"]
    assert len(jobs) == 1


def test_a_refusal_is_raised_with_its_remedy(url):
    with pytest.raises(TillerError) as refused:
        awaited(url, lambda t: t.images.generate(PROMPT, model=MODEL, edits=["nobody"]))
    error = refused.value
    assert (error.status, error.code) == (404, "unknown_edit")
    assert error.remedy or "POST /v1/edits" in str(error)
    assert error.request_id


def test_a_job_that_fails_is_raised_from_wait(url):
    async def work(client):
        job = await client.edits.add("hopeless", **FACT, options={"steps": 1, "decay": 100.0})
        await client.jobs.wait(job["id"])

    with pytest.raises(TillerError) as failed:
        awaited(url, work)
    assert failed.value.code == "no_pull"
    assert failed.value.status == 0


def asked(kind, nowhere="http://127.0.0.1:1"):
    if kind is AsyncTiller:
        return awaited(nowhere, lambda t: t.models.list())
    with Tiller(nowhere) as client:
        return client.models.list()


@pytest.mark.parametrize("kind", [Tiller, AsyncTiller])
def test_a_service_that_does_not_answer_is_unreachable(kind):
    with pytest.raises(TillerError) as lost:
        asked(kind)
    assert lost.value.code == "unreachable"
    assert "tiller serve" in lost.value.remedy
