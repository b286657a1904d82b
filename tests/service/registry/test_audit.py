import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError

from service.registry import errors
from service.registry.audit import GENESIS, sealed
from service.registry.tables import audit


def test_every_write_says_who_did_what(registry, add):
    add(actor="ann")
    add(actor="bob")
    registry.names.move("acme", "potus", "live", 1, "ann")
    registry.names.move("acme", "potus", "live", 2, "bob")
    registry.names.rollback("acme", "potus", "live", "ann")
    registry.edits.retire("acme", "potus", 2, "ann")
    rows = registry.audit.list("acme").items
    assert [(r.seq, r.actor, r.action, r.subject) for r in reversed(rows)] == [
        (1, "ann", "version.register", "potus@1"),
        (2, "bob", "version.register", "potus@2"),
        (3, "ann", "alias.move", "potus@live"),
        (4, "bob", "alias.move", "potus@live"),
        (5, "ann", "alias.rollback", "potus@live"),
        (6, "ann", "version.retire", "potus@2"),
    ]
    moved = rows[2]
    assert (moved.detail["from"], moved.detail["to"], moved.detail["generation"]) == (1, 2, 2)


def test_what_is_refused_leaves_no_row(registry, add):
    add()
    before = registry.events.latest()
    with pytest.raises(errors.UnknownVersion):
        registry.names.move("acme", "potus", "live", 9, "ann")
    assert registry.events.latest() == before == 1


def test_the_audit_is_read_in_pages_and_by_tenant(registry, add):
    for tenant in ("acme", "other", "acme"):
        add(tenant=tenant)
    first = registry.audit.list("acme", 1)
    assert ([r.seq for r in first.items], first.next_cursor) == ([3], "3")
    assert [r.seq for r in registry.audit.list("acme", 5, first.next_cursor).items] == [1]
    assert [r.seq for r in registry.audit.list(None).items] == [3, 2, 1]
    for limit, after in ((0, None), (5000, None), (1, "x"), (1, "-1"), (1, "1; DROP TABLE audit")):
        with pytest.raises(errors.BadPage):
            registry.audit.list("acme", limit, after)


def test_events_tell_a_reader_what_it_missed(registry, add):
    assert registry.events.latest() == 0
    assert registry.events.since(0) == ()
    add()
    registry.names.move("acme", "potus", "live", 1, "ann")
    told = registry.events.since(0)
    assert [(e.seq, e.action, e.subject) for e in told] == [
        (1, "version.register", "potus@1"),
        (2, "alias.move", "potus@live"),
    ]
    assert registry.events.since(1) == told[1:]
    assert registry.events.since(0, 1) == told[:1]
    assert registry.events.latest() == 2


def test_rows_are_only_added(registry, add):
    add()
    for change in (
        audit.update().values(actor="nobody"),
        audit.delete(),
        sa.text("UPDATE audit SET seq = 2"),
    ):
        with pytest.raises(DBAPIError, match="only added"), registry.index.writing() as connection:
            connection.execute(change)
    assert registry.audit.verify().broken_at is None


def past_the_trigger(registry, change):
    """What somebody with the database's own rights could do."""
    with registry.index.writing() as connection:
        if registry.index.is_sqlite:
            connection.execute(sa.text("DROP TRIGGER IF EXISTS audit_is_not_updated"))
            connection.execute(sa.text("DROP TRIGGER IF EXISTS audit_is_not_deleted"))
        else:
            connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        connection.execute(change)


@pytest.mark.parametrize(
    "column", ["at", "tenant", "actor", "action", "subject", "detail", "digest"]
)
def test_a_changed_row_breaks_the_chain_there(registry, add, column):
    for _ in range(4):
        add()
    whole = registry.audit.verify()
    assert (whole.rows, whole.broken_at) == (4, None)
    assert whole.head == registry.audit.list(None, 1).items[0].digest
    forged = 1.5 if column == "at" else '{"digest":"0"}' if column == "detail" else "0" * 64
    past_the_trigger(registry, audit.update().where(audit.c.seq == 3).values({column: forged}))
    assert registry.audit.verify().broken_at == 3
    assert not registry.verify().sound


def test_a_removed_row_breaks_the_chain_and_a_cut_tail_changes_the_head(registry, add):
    for _ in range(4):
        add()
    head = registry.audit.verify().head
    past_the_trigger(registry, audit.delete().where(audit.c.seq == 4))
    cut = registry.audit.verify()
    assert (cut.rows, cut.broken_at) == (3, None)
    assert cut.head != head
    past_the_trigger(registry, audit.delete().where(audit.c.seq == 2))
    assert registry.audit.verify().broken_at == 2


_ROW = st.fixed_dictionaries(
    {
        "seq": st.integers(1, 9),
        "at": st.floats(0, 9),
        **{
            k: st.text('ab",[]', max_size=3)
            for k in ("tenant", "actor", "action", "subject", "detail")
        },
    }
)


@given(one=_ROW, other=_ROW)
def test_two_rows_have_the_same_seal_only_if_they_are_the_same(one, other):
    assert (sealed(GENESIS, one) == sealed(GENESIS, other)) == (one == other)
    assert sealed(GENESIS, one) != sealed("1" * 64, one)
