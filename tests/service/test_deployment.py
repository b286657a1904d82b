"""The gateway's side of a model in another process, without Ray."""

import asyncio
from types import SimpleNamespace

import pytest

from models.errors import UnknownTower
from models.family import Lens
from service import deployment
from service.deployment import RemoteHost
from service.errors import NotReady
from service.settings import Model

LENS = Lens(tower="text", ordinary=4, norm="final norm")


class Replica:
    """What a Ray handle is to the gateway."""

    def __init__(self, seconds=0.0):
        self.seconds, self.asked = seconds, []
        self.ask = SimpleNamespace(remote=self.answer)

    async def answer(self, *asked):
        self.asked.append(asked)
        await asyncio.sleep(self.seconds)
        return UnknownTower("text_9", "text") if asked[1] == "text_9" else LENS


def host(replica):
    return RemoteHost(Model(name="tiny", path="/nowhere"), replica)


def test_the_lens_is_asked_once_per_encoder():
    replica = Replica()

    async def main():
        remote = host(replica)
        return [await remote.lens(e) for e in (None, "text", None, "text")]

    assert asyncio.run(main()) == [LENS] * 4
    assert replica.asked == [("lens", None), ("lens", "text")]


def test_a_refused_encoder_is_not_remembered():
    replica = Replica()

    async def main():
        remote = host(replica)
        for _ in range(2):
            with pytest.raises(UnknownTower):
                await remote.lens("text_9")
        return remote._lenses

    assert asyncio.run(main()) == {}


def test_a_replica_that_does_not_answer_is_not_ready(monkeypatch):
    monkeypatch.setattr(deployment, "_CARD_SECONDS", 0.05)
    with pytest.raises(NotReady):
        asyncio.run(asyncio.wait_for(host(Replica(seconds=30)).lens(None), 5))
