"""The names of a run's figures: what each says, in which unit, and whether more of it is better.

`compare` and the report read the direction here; a name that is not in the table is shown, and never judged.
"""

from typing import Final, Literal, NamedTuple

Better = Literal["lower", "higher", "neither"]


class FigureName(NamedTuple):
    """One figure: what a reader sees, its unit, its better direction."""

    title: str
    unit: str
    better: Better


FIGURES: Final[dict[str, FigureName]] = {
    "start_s": FigureName("all nodes up", "s", "lower"),
    "links_ready_s": FigureName("every link has its key", "s", "lower"),
    "pss_mib_per_node": FigureName("memory per node (PSS)", "MiB", "lower"),
    "rss_mib_per_node": FigureName("memory per node (RSS)", "MiB", "lower"),
    "open_files_per_node": FigureName("open descriptors per node", "", "lower"),
    "cpu_share_per_node": FigureName("processor share per node", "cores", "lower"),
    "heights_per_s": FigureName("heights committed", "1/s", "higher"),
    "tx_per_s": FigureName("records committed", "1/s", "higher"),
    "commit_ms_p50": FigureName("commit, median", "ms", "lower"),
    "commit_ms_p95": FigureName("commit, 95th percentile", "ms", "lower"),
    "commit_ms_p99": FigureName("commit, 99th percentile", "ms", "lower"),
    "commit_samples": FigureName("records that were timed", "", "neither"),
    "key_ms_p50": FigureName("key request, median", "ms", "lower"),
    "key_ms_p95": FigureName("key request, 95th percentile", "ms", "lower"),
    "key_ms_p99": FigureName("key request, 99th percentile", "ms", "lower"),
    "key_requests": FigureName("key requests that were timed", "", "neither"),
    "connect_ms_p50": FigureName("of a key request, a new TLS connection, median", "ms", "lower"),
    "connect_ms_p95": FigureName("of a key request, a new TLS connection, 95th percentile", "ms", "lower"),
    "connect_samples": FigureName("key requests that needed a new connection, either end", "", "neither"),
    "keys_per_s": FigureName("keys delivered", "1/s", "higher"),
    "secret_bits_per_s": FigureName("secret key made", "bit/s", "higher"),
    "message_ms_p50": FigureName("message, median", "ms", "lower"),
    "message_ms_p95": FigureName("message, 95th percentile", "ms", "lower"),
    "message_samples": FigureName("messages that were timed", "", "neither"),
    "requests_failed": FigureName("requests failed", "", "lower"),
    "bytes_per_node_and_height": FigureName("bytes sent per node and height", "B", "lower"),
    "sent_bytes_per_s_per_node": FigureName("bytes sent per node", "B/s", "lower"),
    "syncs_per_s_per_node": FigureName("disk syncs per node", "1/s", "lower"),
    "syncs_per_node_and_height": FigureName("disk syncs per node and height", "", "lower"),
    "recovery_s_p50": FigureName("recovery after a fault, median", "s", "lower"),
    "recovery_s_max": FigureName("recovery after a fault, longest", "s", "lower"),
    "attacks": FigureName("attacks", "", "neither"),
    "attacks_detected": FigureName("attacks detected", "", "neither"),
    "legitimate_events": FigureName("legitimate events", "", "neither"),
    "false_alarms": FigureName("false alarms", "", "lower"),
    "detection_rate": FigureName("detection rate (20)", "", "higher"),
    "false_alarm_rate": FigureName("false alarm rate (21)", "", "lower"),
    "throughput_mbit_per_s": FigureName("throughput (22)", "Mbit/s", "higher"),
    "latency_ms_mean": FigureName("latency, mean (23)", "ms", "lower"),
    "power_w": FigureName("power by the stated model", "W", "lower"),
    "energy_efficiency_mbit_per_s_per_w": FigureName("energy efficiency (24)", "Mbit/s/W", "higher"),
}


def figure_name(name: str) -> FigureName:
    """Return what is known of a figure; of an unknown one, its name and nothing else."""
    return FIGURES.get(name, FigureName(name.replace("_", " "), "", "neither"))
