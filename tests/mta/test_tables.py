"""Tables, users and .forward files in a real file system: what is trusted, and what becomes of trouble."""

import errno
import os
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Literal

import pytest

from mta.core.aliases import EntryKind
from mta.core.expansionlimits import ExpansionLimits
from mta.core.lookup import NOT_FOUND, Account, Found, TemporaryError
from mta.core.settings import ConfigError, build
from mta.effects import Effects
from mta.tables import (
    FileTable,
    ServerTables,
    SqliteTable,
    StaticTable,
    StaticUsers,
    SystemUsers,
    TableConfig,
    TableEffects,
    TableLimits,
    UserConfig,
    read_forward,
    read_include,
)
from mta.tables.effects import RefusedFileError
from tests.support.faults import FaultyEffects, Plan, io_error

LIMITS = ExpansionLimits()


def failing(number: int, code: int, when: Literal["before", "after"]) -> FaultyEffects:
    return FaultyEffects(Plan(number, lambda: OSError(code, os.strerror(code)), when=when))


def texts(answer: object) -> list[str]:
    assert isinstance(answer, Found), answer
    return [entry.text for entry in answer.entries]


class Watch(FaultyEffects):
    """Effects with a clock that a test sets."""

    def __init__(self, plan: Plan | None = None) -> None:
        super().__init__(plan)
        self.time = 0.0
        self.monotonic = lambda: self.time


# ---- files


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


# ---- the configuration


def test_static_tables():
    """Entries of the configuration, with an error for each that is none."""
    table = StaticTable("t", {"Info": "a, b", "@V.test": "error:550 no"}, source="mta.toml")
    table.load()
    assert texts(table.lookup("info")) == ["a", "b"]
    assert texts(table.lookup("@v.test")) == ["550 no"]
    assert table.lookup("x") == NOT_FOUND
    assert table.update() == "2 keys of the configuration"
    table.close()


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ({"a": "b c"}, 't.toml: tables.t.entries.a = "b c": an entry is neither'),
        ({"a@": "b"}, 't.toml: tables.t.entries.a@ = "a@": is neither a name nor an address'),
        ({"a": "b", "A": "c"}, 't.toml: tables.t.entries.A = "A": was given before'),
    ],
)
def test_static_tables_that_cannot_be_used(entries, line):
    """One line that names the key."""
    with pytest.raises(ConfigError) as caught:
        StaticTable("t", entries, source="t.toml")
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("cls", "data", "line"),
    [
        (TableConfig, {}, 'path = "": is missing for kind = "file"'),
        (TableConfig, {"kind": "sqlite"}, 'path = "": is missing for kind = "sqlite"'),
        (TableConfig, {"kind": "static", "path": "/x"}, 'path = "/x": is not for kind = "static"'),
        (TableConfig, {"path": "/x", "entries": {"a": "b"}}, 'entries = {a = "b"}: are only for kind = "static"'),
        (UserConfig, {"home": "x"}, 'home = "x": must be absolute'),
        (UserConfig, {"home": "/x", "uid": -1}, "uid = -1: must be a number of a user or group"),
        (UserConfig, {"home": "/x", "gid": 2**32 - 1}, "gid = 4294967295: must be a number of a user or group"),
        (TableLimits, {"rows": 0}, "rows = 0: must be above 0; a cap of 0 is not unlimited"),
        (TableLimits, {"check_s": -1.0}, "check_s = -1.0: must not be negative"),
    ],
)  # fmt: skip
def test_configurations_that_cannot_work(cls, data, line):
    """Each is one line."""
    with pytest.raises(ConfigError) as caught:
        build(cls, data, source="t")
    assert str(caught.value) == f"t: {line}"


# ---- SQLite


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "mail.db"
    connection = sqlite3.connect(path)
    connection.executescript(
        """
        CREATE TABLE aliases (key TEXT, value);
        INSERT INTO aliases VALUES ('info', 'alice, bob'), ('info', 'carol@example.test'), ('bad', 'a b'),
            ('null', NULL), ('number', 7), ('empty', ''), ('blob', x'ff');
        """
    )
    connection.close()
    return path


QUERY = TableConfig().query


def sqlite_table(path: Path, effects: Effects | None = None, query: str = QUERY, **options):
    log: list[str] = []
    table = SqliteTable(path, query, TableEffects(effects or Effects()), log=log.append, **options)
    return table, log


