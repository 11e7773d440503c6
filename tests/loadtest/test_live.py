"""The live view says what it is told, at a bearable pace, on terminals and elsewhere."""

import dataclasses
import io

from loadtest.live import PLAIN_INTERVAL_S, LiveState, LiveView
from loadtest.results.records import Event

STATE = LiveState("8 nodes, 1 of 3", "measure", 0.25, 30.0, 7, 8, key_ms_p50=2.25, key_ms_p95=9.0, failures=2)


class Clock:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def test_plain_lines_come_with_phases_and_at_intervals() -> None:
    stream, clock = io.StringIO(), Clock()
    with LiveView("smoke", stream, interactive=False, monotonic=clock) as view:
        for second in range(30):
            clock.now_s = 50.0 + second
            state = dataclasses.replace(STATE, height=4 * second, records=100 * second)
            view.update(state)
            if second == 15:
                view.happened(Event(time_s=1, case=0, kind="fault", subject="node-3", detail={"fault": "kill"}))
            if second == 22:
                view.happened(Event(time_s=2, case=0, kind="recovered", subject="node-3"))
            view.happened(Event(time_s=2, case=0, kind="failure", subject="client", detail={"reason": "503"}))
        view.update(dataclasses.replace(STATE, phase="stop"))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 + 2 + 1 and PLAIN_INTERVAL_S == 10
    assert lines[1].startswith("0:10 · 8 nodes, 1 of 3, measure · 25 %, 0:30 left of this network · 7/8 nodes")
    assert "4.0 heights/s, 100 records/s" in lines[1] and "keys 2.2 / 9.0 ms" in lines[1] and "2 failed" in lines[1]
    assert lines[2] == "0:15 fault node-3 kill" and "now: kill node-3" in lines[3]
    assert lines[4] == "0:22 recovered node-3" and "stop" in lines[-1] and "now:" not in lines[-1]


def test_a_new_case_begins_its_rates_anew() -> None:
    stream, clock = io.StringIO(), Clock()
    with LiveView("scaling", stream, interactive=False, monotonic=clock) as view:
        view.update(dataclasses.replace(STATE, height=900))
        clock.now_s += 60
        view.update(dataclasses.replace(STATE, height=3, case_label="16 nodes", left_s=None))
    assert "0.0 heights/s" in stream.getvalue().splitlines()[-1] and "time left unknown" in stream.getvalue()


def test_the_panel_of_a_terminal() -> None:
    stream = io.StringIO()
    with LiveView("chaos", stream, interactive=True) as view:
        view.event("alarm link-1-2")
        view.update(STATE)
    shown = stream.getvalue()
    assert "chaos" in shown and "7 of 8" in shown and "2.2 / 9.0 ms" in shown and "alarm link-1-2" in shown
