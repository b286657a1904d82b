"""How much the registry keeps of each thing: every default stated."""

from dataclasses import dataclass

DAY = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds; what would cross one is refused with its name and its number.

    Attributes:
        text_bytes: Names of actors, stages, fingerprints and other short texts.
        payload_bytes: A job's input; target images travel in it.
        log_lines: How many events, with their log lines, are kept of each job.
        attempts: How often a job is begun before a lost worker makes it fail.
        waiting_seconds: A job that nobody has begun for so long fails.
        claim_seconds: How long an Idempotency-Key may be in progress before its request is held
            to be lost.
    """

    blob_bytes: int = 256 * 2**20
    header_bytes: int = 2**20
    report_bytes: int = 4 * 2**20
    payload_bytes: int = 64 * 2**20
    result_bytes: int = 4 * 2**20
    response_bytes: int = 4 * 2**20
    text_bytes: int = 512
    page: int = 1000
    edits: int = 100_000
    """Names per tenant."""
    versions: int = 10_000
    """Per name."""
    aliases: int = 64
    """Per name."""
    variants: int = 1_000
    """Per tenant."""
    variant_edits: int = 64
    keys: int = 1_000
    """API keys per tenant that are not revoked."""
    jobs: int = 100
    """Unfinished ones per tenant."""
    log_lines: int = 1_000
    line_bytes: int = 2_000
    notes_bytes: int = 64 * 2**20
    """What an unfinished job has found, packed."""
    attempts: int = 3
    waiting_seconds: float = DAY
    claim_seconds: float = 600.0
    idempotency_seconds: float = DAY
    finished_jobs_seconds: float = 30 * DAY
    """gc removes jobs that ended longer ago."""
    retired_seconds: float = 7 * DAY
    """gc removes the file, never the record, of a version that was retired longer ago."""
    score_sets: int = 1_000
    """Of all models, dictionaries and settings; beyond it the oldest scores are forgotten."""
    labels: int = 2_000_000
    """Per tenant and dictionary."""
    snippet_sets: int = 100
    """Samples per tenant."""
    snippets: int = 100
    """Per feature."""
    snippet_bytes: int = 256 * 1024
    """Of one feature's snippets, as JSON."""
