import asyncio
import base64
import contextlib
import io
import json
import os
import pty
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mta import ctl, ctlshow
from mta.control import ControlServer
from mta.controlverbs import STREAMS
from mta.controlverbs import VERBS as SERVER_VERBS
from mta.core.ids import MsgId, evpid
from mta.core.metrics import METRICS, Kind
from mta.ctl import CtlError, find_verb, read_argument, run
from mta.ctlshow import show
from mta.ctlwords import duration, escaped, plain, size
from mta.effects import Effects
from mta.log import Log
from mta.trace import Tracer
from tests.support.control import NOW, FakeTarget


class Running:
    """A control server in a thread, because mtactl waits for its answers."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "control.sock"
        self.maillog = Log(Effects(), directory / "log", host="mx", pid=1)
        self.target = FakeTarget(Tracer(self.maillog))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        server = ControlServer(self.path, self.target, Effects())
        await server.start()
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._stop.wait()
        await server.close()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.maillog.close()

    def call(self, function, *arguments):
        """Do something on the server's own thread, and wait for it."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (function(*arguments), done.set()))
        assert done.wait(10)

    def ctl(self, *words, status=0, out=None):
        """Run mtactl with these words; return what it printed into a pipe."""
        out = out or io.StringIO()
        assert status == run(["-s", str(self.path), *words], out)
        return out.getvalue()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def server(tmp_path):
    with Running(tmp_path) as running:
        yield running


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


