"""What a device measures: recorded telemetry (CSV or JSON lines), and the generator of the data that is shipped.

The shipped files in config/telemetry are synthetic: no person's heart and no driver's way. `python -m
qnode.device.readings DIRECTORY` makes them again, byte for byte. Shapes are the textbook's: an ECG as a sum of
Gaussian waves (after McSharry et al., IEEE Trans. Biomed. Eng. 50, 289 (2003)), SpO2 and temperature as slow walks,
a vehicle that follows speed limits around a block.
"""

import csv
import itertools
import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from qnode.device.store import DeviceError

LINE_BYTES_MAX: Final = 16 * 1024
# Wave: place in the heartbeat as a share of it, height in millivolts, width as a share.
_WAVES: Final = (
    (0.20, 0.12, 0.025),
    (0.35, -0.14, 0.010),
    (0.375, 1.10, 0.011),
    (0.40, -0.25, 0.012),
    (0.62, 0.30, 0.04),
)


def recorded(path: Path) -> Iterator[bytes]:
    """Yield the readings of a file as JSON: one object per line of JSON lines, or per row of CSV with a heading.

    Raises DeviceError, naming file and line, for what is neither.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                for row in csv.DictReader(file):
                    yield _compact({name: _number(value) for name, value in row.items() if name is not None})
                return
            for number, line in enumerate(file, 1):
                if len(line) > LINE_BYTES_MAX:
                    raise DeviceError(f"{path}:{number}: a line of more than {LINE_BYTES_MAX} characters")
                if line.strip():
                    yield _compact(json.loads(line))
    except OSError as error:
        raise DeviceError(f"{path}: the readings cannot be read: {error.strerror}") from None
    except RecursionError:
        raise DeviceError(f"{path}: JSON that is nested too deeply for a reading") from None
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise DeviceError(f"{path}: neither CSV with a heading (.csv) nor JSON lines: {error}") from None


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _number(text: Any) -> Any:
    try:
        number = float(text)
    except (TypeError, ValueError):
        return text
    if not math.isfinite(number):
        return text  # JSON has no name for it
    return int(number) if number.is_integer() else number


def cardiogram(rng: random.Random, readings: int) -> Iterator[dict[str, Any]]:
    """Yield readings of a quarter of a second: 32 samples at 128 Hz in microvolts, and the heart rate."""
    phase, rate = 0.0, 68.0
    for index in range(readings):
        samples = []
        for _ in range(32):
            phase = (phase + rate / 60 / 128) % 1.0
            value = sum(h * math.exp(-((phase - at) ** 2) / (2 * w * w)) for at, h, w in _WAVES)
            samples.append(round(1000 * (value + rng.gauss(0, 0.01))))
        rate = min(110.0, max(52.0, rate + rng.gauss(0, 0.4)))
        yield {"t_ms": 250 * index, "bpm": round(rate), "ecg_uv": samples}


def vital_signs(rng: random.Random, readings: int) -> Iterator[dict[str, Any]]:
    """Yield oxygen saturation, pulse and skin temperature, one reading per second."""
    saturation, temperature, pulse = 97.0, 36.6, 70.0
    for index in range(readings):
        saturation = min(100.0, max(88.0, saturation + 0.02 * (97 - saturation) + rng.gauss(0, 0.15)))
        temperature += 0.01 * (36.7 - temperature) + rng.gauss(0, 0.01)
        pulse += 0.05 * (72 - pulse) + rng.gauss(0, 0.6)
        yield {
            "t_ms": 1000 * index,
            "spo2_percent": round(saturation, 1),
            "temperature_c": round(temperature, 2),
            "pulse_bpm": round(pulse),
        }


def drive(rng: random.Random, readings: int) -> Iterator[dict[str, Any]]:
    """Yield position and speed of a vehicle around a square block, ten readings per second."""
    east, north, speed, heading, run = 0.0, 0.0, 0.0, 0, 0.0
    for index in range(readings):
        limit = 13.9 if run < 250 else 6.0  # 50 km/h, and slow at the corner
        speed = max(0.0, speed + max(-0.3, min(0.2, 0.1 * (limit - speed))) + rng.gauss(0, 0.02))
        step = speed * 0.1
        east += step * (0, 1, 0, -1)[heading]
        north += step * (1, 0, -1, 0)[heading]
        run += step
        if run > 300:
            run, heading = 0.0, (heading + 1) % 4
        yield {
            "t_ms": 100 * index,
            "lat": round(52.0 + north / 111_320, 7),
            "lon": round(10.0 + east / (111_320 * math.cos(math.radians(52.0))), 7),
            "speed_mps": round(speed, 2),
            "heading_deg": 90 * heading,
        }


SHIPPED: Final = {"ecg.jsonl": (cardiogram, 480), "vital-signs.csv": (vital_signs, 300), "vehicle.csv": (drive, 900)}
"""File, generator, readings: two minutes, five minutes, a minute and a half."""


def shipped(name: str) -> Path:
    """Return the path of a shipped data set. Raises DeviceError for a name there is not."""
    import config

    if name not in SHIPPED:
        raise DeviceError(f"{name!r} is not shipped; there are {', '.join(SHIPPED)}")
    return Path(next(iter(config.__path__))) / "telemetry" / name


def write(directory: Path) -> None:
    """Make the shipped files."""
    for name, (generator, count) in SHIPPED.items():
        rows = list(itertools.islice(generator(random.Random(name), count), count))
        with (directory / name).open("w", encoding="utf-8", newline="") as file:
            if name.endswith(".csv"):
                table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                table.writeheader()
                table.writerows(rows)
            else:
                file.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
