"""The seam: what each effect promises when it works, and what is left when it fails at any point."""

import asyncio
import errno
import socket
import sqlite3
import stat
from pathlib import Path

import pytest

from mta.clock import Clock
from mta.effects import Effects, LockHeldError, NotLoopbackError, is_loopback
from tests.support.faults import FaultyEffects, Plan, disk_full, io_error


class Quiet(asyncio.Protocol):
    """A connection that says nothing."""

    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_clock_never_goes_back() -> None:
    """Two readings are in order, and near the wall clock."""
    clock = Clock()
    readings = [clock.now() for _ in range(1000)]
    assert readings == sorted(readings)
    assert 1_700_000_000 < readings[0] < 5_000_000_000


def test_write_new_makes_a_private_file_and_never_replaces_one(tmp_path: Path, fds) -> None:
    """A second file of the same name is refused, and the first stays as it was."""
    effects, path = Effects(), tmp_path / "new"
    effects.write_new(path, b"first", site="test")
    with pytest.raises(FileExistsError):
        effects.write_new(path, b"second", site="test")
    assert (effects.read_file(path, site="test"), mode(path)) == (b"first", 0o600)


def test_write_new_does_not_follow_a_link(tmp_path: Path) -> None:
    """A symbolic link in the place of the new file is a file that exists, wherever it leads."""
    (tmp_path / "new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        Effects().write_new(tmp_path / "new", b"x", site="test")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [disk_full, io_error])
def test_write_new_leaves_nothing_when_it_fails(tmp_path: Path, fds, when, error) -> None:
    """Wherever it fails, the error comes out, no file is left, and no descriptor."""
    reached = 0
    for number in range(1, 20):
        effects = FaultyEffects(Plan(number, error=error, when=when))
        path = tmp_path / f"{number}"
        try:
            effects.write_new(path, b"x" * 5000, site="test")
        except OSError:
            reached += 1
            assert not path.exists()
        else:
            break
        assert effects.failed
    assert reached == 3  # create, write, fsync


@pytest.mark.parametrize("when", ["before", "after"])
def test_write_file_is_whole_old_or_whole_new(tmp_path: Path, fds, when) -> None:
    """Wherever a replacement fails, the file is what it was or what it was to be, and nothing else is left."""
    reached = 0
    for number in range(1, 30):
        path = tmp_path / f"{number}" / "file"
        path.parent.mkdir()
        Effects().write_file(path, b"old", site="test")
        effects = FaultyEffects(Plan(number, when=when))
        try:
            effects.write_file(path, b"new" * 2000, site="test")
        except OSError:
            reached += 1
            assert path.read_bytes() in (b"old", b"new" * 2000)
        else:
            break
        assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    assert reached >= 5


def test_write_new_reports_a_real_full_file(tmp_path: Path) -> None:
    """A short write at RLIMIT_FSIZE becomes EFBIG, and the partial file is gone."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            Effects().write_new(tmp_path / "big", b"x" * 200_000, site="test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert not (tmp_path / "big").exists()


def test_append_writes_at_the_end(tmp_path: Path, fds) -> None:
    """What is appended in two openings follows each other."""
    effects, path = Effects(), tmp_path / "log"
    for line in (b"one\n", b"two\n"):
        descriptor = effects.open_append(path, site="test")
        effects.write(descriptor, line, site="test")
        effects.close(descriptor, site="test")
    assert path.read_bytes() == b"one\ntwo\n"


def test_close_closes_even_when_it_fails(tmp_path: Path, fds) -> None:
    """An error of close leaves no descriptor: closing twice could close somebody else's."""
    effects = FaultyEffects(Plan(1, matches=lambda point: point.op == "close"))
    descriptor = effects.open_append(tmp_path / "log", site="test")
    with pytest.raises(OSError, match="Input/output"):
        effects.close(descriptor, site="test")


def test_a_lock_is_held_by_one(tmp_path: Path, fds) -> None:
    """The second learns what the first wrote; after the first lets go, the next gets it."""
    effects, path = Effects(), tmp_path / "lock"
    lock = effects.lock(path, b"4711\n", site="test")
    with pytest.raises(LockHeldError) as caught:
        effects.lock(path, b"4712\n", site="test")
    assert caught.value.content == b"4711\n"
    lock.release()
    lock.release()
    effects.lock(path, b"1\n", site="test").release()
    assert path.read_bytes() == b"1\n"


def test_a_lock_that_fails_is_not_held(tmp_path: Path, fds) -> None:
    """Wherever taking it fails, the next one gets it."""
    for when in ("before", "after"):
        for number in range(1, 3):
            effects = FaultyEffects(Plan(number, when=when))
            with pytest.raises(OSError, match="Input/output"):
                effects.lock(tmp_path / "lock", b"1\n", site="test")
            Effects().lock(tmp_path / "lock", b"2\n", site="test").release()


def test_directories_are_private(tmp_path: Path) -> None:
    """A new directory has mode 0700; one that is there keeps its own."""
    effects = Effects()
    effects.mkdir(tmp_path / "a" / "b", site="test")
    effects.mkdir(tmp_path / "a" / "b", site="test")
    effects.fsync_dir(tmp_path / "a", site="test")
    assert mode(tmp_path / "a" / "b") == 0o700
    assert effects.listdir(tmp_path / "a", site="test") == ["b"]


def test_space_is_counted(tmp_path: Path) -> None:
    """There is some room, and not more than there is in all."""
    space = Effects().space(tmp_path, site="test")
    assert 0 < space.free_bytes <= space.total_bytes
    assert 0 < space.free_ratio <= 1


def test_a_database_is_private(tmp_path: Path, fds) -> None:
    """The file has mode 0600, and so has the log that SQLite makes beside it."""
    connection = Effects().sqlite(tmp_path / "x.db", site="test")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (a)")
    modes = {path.name: mode(path) for path in tmp_path.iterdir()}
    connection.close()
    assert modes == {"x.db": 0o600, "x.db-wal": 0o600, "x.db-shm": 0o600}


def test_a_database_that_fails_after_opening_is_closed(tmp_path: Path, fds) -> None:
    """An error after the effect leaves no connection behind."""
    effects = FaultyEffects(Plan(1, when="after", error=lambda: sqlite3.OperationalError("lost")))
    with pytest.raises(sqlite3.OperationalError, match="lost"):
        effects.sqlite(tmp_path / "x.db", site="test")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.1", False),
        ("192.0.2.1", False),
        ("0.0.0.0", False),
        ("169.254.169.254", False),
        ("::", False),
        ("2001:db8::1", False),
        ("localhost", False),
        ("127.0.0.1.example.com", False),
        ("", False),
    ],
)
def test_loopback_is_what_the_registries_say(address: str, expected: bool) -> None:
    """Only addresses, and only those that never leave the host."""
    assert is_loopback(address) is expected


