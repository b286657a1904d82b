import time

import pytest
import sqlalchemy as sa

from service.registry import errors
from service.registry.limits import Limits
from service.registry.tables import keys


def create(registry, tenant="acme", expires=None, name="laptop"):
    return registry.keys.create(tenant, ["infer", "edits:read"], expires, name, actor="root")


def test_a_secret_opens_its_key_and_no_other(registry):
    secret, key = create(registry)
    other, _ = create(registry)
    assert registry.keys.verify(secret) == key
    assert (key.tenant, key.scopes, key.name) == ("acme", ("infer", "edits:read"), "laptop")
    mixed = secret[:20] + other[20:]  # the public part of one, the secret part of the other
    for wrong in (mixed, secret[:-1], secret + "x", "", "sk_", "sk_" + "0" * 16 + "_" + "x" * 43):
        assert registry.keys.verify(wrong) is None


def test_the_secret_is_nowhere_in_the_database(registry):
    secret, _ = create(registry)
    with registry.index.reading() as connection:
        for row in connection.execute(sa.select(keys)):
            assert secret[20:] not in repr(tuple(row))
    assert secret[20:] not in repr(registry.audit.list("acme").items)


def test_a_revoked_or_expired_key_is_worthless(registry):
    secret, key = create(registry)
    assert registry.keys.any_works()
    with pytest.raises(errors.UnknownApiKey):
        registry.keys.revoke(key.id, "eve", "other")
    assert registry.keys.revoke(key.id, "root", "acme").revoked_at is not None
    assert registry.keys.verify(secret) is None
    expired, _ = create(registry, expires=time.time() - 1)
    assert registry.keys.verify(expired) is None
    assert not registry.keys.any_works()
    fresh, _ = create(registry, expires=time.time() + 60)
    assert registry.keys.verify(fresh)


def test_keys_are_listed_in_pages(registry):
    made = sorted(create(registry)[1].id for _ in range(3))
    create(registry, tenant="other")
    first = registry.keys.list("acme", 2)
    assert [k.id for k in first.items] == made[:2]
    assert [k.id for k in registry.keys.list("acme", 2, first.next_cursor).items] == made[2:]
    assert len(registry.keys.list(None).items) == 4


def test_keys_are_bounded(opened):
    small = opened(Limits(keys=1))
    _, key = create(small)
    with pytest.raises(errors.RegistryFull):
        create(small)
    small.keys.revoke(key.id, "root")
    create(small)
    for expires in (float("nan"), float("inf")):
        with pytest.raises(errors.BadRecord):
            create(small, tenant="other", expires=expires)
