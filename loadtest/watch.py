"""Notices alarms while a case runs: links alarmed on the chain, nodes that met wrong keys or broken bytes, evidence."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from loadtest.measure.sampler import Sampler
from loadtest.results.writer import ResultWriter
from loadtest.ward import Ward

LOOK_S: Final = 0.5


class Watch:
    """Compares what the sampler saw last with what it had seen before."""

    def __init__(self, ward: Ward, sampler: Sampler, writer: ResultWriter, case: int) -> None:
        self._ward = ward
        self._sampler = sampler
        self._writer = writer
        self._case = case
        self._raised: dict[str, int] = {}  # link → alarms on the chain
        self._failures: dict[str, int] = {}  # node → security failures
        self._equivocations = 0
        self.alarms = 0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            self._sampler.pour(self._writer)
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Note what is new."""
        for node_id in self._ward.node_ids:
            status = self._sampler.latest(node_id)
            if status is not None:
                self._links(status.get("chain_links", ()))
                self._node(node_id, status)

    def _links(self, links: Iterable[dict[str, Any]]) -> None:
        for link in links:
            before = self._raised.get(link["link_id"], 0)
            if link["alarms_raised"] > before:
                self._raised[link["link_id"]] = link["alarms_raised"]
                self._alarm(link["link_id"], "the chain holds an alarm")

    def _node(self, node_id: str, status: dict[str, Any]) -> None:
        failures = status.get("daemon", {}).get("security_failures", 0)
        if failures > self._failures.get(node_id, 0):
            for subject in self._ward.watched_links(node_id) or [node_id]:
                self._alarm(subject, f"{node_id} counted wrong keys or broken bytes")
        self._failures[node_id] = failures
        equivocations = status.get("ledger", {}).get("state_equivocations", 0)
        if equivocations > self._equivocations:
            self._equivocations = equivocations
            for liar in sorted(self._ward.liars) or ["the validators"]:
                self._alarm(liar, "evidence on the chain")

    def _alarm(self, subject: str, reason: str) -> None:
        self.alarms += 1
        self._writer.event(self._case, "alarm", subject, reason=reason)
