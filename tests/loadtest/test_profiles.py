"""Profiles of nodes become shares of groups, tables and text."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from loadtest.__main__ import main
from loadtest.measure.profiles import PROFILER, UNSEEN, rows, spendings, summary_lines
from loadtest.results.reader import Result
from loadtest.results.records import Commit
from loadtest.results.writer import ResultWriter
from tests.loadtest.synthetic import RUN, Clock, write_result


def _said(cpu_s: float, **shares: float) -> dict[str, object]:
    functions = [{"function": name, "own_share": own, "total_share": 0.9} for name, own in shares.items()]
    rooms = {"ledger": sum(shares.values()), "storage": 0.05}
    return {"cpu_s": cpu_s, "functions": functions, "unseen_share": 0.1, "overhead_share": 0.002, "rooms": rooms}


def test_a_group_is_the_mean_of_its_nodes_by_their_processor_time() -> None:
    profiles = [
        *rows(_said(1.0, vote=0.8), 0, "load", "node-1", "validators"),
        *rows(_said(3.0, vote=0.4, sync=0.3), 0, "load", "node-2", "validators"),
        *rows(_said(2.0, sync=0.5), 0, "load", "node-3", "followers"),
    ]
    validators, followers = spendings(profiles)
    assert (validators.group, validators.nodes, validators.cpu_s) == ("validators", 2, 4.0)
    found = {name: own for name, own, _ in validators.functions}
    assert found["vote"] == pytest.approx(0.5) and found["sync"] == pytest.approx(0.225)
    assert found[UNSEEN] == pytest.approx(0.1) and found[PROFILER] == pytest.approx(0.002)
    assert [name for name, _, _ in followers.functions] == ["sync", UNSEEN, PROFILER]
    assert validators.rooms == (("ledger", pytest.approx((0.8 + 3 * 0.7) / 4)), ("storage", pytest.approx(0.05)))
    text = "\n".join(summary_lines(profiles))
    assert "case 0, load, 2 validators: 4.00 s" in text and "50.0 %   90.0 %  vote" in text
    assert "ledger 72.5 %, storage 5.0 %" in text


def test_a_profile_as_markdown_has_a_column_per_group_and_a_table_of_functions_each(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path, RUN, monotonic=(clock := Clock()))
    case = writer.begin_case(4, 0, 0)
    writer.phase(case, "load")
    writer.commits([Commit(time_s=writer.now_s(), case=case, height=1, transactions=0)])
    clock.now_s += 20
    writer.commits([Commit(time_s=writer.now_s(), case=case, height=11, transactions=5)])
    writer.profiles(rows(_said(1.0, vote=0.8), case, "load", "node-1", "validators"))
    writer.profiles(rows(_said(0.5, sync=0.4), case, "load", "node-4", "followers"))
    writer.end_case(case)
    writer.finish()
    printed = CliRunner().invoke(main, ["profile", str(tmp_path)])
    lines = printed.output.splitlines()
    assert printed.exit_code == 0
    assert lines[0] == "| part of a node | 4 nodes: validators | 4 nodes: followers |"
    assert "| ledger | 80 % | 40 % |" in lines
    assert "| processor time per node | 50.0 ms/s | 25.0 ms/s |" in lines
    assert "| the same per height | 100.0 ms | 50.0 ms |" in lines
    assert "| 40.0 % | 90.0 % | `sync` |" in lines
    other = CliRunner().invoke(main, ["profile", str(tmp_path), "--phase", "warm-up"])
    assert "no profile of the phase 'warm-up'; there are load" in other.output


def test_a_result_from_before_rooms_is_read(tmp_path: Path) -> None:
    write_result(tmp_path, (4,), 1)
    with (tmp_path / "profiles.csv").open("w") as file:
        file.write(
            "case,phase,node_id,group,cpu_s,function,own_share,total_share\n0,load,node-1,all,2.5,vote,0.5,0.75\n"
        )
    [spending] = spendings(Result(tmp_path).profiles)
    assert spending.functions == (("vote", 0.5, 0.75),) and spending.rooms == ()
