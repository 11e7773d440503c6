"""Puts a scenario's key policies in force as operators do: one validator proposes, a quorum approves (S0-B3)."""

import base64
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ledger.contracts.actions import encode_action
from ledger.contracts.policy_actions import SetPolicy
from ledger.transactions import GovernanceApproved, GovernanceProposed, Transaction, encode, transaction_id
from loadtest.fleet.launcher import FleetError
from loadtest.ward import Operator

EXPIRES_IN_HEIGHTS: Final = 10_000


async def put_in_force(operator: Operator, node_id: str, policies: Iterable[Mapping[str, Any]]) -> None:
    """Have the validators decide on each policy; `node_id` is one of them. Raises FleetError, NodeSilent."""
    for policy in policies:
        found = await operator.call(node_id, "GET", "/admin/v1/governance")
        action = encode_action(SetPolicy.from_document({"policy": dict(policy)}))
        proposal = GovernanceProposed(node_id, action, found["height"] + EXPIRES_IN_HEIGHTS)
        name = transaction_id(encode(proposal))
        others = [each for each in found["electorate"] if each != node_id][: found["quorum"] - 1]
        await _commit(operator, node_id, proposal)
        for other in others:
            await _commit(operator, other, GovernanceApproved(name, other))
        found = await operator.call(node_id, "GET", "/admin/v1/governance")
        if policy["name"] not in [each["name"] for each in found["policies"]]:
            raise FleetError(
                f"the policy {policy['name']!r} was approved and is not in force: {found['proposals'][-1:]}"
            )


async def _commit(operator: Operator, node_id: str, record: Transaction) -> None:
    body = {"transactions": [base64.b64encode(encode(record)).decode()], "until": "committed"}
    answer = await operator.call(node_id, "POST", "/admin/v1/ledger/transactions", body)
    if not answer["ok"]:
        raise FleetError(f"the chain refused {type(record).__name__} of {node_id}: {answer['reason']}")
