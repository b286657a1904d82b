"""Scores of features: kept once per weights, dictionary and settings, shared by all replicas.

They can be computed again, so nothing here is audited, and the oldest sets make room for new ones.
Writing the same scores twice is harmless: two replicas that score one feature at once agree.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Row
from sqlalchemy.dialects import postgresql, sqlite

from service.registry.errors import BadPage
from service.registry.grammar import checked_json, checked_limit, checked_text, paged
from service.registry.index import Index
from service.registry.limits import Limits
from service.registry.records import Coverage, FeatureScore, Measure, Page
from service.registry.tables import feature_scores, score_sets

_AT_ONCE = 500
"""Features that one statement asks for or writes: below every database's bound on parameters."""

_NUMBERS = ("output_score", "peak", "rank", "p_max_before", "p_max_after", "a_max")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """`Registry.scores`."""

    index: Index
    limits: Limits

    def put(
        self, measure: Measure, scores: Sequence[FeatureScore], told: Mapping[str, Any]
    ) -> None:
        """Keep scores; a feature that has one already gets the new one.

        Args:
            measure: Of what, and taken how.
            scores: In any order; one per feature.
            told: The settings that `measure.settings` is the digest of.

        Raises:
            BadRecord: Outside the limits.
        """
        for what in ("fingerprint", "sae", "settings"):
            checked_text(what, getattr(measure, what), self.limits.text_bytes)
        checked_json("settings", dict(told), self.limits.header_bytes)
        for batch in batches(sorted(scores, key=lambda s: s.feature), _AT_ONCE):
            with self.index.working() as connection:
                at = self.index.now(connection)
                number = self._set(connection, measure, told, at)
                connection.execute(self._upsert(), [_row(number, at, s) for s in batch])

    def _set(
        self, connection: Connection, measure: Measure, told: Mapping[str, Any], at: float
    ) -> int:
        if (number := _find(connection, measure)) is not None:
            return number
        fresh = self._insert(score_sets).values(
            fingerprint=measure.fingerprint,
            sae=measure.sae,
            settings=measure.settings,
            told=dict(told),
            created_at=at,
        )
        connection.execute(fresh.on_conflict_do_nothing())
        self._make_room(connection)
        number = _find(connection, measure)
        assert number is not None  # noqa: S101 - the newest is not among those that make room
        return number

    def _make_room(self, connection: Connection) -> None:
        newest = sa.select(score_sets.c.id).order_by(score_sets.c.id.desc())
        last = connection.execute(newest.offset(self.limits.score_sets).limit(1)).scalar()
        if last is not None:
            connection.execute(score_sets.delete().where(score_sets.c.id <= last))

    def _insert(self, table: sa.Table) -> Any:
        return (sqlite if self.index.is_sqlite else postgresql).insert(table)

    def _upsert(self) -> Any:
        fresh = self._insert(feature_scores)
        kept = (*_NUMBERS, "tokens", "reason", "scored_at")
        return fresh.on_conflict_do_update(
            index_elements=["scores", "feature"], set_={k: fresh.excluded[k] for k in kept}
        )

    def get(self, measure: Measure, features: Sequence[int]) -> dict[int, FeatureScore]:
        """Those of the features that are scored."""
        found: dict[int, FeatureScore] = {}
        with self.index.reading() as connection:
            number = _find(connection, measure)
            if number is None:
                return {}
            for batch in batches(sorted(set(features)), _AT_ONCE):
                query = sa.select(feature_scores).where(
                    feature_scores.c.scores == number, feature_scores.c.feature.in_(batch)
                )
                found |= {row.feature: _as_score(row) for row in connection.execute(query)}
        return found

    def scored(self, measure: Measure) -> frozenset[int]:
        """Every feature that has a score: what a job that is taken up again may skip."""
        with self.index.reading() as connection:
            number = _find(connection, measure)
            query = sa.select(feature_scores.c.feature).where(feature_scores.c.scores == number)
            return frozenset(connection.execute(query).scalars()) if number else frozenset()

    def best(
        self,
        measure: Measure,
        limit: int = 100,
        after: str | None = None,
        *,
        least: float | None = None,
    ) -> Page[FeatureScore]:
        """Scored features, the highest output score first, equal ones by their numbers.

        Features without a number are left out.

        Raises:
            BadPage: The limit or the cursor is not one.
        """
        checked_limit(limit, self.limits.page)
        score, feature = feature_scores.c.output_score, feature_scores.c.feature
        with self.index.reading() as connection:
            number = _find(connection, measure)
            if number is None:
                return paged((), limit, ())
            query = sa.select(feature_scores).where(
                feature_scores.c.scores == number, score.is_not(None)
            )
            if least is not None:
                query = query.where(score >= least)
            if after is not None:
                last, of = _cursor(after)
                query = query.where(sa.or_(score < last, sa.and_(score == last, feature > of)))
            query = query.order_by(score.desc(), feature).limit(limit + 1)
            found = [_as_score(row) for row in connection.execute(query)]
        return paged(found, limit, [f"{s.output_score!r}:{s.feature}" for s in found])

    def coverage(self, measure: Measure, thresholds: Sequence[float]) -> Coverage:
        """How much is scored, and how many features reach each threshold."""
        score = feature_scores.c.output_score
        counts = [sa.func.count(sa.case((score >= least, 1))) for least in thresholds]
        with self.index.reading() as connection:
            number = _find(connection, measure)
            query = sa.select(sa.func.count(), *counts).where(feature_scores.c.scores == number)
            scored, *reached = connection.execute(query).one() if number else (0, *thresholds)
        reach = dict(zip(thresholds, reached, strict=True)) if number else {}
        return Coverage(scored=scored, reach={t: int(reach.get(t, 0)) for t in thresholds})


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items, so many at a time."""
    return (items[i : i + size] for i in range(0, len(items), size))


def _find(connection: Connection, measure: Measure) -> int | None:
    query = sa.select(score_sets.c.id).where(
        score_sets.c.fingerprint == measure.fingerprint,
        score_sets.c.sae == measure.sae,
        score_sets.c.settings == measure.settings,
    )
    return connection.execute(query).scalar()


def _row(number: int, at: float, score: FeatureScore) -> dict[str, Any]:
    numbers = {name: getattr(score, name) for name in _NUMBERS}
    return {
        "scores": number,
        "feature": score.feature,
        **numbers,
        "tokens": list(score.tokens),
        "reason": score.reason,
        "scored_at": at,
    }


def _as_score(row: Row[Any]) -> FeatureScore:
    return FeatureScore(
        feature=row.feature,
        tokens=tuple(row.tokens),
        reason=row.reason,
        **{name: getattr(row, name) for name in _NUMBERS},
    )


def _cursor(after: str) -> tuple[float, int]:
    score, _, feature = after.partition(":")
    try:
        return float(score), int(feature)
    except ValueError:
        raise BadPage(f"after is {after[:40]!r}") from None