def test_sqlite(database, fds):
    """Every row of the answer counts; a change counts at once; the key is never part of the query."""
    table, log = sqlite_table(database)
    table.load()
    assert texts(table.lookup("info")) == ["alice", "bob", "carol@example.test"]
    assert table.lookup("nobody") == NOT_FOUND
    assert table.lookup("' OR 1=1 --") == NOT_FOUND
    assert table.lookup("empty") == Found()
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("INSERT INTO aliases VALUES ('nobody', 'root')")
    connection.close()
    assert texts(table.lookup("nobody")) == ["root"]
    assert table.update() == f"{database}: opened"
    assert log == []
    table.close()
    table.close()


@pytest.mark.parametrize("key", ["bad", "null", "number", "blob"])
def test_sqlite_answers_that_are_no_entries(database, key):
    """Temporary: somebody will mend the row. The log says it once."""
    table, log = sqlite_table(database)
    assert isinstance(table.lookup(key), TemporaryError)
    assert isinstance(table.lookup(key), TemporaryError)
    assert len(log) == 1
    table.close()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT value FROM nothing WHERE key = ?",
        "SELECT value FROM aliases",
        "SELECT value FROM aliases WHERE key = ? AND value = ?",
        "SELECT 1; SELECT value FROM aliases WHERE key = ?",
        "DELETE FROM aliases WHERE key = ?",
        "WITH k(x) AS (SELECT ?) DELETE FROM aliases WHERE key IN k",
        "ATTACH ? AS other",
        "nonsense",
    ],
)
def test_sqlite_queries_that_cannot_be_used(database, fds, query):
    """One line at the start, and nothing was changed."""
    table, _ = sqlite_table(database, query=query)
    with pytest.raises(ConfigError) as caught:
        table.load()
    assert str(caught.value).startswith(f"{database}: query = ")
    assert query in table.update()
    assert texts(sqlite_table(database)[0].lookup("info")) == ["alice", "bob", "carol@example.test"]


def test_sqlite_makes_no_database(tmp_path):
    """A path that was mistyped is an error, not a new empty file."""
    table, _ = sqlite_table(tmp_path / "missing.db")
    with pytest.raises(ConfigError, match="unable to open"):
        table.load()
    assert list(tmp_path.iterdir()) == []


def test_sqlite_that_breaks_and_comes_back(database):
    """Gone or garbage is temporary; once it is back it is opened again."""
    table, log = sqlite_table(database)
    assert texts(table.lookup("info"))
    whole = database.read_bytes()
    database.write_bytes(b"garbage" * 1000)
    assert isinstance(table.lookup("info"), TemporaryError)
    database.unlink()
    assert isinstance(table.lookup("info"), TemporaryError)
    database.write_bytes(whole)
    assert texts(table.lookup("info")) == ["alice", "bob", "carol@example.test"]
    assert 1 <= len(log) <= 2
    table.close()


def test_sqlite_that_is_locked(database):
    """A writer that holds the database for long makes a temporary error, not a wait."""
    table, _ = sqlite_table(database, limits=TableLimits(sqlite_busy_s=0.01))
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        assert table.lookup("info") == TemporaryError("database is locked")
    finally:
        connection.close()
    assert texts(table.lookup("info")) == ["alice", "bob", "carol@example.test"]
    table.close()


def test_sqlite_queries_end(database):
    """One that would take for ever is stopped, and an answer without end is refused."""

    class Late(Effects):
        """Whose clock goes on a second at each look."""

        def __init__(self) -> None:
            super().__init__()
            self.time = 0.0
            self.monotonic = self.tick

        def tick(self) -> float:
            self.time += 1
            return self.time

    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT 'a' FROM n"
    table, _ = sqlite_table(database, Late(), query=f"{endless} WHERE i < 0 AND ? != ''")
    assert table.lookup("info") == TemporaryError("interrupted")
    table.close()
    table, _ = sqlite_table(database, query=f"{endless} WHERE ? != ''")
    assert table.lookup("info") == TemporaryError("an answer has more than 1000 rows")
    table.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_sqlite_can_fail_anywhere(database, fds, when):
    """A temporary error, and right the next time."""
    failed = 0
    for number in range(1, 10):
        effects = FaultyEffects(Plan(number, io_error, when=when))
        table, _ = sqlite_table(database, effects)
        answer = table.lookup("info")
        failed += isinstance(answer, TemporaryError)
        effects.heal()
        assert texts(table.lookup("info")) == ["alice", "bob", "carol@example.test"]
        table.close()
    assert failed == 2  # connect, query


# ---- users


def test_users_of_the_system():
    """root is one; nobody is called so, or with a NUL."""
    users = SystemUsers(TableEffects(Effects()))
    root = users.user("root")
    assert isinstance(root, Account)
    assert (root.name, root.uid) == ("root", 0)
    for name in ("no-such-user-here", "", "a\0b", "x" * 300, "\u00fc"):
        assert users.user(name) == NOT_FOUND


