"""Checks that every parameter record of the protocol shares.

A parameter record is frozen and owned by the module that uses it; it calls `require_range` on construction, so
that a bad value is refused with the reason and the valid range before anything runs.
"""

import math


class ParameterError(ValueError):
    """A parameter outside its range; the message names it, its value and the valid range."""


def require_range(name: str, value: float, low: float, high: float, unit: str = "") -> None:
    """Refuse `value` unless it is finite and low ≤ value ≤ high.

    Raises ParameterError with the parameter's name, its value, the range and the unit.
    """
    if not (math.isfinite(value) and low <= value <= high):
        suffix = f" {unit}" if unit else ""
        raise ParameterError(f"{name} is {value:g}{suffix}; it must be from {low:g} to {high:g}{suffix}")


def require(condition: bool, reason: str) -> None:
    """Refuse a relation between parameters. Raises ParameterError(reason) unless `condition`."""
    if not condition:
        raise ParameterError(reason)
