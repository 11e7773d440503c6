"""What the chain's contracts cost: processor time per record that `execute` takes under each kind of rule (row S0-P2).

`python -m loadtest.profile_contracts` executes blocks of deliveries, each accepted by every policy in force, in one
process. The first line has no policy; the others say what their policies add to it.
"""

import hashlib
import json
import sys
import time
from typing import Any, Final

from ledger.block import Block, Header
from ledger.bundle import make_bundle
from ledger.contracts.document import policy_from_document
from ledger.contracts.policies import set_policy
from ledger.execution import Rules, execute
from ledger.genesis import Genesis, GenesisLink, GenesisNode, GenesisSae
from ledger.signatures import Ed25519Verifier
from ledger.state import State
from ledger.transactions import KeyDelivered, Transaction, encode
from loadtest.profile_records import key_block, signer_of

RECORDS: Final = 2000
ROUNDS: Final = 5
_NODES: Final = ("node-1", "node-2", "node-3")
_LINKS: Final = (("link-1-2", "node-1", "node-2"), ("link-2-3", "node-2", "node-3"), ("link-1-3", "node-1", "node-3"))
_PREDICATE: Final = {"name": "wide", "on": "delivery"}
CASES: Final[dict[str, list[dict[str, Any]]]] = {
    "no policy": [],
    "another pair's policy": [{"select": {"pairs": [["x-*", "y-*"]]}, "key_block": {"qber_max": 0.08}}],
    "limits of key blocks": [{"key_block": {"qber_max": 0.08, "secret_bits_min": 256, "security_bits_min": 30}}],
    "lifetime": [{"lifetime": {"blocks": 1_000_000}}],
    "pairs denied": [{"delivery": {"pairs_deny": [["x-*", "y-*"]]}}],
    "quota and uses": [
        {"delivery": {"quota_keys": 10**9, "quota_window_blocks": 1000, "block_uses_max": 1_000_000_000}}
    ],
    "hops and avoided nodes": [{"route": {"hops_max": 8, "avoid_nodes": ["x-*"]}}],
    "2 disjoint paths": [{"route": {"disjoint_paths_min": 2}}],
    "suspension of links": [{"suspension": {"aborts": 3, "window_blocks": 100, "clean_blocks": 2}}],
    "a predicate": [{"predicate": [_PREDICATE | {"expression": "size_bits >= 256"}]}],
    "a predicate with a loop": [{"predicate": [_PREDICATE | {"expression": "path.all(item, item != 'x')"}]}],
    "32 policies of limits": [{"key_block": {"qber_max": 0.08}}] * 32,
}
"""Name → the policies in force; all of them pass."""


class _Chain:
    """A state with a key block on each link, under the policies of one case."""

    def __init__(self, policies: list[dict[str, Any]]) -> None:
        self._genesis = Genesis(
            chain_id="profile",
            time_ns=1,
            nodes=tuple(GenesisNode(name, signer_of(name).public_key) for name in _NODES),
            links=tuple(GenesisLink(*link) for link in _LINKS),
            saes=tuple(GenesisSae(f"sae-{name}", name) for name in _NODES),
        )
        self.state, self.rules = State(self._genesis), Rules.of(self._genesis, Ed25519Verifier())
        self._sequences = dict.fromkeys(_NODES, 0)
        self._records = 0
        for link in _LINKS:
            self.execute(link[1], [key_block(self._genesis, *link)])
        self.state.begin(self.state.height + 1)
        for number, members in enumerate(policies):
            set_policy(self.state, policy_from_document({"name": f"policy-{number}", **members}))
        self.state.finish(bytes(32), bytes(32))

    def delivery(self) -> KeyDelivered:
        """Return the record of another key, over two hops."""
        self._records += 1
        key_id = hashlib.sha256(b"%d" % self._records).digest()[:16]
        hops = (("link-1-2", 0, 0, 512), ("link-2-3", 0, 0, 512))
        return KeyDelivered(key_id, "sae-node-1", "sae-node-3", 256, _NODES, hops)

    def execute(self, sender: str, records: list[Transaction]) -> float:
        """Execute a block of records; return the microseconds of processor time of each."""
        self._sequences[sender] += 1
        name = (self._genesis.chain_id, self._genesis.digest, sender, self._sequences[sender])
        bundle = make_bundle(signer_of(sender), *name, tuple(encode(record) for record in records))
        none = bytes(32)  # `execute` asks for height and time alone
        header = Header(none, self.state.height + 1, none, none, none, none, 1)
        begin_ns = time.process_time_ns()
        receipts = execute(self.state, Block(header, (bundle,)), self.rules)
        spent_ns = time.process_time_ns() - begin_ns
        refused = next((receipt.reason for receipt in receipts if not receipt.ok), None)
        assert refused is None, f"{refused}: what is refused costs less"
        return spent_ns / len(records) / 1e3


def run(records: int = RECORDS, rounds: int = ROUNDS) -> dict[str, float]:
    """Return microseconds per record by case: the fastest of all rounds, which neighbours on the machine bend least."""
    figures = {}
    for name, policies in CASES.items():
        chain = _Chain(policies)
        spent = [chain.execute("node-1", [chain.delivery() for _ in range(records)]) for _ in range(rounds)]
        figures[name] = round(min(spent), 2)
    return figures


def main() -> None:
    """Print the table, and the figures as one JSON object."""
    figures = run()
    base = figures["no policy"]
    for name, microseconds in figures.items():
        print(f"{name:26} {microseconds:8.2f} µs  {microseconds - base:+8.2f}", file=sys.stderr)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
