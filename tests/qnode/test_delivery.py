"""Who may get which key: the answers of ETSI GS QKD 014 with their texts, and no way to learn what others have."""

import uuid
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnode.delivery import NOT_FOUND
from qnode.inputs import GetKeys, GetKeysWithIds, GetStatus, KeysAnswer, RequestError, StatusAnswer
from tests.qnode.virtual import LIMITS, RelayNet, ring

STRANGER = "is not an SAE of node-1: ask the KME that serves it"


def net() -> RelayNet:
    return RelayNet(ring(4), block_bytes=40_000)


def keys_at_master(cluster: RelayNet, number: int = 1) -> tuple[str, ...]:
    answer = cluster.ask("node-1", GetKeys("sae-1", "sae-3", number))
    assert isinstance(answer, KeysAnswer)
    return tuple(key.key_id for key in answer.keys)


# ---- status


def test_status_names_both_ends_and_the_limits() -> None:
    answer = net().ask("node-1", GetStatus("sae-1", "sae-3"))
    assert answer == StatusAnswer(
        source_kme_id="node-1",
        target_kme_id="node-3",
        master_sae_id="sae-1",
        slave_sae_id="sae-3",
        key_size_bits=256,
        stored_key_count=20_000 // 64,
        max_key_count=LIMITS.max_key_count,
        max_key_per_request=128,
        max_key_size_bits=8192,
        min_key_size_bits=64,
        max_sae_id_count=0,
    )


def test_status_counts_no_more_than_the_limit() -> None:
    cluster = net()
    delivery = cluster.nodes["node-1"].delivery
    delivery._limits = replace(LIMITS, max_key_count=10)
    answer = cluster.ask("node-1", GetStatus("sae-1", "sae-2"))
    assert isinstance(answer, StatusAnswer) and answer.stored_key_count == 10


# ---- the texts of refusals


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        (GetStatus("sae-2", "sae-3"), 401, STRANGER),
        (GetStatus("nobody", "sae-3"), 401, STRANGER),
        (GetStatus("", "sae-3"), 401, STRANGER),
        (GetStatus("sae-1", "nobody"), 400, "slave_SAE_ID 'nobody' is not known in this network"),
        (GetStatus("sae-1", "sae-1"), 400, "served by this same KME: no quantum link joins them"),
        (GetKeys("sae-2", "sae-3"), 401, STRANGER),
        (GetKeys("nobody", "sae-3"), 401, STRANGER),
        (GetKeys("sae-1", "nobody"), 400, "slave_SAE_ID 'nobody' is not known in this network"),
        (GetKeys("sae-1", "sae-1"), 400, "served by this same KME"),
        (GetKeys("sae-1", "sae-3", 0), 400, "number shall be from 1 to 128"),
        (GetKeys("sae-1", "sae-3", -1), 400, "number shall be from 1 to 128"),
        (GetKeys("sae-1", "sae-3", 129), 400, "number shall be from 1 to 128"),
        (GetKeys("sae-1", "sae-3", 1, 0), 400, "size shall be from 64 to 8192 bits"),
        (GetKeys("sae-1", "sae-3", 1, -8), 400, "size shall be from 64 to 8192 bits"),
        (GetKeys("sae-1", "sae-3", 1, 56), 400, "size shall be from 64 to 8192 bits"),
        (GetKeys("sae-1", "sae-3", 1, 8200), 400, "size shall be from 64 to 8192 bits"),
        (GetKeys("sae-1", "sae-3", 1, 257), 400, "size shall be a multiple of 8"),
        (GetKeys("sae-1", "sae-3", 1, 256, ("sae-2",)), 400, "additional_slave_SAE_IDs"),
        (GetKeysWithIds("sae-2", "sae-1", (str(uuid.UUID(int=1)),)), 401, STRANGER),
        (GetKeysWithIds("nobody", "sae-3", (str(uuid.UUID(int=1)),)), 401, STRANGER),
        (GetKeysWithIds("sae-1", "sae-3", ()), 400, "key_IDs shall hold from 1 to 128 IDs"),
        (GetKeysWithIds("sae-1", "sae-3", ("x",) * 129), 400, "key_IDs shall hold from 1 to 128 IDs"),
        (GetKeysWithIds("sae-1", "sae-3", ("no-uuid",)), 400, NOT_FOUND.message),
        (GetKeysWithIds("sae-1", "sae-3", ("",)), 400, NOT_FOUND.message),
        (GetKeysWithIds("sae-1", "sae-3", (str(uuid.UUID(int=1)),)), 400, NOT_FOUND.message),
        (GetKeysWithIds("sae-1", "nobody", (str(uuid.UUID(int=1)),)), 400, NOT_FOUND.message),
    ],
    ids=str,
)
def test_refusals_say_what_is_wrong(request_: object, status: int, text: str) -> None:
    cluster = net()
    answer = cluster.ask("node-1", request_)
    assert isinstance(answer, RequestError)
    assert answer.status == status and text in answer.message
    figures = cluster.nodes["node-1"].delivery.figures
    assert figures.requests_refused == 1
    assert figures.keys_delivered_as_master == figures.keys_delivered_as_slave == 0
    assert not cluster.seen and not cluster.recorded, "a refusal costs no key and no message"


