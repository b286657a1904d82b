import hashlib

import pytest

from engines.errors import EngineFailed
from engines.store import DigestStore, Kept


def digest(data):
    return hashlib.sha256(data).hexdigest()


def test_what_is_kept_is_found_and_counted():
    kept = Kept[str](10)
    kept.put("a", "A", 4)
    assert kept.get("a") == "A"
    assert kept.get("b") is None
    assert (kept.hits, kept.misses, kept.used, len(kept)) == (1, 1, 4, 1)


def test_the_least_recently_used_leaves_first():
    kept = Kept[str](10)
    kept.put("a", "A", 4)
    kept.put("b", "B", 4)
    kept.get("a")
    kept.put("c", "C", 4)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == ("A", None, "C")
    assert kept.used == 8


def test_what_is_larger_than_the_cache_is_not_kept_and_drives_nobody_out():
    kept = Kept[str](10)
    kept.put("a", "A", 4)
    kept.put("b", "B", 11)
    assert (kept.get("a"), kept.get("b"), kept.used) == ("A", None, 4)


def test_replacing_an_entry_counts_its_bytes_once():
    kept = Kept[str](10)
    kept.put("a", "A", 4)
    kept.put("a", "AA", 6)
    assert (kept.get("a"), kept.used) == ("AA", 6)


def test_clearing_forgets_everything():
    kept = Kept[str](10)
    kept.put("a", "A", 4)
    kept.clear()
    assert (kept.get("a"), kept.used, len(kept)) == (None, 0, 0)


def test_a_blob_is_fetched_once_and_read_once():
    fetched, data = [], b"some content"

    def fetch(wanted):
        fetched.append(wanted)
        return data

    store = DigestStore(fetch, bytes.decode, 100)
    assert store.get(digest(data)) == store.get(digest(data)) == "some content"
    assert fetched == [digest(data)]


def test_a_blob_that_is_not_what_its_name_says_is_refused_every_time():
    store = DigestStore(lambda _: b"something else", bytes.decode, 100)
    for _ in range(2):
        with pytest.raises(EngineFailed):
            store.get(digest(b"some content"))
    assert len(store.kept) == 0
