"""`qnode ledger prove` and `check`, as a user calls them; the chain is that of the ledger's own tests."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from ledger.delivery_proof import prove_delivery
from ledger.inputs import TransactionsSubmitted
from ledger.transactions import AlarmRaised, KeyDelivered, SaeRegistered
from qnode import cli
from qnode.client import CallFailed, NodeClient
from qnode.cluster import Member
from qnode.commands.proof import _asked, _epsilon
from tests.ledger.cluster import MS, Net, make_genesis, make_key_block

KEY_ID = "2ae3e385-4e51-4458-b1c1-69066a4cb6d7"
PATH = ("alpha", "beta", "gamma")
DELIVERED = KeyDelivered(
    bytes.fromhex(KEY_ID.replace("-", "")),
    "app-alpha",
    "app-gamma",
    256,
    PATH,
    (("alpha-beta", 1, 0, 256), ("beta-gamma", 1, 64, 256)),
)


def invoke(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli.cli, ["ledger", *arguments], prog_name="qnode", input=text)


def submit(net: Net, node: str, *transactions: Any) -> None:
    net.give(node, TransactionsSubmitted(len(net.outputs), transactions))
    net.pass_time(20 * MS)


def made(directory: Path, *after: Any, proof_name: str = "lim-2014") -> tuple[str, str]:
    """Write genesis.json and proof.json of a chain with one relayed key; `after` happens on it before the proof."""
    net = Net(make_genesis())
    for link in ("alpha-beta", "beta-gamma"):
        submit(net, "beta", make_key_block(net.genesis, link=link, proof=proof_name))
    submit(net, "alpha", DELIVERED)
    submit(net, "beta", *after, SaeRegistered("x", "beta"))
    submit(net, "gamma", SaeRegistered("y", "gamma"))
    document = prove_delivery(net.replicas["delta"].chain, DELIVERED.key_id).document(net.genesis)
    (directory / "proof.json").write_text(json.dumps(document))
    (directory / "genesis.json").write_text(net.genesis.to_json())
    return str(directory / "proof.json"), str(directory / "genesis.json")


def test_a_good_proof_is_told_in_full(tmp_path: Path) -> None:
    proof, genesis = made(tmp_path)
    result = invoke("check", proof, "--genesis", genesis)
    assert result.exit_code == 0, result.output
    for text in (KEY_ID, "app-alpha at alpha", "app-gamma at gamma", "alpha - beta - gamma", "beta relayed the key"):
        assert text in result.output
    row = next(line for line in result.output.splitlines() if line.startswith("beta-gamma")).split("  ")
    cells = [cell.strip() for cell in row if cell.strip()]
    bits = "256 from 64"
    assert cells == ["beta-gamma", "1", bits, "2.10 %", "4,096", *cells[5:6], "lim-2014", "cascade", "beta, gamma"]
    assert cells[5] == "1.00e-10 (2^-33.2)"
    assert "epsilon 2.00e-10 (2^-32.2)" in result.output
    assert result.output.splitlines()[-1] == "PROVED"


def test_the_same_for_scripts_and_from_standard_input(tmp_path: Path) -> None:
    proof, genesis = made(tmp_path)
    result = invoke("check", "-", "--genesis", genesis, "--json", text=Path(proof).read_text())
    document = json.loads(result.output)
    assert (result.exit_code, document["ok"], document["key_id"], document["path"]) == (0, True, KEY_ID, list(PATH))
    assert document["genesis"] == make_genesis().digest.hex()


def test_an_alarm_is_a_reason_to_fail(tmp_path: Path) -> None:
    proof, genesis = made(tmp_path, AlarmRaised("alpha-beta", 2, "qber\x1b[2J", 250_000, "beta"))
    result = invoke("check", proof, "--genesis", genesis)
    assert result.exit_code == 1
    assert "NOT PROVED: under an alarm" in result.output and "alpha-beta (qber" in result.output
    assert "\x1b" not in result.output
    again = json.loads(invoke("check", proof, "--genesis", genesis, "--json").output)
    assert not again["ok"] and list(again["alarmed"]) == ["alpha-beta"]


def test_names_in_records_do_not_steer_the_terminal(tmp_path: Path) -> None:
    proof, genesis = made(tmp_path, proof_name="\x1b[31m")
    assert "\x1b" not in invoke("check", proof, "--genesis", genesis).output


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"chain_id": "other"}, "chain"),
        ({"key_blocks": []}, "key blocks"),
        ({"anchor": 1}, "format"),
    ],
)
def test_a_tampered_proof_names_the_check_that_failed(tmp_path: Path, change: dict[str, Any], name: str) -> None:
    proof, genesis = made(tmp_path)
    text = json.dumps(json.loads(Path(proof).read_text()) | change)
    plain = invoke("check", "-", "--genesis", genesis, text=text)
    assert plain.exit_code == 1 and f"NOT PROVED: the check '{name}' failed" in plain.output
    failed = invoke("check", "-", "--genesis", genesis, "--json", text=text)
    assert failed.exit_code == 1 and json.loads(failed.output)["failed_check"] == name


def test_the_wrong_genesis_fails(tmp_path: Path) -> None:
    proof, _ = made(tmp_path)
    other = tmp_path / "other.json"
    other.write_text(replace(make_genesis(), chain_id="other").to_json())
    assert invoke("check", proof, "--genesis", str(other)).exit_code == 1


def test_bytes_that_are_no_text_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proof, genesis = made(tmp_path)
    Path(proof).write_bytes(b"\xff\xfe\x00")
    assert invoke("check", proof, "--genesis", genesis).exit_code == 1
    Path(genesis).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SystemExit) as ended:
        cli.main(["ledger", "check", proof, "--genesis", genesis])
    assert ended.value.code == 3 and "genesis is not JSON" in capsys.readouterr().err


def test_a_node_that_gives_a_bad_proof_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(tmp_path / "city")
    assert CliRunner().invoke(cli.cli, ["init", directory, "--nodes", "2"]).exit_code == 0
    paths: list[str] = []

    def call(client: NodeClient, method: str, path: str, document: Any = None) -> dict[str, Any]:
        paths.append(path)
        return {"key_id": KEY_ID}

    monkeypatch.setattr(NodeClient, "call", call)
    result = CliRunner().invoke(cli.cli, ["ledger", "prove", "a/b", "--cluster", directory])
    assert result.exit_code == 1 and "node-1 gave a proof that does not hold: format" in result.output
    assert paths == ["/admin/v1/ledger/proofs/a%2Fb"]


@pytest.mark.parametrize(
    ("millibits", "text"),
    [
        (0, "1.00e0 (2^-0.0)"),
        (33_220, "1.00e-10 (2^-33.2)"),
        (33_300, "9.46e-11 (2^-33.3)"),
        (10**7, "5.01e-3011 (2^-10000.0)"),
    ],
)
def test_epsilon_is_written_however_small(millibits: int, text: str) -> None:
    assert _epsilon(millibits) == text


def test_a_trusted_height_is_written_by_a_good_check_and_believes_nothing_older(tmp_path: Path) -> None:
    proof, genesis = made(tmp_path)
    trusted = tmp_path / "trusted.json"
    result = invoke("check", proof, "--genesis", genesis, "--write-trusted", str(trusted))
    assert result.exit_code == 0 and json.loads(trusted.read_text())["height"] > 1
    result = invoke("check", proof, "--genesis", genesis, "--trusted", str(trusted))
    assert result.exit_code == 1 and "older than the trusted height" in result.output
    trusted.write_text("{}")
    result = invoke("check", proof, "--genesis", genesis, "--trusted", str(trusted))
    assert result.exit_code == 2 and "--write-trusted" in result.output


@dataclass(frozen=True)
class _Answering:
    """A node that answers with a document, or with an error of this status."""

    answer: dict[str, Any] | int

    def client(self, name: str) -> "_Answering":
        return self

    def call(self, method: str, path: str) -> dict[str, Any]:
        if isinstance(self.answer, int):
            raise CallFailed(self.answer, f"status {self.answer}")
        return self.answer


def test_nodes_that_do_not_have_the_blocks_are_passed_over() -> None:
    pruned, whole, broken = _Answering(503), _Answering({"key_id": KEY_ID}), _Answering(500)
    assert _asked(cast(list[Member], [pruned, pruned, whole, broken]), KEY_ID) == (whole, {"key_id": KEY_ID})
    for members, status in (([pruned, pruned], 503), ([broken, whole], 500)):
        with pytest.raises(CallFailed) as failed:
            _asked(cast(list[Member], members), KEY_ID)
        assert failed.value.status == status
