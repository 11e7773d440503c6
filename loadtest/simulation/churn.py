"""Who comes, goes and changes during a run, drawn from its seed: members, validators, keys, versions of the program.

Honest validators propose and approve through the chain, while everything else goes wrong. What is proposed never lets
the liars among those who vote exceed what the protocol bears, in whatever order and number the decisions arrive.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ledger.block import VERSIONS
from ledger.contracts.actions import Action, encode_action
from ledger.contracts.membership import (
    ACTIVATION_HEIGHTS_MIN,
    ActivateVersion,
    AdmitNode,
    LiftSuspension,
    RemoveNode,
    SetValidator,
)
from ledger.genesis import GenesisParameters
from ledger.transactions import GovernanceApproved, GovernanceProposed, KeyRotated, Transaction, encode, transaction_id
from loadtest.simulation.faults import FaultPlan, Faults, connects
from loadtest.simulation.members import Member, Members
from loadtest.simulation.network import MS
from loadtest.simulation.world import SimulatedNode, World

NEXT_VERSION = max(VERSIONS) + 1
NEW_PROGRAM = VERSIONS | {NEXT_VERSION}
EXPIRY_HEIGHTS = 100_000
"""Longer than any run: what is decided late is decided nevertheless."""
Submit = Callable[[SimulatedNode, tuple[Transaction, ...]], None]


@dataclass(frozen=True)
class ChurnDraw:
    """What is settled before a world is made."""

    spares: int
    parameters: GenesisParameters
    mixed_versions: bool

    @classmethod
    def of(cls, seed: int, plan: FaultPlan, validators: int) -> "ChurnDraw":
        """Draw spare machines, a committee smaller than the validators now and then, and whether programs differ."""
        if not plan.churn:
            return cls(0, GenesisParameters(), False)
        generator = random.Random(f"{seed}/churn/draw")
        spares, small, mixed = generator.randint(0, 2), generator.random() < 0.3, generator.random() < 0.2
        if small and validators > 4:
            committee_max, epoch_heights = generator.randint(4, validators - 1), generator.randint(3, 12)
            parameters = GenesisParameters(committee_max=committee_max, epoch_heights=epoch_heights)
            return cls(spares, parameters, mixed)
        return cls(spares, GenesisParameters(), mixed)


@dataclass(frozen=True)
class Ballot:
    """A proposal that is under way."""

    node: SimulatedNode
    record: GovernanceProposed

    @property
    def proposal_id(self) -> bytes:
        """The name under which it is approved."""
        return transaction_id(encode(self.record))


class Churn:
    """See the module. `members` is the checkers' account of who is who; `submit` gives a node records of its own."""

    def __init__(
        self, world: World, plan: FaultPlan, faults: Faults, members: Members, draw: ChurnDraw, submit: Submit
    ) -> None:
        self.rotations = 0
        self._world = world
        self._faults = faults
        self._members = members
        self._submit = submit
        self._random = random.Random(f"{world.seed}/churn")
        self._ballots: list[Ballot] = []
        self._rotated: set[str] = set()
        self._keyless: set[str] = set()
        self._mixed_versions = draw.mixed_versions
        self._healed = False
        if not plan.churn:
            return
        for name in world.spare_ids:
            world.at(int(self._random.random() * plan.duration_ns), self._start, world.nodes[name])
        if draw.mixed_versions:
            self._choose_programs()
        self._tick()
        for _ in range(2):
            world.at(int(self._random.random() * plan.duration_ns), self._rotate)

    # ---- decisions

    def _tick(self) -> None:
        """Push what is under way, or start something new."""
        if self._healed:
            return
        self._ballots = [ballot for ballot in self._ballots if not self._is_decided(ballot)]
        if self._ballots:
            self._push()
        elif self._mixed_versions and self._members.activation_height is None:
            height = self._members.height + ACTIVATION_HEIGHTS_MIN + 20
            self._propose([ActivateVersion(NEXT_VERSION, height)])
        else:
            self._propose(self._bearable(self._draw_actions()))
        self._world.after(int(self._random.expovariate(1 / (400 * MS))), self._tick)

    def _is_decided(self, ballot: Ballot) -> bool:
        known = self._members.ballots.get(ballot.proposal_id)
        return known is not None and known.decided

    def _voters(self) -> list[Member]:
        return [member for member in self._members.now.values() if member.may_vote]

    def _deciders(self) -> list[SimulatedNode]:
        """The honest nodes that run, decide, and know what they would decide on."""
        nodes = [self._world.nodes[member.node_id] for member in self._voters()]
        able = VERSIONS if not self._mixed_versions else NEW_PROGRAM
        return [node for node in nodes if node.is_up and not node.byzantine and able <= node.versions]

    def _draw_actions(self) -> list[Action]:
        """Draw what is to be decided at once: one thing, or more than may be faulty."""
        possible: list[Action] = []
        for name in self._world.spare_ids:
            if name not in self._members.now:
                key = self._world.nodes[name].signer.public_key
                possible.append(AdmitNode(name, key, self._random.randint(0, 1)))
        for member in self._members.now.values():
            if member.removed:
                continue
            if member.suspended:
                possible.append(LiftSuspension(member.node_id))
            possible.append(SetValidator(member.node_id, int(not member.validator)))
            if member.node_id in self._world.spare_ids and self._random.random() < 0.2:
                possible.append(RemoveNode(member.node_id, "churn"))
        faulty_max = (len(self._voters()) - 1) // 3
        count = self._random.choice((1, 1, 2, faulty_max + 1, faulty_max + 2))
        return self._random.sample(possible, min(count, len(possible)))

    def _bearable(self, actions: list[Action]) -> list[Action]:
        """Leave away what could let liars prevail, if only some of it is executed."""
        actions = list(actions)
        while actions and not self._bears(actions):
            actions.pop()
        return actions

    def _bears(self, actions: Iterable[Action]) -> bool:
        nodes = self._world.nodes
        voters = {member.node_id for member in self._voters()}
        liars = {name for name in voters if nodes[name].byzantine}
        honest = voters - liars
        for action in actions:
            match action:
                case SetValidator(node_id, 0) | RemoveNode(node_id, _):
                    honest.discard(node_id)
                case SetValidator(node_id, 1) | LiftSuspension(node_id) if nodes[node_id].byzantine:
                    liars.add(node_id)
        count = min(len(honest) + len(liars), self._world.genesis.parameters.committee_max)
        return 3 * len(liars) < count

    def _propose(self, actions: Sequence[Action]) -> None:
        deciders = self._deciders()
        if not deciders or not actions:
            return
        proposer = self._random.choice(deciders)
        expiry_height = self._members.height + EXPIRY_HEIGHTS + self._random.randrange(1_000_000 - EXPIRY_HEIGHTS) // 2
        records = [GovernanceProposed(proposer.node_id, encode_action(each), expiry_height) for each in actions]
        self._ballots = [Ballot(proposer, record) for record in records]
        self._world.note(f"{proposer.node_id} proposes {', '.join(str(action) for action in actions)}")
        self._submit(proposer, tuple(records))

    def _push(self) -> None:
        """Let some approve what they have not approved, and a proposer say again what never arrived."""
        for ballot in self._ballots:
            known = self._members.ballots.get(ballot.proposal_id)
            if known is None:
                if ballot.node.is_up and self._random.random() < 0.2:
                    self._submit(ballot.node, (ballot.record,))
                continue
            for node in self._deciders():
                if node.node_id not in known.approvals and self._random.random() < 0.6:
                    self._submit(node, (GovernanceApproved(ballot.proposal_id, node.node_id),))

    # ---- machines, keys and programs

    def _start(self, node: SimulatedNode) -> None:
        if not node.is_up:
            self._world.note(f"{node.node_id} joins")
            node.start()

    def _rotate(self) -> None:
        """Give new keys to some at once, now and then without the machine having them."""
        world, members = self._world, self._members.now
        able = [n for n in self._faults.honest if n.is_up and n.node_id in members and n.node_id not in self._rotated]
        count = self._random.choice((1, (len(self._voters()) - 1) // 3 + 1))
        for node in self._random.sample(able, min(count, len(able))):
            new = world.next_signers[node.node_id]
            old_key = members[node.node_id].public_key
            expiry_height = self._members.height + EXPIRY_HEIGHTS
            record = KeyRotated(node.node_id, old_key, new.public_key, b"", expiry_height, bytes(64), bytes(64))
            message = record.signing_bytes(world.genesis.chain_id, world.genesis.digest)
            record = replace(record, old_signature=node.signer.sign(message), new_signature=new.sign(message))
            self._rotated.add(node.node_id)
            self.rotations += 1
            keyless = self._random.random() < 0.3
            world.note(f"{node.node_id} rotates its key{', and does not have it' if keyless else ''}")
            if keyless:
                self._keyless.add(node.node_id)
            else:
                node.keys.add(new)
            self._submit(node, (record,))

    def _choose_programs(self) -> None:
        """Some honest nodes have the old program: no more than a quorum can do without, and any of the spares."""
        world = self._world
        voters = {member.node_id for member in self._members.voting(1)}
        liars = sum(1 for name in voters if world.nodes[name].byzantine)
        honest = [node for node in self._faults.honest if node.node_id in voters]
        spared = max(0, (len(voters) - 1) // 3 - liars)
        old = {node.node_id for node in self._random.sample(honest, min(spared, len(honest)))}
        old |= {name for name in world.node_ids if name not in voters and self._random.random() < 0.5}
        for node in world.nodes.values():
            node.versions = VERSIONS if node.node_id in old else NEW_PROGRAM
        for twin in world.twins.values():
            twin.versions = NEW_PROGRAM

    @property
    def old_programs(self) -> list[SimulatedNode]:
        """The honest nodes whose program does not know the version to come."""
        if not self._mixed_versions:
            return []
        return [node for node in self._faults.honest if not node.versions >= NEW_PROGRAM]

    def goes_on_without_old_programs(self) -> bool:
        """Whether, after healing, the others are a quorum of those who vote, and reach each other."""
        voting = self._members.voting(self._members.height + 2)
        nodes = [self._world.nodes[member.node_id] for member in voting]
        lost = sum(1 for node in nodes if node.byzantine or not node.versions >= NEW_PROGRAM)
        others = {node.node_id for node in self._faults.honest if node.versions >= NEW_PROGRAM}
        return 3 * lost < len(voting) and connects(self._world.network, others)

    def heal(self) -> None:
        """Start nothing new; give every machine the key that it lacks."""
        self._healed = True
        for name in sorted(self._keyless):
            node = self._world.nodes[name]
            node.keys.add(self._world.next_signers[name])
            self._restart(node)

    def upgrade(self) -> None:
        """Install the new program everywhere."""
        for node in self.old_programs:
            node.versions = NEW_PROGRAM
            self._restart(node)

    def _restart(self, node: SimulatedNode) -> None:
        if node.is_up:
            node.crash()
        node.start()
