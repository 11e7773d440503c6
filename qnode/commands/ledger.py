"""`qnode ledger show|validators|verify`; `prove` and `check` join from `qnode.commands.proof`."""

import asyncio
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from qnode.cluster import OPERATOR, Cluster, Member
from qnode.commands.output import cluster_option, json_option, print_json, print_table
from qnode.commands.proof import check, prove

PAGE_BLOCKS: Final = 500


@click.group(short_help="Read and check the chain, prove keys.")
def ledger() -> None:
    """Read and check the chain; prove where a key comes from.

    \b
    Examples:
      qnode ledger show --cluster demo --from 1 --count 10
      qnode ledger validators --cluster demo
      qnode ledger verify --cluster demo
      qnode ledger prove KEY_ID --cluster demo > proof.json
      qnode ledger check proof.json --genesis demo/genesis.json
    """


ledger.add_command(prove)
ledger.add_command(check)


@ledger.command()
@cluster_option
@click.option("--node", "node_id", help="Ask this node; the first of the cluster without it.")
@click.option("--from", "first_height", type=click.IntRange(1), help="First height; the last blocks without it.")
@click.option("--count", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many blocks.")
@json_option
def show(directory: Path, node_id: str | None, first_height: int | None, count: int, as_json: bool) -> None:
    """Show committed blocks and their records."""
    found = Cluster.open(directory)
    member = found.members[0] if node_id is None else found.member(node_id)
    status = member.client(OPERATOR).call("GET", "/admin/v1/status")["ledger"]
    if first_height is None:
        first_height = max(1, status["height"] - count + 1)
    blocks = _blocks(member, first_height, count)
    if as_json:
        print_json({"blocks": blocks})
        return
    click.echo(_standing(status))
    print_table(
        ("height", "time (UTC)", "block", "view", "signers", "records"),
        [
            (
                block["height"],
                datetime.datetime.fromtimestamp(block["time_ns"] / 1e9, datetime.UTC).strftime("%H:%M:%S.%f")[:-3],
                block["digest"][:16],
                block["view"],
                len(block["signers"]),
                _kinds(block["transactions"]),
            )
            for block in blocks
        ],
    )


def _standing(status: dict[str, Any]) -> str:
    """Say in a line or two how a chain stands: its version, who votes, who may not, and what is kept of it."""
    parts = [f"chain {status['chain_id']}, version {status['version']}, height {status['height']:,}"]
    if status["floor"] > 1:
        parts.append(f"blocks kept from {status['floor']:,} on")
    parts.append(f"{len(status['validators'])} validators: {', '.join(status['validators'])}")
    parts += [f"{name}: {', '.join(status[name])}" for name in ("suspended", "revoked") if status[name]]
    if status["upgrade_needed"]:
        parts.append(f"upgrade needed: {status['upgrade_needed']}")
    return "; ".join(parts)


@ledger.command()
@cluster_option
@click.option("--node", "node_id", help="Ask this node; the first of the cluster without it.")
@json_option
def validators(directory: Path, node_id: str | None, as_json: bool) -> None:
    """Show who votes for the next block, who may be chosen to, and who may not."""
    found = Cluster.open(directory)
    client = (found.members[0] if node_id is None else found.member(node_id)).client(OPERATOR)
    status = client.call("GET", "/admin/v1/status")["ledger"]
    electorate = client.call("GET", "/admin/v1/governance")["electorate"]
    names = [node.node_id for node in found.genesis.nodes]
    names += [member.settings.node_id for member in found.members]
    names += [*electorate, *status["validators"], *status["suspended"], *status["revoked"]]
    nodes = [{"node_id": name, "standing": _role(name, status, electorate)} for name in dict.fromkeys(names)]
    if as_json:
        named = ("chain_id", "height", "version", "upgrade_needed", "floor", "validators", "suspended", "revoked")
        print_json({**{name: status[name] for name in named}, "electorate": electorate, "nodes": nodes})
        return
    click.echo(_standing(status))
    print_table(("node", "standing"), [(each["node_id"], each["standing"]) for each in nodes])


def _role(name: str, status: dict[str, Any], electorate: Sequence[str]) -> str:
    """Return a node's part; the committee that votes follows a decision two heights later."""
    if name in status["revoked"]:
        return "removed"
    if name in status["suspended"]:
        return "suspended"
    if name in status["validators"]:
        return "votes" if name in electorate else "votes for the last time"
    return "may be chosen to vote" if name in electorate else "follows, or is not admitted yet"


def _blocks(member: Member, first_height: int, count: int) -> list[dict[str, Any]]:
    answer = member.client(OPERATOR).call("GET", f"/admin/v1/ledger/blocks?from={first_height}&count={count}")
    blocks: list[dict[str, Any]] = answer["blocks"]
    return blocks


def _kinds(transactions: Sequence[dict[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for transaction in transactions:
        kind = str(transaction.get("kind", "record")) + ("" if transaction["ok"] else " (refused)")
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "-"


@ledger.command()
@cluster_option
@json_option
def verify(directory: Path, as_json: bool) -> None:
    """Check the whole chain of every node. Exit status 0 only when all of it holds.

    A stopped node's chain is read from its disk and executed again: hash links, state roots, a valid commit
    certificate of a quorum for every block, the signature of every bundle. A running node's chain is read over its API
    and compared with the others: hash links, and equal blocks (hence equal states before them) at equal heights. Where
    a node keeps no old blocks, the check begins at its snapshot, whose state and certificate are verified, and says so.
    """
    found = Cluster.open(directory)
    reports = [_verify_running(member) if member.process else _verify_stored(found, member) for member in found.members]
    faults = [report["fault"] for report in reports if report["fault"]]
    faults += _disagreements(reports)
    documents = [{name: value for name, value in report.items() if name != "digests"} for report in reports]
    if as_json:
        print_json({"ok": not faults, "nodes": documents, "faults": faults})
    else:
        print_table(
            ("node", "checked", "from", "height", "blocks", "transactions", "tip"),
            [
                (x["node_id"], x["how"], x["first_height"], x["height"], x["blocks"], x["transactions"], x["tip"][:16])
                for x in documents
            ],
        )
        for report in documents:
            if report["first_height"] > 1:
                click.echo(f"{report['node_id']}: blocks before {report['first_height']:,} {_BEFORE[report['how']]}")
        click.echo("\n".join(faults) if faults else "the chain holds on every node")
    if faults:
        sys.exit(1)


_OVER_API: Final = "over its API"
_ON_DISK: Final = "on its disk"
_FROM_SNAPSHOT: Final = "on its disk, from its snapshot on"
_BEFORE: Final = {
    _OVER_API: "are not kept and were not compared",
    _FROM_SNAPSHOT: "were not executed: a quorum's certificate stands for the state after them",
}


def _report(member: Member, how: str, digests: dict[int, str], transactions: int, fault: str | None) -> dict[str, Any]:
    height = max(digests, default=0)
    return {
        "node_id": member.settings.node_id,
        "how": how,
        "first_height": min(digests, default=0),
        "height": height,
        "blocks": len(digests),
        "transactions": transactions,
        "tip": digests.get(height, ""),
        "fault": fault and f"{member.settings.node_id}: {fault}",
        "digests": digests,
    }


def _verify_running(member: Member) -> dict[str, Any]:
    floor = member.client(OPERATOR).call("GET", "/admin/v1/status")["ledger"]["floor"]
    digests: dict[int, str] = {}
    transactions, previous, height = 0, None, floor
    while True:
        blocks = _blocks(member, height, PAGE_BLOCKS)
        for block in blocks:
            if block["height"] != height or (previous is not None and block["previous"] != previous):
                return _report(member, _OVER_API, digests, transactions, f"height {height} does not follow")
            previous = digests[height] = block["digest"]
            transactions += len(block["transactions"])
            height += 1
        if not blocks:
            return _report(member, _OVER_API, digests, transactions, None)


def _verify_stored(found: Cluster, member: Member) -> dict[str, Any]:
    from ledger.audit import verify_chain
    from ledger.chain import BLOCK_TABLE, SET_CHANGE_TABLE, CorruptLedger
    from ledger.core import SNAPSHOT_HEAD_TABLE, SNAPSHOT_TABLE
    from ledger.encoding import integer_key
    from ledger.snapshot import newest_head
    from qnode.io.storage import FILE_NAME, Storage

    async def load() -> dict[str, list[tuple[bytes, bytes]]]:
        storage = await Storage.open(member.settings.state_directory)
        try:
            tables = (BLOCK_TABLE, SET_CHANGE_TABLE, SNAPSHOT_HEAD_TABLE, SNAPSHOT_TABLE)
            return {table: await storage.load(table) for table in tables}
        finally:
            await storage.close()

    if not (member.settings.state_directory / FILE_NAME).exists():
        return _report(member, "nothing stored", {}, 0, None)
    stored = asyncio.run(load())
    blocks, snapshot, how = stored[BLOCK_TABLE], None, _ON_DISK
    try:
        head = newest_head(stored[SNAPSHOT_HEAD_TABLE])
    except CorruptLedger as error:
        return _report(member, how, {}, 0, str(error))
    if head is not None and (not blocks or blocks[0][0] != integer_key(1)):
        snapshot, how = (head, stored[SNAPSHOT_TABLE], stored[SET_CHANGE_TABLE]), _FROM_SNAPSHOT
    report = verify_chain(found.genesis, blocks, snapshot=snapshot)
    return _report(member, how, report.digests, report.transactions, report.fault)


def _disagreements(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Name the first height at which two nodes have different blocks; a block's digest covers the state before it."""
    longest = max(reports, key=lambda report: len(report["digests"]))  # others may be pruned, or behind
    faults = []
    for report in reports:
        for height, digest in report["digests"].items():
            if longest["digests"].get(height, digest) != digest:
                faults.append(f"{report['node_id']} and {longest['node_id']} have different blocks at height {height}")
                break
    return faults
