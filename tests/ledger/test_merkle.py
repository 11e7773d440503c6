"""SPEC 2: the list tree and the state trie, each against a second, plain implementation."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.merkle import (
    EMPTY_LIST_ROOT,
    EMPTY_TRIE_ROOT,
    Node,
    TrieProof,
    leaf_digest,
    list_path,
    list_root,
    root_from_path,
    trie_check,
    trie_get,
    trie_prove,
    trie_root,
    trie_update,
)

digests = st.lists(st.binary(max_size=8).map(leaf_digest), max_size=40)


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def plain_list_root(leaves: list[bytes]) -> bytes:
    """RFC 6962's recursion: split at the largest power of two below the length."""
    if not leaves:
        return EMPTY_LIST_ROOT
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return sha(b"\x01" + plain_list_root(leaves[:half]) + plain_list_root(leaves[half:]))


@given(digests)
def test_list_root_is_rfc_6962s(leaves: list[bytes]) -> None:
    assert list_root(leaves) == plain_list_root(leaves)


@given(digests.filter(bool), st.data())
def test_every_path_leads_to_the_root_and_no_other_leaf_does(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = list_path(leaves, index)
    assert root_from_path(leaves[index], index, len(leaves), path) == list_root(leaves)
    assert root_from_path(sha(b"another"), index, len(leaves), path) != list_root(leaves)
    assert root_from_path(leaves[index], index, len(leaves), (*path, bytes(32))) is None
    assert root_from_path(leaves[index], len(leaves), len(leaves), path) is None
    if path:
        assert root_from_path(leaves[index], index, len(leaves), path[:-1]) is None


# ---- the trie


def plain_trie_cell(entries: list[tuple[str, bytes, bytes]], depth: int = 0) -> bytes:
    """The cell of (hex path, path, value) entries by the text of SPEC 2.3, without any incremental step."""
    if not entries:
        return b"\x00"
    if len(entries) == 1:
        _, path, value = entries[0]
        return b"\x01" + sha(b"\x02" + path + value)
    cells = [plain_trie_cell([e for e in entries if e[0][depth] == nibble], depth + 1) for nibble in "0123456789abcdef"]
    return b"\x01" + sha(b"\x03" + b"".join(cells))


def plain_trie_root(entries: dict[bytes, bytes]) -> bytes:
    rows = [(sha(key).hex(), sha(key), value) for key, value in entries.items()]
    return plain_trie_cell(rows)[1:] if rows else EMPTY_TRIE_ROOT


keys = st.integers(0, 60).map(lambda number: number.to_bytes(2, "big"))
batches = st.lists(st.dictionaries(keys, st.none() | st.binary(max_size=4), max_size=30), max_size=6)


def build(changes: list[dict[bytes, bytes | None]]) -> tuple[Node | None, dict[bytes, bytes]]:
    trie, entries = None, {}
    for batch in changes:
        trie = trie_update(trie, batch)
        entries.update(batch)
        entries = {key: value for key, value in entries.items() if value is not None}
    return trie, entries


@given(batches)
def test_trie_root_depends_on_its_contents_alone(changes: list[dict[bytes, bytes | None]]) -> None:
    trie, entries = build(changes)
    assert trie_root(trie) == plain_trie_root(entries)
    assert all(trie_get(trie, key) == value for key, value in entries.items())


@given(batches, st.dictionaries(keys, st.binary(max_size=4), min_size=1, max_size=9))
def test_an_update_leaves_the_older_trie_whole(
    changes: list[dict[bytes, bytes | None]], more: dict[bytes, bytes]
) -> None:
    trie, entries = build(changes)
    trie_update(trie, more)
    assert trie_root(trie) == plain_trie_root(entries)


@given(batches, keys)
def test_proofs_of_presence_and_absence_hold(changes: list[dict[bytes, bytes | None]], key: bytes) -> None:
    trie, entries = build(changes)
    proof = trie_prove(trie, key)
    assert trie_check(trie_root(trie), key, proof) == (True, entries.get(key))


@given(batches, keys, st.binary(min_size=32, max_size=32))
def test_proofs_hold_for_their_root_alone(
    changes: list[dict[bytes, bytes | None]], key: bytes, other_root: bytes
) -> None:
    trie, _ = build(changes)
    assert trie_check(other_root, key, trie_prove(trie, key)) == (False, None)


@given(st.dictionaries(keys, st.binary(min_size=1, max_size=4), min_size=3, max_size=40), st.data())
def test_absence_of_a_member_cannot_be_proven(entries: dict[bytes, bytes], data: st.DataObject) -> None:
    trie = trie_update(None, entries)
    key = data.draw(st.sampled_from(sorted(entries)))
    other = data.draw(st.sampled_from(sorted(entries)))
    honest, foreign = trie_prove(trie, key), trie_prove(trie, other)
    forged = (
        TrieProof(honest.branches, None),
        TrieProof(honest.branches[:-1], None),
        TrieProof((), None),
        TrieProof(foreign.branches, foreign.leaf),
        TrieProof(honest.branches, foreign.leaf),
    )
    for proof in forged:
        good, value = trie_check(trie_root(trie), key, proof)
        assert not good or value == entries[key]


def test_empty_trie_proves_absence() -> None:
    assert trie_check(EMPTY_TRIE_ROOT, b"x", TrieProof((), None)) == (True, None)
    assert trie_check(bytes(32), b"x", TrieProof((), None)) == (False, None)


@pytest.mark.slow
def test_trie_against_the_plain_one_with_many_entries() -> None:
    entries = {number.to_bytes(4, "big"): number.to_bytes(4, "little") for number in range(5000)}
    trie, items = None, list(entries.items())
    for start in range(0, len(items), 170):
        trie = trie_update(trie, dict(items[start : start + 170]))
    assert trie_root(trie) == plain_trie_root(entries)
    gone = dict.fromkeys(list(entries)[::2])
    trie = trie_update(trie, gone)
    assert trie_root(trie) == plain_trie_root({k: v for k, v in entries.items() if k not in gone})
