"""The rules that tools check for us do bite: each is broken here on purpose.

And one rule that no tool knows: effects of the server go through `mta/effects.py` also where they are
methods, of a path or of the event loop.
"""

import ast
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]

# ---- who may import whom

CROSSINGS = {
    "pure-core": ("mta/core/ids.py", "import asyncio"),
    "core-below-shells": ("mta/core/ids.py", "import mta.effects"),
    "server-alone": ("mta/effects.py", "import simpy"),
    "model-without-shells": ("sim/crossing.py", "import mta.effects"),
    "bench-from-outside": ("testbed/crossing.py", "import mta.config"),
    "load-is-black-box": ("loadtests/crossing.py", "import sim.distributions"),
    "core-layers": ("mta/core/ids.py", "import mta.core.instructions"),
}


def lint_imports(where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=where,
        capture_output=True,
        text=True,
        timeout=60,
        env={"COLUMNS": "200", "PATH": ""},
    )


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """A project with our contracts and one legal import for each package."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    files = {
        "mta/core/ids.py": "import enum",
        "mta/core/reply.py": "",
        "mta/core/settings.py": "",
        "mta/core/limits.py": "import mta.core.ids",
        "mta/core/routing.py": "import mta.core.reply",
        "mta/core/envelopes/__init__.py": "",
        "mta/core/envelopes/base.py": "import mta.core.limits",
        "mta/core/stimuli.py": "import mta.core.envelopes.base",
        "mta/core/instructions.py": "import mta.core.ids",
        "mta/config.py": "import mta.core.limits",
        "mta/effects.py": "import asyncio, socket, time, dns, aiosmtpd",
        "sim/scenario.py": "import mta.core.settings, pathlib",
        "sim/workload.py": "import sim.scenario, sim.distributions",
        "sim/distributions.py": "import numpy",
        "sim/crossing.py": "import mta.core.stimuli, simpy",
        "testbed/crossing.py": "import sim.scenario, mta.core.ids, asyncio, dns",
        "loadtests/crossing.py": "import sim.scenario, sim.workload, locust",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    for package in ("mta", "mta/core", "sim", "testbed"):
        (tmp_path / package / "__init__.py").touch()
    return tmp_path


def test_legal_imports_keep_every_contract(skeleton: Path):
    """The contracts allow what the architecture allows."""
    run = lint_imports(skeleton)
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in run.stdout, run.stdout
    assert run.returncode == 0


def test_every_contract_can_be_broken():
    """A contract without a crossing here would be a check that nobody has seen fail."""
    assert set(CROSSINGS) == {contract["id"] for contract in CONTRACTS}


@pytest.mark.parametrize("contract", CROSSINGS)
def test_a_crossing_breaks_its_contract(skeleton: Path, contract: str):
    """One import too many, and the contract that forbids it says so in its own words."""
    name, crossing = CROSSINGS[contract]
    with (skeleton / name).open("a") as module:
        module.write(crossing + "\n")
    run = lint_imports(skeleton)
    (sentence,) = (rule["name"] for rule in CONTRACTS if rule["id"] == contract)
    assert f"{sentence} BROKEN" in run.stdout, run.stdout
    assert run.returncode == 1


# ---- banned calls

BANNED = [
    ("mta/relay.py", "import time"),
    ("mta/relay.py", "from time import monotonic"),
    ("mta/queue/store.py", "import os\nos.fsync(1)"),
    ("mta/queue/store.py", "import sqlite3\nsqlite3.connect('x')"),
    ("mta/relay.py", "import asyncio\nasyncio.open_connection('127.0.0.1', 25)"),
    ("mta/relay.py", "import asyncio\nasyncio.create_task(x())"),
    ("mta/relay.py", "import socket\nsocket.create_connection(('127.0.0.1', 25))"),
    ("mta/relay.py", "import subprocess"),
    ("mta/core/retry.py", "import random\nrandom.random()"),
    ("sim/driver.py", "import time\ntime.time()"),
    ("sim/driver.py", "import random\nrandom.seed(1)"),
]
ALLOWED = [
    ("mta/effects.py", "import os\nos.fsync(1)"),
    ("mta/clock.py", "import time\ntime.time()"),
    ("mta/ctl.py", "import socket\nsocket.socket()"),
    ("testbed/run.py", "import time\ntime.time()"),
    ("loadtests/users.py", "import time\ntime.time()"),
    ("sim/runner.py", "import time\ntime.perf_counter()"),
]


def banned_lines(name: str, code: str) -> str:
    ruff = (
        f"ruff check --no-cache --select=TID251 --output-format=concise --stdin-filename={name} -"
    )
    run = subprocess.run(
        [sys.executable, "-m", *ruff.split()],
        input=code,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode in (0, 1), run.stderr
    return run.stdout


@pytest.mark.parametrize(("name", "code"), BANNED)
def test_banned_calls_are_found(name: str, code: str):
    """Who reads a clock, rolls dice or has an effect where that is not allowed is told so."""
    assert "TID251" in banned_lines(name, code)


@pytest.mark.parametrize(("name", "code"), ALLOWED)
def test_bans_have_their_exceptions(name: str, code: str):
    """The seam, the clock, the commands and the bench may do what they are for."""
    assert "TID251" not in banned_lines(name, code)


# ---- effects that are methods

SEAM = {"effects.py", "clock.py"}
CLIENTS = {"ctl.py", "loglines.py"}
"""Not the server: `mtactl` is another process, and talks to it; the reference reads the source."""

PATH_METHODS = """
    read_text read_bytes write_text write_bytes unlink rmdir mkdir touch rename symlink_to hardlink_to
    iterdir glob rglob is_file is_dir is_socket exists stat lstat
"""
LOOP_METHODS = """
    create_connection create_unix_connection create_server create_unix_server create_datagram_endpoint
    subprocess_exec subprocess_shell getaddrinfo
"""
EFFECTS = frozenset((PATH_METHODS + LOOP_METHODS).split())


def side_doors(code: str) -> list[str]:
    """Return the effects in `code` that do not go through an object called effects: ``line: call``."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id="open"):
                found.append(f"{node.lineno}: {ast.unparse(node.func)}")
            case ast.Attribute(value=receiver, attr=attr) if attr in EFFECTS:
                if (
                    not ast.unparse(receiver)
                    .lower()
                    .rpartition(".")[2]
                    .lstrip("_")
                    .startswith("effects")
                ):
                    found.append(f"{node.lineno}: {ast.unparse(node.func)}")
    return found


def test_side_doors_are_found():
    """The check below knows a side door when it sees one, and the front door too."""
    code = textwrap.dedent(
        """
        Path("x").read_text()
        open("x")
        loop.create_server(factory)
        self._effects.create_server(factory)
        effects.unlink(path)
        """
    )
    assert side_doors(code) == ["2: Path('x').read_text", "3: open", "4: loop.create_server"]


def test_the_server_has_no_side_door():
    """Every effect of the server can be made to fail by a test, because there is one place for all."""
    modules = [path for path in (ROOT / "mta").rglob("*.py") if path.name not in SEAM | CLIENTS]
    found = {str(path.relative_to(ROOT)): side_doors(path.read_text()) for path in modules}
    assert {name: doors for name, doors in found.items() if doors} == {}
    assert len(modules) > 10
