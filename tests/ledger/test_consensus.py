"""SPEC 4: the rules of one height, one by one, on the bare state machine."""

from dataclasses import dataclass, field, replace

from ledger.block import Block, Header
from ledger.consensus import (
    VIEW_WINDOW,
    Action,
    Commit,
    Consensus,
    FetchBody,
    Proposal,
    Propose,
    PullStatus,
    RefuseBlock,
    Say,
    Timing,
)
from ledger.validators import Validators
from ledger.votes import FRESH, NO_DIGEST, Certificate, Kind, Statement

NODES = ("a", "b", "c", "d")
TIMING = Timing(
    view_timeout_ns=100, finalize_timeout_ns=30, heartbeat_ns=1000, block_interval_ns=0, lost_leader_timeout_ns=10
)
HEIGHT = 4  # so that "a" leads view 0, "b" view 1, …


def block(tag: int = 1) -> Block:
    return Block(Header(bytes(32), HEIGHT, bytes(32), bytes(32), bytes(32), bytes(32), tag), ())


def said(kind: Kind, view: int, of: Block | None, signer: str, justified: int = FRESH) -> Statement:
    return Statement(kind, HEIGHT, view, of.digest if of else NO_DIGEST, justified, signer, bytes(64))


@dataclass
class Bench:
    """One machine, its clock, and what its caller does with actions."""

    node_id: str = "c"
    faults: dict[bytes, str] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    now_ns: int = 0
    timing: Timing = TIMING

    def __post_init__(self) -> None:
        self.machine = Consensus(
            height=HEIGHT,
            node_id=self.node_id,
            validators=Validators(NODES, (bytes(32),) * 4),
            timing=self.timing,
            now_ns=0,
            block_fault=lambda block, fresh: self.faults.get(block.digest) if fresh else None,
            is_lost=lambda node: node in self.lost,
        )

    def actions(self) -> list[Action]:
        """Everything due now; own statements are fed back as the replica does."""
        found: list[Action] = []
        while (action := self.machine.next_action(self.now_ns)) is not None:
            found.append(action)
            if isinstance(action, Say):
                self.machine.on_statement(
                    Statement(action.kind, HEIGHT, action.view, action.block, action.justified, self.node_id, bytes(64))
                )
        return found

    def at(self, now_ns: int) -> list[Action]:
        self.now_ns = now_ns
        return self.actions()

    def propose(self, view: int, of: Block, leader: str, justified: int = FRESH, body: bool = True) -> None:
        if body:
            self.machine.on_body(of)
        self.machine.on_proposal(Proposal(said(Kind.PROPOSE, view, of, leader, justified), of.header, ()))

    def quorum(self, kind: Kind, view: int, of: Block | None = None, signers: str = "abd", justified: int = -1) -> None:
        for signer in signers:
            self.machine.on_statement(said(kind, view, of, signer, justified))


def test_the_normal_path_is_vote_finalize_commit() -> None:
    bench, body = Bench(), block()
    assert bench.actions() == []
    bench.propose(0, body, "a")
    assert bench.actions() == [Say(Kind.VOTE, 0, body.digest, FRESH)]
    bench.quorum(Kind.VOTE, 0, body, "ab")
    assert bench.actions() == [Say(Kind.FINALIZE, 0, body.digest, FRESH)]
    bench.quorum(Kind.FINALIZE, 0, body, "ab")
    (commit,) = bench.actions()
    assert isinstance(commit, Commit) and commit.block == body
    assert bench.actions() == [] and bench.machine.next_deadline_ns() is None


def test_rule_2_the_leader_proposes_once_when_work_waits() -> None:
    bench = Bench("a")
    assert bench.actions() == []
    bench.machine.work_waiting = True
    assert bench.actions() == [Propose(0, None, FRESH)]
    assert bench.actions() == []


def test_rule_9_an_idle_leader_waits_for_the_heartbeat() -> None:
    bench = Bench("a")
    assert bench.actions() == [] and bench.machine.next_deadline_ns() == 1000
    assert bench.at(999) == []
    assert bench.at(1000) == [Propose(0, None, FRESH)]


def test_rule_9_a_leader_collects_for_an_interval_unless_a_block_is_full() -> None:
    unhurried = replace(TIMING, block_interval_ns=400)
    for node_id, at_the_end in (("a", [Propose(0, None, FRESH)]), ("c", [])):
        bench = Bench(node_id, timing=unhurried)
        bench.machine.work_waiting = True
        assert bench.at(399) == [] and bench.machine.next_deadline_ns() == 400
        assert bench.at(400) == at_the_end
        assert bench.machine.next_deadline_ns() == 500, "only now the leader is waited for"
    full = Bench("a", timing=unhurried)
    full.machine.work_waiting = full.machine.block_full = True
    assert full.actions() == [Propose(0, None, FRESH)]


