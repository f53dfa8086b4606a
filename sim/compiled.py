"""The model as machine code: the same sources through mypyc, for sweeps and replays of millions of messages.

    python -m sim.compiled run backlog --set load.messages=1000000

runs any command of `sim` on a copy of the packages that was compiled into ``build/compiled``, and makes that copy when the
sources have changed since. Nothing is written beside the sources, so that an edit is never hidden by an old build. The rule
that it keeps: same sources, same seed, same fingerprint (tests/benchmarks/test_compiled.py).

What it needs is what `make setup` installs, because mypyc is part of mypy, and a C compiler. What is compiled is what runs
for each message. mypyc leaves Python where it can't do better; asserts stay.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from mta.core.settings import ConfigError

COMPILED: Final = (
    "mta/core/agent.py",
    "mta/core/engine.py",
    "mta/core/envelopes/fixed.py",
    "mta/core/envelopes/full.py",
    "mta/core/envelopes/objects.py",
    "mta/core/envelopes/packed.py",
    "mta/core/envelopes/slim.py",
    "mta/core/envelopes/whole.py",
    "mta/core/holdqueue.py",
    "mta/core/hoststats.py",
    "mta/core/ids.py",
    "mta/core/outcomes.py",
    "mta/core/places.py",
    "mta/core/records.py",
    "mta/core/relay.py",
    "mta/core/relaybook.py",
    "mta/core/scheduler.py",
    "mta/core/waiting.py",
    "sim/cpu.py",
    "sim/driver.py",
    "sim/inbound.py",
    "sim/outbound.py",
    "sim/queue.py",
    "sim/records.py",
    "sim/replay.py",
)
"""What runs for each message. A class of Python can't inherit from one of machine code, and settings can't be built from hints
that machine code has not: whatever has either stays Python, or goes along."""

PACKAGES: Final = ("mta", "sim")
ROOT: Final = Path(__file__).resolve().parent.parent
"""Where the packages are."""
BUILD: Final = Path("build/compiled")
"""Below the working directory."""
COMPILE_S: Final = 900.0
"""Seconds that the compilers may take; about 60 on one core."""
_STAMP: Final = "sources.sha256"
_SETUP: Final = """\
import sys
from setuptools import setup
from mypyc.build import mypycify

# No settings of mypy: they are for who reads the sources, and checked there.
setup(name="compiled", packages=[], ext_modules=mypycify(["--config-file=", "--ignore-missing-imports", *sys.argv[3:]]),
      script_args=sys.argv[1:3])
"""


def build(directory: Path = BUILD) -> Path:
    """Compile the packages into a directory, unless they are there; return it.

    Raises:
        ConfigError: mypyc, setuptools or a C compiler is missing, the directory can't be written, or the compiler failed.
    """
    stamp = directory / _STAMP
    wanted = _digest()
    try:
        if stamp.is_file() and stamp.read_text(encoding="ascii") == wanted:
            return directory
        _compile(directory)
        stamp.write_text(wanted, encoding="ascii")
    except OSError as error:
        raise ConfigError(str(directory), problem=f"can't be written: {error.strerror}") from None
    return directory


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


def _compile(directory: Path) -> None:
    for name, problem in (("mypyc", "mypy"), ("setuptools", "setuptools")):
        if find_spec(name) is None:
            raise ConfigError(name, problem=f"is not installed: `pip install {problem}`")
    if shutil.which(os.environ.get("CC", "cc").split()[0]) is None:
        raise ConfigError("CC", problem="there is no C compiler (on Debian: apt install gcc)")
    shutil.rmtree(directory, ignore_errors=True)
    for path in _sources():
        copy = directory / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    log = directory / "compile.log"
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
