"""What a node must know to serve devices: the emulated channel to them, and how long their readings are kept."""

from dataclasses import dataclass, field

from protocol.lightweight.hybrid import Kem
from protocol.lightweight.node import require_device_link
from protocol.quantum.link import LinkParameters
from qnode.device_readings import Retention


@dataclass(frozen=True, slots=True)
class DevicePlane:
    """What a node must know to serve devices: the emulated channel to them."""

    parameters: LinkParameters
    kem: Kem | None = None  # for devices that want hybrid keys
    retention: Retention = field(default_factory=Retention)

    def __post_init__(self) -> None:
        require_device_link(self.parameters)