def test_rule_9_followers_arm_their_timer_for_a_reason() -> None:
    idle = Bench()
    assert idle.at(900) == [] and idle.machine.next_deadline_ns() == 1000
    busy = Bench()
    busy.machine.work_waiting = True
    assert busy.actions() == [] and busy.machine.next_deadline_ns() == 100
    one = Bench()
    one.machine.on_statement(said(Kind.NULLIFY, 0, None, "a"))
    assert one.actions() == [] and one.machine.next_deadline_ns() == 1000, "f speakers are no reason"
    one.machine.on_statement(said(Kind.NULLIFY, 0, None, "b"))
    assert one.actions() == [] and one.machine.next_deadline_ns() == 100


def test_rule_5_nullify_when_the_view_timer_passes() -> None:
    bench = Bench()
    bench.propose(0, block(), "a", body=False)
    assert bench.actions() == [FetchBody(block().digest)]
    assert bench.at(99) == []
    assert bench.at(100) == [Say(Kind.NULLIFY, 0, NO_DIGEST, FRESH)]
    bench.machine.on_body(block())
    assert bench.actions() == [], "no VOTE after NULLIFY"
    assert bench.machine.next_deadline_ns() is None, "nothing to wait for but others"


def test_rule_5_no_nullify_after_finalize() -> None:
    bench, body = Bench(), block()
    bench.propose(0, body, "a")
    bench.quorum(Kind.VOTE, 0, body)
    assert Say(Kind.FINALIZE, 0, body.digest, FRESH) in bench.actions()
    assert not any(isinstance(action, Say) and action.view == 0 for action in bench.at(10_000))


def test_rule_4_no_finalize_after_nullify() -> None:
    bench, body = Bench(), block()
    bench.machine.work_waiting = True
    bench.actions()
    assert bench.at(100) == [Say(Kind.NULLIFY, 0, NO_DIGEST, FRESH)]
    bench.quorum(Kind.VOTE, 0, body)
    assert bench.actions() == [] and bench.machine.view == 1, "it leaves the notarized view at once"


def test_rule_6_a_nullification_moves_on_and_timeouts_grow() -> None:
    bench = Bench()
    bench.quorum(Kind.NULLIFY, 0)
    assert bench.actions() == [] and bench.machine.view == 1
    assert bench.machine.next_deadline_ns() == 140
    bench.quorum(Kind.NULLIFY, 5)
    bench.actions()
    assert bench.machine.view == 6


def test_rule_6_a_notarization_is_left_after_the_finalize_timer() -> None:
    bench, body = Bench("b"), block()
    bench.propose(0, body, "a")
    bench.quorum(Kind.VOTE, 0, body, "acd")
    bench.actions()
    assert bench.machine.next_deadline_ns() == 30
    assert bench.at(30) == [Propose(1, body, 0)] and bench.machine.view == 1


def test_rule_6_a_later_notarization_is_entered_and_finalized() -> None:
    bench, body = Bench(), block()
    bench.quorum(Kind.VOTE, 3, body, justified=1)
    assert bench.actions() == [Say(Kind.FINALIZE, 3, body.digest, FRESH)]
    assert bench.machine.view == 3


def test_rule_2_a_leader_reproposes_what_was_notarized() -> None:
    bench, body = Bench("c"), block()
    bench.quorum(Kind.VOTE, 0, body)
    bench.quorum(Kind.NULLIFY, 1)
    assert bench.actions() == [FetchBody(body.digest)], "it needs the body"
    bench.machine.on_body(body)
    assert bench.actions() == [Propose(2, body, 0)]


def test_rule_2_a_leader_with_a_hole_pulls() -> None:
    bench = Bench("c")
    bench.quorum(Kind.NULLIFY, 1)
    assert bench.actions() == [PullStatus()] and bench.actions() == []
    bench.quorum(Kind.NULLIFY, 0)
    assert bench.actions() == [Propose(2, None, FRESH)]


def test_rule_3_fresh_needs_every_earlier_view_nullified() -> None:
    bench, body = Bench("d"), block()
    bench.quorum(Kind.NULLIFY, 1)
    bench.propose(2, body, "c")
    assert bench.actions() == [PullStatus()]
    bench.quorum(Kind.NULLIFY, 0, signers="abc")
    assert bench.actions() == [Say(Kind.VOTE, 2, body.digest, FRESH)]


