"""The proof of one delivered key: who made it, how secret it is, that both ends signed, that nothing was revoked.

Bundles the delivery's record, the record of every key block that carried it, and what the state says of them, all
certified by quorums; a checker needs the genesis and nothing else (SPEC 7.6). The checker repeats the rules of
`execution` on the part of the state that the proof shows. Carries SEED_MAP S0-E17, S0-B1 and S0-B4.
"""

import json
import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self, TypeVar

from ledger.chain import Chain
from ledger.contracts.proof import INDEX, contract_keys, judge, put_policies, revocations
from ledger.contracts.retention import retention_blocks
from ledger.encoding import MalformedEncoding, pack, unpack, unpack_array
from ledger.execution import Rules, execute_proven
from ledger.genesis import Genesis
from ledger.light import LightClient, ProofError
from ledger.merkle import TrieProof, trie_check
from ledger.proofs import (
    Anchor,
    TransactionProof,
    prove_transaction,
    tip_anchor,
)
from ledger.set_change import SetChange, trie_from_members, trie_members
from ledger.signatures import Verifier
from ledger.state import State
from ledger.state_entries import (
    KeyState,
    NodeState,
    SaeState,
    delivery_key,
    key_block_key,
    key_block_value,
    link_key,
    public_key_key,
    sae_key,
)
from ledger.transactions import (
    KeyBlockRecorded,
    KeyDelivered,
    MalformedTransaction,
    decode,
    transaction_id,
)

Record = TypeVar("Record", KeyBlockRecorded, KeyDelivered)
FORMAT: Final = "qnode delivery proof 3"
RETIRED: Final = "is older than the retention policy lets the state keep it"
_MEMBERS: Final = (
    *("format", "chain_id", "genesis", "key_id", "delivery", "key_blocks", "anchor", "entries"),
    *("set_changes", "node_keys", "contracts"),
)


class UnknownKey(ProofError):
    """The chain has no record of this key (yet)."""


class NotYetProvable(ProofError):
    """The delivery is in the tip's block; the next header certifies the state that holds it."""


class CheckFailed(ProofError):
    """One check of a proof failed; `check` names it."""

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(f"{check}: {reason}")
        self.check = check
        self.reason = reason


