"""Aliases: names that move by compare-and-swap, go back, and mean one version at any moment."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from service.registry.audit import Deed, record
from service.registry.edits import as_alias
from service.registry.errors import (
    AliasMoved,
    ChecksFailed,
    InUse,
    NothingToRollBack,
    NotMeasured,
    RegistryFull,
    UnknownAlias,
    UnknownVersion,
    VersionBlocked,
    VersionRetired,
)
from service.registry.finding import as_version, find_edit, find_version, resolve, usable
from service.registry.grammar import checked_alias, checked_text, holds
from service.registry.index import Index
from service.registry.kinds import word_of
from service.registry.limits import Limits
from service.registry.records import Alias, Expected, Version
from service.registry.tables import alias_states, aliases, versions
from service.registry.users import users_of_alias


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One move of an alias, in the making.

    Attributes:
        had: The alias's row, None before the first move.
    """

    edit: Row[Any]
    alias: str
    had: Row[Any] | None
    actor: str
    at: float

    @property
    def label(self) -> str:
        """How the alias is written."""
        return f"{self.edit.name}@{self.alias}"

    @property
    def number(self) -> int | None:
        """Where it points before the move; None if nowhere."""
        return self.had.number if self.had else None

    @property
    def generation(self) -> int:
        """What `If-Match` must say; 0 for an alias that was never there."""
        return self.had.generation if self.had else 0


@dataclass(frozen=True, kw_only=True)
class Names:
    """`Registry.names`."""

    index: Index
    limits: Limits

    def resolve(self, tenant: str, reference: str) -> Version:
        """The version that `potus`, `potus@3`, `potus@live` or `sha256:...` means now.

        A bare name means its alias `live`, else its newest version that is ready. Names of the
        tenant `public` are found too, unless the tenant has the name itself.

        Raises:
            BadReference: The text is no reference.
            UnknownEdit, UnknownVersion, UnknownAlias, UnknownDigest: Nothing has that name.
            NoReadyVersion: A bare name without `live` and without a ready version.
            VersionRetired, VersionBlocked: It may not be used any more.
        """
        with self.index.reading() as connection:
            return as_version(resolve(connection, tenant, reference))

    def aliases(self, tenant: str, name: str) -> tuple[Alias, ...]:
        """A name's aliases in alphabetical order.

        Raises:
            UnknownEdit: The tenant has no such name.
        """
        with self.index.reading() as connection:
            edit = find_edit(connection, tenant, name)
            query = sa.select(aliases).where(
                aliases.c.edit == edit.id, aliases.c.number.is_not(None)
            )
            rows = connection.execute(query.order_by(aliases.c.alias))
            return tuple(as_alias(name, row) for row in rows)

    def alias(self, tenant: str, name: str, alias: str) -> Alias:
        """One alias.

        Raises:
            UnknownEdit, UnknownAlias: There is none.
        """
        with self.index.reading() as connection:
            edit = find_edit(connection, tenant, name)
            row = _alias_row(connection, edit, alias)
            if row is None or row.number is None:
                raise UnknownAlias(name, alias, what=word_of(edit.kind))
            return as_alias(name, row)

    def move(  # noqa: PLR0913  (who, which, where, and on which condition)
        self,
        tenant: str,
        name: str,
        alias: str,
        to_version: int,
        actor: str,
        if_match: Expected = None,
        *,
        force: bool = False,
    ) -> Alias:
        """Point an alias to a version; the next request that resolves it uses that version.

        Args:
            tenant: Whose name it is.
            name: The edit or preset.
            alias: Made if it is not there.
            to_version: A version's number.
            actor: Who goes into the audit.
            if_match: The generation that the caller has seen; 0 for "it is not there"; None
                moves it whatever happened meanwhile, "*" if it is there.
            force: Accept a version that failed its checks, or could not be measured.

        Raises:
            AliasMoved: Somebody else moved it first.
            ChecksFailed, NotMeasured: It did not pass its checks and `force` is not set.
            UnknownEdit, UnknownVersion, VersionRetired, VersionBlocked: It cannot be used.
            RegistryFull: The name has as many aliases as one may have.
        """
        checked_alias(alias)
        checked_text("actor", actor, self.limits.text_bytes)
        with self.index.writing() as connection:
            turn = self._turn(connection, tenant, name, alias, actor)
            _expect(turn, if_match)
            try:
                version = usable(connection, find_version(connection, turn.edit, to_version))
            except (UnknownVersion, VersionRetired, VersionBlocked) as refusal:
                refusal.param = "version"
                raise
            if version.checks != "ready" and not force:
                unmeasured = version.checks == "unmeasured"
                raise (NotMeasured if unmeasured else ChecksFailed)(f"{name}@{to_version}")
            if turn.number == to_version:
                return self._alias_now(connection, turn)
            self._refuse_more(connection, turn)
            detail = {"from": turn.number, "to": to_version, "digest": version.digest}
            if version.checks != "ready":
                detail["forced"] = True
            before = turn.generation if turn.number is not None else None
            return self._moved(connection, turn, to_version, before, detail)

    def rollback(
        self, tenant: str, name: str, alias: str, actor: str, if_match: Expected = None
    ) -> Alias:
        """Point an alias to where it pointed before; a second rollback goes one further back.

        Versions that were retired or blocked meanwhile are stepped over.

        Raises:
            AliasMoved: Somebody else moved it first.
            NothingToRollBack: It pointed nowhere else that can still be used.
            UnknownEdit, UnknownAlias: There is none.
        """
        checked_text("actor", actor, self.limits.text_bytes)
        with self.index.writing() as connection:
            turn = self._turn(connection, tenant, name, alias, actor)
            _expect(turn, if_match)
            if turn.number is None:
                raise UnknownAlias(name, alias, what=word_of(turn.edit.kind))
            back = _earlier(connection, turn)
            detail = {"from": turn.number, "to": back.number, "digest": back.digest, "back": True}
            return self._moved(connection, turn, back.number, back.before, detail)

    def delete_alias(
        self, tenant: str, name: str, alias: str, actor: str, if_match: Expected = None
    ) -> None:
        """Remove an alias; its generation is remembered, its way back is not.

        Raises:
            AliasMoved: Somebody else moved it first.
            InUse: A variant names it.
            UnknownEdit, UnknownAlias: There is none.
        """
        checked_text("actor", actor, self.limits.text_bytes)
        with self.index.writing() as connection:
            turn = self._turn(connection, tenant, name, alias, actor)
            _expect(turn, if_match)
            if turn.number is None:
                raise UnknownAlias(name, alias, what=word_of(turn.edit.kind))
            if users := users_of_alias(connection, turn.edit, alias):
                raise InUse(turn.label, ", ".join(users))
            self._write(connection, turn, None)
            connection.execute(
                alias_states.delete().where(
                    alias_states.c.edit == turn.edit.id, alias_states.c.alias == alias
                )
            )
            _tell(connection, turn, "alias.delete", {"from": turn.number, "to": None})

    def _turn(self, connection: Connection, tenant: str, name: str, alias: str, actor: str) -> Turn:
        edit = find_edit(connection, tenant, name)
        had = _alias_row(connection, edit, alias)
        return Turn(edit=edit, alias=alias, had=had, actor=actor, at=self.index.now(connection))

    def _refuse_more(self, connection: Connection, turn: Turn) -> None:
        # Deleted ones count too: their rows stay for the sake of their generations.
        if turn.had is None:
            query = sa.select(sa.func.count()).where(aliases.c.edit == turn.edit.id)
            if connection.execute(query).scalar_one() >= self.limits.aliases:
                raise RegistryFull(f"aliases of {turn.edit.name}", self.limits.aliases)

    def _moved(
        self,
        connection: Connection,
        turn: Turn,
        number: int,
        before: int | None,
        detail: dict[str, Any],
    ) -> Alias:
        self._write(connection, turn, number)
        connection.execute(
            alias_states.insert().values(
                edit=turn.edit.id,
                alias=turn.alias,
                generation=turn.generation + 1,
                number=number,
                before=before,
            )
        )
        action = "alias.rollback" if detail.get("back") else "alias.move"
        _tell(connection, turn, action, detail)
        return self._alias_now(connection, turn)

    def _write(self, connection: Connection, turn: Turn, number: int | None) -> None:
        values = {
            "number": number,
            "generation": turn.generation + 1,
            "moved_at": turn.at,
            "moved_by": turn.actor,
        }
        if turn.had is None:
            connection.execute(
                aliases.insert().values(edit=turn.edit.id, alias=turn.alias, **values)
            )
            return
        connection.execute(
            aliases.update()
            .where(aliases.c.edit == turn.edit.id, aliases.c.alias == turn.alias)
            .values(**values)
        )

    def _alias_now(self, connection: Connection, turn: Turn) -> Alias:
        row = _alias_row(connection, turn.edit, turn.alias)
        if row is None:
            raise UnknownAlias(turn.edit.name, turn.alias, what=word_of(turn.edit.kind))
        return as_alias(turn.edit.name, row)


