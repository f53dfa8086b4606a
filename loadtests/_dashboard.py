"""A tab in Locust's web UI that shows the server under load: memory, queue, rates, and whether the load is on time.

One greenlet looks at the server's ``/metrics`` once a second, whoever watches; browsers are given what it has found. What it finds is
data: a server that is away, was started again, or says nonsense is told in words, and the charts have a gap.

Locust draws the tab's head (``extended_tabs``) and leaves its body empty; a script of ours, put into Locust's page, fills it. The same is a
page of its own at ``/server/``, which is there before the load is started. Nothing comes from anywhere else.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gevent
import msgspec
from flask import request

from loadtests._readings import Readings
from loadtests._scrape import ScrapeError, Target

if TYPE_CHECKING:
    from locust.env import Environment

TAB: Final = {"title": "Server", "key": "server"}

INTERVAL_S: Final = 1.0
"""Between two looks. Prometheus scrapes every 15 s or so; who watches a burst wants to see it."""

STATIC: Final = Path(__file__).parent / "static"
_FILES: Final = {
    "dashboard.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "dashboard.css": "text/css; charset=utf-8",
}


def attach(environment: "Environment", url: str, lag_s: Callable[[], float | None]) -> None:
    """Add the tab, if there is a web UI and ``url`` is not empty, and begin to look at the server.

    Args:
        environment: Locust's.
        url: Of the server's metrics.
        lag_s: Returns by how much the load was late at worst since it was last asked; None while there is none.

    Raises:
        ConfigError: the URL is none, or not of this machine.
    """
    if not url:
        return
    target = Target.parse(url)
    if environment.web_ui is None:
        return
    readings = Readings()
    base: str = getattr(environment.parsed_options, "web_base_path", None) or ""
    _serve(environment.web_ui, base.rstrip("/"), target, readings)
    gevent.spawn(watch, target.fetch, readings, lag_s)


def watch(
    fetch: Callable[[], dict[str, float]],
    readings: Readings,
    lag_s: Callable[[], float | None],
    *,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = gevent.sleep,
) -> None:
    """Look at the server for ever. A look that took long is followed by the next full second, not by many."""
    while True:
        try:
            values = fetch()
        except ScrapeError as error:
            readings.miss(now(), str(error), lag_s())
        else:
            readings.take(now(), values, lag_s())
        # Whole seconds: so the rows of several loads are of the same instants.
        sleep(INTERVAL_S - now() % INTERVAL_S)


def _serve(web_ui: Any, base: str, target: Target, readings: Readings) -> None:
    """Add what browsers ask for. ``web_ui`` is Locust's; its Flask application is not started yet."""
    app = web_ui.app
    web_ui.template_args.setdefault("extended_tabs", []).append(TAB)
    encode = msgspec.json.Encoder().encode

    def respond(body: bytes, mimetype: str) -> Any:
        # Why no caching? The files are small, and belong to the version that runs.
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return app.response_class(body, content_type=mimetype, headers=headers)

    def data(number: int) -> Any:
        told = {"place": target.place, "now": time.time(), **readings.since(number)}
        return respond(encode(told), "application/json")

    def page() -> Any:
        return respond((STATIC / "page.html").read_bytes(), "text/html; charset=utf-8")

    def static(name: str) -> Any:
        if name not in _FILES:
            return app.response_class("no such file\n", status=404, mimetype="text/plain")
        return respond((STATIC / name).read_bytes(), _FILES[name])

    for rule, view in (("data/<int:number>", data), ("", page), ("static/<name>", static)):
        app.add_url_rule(
            f"{base}/server/{rule}",
            endpoint=f"testbed_server_{view.__name__}",
            view_func=web_ui.auth_required_if_enabled(view),
        )

    def with_script(response: Any) -> Any:
        """Put the script into Locust's page, and nowhere else: its reports are made of the same parts."""
        if request.path == f"{base}/" and response.mimetype == "text/html":
            body = response.get_data()
            if b"window.templateArgs" in body:
                response.set_data(body.replace(b"</body>", _SCRIPT + b"</body>", 1))
        return response

    app.after_request(with_script)


_SCRIPT: Final = (
    b'<link rel="stylesheet" href="./server/static/dashboard.css">'
    b'<script type="module" src="./server/static/dashboard.js"></script>'
)
