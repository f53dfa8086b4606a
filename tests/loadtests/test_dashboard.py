"""The dashboard's data: one bounded look a second, rows with gaps, words for whatever is the matter."""

import contextlib
import json
import socket
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import _dashboard, _scrape
from loadtests._readings import COLUMNS, GAUGES, NEEDED, RATES, STARTED, Readings, WorkersLag
from loadtests._scrape import ScrapeError, Target, parse
from mta.core.metrics import METRICS, Kind, Metrics
from mta.core.settings import ConfigError
from mta.effects import Effects
from mta.exposition import Exposition, prometheus_name

Answer = Callable[[socket.socket], None]


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[Target]:
    """A server that answers one request in its own way, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1000)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Target("127.0.0.1", listener.getsockname()[1], "/metrics")
        finally:
            thread.join(10)


class TestTarget:
    @pytest.mark.parametrize(
        ("url", "target"),
        [
            ("http://127.0.0.1:9125/metrics", Target("127.0.0.1", 9125, "/metrics")),
            ("http://localhost:1/a?b=c", Target("127.0.0.1", 1, "/a?b=c")),
            ("http://[::1]:80", Target("::1", 80, "/metrics")),
            ("http://127.0.0.2", Target("127.0.0.2", 80, "/metrics")),
        ],
    )
    def test_urls_of_this_machine(self, url, target):
        """Address, port, path; what is left out is HTTP's."""
        assert target == Target.parse(url)

    @pytest.mark.parametrize(
        "url",
        [
            *("", "127.0.0.1:9125", "https://127.0.0.1/", "http://", "http://127.0.0.1:0/"),
            *(
                "http://127.0.0.1:99999/",
                "http://127.0.0.1:x/",
                "http://[::1/",
                "http://a@127.0.0.1/",
            ),
            *("http://127.0.0.1/ HTTP/1.1", "http://127.0.0.1/\r\nX: y", "http://127.0.0.1/\u00e9"),
            *("http://192.0.2.1/metrics", "http://mx.test/metrics", "http://0.0.0.0/metrics"),
        ],
    )
    def test_no_others(self, url):
        """One line that names the option; nothing is looked up."""
        with pytest.raises(ConfigError, match="--metrics-url") as caught:
            Target.parse(url)
        assert "\n" not in str(caught.value)


class TestParse:
    def test_numbers_by_name(self):
        """Comments, empty lines and samples with labels are passed over; a time may follow."""
        page = b'# HELP a b\n# TYPE a gauge\na 1.5\n\nb_total 2e3 1700000000\nc{x="1"} nonsense\n'
        assert {"a": 1.5, "b_total": 2000.0} == parse(page)

    @pytest.mark.parametrize(
        "line", [b"a", b"a b", b"a NaN", b"a +Inf", b"a 1 2 3", b"<html>", b"\xff \xff"]
    )
    def test_what_is_no_number_is_quoted(self, line):
        """Whoever reads it sees what it was."""
        with pytest.raises(ScrapeError, match="no line of metrics"):
            parse(b"ok 1\n" + line + b"\n")

    @given(st.binary(max_size=200))
    def test_any_page_is_numbers_or_no_page(self, page):
        """Never another exception."""
        with contextlib.suppress(ScrapeError):
            assert all(isinstance(value, float) for value in parse(page).values())

    async def test_what_our_server_says(self):
        """Each metric under its name; and whatever the dashboard shows is there, with its kind."""
        metrics = Metrics()
        metrics.inc("smtp.message", 7)
        values = parse(Exposition(metrics.snapshot, Effects()).page())
        names = {
            prometheus_name(name) + ("_total" if metric.kind is Kind.COUNTER else "")
            for name, metric in METRICS.items()
        }
        assert names <= set(values)
        assert 7 == values["mta_smtp_message_total"]
        assert {*GAUGES.values(), *RATES.values(), NEEDED, STARTED} <= set(values)
        assert all(name.endswith("_total") for name in RATES.values())