def test_a_user_database_that_is_down():
    """Temporary, never unknown."""
    users = SystemUsers(TableEffects(FaultyEffects(Plan(1, io_error))))
    assert users.user("root") == TemporaryError("Input/output error")


def test_users_of_the_configuration():
    """Without numbers they are the server's own user."""
    users = StaticUsers({"a": UserConfig(Path("/home/a")), "b": UserConfig(Path("/b"), 7, 8)})
    assert users.user("a") == Account("a", "/home/a", os.getuid(), os.getgid())
    assert users.user("b") == Account("b", "/b", 7, 8)
    assert users.user("c") == NOT_FOUND


# ---- .forward


@pytest.fixture
def account(tmp_path: Path) -> Account:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    return Account("alice", str(home), os.getuid(), os.getgid())


def forward(account: Account, effects: Effects | None = None):
    return read_forward(account, TableEffects(effects or Effects()), LIMITS)


def test_a_forward(account, fds):
    """Its entries, in order; comments are none."""
    Path(account.home, ".forward").write_text("# mine\nalice, bob@example.test\n|cmd\n")
    answer = forward(account)
    assert isinstance(answer, Found)
    assert [entry.kind for entry in answer.entries] == [
        EntryKind.USER,
        EntryKind.ADDRESS,
        EntryKind.COMMAND,
    ]


def test_no_forward(account, tmp_path, fds):
    """Missing, or no home to have it in: none. Empty: none of its entries."""
    assert forward(account) == NOT_FOUND
    for home in (str(tmp_path / "missing"), "/dev/null", "", "relative"):
        assert forward(account._replace(home=home)) == NOT_FOUND, home
    Path(account.home, ".forward").write_text("")
    assert forward(account) == Found()
    Path(account.home, ".forward").write_text("\n# nothing\n")
    assert forward(account) == Found()


def link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def hard_link(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("a")
    path.hardlink_to(other)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def written(text: str = "bob\n", mode: int = 0o644, home: int = 0o755):
    def make(path: Path) -> None:
        path.write_text(text)
        path.chmod(mode)
        path.parent.chmod(home)

    return make


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (link, "is a symbolic link"),
        (hard_link, "has another name elsewhere"),
        (os.mkfifo, "is not a regular file"),
        (os.mkdir, "is not a regular file"),
        (written(mode=0o664), "is writable by others"),
        (written(mode=0o646), "is writable by others"),
        (written(home=0o775), "is in a home directory that others may write to"),
        (written(home=0o757), "is in a home directory that others may write to"),
        (written(home=0o1755), "is in a sticky home directory"),
        (written("a" * 4096), "is longer than 4095 bytes"),
        (written("# \n" * 1365 + "b"), "is longer than 4095 bytes"),
        (written("bob\n\ntwo words\n"), "line 3: an entry is neither an address, a user, a file, a command, an include nor an error"),
        (written("bob, 'open, \"x\n"), "line 1: a quoted string does not end"),
        (written("x" * 2049), "line 1: is longer than 2048 bytes"),
    ],
)  # fmt: skip
def test_a_forward_that_is_not_followed(account, fds, make, why):
    """Temporary: the mail waits until the user has mended it. None of them makes us wait."""
    make(Path(account.home, ".forward"))
    assert forward(account) == TemporaryError(why)


def test_a_socket_is_no_forward(account, fds):
    """It can't even be opened."""
    unix_socket(Path(account.home, ".forward"))
    assert forward(account) == TemporaryError("No such device or address")


def test_the_size_of_a_forward(account):
    """4,095 bytes are followed, as by OpenSMTPD."""
    text = "# \n" * 1363 + "bobby\n"
    assert len(text) == 4095
    Path(account.home, ".forward").write_text(text)
    assert texts(forward(account)) == ["bobby"]


def test_a_forward_of_somebody_else(account, fds):
    """Its owner must be the user, and the home's the user or root."""
    Path(account.home, ".forward").write_text("bob\n")
    other = account._replace(uid=account.uid + 1)
    why = "is not owned by the user"
    if account.uid != 0:
        why = "is in a home directory that others may write to"
    assert forward(other) == TemporaryError(why)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_forward_in_a_home_of_somebody_else(account):
    """Who owns the home can replace the file at any time."""
    Path(account.home, ".forward").write_text("bob\n")
    os.chown(account.home, 12345, 12345)
    assert forward(account) == TemporaryError("is in a home directory that others may write to")
    os.chown(account.home, 0, 0)
    os.chown(Path(account.home, ".forward"), 12345, 12345)
    assert texts(forward(account._replace(uid=12345))) == ["bob"]


