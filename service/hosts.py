"""The host of a configured model: by what its family's models do."""

from collections.abc import AsyncIterator, Mapping

from models.family import Modality
from models.loading import family_of
from service.errors import BadSettings
from service.hosting import ImageHost
from service.language_host import LanguageHost
from service.orders import TextEvent, TextOrder
from service.registry import Registry
from service.settings import Model, Settings
from service.weights import weights_of
from service.workbench import HostEvent, ImageOrder, LensOrder

AnyHost = ImageHost | LanguageHost
AnyOrder = ImageOrder | LensOrder | TextOrder
_SEEING_ONLY = ("sight_bytes",)
_LANGUAGE_ONLY = ("saes", "capacity", "prefill_tokens", "prefix_bytes", *_SEEING_ONLY)
_PICTURES_ONLY = (
    "denoiser_dtype",
    "steps",
    "guidance_scale",
    "pixels",
    "projection",
    "refact",
    "mode",
    "cache_bytes",
)
_FOREIGN: Mapping[Modality, tuple[str, ...]] = {
    "text-to-image": _LANGUAGE_ONLY,
    "language": (*_PICTURES_ONLY, *_SEEING_ONLY),
    "vision-language": _PICTURES_ONLY,
}
"""Per modality the keys that mean nothing there."""


def host_of(model: Model, settings: Settings, registry: Registry) -> AnyHost:
    """Load the model.

    Raises:
        BadSettings: A key of its settings is for models of another kind.
        Refusal: It cannot be loaded.
    """
    modality = family_of(weights_of(model), model.family or None).modality
    _check_keys(model, modality, _FOREIGN[modality])
    return (ImageHost if modality == "text-to-image" else LanguageHost)(model, settings, registry)


def _check_keys(model: Model, modality: Modality, foreign: tuple[str, ...]) -> None:
    for key in foreign:
        if key in model.model_fields_set:
            raise BadSettings(f"models.{model.name}.{key}", f"A {modality} model has none.")


def events_of(host: AnyHost, order: AnyOrder) -> AsyncIterator[HostEvent | TextEvent]:
    """The host's events for an order of any kind."""
    match order:
        case TextOrder():
            return host.write(order)
        case LensOrder():
            return host.look(order)
        case ImageOrder():
            return host.draw(order)
