"""SPEC 7.7: ranges of the trie are complete, and nothing but the truth passes for one."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ledger.merkle import trie_path, trie_root, trie_update
from ledger.trie_range import FIRST_PATH, LAST_PATH, TrieRange, cut_range, entries_from, range_fault

keys = st.integers(0, 200).map(lambda number: number.to_bytes(2, "big"))
contents = st.dictionaries(keys, st.binary(max_size=4), max_size=60)
paths = st.binary(min_size=32, max_size=32) | keys.map(trie_path)


def plain(entries: dict[bytes, bytes], first: bytes, last: bytes) -> list[tuple[bytes, bytes]]:
    rows = sorted((trie_path(key), key, value) for key, value in entries.items())
    return [(key, value) for path, key, value in rows if first <= path <= last]


@given(contents, paths, paths, st.integers(1, 20))
def test_a_range_holds_exactly_its_entries(entries: dict[bytes, bytes], one: bytes, other: bytes, count: int) -> None:
    trie = trie_update(None, dict(entries))
    first, last = sorted((one, other))
    found = cut_range(trie, first, last, entries_max=count)
    assert range_fault(trie_root(trie), found) is None
    assert list(found.entries) == plain(entries, first, last)[:count]
    assert list(found.entries) == plain(entries, first, found.last)
    assert [entry for _, entry in entries_from(trie, first, last)] == plain(entries, first, last)
    assert TrieRange.from_members(found.members()) == found


@given(contents, st.integers(1, 9))
def test_ranges_one_after_another_are_the_whole(entries: dict[bytes, bytes], count: int) -> None:
    trie, first, collected = trie_update(None, dict(entries)), FIRST_PATH, []
    while True:
        found = cut_range(trie, first, entries_max=count)
        assert range_fault(trie_root(trie), found) is None
        collected += found.entries
        if found.last == LAST_PATH:
            break
        first = (int.from_bytes(found.last, "big") + 1).to_bytes(32, "big")
    assert collected == plain(entries, FIRST_PATH, LAST_PATH)


@given(contents.filter(lambda entries: len(entries) > 2), paths, paths, st.data())
def test_no_range_but_the_true_one_is_accepted(
    entries: dict[bytes, bytes], one: bytes, other: bytes, data: st.DataObject
) -> None:
    trie = trie_update(None, dict(entries))
    root = trie_root(trie)
    first, last = sorted((one, other))
    found = cut_range(trie, first, last)
    for at in range(len(found.entries)):
        without = found.entries[:at] + found.entries[at + 1 :]
        assert range_fault(root, replace(found, entries=without)), "an entry is left out"
        assert range_fault(root, replace(found, entries=without, edges=(*found.edges, found.entries[at])))
        key, value = found.entries[at]
        changed = (*found.entries[:at], (key, value + b"!"), *found.entries[at + 1 :])
        assert range_fault(root, replace(found, entries=changed)), "a value is changed"
    for at in range(len(found.outside)):
        fewer = found.outside[:at] + found.outside[at + 1 :]
        assert range_fault(root, replace(found, outside=fewer)), "a subtree is left out"
    assert range_fault(root, replace(found, entries=(*found.entries, (b"new", b"")))), "an entry is added"
    wider = cut_range(trie, FIRST_PATH)
    if wider.entries != found.entries:
        assert range_fault(root, replace(found, first=FIRST_PATH, last=LAST_PATH)), "a range claims more than it has"
    assert range_fault(data.draw(st.binary(min_size=32, max_size=32)), found), "another root"


@given(contents.filter(lambda entries: len(entries) > 2), paths, paths)
def test_hiding_entries_behind_a_digest_is_seen(entries: dict[bytes, bytes], one: bytes, other: bytes) -> None:
    """A liar proves a narrower range and claims the wider one: the hidden subtrees reach into it."""
    trie = trie_update(None, dict(entries))
    first, last = sorted((one, other))
    narrow = cut_range(trie, first, last)
    for wide_first, wide_last in ((FIRST_PATH, last), (first, LAST_PATH)):
        wide = cut_range(trie, wide_first, wide_last)
        if wide.entries != narrow.entries:
            assert range_fault(trie_root(trie), replace(narrow, first=wide_first, last=wide_last))
