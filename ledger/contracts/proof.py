"""What a light proof shows of contracts: nothing of a delivered key is revoked, and every policy in force (SPEC 7.6).

The names here are those of the members of proof.json. An entry that must be absent is proved absent; the index of
policies says which policies must be present. Pure; the trie proofs themselves are checked by the caller. Carries
SEED_MAP S0-B3.
"""

from collections.abc import Mapping
from typing import Final

from ledger.contracts.delivery_rules import objections
from ledger.contracts.entries import PolicyEntry, PolicyIndex, Revocation
from ledger.contracts.revocation import block_subject, key_subject, node_subject
from ledger.encoding import MalformedEncoding
from ledger.state import State
from ledger.transactions import KeyDelivered

INDEX: Final = "policies in force"


def contract_keys(record: KeyDelivered, index: bytes | None) -> dict[str, bytes]:
    """Return name → key of the entries of contracts that belong to a delivery; `index` is the value of INDEX, or None.

    Raises MalformedEncoding.
    """
    keys = {INDEX: PolicyIndex.key_of()}
    keys["revocation of the key"] = Revocation.key_of(key_subject(record.key_id))
    for node_id in record.path:
        keys[f"revocation of {node_id}"] = Revocation.key_of(node_subject(node_id))
    for link_id, number, _, _ in record.hops:
        keys[f"revocation of key block {number} of {link_id}"] = Revocation.key_of(block_subject(link_id, number))
    for name in () if index is None else PolicyIndex.from_value(index).policies:
        keys[f"policy {name}"] = PolicyEntry.key_of(name)
    return keys


def revocations(values: Mapping[str, bytes | None]) -> dict[str, str]:
    """Return what is revoked, with the reason."""
    found = {name: value for name, value in values.items() if name.startswith("revocation of ") and value is not None}
    return {name.removeprefix("revocation of "): Revocation.from_value(value).reason for name, value in found.items()}


def put_policies(state: State, values: Mapping[str, bytes | None]) -> dict[str, int]:
    """Put the proven policies in force in a checker's state; returns their names and the heights that set them.

    Raises MalformedEncoding where one is missing or another's.
    """
    found: dict[str, int] = {}
    for name, value in values.items():
        if name.startswith("policy "):
            if value is None:
                raise MalformedEncoding("the index of policies names one that is not there")
            entry = PolicyEntry.from_value(value)
            state.put_entry(entry)
            found[entry.policy] = entry.height
    return found


def judge(state: State, record: KeyDelivered, height: int, time_ns: int) -> list[str]:
    """Return what the policies of a checker's state say against a delivered key at a height and time."""
    state.height, state.time_ns = height, time_ns
    return objections(state, record)
