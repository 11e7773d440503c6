"""Real daemons, real sockets, real disks: nodes are killed and restarted while keys are delivered."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from qnode import cluster as clusters
from qnode.client import CallFailed
from qnode.cluster import Cluster
from qnode.io import pidfile

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MASTER, SLAVE = "sae-1-a", "sae-3-a"
KILLS = 8


def awaited(what: str, condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Look at running daemons from outside until a condition holds."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        threading.Event().wait(0.05)
    raise AssertionError(f"{what} did not happen within {timeout_s} s")


def statuses(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return {status["node_id"]: status for status in clusters.statuses(cluster)}


def links_ready(cluster: Cluster) -> bool:
    found = statuses(cluster).values()
    return all("links" in each and all(link["blocks"] > 0 for link in each["links"]) for each in found)


@dataclass
class Deliveries:
    """What the two applications saw."""

    fetched: dict[str, str] = field(default_factory=dict)
    received: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def run(self, cluster: Cluster, stop: threading.Event) -> None:
        master, slave = cluster.home(MASTER).client(MASTER), cluster.home(SLAVE).client(SLAVE)
        while not stop.is_set():
            try:
                key = master.get_keys(SLAVE, 1, 256)["keys"][0]
            except CallFailed as error:
                self.refused.append(str(error))
                stop.wait(0.02)
                continue
            assert key["key_ID"] not in self.fetched
            self.fetched[key["key_ID"]] = key["key"]
            self.receive(slave, key["key_ID"])

    def receive(self, slave: Any, key_id: str) -> None:
        """Fetch a key as the slave; a lost answer leaves it unknown whether the key was handed out."""
        try:
            key = slave.get_keys_with_ids(MASTER, [key_id])["keys"][0]
        except CallFailed as error:
            self.refused.append(str(error))
            return
        if key_id in self.received:
            self.twice.append(key_id)
        self.received[key_id] = key["key"]

    def retry(self, cluster: Cluster) -> None:
        """Ask again for everything: what was received must be gone, what was not may still be there."""
        slave = cluster.home(SLAVE).client(SLAVE)
        for key_id in list(self.fetched):
            self.receive(slave, key_id)


def committed(cluster: Cluster) -> dict[str, dict[int, str]]:
    """Return the digests of all blocks at every running node."""
    found: dict[str, dict[int, str]] = {}
    for member in cluster.members:
        client = member.client(clusters.OPERATOR)
        digests: dict[int, str] = {}
        height = 1
        while True:
            try:
                page = client.call("GET", f"/admin/v1/ledger/blocks?from={height}&count=500")["blocks"]
            except CallFailed:
                break
            if not page:
                break
            digests |= {block["height"]: block["digest"] for block in page}
            height = page[-1]["height"] + 1
        found[member.settings.node_id] = digests
    return found


def test_kills_during_delivery_lose_nothing(ring: Cluster) -> None:
    chance = random.Random(2026)
    awaited("key on every link", lambda: links_ready(ring))
    deliveries, stop = Deliveries(), threading.Event()
    applications = threading.Thread(target=deliveries.run, args=(ring, stop))
    applications.start()
    seen: dict[int, str] = {}
    try:
        for _ in range(KILLS):
            goal = len(deliveries.fetched) + chance.randrange(3, 15)
            awaited("deliveries go on", lambda goal=goal: len(deliveries.fetched) >= goal)
            for digests in committed(ring).values():
                for height, digest in digests.items():
                    assert seen.setdefault(height, digest) == digest, f"height {height} changed"
            victim = chance.choice(ring.members)
            process = victim.process
            assert process is not None, "a node ended by itself"
            os.kill(process, signal.SIGKILL)
            pidfile.wait_until_stopped(victim.settings.state_directory)
            clusters.up(ring, timeout_s=60)
    finally:
        stop.set()
        applications.join()
    deliveries.retry(ring)

    assert not deliveries.twice, "a key was handed out twice"
    assert len(set(deliveries.fetched.values())) == len(deliveries.fetched), "two IDs share a key"
    for key_id, key in deliveries.received.items():
        assert deliveries.fetched[key_id] == key, "the two ends hold different keys"
    assert len(deliveries.received) >= len(deliveries.fetched) - KILLS - 1, "keys vanished without a crash"

    roots: dict[int, dict[str, str]] = {}

    def height_of_all() -> int | None:
        for name, status in statuses(ring).items():
            if "ledger" in status:
                roots.setdefault(status["ledger"]["height"], {})[name] = status["ledger"]["state_root"]
        return next((height for height, at in roots.items() if len(at) == len(ring.members)), None)

    height = awaited("all nodes at one height", height_of_all)
    assert len(set(roots[height].values())) == 1, f"state roots differ at {height}"
    for name, digests in committed(ring).items():
        for number, digest in seen.items():
            assert digests[number] == digest, f"{name} lost or changed height {number}"