def _expect(turn: Turn, if_match: Expected) -> None:
    if not holds(if_match, turn.generation, there=turn.number is not None):
        raise AliasMoved(turn.label, if_match, turn.generation)


def _alias_row(connection: Connection, edit: Row[Any], alias: str) -> Row[Any] | None:
    query = sa.select(aliases).where(aliases.c.edit == edit.id, aliases.c.alias == alias)
    return connection.execute(query).first()


def _earlier(connection: Connection, turn: Turn) -> Row[Any]:
    """The state to go back to: the nearest one on the way back that points elsewhere and works."""
    generation: int | None = turn.generation
    while generation is not None:
        state = connection.execute(
            sa.select(alias_states.c.before, alias_states.c.number, versions)
            .join(
                versions,
                sa.and_(
                    versions.c.edit == alias_states.c.edit,
                    versions.c.number == alias_states.c.number,
                ),
            )
            .where(
                alias_states.c.edit == turn.edit.id,
                alias_states.c.alias == turn.alias,
                alias_states.c.generation == generation,
            )
        ).first()
        if state is None:
            break
        works = state.retired_at is None and state.blocked_at is None
        if works and state.number != turn.number:
            return state
        generation = state.before
    raise NothingToRollBack(turn.label)


def _tell(connection: Connection, turn: Turn, action: str, detail: dict[str, Any]) -> None:
    deed = Deed(
        tenant=turn.edit.tenant,
        actor=turn.actor,
        action=action,
        subject=turn.label,
        detail={**detail, "generation": turn.generation + 1},
    )
    record(connection, turn.at, deed)
