"""Which engine writes for a model: decided once, when it is loaded, and told in every answer."""

from typing import Any

from engines.slots.engine import CACHE_BYTES, SIGHT_BYTES, LanguageEngine, SlotEngine
from engines.slots.generate import GenerateEngine
from models.hosted import HostedModel
from models.language import Language


def engine_for(  # noqa: PLR0913 - every bound is stated by name
    hosted: HostedModel,
    *,
    slots: int = 16,
    budget: int = 512,
    patience: int | None = 2,
    cache_bytes: int = CACHE_BYTES,
    block: int = 16,
    sight_bytes: int = SIGHT_BYTES,
    **settings: Any,
) -> LanguageEngine:
    """The engine for a language model; TypeError for a model that writes no texts.

    Args:
        hosted: The model; its family says how it is written.
        slots: Rows that are written at once, where they can be; as all of `SlotEngine`'s settings
            it has no meaning where texts are written one at a time.
        budget: As of `SlotEngine`.
        patience: As of `SlotEngine`.
        cache_bytes: As of `SlotEngine`.
        block: As of `SlotEngine`.
        sight_bytes: As of `SlotEngine`.
        settings: As of `LanguageEngine`.
    """
    if isinstance(hosted.family, Language) and hosted.family.writing == "generate":
        return GenerateEngine(hosted, **settings)
    return SlotEngine(
        hosted,
        slots=slots,
        budget=budget,
        patience=patience,
        cache_bytes=cache_bytes,
        block=block,
        sight_bytes=sight_bytes,
        **settings,
    )
