"""What routes may touch: hosts (here or behind a handle), the registry, the limits.

The types that cross the door between the gateway and a host stand here as well, those of language
models in `service.orders`: plain data, the same in one process and over Ray.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Literal, Protocol

from models.family import Lens
from service.auth import Doorman
from service.errors import OpenDoor, ShuttingDown, UnknownModel
from service.orders import EditOrder, TextEvent, TextOrder
from service.pictures import Pictures
from service.questions import Question
from service.registry import Registry, open_registry
from service.registry.records import Checks
from service.settings import Settings
from service.telemetry import Telemetry
from steerers.methods.diffusion_lens import DiffusionLens


@dataclass(frozen=True, kw_only=True)
class ImageOrder:
    """Pictures of one prompt, with every name already resolved to a digest.

    Attributes:
        seeds: One picture each.
        previews: How many previews of each picture are wanted.
        steps_told: Whether `StepDone` events are wanted.
        seconds: How long it may take, queueing included.
    """

    id: str
    prompt: str
    seeds: tuple[int, ...]
    negative_prompt: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    height: int | None = None
    width: int | None = None
    edits: tuple[EditOrder, ...] = ()
    negative_edits: Literal["same", "plain"] = "same"
    previews: int = 0
    steps_told: bool = False
    seconds: float = 300.0


@dataclass(frozen=True, kw_only=True)
class LensOrder:
    """The pictures of an order once for each look into a text encoder.

    They are numbered look by look: `seeds` of the first, then of the second.
    """

    image: ImageOrder
    looks: tuple[DiffusionLens, ...]


@dataclass(frozen=True, kw_only=True)
class Composed:
    """First event: what all pictures of the order will carry.

    Attributes:
        patch: The composed patch's digest.
        exact: False where something without stored keys (an imported LoRA) takes part.
        vif: The largest variance inflation among the edits' keys; 1 where nothing overlaps.
        strain: The joint update's size relative to the single ones.
    """

    patch: str
    exact: bool
    vif: float
    strain: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """Picture `index` has made `done` of `total` steps; `preview` is a PNG."""

    index: int
    done: int
    total: int
    preview: bytes | None


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Picture `index` is a PNG; `facts` says how it was made (seed, mode, rows changed, ...)."""

    index: int
    png: bytes
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A file from outside on its way to become a version.

    Attributes:
        name: The edit that it becomes a version of.
        replaces: Live edits that it may contradict, as `name` or `name@version`.
    """

    tenant: str
    name: str
    data: bytes = field(repr=False)
    replaces: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What became of it: the delta file, its header, and what was measured here.

    Attributes:
        status: `unmeasured` if it states no fact that its effect could be held against.
    """

    data: bytes = field(repr=False)
    header: Mapping[str, Any]
    report: Mapping[str, Any]
    status: Checks


SILENT_SECONDS = 60.0
"""An engine's thread that gave no sign for so long is stuck: nobody should be sent there."""

HostEvent = Composed | StepDone | Drawn


class Host(Protocol):
    """One hosted model, in this process or in another. Its methods raise `Refusal`s only."""

    async def card(self) -> Mapping[str, Any]:
        """What the model is: family, sites, methods that apply; NotReady while it is loaded."""
        ...

    def draw(self, order: ImageOrder) -> AsyncIterator[HostEvent]:
        """Draw; closing the iterator frees the rows."""
        ...

    async def lens(self, encoder: str | None) -> Lens:
        """How a text encoder is looked into; None is the first that can be."""
        ...

    def look(self, order: LensOrder) -> AsyncIterator[HostEvent]:
        """Draw what a text encoder knows at some layers; closing the iterator frees the rows."""
        ...

    def write(self, order: TextOrder) -> AsyncIterator[TextEvent]:
        """Answer a conversation, or go on with texts; closing the iterator frees the rows."""
        ...

    async def check_fact(self, payload: Mapping[str, Any]) -> None:
        """Refuse what the fit would refuse, before a job is made of it."""
        ...

    async def export(self, digest: str, form: Literal["peft", "diffusers"]) -> bytes:
        """An edit as an adapter for other programs."""
        ...

    async def adopt(self, arrival: Arrival) -> Adopted:
        """Check and measure a delta or a PEFT adapter from outside."""
        ...

    async def answer(self, question: Question) -> Any:
        """What is asked about its dictionaries and vectors: see `service.questions`."""
        ...

    async def load(self) -> Mapping[str, Any]:
        """Rows active and waiting, cache hits, heartbeat."""
        ...


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """All that a route may use."""

    settings: Settings
    registry: Registry
    hosts: Mapping[str, Host]
    pictures: Pictures
    doorman: Doorman
    telemetry: Telemetry
    draining: Event = field(default_factory=Event)

    def host(self, name: str) -> Host:
        """The model's host.

        Raises:
            UnknownModel: No model of that name is hosted.
            ShuttingDown: Nothing new is admitted.
        """
        if self.draining.is_set():
            raise ShuttingDown
        if name not in self.hosts:
            raise UnknownModel(name, ", ".join(self.hosts))
        return self.hosts[name]


def open_home(settings: Settings) -> Registry:
    """The registry of the settings' state folder, migrated; the folder is made if it is missing.

    Raises:
        OpenDoor: The service would listen beyond loopback and there is no API key.
    """
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    registry = open_registry(settings.index_url, settings.blobs_url)
    if not settings.keyless and not registry.keys.any_works():
        registry.close()
        raise OpenDoor(settings.server.host)
    return registry


def assemble(settings: Settings, registry: Registry, hosts: Mapping[str, Host]) -> Workbench:
    """A workbench over these hosts."""
    limits = settings.limits
    return Workbench(
        settings=settings,
        registry=registry,
        hosts=hosts,
        pictures=Pictures(
            folder=settings.home / "pictures",
            capacity_bytes=limits.pictures_bytes,
            seconds=limits.pictures_seconds,
        ),
        doorman=Doorman(settings=settings, registry=registry),
        telemetry=Telemetry(),
    )
