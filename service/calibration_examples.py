"""Examples of a calibration: read from a body or an archive, checked, kept by their content.

They are kept as one archive: `examples.jsonl`, and each picture once, under its own digest. Nothing
is decoded before its bytes and its pixels are known to be within the limits.
"""

import hashlib
import json
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from evaluation.backpatch.example import Example
from service.errors import BadRequest, TooMuch
from service.evidence_kinds import unzipped, zipped
from service.phrases import said
from service.pictures_in import (
    Pictures,
    check_pixels,
    decoded,
    from_data_uri,
    is_data,
    pixels_of,
)
from service.registry.tables import canonical
from service.schema_backpatch import ExampleRow, lines_of
from service.settings import Limits

LINES = "examples.jsonl"
_FILE = "file"
_PIECE = 2**16
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError)
"""What reading an archive raises that is none."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Checked examples on their way into the registry.

    Attributes:
        data: The archive.
        count: Of examples.
    """

    data: bytes = field(repr=False)
    count: int


def of_rows(rows: Sequence[ExampleRow], labels: Sequence[str], limits: Limits) -> Kept:
    """Examples of a JSON body, whose pictures are data URIs.

    Raises:
        BadRequest, TooMuch, NotAnImage, BadPicture: Naming the example and the key.
    """

    def read(url: str, param: str) -> bytes:
        if not is_data(url):
            raise BadRequest(
                f"{param} is no data URI.",
                remedy="Send data:image/png;base64,...; files belong into an archive.",
                param=param,
            )
        return from_data_uri(url, param, limits)

    return _kept(rows, labels, limits, read)


def of_archive(data: bytes, labels: Sequence[str], limits: Limits) -> Kept:
    """Examples of a zip with `examples.jsonl` and the files that it names.

    Raises:
        BadRequest: It is no zip, or a member of it is not to be trusted.
        TooMuch: More files, or more bytes once unpacked, than allowed.
        NotAnImage, BadPicture: Naming the example and the key.
    """
    members = _unpacked(data, limits)
    if LINES not in members:
        raise _bad(f"The archive has no {LINES} at its top.")
    rows = _rows(members[LINES])

    def read(name: str, param: str) -> bytes:
        if is_data(name):
            return from_data_uri(name, param, limits)
        if (found := members.get(str(PurePosixPath(name)))) is None:
            raise BadRequest(
                f"{param}: the archive has no file {name[:100]!r}.",
                remedy=f"Name files as they stand in the archive, seen from {LINES}.",
                param=param,
            )
        _within(param, len(found), limits.input_picture_bytes, " bytes")
        return found

    return _kept(rows, labels, limits, read)


def examples_of(data: bytes) -> list[Example]:
    """The examples of an archive that was kept."""
    members = unzipped(data)
    found = []
    for line in members[LINES].decode().splitlines():
        told = json.loads(line)
        shown = [members[name] for name in told["images"]]
        asked = [{"type": "image"}] * len(shown) + [{"type": "text", "text": told["question"]}]
        words = told["text"]
        found.append(
            Example(
                id=told["id"],
                messages=[{"role": "user", "content": asked}],
                pictures=Pictures(shown, "examples"),
                answer=told["answer"],
                labels=tuple(told["labels"]),
                described=None if words is None else [{"role": "user", "content": words}],
                description=told["description"],
                shows=tuple(told["images"]),
            )
        )
    return found


