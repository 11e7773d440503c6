"""What a network costs as it grows: quiet runs of the ledger in virtual time, one row per size.

Measures messages, bytes and events per node and height once neighbours know each other, what the start costs, and
this process's memory; for the plan of networks past this machine. At most 31 nodes vote; the overlay is that of
`qnode init` without quantum links.
"""

import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

from loadtest.simulation.faults import FaultPlan
from loadtest.simulation.network import MS
from loadtest.simulation.run import SETTINGS, run_seed
from qnode.initialise import VALIDATORS_MAX


def rows(node_counts: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    """Yield the figures of each size, over `seconds` of virtual time."""
    for nodes in node_counts:
        voting = min(nodes, VALIDATORS_MAX)
        calm = FaultPlan.quiet(int(seconds * 1_000) * MS)
        started = time.perf_counter()
        result = run_seed(1, nodes, validators=voting, topology="chords", plan=calm, settings=SETTINGS)
        settled = result.settled
        yield {
            "nodes": nodes,
            "validators": voting,
            "heights": result.heights,
            "events": result.events,
            "messages_per_node_and_height": round(settled.messages / (nodes * max(1, settled.heights)), 1),
            "bytes_per_node_and_height": round(settled.bytes_sent / (nodes * max(1, settled.heights))),
            "events_per_node_and_height": round(settled.events / (nodes * max(1, settled.heights)), 1),
            "messages_per_node_at_start": round((result.messages - settled.messages) / nodes),
            "views_max": result.views_max,
            "violation": result.violation,
            "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "seconds": round(time.perf_counter() - started, 1),
        }
