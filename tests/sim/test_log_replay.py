"""Mail logs replayed: the model of then is the log, and limits change what they should."""

import bz2
import functools
import json
import lzma
import math
import random
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.core.settings import ConfigError
from sim import __main__ as command
from sim.logs import maincf
from sim.logs.fate import Edge, Fate
from sim.logs.host import RecordedHost
from sim.logs.replay import Replay, agreement, queued_of
from sim.logs.world import FOREVER
from sim.remote import TAKEN

DATA = Path(__file__).parents[1] / "data" / "maillog"
POSTFIX = str(DATA / "postfix.log.bz2")


@functools.cache
def lines_of(name: str) -> list[bytes]:
    packed = (DATA / name).read_bytes()
    return (bz2.decompress(packed) if name.endswith("bz2") else lzma.decompress(packed)).split(
        b"\n"
    )


@pytest.fixture(scope="module")
def postfix() -> Replay:
    return Replay([POSTFIX])


@pytest.fixture(scope="module")
def found(postfix: Replay) -> dict[str, Any]:
    return postfix.compare(["concurrency.limit=2", "concurrency.initial=2"])


class TestPostfix:
    """3,368 messages that a real Postfix relayed; one destination was out of order for three seconds, one was greylisting."""

    def test_the_counts_of_then_are_the_logs(self, found: dict[str, Any]):
        """Every one, although every retry is the model's own."""
        assert found["agreement"]["counts_differ"] == {}
        assert found["then"]["deferred"] == 404
        assert found["then"]["failed"] == found["then"]["bounced"] == 8
        assert found["then"]["delivered"] == 3917

    def test_time_and_queue_of_then_are_within_the_gates(self, found: dict[str, Any]):
        """Those for a run in the sample: drain 10 %, queue length 15 %, latency 0.1."""
        off = found["agreement"]
        assert abs(off["drain_time"]) < 0.02
        assert off["queue_area"] < 0.15
        assert off["latency_ks"] < 0.1

    def test_the_pace_is_seen_in_the_log(self, postfix: Replay):
        """It was configured to wait a minute, and to look once a minute; rounding costs seconds."""
        retry = postfix.config.retry
        assert retry.policy == "age-clamped"
        assert abs(retry.min_s - 60) <= 2
        assert retry.scan_s == 60

    def test_the_outage_is_where_it_was(self, postfix: Replay):
        """13 to 16 seconds after the first warm-up message; and greylisting is none."""
        by_name = {site.name: site for site in postfix.world.sites}
        assert {"steady.test", "flaky.test", "strict.test", "grey.test"} == set(by_name)
        (outage,) = by_name["flaky.test"].outages
        assert outage.reachable
        assert 2.5 < outage.end - outage.begin < 3.5
        assert () == by_name["grey.test"].outages == by_name["steady.test"].outages

    def test_fewer_connections_let_mail_wait(self, found: dict[str, Any]):
        """All is delivered all the same."""
        assert found["changed"] == {"concurrency.limit": 2, "concurrency.initial": 2}
        assert found["what_if"]["delivered"] == found["then"]["delivered"]
        assert found["what_if"]["p50"] > 10 * found["model"]["p50"]
        assert found["what_if"]["peak_queued"] > 2 * found["model"]["peak_queued"]

    def test_faster_attempts_are_other_attempts(self, postfix: Replay):
        """Who asks every second is refused more often in the outage, and is done sooner."""
        result = postfix.run(["retry.min_s=1", "retry.scan_s=0"])
        told = postfix.world.told.rows
        assert result.counts["delivered"] == told["delivered"]
        assert result.counts["deferred"] > told["deferred"]
        assert result.drain_time_s is not None
        assert result.drain_time_s < 0.5 * told["drain_time_s"]

    def test_the_same_again_is_the_same(self, postfix: Replay):
        """Hosts start over, and there is no chance in it."""
        assert postfix.run().summary() == postfix.run().summary()

    def test_the_logs_queue_at_any_instant(self, postfix: Replay):
        """Empty before and after; the largest is the row of the table."""
        told = postfix.world.told
        assert [0, 0] == list(queued_of(told, [-1.0, 1e6]))
        assert told.rows["peak_queued"] == queued_of(told, told.queued_at).max()

    def test_a_model_that_is_not_the_log_is_told_so(self, postfix: Replay):
        """The check can fail."""
        off = agreement(postfix.world.told, postfix.run(["retry.min_s=30", "retry.scan_s=0"]))
        assert off["drain_time"] < -0.1
        assert off["queue_area"] > 0.15