def _kept(
    rows: Sequence[ExampleRow],
    labels: Sequence[str],
    limits: Limits,
    read: Callable[[str, str], bytes],
) -> Kept:
    if not rows:
        raise BadRequest(
            "There are no examples.",
            remedy="Send `examples`, or an archive; docs/back-patching.md shows both.",
            param="examples",
        )
    _within("examples", len(rows), limits.calibration_examples)
    given = tuple(labels) or tuple(sorted({row.answer for row in rows}))
    files, lines, total, ids = dict[str, bytes](), list[str](), 0, set[str]()
    for number, row in enumerate(rows):
        names, place = [], f"examples[{number}]"
        _within(f"{place}.images", len(row.pictures), limits.input_pictures, " pictures")
        for at, where in enumerate(row.pictures):
            param = f"{place}.image" if row.image is not None else f"{place}.images[{at}]"
            data = read(where, param)
            name = f"pictures/{hashlib.sha256(data).hexdigest()}"
            if name not in files:
                total += len(data)
                check_pixels(pixels_of(data, param), limits.input_pixels, param)
                decoded(data, param)
                _within("examples", total, limits.calibration_bytes, " bytes")
                files[name] = data
            names.append(name)
        told = _line(row, number, names, given)
        if told["id"] in ids:
            raise BadRequest(
                f"Two examples are called {told['id']!r}.",
                remedy="Leave `id` out, or give each its own.",
                param=f"{place}.id",
            )
        ids.add(told["id"])
        lines.append(canonical(told))
    return Kept(data=zipped({LINES: "\n".join(lines).encode(), **files}), count=len(rows))


def _line(
    row: ExampleRow, number: int, images: Sequence[str], labels: Sequence[str]
) -> dict[str, Any]:
    words = row.text
    if words is None and row.description is not None:
        words = f"{row.description} {row.question}"
    return {
        "id": row.id or str(number),
        "images": list(images),
        "question": row.question,
        "answer": row.answer,
        "labels": list(row.labels or labels),
        "description": row.description,
        "text": words,
    }


def _rows(data: bytes) -> list[ExampleRow]:
    try:
        told = lines_of(data.decode("utf-8-sig"))
    except ValueError as error:
        raise _bad(f"{LINES}: {error}.") from None
    found = []
    for number, one in enumerate(told):
        try:
            found.append(ExampleRow.model_validate_json(json.dumps(one)))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            path = ".".join((f"examples[{number}]", *map(str, first["loc"])))
            why = "is unknown" if first["type"] == "extra_forbidden" else said(first)
            raise BadRequest(
                f"{LINES}, {path}: {why}.",
                remedy="docs/back-patching.md describes what an example holds.",
                param=path,
            ) from None
    return found


# --- archives -------------------------------------------------------------------------------------


def _unpacked(data: bytes, limits: Limits) -> Mapping[str, bytes]:
    """The files of a zip, read no further than the limits go, whatever its directory says."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            members = list(_members(archive, limits))
            found, left = dict[str, bytes](), limits.calibration_bytes
            for name, member in members:
                found[name] = _read(archive, member, left)
                left -= len(found[name])
            return found
    except _BROKEN:
        raise _bad("The file is no zip archive that can be read.") from None


def _members(archive: zipfile.ZipFile, limits: Limits) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    files = [member for member in archive.infolist() if not member.is_dir()]
    _within(_FILE, len(files), limits.calibration_examples * 4, " files")
    told = sum(member.file_size for member in files)
    _within(_FILE, told, limits.calibration_bytes, " bytes once unpacked")
    seen = set[str]()
    for member in files:
        path = PurePosixPath(member.filename)
        name = str(path)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
            raise _bad(f"{member.filename[:100]!r} leads out of the archive.")
        if kind not in (0, stat.S_IFREG):
            raise _bad(f"{name[:100]!r} is no plain file.")
        if member.flag_bits & 1 or member.compress_type not in _PACKED:
            raise _bad(f"{name[:100]!r} is encrypted, or packed in a way that is not read here.")
        if name in seen:
            raise _bad(f"{name[:100]!r} is there twice.")
        seen.add(name)
        yield name, member


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> bytes:
    found = bytearray()
    with archive.open(member) as opened:
        while piece := opened.read(_PIECE):
            found += piece
            _within(_FILE, len(found), most, " bytes once unpacked")
    return bytes(found)


def _bad(problem: str) -> BadRequest:
    return BadRequest(
        problem,
        remedy=f"Send a zip of plain files: {LINES} at its top, and the pictures it names.",
        param=_FILE,
    )


def _within(param: str, asked: int, limit: int, why: str = "") -> None:
    if asked > limit:
        raise TooMuch(param, asked, limit, why)
