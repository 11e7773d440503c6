"""The doors between the packages (HOUSE §2), and that no door leads key material out."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("protocol", "ledger", "qnode", "loadtest")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]

# What makes a result depend on more than its arguments.
IMPURE = {
    *("asyncio", "socket", "ssl", "select", "selectors", "threading", "multiprocessing", "concurrent", "subprocess"),
    *("time", "datetime", "os", "io", "sys", "pathlib", "shutil", "tempfile", "sqlite3", "secrets", "signal"),
    *("logging", "structlog", "aiohttp", "aiomqtt", "uvloop", "click", "rich", "requests", "urllib", "http"),
}
# The daemon's shell; every other module of qnode is pure. A new module is pure unless it is named here.
SHELL = {
    *("__main__", "assembly", "cli", "client", "cluster", "commands", "daemon", "demo", "driver", "initialise"),
    *("telemetry", "io", "api", "joining", "layout"),
}
# The pure half of a device's process; the rest of qnode/device is its shell.
DEVICE_CORE = {"agent", "energy"}
# Loading compiled kernels, building them, and designing codes by hand: no part of what a core decides.
BUILDERS = {
    *("protocol/kernels/sources.py", "protocol/kernels/emulation.py"),
    "protocol/distill/reconciliation/ldpc_design.py",
}
FILE_CALLS = {"read_text", "read_bytes", "write_text", "write_bytes", "exists", "mkdir", "unlink", "iterdir"}


def sources(package: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name not in BUILDERS and not path.name.startswith(("_distillation", "_emulation.")):
            yield name, ast.parse(path.read_text(), name)


def imported(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def is_shell(name: str) -> bool:
    """Say whether qnode/… is shell: by the first part below the package."""
    if Path(name).parts[1] == "device":
        return Path(name).stem not in DEVICE_CORE
    return Path(name).parts[1].removesuffix(".py") in SHELL


def pure_sources() -> Iterator[tuple[str, ast.Module]]:
    yield from sources("protocol")
    yield from sources("ledger")
    yield from ((name, tree) for name, tree in sources("qnode") if not is_shell(name))


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in done.stdout


@pytest.mark.parametrize("name", [name for name, _ in pure_sources()])
def test_pure_modules_import_nothing_impure(name: str) -> None:
    """A second implementation of the contracts, from the text alone: it also covers modules that no contract names."""
    tree = ast.parse((ROOT / name).read_text())
    holds_paths = name in ("qnode/settings.py", "qnode/settings_tables.py")  # they open none
    may_name_paths = {"pathlib"} if holds_paths else set()
    assert not tops(imported(tree)) & IMPURE - may_name_paths
    assert not {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & FILE_CALLS
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}


def test_packages_know_only_whom_they_may() -> None:
    allowed = {"protocol": set(), "ledger": set(), "qnode": {"protocol", "ledger"}, "loadtest": set(PACKAGES)}
    for package, others in allowed.items():
        for name, tree in sources(package):
            assert not (tops(imported(tree)) & {*PACKAGES, "tests"}) - others - {package}, name


def test_the_daemons_pure_modules_do_not_know_its_shell() -> None:
    for name, tree in sources("qnode"):
        if not is_shell(name):
            inside = {part for part in imported(tree) if part.startswith("qnode.")}
            assert not {part for part in inside if part.split(".")[1] in SHELL}, name
            if "/device/" in name:
                own = {part.split(".")[2] for part in inside if part.startswith("qnode.device.")}
                assert own <= DEVICE_CORE, name


def test_every_pure_module_of_the_daemon_stands_in_its_contract() -> None:
    (contract,) = [each for each in CONTRACTS if each["name"].startswith("the daemon's pure modules")]
    pure = {name[:-3].replace("/", ".") for name, _ in sources("qnode") if not is_shell(name)} - {"qnode.__init__"}
    assert pure == set(contract["source_modules"])


def test_randomness_of_keys_and_of_physics_stays_apart() -> None:
    """No core draws from a global generator: it is given a seeded one, or `Entropy`."""
    given = {"random": {"Random"}, "np.random": {"Generator", "Philox", "PCG64", "SeedSequence", "default_rng"}}
    for name, tree in pure_sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                owner = ast.unparse(node.value)
                assert owner not in given or node.attr in given[owner], f"{name}: {owner}.{node.attr}"
                assert (owner, node.attr) not in {("uuid", "uuid4"), ("uuid", "uuid1")}, name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr != "default_rng" or node.args, f"{name}:{node.lineno}: seeded by the system"


# ---- key material

REVEALERS = {
    "protocol/keys.py": "defines it",
    "qnode/keystore.py": "encrypts it, or hands it on in the same wrapper",
    "qnode/link_authentication.py": "refills go to the authentication streams",
    "qnode/api/etsi014.py": "the answer to the application",
    "loadtest/simulation/node_checkers.py": "compares the two ends of a simulated delivery; simulated key only",
}
SECRET_NAMES = {
    *("reveal", "secret", "secrets", "pad", "taken", "tag_key", "hash_key", "window", "pre_shared_secret"),
    *("identity_seed", "refill_transmitter", "refill_receiver", "reconciled", "_secret", "own_test_bits", "seed"),
}


def test_only_known_places_reveal_key() -> None:
    found = {
        name
        for package in PACKAGES
        for name, tree in sources(package)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "reveal"
    }
    assert found <= set(REVEALERS), "a new place reveals key: is it right, and does no log, error or record see it?"


def names_in(node: ast.AST) -> set[str]:
    """Identifiers whose value enters an expression; what only its length is taken of does not."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len":
        return set()
    own = {node.id} if isinstance(node, ast.Name) else {node.attr} if isinstance(node, ast.Attribute) else set()
    return own.union(*(names_in(child) for child in ast.iter_child_nodes(node)))


def log_calls(tree: ast.Module) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("log", "debug", "info", "warning", "error", "exception", "Log", "Noted", "print"):
                yield node


def test_no_log_line_takes_anything_secret() -> None:
    seen = 0
    for package in PACKAGES:
        for name, tree in sources(package):
            for call in log_calls(tree):
                seen += 1
                arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
                for argument in arguments:
                    assert not names_in(argument) & SECRET_NAMES, f"{name}:{call.lineno}"
    assert seen > 10, "the calls are found at all"


def test_no_error_text_takes_anything_secret() -> None:
    for package in ("protocol", "qnode"):
        for name, tree in sources(package):
            if package == "qnode" and is_shell(name):
                continue  # the shell holds files and sockets, and secrets only by their paths
            for node in ast.walk(tree):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    texts = [
                        part
                        for each in node.exc.args
                        for part in ast.walk(each)
                        if isinstance(part, ast.FormattedValue)
                    ]
                    for part in texts:
                        found = names_in(part.value) & (SECRET_NAMES - {"pre_shared_secret"})  # here: a file's name
                        assert not found, f"{name}:{node.lineno}: {found}"


def test_records_with_secret_fields_keep_them_out_of_their_repr() -> None:
    """A dataclass field of raw secret bytes says `repr=False`; KeyMaterial redacts itself."""
    for package in ("protocol", "qnode"):
        for name, tree in sources(package):
            for node in ast.walk(tree):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    raw = isinstance(node.annotation, ast.Name) and node.annotation.id in ("bytes", "bytearray")
                    if raw and node.target.id in SECRET_NAMES:
                        assert node.value is not None and "repr=False" in ast.unparse(node.value), (
                            f"{name}:{node.lineno}"
                        )
