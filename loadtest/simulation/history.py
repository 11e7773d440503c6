"""What an outsider finds at the end of a run: every block executed again, and a light client with the genesis alone.

Invariants 11, 18 and 19 over the whole history, whatever nodes have pruned meanwhile.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ledger.block import Block
from ledger.chain import Chain
from ledger.execution import Rules
from ledger.light import LightClient, ProofError
from ledger.proofs import prove_transaction
from ledger.set_change import SetChange
from ledger.state_entries import public_key_key
from ledger.votes import Certificate
from loadtest.simulation.checkers import Checkers, Violation
from loadtest.simulation.churn import NEW_PROGRAM
from loadtest.simulation.world import SimulatedNode, World

HEIGHTS_DRAWN = 12
"""Heights that the light client is asked about, besides the first and the last."""
OLD_SETS_DRAWN = 3
"""Changes of the set before which it is stopped, each a walk of its own from the genesis."""


def check_history(world: World, checkers: Checkers, nodes: list[SimulatedNode]) -> None:
    """Raise Violation unless all that was committed executes to the states that nodes had, and is provable."""
    chain = Chain(world.genesis, Rules.of(world.genesis, world.verifier, NEW_PROGRAM), None)
    last_height = max(checkers.committed, default=0)
    known_keys: list[bytes] = []
    for height in range(1, last_height + 1):
        block, certificate = checkers.blocks[height]
        known_keys = [key.public_key for key in chain.state.all_keys()]
        fault = chain.certificate_fault(block, certificate) or chain.block_fault(block)
        _require(fault is None, 10, f"block {height}, executed again: {fault}")
        chain.append(block, certificate)
        _require(chain.state.root == checkers.state_roots.get(height, chain.state.root), 18, f"block {height} differs")
        following = chain.state.validators_after().digest
        _require(following == checkers.members.set_digest(height + 2), 11, f"the set of height {height + 2} differs")
    changes = chain.set_changes()
    for node in nodes:
        assert node.replica is not None
        own = [  # a restarted node may have a block on its disk that it had told nobody of
            change.encoded for change in node.replica.chain.set_changes() if change.header.height <= last_height
        ]
        whole = [change.encoded for change in changes if change.header.height <= node.replica.height]
        _require(_headers(own) == _headers(whole), 19, f"{node.node_id} proves other changes of the validator set")
    if last_height:
        _check_light(world, checkers, chain, nodes, known_keys)


def _headers(rows: list[bytes]) -> list[bytes]:
    """Certificates of one block may have other signers; the header and the path are the same everywhere."""
    return [SetChange.decode(row).header.digest for row in rows]


def _check_light(
    world: World, checkers: Checkers, chain: Chain, nodes: list[SimulatedNode], known_keys: list[bytes]
) -> None:
    generator = random.Random(f"{world.seed}/light")
    replicas = [node.replica for node in nodes if node.replica is not None]
    teller = max(replicas, key=lambda replica: (replica.height, generator.random()))
    changes = [change for change in teller.chain.set_changes() if change.header.height < chain.height]
    light = LightClient(world.genesis, world.verifier)
    _accepts(lambda: light.follow(changes), "the changes of the validator set")
    drawn = {1, chain.height, *(generator.randint(1, chain.height) for _ in range(HEIGHTS_DRAWN))}
    tip, _ = checkers.blocks[chain.height]
    for key in known_keys:
        light.learn_key(key, chain.state.prove(public_key_key(key), previous=True), tip.header)
    _check_old_sets(world, checkers, changes, generator)
    for height in sorted(drawn):
        block, certificate = checkers.blocks[height]
        _check_height(light, block, certificate)
        if block.bundles:
            _check_transaction(light, chain, block, generator)


def _check_height(light: LightClient, block: Block, certificate: Certificate) -> None:
    header = block.header
    _accepts(lambda: light.check(header, certificate), f"block {header.height}")
    other = replace(header, time_ns=header.time_ns + 1)
    _refuses(lambda: light.check(other, certificate), f"another block {header.height} with the certificate of the true")
    forged = replace(certificate, block=other.digest)
    _refuses(lambda: light.check(other, forged), f"another block {header.height} with signatures of the true one")
    few = replace(certificate, signatures=certificate.signatures[:-1])
    _refuses(lambda: light.check(header, few), f"block {header.height} with a signature less")


def _check_old_sets(world: World, checkers: Checkers, light_changes: list[SetChange], generator: random.Random) -> None:
    """Who has not heard of the set of a height believes nothing of it."""
    known = {checkers.members.set_digest(1)}
    news: list[int] = []
    for index, change in enumerate(light_changes):
        following = change.following()
        if following is not None and following.digest not in known:
            known.add(following.digest)
            news.append(index)
    for index in generator.sample(news, min(len(news), OLD_SETS_DRAWN)):
        client = LightClient(world.genesis, world.verifier)
        client.follow(light_changes[:index])
        change = light_changes[index]
        few = replace(change.certificate, signatures=change.certificate.signatures[:-1])
        _refuses(partial(client.follow, [replace(change, certificate=few)]), "a change that a quorum did not sign")
        other = replace(change.header, time_ns=change.header.time_ns + 1)
        _refuses(partial(client.follow, [replace(change, header=other)]), "a change that was never committed")
        block, certificate = checkers.blocks[change.header.height + 1]
        _refuses(partial(client.check, block.header, certificate), f"block {block.height} under an unknown set")


def _check_transaction(light: LightClient, chain: Chain, block: Block, generator: random.Random) -> None:
    bundle = generator.choice(block.bundles)
    wanted = generator.choice(bundle.transaction_ids)
    proof = prove_transaction(chain, block.height, wanted)
    _accepts(lambda: proof.check(light), f"a transaction of block {block.height}")
    never = replace(proof, transaction=proof.transaction + b"\0")
    _refuses(lambda: never.check(light), "a transaction that was never committed")
    of_other = replace(proof, sender="nobody")
    _refuses(lambda: of_other.check(light), "a transaction under another sender's name")


def _accepts(check: Callable[[], object], what: str) -> None:
    try:
        check()
    except ProofError as error:
        raise Violation(f"invariant 19: the light client refuses {what}: {error}") from None


def _refuses(check: Callable[[], object], what: str) -> None:
    try:
        check()
    except ProofError:
        return
    raise Violation(f"invariant 19: the light client accepts {what}")


def _require(condition: bool, invariant: int, text: str) -> None:
    if not condition:
        raise Violation(f"invariant {invariant}: {text}")
