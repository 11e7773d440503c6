"""A BB84 session: one block from light to secret key, Alice's and Bob's side (SPEC parts 1 and 2).

Decides what is sent when, what is checked, and why a block ends without a key (rows S0-E1, S0-E12, S0-E6, S0-E16).
Does not decide how frames travel, where keys are kept or what the chain records: outputs say what happened, and the
daemon's link acts on them. Each side is one straight-line script; `start`, `receive`, `receive_light` and `sign_off`
feed it and return its outputs. No method raises for anything that the peer or the channel did.
"""

from protocol.session.alice import AliceSession
from protocol.session.bob import BobSession
from protocol.session.steps import (
    COMMITMENT_BYTES,
    PROBED,
    BlockDistilled,
    DistilledBlock,
    Output,
    PeerSigned,
    SendLight,
    SendMessage,
    SessionAborted,
    SessionParameters,
)

__all__ = [
    "COMMITMENT_BYTES",
    "PROBED",
    "AliceSession",
    "BlockDistilled",
    "BobSession",
    "DistilledBlock",
    "Output",
    "PeerSigned",
    "SendLight",
    "SendMessage",
    "SessionAborted",
    "SessionParameters",
]