def test_a_forward_that_is_swapped_while_it_is_looked_at(account, tmp_path):
    """What was checked is what is read, whatever has its name by then."""
    path = Path(account.home, ".forward")
    path.write_text("bob\n")
    secret = tmp_path / "secret"
    secret.write_text("stolen\n")

    class Swapping(Effects):
        def done(self, op: str, site: str) -> None:
            if op == "open":
                path.unlink()
                path.symlink_to(secret)

    assert forward(account, Swapping()) == TemporaryError("has another name elsewhere")
    path.unlink()
    path.write_text("bob\n")

    class SwappingLater(Effects):
        def point(self, op: str, site: str) -> None:
            if op == "read":
                path.unlink()
                path.symlink_to(secret)

    assert texts(forward(account, SwappingLater())) == ["bob"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_forward_that_cannot_be_read_now(account, fds, code, when):
    """EIO, EMFILE: temporary wherever it happens, and nothing stays open."""
    Path(account.home, ".forward").write_text("bob\n")
    failed = 0
    for number in range(1, 10):
        answer = forward(account, failing(number, code, when))
        if isinstance(answer, Found):
            break
        failed += 1
        assert answer == TemporaryError(os.strerror(code))
    assert failed == 2  # open, read


# ---- includes, and all together


def test_includes(tmp_path, fds):
    """A list of members; missing, forbidden or broken ones say so, and never what is in them."""
    effects = TableEffects(Effects())
    path = tmp_path / "list"
    assert read_include(str(path), effects, max_bytes=100) == NOT_FOUND
    assert read_include("/", effects, max_bytes=100) == NOT_FOUND
    path.write_text("alice # first\nbob@example.test,\\\n carol\n")
    assert texts(read_include(str(path), effects, max_bytes=100)) == [
        "alice", "bob@example.test", "carol",
    ]  # fmt: skip
    path.chmod(0o666)
    assert read_include(str(path), effects, max_bytes=100) == TemporaryError(
        "is writable by everybody"
    )
    path.chmod(0o644)
    path.write_text("a\n" * 51)
    assert read_include(str(path), effects, max_bytes=100) == TemporaryError(
        "is longer than 100 bytes"
    )
    assert read_include("/dev/zero", effects, max_bytes=100) == TemporaryError(
        "is not a regular file"
    )
    shadow = tmp_path / "shadow"
    shadow.write_text("root:$6$secret:19000:0:99999:7:::\n")
    answer = read_include(str(shadow), effects, max_bytes=100)
    assert isinstance(answer, TemporaryError)
    assert "secret" not in answer.text


def test_the_server_s_tables(tmp_path, database, fds):
    """All kinds by name, users with and without a table of their own, and everything closed."""
    home = tmp_path / "alice"
    home.mkdir(mode=0o755)
    (home / ".forward").write_text("bob\n")
    (tmp_path / "aliases").write_text("info: alice, :include:/x\n")
    (tmp_path / "list").write_text("carol\n")
    tables = ServerTables(
        {
            "aliases": TableConfig(path=tmp_path / "aliases"),
            "virtual": TableConfig("sqlite", database),
            "few": TableConfig("static", entries={"a": "b"}),
        },
        {"staff": {"alice": UserConfig(home)}},
        effects=Effects(),
        source="mta.toml",
        log=pytest.fail,
    )
    try:
        assert texts(tables.lookup("aliases", "info")) == ["alice", "/x"]
        assert texts(tables.lookup("virtual", "info")) == ["alice", "bob", "carol@example.test"]
        assert texts(tables.lookup("few", "a")) == ["b"]
        alice = tables.user("staff", "alice")
        assert isinstance(alice, Account)
        assert texts(tables.forward(alice)) == ["bob"]
        assert tables.user("staff", "root") == NOT_FOUND
        assert isinstance(tables.user("", "root"), Account)
        assert texts(tables.include(str(tmp_path / "list"))) == ["carol"]
        assert [tables.update(name) for name in sorted(tables.tables)] == [
            f"{tmp_path / 'aliases'}: 1 keys",
            "1 keys of the configuration",
            f"{database}: opened",
        ]
        with pytest.raises(KeyError):
            tables.update("other")
    finally:
        tables.close()
        tables.close()


def test_a_table_that_cannot_be_used_closes_the_others(tmp_path, database, fds):
    """The start fails with one line, and leaves nothing open."""
    with pytest.raises(ConfigError) as caught:
        ServerTables(
            {"a": TableConfig("sqlite", database), "b": TableConfig(path=tmp_path / "missing")},
            {},
            effects=Effects(),
            source="mta.toml",
            log=pytest.fail,
        )
    assert str(caught.value) == f"{tmp_path / 'missing'}: No such file or directory"
