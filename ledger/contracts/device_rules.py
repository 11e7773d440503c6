"""What policies demand of devices: the floor of their keys (SEED_MAP S0-B3, S4-6.1, SPEC 9.9)."""

from typing import Any

from ledger.contracts.selection import NS, policies, predicates_on
from ledger.state import State
from ledger.transactions import DeviceRegistered


def device_floor(state: State, device_id: str, node_id: str) -> tuple[int, int]:
    """Return the least key bits and security in millibits that the policies want of a device; 0 where they do not."""
    selected = [policy.rules for policy in policies(state) if policy.selects_device(device_id, node_id)]
    bits = max((rules.get("device.key_bits_min", 0) for rules in selected), default=0)
    return bits, max((rules.get("device.security_bits_min", 0) for rules in selected), default=0)


def device_fault(state: State, record: DeviceRegistered) -> str | None:
    """Return why a device may not be registered with its floor, or None."""
    for policy in policies(state):
        if not policy.selects_device(record.device_id, record.node_id):
            continue
        for rule, value in (
            ("device.key_bits_min", record.key_bits_min),
            ("device.security_bits_min", record.security_millibits_min),
        ):
            if value < policy.rules.get(rule, 0):
                name = rule.partition(".")[2]
                return policy.refuse("device", f"its {name} {value} is below the policy's {policy.rules[rule]}")
        for predicate in predicates_on(policy, "device"):
            if why := predicate.refusal(_device_values(state, record)):
                return policy.refuse("predicate", f"{predicate.name}: {why}")
    return None


def _device_values(state: State, record: DeviceRegistered) -> dict[str, Any]:
    return {
        "device": record.device_id,
        "node": record.node_id,
        "key_bits_min": record.key_bits_min,
        "security_millibits_min": record.security_millibits_min,
        "height": state.height,
        "time_s": state.time_ns // NS,
    }
