"""Whole clusters in virtual time: keys over many hops, attacks, and kills at any moment."""

import os
import random
import subprocess
import sys
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path

import pytest

from qnode.inputs import GetKeys, GetKeysWithIds, GetStatus, KeysAnswer, RequestError, SetAttack, StatusAnswer
from qnode.keystore import RESERVE_BYTES
from qnode.wire import KeyTransfer, decode
from tests.qnode.test_links import Usage
from tests.qnode.virtual import Cluster, node_name, ring

PULSES = 300_000
TARGET_BITS = 100_000
LINE = [(0, 1), (1, 2), (2, 3), (3, 4)]


def made(net: Cluster, count: int = 1) -> bool:
    """Every link of every node that runs has made blocks."""
    return net.run(
        lambda: all(link.figures.blocks >= count for node in net.nodes() for link in node._links.values()), 30
    )


def roots(net: Cluster) -> set[str]:
    return {node._status()["ledger"]["state_root"] for node in net.nodes()}


def heights(net: Cluster) -> list[int]:
    return [node._status()["ledger"]["height"] for node in net.nodes()]


def settled(net: Cluster) -> bool:
    """All nodes have executed the same chain, and it goes on."""
    start = max(heights(net))
    return net.run(lambda: len(roots(net)) == 1 and min(heights(net)) > start, 40)


def exchange(net: Cluster, master: int, slave: int, number: int = 1) -> KeysAnswer:
    answer = net.answer(node_name(master), GetKeys(f"sae-{master + 1}", f"sae-{slave + 1}", number))
    assert isinstance(answer, KeysAnswer), answer
    ids = tuple(key.key_id for key in answer.keys)
    request = GetKeysWithIds(f"sae-{slave + 1}", f"sae-{master + 1}", ids)
    copy = net.answer(node_name(slave), request)
    assert isinstance(copy, KeysAnswer), copy
    assert [(key.key_id, key.key) for key in copy.keys] == [(key.key_id, key.key) for key in answer.keys]
    assert isinstance(net.answer(node_name(slave), request), RequestError), "once"
    return answer


@pytest.mark.parametrize("edges", [ring(4), LINE], ids=["ring", "line"])
def test_every_pair_shares_keys_and_the_chain_records_them(edges: list[tuple[int, int]]) -> None:
    count = 1 + max(max(edge) for edge in edges)
    net = Cluster(count, edges, PULSES, TARGET_BITS)
    assert made(net)
    ids = [
        bytes.fromhex(key.key_id.replace("-", ""))
        for master, slave in permutations(range(count), 2)
        for key in exchange(net, master, slave).keys
    ]
    assert len(set(ids)) == count * (count - 1)
    assert net.run(lambda: all(node.state.delivery(key_id) is not None for node in net.nodes() for key_id in ids), 20)
    assert settled(net)
    assert not [log for _, log in net.logs if log.level == "error"]


def test_status_promises_what_can_be_delivered() -> None:
    net = Cluster(5, LINE, PULSES, TARGET_BITS)
    assert made(net)
    status = net.answer("node-1", GetStatus("sae-1", "sae-5"))
    assert isinstance(status, StatusAnswer) and status.stored_key_count > 10
    for _ in range(10):
        exchange(net, 0, 4)


def test_keys_go_around_an_attacked_link_and_return_to_it() -> None:
    net = Cluster(4, None, PULSES)
    paths: list[tuple[str, ...]] = []

    def watch(source: str, target: str, frame: bytes) -> bytes:
        record = decode(frame)
        if isinstance(record, KeyTransfer):
            paths.append(record.path)
        return frame

    net.filter = watch
    assert made(net)
    net.answer("node-1", SetAttack("link-1-2", "intercept_resend", (("fraction", 1.0),)))
    assert net.run(lambda: all(node._is_alarmed("link-1-2") for node in net.nodes()), 30)
    exchange(net, 0, 1)
    assert paths[-1] == ("node-1", "node-4", "node-3", "node-2")
    net.answer("node-1", SetAttack("link-1-2", None))
    assert net.run(lambda: not any(node._is_alarmed("link-1-2") for node in net.nodes()), 30)
    exchange(net, 0, 1)
    assert paths[-1] == ("node-1", "node-2")


