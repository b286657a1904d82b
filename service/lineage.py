"""Where a version comes from: the version before it, and the program that wrote it."""

from contextlib import suppress
from importlib.metadata import version

from editors.delta import Delta
from service.registry import Registry
from service.registry.errors import KindDiffers, UnknownEdit
from service.registry.kinds import word_of
from service.registry.records import Version

TOOL = f"tiller {version('tiller')}"


def check_kind(registry: Registry, tenant: str, name: str, kind: str) -> None:
    """KindDiffers if the name belongs to something else: told before a job works for it."""
    with suppress(UnknownEdit):
        has = registry.edits.get(tenant, name).kind
        if has != kind:
            raise KindDiffers(name, word_of(has), word_of(kind))


def newest(registry: Registry, tenant: str, name: str) -> Version | None:
    """The name's newest version, whatever its status; None for a new name."""
    try:
        found = registry.edits.versions(tenant, name, 1).items
    except UnknownEdit:
        return None
    return found[0] if found else None


def descended(delta: Delta, before: Version | None) -> Delta:
    """The delta with `parent` and `tool` in its header.

    A fit that came to what the newest version is already stays that version: it is not its own
    child.
    """
    if before is None:
        return delta.with_header(parent=None, tool=TOOL)
    same = delta.with_header(parent=before.parent, tool=TOOL)
    return same if same.digest == before.digest else same.with_header(parent=before.digest)


def parent_of(digest: str, before: Version | None) -> str | None:
    """The parent of a file whose bytes are to stay as they are."""
    if before is None:
        return None
    return before.parent if before.digest == digest else before.digest
