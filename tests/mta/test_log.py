import asyncio
import errno
import os
import re
import select

import pytest

from mta.effects import Effects
from mta.log import FLUSH_S, LINE_MAX, LineFile, Log


class Disk(Effects):
    """Effects with a disk that can be full, and a clock that stands."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.partial = 0
        self.writes = 0
        self.now = lambda: 1_357_041_605.0

    def point(self, op, site):
        if op == "write":
            self.writes += 1

    def write(self, descriptor, data, *, site):
        if self.full:
            if self.partial:
                os.write(descriptor, data[: self.partial])
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(descriptor, data, site=site)


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "maillog"


@pytest.fixture
def maillog(disk, path):
    made = Log(disk, path, host="mx", pid=42)
    yield made
    made.close()


def test_a_line_looks_like_syslog(maillog, path):
    """Month, day padded with a space, time, host, program and pid: what every log reader expects."""
    maillog.info("0000000000000001 smtp connected address=127.0.0.1 host=localhost")
    line = path.read_text()
    assert re.fullmatch(
        r"(Jan|Dec) [ 3]\d \d\d:\d\d:\d\d mx mta\[42\]: "
        r"0000000000000001 smtp connected address=127\.0\.0\.1 host=localhost\n",
        line,
    )


def test_levels(maillog, path):
    """Warnings say so; debug lines are there only while the log is verbose."""
    maillog.debug("not this")
    maillog.warn("disk is slow")
    maillog.verbose = True
    maillog.debug("but this")
    maillog.verbose = False
    maillog.debug("nor this")
    tails = [line.partition("]: ")[2] for line in path.read_text().splitlines()]
    assert ["warn: disk is slow", "debug: but this"] == tails


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("nul\x00", r"nul\x00"),
        ("line\u2028sep", r"line\u2028sep"),
        ("half \ud800", r"half \ud800"),
        ("grüße", "grüße"),
        ("x" * (LINE_MAX + 1), "x" * (LINE_MAX - 3) + "..."),
    ],
)
def test_one_fact_is_one_line(maillog, path, text, written):
    """Nobody on the network can end a line, move a cursor or fill the disk with one reply."""
    maillog.info(text)
    assert [written] == [line.partition("]: ")[2] for line in path.read_text("utf-8").splitlines()]


async def test_lines_are_collected(disk, maillog, path):
    """With a loop running, lines cost no system call each; they are there 100 ms later."""
    for number in range(100):
        maillog.info(f"line {number}")
    assert disk.writes == 0
    await asyncio.sleep(FLUSH_S)  # a timer that was set after the log's own runs after it
    assert disk.writes == 1
    assert len(path.read_text().splitlines()) == 100


async def test_close_writes_what_waits(maillog, path):
    """Nothing is lost by an orderly end, and closing twice does nothing."""
    maillog.info("last words")
    maillog.close()
    maillog.close()
    maillog.info("too late")
    assert path.read_text().endswith("last words\n")
    assert maillog.lost == 1


async def test_a_full_disk_does_not_stop_mail(disk, maillog, path):
    """While nothing can be written lines are lost and counted; then the log says how many."""
    maillog.info("before")
    maillog.flush()
    disk.full, disk.partial = True, 10
    for number in range(5):
        maillog.info(f"lost {number}")
        maillog.flush()
    assert maillog.lost == 5
    disk.full = False
    maillog.info("after")
    maillog.flush()
    lines = path.read_text().splitlines()
    assert lines[0].endswith("]: before")
    assert lines[-2].endswith("]: warn: log: 5 lines lost")
    assert lines[-1].endswith("]: after")
    assert "lost 0" not in path.read_text()


async def test_what_waits_is_bounded(disk, path):
    """A burst between two turns of the loop is written or dropped; it does not pile up."""
    file = LineFile(disk, path, site="log", buffer_max=1000)
    for _ in range(30):
        file.add(b"x" * 99 + b"\n")
    assert file.lost == 20
    file.close()
    assert path.read_bytes().count(b"x" * 99) == 10


async def test_reopen_follows_rotation(maillog, path, tmp_path):
    """After SIGHUP the old name has the new lines, and the renamed file the old ones."""
    maillog.info("old")
    path.rename(tmp_path / "maillog.0")
    maillog.reopen()
    maillog.info("new")
    maillog.flush()
    assert (tmp_path / "maillog.0").read_text().endswith("]: old\n")
    assert path.read_text().endswith("]: new\n")


async def test_reopen_that_fails_keeps_the_old_file(maillog, path, tmp_path):
    """A directory that is gone costs a warning, not the log."""
    maillog.info("old")
    kept = tmp_path / "kept"
    path.rename(kept)
    path.mkdir()
    maillog.reopen()
    maillog.flush()
    assert "]: warn: log: " in kept.read_text()
    assert "old file kept" in kept.read_text()


class _Pipe(LineFile):
    """Lines into the writing end of a pipe."""

    def __init__(self, effects, descriptor, **options):
        super().__init__(effects, None, site="log", **options)
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)


async def test_a_pipe_that_nobody_reads_does_not_block(disk):
    """Standard error into a pipe with a reader that stands still: lines wait, then are lost."""
    reader, writer = os.pipe()
    try:
        file = _Pipe(disk, writer, buffer_max=100_000)
        line = b"y" * 999 + b"\n"
        for _ in range(300):
            file.add(line)
            file.flush()
        assert file.lost > 0  # and we are here: nothing blocked
        got = os.read(reader, 1 << 20)
        while file.lost and len(got) < 300_000 - file.lost * 1000:
            file.flush()
            got += os.read(reader, 1 << 20)
        assert got.count(line) == 300 - file.lost
        file.flush()
        if select.select([reader], [], [], 0)[0]:
            got += os.read(reader, 1 << 20)
        assert b"%d lines lost\n" % file.lost in got
        file.add(b"z" * 5000 + b"\n")
        file.close()
        assert b"zzz" not in got  # longer than a pipe takes for sure: lost, not half written
    finally:
        os.close(reader)
        os.close(writer)


async def test_a_pipe_without_reader_only_counts(disk):
    """EPIPE is one more way to lose lines."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        file = _Pipe(disk, writer)
        file.add(b"x\n")
        file.close()
        assert file.lost == 1
    finally:
        os.close(writer)