def test_too_little_key_is_503_and_says_what_to_do() -> None:
    cluster = RelayNet(ring(4), block_bytes=100)
    answer = cluster.ask("node-1", GetKeys("sae-1", "sae-2", 10))
    assert isinstance(answer, RequestError) and answer.status == 503
    assert "not enough key" in answer.message and "try again when the link has made more" in answer.message
    assert cluster.nodes["node-1"].keys.available_bytes("link-1-2") == 50, "and takes none"


# ---- once, to those it was made for


def test_a_key_is_handed_to_the_slave_once() -> None:
    cluster = net()
    ids = keys_at_master(cluster, 2)
    request = GetKeysWithIds("sae-3", "sae-1", ids)
    assert isinstance(cluster.ask("node-3", request), KeysAnswer)
    assert cluster.ask("node-3", request) == NOT_FOUND
    assert not cluster.nodes["node-3"].disk["key.held"]
    figures = cluster.nodes["node-3"].delivery.figures
    assert figures.keys_delivered_as_slave == 2


def test_all_keys_of_a_request_or_none() -> None:
    cluster = net()
    ids = keys_at_master(cluster, 2)
    wrong = str(uuid.UUID(int=7))
    for bad in ((ids[0], wrong), (ids[0], ids[0]), (ids[0], "?")):
        assert cluster.ask("node-3", GetKeysWithIds("sae-3", "sae-1", bad)) == NOT_FOUND
    assert isinstance(cluster.ask("node-3", GetKeysWithIds("sae-3", "sae-1", ids)), KeysAnswer)


def test_a_key_of_others_and_a_key_that_never_was_look_the_same() -> None:
    """No oracle: same status, same text, same figures, whatever exists."""
    cluster = net()
    cluster.chain._saes["sae-3b"] = replace(cluster.chain._saes["sae-3"], sae_id="sae-3b")
    (existing,) = keys_at_master(cluster)
    never = str(uuid.UUID(int=9, version=4))
    answers = {
        str(cluster.ask("node-3", GetKeysWithIds(caller, master, (key,))))
        for caller, master in (("sae-3b", "sae-1"), ("sae-3", "sae-2"), ("sae-3b", "sae-3"), ("sae-3", "sae-3"))
        for key in (existing, never)
    }
    assert answers == {str(NOT_FOUND)}
    assert existing not in NOT_FOUND.message
    assert isinstance(cluster.ask("node-3", GetKeysWithIds("sae-3", "sae-1", (existing,))), KeysAnswer)


def test_the_master_cannot_fetch_the_key_again_and_no_other_node_has_it() -> None:
    cluster = net()
    ids = keys_at_master(cluster)
    assert cluster.ask("node-1", GetKeysWithIds("sae-1", "sae-1", ids)) == NOT_FOUND
    assert cluster.ask("node-2", GetKeysWithIds("sae-2", "sae-1", ids)) == NOT_FOUND
    assert all(not node.disk.get("key.held") for name, node in cluster.nodes.items() if name != "node-3")


def test_key_ids_are_fresh_random_uuids_and_any_spelling_of_them_is_known() -> None:
    cluster = net()
    ids = keys_at_master(cluster, 64)
    assert len(set(ids)) == 64
    assert all(uuid.UUID(key_id).version == 4 and str(uuid.UUID(key_id)) == key_id for key_id in ids)
    answer = cluster.ask("node-3", GetKeysWithIds("sae-3", "sae-1", (ids[0].upper(), "{" + ids[1] + "}")))
    assert isinstance(answer, KeysAnswer) and [key.key_id for key in answer.keys] == [ids[0], ids[1]]


def test_answers_do_not_show_their_keys() -> None:
    answer = net().ask("node-1", GetKeys("sae-1", "sae-3"))
    assert isinstance(answer, KeysAnswer)
    secret = answer.keys[0].key.reveal()
    assert secret.hex() not in str(answer) and repr(secret)[2:-1] not in repr(answer) and "redacted" in repr(answer)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["sae-1", "sae-2", "sae-9", "", "sae-1\0", "é" * 300]),
    st.sampled_from(["sae-1", "sae-3", "sae-9", "", "../keys", "sae-3 "]),
    st.integers(-5, 200),
    st.none() | st.integers(-100, 10_000),
    st.lists(st.text(max_size=40), max_size=3).map(tuple),
)
def test_any_request_is_answered(
    caller: str, other: str, number: int, size_bits: int | None, texts: tuple[str, ...]
) -> None:
    cluster = net()
    for request in (
        GetStatus(caller, other),
        GetKeys(caller, other, number, size_bits, texts[:1]),
        GetKeysWithIds(caller, other, texts),
    ):
        answer = cluster.ask("node-1", request)
        assert isinstance(answer, StatusAnswer | KeysAnswer | RequestError)
        if not isinstance(answer, RequestError):
            assert caller == "sae-1" and other == "sae-3"
