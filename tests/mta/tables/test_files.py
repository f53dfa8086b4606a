"""Files with aliases and domains: read, read again when they changed, and read in peace when they are large."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from mta.core.lookup import NOT_FOUND, Found, TemporaryError
from mta.core.settings import ConfigError
from mta.effects import Effects
from mta.tables import (
    FileTable,
    TableEffects,
    TableLimits,
)
from mta.tables.effects import RefusedFileError
from tests.support.faults import FaultyEffects, Plan, io_error
from tests.support.tables import Watch, failing, texts


def file_table(
    path: Path, effects: Effects | None = None, **options
) -> tuple[FileTable, list[str]]:
    log: list[str] = []
    return FileTable(path, TableEffects(effects or Effects()), log=log.append, **options), log


def test_an_alias_file(tmp_path, fds):
    """Keys are found as they are looked up; a link to the file is followed, as /etc/aliases often is one."""
    real = tmp_path / "mail.aliases"
    real.write_text("Info: alice,\n  bob@example.test\n")
    link = tmp_path / "aliases"
    link.symlink_to(real)
    table, log = file_table(link)
    table.load()
    assert texts(table.lookup("info")) == ["alice", "bob@example.test"]
    assert table.lookup("nobody") == NOT_FOUND
    assert log == []


def test_a_list_of_domains(tmp_path):
    """For rules: found or not."""
    path = tmp_path / "domains"
    path.write_text("Example.test\nb\u00fccher.test\n")
    table, _ = file_table(path, domains=True)
    table.load()
    assert table.lookup("xn--bcher-kva.test") == Found()
    assert table.lookup("other.test") == NOT_FOUND


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (lambda path: os.mkfifo(path), "is not a regular file"),
        (lambda path: path.write_text("a: b\na: c\n"), "line 2: the key was given before"),
        (lambda path: path.write_bytes(b"a: b\n\xff: c\n"), "line 2: is not UTF-8"),
        (lambda path: (path.write_text("a: b\n"), path.chmod(0o646)), "is writable by everybody"),
        (lambda path: path.write_text("a: b\n" + "#" * 100), "is longer than 100 bytes"),
    ],
)  # fmt: skip
def test_alias_files_that_cannot_be_used(tmp_path, fds, make, problem):
    """At the start each is one line that names the file; a FIFO does not hang us."""
    path = tmp_path / "aliases"
    make(path)
    table, _ = file_table(path, limits=TableLimits(file_bytes=100))
    with pytest.raises(ConfigError) as caught:
        table.load()
    assert str(caught.value) == f"{path}: {problem}"
    assert table.lookup("a") == TemporaryError(f"{path} was never read")
    assert table.update() == f"{path}: {problem}; what was read before still counts"


def lines(count: int, to: str) -> str:
    return "".join(f"user{number}: {to}\n" for number in range(count))


def asked_until(table: FileTable, key: str, wanted: list[str]) -> int:
    """Ask until the answer is as wanted; return how often that was."""
    deadline = time.monotonic() + 10
    times = 1
    while texts(table.lookup(key)) != wanted:
        assert time.monotonic() < deadline
        times += 1
        time.sleep(0.001)
    return times


def test_a_large_file_is_read_again_on_a_thread(tmp_path, fds):
    """Who asks meanwhile has the old answer, at once; a thousand aliases would be 5 ms of the event loop."""
    effects = FaultyEffects()
    path = tmp_path / "aliases"
    path.write_text(lines(2000, "old"))
    table, log = file_table(path, effects, limits=TableLimits(check_s=0))
    table.load()
    gate = effects.gates["open", "table"] = threading.Event()
    path.write_text(lines(2001, "new"))
    assert [["old"]] * 3 == [texts(table.lookup("user1")) for _ in range(3)]
    assert [] == log
    gate.set()
    asked_until(table, "user1", ["new"])
    assert texts(table.lookup("user2000")) == ["new"]
    assert log == [f"info: table {path}: read again, 2001 keys"]


def test_a_large_file_that_went_bad(tmp_path, fds):
    """What was read before still counts, the log says so once, and a good version is taken again."""
    path = tmp_path / "aliases"
    path.write_text(lines(2000, "old"))
    table, log = file_table(path, limits=TableLimits(check_s=0))
    table.load()
    path.write_text(lines(2000, "new") + "user1: twice\n")
    deadline = time.monotonic() + 10
    while not log:
        assert texts(table.lookup("user1")) == ["old"]
        assert time.monotonic() < deadline
    for _ in range(50):
        assert texts(table.lookup("user1")) == ["old"]
    problem = "line 2001: the key was given before; what was read before still counts"
    assert log == [f"warn: table {path}: {problem}"]
    path.write_text(lines(2002, "new"))
    asked_until(table, "user1", ["new"])


@pytest.mark.parametrize("error", [RuntimeError("bug"), MemoryError()])
def test_a_fault_while_a_large_file_is_read(tmp_path, error):
    """It is a file that can't be read, whatever it was; the next version is tried."""
    effects = FaultyEffects()
    path = tmp_path / "aliases"
    path.write_text(lines(2000, "old"))
    table, log = file_table(path, effects, limits=TableLimits(check_s=0))
    table.load()
    effects.plan = Plan(1, lambda: error, matches=lambda point: point.op == "open")
    path.write_text(lines(2001, "new"))
    deadline = time.monotonic() + 10
    while not log:
        assert texts(table.lookup("user1")) == ["old"]
        assert time.monotonic() < deadline
    assert type(error).__name__ in log[0]
    path.write_text(lines(2002, "newer"))
    asked_until(table, "user1", ["newer"])


