"""The tab Server in a real browser: a real load on a real server, in light and dark, while the server comes and goes."""

import json
import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.loadtests.locusts import fetched, processes, started
from tests.support.browser import Page, browsing, chromium
from tests.support.server import RunningServer, free_port
from tests.support.waiting import eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

needs_chromium = pytest.mark.skipif(
    chromium() is None, reason="needs Chromium (on Debian: apt install chromium)"
)

MESSAGES = 240
SOME = (
    f"load.messages={MESSAGES}",
    "load.rate=60",
    "load.sessions=4",
    "load.keep=true",
    "load.recipients.law=fixed",
)
NOWHERE = {"relay": {"smart_host": "[127.0.0.3]", "port": 9}}
"""Nothing listens there: what is accepted is tried, and stays in the queue."""

NOTHING = "\N{EN DASH}"
"""In the place of a number that is not known."""

COLOURS = """
(() => {
  const style = getComputedStyle(document.querySelector("#server-tab"));
  const light = (name) => {
    const probe = document.createElement("canvas").getContext("2d");
    probe.fillStyle = style.getPropertyValue(name).trim();
    const parts = [1, 3, 5].map((at) => parseInt(probe.fillStyle.slice(at, at + 2), 16) / 255);
    const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const card = light("--card");
  return ["ink", "quiet", "good", "bad", "s0", "s1", "s2", "s3", "s4"].map((name) => {
    const [low, high] = [light(`--${name}`), card].sort((a, b) => a - b);
    return [name, (high + 0.05) / (low + 0.05)];
  });
})()
"""
"""The contrast of what is drawn to what it is drawn on (WCAG 2.2, 1.4.3 and 1.4.11)."""


@dataclass
class Bench:
    """A server, a load with a web UI, a browser."""

    server: RunningServer
    metrics: int
    url: str
    page: Page

    def rows(self) -> list[dict[str, float | None]]:
        """What the page knows."""
        known = self.page.run(
            "({columns: testbedServer.known.columns, rows: testbedServer.known.rows})"
        )
        return [dict(zip(known["columns"], row, strict=True)) for row in known["rows"]]

    def accepted(self) -> int:
        """How many messages the page has seen accepted, by their rate since the look before that found something."""
        found = [row for row in self.rows() if row["at_scheduler"] is not None]
        return round(
            sum(
                (row["accepted"] or 0.0) * ((row["t"] or 0.0) - (before["t"] or 0.0))
                for before, row in pairwise(found)
            )
        )

    def open(self) -> None:
        """Open Locust's page anew, and the tab."""
        self.page.open(self.url)
        self.choose("Server")
        self.page.until("testbedServer.known.rows.length > 2")

    def choose(self, title: str) -> None:
        found = (
            f"[...document.querySelectorAll('[role=tab]')].find((e) => e.textContent === '{title}')"
        )
        self.page.until(f"!!{found}")
        self.page.run(f"{found}.click()")

    def status(self) -> str:
        return self.page.run("document.querySelector('#server-tab .status').textContent")


def with_web_ui(port: int, metrics: int, server: RunningServer) -> tuple[str, ...]:
    return (
        *("--web-host", "127.0.0.1", "--web-port", str(port), "--autostart"),
        *("--host", f"smtp://127.0.0.1:{server.port}"),
        *("--metrics-url", f"http://127.0.0.1:{metrics}/metrics"),
    )


def serving(directory: Path, metrics: int) -> RunningServer:
    control = {"metrics": f"127.0.0.1:{metrics}"}
    return RunningServer(directory, {**NOWHERE, "control": control})


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    """A load that was watched from beginning to end, and is over; its page stays."""
    directory, metrics, port = tmp_path_factory.mktemp("bench"), free_port(), free_port()
    with (
        serving(directory / "server", metrics) as server,
        started(*with_web_ui(port, metrics, server), settings=SOME),
        browsing(directory / "browser") as page,
    ):
        url = f"http://127.0.0.1:{port}/"
        eventually(lambda: fetched(f"{url}server/data/0") is not None)
        page.size(1280)
        page.scheme("light")
        bench = Bench(server, metrics, url, page)
        bench.open()
        server.until(lambda stats: stats["smtp.message"] == MESSAGES)
        eventually(lambda: bench.accepted() == MESSAGES)
        yield bench


