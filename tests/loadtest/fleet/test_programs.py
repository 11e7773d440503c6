"""The lying validator lies exactly as it says: a second vote beside every vote, and nothing else."""

import subprocess
import sys


def test_a_two_tongued_guard_contradicts_every_vote_and_nothing_else() -> None:
    """In a process of its own: `take_over` changes the process that it is called in for good."""
    code = """
from ledger.guard import Record
from ledger.validators import Validators
from ledger.votes import FRESH, NO_DIGEST, Kind
from loadtest.fleet import equivocator
import ledger.speaker, qnode.node

equivocator.take_over()
assert ledger.speaker.Guard is equivocator.TwoTonguedGuard and qnode.node.Replica is equivocator.EquivocatingReplica


class Signer:
    public_key = bytes(32)

    def sign(self, message):
        return message


class Committee:
    digest = bytes(32)


guard = equivocator.TwoTonguedGuard("liar", bytes(32), Record())
vote = guard.sign(Signer(), Committee(), Kind.VOTE, 1, 0, b"b" * 32, FRESH)
[other] = guard.unsaid
assert (other.kind, other.height, other.view, other.signer) == (vote.kind, 1, 0, "liar")
assert other.block != vote.block and other.signature != vote.signature
guard.sign(Signer(), Committee(), Kind.FINALIZE, 1, 0, b"b" * 32, FRESH)
assert len(guard.unsaid) == 1
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