class TestFetch:
    @pytest.fixture(autouse=True)
    def _patient(self, monkeypatch) -> None:
        """A busy machine is no server that hangs."""
        monkeypatch.setattr(_scrape, "TIMEOUT_S", 30.0)

    def test_a_page(self):
        """Whatever it takes from connect to close."""
        with answering(lambda to: to.sendall(ok(b"a 1\n"))) as target:
            assert {"a": 1.0} == target.fetch()

    @pytest.mark.parametrize(
        ("reply", "words"),
        [
            (
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
                "answered 404 Not Found to /metrics",
            ),
            (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "answered 503 Busy"),
            (b"", "broke off"),
            (b"220 mx.test ESMTP\r\n", "broke off: 220 mx.test ESMTP"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\na 1", "broke off"),
            (ok(b"a\n"), "no line of metrics: 'a'"),
            (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000, "broke off: got more than 100 headers"),
        ],
    )
    def test_anything_else_is_said_in_words(self, reply, words):
        """What it was, and where."""
        with (
            answering(lambda to: to.sendall(reply)) as target,
            pytest.raises(ScrapeError) as caught,
        ):
            target.fetch()
        assert words in str(caught.value)

    def test_a_page_without_end_is_not_read_to_its_end(self, monkeypatch):
        """So many bytes and one."""
        monkeypatch.setattr(_scrape, "BYTES_MAX", 1000)

        def endless(to: socket.socket) -> None:
            to.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                to.sendall(b"a 1\n" * 1000)

        with answering(endless) as target, pytest.raises(ScrapeError, match="more than 1000 bytes"):
            target.fetch()

    def test_a_page_by_drops_takes_no_longer(self, monkeypatch):
        """A byte now and then keeps every single read short, and the whole one long."""
        monkeypatch.setattr(_scrape, "TIMEOUT_S", 0.2)
        over = threading.Event()

        def drops(to: socket.socket) -> None:
            to.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while not over.wait(0.02):
                to.sendall(b"a")

        with answering(drops) as target:
            try:
                with pytest.raises(ScrapeError, match=r"did not answer within 0\.2 s"):
                    target.fetch()
            finally:
                over.set()

    def test_nobody_listens(self):
        """What the operator may have forgotten is said."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(ScrapeError, match=f"nothing listens on 127.0.0.1:{port}: .*metrics"):
            Target("127.0.0.1", port, "/metrics").fetch()


def page(started: float = 1.0, **values: float) -> dict[str, float]:
    """What a server says; its counters by the names of columns."""
    names = {**GAUGES, **RATES}
    return {
        **dict.fromkeys(names.values(), 0.0),
        STARTED: started,
        **{names[key]: value for key, value in values.items()},
    }


def rows(readings: Readings) -> list[dict[str, float | None]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in readings.since(0)["rows"]]


class TestReadings:
    def test_gauges_are_as_they_are_and_counters_grow(self):
        """Per second, over the time that passed; no rate before there are two looks."""
        readings = Readings()
        readings.take(10.0, page(rss=100, pss=60, pending=3, accepted=50), 0.001)
        readings.take(12.0, page(rss=120, pss=70, pending=4, accepted=70, delivered=5), None)
        first, second = rows(readings)
        assert (10.0, 100, 60, 3, None, 0.001) == tuple(
            first[key] for key in ("t", "rss", "pss", "pending", "accepted", "lag")
        )
        assert (12.0, 120, 4, 10.0, 2.5, 0.0, None) == tuple(
            second[key]
            for key in ("t", "rss", "pending", "accepted", "delivered", "bounces", "lag")
        )
        assert "ok" == readings.state.name

    def test_memory_that_is_not_known_is_no_zero(self):
        """The server says 0 until it has measured; a queue may well be empty."""
        readings = Readings()
        readings.take(1.0, page(), None)
        assert (None, None, 0.0) == tuple(
            rows(readings)[0][key] for key in ("rss", "pss", "pending")
        )

    def test_a_gap_while_the_server_is_away(self):
        """Rows without its numbers, but with the load's; then the mean over the gap, for it is the same server."""
        readings = Readings()
        readings.take(1.0, page(accepted=10), 0.0)
        readings.miss(2.0, "gone", 0.5)
        readings.miss(3.0, "still gone", None)
        assert ("away", 2.0, "still gone") == tuple(readings.state)
        readings.take(4.0, page(accepted=40), 0.0)
        _, gone, _, back = rows(readings)
        assert {"t": 2.0, "lag": 0.5} == {
            key: value for key, value in gone.items() if value is not None
        }
        assert 10.0 == back["accepted"]
        assert ("ok", 4.0, "") == tuple(readings.state)
        assert 0 == readings.restarts

    @pytest.mark.parametrize("again", [page(2.0, accepted=900), page(1.0, accepted=3)])
    def test_a_server_that_was_started_again(self, again):
        """By its own word or by its counters: no rate, neither negative nor enormous, and a note."""
        readings = Readings()
        readings.take(1.0, page(1.0, accepted=500), None)
        readings.take(2.0, again, None)
        assert None is rows(readings)[-1]["accepted"]
        assert (1, 2.0, again[STARTED]) == (
            readings.restarts,
            readings.restarted_at,
            readings.started_at,
        )
        readings.take(3.0, {**again, RATES["accepted"]: again[RATES["accepted"]] + 4}, None)
        assert 4.0 == rows(readings)[-1]["accepted"]
        assert 1 == readings.restarts

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10**9)), max_size=8))
    def test_no_rate_is_negative(self, looks):
        """However often the server is another one, and whatever it counts."""
        readings = Readings()
        for t, (started, accepted) in enumerate(looks):
            readings.take(float(t), page(started, accepted=accepted), None)
        assert all(row["accepted"] is None or row["accepted"] >= 0 for row in rows(readings))

    def test_another_server(self):
        """Metrics of something else are no metrics."""
        readings = Readings()
        readings.take(1.0, {"node_load1": 0.5}, None)
        assert "away" == readings.state.name
        assert NEEDED in readings.state.words

    def test_the_ring_is_bounded(self):
        """The oldest rows go; whoever comes late gets what there is."""
        readings = Readings(rows=3)
        for t in range(5):
            readings.take(float(t), page(), None)
        answer = readings.since(0)
        assert (2, 5, 3, [2.0, 3.0, 4.0]) == (
            *(answer[key] for key in ("first", "next", "kept")),
            [row[0] for row in answer["rows"]],
        )

    @given(st.integers(0, 12), st.integers(1, 5), st.integers(0, 20))
    def test_each_row_is_given_once(self, taken, kept, asked):
        """To whoever goes on with ``next``: what was new since, as far as it is kept."""
        readings = Readings(rows=kept)
        for t in range(taken):
            readings.take(float(t), page(), None)
        answer = readings.since(asked)
        wanted = range(max(asked, taken - kept), taken)
        assert list(wanted) == [row[0] for row in answer["rows"]]
        assert taken == answer["next"]
        assert [] == readings.since(answer["next"])["rows"]


