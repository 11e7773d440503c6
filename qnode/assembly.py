"""Builds a node's setup from its settings and the files that they name. Wiring only; belongs to the shell."""

import random
import secrets
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ed25519

from ledger.genesis import Genesis, GenesisLink
from ledger.identity import OwnKeys
from ledger.mempool import MempoolSettings
from ledger.replica import ReplicaSettings
from ledger.signatures import Ed25519Verifier
from protocol.entropy import Entropy
from protocol.parameters import ParameterError
from protocol.quantum.link import LinkParameters
from protocol.session import SessionParameters
from qnode.delivery import DeliveryLimits
from qnode.io.certificates import load_private_key
from qnode.io.configuration import read_file
from qnode.io.identities import load_identities
from qnode.link_setup import LinkConfiguration
from qnode.node import NodeSetup
from qnode.settings import LinkSettings, NodeSettings, PoolSettings, SettingsError

PRE_SHARED_BYTES_MIN = 4096
"""Below this the first two or three sessions would use the secret up before the link makes its own."""


def node_setup(settings: NodeSettings, genesis: Genesis, entropy: Entropy) -> NodeSetup:
    """Return what the node core needs.

    Raises SettingsError, CertificateError when files are missing, contradict the genesis, or hold bad parameters.
    """
    seed = _identity_seed(settings, genesis)
    joined = [x for x in genesis.links if settings.node_id in (x.transmitter, x.receiver)]
    known = {link.link_id for link in joined}
    for link in settings.links:
        if link.link_id not in known:
            raise SettingsError(f"[link.{link.link_id}]: the genesis has no such link at {settings.node_id}; remove it")
    pool = settings.pool
    return NodeSetup(
        node_id=settings.node_id,
        genesis=genesis,
        identity_seed=seed,
        keys=_own_keys(settings, genesis),
        verifier=Ed25519Verifier(),
        entropy=entropy,
        jitter=random.Random(secrets.randbits(64)),
        physics=_physics(settings.seed),
        links=tuple(_link(link, settings.link(link.link_id), pool) for link in joined),
        limits=DeliveryLimits(
            default_key_size_bits=pool.default_key_size_bits,
            min_key_size_bits=pool.min_key_size_bits,
            max_key_size_bits=pool.max_key_size_bits,
            max_key_per_request=pool.max_key_per_request,
            max_key_count=pool.max_key_count,
        ),
        replica=ReplicaSettings(
            snapshot_interval=settings.ledger.snapshot_interval,
            snapshot_distance=settings.ledger.snapshot_distance,
            keep_blocks=settings.ledger.keep_blocks,
            block_interval_ns=int(settings.ledger.block_interval_s * 1e9),
            decision_spread_ns=int(settings.ledger.decision_spread_s * 1e9),
            anti_entropy_ns=int(settings.ledger.status_interval_s * 1e9),
            view_timeout_min_ns=int(settings.ledger.view_timeout_s * 1e9),
            finalize_timeout_ns=int(settings.ledger.finalize_timeout_s * 1e9),
            mempool=MempoolSettings(
                sender_bundles_max=settings.ledger.mempool_sender_bundles,
                size_bytes_max=settings.ledger.mempool_mib << 20,
                age_heights_max=settings.ledger.mempool_age_blocks,
                block_fill_transactions=settings.ledger.block_records,
            ),
        ),
        delivery_patience_ns=int(settings.ledger.delivery_patience_s * 1e9),
    )


def _own_keys(settings: NodeSettings, genesis: Genesis) -> OwnKeys:
    seeds = [identity.seed for identity in load_identities(settings)]
    return OwnKeys.of_seeds(settings.node_id, seeds, genesis.parameters.hybrid_votes)


def _identity_seed(settings: NodeSettings, genesis: Genesis) -> bytes:
    key = load_private_key(settings.identity_key)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise SettingsError(f"identity_key {settings.identity_key} is not an Ed25519 key; `qnode init` makes one")
    public = key.public_key().public_bytes_raw()
    listed = {node.node_id: node.public_key for node in genesis.nodes}
    if listed.get(settings.node_id, public) != public:  # a node that was admitted later is not listed
        raise SettingsError(
            f"identity_key {settings.identity_key} is not the key that the genesis lists for {settings.node_id}: "
            "restore the key that was written with this genesis"
        )
    return key.private_bytes_raw()


def _link(link: GenesisLink, settings: LinkSettings, pool: PoolSettings) -> LinkConfiguration:
    try:
        parameters = LinkParameters.from_mapping(settings.physics)
        session = SessionParameters.from_mapping(settings.distillation)
    except ParameterError as error:
        raise SettingsError(f"[link.{link.link_id}] {error}") from None
    secret = read_file(settings.pre_shared_secret, "pre-shared secret of the link")
    if len(secret) < PRE_SHARED_BYTES_MIN:
        raise SettingsError(
            f"{settings.pre_shared_secret} has {len(secret)} bytes; a new link needs {PRE_SHARED_BYTES_MIN}"
        )
    return LinkConfiguration(
        link_id=link.link_id,
        transmitter=link.transmitter,
        receiver=link.receiver,
        parameters=parameters,
        session=session,
        block_pulses=settings.block_pulses,
        pool_target_bits=pool.target_bits,
        probe_interval_ns=int(1e9 * pool.probe_interval_s),
        start_spread_ns=int(1e9 * pool.start_spread_s),
        pre_shared_secret=secret,
    )


def _physics(seed: int | None) -> Callable[[str], np.random.Generator]:
    """One stream of emulated physics per purpose: reproducible under a seed, from the system otherwise."""
    root = secrets.randbits(128) if seed is None else seed

    def stream(purpose: str) -> np.random.Generator:
        return np.random.default_rng([root, *purpose.encode()])

    return stream