def test_keys_go_around_a_crashed_node_and_it_comes_back_to_the_same_chain() -> None:
    net = Cluster(4, None, PULSES, TARGET_BITS)
    assert made(net)
    net.crash("node-2")
    exchange(net, 0, 2)
    net.run(lambda: False, 3)
    net.start("node-2")
    assert settled(net)
    exchange(net, 0, 1)


def test_a_cluster_without_a_quorum_still_delivers_and_records_later() -> None:
    """Delivery rests on committed key; only its record waits for the chain."""
    net = Cluster(4, None, PULSES, TARGET_BITS)
    assert made(net)
    net.crash("node-3")
    net.crash("node-4")
    key = exchange(net, 0, 1).keys[0]
    key_id = bytes.fromhex(key.key_id.replace("-", ""))
    net.run(lambda: False, 2)
    net.start("node-3")
    net.start("node-4")
    assert net.run(lambda: all(node.state.delivery(key_id) is not None for node in net.nodes()), 60)


def test_records_that_the_mempool_has_no_room_for_wait_and_are_not_lost() -> None:
    """Without a quorum one node's records fill its share of the mempool (256 bundles): the rest goes later."""
    net = Cluster(4, None, 400_000, 400_000)
    for host in net.hosts.values():
        host.setup = replace(host.setup, delivery_patience_ns=0)  # a bundle for every record
    for name in net.hosts:
        net.crash(name)
        net.start(name)
    assert made(net)
    net.run(lambda: False, 3)
    net.crash("node-3")
    net.crash("node-4")
    ids = []
    for _ in range(290):
        answer = net.answer("node-1", GetKeys("sae-1", "sae-2", 1, 64))
        assert isinstance(answer, KeysAnswer)
        ids.append(bytes.fromhex(answer.keys[0].key_id.replace("-", "")))
    assert any(log.event == "own records wait for room in the mempool" for _, log in net.logs)
    net.start("node-3")
    net.start("node-4")
    assert net.run(lambda: all(net.nodes()[2].state.delivery(key_id) is not None for key_id in ids), 40)
    assert not [log for _, log in net.logs if log.level == "error"]


def test_a_full_stop_of_all_nodes_loses_nothing() -> None:
    net = Cluster(4, None, PULSES, TARGET_BITS)
    assert made(net)
    answer = net.answer("node-1", GetKeys("sae-1", "sae-3"))
    assert isinstance(answer, KeysAnswer)
    assert net.run(lambda: all(node._status()["keys"]["pending_blocks"] == 0 for node in net.nodes()), 5)
    before = {
        (node._setup.node_id, link): node._keys.available_bytes(link) for node in net.nodes() for link in node._links
    }
    for name in net.hosts:
        net.crash(name)
    for name in net.hosts:
        net.start(name)
    after = {
        (node._setup.node_id, link): node._keys.available_bytes(link) for node in net.nodes() for link in node._links
    }
    # The mark of what was reserved runs ahead of use: at most so much of a link's own half is burned by a restart.
    assert after.keys() == before.keys()
    assert all(before[half] - RESERVE_BYTES <= after[half] <= before[half] for half in before)
    copy = net.answer("node-3", GetKeysWithIds("sae-3", "sae-1", (answer.keys[0].key_id,)))
    assert isinstance(copy, KeysAnswer) and copy.keys[0].key == answer.keys[0].key
    assert settled(net)


# ---- kills at any moment