# ---- words


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("show queue", "show queue"),
        ("sh q", "show queue"),
        ("sh rel", "show relays"),
        ("sh ro", "show routes"),
        ("sh hosts", "show hosts"),
        ("sh hostst", "show hoststats"),
        ("to", "top"),
        ("sh stats", "show stats"),
        ("sh statu", "show status"),
        ("sh se", "show sessions"),
        ("sh e", "show envelope"),
        ("sh me", "show message"),
        ("m", "monitor"),
        ("sc", "schedule"),
        ("rem", "remove"),
        ("pa e", "pause envelope"),
        ("pa mt", "pause mta"),
        ("pa md", "pause mda"),
        ("ex", "expand"),
        ("pa s", "pause smtp"),
        ("res r", "resume route"),
        ("res e", "resume envelope"),
        ("tr", "trace"),
        ("unt", "untrace"),
        ("l b", "log brief"),
        ("sh sh", "show shape"),
        ("sh u", "show users"),
        ("sh l", "show limits"),
        ("sh p", "show profile"),
        ("sh mt p", "show mta paused"),
        ("d", "discover"),
        ("se", "set"),
        ("up ta", "update table"),
        ("up tl", "update tls"),
        ("up r", "update relay"),
        ("enc", "encrypt"),
        ("pr", "profile"),
        ("unp", "unprofile"),
        ("l v", "log verbose"),
    ],
)
def test_words_may_be_cut_short(typed, meant):
    """Any beginning that is clear is enough, as with smtpctl."""
    verb, rest = find_verb([*typed.split(), "0000002a"])
    assert meant == verb.words
    assert ["0000002a"] == rest


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("s", "'s' may be show or schedule"),
        ("re", "'re' may be remove or resume"),
        ("sh s", "show: 's' may be stats or shape or sessions or status"),
        ("sh r", "show: 'r' may be relays or routes"),
        ("show", "show: what? One of queue, envelope, message"),
        ("", "what? One of show, monitor"),
        ("shoe", "no 'shoe'; there are show"),
        ("pause lda", "pause: no 'lda'; there are envelope, mta, mda, smtp"),
        ("res '' ", "resume: no \"''\""),
    ],
)
def test_unclear_words_are_told_in_one_line(typed, told):
    """What the word could have been, and exit status 2."""
    with pytest.raises(CtlError) as caught:
        find_verb(typed.split())
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["remove"], "remove: EVPID|MSGID|all is missing"),
        (["remove", "all", "all"], "remove: unexpected 'all'"),
        (["show", "stats", "x"], "show stats: unexpected 'x'"),
        (["trace", "smpt"], "trace: no 'smpt'; there are smtp, mta"),
        (["trace", "s"], "trace: 's' may be smtp or scheduler"),
        (["show", "queue", "-n", "3"], "show queue: -n and -i are for monitor and top"),
        (["show", "queue", "-f"], "show queue: --follow is for trace"),
        (["monitor", "-n", "0"], "-n 0: at least 1"),
        (["monitor", "-n", "x"], "argument -n/--count: invalid int value: 'x'"),
        (["--jsn", "monitor"], "unrecognized arguments: --jsn"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(words, told):
    """Before anything is connected to."""
    with pytest.raises(CtlError) as caught:
        run(["-s", "/nonexistent/socket", *words], io.StringIO())
    assert told in str(caught.value)
    assert caught.value.status == 2


def test_both_sides_know_the_same_verbs():
    """Client and server have one vocabulary, and the client asks with fields that the server takes."""
    assert {verb.words for verb in ctl.VERBS} - ctl.LOCAL == SERVER_VERBS.keys() | STREAMS.keys()
    for verb in ctl.VERBS:
        fields = SERVER_VERBS.get(verb.words, (frozenset(),))[0] | STREAMS.get(
            verb.words, frozenset()
        )
        assert set(verb.field.split()) <= fields


def test_arguments_go_to_their_field():
    """A subsystem may be cut short too; ids and `all` may not."""
    assert {"subsystem": "scheduler"} == read_argument(find_verb(["trace"])[0], ["sch"])
    assert {"id": "al"} == read_argument(find_verb(["remove"])[0], ["al"])
    assert {} == read_argument(find_verb(["show", "queue"])[0], [])


def test_help_has_one_line_per_verb(capsys):
    """`mtactl --help` fits a screen and has everything."""
    with pytest.raises(SystemExit) as caught:
        run(["--help"], io.StringIO())
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for verb in ctl.VERBS:
        (line,) = [
            line
            for line in text.splitlines()
            if line.startswith(f"  {verb.words} ") and verb.help in line
        ]
        assert len(line) <= 100


# ---- no server


def test_no_server(tmp_path):
    """One line and exit status 2, whether the socket is missing, dead, or no socket."""
    missing, dead, file = (tmp_path / name for name in ("missing", "dead", "file"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    file.touch()
    for path in (missing, dead, file, tmp_path / ("x" * 200)):
        with pytest.raises(CtlError) as caught:
            run(["-s", str(path), "show", "status"], io.StringIO())
        assert str(path) in str(caught.value)
        assert caught.value.status == 2
    with pytest.raises(CtlError, match="the server is not running"):
        run(["-s", str(dead), "show", "status"], io.StringIO())


@pytest.mark.parametrize("said", [b"", b'{"row": {"mta": "running"}}\n', b'{"end'])
def test_an_answer_without_its_end_is_an_error(tmp_path, said):
    """Half a list is not taken for the list."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(CtlError, match="ended before the answer did"):
            run(["-s", str(tmp_path / "s"), "show", "status"], io.StringIO())
        thread.join()


# ---- in a pipe: what scripts written for smtpctl read


def test_show_queue_in_a_pipe(server):
    """smtpctl's fourteen fields, in its order."""
    server.target.put(0x2A, 1)
    server.target.put(0x2B, 1, state="in_flight", sender="", tried_at=NOW - 5)
    server.target.put(0x2C, 1, state="held", flags=["suspended"])
    first, second, third = server.ctl("show", "queue").splitlines()
    fields = first.split("|")
    assert 14 == len(fields)
    assert [
        "0000002a00000001",
        "inet4",
        "mta",
        "",
        "alice@sender.test",
        "user1@flaky.test",
        "user1@flaky.test",
        "1699996275",
        "1700345600",
        "0",
        "3",
        "pending",
    ] == fields[:12]
    assert int(NOW + 72 - time.time()) == pytest.approx(int(fields[12]), abs=60)
    assert "450 4.2.1 Mailbox busy" == fields[13]
    assert ("@", "1699999995", "inflight") == tuple(second.split("|")[i] for i in (4, 9, 11))
    assert ("suspend,hold", "pending") == tuple(third.split("|")[i] for i in (3, 11))
    assert first + "\n" == server.ctl("sh", "q", "0000002a")


def test_the_age_of_mail_in_a_pipe(server):
    """qshape's columns; the totals first."""
    server.target.put(0x2A, 2)
    server.target.put(0x2B, 1, domain="new.test", created_at=NOW)
    head, total, old, new = server.ctl("show", "shape").splitlines()
    assert ["T", "5", "10", "20", "40", "80", "160", "320", "640", "1280", "1280+"] == head.split()
    assert ["TOTAL", "3", "1", "0", "0", "0", "2", "0", "0", "0", "0", "0"] == total.split()
    assert ["flaky.test", "2"] == old.split()[:2]
    assert ["new.test", "1", "1"] == new.split()[:3]
    assert len({len(line) for line in (head, total, old, new)}) == 1
    row = json.loads(server.ctl("--json", "show", "shape").splitlines()[1])
    assert {"domain": "flaky.test", "total": 2, "ages": [0, 0, 0, 0, 2, 0, 0, 0, 0, 0]} == row


def test_limits_are_shown_and_set(server):
    """As the configuration has them; a change says what it was."""
    assert "limits.smtp.max_rcpt = 1000\n" == server.ctl("show", "limits", "smtp.max_rcpt")
    assert "limits.smtp.max_rcpt 1000 -> 5\n" == server.ctl("set", "limits.smtp.max_rcpt=5")
    shown = server.ctl("sh", "l", "smtp.max_rcpt")
    assert "limits.smtp.max_rcpt = 5  # default 1000\n" == shown
    assert 'limits.mda.policy = "hold"  # restart\n' == server.ctl("show", "limits", "mda.policy")
    for words, told in (
        (["set", "limits.smtp.max_rcpt=0"], "must be above 0"),
        (["set", "limits.mda.policy=raised"], "needs a restart"),
        (["set"], "limits.KEY=VALUE is missing"),
    ):
        with pytest.raises(CtlError, match=told) as caught:
            server.ctl(*words)
        assert 2 == caught.value.status
    with pytest.raises(CtlError, match="no limit has 'nix'") as caught:
        server.ctl("show", "limits", "nix")
    assert 1 == caught.value.status


def test_one_domain_or_user_is_paused(server):
    """In either order of the words, as smtpctl has it the other way round."""
    server.ctl("pause", "mta", "from", "127.0.0.9", "for", "slow.test")
    server.ctl("pause", "mta", "for", "dead.test")
    server.ctl("pause", "mda", "for", "alice")
    assert server.target.running["mta"]
    assert "mda - -> alice\nmta - -> dead.test\nmta 127.0.0.9 -> slow.test\n" == server.ctl(
        "show", "mta", "paused"
    )
    server.ctl("resume", "mta", "for", "slow.test", "from", "127.0.0.9")
    server.ctl("resume", "mda", "for", "alice")
    assert {("mta", "dead.test", "")} == server.target.alone
    for words, told in (
        (["pause", "mta", "from", "127.0.0.9"], "for what"),
        (["pause", "mta", "for"], "unexpected 'for'"),
        (["pause", "mta", "slow.test"], "unexpected 'slow.test'"),
        (["pause", "mda", "from", "x"], "unexpected 'from'"),
    ):
        with pytest.raises(CtlError, match=told):
            server.ctl(*words)
    assert server.target.running["mta"]


def test_discover_tables_users_and_profile(server):
    """What smtpctl says of the first two; users and timings as key=value."""
    server.target.hidden.add(evpid(MsgId(0x2A), 1))
    assert "1 envelope discovered\n" == server.ctl("discover", "0000002a")
    server.ctl("discover", "0000002b", status=1)
    with pytest.raises(CtlError, match="expected an envelope or a message, got all"):
        server.ctl("discover", "all")
    assert "/etc/aliases: 3 keys\n" == server.ctl("update", "table", "aliases")
    with pytest.raises(CtlError, match="no table 'nix'"):
        server.ctl("update", "table", "nix")
    assert "alice state=onhold pending=50 running=7 held=943\n" == server.ctl("show", "users")
    server.ctl("profile")
    assert server.target.is_profiled
    server.ctl("unprofile")
    assert not server.target.is_profiled
    assert server.ctl("show", "profile").startswith("effect.fsync:queue count=3 total_s=0.0123 ")


def test_hoststats(server):
    """smtpctl's three fields in a pipe."""
    expected = f"flaky.test|{int(NOW - 60)}|450 4.2.1 Mailbox busy\n"
    assert expected == server.ctl("show", "hoststats")


def test_top(server):
    """Once, or as often as is said; rates, and JSON on demand."""
    assert "mx.test" in server.ctl("top", "--once")
    lines = server.ctl("--json", "top", "-n", "2", "-i", "0.1").splitlines()
    assert [50.0] == [json.loads(line)["rates"]["messages"] for line in lines[1:]]
    for words in (["top", "-i", "0"], ["top", "-n", "0"], ["show", "queue", "--once"]):
        with pytest.raises(CtlError) as caught:
            server.ctl(*words)
        assert 2 == caught.value.status


def test_a_trace_of_one_address(server):
    """The rest of the line is what it is about."""
    server.ctl("trace", "expand", "a@b.test")
    tracer = server.target.tracer
    server.call(tracer.line, "expand", "rcpt to=<A@B.test>")
    server.call(tracer.line, "expand", "rcpt to=<c@b.test>")
    server.maillog.flush()
    assert "rcpt to=<A@B.test>" in (server.path.parent / "log").read_text()
    assert "c@b.test" not in (server.path.parent / "log").read_text()


def test_other_tables_in_a_pipe(server):
    """One line each, key=value, the name first."""
    server.target.put(0x2A, 1)
    assert "MTA running\nSMTP running\nversion=0.1.0\npid=4242\n" == server.ctl("show", "status")
    stats = server.ctl("show", "stats").splitlines()
    assert ["uptime=93784", "uptime.human=1d2h"] == stats[:2]
    assert "scheduler.envelope=1" in stats
    assert len(METRICS) + 2 == len(stats)
    first, connector, second = server.ctl("show", "relays").splitlines()
    assert "  connector [] nconn=0 lastconn=- flags=ERROR_BLOCKED" == connector
    assert first.startswith(
        "[relay:flaky.test] refcount=51 ntask=50 nconn=0 lastconn=- timeout=- wait=MX[ONHOLD] "
        "state=dead,onhold running=0 held=1234 "
    )
    assert first.endswith('status="451 4.4.1 Connection refused"')
    assert second.endswith("dead_until=- last_status=-")
    assert (
        "[] <-> 127.0.0.9 -D nconn=0 penalty=3 timeout=- state=disabled enabled_at=1700000100\n"
        == server.ctl("show", "routes")
    )
    assert server.ctl("show", "hosts").startswith("127.0.0.9 mx1.flaky.test refcount=- nconn=0 ")
    assert "" == server.ctl("show", "sessions")
    envelope = server.ctl("show", "envelope", "0000002a00000001").splitlines()
    assert "evpid: 0000002a00000001" == envelope[0]
    assert "flags: -" in envelope


def test_json(server):
    """One object a line, as the server knows it; with ids that can be given back."""
    server.target.put(0x2A, 300)
    rows = [json.loads(line) for line in server.ctl("--json", "show", "queue").splitlines()]
    assert list(server.target.queue.values()) == rows
    assert server.target.relays() == [
        json.loads(line) for line in server.ctl("show", "relays", "--json").splitlines()
    ]
    assert {"envelopes": 1} == json.loads(server.ctl("--json", "remove", rows[0]["evpid"]))
    message = json.loads(server.ctl("--json", "show", "message", "0000002a"))
    assert server.target.messages[0x2A] == base64.b64decode(message["base64"])
    assert ("0000002a", 24) == (message["msgid"], message["size"])
    assert {} == json.loads(server.ctl("--json", "log", "verbose"))
    (line,) = server.ctl("--json", "monitor", "-n", "1").splitlines()
    assert 299 == json.loads(line)["envelope.curr"]


def test_changes(server):
    """smtpctl's words about what was done; nothing found is exit status 1, unless all were meant."""
    server.target.put(0x2A, 3)
    assert "1 envelope paused\n" == server.ctl("pause", "envelope", "0000002a00000001")
    assert "1 envelope resumed\n" == server.ctl("resume", "envelope", "0000002a00000001")
    assert "3 envelopes scheduled\n" == server.ctl("schedule", "0000002a")
    assert "3 envelopes removed\n" == server.ctl("remove", "all")
    assert "0 envelopes removed\n" == server.ctl("remove", "all")
    assert "0 envelopes removed\n" == server.ctl("remove", "0000002a", status=1)
    assert "command succeeded\n" == server.ctl("pause", "mta")
    assert not server.target.running["mta"]
    assert "command succeeded\n" == server.ctl("resume", "route", "127.0.0.9")
    assert "command succeeded\n" == server.ctl("trace", "sch")
    assert server.target.tracer.scheduler


@pytest.mark.parametrize(
    ("words", "told", "status"),
    [
        (("show", "envelope", "0000002a00000001"), "no envelope 0000002a00000001", 1),
        (("resume", "route", "127.0.0.1"), "no route to '127.0.0.1'", 1),
        (("remove", "al"), "expected an envelope (16 hexadecimal digits)", 2),
        (("show", "queue", "0x2a"), "expected an envelope (16 hexadecimal digits)", 2),
    ],
)
def test_what_the_server_refuses(server, words, told, status):
    """No such thing is 1, asked wrongly is 2."""
    with pytest.raises(CtlError) as caught:
        server.ctl(*words)
    assert told in str(caught.value)
    assert status == caught.value.status


# ---- monitor


def test_monitor_has_smtpctls_columns():
    """Header, widths and meaning are those of smtpctl.c; `curr` is how many, the others how many more."""
    counters = dict.fromkeys(METRICS, 0)
    rows = [
        {"t": 0.0, **counters, "smtp.session": 2, "smtp.session.inet4": 5, "smtp.disconnect": 3},
        {
            "t": 1.0,
            **counters,
            "smtp.session": 1,
            "smtp.session.inet4": 6,
            "smtp.disconnect": 5,
            "scheduler.envelope": 1234,
            "scheduler.envelope.incoming": 1300,
            "scheduler.envelope.outgoing": 66,
            "scheduler.delivery.ok": 60,
            "scheduler.delivery.tempfail": 7,
            "scheduler.delivery.permfail": 6,
            "queue.bounce": 6,
        },
    ]
    out = io.StringIO()
    show("monitor", iter(rows), out=out, mode="pipe", now=0.0, end=dict)
    assert out.getvalue() == (
        "--- client ---  -- envelope --   ---- relay/delivery --- ------- misc -------\n"
        "curr conn disc  curr  enq  deq   ok tmpfail prmfail loop expire remove bounce\n"
        "   2    5    3     0    0    0    0       0       0    0      0      0      0\n"
        "   1    1    2  1234 1300   66   60       7       6    0      0      0      6\n"
    )
    out = io.StringIO()
    show("monitor", iter(rows[:1] * 60), out=out, mode="terminal", now=0.0, end=dict)
    headers = [n for n, line in enumerate(out.getvalue().splitlines()) if line.startswith("curr")]
    assert [1, 29, 57] == headers


def test_monitor_counts_what_there_is():
    """Every column is a metric of ours: how many there are now, or a counter."""
    for column in ctlshow.MONITOR:
        assert bool(column.gauge) != bool(column.counters)
        assert not column.gauge or METRICS[column.gauge].kind is Kind.GAUGE
        assert all(METRICS[name].kind is Kind.COUNTER for name in column.counters)


def test_a_server_that_does_not_count_something(server):
    """An older server is one line, not a traceback."""
    del server.target.values["queue.bounce"]
    with pytest.raises(CtlError, match=r"the server's answer has no 'queue\.bounce'"):
        server.ctl("monitor", "-n", "1")


# ---- on a terminal


def test_tables_on_a_terminal(server):
    """Ages and times in words, the state in colour, long texts cut, a count at the end."""
    now = time.time()
    server.target.put(0x2A, 1, created_at=now - 3725, due_at=now + 72.9)
    server.target.put(0x2B, 300, state="held", sender="", last_status="x" * 500)
    text = server.ctl("show", "queue", out=Terminal())
    assert "\x1b[33mpending" in text
    assert "301 envelopes" in text
    lines = _without_colours(text).splitlines()
    assert lines[0].split() == [
        "ENVELOPE",
        "STATE",
        "AGE",
        "NEXT",
        "TRIES",
        "FROM",
        "TO",
        "LAST",
        "REPLY",
    ]
    assert lines[1].split()[:5] == ["0000002a00000001", "pending", "1h2m", "1m12s", "3"]
    assert {lines[2].index("user1@"), lines[1].index("user1@")} == {lines[0].index("TO ")}
    # The second page has the same columns, and no second header.
    assert lines[0].index("TO ") == lines[300].index("user299@")
    assert 1 == sum("ENVELOPE" in line for line in lines)
    assert all(len(line) <= 120 for line in lines)
    assert "<>" in lines[2]
    for words in (("relays",), ("routes",), ("hosts",), ("stats",), ("status",), ("sessions",)):
        assert server.ctl("show", *words, out=Terminal())
    assert "no sessions" in server.ctl("show", "sessions", out=Terminal())


def test_a_narrow_terminal(server, monkeypatch):
    """At 80 columns the last reply has a line of its own; letters of two columns keep the table straight."""
    monkeypatch.setenv("COLUMNS", "80")
    server.target.put(0x2A, 1)
    server.target.put(0x2B, 1, sender="邮件邮件邮件邮件邮件@例子.test", last_status="")
    text = _without_colours(server.ctl("show", "queue", out=Terminal()))
    header, _, reply, second, count = text.splitlines()
    assert header.split()[-2:] == ["FROM", "TO"]
    assert reply == "    450 4.2.1 Mailbox busy"
    assert "邮件邮件邮" in second
    before = second[: second.index("user1")]
    assert header.index("TO") == len(before) + sum(ord(char) > 0x2FFF for char in before)
    assert "2 envelopes" == count
    assert all(len(line) <= 80 for line in text.splitlines())


def test_nothing_hostile_reaches_the_terminal(server):
    """Replies, addresses and messages of others can't move the cursor, set a title or end a line."""
    evil = "\x1b]0;owned\x07\r\n[bold]x[/]"
    server.target.put(0x2A, 1, last_status=evil, sender=evil, rcpt=evil, domain=evil, state=evil)
    server.target.messages[0x2A] = f"Subject: {evil}\r\n\r\n\x9b2J".encode("latin-1")
    for words in (
        ("show", "queue"),
        ("show", "envelope", "0000002a00000001"),
        ("show", "message", "0000002a"),
    ):
        for out in (Terminal(), io.StringIO()):
            if words[1] == "message" and not out.isatty():
                continue
            text = _without_colours(server.ctl(*words, out=out))
            assert not [char for char in text if not char.isprintable() and char != "\n"]
            assert "[bold]" in text
    assert "\x1b]0" not in server.ctl("--json", "show", "queue")


def test_empty_tables(server):
    """Nothing is said as such."""
    assert "0 envelopes" in server.ctl("show", "queue", out=Terminal())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0s"),
        (0.25, "0.2s"),
        (59.9, "59s"),
        (60, "1m"),
        (3600, "1h"),
        (93_784, "1d2h"),
        (-75, "-1m15s"),
    ],
)
def test_durations(seconds, words):
    """Two units are enough."""
    assert words == duration(seconds)


def test_values_in_words():
    """Sizes, lists, nothing."""
    assert ["0 B", "1023 B", "1.0 KiB", "35.0 MiB", "2.0 TiB"] == [
        size(n) for n in (0, 1023, 1024, 35 << 20, 2 << 40)
    ]
    assert ["-", "-", "-", "yes", "a,b", "0.25", "1700000000"] == [
        plain(v) for v in (None, "", [], True, ["a", "b"], 0.25, 1.7e9)
    ]
    assert r"\x1b[2J" == escaped("\x1b[2J")


def _without_colours(text):
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text)