def test_workers_are_late_as_they_last_said():
    """The worst of them; nothing is known of workers that have stopped to say."""
    lag = WorkersLag()
    assert None is lag.worst_s(0.0)
    lag.add("one", 0.0, 0.5)
    lag.add("other", 2.0, 0.1)
    assert 0.5 == lag.worst_s(2.0)
    lag.add("one", 3.0, 0.2)
    assert 0.2 == lag.worst_s(3.5)
    assert 0.2 == lag.worst_s(6.5)
    assert None is lag.worst_s(7.5)


class TestWatch:
    def test_a_look_each_second(self):
        """On the full second. One that took long is followed by the next full second."""
        clock = [100.25]
        takes = [0.1, 2.5, 0.1]
        slept: list[float] = []

        def fetch() -> dict[str, float]:
            clock[0] += takes[len(slept)]
            if len(slept) == 1:
                raise ScrapeError("slow")
            return page()

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == len(takes):
                raise StopIteration
            clock[0] += seconds

        readings = Readings()
        with pytest.raises(StopIteration):
            _dashboard.watch(fetch, readings, lambda: 0.0, now=lambda: clock[0], sleep=sleep)
        assert pytest.approx([0.65, 0.5, 0.9]) == slept
        assert pytest.approx([100.35, 103.5, 104.1]) == [row["t"] for row in rows(readings)]
        assert "ok" == readings.state.name


LOCUSTS = '<html><body><div id="root"></div><script>window.templateArgs = {}</script></body></html>'


class WebUI:
    """What of Locust's web UI the dashboard uses, with a Flask application that is real."""

    def __init__(self) -> None:
        self.app = flask.Flask("test")
        self.template_args: dict[str, Any] = {}
        self.guarded: list[str] = []
        for path in ("/", "/load/", "/stats/report"):
            self.app.add_url_rule(path, view_func=lambda: LOCUSTS, endpoint=path)
        self.app.add_url_rule(
            "/other", view_func=lambda: "<html><body></body></html>", endpoint="other"
        )

    def auth_required_if_enabled(self, view: Callable[..., Any]) -> Callable[..., Any]:
        self.guarded.append(view.__name__)
        return view


@pytest.fixture
def served() -> tuple[WebUI, Readings, Any]:
    ui, readings = WebUI(), Readings()
    _dashboard._serve(ui, "", Target("127.0.0.1", 9125, "/metrics"), readings)
    return ui, readings, ui.app.test_client()


