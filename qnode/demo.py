"""The main job, shown from outside: four daemons, two applications, an eavesdropper, five devices. `make demo` runs it.

Everything here is done as a user would do it: the cluster is made and started by the commands, the applications fetch
their keys over HTTPS as any ETSI 014 client does, and every claim of the summary is checked against what the nodes
say. The demo fails (exit status 1) unless all of it happened.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from qnode.api import broker
from qnode.client import CallFailed, NodeClient
from qnode.cluster import OPERATOR, Cluster, ClusterError
from qnode.commands import device_demo
from qnode.initialise import free_ports

NODES: Final = 4
MASTER: Final = ("node-1", "sae-1-a")
SLAVE: Final = ("node-3", "sae-3-a")
ATTACKED_LINK: Final = "link-1-2"
STEP_TIMEOUT_S: Final = 60.0
"""A step of the demo takes a few seconds; a machine that needs a minute is stuck, and the demo says where."""
POLL_S: Final = 0.1
"""How often a condition is looked at from outside; the daemons themselves poll nothing."""


DEVICE_SESSIONS: Final = 3
"""Keys per device, for the medians of the table."""


class DemoFailed(Exception):
    """A step did not happen; the message says which and what was seen instead."""


@dataclass
class Nodes:
    """The cluster that `qnode init` wrote, and a client for every identity in it."""

    directory: Path
    clients: dict[tuple[str, str], NodeClient] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [f"node-{number}" for number in range(1, NODES + 1)]

    def client(self, node_id: str, identity: str = OPERATOR) -> NodeClient:
        key = (node_id, identity)
        if key not in self.clients:
            self.clients[key] = Cluster.open(self.directory).member(node_id).client(identity)
        return self.clients[key]

    def status(self) -> dict[str, dict[str, Any]]:
        return {name: self.client(name).call("GET", "/admin/v1/status") for name in self.names}

    def blocks(self, node_id: str) -> Iterator[dict[str, Any]]:
        """Yield every committed block as a node tells it."""
        height = 1
        while True:
            page = self.client(node_id).call("GET", f"/admin/v1/ledger/blocks?from={height}&count=200")["blocks"]
            yield from page
            if not page:
                return
            height = page[-1]["height"] + 1


def qnode(*arguments: str) -> str:
    """Run one command of the daemon's own command line. Raises DemoFailed with what it printed."""
    command = [sys.executable, "-m", "qnode", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_TIMEOUT_S)
    if done.returncode:
        raise DemoFailed(f"qnode {' '.join(arguments)}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def await_condition(what: str, condition: Callable[[], Any]) -> Any:
    """Return the first true value of `condition`. Raises DemoFailed naming `what` after STEP_TIMEOUT_S."""
    end = time.monotonic() + STEP_TIMEOUT_S
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(POLL_S)
    raise DemoFailed(f"{what}: did not happen within {STEP_TIMEOUT_S:g} s")


class Demo:
    """The steps, in order; `report` gathers what was seen."""

    def __init__(self, cluster: Nodes, payload: Path) -> None:
        self.cluster = cluster
        self.payload = payload
        self.report: dict[str, Any] = {}
        self.key_ids: list[str] = []
        self.broker: broker.Broker | None = None
        self.devices: DevicesBeside | None = None

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        return [
            ("write a cluster's configuration", self.initialise),
            ("start four daemons", self.start),
            ("make quantum keys on every link", self.make_keys),
            ("SAE A and SAE B fetch one key, over two hops", self.deliver),
            ("prove where the key comes from, offline", self.prove),
            ("an eavesdropper taps link-1-2", self.attack),
            ("keys take the way around", self.deliver_around),
            ("the eavesdropper leaves", self.recover),
            ("five devices, meanwhile, over MQTT", self.join_devices),
            ("compare the chain at all nodes", self.compare),
            ("stop; re-execute the chain offline", self.verify),
        ]

    def initialise(self) -> str:
        qnode("init", str(self.cluster.directory), "--nodes", str(NODES), "--topology", "ring")
        kind = broker.available()
        (port,) = free_ports(device_demo.HOST, 1, None)
        home = broker.attach(self.cluster.directory, device_demo.NODE, self.names, device_demo.HOST, port, ())
        self.broker = broker.Broker(home, device_demo.HOST, port, kind)
        self.broker.start()
        self.devices = DevicesBeside(self.cluster.directory, port)
        return f"{self.cluster.directory}, and a broker for devices ({kind})"

    def start(self) -> str:
        begun = time.monotonic()
        qnode("cluster", "up", str(self.cluster.directory))
        self.report["start_s"] = round(time.monotonic() - begun, 2)
        assert self.devices is not None, "the steps have an order"
        self.devices.start()
        return f"{self.report['start_s']} s"

    def make_keys(self) -> str:
        def every_link_has_key() -> dict[str, dict[str, Any]] | None:
            seen = self.cluster.status()
            ready = all(link["blocks"] >= 1 for status in seen.values() for link in status["links"])
            return seen if ready else None

        seen = await_condition("key on every link, at both ends", every_link_has_key)
        recorded = seen[MASTER[0]]["ledger"]["state_key_blocks"]
        return f"{recorded} key blocks on the chain"

    def deliver(self) -> str:
        path = self._deliver_file()
        if len(path) != 3:
            raise DemoFailed(f"the key went over {' – '.join(path)}; two hops were expected")
        self.report["path"] = path
        size = self.payload.stat().st_size
        return f"{size} bytes encrypted by A, decrypted by B, equal; by {' – '.join(path)}"

    def prove(self) -> str:
        """A node writes the proof, the check needs the genesis alone; then a changed proof must fail it."""
        proof, genesis = self.cluster.directory.parent / "proof.json", self.cluster.directory / "genesis.json"
        text = qnode("ledger", "prove", self.key_ids[0], "--cluster", str(self.cluster.directory))
        proof.write_text(text, "utf-8")
        checked = json.loads(qnode("ledger", "check", str(proof), "--genesis", str(genesis), "--json"))
        forged = proof.with_name("forged.json")
        forged.write_text(text.replace(MASTER[1], "sae-2-a"), "utf-8")
        try:
            qnode("ledger", "check", str(forged), "--genesis", str(genesis))
        except DemoFailed:
            self.report["proof"] = {"key_id": self.key_ids[0], "statement": checked, "forgery_refused": True}
            return f"{len(text):,} bytes, checked against the genesis; a forged one refused"
        raise DemoFailed("a proof that names another application was accepted")

    def attack(self) -> str:
        before = self._link()["qber"]
        body = {"kind": "intercept_resend", "parameters": {"fraction": 1.0}}
        self.cluster.client("node-1").call("POST", f"/admin/v1/links/{ATTACKED_LINK}/attack", body)
        begun = time.monotonic()
        await_condition("the alarm on the chain, at every node", lambda: self._alarmed() == [True] * NODES)
        link = self._link()
        if link["attacked_aborts"] < 1 or link["qber"] < 0.15:
            raise DemoFailed(f"the alarm is on the chain, but the link says {link}")
        self.report["attack"] = {
            "link_id": ATTACKED_LINK,
            "qber_before": before,
            "qber_under_attack": link["qber"],
            "aborted_blocks": link["attacked_aborts"],
            "alarm_s": round(time.monotonic() - begun, 2),
        }
        return f"QBER {before:.1%} → {link['qber']:.1%}, block aborted, alarm on the chain"

    def deliver_around(self) -> str:
        path = self._deliver_file()
        if "node-2" in path:
            raise DemoFailed(f"the key went over {' – '.join(path)}, through the attacked link")
        self.report["path_under_attack"] = path
        return f"equal again; by {' – '.join(path)}"

    def recover(self) -> str:
        self.cluster.client("node-1").call("DELETE", f"/admin/v1/links/{ATTACKED_LINK}/attack")
        begun = time.monotonic()
        await_condition("the alarm cleared at every node", lambda: self._alarmed() == [False] * NODES)
        self.report["attack"]["qber_after"] = self._link()["qber"]
        self.report["attack"]["recovery_s"] = round(time.monotonic() - begun, 2)
        return f"QBER {self._link()['qber']:.1%}, a new block cleared the alarm"

    def join_devices(self) -> str:
        """Wait for what the devices did beside the other steps."""
        assert self.devices is not None and self.broker is not None, "the steps have an order"
        self.report["devices"] = {"broker": self.broker.kind} | self.devices.result()
        seen = self.report["devices"]
        return (
            f"{len(seen['table'])} enrolled; {seen['readings']['received']} readings, none missing; one attacked "
            f"(QBER {seen['attack']['qber']:.0%}, alarm), one replayed (refused), one revoked (cut off)"
        )

    def compare(self) -> str:
        """Find a height that every node has reported, and compare what they say of it."""
        roots: dict[int, dict[str, str]] = {}

        def common() -> int | None:
            for name, status in self.cluster.status().items():
                ledger = status["ledger"]
                roots.setdefault(ledger["height"], {})[name] = ledger["state_root"]
            return next((height for height, seen in roots.items() if len(seen) == NODES), None)

        height = await_condition("one height reported by all nodes", common)
        if len(set(roots[height].values())) != 1:
            raise DemoFailed(f"state roots differ at height {height}: {roots[height]}")
        digests = {name: {b["height"]: b["digest"] for b in self.cluster.blocks(name)} for name in self.cluster.names}
        shared = min(len(blocks) for blocks in digests.values())
        for number in range(1, shared + 1):
            if len({blocks[number] for blocks in digests.values()}) != 1:
                raise DemoFailed(f"the nodes committed different blocks at height {number}")
        self.report["chain"] = {
            "compared_height": height,
            "state_root": next(iter(roots[height].values())),
            "state_roots_equal": True,
            "blocks_compared": shared,
        }
        self._summarise()
        return f"{shared} blocks and the state root at height {height} equal on all nodes"

    def verify(self) -> str:
        qnode("cluster", "down", str(self.cluster.directory))
        verified = json.loads(qnode("ledger", "verify", "--cluster", str(self.cluster.directory), "--json"))
        if not verified["ok"] or len(verified["nodes"]) != NODES:
            raise DemoFailed(f"the chain does not verify: {verified['faults']}")
        heights = {node["node_id"]: node["height"] for node in verified["nodes"]}
        self.report["chain"]["heights_at_the_end"] = heights
        return f"valid at all nodes, heights {', '.join(str(height) for height in heights.values())}"

    # ---- pieces

    @property
    def names(self) -> list[str]:
        return self.cluster.names

    def _deliver_file(self) -> list[str]:
        """A encrypts the file with a key of its node, B decrypts it with the same key of its own; return the path."""
        plain = self.payload.read_bytes()
        sae_a, sae_b = self.cluster.client(*MASTER), self.cluster.client(*SLAVE)
        begun = time.monotonic()
        answer = sae_a.get_keys(SLAVE[1], 1, 256)["keys"][0]
        self.report.setdefault("key_request_ms", []).append(round(1000 * (time.monotonic() - begun), 2))
        nonce = os.urandom(12)
        key_id = answer["key_ID"]
        sealed = AESGCM(_decoded(answer["key"])).encrypt(nonce, plain, key_id.encode())
        held = sae_b.get_keys_with_ids(MASTER[1], [key_id])["keys"][0]
        if AESGCM(_decoded(held["key"])).decrypt(nonce, sealed, key_id.encode()) != plain:
            raise DemoFailed("B decrypted something else than A encrypted")
        self.key_ids.append(key_id)
        return self._recorded_path(key_id)

    def _recorded_path(self, key_id: str) -> list[str]:
        """Return the way of a key as the chain records it."""
        wanted = key_id.replace("-", "")

        def recorded() -> list[str] | None:
            for block in self.cluster.blocks(SLAVE[0]):
                for transaction in block["transactions"]:
                    if transaction.get("key_id") == wanted and transaction["ok"]:
                        return list(transaction["path"])
            return None

        path: list[str] = await_condition("the delivery's record on the chain", recorded)
        return path

    def _link(self) -> dict[str, Any]:
        links = self.cluster.client("node-1").call("GET", "/admin/v1/links")["links"]
        found: dict[str, Any] = next(link for link in links if link["link_id"] == ATTACKED_LINK)
        return found

    def _alarmed(self) -> list[bool]:
        """What the chain says of the attacked link, node by node."""
        statuses = self.cluster.status().values()
        return [
            next(link["alarmed"] for link in status["chain_links"] if link["link_id"] == ATTACKED_LINK)
            for status in statuses
        ]

    def _summarise(self) -> None:
        seen = self.cluster.status()
        self.report["nodes"] = {
            name: {
                "height": status["ledger"]["height"],
                "peers": len(status["peers"]),
                "delivered_as_master": status["keys"]["delivered_as_master"],
                "delivered_as_slave": status["keys"]["delivered_as_slave"],
            }
            for name, status in seen.items()
        }
        self.report["links"] = [
            {
                name: link[name]
                for name in (
                    "link_id",
                    "qber",
                    "fidelity",
                    "blocks",
                    "aborts",
                    "secret_bits",
                    "secret_bits_per_s",
                    "session_ms",
                    "alarmed",
                )
            }
            for status in seen.values()
            for link in status["links"]
            if link["role"] == "transmitter"
        ]
        self.report["keys_delivered"] = len(self.key_ids)


class DevicesBeside:
    """The demo of devices on the demo's own cluster, in a thread, while the other steps wait for light and blocks."""

    def __init__(self, directory: Path, port: int) -> None:
        self._place = directory, port
        self._thread = threading.Thread(target=self._run, name="devices", daemon=True)
        self._said: dict[str, str] = {}
        self._demo: device_demo.DeviceDemo | None = None
        self._failure: str | None = "not begun"

    def start(self) -> None:
        """Begin; the cluster runs."""
        self._thread.start()

    def result(self) -> dict[str, Any]:
        """Wait for the end; return what was seen. Raises DemoFailed."""
        self._thread.join(STEP_TIMEOUT_S)
        if self._thread.is_alive():
            raise DemoFailed(f"the devices did not end; they did: {', '.join(self._said) or 'nothing'}")
        if self._failure is not None or self._demo is None:
            raise DemoFailed(f"devices: {self._failure}")
        return {**self._demo.report, "steps": self._said}

    def _run(self) -> None:
        try:
            directory, port = self._place
            demo = device_demo.DeviceDemo(directory, Cluster.open(directory), port, DEVICE_SESSIONS)
            self._failure = demo.run(self._said.__setitem__)
            self._demo = demo
        except Exception as error:  # whatever ends a thread must reach the one who waits for it
            self._failure = repr(error)


def _decoded(key: str) -> bytes:
    return base64.b64decode(key, validate=True)


def _show(report: dict[str, Any], console: Console) -> None:
    table = Table(title="Links", title_justify="left")
    for heading in ("link", "QBER", "blocks", "aborted", "secret bits", "secret bits/s"):
        table.add_column(heading, justify="left" if heading == "link" else "right")
    for link in report["links"]:
        rate = f"{link['secret_bits_per_s']:,.0f}" if link["secret_bits_per_s"] else "–"
        table.add_row(
            link["link_id"],
            f"{link['qber']:.2%}",
            str(link["blocks"]),
            str(link["aborts"]),
            f"{link['secret_bits']:,}",
            rate,
        )
    console.print(table)
    device_demo.show(report["devices"], console)
    attack, chain = report["attack"], report["chain"]
    console.print(
        f"Keys delivered     {report['keys_delivered']}, over {' – '.join(report['path'])}; "
        f"under attack over {' – '.join(report['path_under_attack'])}"
    )
    console.print(
        f"Eavesdropper       QBER {attack['qber_before']:.2%} → {attack['qber_under_attack']:.2%} → "
        f"{attack['qber_after']:.2%}; alarm after {attack['alarm_s']} s"
    )
    console.print(f"Chain              heights {', '.join(f'{n} {h}' for n, h in chain['heights_at_the_end'].items())}")
    console.print(
        f"State root         {chain['state_root'][:16]}… equal on all nodes at height {chain['compared_height']}"
    )


@contextmanager
def _cleaned_up(cluster: Nodes, demo: Demo) -> Iterator[None]:
    """Stop the daemons and the broker however the demo ends."""
    try:
        yield
    finally:
        if demo.broker is not None:
            demo.broker.stop()
        if (cluster.directory / "genesis.json").exists():
            subprocess.run(
                [sys.executable, "-m", "qnode", "cluster", "down", str(cluster.directory)], capture_output=True
            )


def run(directory: Path, report_path: Path, payload: Path) -> bool:
    """Run the whole demo in `directory` (made anew), write the report, and say whether everything happened."""
    console = Console(stderr=True)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    cluster = Nodes(directory / "cluster")
    demo = Demo(cluster, payload)
    begun = time.monotonic()
    failure = None
    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), TimeElapsedColumn())
    with _cleaned_up(cluster, demo), Progress(*columns, console=console) as progress:
        for title, step in demo.steps():
            task = progress.add_task(title, total=1)
            try:
                said = step()
            except (DemoFailed, CallFailed, ClusterError, broker.BrokerError, subprocess.TimeoutExpired) as error:
                failure = f"{title}: {error}"
                progress.update(task, description=f"[red]✗ {title}: {error}")
                break
            progress.update(task, description=f"{title} [dim]{said}", completed=1)
    demo.report |= {"succeeded": failure is None, "failure": failure, "total_s": round(time.monotonic() - begun, 2)}
    report_path.write_text(json.dumps(demo.report, indent=2) + "\n", "utf-8")
    if failure is None:
        _show(demo.report, console)
        console.print(f"[green]Everything happened, in {demo.report['total_s']} s. Report: {report_path}")
        return True
    console.print(f"[red]The demo failed: {failure}")
    console.print(f"The nodes' logs are in {cluster.directory}; the report so far is {report_path}")
    return False


def main() -> None:
    """Run the demo in .demo/ of the current directory, and leave demo-report.json there."""
    here = Path.cwd()
    sys.exit(0 if run(here / ".demo", here / "demo-report.json", here / "LICENSE") else 1)


if __name__ == "__main__":
    main()
