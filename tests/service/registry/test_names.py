import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import Refusal
from service.registry import errors
from service.registry.limits import Limits


def test_a_reference_means_one_version(registry, add):
    one, two = add(), add()
    three = add(status="failed_checks")
    resolve = registry.names.resolve
    assert resolve("acme", "potus@1") == one
    assert resolve("acme", "potus") == two  # the newest that is ready
    assert resolve("acme", "potus@3") == three  # by number, at one's own risk
    assert resolve("acme", f"sha256:{one.digest}") == one
    registry.names.move("acme", "potus", "live", 1, "ann")
    assert resolve("acme", "potus") == one
    assert resolve("acme", "potus@live") == one


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("nobody", errors.UnknownEdit),
        ("potus@9", errors.UnknownVersion),
        ("potus@canary", errors.UnknownAlias),
        ("sha256:" + "0" * 64, errors.UnknownDigest),
        ("potus@", errors.BadReference),
        ("potus@0", errors.BadReference),
        ("potus@01", errors.BadReference),
        ("potus@-1", errors.BadReference),
        ("potus@1@2", errors.BadReference),
        ("potus@Live", errors.BadReference),
        ("", errors.BadReference),
        ("sha256:xyz", errors.BadReference),
        ("potus' OR 1=1", errors.BadReference),
        ("potus@9999999999999999999", errors.BadReference),
    ],
)
def test_what_means_nothing_is_refused(registry, add, reference, kind):
    add()
    with pytest.raises(kind) as caught:
        registry.names.resolve("acme", reference)
    assert caught.value.remedy


@pytest.mark.parametrize("status", ["failed_checks", "unmeasured"])
def test_a_bare_name_without_a_ready_version_is_refused(registry, add, status):
    add(status=status)
    with pytest.raises(errors.NoReadyVersion):
        registry.names.resolve("acme", "potus")


def test_public_names_are_found_unless_the_tenant_has_its_own(registry, add):
    public = add(tenant="public", data=b"public")
    assert registry.names.resolve("acme", "potus@1") == public
    assert registry.names.resolve("acme", f"sha256:{public.digest}") == public
    own = add(tenant="acme", data=b"own")
    assert registry.names.resolve("acme", "potus@1") == own
    assert registry.names.resolve("other", "potus@1") == public


def test_every_move_raises_the_generation_and_the_next_request_sees_it(opened, add, registry):
    add(), add()
    replica = opened()
    for generation, number in enumerate((1, 2, 1, 2), start=1):
        moved = registry.names.move("acme", "potus", "live", number, "ann")
        assert (moved.version, moved.generation, moved.moved_by) == (number, generation, "ann")
        assert replica.names.resolve("acme", "potus@live").number == number
        assert replica.names.alias("acme", "potus", "live") == moved
    assert registry.names.aliases("acme", "potus") == (moved,)


def test_a_move_to_where_it_points_changes_nothing(registry, add):
    add()
    first = registry.names.move("acme", "potus", "live", 1, "ann")
    before = registry.events.latest()
    assert registry.names.move("acme", "potus", "live", 1, "bob", first.generation) == first
    assert registry.events.latest() == before


def test_a_stale_generation_loses(registry, add):
    add(), add()
    registry.names.move("acme", "potus", "live", 1, "ann", if_match=0)
    with pytest.raises(errors.AliasMoved) as caught:
        registry.names.move("acme", "potus", "live", 2, "bob", if_match=0)
    assert caught.value.generation == 1
    assert registry.names.move("acme", "potus", "live", 2, "bob", if_match=1).generation == 2
    for act in (registry.names.rollback, registry.names.delete_alias):
        with pytest.raises(errors.AliasMoved):
            act("acme", "potus", "live", "ann", 1)


def test_of_many_who_saw_the_same_generation_exactly_one_moves_the_alias(opened, add, registry):
    for _ in range(9):
        add()
    registry.names.move("acme", "potus", "live", 9, "ann")
    several = [opened() for _ in range(2)]
    gate = threading.Barrier(8)

    def race(worker):
        gate.wait()
        try:
            moved = several[worker % 2].names.move(
                "acme", "potus", "live", worker + 1, f"w{worker}", 1
            )
        except errors.AliasMoved:
            return None
        return moved

    with ThreadPoolExecutor(8) as pool:
        winners = [won for won in pool.map(race, range(8)) if won]
    assert len(winners) == 1
    assert registry.names.alias("acme", "potus", "live") == winners[0]
    assert winners[0].generation == 2


@pytest.mark.parametrize(
    ("status", "kind"),
    [("failed_checks", errors.ChecksFailed), ("unmeasured", errors.NotMeasured)],
)
def test_what_did_not_pass_takes_an_alias_only_by_force_and_the_audit_says_so(
    registry, add, status, kind
):
    add(status=status)
    with pytest.raises(kind):
        registry.names.move("acme", "potus", "live", 1, "ann")
    registry.names.move("acme", "potus", "live", 1, "ann", force=True)
    assert registry.names.resolve("acme", "potus").status == status
    assert registry.audit.list("acme").items[0].detail["forced"] is True