@dataclass(frozen=True, slots=True)
class DeliveryProof:
    """Everything a checker needs. `key_blocks` in the order in which the hops first name them, `entries` by name.

    `set_changes` lead from the genesis' validators to those of the anchor; `node_keys` prove, under the anchor, each
    key of the delivery's nodes that came after the genesis or went. `contracts` prove what is revoked, what is not, and
    which policies were in force.
    """

    delivery: TransactionProof
    key_blocks: tuple[TransactionProof, ...]
    anchor: Anchor
    entries: Mapping[str, TrieProof]
    set_changes: tuple[SetChange, ...] = ()
    node_keys: Mapping[bytes, TrieProof] = field(default_factory=dict)
    contracts: Mapping[str, TrieProof] = field(default_factory=dict)

    def document(self, genesis: Genesis) -> dict[str, Any]:
        """Return the members of proof.json: what it is about in clear, the proofs' canonical bytes in hexadecimal."""
        record = _decoded(self.delivery, KeyDelivered)
        return {
            "format": FORMAT,
            "chain_id": genesis.chain_id,
            "genesis": genesis.digest.hex(),
            "key_id": str(uuid.UUID(bytes=record.key_id)),
            "delivery": _hexadecimal(self.delivery.members()),
            "key_blocks": [_hexadecimal(each.members()) for each in self.key_blocks],
            "anchor": _hexadecimal(self.anchor.members()),
            "entries": {name: _hexadecimal(trie_members(trie)) for name, trie in self.entries.items()},
            "set_changes": [_hexadecimal(change.members()) for change in self.set_changes],
            "contracts": {name: _hexadecimal(trie_members(trie)) for name, trie in self.contracts.items()},
            "node_keys": {key.hex(): _hexadecimal(trie_members(trie)) for key, trie in self.node_keys.items()},
        }

    @classmethod
    def from_document(cls, document: Any) -> Self:
        """Read what `document` returned; the members in clear are for the checker. Raises ProofError."""
        if type(document) is not dict or set(document) != set(_MEMBERS) or document["format"] != FORMAT:
            raise ProofError("this is not a proof that `qnode ledger prove` wrote")
        try:
            return cls(
                delivery=TransactionProof.from_members(_unpacked(document["delivery"])),
                key_blocks=tuple(TransactionProof.from_members(_unpacked(each)) for each in document["key_blocks"]),
                anchor=Anchor.from_members(_unpacked(document["anchor"])),
                entries={name: trie_from_members(_unpacked(each)) for name, each in document["entries"].items()},
                contracts={name: trie_from_members(_unpacked(each)) for name, each in document["contracts"].items()},
                set_changes=tuple(SetChange.from_members(_unpacked(each)) for each in document["set_changes"]),
                node_keys={
                    bytes.fromhex(key): trie_from_members(_unpacked(each))
                    for key, each in document["node_keys"].items()
                },
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise ProofError(f"a member is not what `qnode ledger prove` writes ({error})") from None


def _hexadecimal(members: tuple[Any, ...]) -> str:
    return pack(members).hex()


def _unpacked(text: Any) -> Any:
    return unpack(bytes.fromhex(text))


def _decoded(proof: TransactionProof, kind: type[Record]) -> Record:
    try:
        record = decode(proof.transaction)
    except MalformedTransaction as error:
        raise ProofError(f"the transaction is malformed: {error}") from None
    if not isinstance(record, kind):
        raise ProofError(f"the transaction is a {type(record).__name__}, not a {kind.__name__}")
    return record


def _entry_keys(record: KeyDelivered) -> dict[str, bytes]:
    """Return name → key of the state entries that belong to a delivery."""
    keys = {"delivery": delivery_key(record.key_id)}
    for sae_id in (record.master_sae, record.slave_sae):
        keys[f"application {sae_id}"] = sae_key(sae_id)
    for link_id, block_number, _, _ in record.hops:
        keys[f"link {link_id}"] = link_key(link_id)
        keys[_block_name(link_id, block_number)] = key_block_key(link_id, block_number)
    return keys


def _block_name(link_id: str, block_number: int) -> str:
    return f"key block {block_number} of {link_id}"


def _named_blocks(record: KeyDelivered) -> list[tuple[str, int]]:
    """Return the key blocks that the hops name, each once, in their order."""
    return list(dict.fromkeys((link_id, block_number) for link_id, block_number, _, _ in record.hops))


def prove_delivery(chain: Chain, key_id: bytes) -> DeliveryProof:
    """Make the proof of a delivered key. Reads one block per hop: some milliseconds each where blocks are full.

    Raises UnknownKey, NotYetProvable (once more when the next block is committed), ProofError.
    """
    state = chain.state
    found = state.delivery(key_id)
    if found is None:
        kept = retention_blocks(state)
        retired = "" if kept is None else f", or it is older than the {kept} heights of the retention policy"
        raise UnknownKey(f"the chain has no delivery of this key{retired}")
    height, delivery_id = found
    if height >= chain.height:
        raise NotYetProvable("the delivery is in the last block; the next one will certify it")
    delivery = prove_transaction(chain, height, delivery_id)
    record = _decoded(delivery, KeyDelivered)
    key_blocks = []
    for name in _named_blocks(record):
        block = state.key_block(*name)
        if block is None:
            raise UnknownKey(f"{_block_name(*name)}, which carried this key, {RETIRED}")
        key_blocks.append(prove_transaction(chain, block.height, block.transaction_id))
    nodes = {delivery.sender, *(each.sender for each in key_blocks)}
    for link in (state.link(hop[0]) for hop in record.hops):
        nodes.update(() if link is None else (link.transmitter, link.receiver))
    keys = [key.public_key for node_id in sorted(nodes) for key in state.keys_of(node_id)]
    anchor = tip_anchor(chain)
    known = [key for key in keys if _is_member(anchor, key, state.prove(public_key_key(key), previous=True))]
    return DeliveryProof(
        delivery=delivery,
        key_blocks=tuple(key_blocks),
        anchor=anchor,
        entries={name: state.prove(key, previous=True) for name, key in _entry_keys(record).items()},
        set_changes=tuple(change for change in chain.set_changes() if change.header.height <= chain.height),
        node_keys={key: state.prove(public_key_key(key), previous=True) for key in known},
        contracts=_prove_contracts(state, anchor, record),
    )


def _prove_contracts(state: State, anchor: Anchor, record: KeyDelivered) -> dict[str, TrieProof]:
    """Prove what is revoked or not, and the policies of the anchor's state, which is the one before the tip's block."""
    index_key = contract_keys(record, None)[INDEX]
    _, index = trie_check(anchor.header.state_root, index_key, state.prove(index_key, previous=True))
    return {name: state.prove(key, previous=True) for name, key in contract_keys(record, index).items()}


def _is_member(anchor: Anchor, public_key: bytes, trie: TrieProof) -> bool:
    """Whether the anchor's state has a key: one that the tip's own block brought is provable one block later."""
    good, value = trie_check(anchor.header.state_root, public_key_key(public_key), trie)
    return good and value is not None


# ---- checking


@dataclass(frozen=True, slots=True)
class Statement:
    """What a checked proof says. `alarmed` maps each link that stood under an alarm then to the reason."""

    key_id: str
    chain_id: str
    record: KeyDelivered
    recorded: tuple[int, int]  # height and block time in nanoseconds
    as_of: tuple[int, int]
    blocks: Mapping[tuple[str, int], KeyBlockRecorded]
    ends: Mapping[str, tuple[str, str]]  # link → (transmitter, receiver), both of which signed
    alarmed: Mapping[str, str]
    revoked: Mapping[str, str]  # what of it is revoked → the reason
    policies: Mapping[str, int]  # every policy in force then → the height that set it
    against: tuple[str, ...]  # what those policies say against the key
    checks: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the key: no alarm on a link that carried it, no revocation, no policy."""
        return not (self.alarmed or self.revoked or self.against)

    @property
    def security_millibits(self) -> int | None:
        """floor(−1000·log2 ε) of the key: its blocks' ε added up; None where no link carried it."""
        exponents = [-block.security_millibits / 1000 for block in self.blocks.values()]
        if not exponents:
            return None
        highest = max(exponents)
        return math.floor(-1000 * (highest + math.log2(sum(2 ** (each - highest) for each in exponents))))

    def document(self) -> dict[str, Any]:
        """Return a JSON-ready document."""
        record = self.record
        return {
            "ok": self.ok,
            "key_id": self.key_id,
            "chain_id": self.chain_id,
            "size_bits": record.size_bits,
            "master_sae": record.master_sae,
            "slave_sae": record.slave_sae,
            "path": list(record.path),
            "security_millibits": self.security_millibits,
            "recorded": {"height": self.recorded[0], "time_ns": self.recorded[1]},
            "as_of": {"height": self.as_of[0], "time_ns": self.as_of[1]},
            "hops": [self._hop(*hop) for hop in record.hops],
            "alarmed": dict(self.alarmed),
            "revoked": dict(self.revoked),
            "policies": dict(self.policies),
            "against": list(self.against),
            "checks": list(self.checks),
        }

    def _hop(self, link_id: str, block_number: int, offset_bits: int, size_bits: int) -> dict[str, Any]:
        block = self.blocks[link_id, block_number]
        return {
            "link_id": link_id,
            "block_number": block_number,
            "offset_bits": offset_bits,
            "size_bits": size_bits,
            "qber_ppm": block.qber_ppm,
            "secret_bits": block.secret_bits,
            "security_millibits": block.security_millibits,
            "proof": block.proof,
            "method": block.method,
            "commitment": block.commitment.hex(),
            "signed_by": list(self.ends[link_id]),
        }


def read_json(text: str) -> Any:
    """Return the document of proof.json. Raises CheckFailed."""
    with _checking("format", []):
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError):
            raise ProofError("this is not JSON; give the file that `qnode ledger prove` wrote") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member stands twice")
    return found