# ---- as a program


@contextlib.contextmanager
def _program(server, *words, **options):
    process = subprocess.Popen(
        [sys.executable, "-m", "mta.ctl", "-s", str(server.path), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.system
def test_the_program(server):
    """Exit status, one line on standard error, raw bytes of a message on standard output."""
    body = bytes(range(256)) * 300
    server.target.messages[0x2A] = body
    with _program(server, "show", "message", "0000002a") as process:
        out, err = process.communicate(timeout=30)
        assert (0, body, b"") == (process.returncode, out, err)
    with _program(server, "s") as process:
        out, err = process.communicate(timeout=30)
        assert (2, b"", b"mtactl: 's' may be show or schedule or set\n") == (
            process.returncode,
            out,
            err,
        )
    with _program(server, "show", "envelope", "0000002a00000009") as process:
        out, err = process.communicate(timeout=30)
        assert (1, b"mtactl: no envelope 0000002a00000009\n") == (process.returncode, err)


@pytest.mark.system
def test_a_pager_that_has_enough(server):
    """`mtactl show queue | head` ends quietly."""
    server.target.put(0x2A, 20_000)
    with _program(server, "show", "queue") as process:
        assert process.stdout.readline().startswith(b"0000002a00000001|")
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=30)
        assert b"" == err
        assert 128 + 13 == process.returncode


@pytest.mark.system
def test_follow_until_interrupted(server):
    """`mtactl trace smtp --follow` prints lines as they come; ^C ends it and the tracing."""
    import signal

    with _program(server, "trace", "smtp", "--follow") as process:
        while not server.target.tracer.smtp:
            assert process.poll() is None
            time.sleep(0.01)
        server.call(server.target.tracer.line, "smtp", "<<< EHLO \x1b")
        assert rb"smtp: <<< EHLO \x1b" == process.stdout.readline().rstrip()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (0, b"") == (process.returncode, err)
    while server.target.tracer.smtp:
        time.sleep(0.01)


@pytest.mark.system
def test_a_real_terminal(server):
    """On a terminal `show relays` is a table of its width, in colour."""
    primary, secondary = pty.openpty()
    try:
        process = subprocess.run(
            [sys.executable, "-m", "mta.ctl", "-s", str(server.path), "show", "relays"],
            stdout=secondary,
            stderr=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
            timeout=30,
            check=False,
        )
        assert (0, b"") == (process.returncode, process.stderr)
        text = os.read(primary, 65536).decode()
    finally:
        os.close(primary)
        os.close(secondary)
    assert "\x1b[31mdead" in text
    assert "45" not in text.splitlines()[0]
    assert _without_colours(text).split()[:3] == ["DOMAIN", "STATE", "TASKS"]
