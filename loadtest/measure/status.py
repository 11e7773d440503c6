"""From a node's status document to samples: a pure reading, None for what a node does not tell.

Counters come from the node itself, so a launcher on other machines needs nothing more than the operator's door.
"""

from collections.abc import Mapping
from typing import Any

from loadtest.results.records import LinkSample, NodeSample


def node_sample(status: Mapping[str, Any], time_s: float, case: int, group: str) -> NodeSample:
    """Return one look at a node."""
    ledger, daemon = _table(status, "ledger"), _table(status, "daemon")
    dropped = _table(daemon, "frames_dropped")
    return NodeSample(
        time_s=time_s,
        case=case,
        node_id=str(status["node_id"]),
        group=group,
        cpu_s=_number(daemon, "cpu_s"),
        rss_mib=_number(daemon, "rss_mib"),
        pss_mib=_number(daemon, "pss_mib"),
        open_files=_count(daemon, "open_files"),
        threads=_count(daemon, "threads"),
        bytes_sent=_count(daemon, "bytes_sent"),
        bytes_received=_count(daemon, "bytes_received"),
        frames_sent=_count(daemon, "frames_sent"),
        frames_received=_count(daemon, "frames_received"),
        frames_dropped=sum(count for count in dropped.values() if isinstance(count, int)) if dropped else None,
        disk_syncs=_count(daemon, "disk_syncs"),
        handshakes=_count(daemon, "handshakes"),
        height=_count(ledger, "height"),
        mempool=_count(ledger, "mempool_transactions"),
        peers=len(status["peers"]) if isinstance(status.get("peers"), list) else None,
        key_bytes=sum(_count(link, "available_bytes") or 0 for link in _links(status)),
        checksum_failures=_count(daemon, "checksum_failures"),
        security_failures=_count(daemon, "security_failures"),
        uptime_s=_number(status, "uptime_s"),
    )


def link_samples(status: Mapping[str, Any], time_s: float, case: int) -> list[LinkSample]:
    """Return one look at each quantum link that the node transmits on; its other end would tell the same."""
    return [
        LinkSample(
            time_s=time_s,
            case=case,
            link_id=str(link["link_id"]),
            qber=_number(link, "qber"),
            key_bytes=_count(link, "available_bytes"),
            blocks=_count(link, "blocks"),
            aborts=_count(link, "aborts"),
            alarmed=link.get("alarmed") if isinstance(link.get("alarmed"), bool) else None,
        )
        for link in _links(status)
        if link.get("role") == "transmitter"
    ]


def records_executed(status: Mapping[str, Any]) -> int:
    """Return how many records of key blocks and deliveries a node's state holds, or held since the node began."""
    ledger = _table(status, "ledger")
    return sum(_count(ledger, name) or 0 for name in ("state_key_blocks", "state_deliveries", "retired"))


def _links(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    links = status.get("links")
    return [link for link in links if isinstance(link, Mapping)] if isinstance(links, list) else []


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    return found if isinstance(found, Mapping) else {}


def _number(document: Mapping[str, Any], name: str) -> float | None:
    found = document.get(name)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _count(document: Mapping[str, Any], name: str) -> int | None:
    found = document.get(name)
    return found if isinstance(found, int) and not isinstance(found, bool) else None