@contextmanager
def _checking(name: str, passed: list[str]) -> Iterator[None]:
    """Give a check its name: in `passed` when it passes, in CheckFailed when not."""
    try:
        yield
    except (ProofError, MalformedEncoding) as error:
        raise CheckFailed(name, str(error)) from None
    passed.append(name)


def check_delivery(document: Any, trust: Genesis | LightClient, verifier: Verifier | None = None) -> Statement:
    """Check proof.json with the genesis alone, and return what it says. Raises CheckFailed naming the first that fails.

    With a light client of a trusted height, nothing before that height is believed. About 60 µs a signature: a quorum
    and three more for every record.
    """
    light, passed = LightClient.of(trust, verifier), list[str]()
    genesis = light.genesis
    with _checking("format", passed):
        proof = DeliveryProof.from_document(document)
    with _checking("chain", passed):
        if (document["chain_id"], document["genesis"]) != (genesis.chain_id, genesis.digest.hex()):
            raise ProofError("the proof is of another chain; use the genesis of the chain that made it")
    if proof.set_changes:
        with _checking("changes of validators", passed):
            light.follow(proof.set_changes)
    node_keys = _check_node_keys(proof, light, passed)
    with _checking("delivery", passed):
        proof.delivery.check(light)
        record = _decoded(proof.delivery, KeyDelivered)
    with _checking("format", []):
        if json.dumps(document, sort_keys=True) != json.dumps(proof.document(genesis), sort_keys=True):
            raise ProofError("a member in clear is not what the records say")
    names = _named_blocks(record)
    with _checking("key blocks", passed):
        if len(names) != len(proof.key_blocks):
            raise ProofError("there is not one record for each block that the delivery names")
    blocks: dict[tuple[str, int], KeyBlockRecorded] = {}
    for name, each in zip(names, proof.key_blocks, strict=True):
        with _checking(_block_name(*name), passed):
            each.check(light)
            blocks[name] = _decoded(each, KeyBlockRecorded)
            if (blocks[name].link_id, blocks[name].block_number) != name:
                raise ProofError("the record is of another block")
    values = _check_entries(proof, record, light, passed)
    state = _state_with(genesis, node_keys)
    with _checking("rules of the chain", passed):
        _check_rules(proof, record, values, Rules.of(genesis, light.verifier), state)
    alarmed, ends = _links(record, values, genesis, passed)
    contracts = _check_contracts(proof, record, passed)
    with _checking("policies in force", passed):
        in_force = put_policies(state, contracts)
        against = judge(state, record, proof.anchor.header.height - 1, proof.anchor.header.time_ns)
    revoked = revocations(contracts)
    if not revoked:
        passed.append("nothing revoked")
    return Statement(
        key_id=str(uuid.UUID(bytes=record.key_id)),
        chain_id=genesis.chain_id,
        record=record,
        recorded=(proof.delivery.anchor.header.height, proof.delivery.anchor.header.time_ns),
        as_of=(proof.anchor.header.height - 1, proof.anchor.header.time_ns),
        blocks=blocks,
        ends=ends,
        alarmed=alarmed,
        revoked=revoked,
        policies=in_force,
        against=tuple(against),
        checks=tuple(passed),
    )


