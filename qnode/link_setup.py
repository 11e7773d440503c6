"""What a link is given: how it is built, and what all links of a node share. Decides nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ledger.genesis import Genesis
from ledger.signatures import Signer, Verifier
from protocol.quantum.link import LinkParameters
from protocol.session import SessionParameters
from qnode.context import Context
from qnode.keystore import KeyStore
from qnode.rules import ChainRules
from qnode.vault import Vault


@dataclass(frozen=True, slots=True)
class LinkConfiguration:
    """One link as this node must know it; built by the shell from settings and genesis."""

    link_id: str
    transmitter: str
    receiver: str
    parameters: LinkParameters
    session: SessionParameters
    block_pulses: int
    pool_target_bits: int
    pre_shared_secret: bytes = field(repr=False)
    probe_interval_ns: int = 10_000_000_000  # a link whose pool is full still measures its error rate this often
    start_spread_ns: int = 0  # the first session begins at a moment drawn from so long


@dataclass(frozen=True, slots=True)
class LinkServices:
    """What every link of a node shares."""

    context: Context
    keys: KeyStore
    genesis: Genesis
    signer: Signer
    verifier: Verifier
    vault: Vault
    physics: Callable[[str], np.random.Generator]
    is_alarmed: Callable[[str], bool]
    rules: ChainRules
    record_keys: Callable[[str], list[bytes]]  # of a node: what its signature inside a record may be of
