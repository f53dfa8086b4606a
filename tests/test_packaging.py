"""What is declared is what is used: dependencies, pins, scripts, data files, set-up."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = ("mta", "sim", "testbed", "loadtests")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def requirements(*extras: str) -> dict[str, Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    found = map(Requirement, lines)
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def imported(*folders: str) -> dict[str, Path]:
    """Return the distributions that our code imports, each with one file that does so."""
    owners = packages_distributions()
    found = {}
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module or ""]
                else:
                    continue
                for name in {name.partition(".")[0] for name in names}:
                    ours = name in (*PACKAGES, "tests") or (path.parent / f"{name}.py").exists()
                    if not ours and name not in sys.stdlib_module_names:
                        for owner in owners.get(name, [f"(nothing that provides {name})"]):
                            found[canonicalize_name(owner)] = path.relative_to(ROOT)
    return found


def test_what_is_imported_is_declared():
    """Every third party module that the packages import belongs to a declared dependency."""
    # gevent is how Locust runs its users, psutil how it finds its workers, Flask how it makes its web UI: they come with
    # Locust, in the versions that it wants.
    declared = {*requirements(), "gevent", "psutil", "flask"}
    assert {
        name: str(path) for name, path in imported(*PACKAGES).items() if name not in declared
    } == {}


def test_what_tests_import_is_declared():
    """Tests and notebooks need nothing beyond the extras `dev` and `notebooks`."""
    # packaging: pytest itself depends on it. flask: what Locust's web UI is made with; pillow: matplotlib's images.
    declared = {*requirements("dev", "notebooks"), "gevent", "flask", "packaging", "pillow"}
    used = imported("tests", "notebooks")
    assert {name: str(path) for name, path in used.items() if name not in declared} == {}


def test_what_is_declared_is_imported():
    """No dependency of the past stays behind."""
    assert set(requirements()) - set(imported(*PACKAGES)) == set()


def test_pins_are_names_and_versions():
    """Pins hold no address of a registry, no path and no editable install, and are sorted."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [
        line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)
    ] == []
    assert sorted(pins, key=str.lower) == pins
    assert len({canonicalize_name(name) for name in PINS}) == len(pins)


def test_dependencies_are_pinned_to_what_they_allow():
    """Each dependency, of the extras too, has a pin, and its own bounds admit it."""
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    wrong = {
        name: pins.get(name)
        for name, requirement in requirements("dev", "notebooks", "cluster").items()
        if name not in pins or not requirement.specifier.contains(pins[name])
    }
    assert wrong == {}


@pytest.mark.parametrize("script", PROJECT["scripts"])
def test_a_script_leads_to_something_that_can_be_called(script: str):
    """Each command exists, and loads without a warning."""
    module, _, function = PROJECT["scripts"][script].partition(":")
    code = f"import {module} as module; assert callable(module.{function})"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_data_files_are_shipped():
    """Whatever lies in a package beside its modules is named as package data, or is a tool's setting."""
    globs = PYPROJECT["tool"]["setuptools"]["package-data"]
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--", *PACKAGES], cwd=ROOT, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    forgotten = []
    for name in filter(None, tracked.stdout.split("\0")):
        package, _, rest = name.partition("/")
        if not name.endswith(".py") and name != "mta/ruff.toml":
            wanted = globs["*"] + globs.get(package, [])
            if not any(fnmatch(rest, glob) for glob in wanted):
                forgotten.append(name)
    assert forgotten == []


def test_packages_say_that_they_are_typed():
    """Whoever imports us gets our types."""
    assert [
        name for name in ("mta", "sim", "testbed") if not (ROOT / name / "py.typed").exists()
    ] == []


# ---- make setup


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose Python notes how pip was called, instead of installing; `broken` makes pip fail."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/sh\n"
        'case "$1 $2 $3" in\n'
        '"-m pip install") echo "$@" >> calls; test ! -e broken; exit ;;\n'
        '"-m pip --version") exit ;;\n'
        "esac\n"
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    return tmp_path


def make(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without the variables of a `make test` around us: they would change what make prints and does.
    return subprocess.run(
        ["env", "-u", "MAKEFLAGS", "-u", "MAKELEVEL", "-u", "PYTHON", "make", *arguments],
        cwd=where,
        capture_output=True,
        text=True,
        timeout=60,
    )


def installs(where: Path) -> int:
    calls = where / "calls"
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def test_set_up_installs_once(clone: Path):
    """The second `make setup` says nothing and asks pip for nothing, so it works offline."""
    assert make(clone, "setup").returncode == 0
    assert installs(clone) == 1
    second = make(clone, "setup")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert installs(clone) == 1


def test_set_up_installs_again_when_something_else_is_asked_for(clone: Path):
    """A changed pin installs again; a changed setting of a tool, or a newer date, does not."""
    make(clone, "setup")
    pyproject = clone / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("line-length = 100", "line-length = 99"))
    (clone / "constraints.txt").touch()
    make(clone, "setup")
    assert installs(clone) == 1
    with (clone / "constraints.txt").open("a") as pins:
        pins.write("zzz==1\n")
    make(clone, "setup")
    assert installs(clone) == 2


def test_a_failed_set_up_is_tried_again(clone: Path):
    """When pip fails, one line says so, and the next `make setup` tries again."""
    (clone / "broken").touch()
    failed = make(clone, "setup")
    assert failed.returncode == 2
    assert "setup: pip failed, see above; it needs the package registry once" in failed.stderr
    (clone / "broken").unlink()
    assert make(clone, "setup").returncode == 0
    assert installs(clone) == 2


def test_set_up_without_a_python(clone: Path):
    """No Python that is new enough: one line that says what to do."""
    shutil.rmtree(clone / ".venv")
    run = make(clone, "setup", "PYTHONS=/nonexistent/python3")
    assert run.returncode == 2
    assert "setup: no Python 3.11 or newer found" in run.stderr
    assert not (clone / ".venv").exists()


def test_set_up_with_a_broken_environment(clone: Path):
    """A .venv whose Python is gone is not removed behind the user's back."""
    (clone / ".venv" / "bin" / "python").unlink()
    run = make(clone, "setup")
    assert run.returncode == 2
    assert "setup: .venv has no working Python: remove it and try again" in run.stderr
    assert (clone / ".venv").is_dir()