def test_no_thread_to_read_with(tmp_path, monkeypatch):
    """The old content counts, and the log says why."""
    path = tmp_path / "aliases"
    path.write_text(lines(2000, "old"))
    table, log = file_table(path, limits=TableLimits(check_s=0))
    table.load()

    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", no_thread)
    path.write_text(lines(2001, "new"))
    assert texts(table.lookup("user1")) == ["old"]
    assert log == [
        f"warn: table {path}: no thread to read it with; what was read before still counts"
    ]


def test_a_device_is_no_alias_file():
    """Nothing is read from it."""
    table, _ = file_table(Path("/dev/zero"))
    with pytest.raises(ConfigError, match="is not a regular file"):
        table.load()


def test_a_changed_file_is_read_again(tmp_path):
    """Once a second somebody looks whether it has changed; `update` looks at once."""
    effects = Watch()
    path = tmp_path / "aliases"
    path.write_text("a: one\n")
    table, log = file_table(path, effects)
    table.load()
    assert texts(table.lookup("a")) == ["one"]
    path.write_text("a: three\n")
    effects.time = 0.9
    assert texts(table.lookup("a")) == ["one"]
    effects.time = 1.0
    assert texts(table.lookup("a")) == ["three"]
    assert log == [f"info: table {path}: read again, 1 keys"]
    path.write_text("a: four\nb: c\n")
    assert table.update() == f"{path}: 2 keys"
    assert texts(table.lookup("a")) == ["four"]
    seen = len(effects.seen)
    effects.time = 2.0
    table.lookup("a")
    assert [point.op for point in effects.seen[seen:]] == ["stat", "stat"]


def test_a_file_that_breaks_leaves_what_was_read_before(tmp_path):
    """Broken, gone, unreadable: the old aliases count, and the log says each once."""
    effects = Watch()
    path = tmp_path / "aliases"
    path.write_text("a: one\n")
    table, log = file_table(path, effects)
    table.load()

    def ask() -> None:
        effects.time += 1
        assert texts(table.lookup("a")) == ["one"]

    path.write_text("a: two\na: three\n")
    ask()
    ask()
    path.unlink()
    ask()
    ask()
    path.write_text("a: two\na: four!\n")
    effects.plan = Plan(1, io_error, for_good=True, matches=lambda point: point.op == "read")
    ask()
    ask()
    tail = "; what was read before still counts"
    assert log == [
        f"warn: table {path}: line 2: the key was given before{tail}",
        f"warn: table {path}: No such file or directory{tail}",
        f"warn: table {path}: Input/output error{tail}",
    ]
    effects.heal()
    path.write_text("a: fine\n")
    effects.time += 1
    assert texts(table.lookup("a")) == ["fine"]


def test_a_file_is_replaced_while_many_ask(tmp_path):
    """Each answer is whole, the old or the new; nobody waits for the one who reads."""
    path = tmp_path / "aliases"
    path.write_text("a: x0, y0\n")
    table, _ = file_table(path, limits=TableLimits(check_s=0))
    table.load()
    wrong: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = table.lookup("a")
            names = [] if not isinstance(answer, Found) else [one.text for one in answer.entries]
            if len(names) != 2 or names[0][1:] != names[1][1:]:
                wrong.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, 20):
            fresh = tmp_path / "fresh"
            fresh.write_text(f"a: x{number}, y{number}\n")
            fresh.replace(path)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert wrong == []
    assert texts(table.lookup("a")) == ["x19", "y19"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("when", ["before", "after"])
def test_every_point_of_reading_can_fail(tmp_path, fds, code, when):
    """At the start it is the operator's one line; no descriptor stays open."""
    path = tmp_path / "aliases"
    path.write_text("a: b\n")
    said = []
    for number in range(1, 10):
        table, _ = file_table(path, failing(number, code, when))
        try:
            table.load()
        except ConfigError as problem:
            said.append(str(problem))
        else:
            break
    assert said == [f"{path}: {os.strerror(code)}"] * 2  # open, read


def test_a_file_that_grows_while_it_is_read(tmp_path):
    """The size was checked; what is read is checked again."""
    path = tmp_path / "aliases"
    path.write_text("a: b\n")

    class Growing(Effects):
        def point(self, op: str, site: str) -> None:
            if op == "read":
                path.write_text("a: b\n" * 100)

    with pytest.raises(RefusedFileError, match="is longer than 50 bytes"):
        TableEffects(Growing()).read_checked(
            path, lambda home, found: None, max_bytes=50, follow=True, site="test"
        )