@dataclass
class Chaos:
    """Kills, restarts, cuts and requests at random moments of a seed; keeps what every application was given."""

    seed: int
    kills: int
    masters: dict[str, tuple[bytes, int, int]] = field(default_factory=dict)
    slaves: dict[str, bytes] = field(default_factory=dict)
    asked: dict[int, tuple[str, int, int]] = field(default_factory=dict)

    def run(self) -> None:
        self.rng = random.Random(self.seed)
        self.net = net = Cluster(4, None, PULSES, TARGET_BITS)
        net.filter = Usage()
        assert made(net)
        killed = 0
        while killed < self.kills:
            net.run(lambda: False, self.rng.choice([0.0004, 0.003, 0.02, 0.1, 0.4]))
            self.collect()
            killed += self.act()
        self.heal()

    def act(self) -> int:
        net, rng = self.net, self.rng
        up = [name for name, host in net.hosts.items() if host.node is not None]
        down = [name for name in net.hosts if name not in up]
        choice = rng.random()
        if choice < 0.15 and len(up) >= 3:
            net.crash(rng.choice(up))
            return 1
        if choice < 0.35 and down:
            net.start(rng.choice(down))
        elif choice < 0.40:
            a, b = rng.choice(ring(4))
            net.cut(node_name(a), node_name(b))
            net._at(200_000_000, lambda: net.mend(node_name(a), node_name(b)))
        else:
            self.ask()
        return 0

    def ask(self) -> None:
        master, slave = self.rng.sample(range(4), 2)
        if self.net.hosts[node_name(master)].node is not None:
            request = GetKeys(f"sae-{master + 1}", f"sae-{slave + 1}", self.rng.randint(1, 3))
            self.asked[self.net.ask(node_name(master), request)] = ("master", master, slave)
        for key_id, (_, master, slave) in list(self.masters.items()):
            if self.net.hosts[node_name(slave)].node is not None and self.rng.random() < 0.5:
                request_ids = GetKeysWithIds(f"sae-{slave + 1}", f"sae-{master + 1}", (key_id,))
                self.asked[self.net.ask(node_name(slave), request_ids)] = ("slave", master, slave)

    def collect(self) -> None:
        for request_id in [each for each in self.asked if each in self.net.answers]:
            kind, master, slave = self.asked.pop(request_id)
            answer = self.net.answers[request_id]
            for key in answer.keys if isinstance(answer, KeysAnswer) else ():
                assert key.key_id not in (self.masters if kind == "master" else self.slaves), "delivered twice"
                if kind == "master":
                    self.masters[key.key_id] = (key.key.reveal(), master, slave)
                else:
                    self.slaves[key.key_id] = key.key.reveal()

    def heal(self) -> None:
        net = self.net
        for name, host in net.hosts.items():
            if host.node is None:
                net.start(name)
        for a, b in ring(4):
            net.mend(node_name(a), node_name(b))
        net.run(lambda: False, 6)
        self.collect()
        assert settled(net), "the chain goes on, with one state"
        self.check_keys()
        for a, b in ring(4):
            exchange(net, a, b)
        assert net.run(lambda: all(link.session is None for node in net.nodes() for link in node._links.values()), 30)
        for link in ("link-1-2", "link-2-3", "link-3-4", "link-4-1"):
            ends = [node._links[link] for node in net.nodes() if link in node._links]
            one, other = ends[0].authentication, ends[1].authentication
            assert one.send.end == other.receive.end and other.send.end == one.receive.end, link
        assert not [log for _, log in net.logs if log.level == "error"]

    def check_keys(self) -> None:
        """What a master was given its slave was given, or is given now, the same."""
        secrets = [secret for secret, _, _ in self.masters.values()]
        assert len(set(secrets)) == len(secrets), "no key twice"
        lost = 0
        for key_id, (secret, master, slave) in self.masters.items():
            if key_id not in self.slaves:
                request = GetKeysWithIds(f"sae-{slave + 1}", f"sae-{master + 1}", (key_id,))
                answer = self.net.answer(node_name(slave), request)
                if isinstance(answer, RequestError):
                    lost += 1  # the slave's node was killed between the deletion and the answer
                    continue
                self.slaves[key_id] = answer.keys[0].key.reveal()
            assert self.slaves[key_id] == secret
        assert lost <= len(self.masters) // 3 + 1


@pytest.mark.parametrize("seed", range(3))
def test_kills_at_any_moment(seed: int) -> None:
    Chaos(seed, kills=4).run()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 112))
def test_many_kills_at_any_moment(seed: int) -> None:
    Chaos(seed, kills=15).run()


# ---- determinism

TRACE = """
from tests.qnode.test_cluster import trace_of
print(trace_of())
"""


def trace_of() -> str:
    """The hash of everything that the nodes of a small eventful life wanted done."""
    net = Cluster(4, None, PULSES, TARGET_BITS)
    net.run(lambda: False, 0.6)
    net.ask("node-1", GetKeys("sae-1", "sae-3", 2))
    net.run(lambda: False, 0.05)
    net.crash("node-2")
    net.run(lambda: False, 0.4)
    net.start("node-2")
    net.run(lambda: False, 0.7)
    return net.trace.hexdigest()


@pytest.mark.integration
def test_equal_seeds_make_equal_traces_under_any_hash_seed() -> None:
    traces = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", TRACE],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            timeout=60,
        )
        traces.add(done.stdout)
    assert len(traces) == 1 and len(traces.pop()) == 65


def test_equal_seeds_make_equal_traces() -> None:
    assert trace_of() == trace_of()