def test_exims_log_ends_with_mail_in_the_queue():
    """The model stops there, too, and has the same mail left."""
    replayed = Replay([str(DATA / "exim-mainlog.xz")])
    found = replayed.compare()
    assert found["then"]["queued"] == found["model"]["queued"] == 3045
    assert found["then"]["delivered"] == found["model"]["delivered"] == 3075
    assert found["then"]["drain_time_s"] is found["model"]["drain_time_s"] is None
    dead = next(site for site in found["sites"] if site["name"] == "dead.test")
    assert [(None, None, True)] == [
        (each["from_s"], each["to_s"], each["refuses_connections"]) for each in dead["outages"]
    ]


def test_opensmtpds_log_is_explained_by_its_gaps():
    """One new connection in five seconds for each route: half of the mail waits nearly two seconds."""
    replayed = Replay([str(DATA / "opensmtpd.log.xz")])
    found = replayed.compare(["limits.mta.conn_delay_route_s=0", "limits.mta.conn_delay_relay_s=0"])
    for key in ("accepted", "bounced", "failed"):
        assert found["then"][key] == found["model"][key]
    assert found["then"]["p50"] == pytest.approx(found["model"]["p50"], rel=0.25)
    assert found["what_if"]["p50"] < 0.3 * found["model"]["p50"]
    assert [2, 1, 1] == [site.hosts for site in replayed.world.sites]


def log_of(path: Path, attempts: Iterable[tuple[int, str, str, str]], end_s: int = 0) -> str:
    """Write a Postfix's log: (second, recipient, relay, status); each message comes a second before its first attempt."""
    lines: list[tuple[int, str]] = []
    keys: dict[str, str] = {}
    for second, rcpt, relay, status in attempts:
        key = keys.get(rcpt)
        if key is None:
            key = keys[rcpt] = f"{len(keys):05X}{len(keys):05X}"
            lines.append((second - 1, f"smtpd[7]: {key}: client=a.test[192.0.2.1]"))
            lines.append(
                (second - 1, f"qmgr[8]: {key}: from=<a@a.test>, size=999, nrcpt=1 (queue active)")
            )
        delay = second - next(at for at, line in lines if key in line)
        lines.append((second, f"smtp[9]: {key}: to=<{rcpt}>, relay={relay}, delay={delay}, delays={delay - 0.5}/0/0.25/0.25,"
                      f" dsn=4.0.0, status={status} (host x said: 451 4.2.0 busy)"))  # fmt: skip
        if status != "deferred":
            lines.append((second, f"qmgr[8]: {key}: removed"))
    lines.sort(key=lambda line: line[0])
    if end_s:
        lines.append((end_s, "anvil[3]: statistics"))
    text = [
        f"{datetime.fromtimestamp(1_763_800_000 + at, UTC):%Y-%m-%dT%H:%M:%S}+00:00 mx1 postfix/{line}\n"
        for at, line in lines
    ]
    path.write_text("".join(text))
    return str(path)


