"""`sim.compiled`: a copy of the packages as machine code, made anew when the sources change, and nothing beside the sources.

What it is for, the speed, is measured in tests/benchmarks/test_compiled.py; here one small module is compiled.
"""

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mta.core
import sim
from mta.core.settings import ConfigError
from sim import compiled

SMALL = ("mta/core/ids.py",)


def refused(directory: Path) -> str:
    """Return the one line that says why nothing was built."""
    with pytest.raises(ConfigError) as caught:
        compiled.build(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_compiled_is_there():
    """Every file that is named exists, once, and holds no settings: those are built from hints that machine code has not."""
    assert len(set(compiled.COMPILED)) == len(compiled.COMPILED)
    for name in compiled.COMPILED:
        assert "@dataclass" not in (compiled.ROOT / name).read_text(encoding="utf-8"), name


def test_nothing_of_python_inherits_from_what_is_compiled():
    """It could not: every class of the core or the model with a compiled base is compiled itself."""
    names = {name.removesuffix(".py").replace("/", ".") for name in compiled.COMPILED}
    checked = 0
    for package in (mta.core, sim):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith("__main__"):
                continue
            module = importlib.import_module(found.name)
            for _, one in inspect.getmembers(module, inspect.isclass):
                for base in one.__mro__[1:]:
                    if base.__module__ in names:
                        checked += 1
                        assert one.__module__ in names, (one, base)
    assert checked > 5


def test_a_module_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command runs on the copy; a second build does nothing; a source that changed is compiled again, and an error told."""
    monkeypatch.setattr(compiled, "COMPILED", SMALL)
    built = compiled.build(tmp_path / "built")
    (library,) = (built / "mta/core").glob("ids.*.so")
    assert not list((compiled.ROOT / "mta/core").glob("*.so"))
    script = "import mta.core.ids, sim.runner; print(mta.core.ids.__file__); print(sim.runner.__file__); print(mta.core.ids.evpid(7, 1))"
    said = subprocess.run(
        [sys.executable, "-c", script],
        env=compiled.environment(built),
        cwd=compiled.ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.splitlines()
    assert [str(library), str(built / "sim/runner.py"), str(7 << 32 | 1)] == said

    made_at = library.stat().st_mtime_ns
    assert compiled.build(tmp_path / "built") == built
    assert library.stat().st_mtime_ns == made_at

    # Whatever the digest covers: here the list itself. What can't be compiled is told with the place of its reasons.
    monkeypatch.setattr(compiled, "COMPILED", (*SMALL, "mta/core/missing.py"))
    assert "compile.log" in refused(tmp_path / "built")
    assert "missing" in (tmp_path / "built/compile.log").read_text(errors="replace")
    # The build that works is still there, and nothing of the other.
    assert sorted(path.name for path in (tmp_path / "built").iterdir()) == sorted(
        [built.name, "compile.log"]
    )


def test_what_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No mypyc, no compiler, no place to write to: the operator is told which."""
    with monkeypatch.context() as patch:
        patch.setenv("CC", "no-such-compiler")
        assert "C compiler" in refused(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "find_spec", lambda name: None)
        assert "pip install mypy" in refused(tmp_path / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert "can't be written" in refused(tmp_path / "file" / "c")


def test_a_compiler_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing hangs for ever, and the next build begins anew."""
    monkeypatch.setattr(compiled, "COMPILE_S", 0.01)
    assert "did not end" in refused(tmp_path / "built")
    assert [path.name for path in (tmp_path / "built").iterdir()] == ["compile.log"]


def test_of_two_that_build_at_once_one_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who comes second finds the place taken and uses what is there; old builds go, what is not ours stays."""
    place = tmp_path / "built"
    for number in range(6):
        (place / f"{number:016x}").mkdir(parents=True)
        os.utime(place / f"{number:016x}", (number, number))
    (place / "notes").mkdir()

    def slow(work: Path) -> None:
        (work / "ours").touch()
        there = place / compiled._digest()[:16]
        there.mkdir()
        (there / "theirs").touch()

    monkeypatch.setattr(compiled, "_compile", slow)
    built = compiled.build(place)
    assert [path.name for path in built.iterdir()] == ["theirs"]
    assert {path.name for path in place.iterdir()} == {
        built.name,
        "notes",
        *(f"{number:016x}" for number in (3, 4, 5)),
    }


def test_the_command_becomes_sim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Arguments go to `sim`, in an environment that finds the copy first and not the working directory; errors exit with 2."""
    monkeypatch.setattr(compiled, "build", lambda: tmp_path)
    assert compiled.main([]) == 0
    assert str(tmp_path) in capsys.readouterr().out
    seen: list[object] = []

    def execve(*arguments: object) -> None:
        seen.extend(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    with pytest.raises(SystemExit):
        compiled.main(["run", "backlog"])
    path, command, environment = seen
    assert path == sys.executable
    assert command == [sys.executable, "-m", "sim", "run", "backlog"]
    assert isinstance(environment, dict)
    assert environment["PYTHONPATH"] == f"{tmp_path}{os.pathsep}elsewhere"
    assert environment["PYTHONSAFEPATH"] == "1"

    def broken() -> Path:
        raise ConfigError("CC", problem="there is no C compiler")

    monkeypatch.setattr(compiled, "build", broken)
    assert compiled.main(["run", "backlog"]) == 2
    assert capsys.readouterr().err == "sim.compiled: CC: there is no C compiler\n"