async def test_a_burst_is_written_at_once(disk, path):
    """What has grown to a good size does not wait for the timer."""
    file = LineFile(disk, path, site="log")
    for _ in range(100):
        file.add(b"x" * 999 + b"\n")
    assert disk.writes == 1
    file.close()
    assert path.read_bytes() == (b"x" * 999 + b"\n") * 100


async def test_what_a_pipe_did_not_take_is_tried_again(disk):
    """Lines that wait for a slow reader go out when it has read, without a new line to push them."""
    reader, writer = os.pipe()
    try:
        file = _Pipe(disk, writer, flush_s=0.01)
        for number in range(300):
            file.add(b"%04d" % number + b"y" * 995 + b"\n")
        file.flush()
        assert file.lost == 0
        loop, got, done = asyncio.get_running_loop(), bytearray(), asyncio.Event()

        def read():
            got.extend(os.read(reader, 1 << 20))
            if len(got) >= 300_000:
                done.set()

        loop.add_reader(reader, read)
        async with asyncio.timeout(20):
            await done.wait()
        loop.remove_reader(reader)
        assert [b"%04d" % number for number in range(300)] == [
            line[:4] for line in bytes(got).splitlines()
        ]
        file.close()
    finally:
        os.close(reader)
        os.close(writer)


async def test_a_line_too_long_for_a_pipe_is_cut(disk, monkeypatch):
    """The log's lines are cut where a pipe could take half of them."""
    reader, writer = os.pipe()
    saved = os.dup(2)
    try:
        os.dup2(writer, 2)
        maillog = Log(disk, host="mx", pid=42)
        maillog.info("ü" * LINE_MAX)
        maillog.close()
        os.dup2(saved, 2)
        line = os.read(reader, 1 << 16)
        assert select.PIPE_BUF - 1 <= len(line) <= select.PIPE_BUF
        assert line.decode().endswith("ü...\n")
        assert maillog.lost == 0
    finally:
        os.dup2(saved, 2)
        for descriptor in (reader, writer, saved):
            os.close(descriptor)


async def test_a_close_that_fails_is_counted(disk, path):
    """NFS and quotas tell only at the end; the descriptor is closed all the same."""

    class Late(Disk):
        def point(self, op, site):
            if op == "close":
                raise OSError(errno.EDQUOT, "Disk quota exceeded")

    file = LineFile(Late(), path, site="log")
    file.add(b"x\n")
    file.close()
    assert file.lost == 1


async def test_a_file_that_can_not_be_opened_is_an_error_at_the_start(disk, tmp_path):
    """The server can tell the operator before it takes mail."""
    with pytest.raises(FileNotFoundError):
        Log(disk, tmp_path / "missing" / "log", host="mx", pid=42)