class TestWorlds:
    """Logs that are unlike the recorded ones."""

    def test_many_domains_are_198_and_the_others(self, tmp_path: Path):
        """The smallest share a destination; nothing is lost by it."""
        log = log_of(
            tmp_path / "x.log",
            [
                (2 + i % 50, f"u{i}@d{i % 300}.test", f"mx{i % 300}[192.0.2.1]:25", "sent")
                for i in range(900)
            ],
        )
        replayed = Replay([log])
        assert (199, "others", 306) == (
            len(replayed.world.sites), replayed.world.sites[-1].name, replayed.world.sites[-1].recipients,
        )  # fmt: skip
        assert replayed.compare()["agreement"]["counts_differ"] == {}

    def test_a_smart_host_is_the_only_destination(self, tmp_path: Path):
        """Whatever the domains: it is the one that is slow, or out of order."""
        log = log_of(
            tmp_path / "x.log",
            [(2 + i, f"u{i}@d{i % 30}.test", "hub.test[192.0.2.1]:25", "sent") for i in range(90)],
        )
        (site,) = Replay([log]).world.sites
        assert ("hub.test[192.0.2.1]:25", 90, 1) == (site.name, site.recipients, site.hosts)

    def test_who_is_never_delivered_is_never_delivered(self, tmp_path: Path):
        """A full mailbox beside others of the same host; the model ends where the log does."""
        good = [(2 + i, f"u{i}@a.test", "mx[192.0.2.1]:25", "sent") for i in range(100)]
        full = [(2 + 20 * k, "full@a.test", "mx[192.0.2.1]:25", "deferred") for k in range(5)]
        replayed = Replay([log_of(tmp_path / "x.log", [*good, *full], end_s=200)])
        found = replayed.compare(["retry.min_s=1", "retry.scan_s=0", "retry.max_s=5"])
        assert (
            found["then"]["queued"] == found["model"]["queued"] == found["what_if"]["queued"] == 1
        )
        assert found["what_if"]["deferred"] > 30
        assert replayed.results["what if"].end_s < 210

    def test_a_log_of_a_week_has_no_more_samples_than_it_can_have(self, tmp_path: Path):
        """The grain grows with the log."""
        sent = [(2 + 6048 * i, f"u{i}@a.test", "mx[192.0.2.1]:25", "sent") for i in range(101)]
        replayed = Replay([log_of(tmp_path / "x.log", sent)])
        assert replayed.world.sample_s == pytest.approx(6.05, abs=0.01)
        result = replayed.run()
        assert result.counts["delivered"] == 101
        assert len(result.t) < 110_000

    def test_a_message_that_no_model_takes_is_replayed(self, tmp_path: Path):
        """It is larger than anything that is let in: nothing is delivered, so that there is no time to compare."""
        path = tmp_path / "maillog"
        path.write_text(
            "Nov 22 21:55:50 h smtpd[1]: 0123456789abcdef smtp message msgid=01234567 size=999999999999 nrcpt=1\n"
            "Nov 22 21:55:51 h smtpd[1]: 0123456789abcdef mta delivery evpid=0123456700000001 from=<a@b.test>"
            ' to=<c@d.test> rcpt=<-> source="1.1.1.1" relay="1.1.1.2 (d)" delay=1s result="Ok" stat="250 ok"\n'
        )
        found = Replay([str(path)]).compare(())
        assert found["then"]["delivered"] == 1
        assert found["model"]["p50"] is None

    def test_a_log_without_an_attempt_is_one_line(self, tmp_path: Path):
        """Nobody knows where its mail went."""
        path = tmp_path / "x.log"
        path.write_text(
            "Nov 22 21:55:50 mx1 postfix/smtpd[7]: 4C3A51F2B0: client=a.test[192.0.2.1]\n"
        )
        with pytest.raises(ConfigError, match=r"x\.log.*1 arrivals, no attempt"):
            Replay([str(path)])

    @given(rng=st.randoms(use_true_random=False))
    @settings(max_examples=25, deadline=None)
    def test_any_piece_of_a_log_is_replayed_or_refused_in_one_line(self, rng: random.Random):
        """Cut anywhere, lines missing, in any order, bytes changed; and then the model never loses mail."""
        name = rng.choice(["postfix.log.bz2", "exim-mainlog.xz", "opensmtpd.log.xz"])
        lines = lines_of(name)
        start = rng.randrange(len(lines))
        piece = lines[start : start + rng.choice([1, 10, 200])]
        if rng.random() < 0.3:
            rng.shuffle(piece)
        if rng.random() < 0.5:
            piece = [line for line in piece if rng.random() < 0.6]
        if rng.random() < 0.3:
            piece = [
                bytes(rng.randrange(256) if rng.random() < 0.03 else c for c in line)
                for line in piece
            ]
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"\n".join(piece))
            file.flush()
            refusal = ""
            try:
                found = Replay([file.name]).compare()
            except ConfigError as error:
                refusal = str(error)
        assert "\n" not in refusal
        if refusal:
            return
        model = found["model"]
        assert model["accepted"] == found["then"]["accepted"]
        left = model["accepted"] - model["delivered"] - model["failed"]
        assert 0 <= left <= model["queued"]


def test_this_servers_pace_is_seen(tmp_path: Path):
    """Second attempts come retry.base_s after the arrival, if the policy is the default."""
    text = "Nov 22 21:55:{:02} mx1 mta[7]: {}\n"
    lines = []
    for i in range(30):
        key = f"{i + 1:08x}"
        lines.append((0, f"{i:016x} smtp message msgid={key} size=999 nrcpt=1 proto=ESMTP"))
        for second, result in ((0, "TempFail"), (7, "Ok")):
            lines.append((second, f'{i:016x} mta delivery evpid={key}00000001 from=<a@a> to=<u{i}@b.test> rcpt=<-> source="-"'
                          f' relay="192.0.2.1 (mx)" delay={second}s result="{result}" stat="x"'))  # fmt: skip
    path = tmp_path / "mta.log"
    path.write_text("".join(text.format(50 + second, line) for second, line in sorted(lines)))
    replayed = Replay([str(path)])
    assert "ours" == replayed.mail.kind
    assert replayed.config.retry.base_s == 7
    assert replayed.compare()["agreement"]["counts_differ"] == {}