def test_rule_3_a_reproposal_needs_its_notarization_for_the_same_block() -> None:
    bench, body, other = Bench("d"), block(1), block(2)
    bench.quorum(Kind.VOTE, 0, body, "abc")
    bench.quorum(Kind.NULLIFY, 1, signers="abc")
    bench.propose(2, other, "c", justified=0)
    assert bench.actions() == [PullStatus()]
    again = Bench("d")
    again.quorum(Kind.VOTE, 0, body, "abc")
    again.quorum(Kind.NULLIFY, 1, signers="abc")
    again.propose(2, body, "c", justified=0)
    assert again.actions() == [Say(Kind.VOTE, 2, body.digest, 0)]


def test_rule_3_a_reproposal_is_not_held_against_the_clock() -> None:
    body = block()
    bench = Bench("d", faults={body.digest: "time"})
    bench.quorum(Kind.VOTE, 0, body, "abc")
    bench.quorum(Kind.NULLIFY, 1, signers="abc")
    bench.propose(2, body, "c", justified=0)
    assert bench.actions() == [Say(Kind.VOTE, 2, body.digest, 0)]


def test_rule_3_an_invalid_block_acts_as_a_timeout() -> None:
    body = block()
    bench = Bench(faults={body.digest: "bad"})
    bench.propose(0, body, "a")
    assert bench.actions() == [RefuseBlock(0, "bad"), Say(Kind.NULLIFY, 0, NO_DIGEST, FRESH)]


def test_rule_3_only_the_first_proposal_of_a_view_counts() -> None:
    bench, body, other = Bench(), block(1), block(2)
    bench.propose(0, body, "a")
    bench.propose(0, other, "a")
    assert bench.actions() == [Say(Kind.VOTE, 0, body.digest, FRESH)]


def test_rule_7_a_commit_of_any_view_ends_the_height() -> None:
    bench, body = Bench(), block()
    bench.quorum(Kind.NULLIFY, 0)
    bench.quorum(Kind.NULLIFY, 1)
    bench.actions()
    bench.quorum(Kind.FINALIZE, 0, body)
    assert bench.actions() == [FetchBody(body.digest)]
    bench.machine.on_body(body)
    assert isinstance(bench.actions()[0], Commit)


def test_votes_for_different_blocks_do_not_add_up() -> None:
    bench = Bench()
    bench.quorum(Kind.VOTE, 0, block(1), "ab")
    bench.quorum(Kind.VOTE, 0, block(2), "d")
    bench.quorum(Kind.VOTE, 0, block(1), "a")
    assert bench.actions() == [] and not bench.machine.notarizations


def test_a_certificate_counts_without_its_statements() -> None:
    bench, body = Bench(), block()
    bench.machine.on_certificate(Certificate(Kind.VOTE, HEIGHT, 0, body.digest, FRESH, b"\x0b", (bytes(64),) * 3))
    assert bench.actions() == [Say(Kind.FINALIZE, 0, body.digest, FRESH)]


def test_a_watcher_says_nothing_and_follows() -> None:
    bench, body = Bench("watcher"), block()
    bench.propose(0, body, "a")
    bench.quorum(Kind.VOTE, 0, body)
    assert bench.actions() == [] and bench.machine.next_deadline_ns() == 30
    assert bench.at(30) == [] and bench.machine.view == 1, "it leaves a notarized view like the others"
    bench.quorum(Kind.FINALIZE, 0, body)
    assert isinstance(bench.actions()[0], Commit)


def test_floods_of_views_to_come_are_not_admitted() -> None:
    machine = Bench().machine
    assert machine.admits(said(Kind.NULLIFY, VIEW_WINDOW, None, "a"))
    assert not machine.admits(said(Kind.NULLIFY, VIEW_WINDOW + 1, None, "a"))
    assert not machine.admits(said(Kind.NULLIFY, 0, None, "stranger"))


def test_a_lost_leader_is_not_waited_for() -> None:
    bench = Bench(lost={"a"})
    bench.machine.work_waiting = True
    bench.actions()
    assert bench.machine.next_deadline_ns() == 10
    late = Bench()
    late.machine.work_waiting = True
    late.actions()
    late.lost.add("a")
    late.machine.hurry(50)
    assert late.machine.next_deadline_ns() == 60


def test_a_restart_says_nothing_twice() -> None:
    bench, body = Bench(), block()
    bench.machine.on_body(body)
    bench.machine.restore(said(Kind.VOTE, 0, body, "c"))
    bench.machine.restore(said(Kind.NULLIFY, 0, None, "c"))
    bench.propose(0, body, "a")
    bench.quorum(Kind.VOTE, 0, body)
    assert bench.at(10_000) == [], "neither VOTE nor FINALIZE nor NULLIFY again"
    assert bench.machine.view == 1
