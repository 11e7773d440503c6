"""Latencies as HDR histograms: bounded memory, mergeable, any percentile to three digits.

Decides how a latency is counted: **from when the request was due, not from when it was sent**. A client that falls
behind its schedule would otherwise leave out exactly the waits that users see (coordinated omission). The histogram
itself is the HdrHistogram library's, and so is its text form, which other tools read.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Self

from hdrh.histogram import HdrHistogram

from loadtest.results.records import Window

LOWEST_US: Final = 1
HIGHEST_US: Final = 3_600_000_000
"""An hour: longer than any request may wait; what is longer counts as an hour, and `saturated` says how many."""
DIGITS: Final = 3
WINDOW_S: Final = 30.0
"""One stretch of latencies over time: long enough for a 95th percentile at a few requests per second, and ten of them
in the shortest run whose growth is tested."""
BOOK_KEYS_MAX: Final = 4096
"""Histograms in one book: 180 KiB each when touched over their whole range, so some 700 MiB at the very worst; in
practice a few dozen. A caller that reaches it has put something unbounded (a key ID, a time) into a name."""


class LatencyHistogram:
    """How long each of many requests took, to three significant digits from 1 µs to an hour; and how many failed."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
        self.saturated = 0
        self.failures = 0

    @classmethod
    def decode(cls, text: str, failures: int = 0, saturated: int = 0) -> Self:
        """Read what `encode` wrote. Raises ValueError."""
        histogram = cls()
        try:
            histogram._histogram = HdrHistogram.decode(text)
        except Exception as error:  # the library's own errors, zlib's and base64's
            raise ValueError(f"not an HDR histogram ({type(error).__name__}: {error})") from None
        histogram.failures, histogram.saturated = failures, saturated
        return histogram

    def encode(self) -> str:
        """Return the histogram as text: HdrHistogram V2, compressed, base64."""
        encoded = self._histogram.encode()
        return encoded.decode("ascii") if isinstance(encoded, bytes) else str(encoded)

    def record_ns(self, due_ns: int, completed_ns: int) -> None:
        """Count one completed request that was due at `due_ns`. One that completed before it was due counts 1 µs."""
        value_us = max(LOWEST_US, (completed_ns - due_ns) // 1_000)
        if value_us > HIGHEST_US:
            self.saturated += 1
            value_us = HIGHEST_US
        self._histogram.record_value(value_us)

    def record_failure(self) -> None:
        """Count one request that got no answer, or a refusal: it has no latency, and is not forgotten either."""
        self.failures += 1

    def merge(self, other: "LatencyHistogram") -> None:
        """Add another histogram's counts to this one."""
        self._histogram.add(other._histogram)
        self.failures += other.failures
        self.saturated += other.saturated

    @property
    def count(self) -> int:
        """Completed requests."""
        return int(self._histogram.get_total_count())

    @property
    def mean_ms(self) -> float | None:
        """The mean; None of nothing."""
        return float(self._histogram.get_mean_value()) / 1e3 if self.count else None

    @property
    def maximum_ms(self) -> float | None:
        """The longest; None of nothing."""
        return float(self._histogram.get_max_value()) / 1e3 if self.count else None

    def percentile_ms(self, percent: float) -> float | None:
        """Return the latency that `percent` of the completed requests did not exceed; None of nothing."""
        return float(self._histogram.get_value_at_percentile(percent)) / 1e3 if self.count else None

    def counts(self) -> list[tuple[float, int]]:
        """Return (latency in ms, requests of that latency), ascending, without the empty ones."""
        recorded = self._histogram.get_recorded_iterator()
        return [(item.value_iterated_to / 1e3, int(item.count_at_value_iterated_to)) for item in recorded]


class LatencyKey(NamedTuple):
    """What a latency is of: "key", "commit", …; in which phase; at which group of nodes ("all", "validators", …)."""

    kind: str
    phase: str
    group: str


class LatencyBook:
    """The histograms of one case, by kind, phase and group."""

    def __init__(self) -> None:
        self._histograms: dict[LatencyKey, LatencyHistogram] = {}

    def of(self, kind: str, phase: str, group: str = "all") -> LatencyHistogram:
        """Return the histogram of a kind, phase and group, made empty at first. Raises ValueError at the bound."""
        key = LatencyKey(kind, phase, group)
        found = self._histograms.get(key)
        if found is None:
            if len(self._histograms) >= BOOK_KEYS_MAX:
                raise ValueError(f"more than {BOOK_KEYS_MAX} kinds of latency: {key} has something unbounded in a name")
            found = self._histograms[key] = LatencyHistogram()
        return found

    def find(self, kind: str, phase: str, group: str = "all") -> LatencyHistogram | None:
        """Return the histogram of a kind, phase and group if anything was counted in it."""
        return self._histograms.get(LatencyKey(kind, phase, group))

    def __iter__(self) -> Iterator[tuple[LatencyKey, LatencyHistogram]]:
        return iter(sorted(self._histograms.items()))


class LatencyWindows:
    """Latencies over time: one histogram per kind for the stretch of time under way, kept as its percentiles.

    `keep` hears of each stretch when the next begins, and of the last at `close`. A request belongs to the stretch in
    which it was answered.
    """

    def __init__(self, case: int, now_s: Callable[[], float], keep: Callable[[list[Window]], None]) -> None:
        self._case = case
        self._now_s = now_s
        self._keep = keep
        self._phase = ""
        self._number = 0
        self._kinds: dict[str, LatencyHistogram] = {}  # as many as clients, which a scenario bounds

    def record_ns(self, kind: str, phase: str, due_ns: int, completed_ns: int) -> None:
        """Count one answered request."""
        number = int(self._now_s() // WINDOW_S)
        if (number, phase) != (self._number, self._phase):
            self.close()
            self._number, self._phase = number, phase
        self._kinds.setdefault(kind, LatencyHistogram()).record_ns(due_ns, completed_ns)

    def close(self) -> None:
        """End the stretch under way."""
        kinds, self._kinds = self._kinds, {}
        self._keep([self._window(kind, histogram) for kind, histogram in kinds.items()])

    def _window(self, kind: str, histogram: LatencyHistogram) -> Window:
        return Window(
            time_s=(self._number + 0.5) * WINDOW_S,
            case=self._case,
            kind=kind,
            phase=self._phase,
            count=histogram.count,
            ms_p50=histogram.percentile_ms(50) or 0.0,
            ms_p95=histogram.percentile_ms(95) or 0.0,
        )