class TestHost:
    def host(self, *windows: tuple[float, float, bool], **fates: Fate) -> RecordedHost:
        numbered = {int(name[1:]): fate for name, fate in fates.items()}
        return RecordedHost(windows, service_s=[0.5, 0.25], fates=numbered, usual_s=0.125)

    def ask(self, host: RecordedHost, now: float, *rcpts: str) -> tuple[float, tuple[int, ...]]:
        conn, _ = host.connect("127.0.0.1", now)
        host.command(conn, "EHLO", "x", now)
        verdict = host.transaction(conn, "a@b.test", rcpts or ("user0@d0.test",), 100, now)
        replies = [reply for reply in verdict.results if reply is not None]
        host.disconnect(conn, now)
        return verdict.duration_s, tuple(reply.code for reply in replies)

    def test_who_was_delivered_is_taken_in_its_own_time(self):
        """Several together take what the slowest takes; strangers the usual."""
        host = self.host()
        assert (0.5, (250,)) == self.ask(host, 0.0)
        assert (0.5, (250, 250)) == self.ask(host, 0.0, "user0@d0.test", "user1@d0.test")
        assert (0.125, (250,)) == self.ask(host, 0.0, "sender9@reports.test")
        assert (
            host.transaction(host.connect("127.0.0.1", 1.0)[0], "", ["user0@x"], 1, 1.0).results[0]
            is TAKEN
        )

    def test_an_outage_puts_everybody_off(self):
        """From its beginning until before its end."""
        host = self.host((10.0, 20.0, True))
        assert [250, 451, 451, 250] == [self.ask(host, at)[1][0] for at in (9.9, 10.0, 19.9, 20.0)]
        assert host.listening(15.0)

    def test_who_refuses_connections_does_not_listen(self):
        """And says when that changes."""
        host = self.host((10.0, 20.0, False), (30.0, math.inf, False))
        assert [True, False, True, False] == [host.listening(at) for at in (5.0, 15.0, 25.0, 1e9)]
        assert host.next_change(5.0) == 10.0

    def test_failures_are_counted_and_not_timed(self):
        """Whoever was refused twice is refused twice, outages not counted; who for good, for good."""
        host = self.host(
            (10.0, 20.0, True),
            r0=Fate(failures=2, fatal=True, failed_s=0.1),
            r1=Fate(failures=FOREVER),
        )
        assert [451, 451, 451, 550, 550] == [
            self.ask(host, at)[1][0] for at in (0.0, 15.0, 21.0, 22.0, 23.0)
        ]
        assert {451} == {self.ask(host, at, "user1@d0.test")[1][0] for at in range(30, 40)}

    def test_at_an_edge_a_recorded_attempt_decides(self):
        """Within a second of it; later the outage does."""
        host = self.host((10.0, 20.0, True), r0=Fate(edges=(Edge(10.1, False), Edge(20.1, True))))
        assert [250, 250, 451, 451, 250] == [
            self.ask(host, at)[1][0] for at in (9.8, 10.9, 12.0, 20.9, 21.2)
        ]


class TestMainCf:
    def test_what_matters_is_read(self, tmp_path: Path):
        """With units, references and lines that go on; the rest is left alone."""
        path = tmp_path / "main.cf"
        path.write_text(
            "# a comment\nminimal_backoff_time = 5m\nmaximal_backoff_time=\n  4000s\nqueue_run_delay = $minimal_backoff_time\n"
            "smtp_destination_concurrency_limit = $default_destination_concurrency_limit\n"
            "default_destination_concurrency_limit = 30\ndefault_destination_concurrency_negative_feedback = 1/concurrency\n"
            "myhostname = mx.test\nmaximal_queue_lifetime = 5d\nqmgr_message_active_limit = ${self}\nself = $self\n"
        )
        assert maincf.load(path) == {
            "retry": {"min_s": 300.0, "max_s": 4000.0, "scan_s": 300.0},
            "limits": {
                "mta": {"route_delay_base_s": 300.0, "route_delay_max_s": 300.0},
                "scheduler": {"envelope_ttl_s": 432_000.0},
            },
            "concurrency": {"limit": 30, "negative_feedback": "1/concurrency"},
        }

    @pytest.mark.parametrize(
        "line", ["minimal_backoff_time = soon", "default_process_limit = many",
                 "default_destination_concurrency_positive_feedback = 2"]
    )  # fmt: skip
    def test_what_makes_no_sense_is_one_line(self, tmp_path: Path, line: str):
        """Naming file and parameter."""
        path = tmp_path / "main.cf"
        path.write_text(line + "\n")
        with pytest.raises(ConfigError, match=line.split()[0]) as caught:
            maincf.load(path)
        assert str(path) in str(caught.value)

    def test_it_changes_the_model_of_then(self, tmp_path: Path):
        """Beside what the log shows."""
        path = tmp_path / "main.cf"
        path.write_text("queue_run_delay = 30s\n")
        replayed = Replay([POSTFIX], server=maincf.load(path))
        assert replayed.config.retry.scan_s == 30
        assert replayed.config.concurrency.limit == 20