class TestServe:
    def test_the_data(self, served):
        """JSON: what is new since a number, under the names of columns, and how it stands."""
        _, readings, client = served
        readings.take(1.0, page(pending=3), 0.002)
        answer = client.get("/server/data/0")
        assert ("application/json", "no-store") == (
            answer.mimetype,
            answer.headers["Cache-Control"],
        )
        told = json.loads(answer.data)
        assert "127.0.0.1:9125" == told["place"]
        assert told["looked_at"] == 1.0 < told["now"] <= time.time()
        assert ["ok", 1.0, ""] == [told["state"][key] for key in ("name", "since", "words")]
        assert 3 == dict(zip(told["columns"], told["rows"][0], strict=True))["pending"]
        assert [] == json.loads(client.get("/server/data/1").data)["rows"]
        assert [] == json.loads(client.get(f"/server/data/{10**30}").data)["rows"]
        assert [404, 404] == [
            client.get(f"/server/data/{wrong}").status_code for wrong in ("-1", "x")
        ]

    def test_the_tab_and_its_script(self, served):
        """Locust is told of a tab, and its page, no other, gets the script that fills it."""
        ui, _, client = served
        assert [{"title": "Server", "key": "server"}] == ui.template_args["extended_tabs"]
        text = client.get("/").text
        assert text.count("./server/static/dashboard.js") == 1
        assert (
            text.index("window.templateArgs") < text.index("dashboard.js") < text.index("</body>")
        )
        assert "dashboard.js" not in client.get("/other").text
        assert "dashboard.js" not in client.get("/stats/report").text

    def test_the_files(self, served):
        """Those that are meant, as what they are, and they ask for nothing from elsewhere."""
        _, _, client = served
        for path in ("", "static/dashboard.js", "static/charts.js", "static/dashboard.css"):
            answer = client.get(f"/server/{path}")
            assert (200, "nosniff") == (
                answer.status_code,
                answer.headers["X-Content-Type-Options"],
            )
            assert answer.text.replace("http://www.w3.org/2000/svg", "").count("://") == 0
        assert "text/javascript" == client.get("/server/static/charts.js").mimetype
        for path in ("page.html", "..%2f_hooks.py", "../_hooks.py"):
            assert 404 == client.get(f"/server/static/{path}").status_code

    def test_behind_locusts_login(self, served):
        """All of it, whenever Locust asks for one."""
        assert ["data", "page", "static"] == served[0].guarded

    def test_below_another_path(self):
        """As --web-base-path has it."""
        ui = WebUI()
        _dashboard._serve(ui, "/load", Target("127.0.0.1", 1, "/metrics"), Readings())
        client = ui.app.test_client()
        assert 200 == client.get("/load/server/data/0").status_code
        assert "./server/static/dashboard.js" in client.get("/load/").text
        assert "dashboard.js" not in client.get("/").text


class TestAttach:
    def environment(self, web_ui: WebUI | None) -> Any:
        return Namespace(web_ui=web_ui, parsed_options=Namespace(web_base_path=None))

    def test_without_a_web_ui(self):
        """A worker, or a headless run: nothing to do; a wrong URL is wrong all the same."""
        _dashboard.attach(self.environment(None), _scrape.DEFAULT_URL, lambda: None)
        with pytest.raises(ConfigError):
            _dashboard.attach(self.environment(None), "nonsense", lambda: None)

    def test_with_an_empty_url(self):
        """No tab."""
        ui = WebUI()
        _dashboard.attach(self.environment(ui), "", lambda: None)
        assert {} == ui.template_args

    def test_many_browsers_cost_one_look(self, monkeypatch):
        """The server is asked once a second, however often the data is."""
        asked = []

        def fetch(target: Target) -> dict[str, float]:
            asked.append(target)
            return page(accepted=len(asked))

        monkeypatch.setattr(Target, "fetch", fetch)
        monkeypatch.setattr(_dashboard, "INTERVAL_S", 0.05)
        greenlets = []
        spawn = _dashboard.gevent.spawn
        monkeypatch.setattr(
            _dashboard.gevent, "spawn", lambda *args: greenlets.append(spawn(*args))
        )
        ui = WebUI()
        _dashboard.attach(self.environment(ui), "http://127.0.0.1:1/", lambda: 0.0)
        client = ui.app.test_client()
        deadline = time.monotonic() + 20
        while len(asked) < 3:
            assert time.monotonic() < deadline
            _dashboard.gevent.sleep(0.01)
        before = len(asked)
        for _ in range(50):
            assert 200 == client.get("/server/data/0").status_code
        assert before == len(asked)
        for each in greenlets:
            each.kill()