def _check_node_keys(proof: DeliveryProof, light: LightClient, passed: list[str]) -> list[KeyState]:
    """Return the keys of nodes that are not simply those of the genesis."""
    if not proof.node_keys:
        return []
    keys: list[KeyState] = []
    with _checking("node keys", passed):
        proof.anchor.check(light)
        keys += [light.learn_key(key, trie, proof.anchor.header) for key, trie in proof.node_keys.items()]
    return keys


def _state_with(genesis: Genesis, keys: list[KeyState]) -> State:
    """Return the state of the genesis with the nodes' keys as they were proven."""
    state = State(genesis)
    for key in sorted(keys, key=lambda each: each.first_height):
        node = state.node(key.node_id)
        if node is None:
            node = NodeState(key.node_id, key.public_key, validator=False, index=state.node_count)
        state.put_key(key)
        state.put_node(replace(node, public_key=key.public_key))
    return state


def _check_entries(
    proof: DeliveryProof, record: KeyDelivered, light: LightClient, passed: list[str]
) -> dict[str, bytes]:
    """Return the values of the state entries under the certified root; those there must be, and no others."""
    keys = _entry_keys(record)
    with _checking("anchor", passed):
        proof.anchor.check(light)
        if set(proof.entries) != set(keys):
            raise ProofError("the state entries are not those of this delivery")
    values: dict[str, bytes] = {}
    for name, key in keys.items():
        with _checking(f"state entry: {name}", passed):
            good, value = trie_check(proof.anchor.header.state_root, key, proof.entries[name])
            if not good:
                raise ProofError("the path does not lead to the certified state root")
            if value is None:
                raise ProofError("the chain's state has no such entry")
            values[name] = value
    return values


