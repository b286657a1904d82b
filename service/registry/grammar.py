"""How names, aliases, references and pages are written: checked once, at the registry's door."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from service.registry.errors import BadName, BadPage, BadRecord, BadReference
from service.registry.records import Expected, Page
from service.registry.tables import canonical

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,31}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")

LIVE = "live"
"""The alias that a bare name means."""

PUBLIC = "public"
"""The tenant whose names everybody can use, unless they have the same name themselves."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A parsed reference: a digest, or a name with at most one of number and alias."""

    name: str | None = None
    number: int | None = None
    alias: str | None = None
    digest: str | None = None


def parse_reference(text: str) -> Reference:
    """Read `potus`, `potus@3`, `potus@live` or `sha256:<64 digits>`.

    Raises:
        BadReference: It is none of these.
    """
    if text.startswith("sha256:"):
        return Reference(digest=parse_digest(text))
    name, at, where = text.partition("@")
    if not _NAME.fullmatch(name):
        raise BadReference(text)
    if not at:
        return Reference(name=name)
    if _NUMBER.fullmatch(where):
        return Reference(name=name, number=int(where))
    if _ALIAS.fullmatch(where):
        return Reference(name=name, alias=where)
    raise BadReference(text)


def parse_digest(text: str) -> str:
    """The 64 digits of a digest, written with or without `sha256:`.

    Raises:
        BadReference: It is not one.
    """
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise BadReference(text)
    return match.group(1)


def checked_name(name: str, what: str = "an edit") -> str:
    """The name, if it is one.

    Raises:
        BadName: It is not.
    """
    if not _NAME.fullmatch(name):
        raise BadName(what, name)
    return name


def checked_alias(alias: str) -> str:
    """The alias, if it is one.

    Raises:
        BadName: It is not.
    """
    if not _ALIAS.fullmatch(alias):
        raise BadName("an alias", alias)
    return alias


def holds(expected: Expected, generation: int, *, there: bool) -> bool:
    """Whether what a caller has seen is still so; generations are remembered over a deletion."""
    if expected == "*":
        return there
    return expected is None or expected == generation or (expected == 0 and not there)


def checked_text(what: str, text: str, most: int) -> str:
    """A short text without control characters.

    Raises:
        BadRecord: It is empty, too long, or cannot be kept in every database.
    """
    if not text or len(text.encode(errors="replace")) > most:
        raise BadRecord(what, f"it must have 1 to {most} bytes")
    if not text.isprintable():
        raise BadRecord(what, "it has control characters")
    return text


def checked_json(what: str, value: Any, most: int) -> Any:
    """A JSON value that every database keeps as it is.

    Raises:
        BadRecord: NaN, foreign objects, half characters, NUL, or more than `most` bytes.
    """
    try:
        size = len(canonical(value).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRecord(what, str(error)) from None
    if size > most:
        raise BadRecord(what, f"it has {size} bytes of at most {most}")
    return value


def checked_limit(limit: int, most: int) -> int:
    """A page's size.

    Raises:
        BadPage: Not 1 to `most`.
    """
    if not 1 <= limit <= most:
        raise BadPage(f"limit is {limit}")
    return limit


def number_cursor(after: str | int | None) -> int | None:
    """A cursor that is a number, or None.

    Raises:
        BadPage: It is something else.
    """
    if after is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", str(after)):
        raise BadPage(f"after is {str(after)[:40]!r}")
    return int(after)


def paged(found: Sequence[T], limit: int, cursors: Sequence[str]) -> Page[T]:
    """A page of `limit` items, cut from one that was read one item longer."""
    has_more = len(found) > limit
    return Page(
        items=tuple(found[:limit]),
        has_more=has_more,
        next_cursor=cursors[limit - 1] if has_more else None,
    )