@needs_chromium
class TestInABrowser:
    def test_charts_are_drawn_of_what_the_server_did(self, bench):
        """All of the load is in the rates, message by message, and the queue is what the server has."""
        bench.open()
        bench.page.until(f"document.querySelector('[data-tile=pss]').textContent !== '{NOTHING}'")
        queued = bench.server.stats()["scheduler.envelope"]
        assert queued > MESSAGES / 2
        tile = "document.querySelector('[data-tile=at_scheduler]').textContent"
        bench.page.until(f"{tile} === '{queued:,.0f}'")
        eventually(lambda: not bench.rows()[-1]["accepted"])
        assert MESSAGES == bench.accepted()
        rows = bench.rows()
        assert any(row["deferred"] for row in rows)
        assert any(row["lag"] for row in rows)
        last = rows[-1]
        assert 5 << 20 < last["pss"] <= last["rss"] < 1 << 30
        assert last["bytes_scheduler"] > 0
        assert queued == last["pending"] + last["scheduled"] + last["inflight"] + last["hold"]

        drawn = bench.page.run(
            """[...document.querySelectorAll("#server-tab .chart")].map((chart) => ({
              title: chart.dataset.title,
              said: chart.querySelector("svg[role=img]").getAttribute("aria-label"),
              paths: [...chart.querySelectorAll("svg[role=img] path")].map((e) => e.getAttribute("d")),
              ticks: [...chart.querySelectorAll(".grid text")].map((e) => e.textContent),
              legend: [...chart.querySelectorAll(".legend li")].map((e) => e.textContent),
            }))"""
        )
        assert 6 == len(drawn)
        for chart in drawn:
            assert any(len(path.split("L")) > 3 for path in chart["paths"]), chart["title"]
            assert not any("NaN" in path or "undefined" in path for path in chart["paths"])
            assert chart["said"].startswith(f"{chart['title']}: ")
            assert sum(bool(re.fullmatch(r"\d\d:\d\d:\d\d", tick)) for tick in chart["ticks"]) >= 3
            assert len(chart["legend"]) >= len(chart["paths"])
        units = {chart["title"]: chart["ticks"][1] for chart in drawn}
        assert units["Memory of the server"].endswith(" MiB")
        assert units["Mail per second"].endswith("/s")
        assert units["Lateness of the load itself"].endswith("s")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_it_can_be_read(self, bench, scheme):
        """In the system's theme, or the one that was chosen: text 4.5 to 1, lines 3 to 1; nothing sticks out."""
        bench.page.run("delete localStorage.theme")
        bench.page.scheme(scheme)
        bench.open()
        theme = "document.querySelector('#server-tab').dataset.theme"
        assert scheme == bench.page.run(theme)
        for name, contrast in bench.page.run(COLOURS):
            assert contrast >= (4.5 if not name.startswith("s") else 3), (name, contrast)
        for width in (1280, 800, 400):
            bench.page.size(width)
            bench.page.until(f"innerWidth === {width}")
            bench.page.until("document.documentElement.scrollWidth <= innerWidth")
        bench.page.size(1280)

    def test_the_theme_is_followed(self, bench):
        """What Locust's button says goes before what the system says; the other way round with neither."""
        bench.page.scheme("light")
        bench.page.run("delete localStorage.theme")
        bench.open()
        theme = "document.querySelector('#server-tab').dataset.theme === '{}'"
        bench.page.scheme("dark")
        bench.page.until(theme.format("dark"))
        bench.page.scheme("light")
        bench.page.until(theme.format("light"))
        # Locust's own button: the last one of its head.
        bench.page.run(
            "[...document.querySelectorAll('header.MuiAppBar-root button')].at(-1).click()"
        )
        bench.page.until("localStorage.theme === 'dark'")
        bench.page.until(theme.format("dark"))
        bench.page.run("delete localStorage.theme")

    def test_another_tab_leaves_nothing_behind(self, bench):
        """No timer, no element; and who comes back five times asks no oftener."""
        bench.open()
        for _ in range(5):
            bench.choose("Statistics")
            bench.page.until("!document.querySelector('#server-tab')")
            assert [None, None] == bench.page.run(
                "[testbedServer.view.timer, testbedServer.view.request]"
            )
            bench.choose("Server")
            bench.page.until("!!document.querySelector('#server-tab')")
        bench.page.requested.clear()
        begun, first = bench.page.run("[performance.now(), testbedServer.known.next]")
        bench.page.until(f"testbedServer.known.next > {first + 3}")
        took_s = (bench.page.run("performance.now()") - begun) / 1000
        asked = [url for url in bench.page.requested if "/server/data/" in url]
        assert asked
        # Once a second, and now and then a little before the next row is there. Six timers would be six times as often.
        assert len(asked) <= 2 * took_s + 3

    def test_one_window_of_time_or_another(self, bench):
        """The last minute, five or thirty, as far as there is anything; which one it is can be heard."""
        bench.open()
        bench.page.run("document.querySelector('[data-window=\"60\"]').click()")
        assert ["true", "false", "false"] == bench.page.run(
            "[...document.querySelectorAll('.windows button')].map((e) => e.getAttribute('aria-pressed'))"
        )
        # As long as there is something to show, and never less than twenty seconds.
        shown, known = bench.page.run(
            """[(({from, to}) => to - from)(testbedServer.view.charts[0]),
                testbedServer.known.rows.at(-1)[0] - testbedServer.known.rows[0][0]]"""
        )
        assert pytest.approx(min(max(known, 20), 60)) == shown

    def test_pointing_at_an_instant(self, bench):
        """All charts show the numbers of then, and of now again when the pointer leaves."""
        bench.open()
        beside = "document.querySelector('#server-tab .uptime').textContent"
        point = """
          (() => {
            const svg = document.querySelector("#server-tab .chart svg[role=img]");
            const box = svg.getBoundingClientRect();
            const at = testbedServer.view.charts[0].x(testbedServer.known.rows[0][0]);
            svg.dispatchEvent(new PointerEvent("%s", { clientX: box.left + at, bubbles: true }));
            return [...document.querySelectorAll("[data-key=at_scheduler]")].map((e) => e.textContent);
          })()
        """
        bench.page.run("document.querySelector('[data-window=\"1800\"]').click()")
        assert ["0"] == bench.page.run(point % "pointermove")
        assert 6 == bench.page.run(
            "document.querySelectorAll('.cursor[visibility=visible]').length"
        )
        assert re.fullmatch(r"at \d\d:\d\d:\d\d", bench.page.run(beside))
        assert ["0"] != bench.page.run(point % "pointerleave")
        assert 0 == bench.page.run(
            "document.querySelectorAll('.cursor[visibility=visible]').length"
        )
        assert bench.page.run(beside).startswith("up ")

    def test_numbers_as_people_read_them(self, bench):
        """Units, three digits, round ticks; and pieces of a line end where something is not known."""
        module = f"import('{bench.url}server/static/charts.js')"
        said = bench.page.run(
            f"""{module}.then(({{ format }}) => [
              format(null, "bytes"), format(0, "bytes"), format(1023, "bytes"), format(44040192, "bytes"),
              format(44040192, "bytes", true), format(2 ** 50 * 3, "bytes"), format(12345, "count"), format(59.94, "rate"),
              format(0, "seconds"), format(0.00025, "seconds"), format(0.0213, "seconds"), format(0.02, "seconds", true),
              format(12, "seconds"),
            ])"""
        )
        assert said == [
            *(NOTHING, "0 B", "1,023 B", "42.0 MiB", "42 MiB", "3,072 TiB", "12,345", "59.9/s"),
            *("0 ms", "250 µs", "21.3 ms", "20 ms", "12.0 s"),
        ]
        steps = bench.page.run(
            f"""{module}.then(({{ niceStep }}) => [
              niceStep(64 * 2 ** 20, 4, "bytes"), niceStep(65 * 2 ** 20, 4, "bytes"), niceStep(3, 4, "count"),
              niceStep(7232, 4, "count"), niceStep(4, 4, "rate"), niceStep(0.0021, 4, "seconds"),
            ])"""
        )
        assert pytest.approx([16 * 2**20, 32 * 2**20, 1, 2000, 1, 0.001]) == steps
        pieces = bench.page.run(
            f"""{module}.then(({{ pieces }}) =>
              pieces([[1, 5], [2, null], [3, 6], [4, 7], [9, 8]], (row) => row[1]))"""
        )
        assert [[[1, 5]], [[3, 6], [4, 7]], [[9, 8]]] == pieces

    def test_the_server_goes_and_comes_back(self, bench):
        """In words, with a gap, and with a note that it is another one; then all is as before."""
        bench.open()
        bench.server.kill()
        bench.page.until("document.querySelector('#server-tab').dataset.state === 'away'")
        said = bench.status()
        assert "No numbers from the server since " in said
        assert f"nothing listens on 127.0.0.1:{bench.metrics}" in said
        assert NOTHING == bench.page.run("document.querySelector('[data-tile=pss]').textContent")
        bench.server.start()
        bench.page.until("document.querySelector('#server-tab').dataset.state === 'ok'")
        assert f"Connected to 127.0.0.1:{bench.metrics}. It was started again" in bench.status()
        bench.page.until(
            "testbedServer.known.rows.at(-1)[1] !== null && testbedServer.known.rows.at(-2)[1] !== null"
        )
        assert (
            bench.page.run("testbedServer.view.charts[0].shapes[0].getAttribute('d')").count("M")
            >= 2
        )
        assert all((row["accepted"] or 0) >= 0 for row in bench.rows())

    def test_a_server_that_hangs(self, bench):
        """It listens and says nothing: in words, and then all is as before; it is the same server."""
        bench.open()
        restarts = "testbedServer.known.latest.restarts"
        before = bench.page.run(restarts)
        os.kill(bench.server.pid, signal.SIGSTOP)
        try:
            bench.page.until("document.querySelector('#server-tab').dataset.state === 'away'")
            assert "did not answer within 0.8 s" in bench.status()
        finally:
            os.kill(bench.server.pid, signal.SIGCONT)
        bench.page.until("document.querySelector('#server-tab').dataset.state === 'ok'")
        assert before == bench.page.run(restarts)

    def test_another_load_in_its_place(self, bench):
        """A page that stays open while Locust is started again: nothing of the one is taken for the other's."""
        bench.open()
        bench.page.run("testbedServer.known.id = 'another', testbedServer.known.rows[0][0] = 0")
        bench.page.until(
            "testbedServer.known.id !== 'another' && testbedServer.known.rows.length > 2"
        )
        assert bench.rows()[0]["t"] > 0

    def test_it_says_in_words_how_it_stands(self, bench):
        """Whatever happens to Locust or to the server."""
        known = {
            "place": "127.0.0.1:1",
            "state": {"name": "ok", "since": 0, "words": ""},
            "restarts": 0,
            "restarted_at": 3600.0,
            "looked_at": 1000.0,
            "now": 1001.0,
        }
        away = {**known, "state": {"name": "away", "since": 0, "words": "nothing listens."}}
        cases = [
            (None, "", "waiting", "Waiting for the first numbers."),
            (known, "", "ok", "Connected to 127.0.0.1:1."),
            ({**known, "restarts": 2}, "", "ok", "restarts seen: 2"),
            (away, "", "away", "nothing listens. Looking again every second."),
            ({**known, "now": 1070.0}, "", "away", "has not looked at the server for 1 min 10 s"),
            (known, "Failed to fetch", "away", "Locust does not answer (Failed to fetch)"),
        ]
        module = f"import('{bench.url}server/static/dashboard.js')"
        for latest, trouble, state, words in cases:
            given = f"{json.dumps(latest)}, {json.dumps(trouble)}"
            said = bench.page.run(f"{module}.then(({{ standing }}) => standing({given}))")
            assert state == said[0]
            assert words in said[1]

    def test_a_page_of_its_own(self, bench):
        """The same before there is any load: no need to start one to see the server."""
        bench.page.open(f"{bench.url}server/")
        bench.page.until("testbedServer.known.rows.length > 2")
        assert "Connected to" in bench.status()

    def test_nothing_went_wrong_and_nothing_came_from_elsewhere(self, bench):
        """No error in the console during all of the above; every address is Locust's own."""
        bench.open()
        assert [] == bench.page.said
        assert bench.page.requested
        assert [] == [
            url for url in bench.page.requested if not url.startswith((bench.url, "data:"))
        ]


def test_the_master_shows_it(tmp_path):
    """With two processes: the tab is the master's, and it knows how late its workers are."""
    metrics, port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}/"
    with (
        serving(tmp_path / "server", metrics) as server,
        started(*with_web_ui(port, metrics, server), *processes(2), settings=SOME) as master,
    ):

        def knows(column: str) -> bool:
            answer = fetched(f"{url}server/data/0")
            if answer is None:
                return False
            at = answer["columns"].index(column)
            return any(row[at] for row in answer["rows"])

        try:
            eventually(lambda: knows("lag") and knows("accepted"))
            with urllib.request.urlopen(url, timeout=10) as page:
                text = page.read().decode()
        finally:
            master.terminate()  # and so its workers
            master.communicate(timeout=30)
    assert '"title": "Server"' in text
    assert text.count("server/static/dashboard.js") == 1


def test_a_wrong_url_is_one_line(tmp_path):
    """Before any load; exit status 2."""
    with started("--headless", "--metrics-url", "http://192.0.2.1/metrics") as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    lines = [line for line in output.splitlines() if "--metrics-url" in line]
    assert len(lines) == 1
    assert "Traceback" not in output
