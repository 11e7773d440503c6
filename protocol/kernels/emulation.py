"""The emulation's inner loops: the C kernel `_emulation` where it was built, else the numpy twin.

`IMPLEMENTATION` says which ("c" or "numpy"). Both are pure functions of the random words that they are given, and
equal bit for bit; `emulation_twin` is the specification.
"""

from typing import Final

from protocol.kernels import emulation_twin
from protocol.kernels.emulation_twin import CARRY_SIZE, DARK_TAG_FIRST, fresh_carry

__all__ = [
    "CARRY_SIZE",
    "DARK_TAG_FIRST",
    "IMPLEMENTATION",
    "detect",
    "emit",
    "fresh_carry",
    "propose",
    "split_choices",
]

propose = emulation_twin.propose
emit = emulation_twin.emit
split_choices = emulation_twin.split_choices
detect = emulation_twin.detect
IMPLEMENTATION: Final = "numpy"
