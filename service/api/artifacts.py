"""The files of what a job found, one at a time."""

from collections.abc import Mapping

from fastapi import Response

from service.evidence_errors import NoSuchArtifact

_MEDIA = {"json": "application/json", "md": "text/markdown", "png": "image/png"}


def artifact(
    found: str, made: Mapping[str, bytes], file: str, left_out: Mapping[str, str] | None = None
) -> Response:
    """One of the files with its media type.

    Args:
        found: Whose files they are, for a refusal.
        made: The files by name.
        file: Which of them.
        left_out: Of a file that its kind has, why it is not there, and what to do.

    Raises:
        NoSuchArtifact: It is not there.
    """
    if file not in made:
        raise NoSuchArtifact(found, file, sorted(made), left_out)
    media = _MEDIA.get(file.rpartition(".")[2], "application/octet-stream")
    return Response(made[file], media_type=media)