def _check_contracts(proof: DeliveryProof, record: KeyDelivered, passed: list[str]) -> dict[str, bytes | None]:
    """Return the values of the entries of contracts under the certified root, None for those proved absent."""
    root, values = proof.anchor.header.state_root, dict[str, bytes | None]()
    with _checking("contracts", passed):
        if INDEX not in proof.contracts:
            raise ProofError("the index of policies is missing")
        _, index = trie_check(root, contract_keys(record, None)[INDEX], proof.contracts[INDEX])
        keys = contract_keys(record, index)
        if set(keys) != set(proof.contracts):
            raise ProofError("these are not the contracts of this delivery")
        for name, key in keys.items():
            good, values[name] = trie_check(root, key, proof.contracts[name])
            if not good:
                raise ProofError(f"{name}: the path does not lead to the certified state root")
    return values


def _check_rules(
    proof: DeliveryProof, record: KeyDelivered, values: Mapping[str, bytes], rules: Rules, state: State
) -> None:
    """Execute the records again in a state of the genesis and the proven entries; it must end with those entries.

    A block may contain a record that the rules refused. This finds it, and checks on its own what the quorum vouches
    for: both ends' signatures on each key block, the applications' nodes, links that join the path, enough key bits.
    """
    for sae_id in (record.master_sae, record.slave_sae):
        named, node_id = unpack_array(values[f"application {sae_id}"], 2)
        state.put_sae(SaeState(named, node_id))
    # the order in which the chain accepts the blocks of one link
    by_number = sorted(proof.key_blocks, key=lambda each: _decoded(each, KeyBlockRecorded).block_number)
    for each in (*by_number, proof.delivery):
        header = each.anchor.header
        receipt = execute_proven(state, rules, header.height, header.time_ns, each.sender, each.transaction)
        if not receipt.ok:
            raise ProofError(receipt.reason)
    for name in _named_blocks(record):
        block = state.key_block(*name)
        if block is None or key_block_value(block) != values[_block_name(*name)]:
            raise ProofError(f"the record of {_block_name(*name)} is not the one that the chain accepted")
    height, delivery = proof.delivery.anchor.header.height, transaction_id(proof.delivery.transaction)
    if unpack(values["delivery"]) != (height, delivery):
        raise ProofError("the delivery's record is not the one that the chain accepted")


def _links(
    record: KeyDelivered, values: Mapping[str, bytes], genesis: Genesis, passed: list[str]
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Return the links under an alarm with its reason, and the ends of every link."""
    known = {link.link_id: (link.transmitter, link.receiver) for link in genesis.links}
    alarmed: dict[str, str] = {}
    ends: dict[str, tuple[str, str]] = {}
    for link_id in dict.fromkeys(hop[0] for hop in record.hops):
        with _checking(f"ends of {link_id}", passed):
            named, transmitter, receiver, under_alarm, reason, *_ = unpack_array(values[f"link {link_id}"], 10)
            if named != link_id or known.get(link_id) != (transmitter, receiver):
                raise ProofError("the state has other ends than the genesis")
        ends[link_id] = (transmitter, receiver)
        if under_alarm:
            alarmed[link_id] = reason
        else:
            passed.append(f"no alarm on {link_id}")
    return alarmed, ends
