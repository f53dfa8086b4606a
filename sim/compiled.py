"""The model as machine code: the same sources through mypyc, for sweeps and replays of millions of messages.

    python -m sim.compiled run backlog --set load.messages=1000000

runs any command of `sim` on a copy of the packages that was compiled into a directory below ``build/compiled`` named after the
digest of the sources, and makes that copy when there is none. So an edit is never hidden by an old build, what runs is never
taken away by a new one, and two that build at once do not disturb each other. The rule that it keeps: same sources, same seed,
same fingerprint (tests/benchmarks/test_compiled.py).

What it needs is what `make setup` installs, because mypyc is part of mypy, and a C compiler. What is compiled is what runs
for each message. mypyc leaves Python where it can't do better; asserts stay.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from mta.core.settings import ConfigError

COMPILED: Final = (
    "mta/core/agent.py",
    "mta/core/engine.py",
    "mta/core/envelopes/base.py",
    "mta/core/envelopes/fixed.py",
    "mta/core/envelopes/full.py",
    "mta/core/envelopes/objects.py",
    "mta/core/envelopes/packed.py",
    "mta/core/envelopes/slim.py",
    "mta/core/envelopes/whole.py",
    "mta/core/feedback.py",
    "mta/core/holdqueue.py",
    "mta/core/hoststats.py",
    "mta/core/ids.py",
    "mta/core/opener.py",
    "mta/core/outcomes.py",
    "mta/core/places.py",
    "mta/core/records.py",
    "mta/core/relay.py",
    "mta/core/relaybook.py",
    "mta/core/scheduler.py",
    "mta/core/surrender.py",
    "mta/core/waiting.py",
    "sim/cpu.py",
    "sim/driver.py",
    "sim/heapkernel.py",
    "sim/inbound.py",
    "sim/loadrecord.py",
    "sim/logs/host.py",
    "sim/measure.py",
    "sim/message.py",
    "sim/outbound.py",
    "sim/queue.py",
    "sim/recorded.py",
    "sim/records.py",
    "sim/remote/host.py",
    "sim/replay.py",
    "sim/restarts.py",
    "sim/rows.py",
    "sim/tracefile.py",
)
"""What runs for each message. A class of Python can't inherit from one of machine code, and settings can't be built from hints
that machine code has not: whatever has either stays Python, or goes along."""

PACKAGES: Final = ("mta", "sim")
ROOT: Final = Path(__file__).resolve().parent.parent
"""Where the packages are."""
BUILD: Final = Path("build/compiled")
"""Below the working directory."""
KEPT: Final = 4
"""Builds that are kept, the latest; 35 MB each."""
COMPILE_S: Final = 900.0
"""Seconds that the compilers may take; about 60 on one core."""
_SETUP: Final = """\
import sys
from setuptools import setup
from mypyc.build import mypycify

# No settings of mypy: they are for who reads the sources, and checked there.
modules = mypycify(["--config-file=", "--ignore-missing-imports", *sys.argv[3:]], debug_level="0")
setup(name="compiled", packages=[], ext_modules=modules, script_args=sys.argv[1:3])
"""


def build(directory: Path = BUILD) -> Path:
    """Compile the packages into a place below a directory, unless they are there; return that place.

    Raises:
        ConfigError: mypyc, setuptools or a C compiler is missing, the directory can't be written, or the compiler failed.
    """
    built = directory / _digest()[:16]
    if built.is_dir():
        return built
    _need_compilers()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".", dir=directory))
        try:
            _compile(work)
            _move(work, built)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        others = (path for path in directory.iterdir() if re.fullmatch("[0-9a-f]{16}", path.name))
        for old in sorted(others, key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ConfigError(str(directory), problem=f"can't be written: {error.strerror}") from None
    return built


def _move(work: Path, built: Path) -> None:
    """Let a finished build appear, whole; the one that is there stays if another was faster.

    Raises:
        OSError: it can't be.
    """
    try:
        work.rename(built)
    except OSError:
        if not built.is_dir():
            raise


def _sources() -> Iterator[Path]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            if path.is_file() and path.suffix in (".py", ".toml", ".typed"):
                yield path


def _digest() -> str:
    """Return the digest of all that a build depends on, 64 hexadecimal digits."""
    digest = hashlib.sha256(f"{sys.version} {COMPILED}".encode())
    for name in ("mypy", "setuptools"):
        try:
            digest.update(version(name).encode())
        except PackageNotFoundError:
            digest.update(b"-")
    for path in _sources():
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _need_compilers() -> None:
    for name, problem in (("mypyc", "mypy"), ("setuptools", "setuptools")):
        if find_spec(name) is None:
            raise ConfigError(name, problem=f"is not installed: `pip install {problem}`")
    if shutil.which(os.environ.get("CC", "cc").split()[0]) is None:
        raise ConfigError("CC", problem="there is no C compiler (on Debian: apt install gcc)")


def _compile(directory: Path) -> None:
    for path in _sources():
        copy = directory / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    log = directory.parent / "compile.log"
    with log.open("wb") as file:
        try:
            done = subprocess.run(  # noqa: S603  # a list, never a shell
                [sys.executable, "-c", _SETUP, "build_ext", "--inplace", *COMPILED],
                cwd=directory,
                env=environment(directory),
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=COMPILE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            problem = f"the compiler did not end within {COMPILE_S:g} s"
            raise ConfigError(str(directory), problem=problem) from None
    if done.returncode:
        raise ConfigError(str(log), problem="says why it could not be compiled")
    shutil.rmtree(directory / "build", ignore_errors=True)


def environment(directory: Path) -> dict[str, str]:
    """Return the environment in which Python finds the compiled packages before all others."""
    others = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, (str(directory.absolute()), others)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def main(arguments: Sequence[str]) -> int:
    """Build, and become the command."""
    try:
        directory = build()
    except ConfigError as error:
        sys.stderr.write(f"sim.compiled: {error}\n")
        return 2
    if not arguments:
        sys.stdout.write(f"compiled: {directory}\n")
        return 0
    command = [sys.executable, "-m", "sim", *arguments]
    os.execve(sys.executable, command, environment(directory))  # noqa: S606  # no shell is wanted
    return 0  # never


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