class TestCommand:
    def sim(self, *words: str) -> tuple[int, str, str]:
        from typer.testing import CliRunner

        done = CliRunner().invoke(command.app, ["replay", *words])
        return done.exit_code, done.stdout, done.stderr

    def test_a_log_is_replayed(self):
        """As a table and as JSON."""
        status, out, err = self.sim(POSTFIX, "--set", "limits.mta.max_conn=10")
        assert (status, err) == (0, "")
        for words in ("the log", "model of then", "what if", "counts are the log's", "flaky"):
            assert words in out
        found = json.loads(self.sim(POSTFIX, "--json")[1])
        assert found["log"]["kind"] == "postfix"
        assert found["what_if"] is None

    def test_a_figure_is_drawn(self, tmp_path: Path):
        """As SVG or PNG, by its name."""
        for name, head in (("queue.svg", b"<"), ("queue.png", b"\x89PNG")):
            assert self.sim(POSTFIX, "--plot", str(tmp_path / name))[0] == 0
            assert (tmp_path / name).read_bytes().startswith(head)

    def test_strangers_words_do_nothing_to_a_terminal(self, tmp_path: Path):
        """Neither control characters nor markup in a domain or a reply."""
        good = [(2 + i, f"u{i}@a.test", "mx[192.0.2.1]:25", "sent") for i in range(20)]
        bad = [(30 + i, f"v{i}@a.test", "mx[192.0.2.1]:25", "deferred") for i in range(20)]
        odd = [(60, "w@[bold]x\x1b[2J", "mx[192.0.2.1]:25", "sent")]
        path = Path(log_of(tmp_path / "x.log", [*good, *bad, *odd]))
        path.write_text(path.read_text().replace("4.2.0 busy", "4.2.0 [/bold]\x1b]0;busy\x07"))
        status, out, err = self.sim(str(path))
        assert (status, err) == (0, "")
        assert "\x1b" not in out
        assert "\x07" not in out
        assert "[bold]x\N{REPLACEMENT CHARACTER}[2j" in out
        assert "[/bold]" in out

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            ((POSTFIX, "--plot", "/nowhere/x.gif"), "sim: --plot"),
            ((POSTFIX, "--plot", "/nowhere/x.svg"), "sim: --plot"),
            (("/nowhere/mail.log",), "sim: /nowhere/mail.log: can't be read"),
            (("/nowhere",), 'sim: run: "/nowhere"'),
            ((POSTFIX, "--set", "limits.mta.max_con=1"), "sim: --set: limits.mta.max_con = 1: unknown key"),
            ((POSTFIX, "--kind", "sendmail"), 'sim: --kind: "sendmail"'),
            ((POSTFIX, "--kind", "exim"), f"sim: {POSTFIX}: is no exim log"),
            ((POSTFIX, "--kind", "exim", "--main-cf", "x"), "sim: --main-cf"),
            ((POSTFIX, "--main-cf", "/nowhere/main.cf"), "sim: /nowhere/main.cf: can't be read"),
            ((__file__,), f"sim: {__file__}: is no log of Postfix, OpenSMTPD or Exim"),
            (("latest", "--year", "2013"), "sim: replay"),
        ],
    )  # fmt: skip
    def test_bad_input_is_one_line_and_status_2(self, words: tuple[str, ...], line: str):
        """On standard error."""
        status, out, err = self.sim(*words)
        assert (status, out) == (2, "")
        assert err.startswith(line), err
        assert err.count("\n") == 1