async def test_no_connection_leaves_the_host() -> None:
    """An address elsewhere is refused before any effect, as an OSError, whose text names no address."""
    effects = FaultyEffects()
    with pytest.raises(NotLoopbackError) as caught:
        await effects.create_connection(Quiet, "192.0.2.1", 25, timeout_s=1.0, site="test")
    assert isinstance(caught.value, OSError)
    assert effects.seen == []


async def test_connections_come_and_go(fds) -> None:
    """A listener on a free port takes a connection from the source asked for."""
    effects = Effects()
    server = await effects.create_server(Quiet, "127.0.0.1", 0, site="test")
    port = server.sockets[0].getsockname()[1]
    transport, protocol = await effects.create_connection(
        Quiet, "127.0.0.1", port, timeout_s=5.0, source="127.0.0.2", site="test"
    )
    assert transport.get_extra_info("sockname")[0] == "127.0.0.2"
    transport.close()
    await protocol.lost
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0)


async def test_a_connect_that_hangs_is_ended() -> None:
    """After the time given, TimeoutError."""
    effects = FaultyEffects()
    effects.hangs.add(("connect", "test"))
    with pytest.raises(TimeoutError):
        await effects.create_connection(Quiet, "127.0.0.1", 9, timeout_s=0.01, site="test")


async def test_a_taken_port_is_an_oserror(fds) -> None:
    """EADDRINUSE comes out."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use") as caught:
            await Effects().create_server(Quiet, "127.0.0.1", taken.getsockname()[1], site="test")
    assert caught.value.errno == errno.EADDRINUSE


async def test_a_result_that_is_lost_leaves_nothing_open(fds, tmp_path: Path) -> None:
    """An error after listen or connect closes what was opened."""
    server = await Effects().create_server(Quiet, "127.0.0.1", 0, site="test")
    port = server.sockets[0].getsockname()[1]
    lost = FaultyEffects(Plan(1, when="after", for_good=True))
    with pytest.raises(OSError, match="Input/output"):
        await lost.create_server(Quiet, "127.0.0.1", 0, site="test")
    with pytest.raises(OSError, match="Input/output"):
        await lost.create_connection(Quiet, "127.0.0.1", port, timeout_s=5.0, site="test")
    with pytest.raises(OSError, match="Input/output"):
        await lost.create_datagram(asyncio.DatagramProtocol, "127.0.0.1", 9, site="test")
    with pytest.raises(OSError, match="Input/output"):
        await lost.create_unix_server(Quiet, tmp_path / "s", site="test")
    server.close()
    for _ in range(5):
        await asyncio.sleep(0.001)  # transports close in the loop's next turns


async def test_a_unix_socket_is_private(tmp_path: Path, fds) -> None:
    """Mode 0600; it takes connections; a name that is taken is refused and left alone."""
    effects, path = Effects(), tmp_path / "control"
    server = await effects.create_unix_server(Quiet, path, site="test")
    assert mode(path) == 0o600
    transport, protocol = await effects.create_unix_connection(
        Quiet, path, timeout_s=5.0, site="test"
    )
    transport.close()
    await protocol.lost
    with pytest.raises(OSError, match="in use"):
        await effects.create_unix_server(Quiet, path, site="test")
    assert path.exists()
    server.close()
    await asyncio.sleep(0.001)


async def test_queries_pass_the_seam() -> None:
    """A query's answer comes out; a fault before it means that it is never asked."""
    asked = []

    async def query() -> int:
        asked.append(1)
        return 42

    assert await Effects().dns_query(query, site="test") == 42
    with pytest.raises(OSError, match="Input/output"):
        await FaultyEffects(Plan(1)).dns_query(query, site="test")
    assert asked == [1]


def test_entropy_differs() -> None:
    """Two seeds are not the same."""
    effects = Effects()
    assert effects.entropy() != effects.entropy()


def test_files_are_removed_and_renamed(tmp_path: Path) -> None:
    """The plain effects do what they are called."""
    effects = Effects()
    effects.write_new(tmp_path / "a", b"", site="test")
    effects.rename(tmp_path / "a", tmp_path / "b", site="test")
    effects.unlink(tmp_path / "b", site="test")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        effects.unlink(tmp_path / "b", site="test")
