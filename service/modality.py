"""What a host does not do because its model is of another kind: refused, by name."""

from collections.abc import AsyncIterator

from models.family import Lens
from models.hosted import HostedModel
from service.errors import WrongModality
from service.orders import TextEvent, TextOrder
from service.workbench import HostEvent, ImageOrder, LensOrder


class WritesNothing:
    """A host whose model writes no texts."""

    name: str
    hosted: HostedModel

    async def write(self, order: TextOrder) -> AsyncIterator[TextEvent]:  # noqa: ARG002
        """Refuse: the model is of another kind."""
        raise WrongModality(self.name, self.hosted.family.modality, "language")
        yield


class DrawsNothing:
    """A host whose model draws no pictures."""

    name: str
    hosted: HostedModel

    async def draw(self, order: ImageOrder) -> AsyncIterator[HostEvent]:  # noqa: ARG002
        """Refuse: the model is of another kind."""
        raise self._other
        yield

    async def look(self, order: LensOrder) -> AsyncIterator[HostEvent]:  # noqa: ARG002
        """Refuse: the model is of another kind."""
        raise self._other
        yield

    async def lens(self, encoder: str | None) -> Lens:  # noqa: ARG002
        """Refuse: the model is of another kind."""
        raise self._other

    @property
    def _other(self) -> WrongModality:
        return WrongModality(self.name, self.hosted.family.modality, "text-to-image")