def test_an_alias_cannot_point_to_what_may_not_be_used(registry, add):
    add(), add()
    registry.edits.retire("acme", "potus", 1, "ann")
    with pytest.raises(errors.VersionRetired):
        registry.names.move("acme", "potus", "live", 1, "ann", force=True)
    registry.edits.block("acme", "potus", 2, "ann")
    with pytest.raises(errors.VersionBlocked):
        registry.names.move("acme", "potus", "live", 2, "ann", force=True)
    with pytest.raises(errors.UnknownVersion):
        registry.names.move("acme", "potus", "live", 3, "ann")


def test_rollback_walks_back_and_a_move_after_it_starts_anew(registry, add):
    for _ in range(4):
        add()
    move, back = registry.names.move, registry.names.rollback
    for number in (1, 2, 3):
        move("acme", "potus", "live", number, "ann")
    assert back("acme", "potus", "live", "ann").version == 2
    assert back("acme", "potus", "live", "ann", if_match=4).version == 1
    with pytest.raises(errors.NothingToRollBack):
        back("acme", "potus", "live", "ann")
    move("acme", "potus", "live", 4, "ann")
    assert back("acme", "potus", "live", "ann").version == 1
    actions = [row.action for row in registry.audit.list("acme", 3).items]
    assert actions == ["alias.rollback", "alias.move", "alias.rollback"]


def test_rollback_steps_over_versions_that_may_not_be_used(registry, add):
    for number in (1, 2, 3, 4):
        add()
        registry.names.move("acme", "potus", "live", number, "ann")
    registry.edits.retire("acme", "potus", 3, "ann")
    registry.edits.block("acme", "potus", 2, "ann")
    assert registry.names.rollback("acme", "potus", "live", "ann").version == 1


def test_a_deleted_alias_is_gone_but_its_generations_never_come_again(registry, add):
    add(), add()
    registry.names.move("acme", "potus", "live", 1, "ann")
    registry.names.delete_alias("acme", "potus", "live", "ann", 1)
    with pytest.raises(errors.UnknownAlias):
        registry.names.resolve("acme", "potus@live")
    with pytest.raises(errors.UnknownAlias):
        registry.names.alias("acme", "potus", "live")
    with pytest.raises(errors.UnknownAlias):
        registry.names.delete_alias("acme", "potus", "live", "ann")
    assert registry.names.aliases("acme", "potus") == ()
    again = registry.names.move("acme", "potus", "live", 2, "ann", if_match=0)
    assert again.generation == 3
    with pytest.raises(errors.NothingToRollBack):
        registry.names.rollback("acme", "potus", "live", "ann")


def test_aliases_are_checked_and_bounded(opened):
    small = opened(Limits(aliases=2))
    small.edits.register("acme", "potus", "sd", "f", b"x", {}, actor="ann")
    for alias in ("3", "Live", "a@b", "", "x" * 33):
        with pytest.raises(errors.BadName):
            small.names.move("acme", "potus", alias, 1, "ann")
    small.names.move("acme", "potus", "a", 1, "ann")
    small.names.move("acme", "potus", "b", 1, "ann")
    with pytest.raises(errors.RegistryFull):
        small.names.move("acme", "potus", "c", 1, "ann")


_STEPS = st.lists(
    st.tuples(st.just("move"), st.integers(1, 4))
    | st.tuples(st.just("back"), st.just(0))
    | st.tuples(st.just("delete"), st.just(0)),
    max_size=12,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=_STEPS)
def test_an_alias_behaves_like_a_stack_of_versions(registry, add, steps):
    name = f"n{registry.events.latest()}"
    for _ in range(4):
        add(name)
    stack: list[int] = []
    generation = 0
    for verb, number in steps:
        expected = after(stack, verb, number)
        try:
            act(registry.names, name, verb, number, generation)
        except Refusal:
            assert expected is None
            continue
        assert expected is not None
        generation += expected != stack
        stack = expected
        pointed = [(a.version, a.generation) for a in registry.names.aliases("acme", name)]
        assert pointed == [(version, generation) for version in stack[-1:]]


def after(stack, verb, number):
    """The stack after a step; None if the step must be refused."""
    if verb == "move":
        return stack if stack[-1:] == [number] else [*stack, number]
    if verb == "back":
        return stack[:-1] if len(stack) > 1 else None
    return [] if stack else None


def act(names, name, verb, number, generation):
    if verb == "move":
        names.move("acme", name, "live", number, "ann", generation)
    elif verb == "back":
        names.rollback("acme", name, "live", "ann", generation)
    else:
        names.delete_alias("acme", name, "live", "ann", generation)
