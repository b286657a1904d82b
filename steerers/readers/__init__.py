"""Read an SAE from the files that others published, whatever their layout."""

import sys
from functools import cache as once
from pathlib import Path

from models.method import modules_of
from steerers.dictionary import Dictionary
from steerers.errors import BadFile, UnknownLayout
from steerers.hook_names import settled
from steerers.layout import Asked, Reader
from steerers.sources import Source, find


def read(
    where: str | Path,
    *,
    id: str | None = None,
    site: str | None = None,
    revision: str | None = None,
    cache: Path | None = None,
) -> Dictionary:
    """The SAE of a folder, file, or `owner/repository[@revision]/folder` on the hub.

    Args:
        where: The folder or file of one SAE.
        id: What requests shall call it; None takes the name of the folder, file or hub folder.
        site: Where it belongs, if its files do not declare it: `lm.block.12`.
        revision: A branch, tag or commit of the hub repository.
        cache: The hub's cache folder; None is its default.

    Raises:
        FilesNotFound: There is nothing there.
        UnknownLayout: No reader knows the files.
        UnsupportedDictionary, UnsupportedHook: Known, and not implemented.
        SiteNotDeclared: Neither the files nor `site` say where it belongs.
        BadDictionary: Its tensors or conventions contradict each other.
        BadFile, PickleRefused: A file is broken, or would have to run code.
    """
    source = find(where, revision, cache)
    reader = next((r for r in readers().values() if r.matches(source)), None)
    if reader is None:
        raise UnknownLayout(str(where), ", ".join(source.names[:8]), ", ".join(readers()))
    asked = _asked(source, id, site)
    try:
        return reader.read(source, asked)
    except (AttributeError, KeyError, TypeError, ValueError) as broken:
        raise BadFile(f"The files of {where} are not as {reader.format} has them.") from broken


@once
def readers() -> dict[str, Reader]:
    """Every reader by its format, found by being there."""
    found = (module.READER for module in modules_of(sys.modules[__name__]))
    return {reader.format: reader for reader in found}


def _asked(source: Source, name: str | None, site: str | None) -> Asked:
    card = source.card
    stated = card.get("site")
    quality = card.get("declared", {})
    if not isinstance(quality, dict) or not all(
        isinstance(v, int | float) for v in quality.values()
    ):
        raise BadFile(f"tiller.json of {source.origin}: `declared` maps names to numbers.")
    known = site is not None or stated is not None
    return Asked(
        where=source.origin,
        id=name or card.get("id") or source.name,
        site=settled(stated, site, source.origin) if known else None,
        model=card.get("model"),
        declared={key: float(value) for key, value in quality.items()},
    )
