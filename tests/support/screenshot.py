"""The picture of the dashboard in the README: ``make dashboard``.

A real server, the scenario's own world and load, and a browser. The picture is taken under load, when half of the mail had to
wait for a destination and is going out.
"""

import os
import sys
import tempfile
import time
import tomllib
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from testbed.world.handle import World
from tests.loadtests.locusts import fetched, started
from tests.support.browser import Page, browsing
from tests.support.server import ROOT, RunningServer, free_port
from tests.support.waiting import eventually

SCENARIO = "backlog"
LOAD = ("load.messages=5400", "load.rate=120", "load.sessions=20")
SHOWN_S = 24
"""Seconds of load that are to be seen; from 3 to 18 the destination is away."""
COLOURS = 200
"""Of the picture: as it looks, at a third of the size."""


def take(page: Page, path: Path, width: int) -> None:
    """Write a picture of the whole page, so many pixels wide."""
    page.size(width)
    page.until(
        f"innerWidth === {width} && testbedServer.view.charts[0].svg.viewBox.baseVal.width > 0"
    )
    page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    height = page.run(
        "Math.ceil(document.querySelector('#server-tab').getBoundingClientRect().bottom + scrollY)"
    )
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    page.picture(path, clip=clip)
    with Image.open(path) as image:
        image.convert("RGB").quantize(COLOURS).save(path, optimize=True)


def main(directory: Path, *, all_of_them: bool) -> None:
    """Write ``dashboard.png``; with ``all_of_them`` both themes at two widths."""
    metrics, port = free_port(), free_port()
    scenario = tomllib.loads((ROOT / "sim" / "scenarios" / f"{SCENARIO}.toml").read_text())
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        world = stack.enter_context(World(SCENARIO, record_dir=work / "world"))
        config = {
            **scenario["server"],
            "relay": {"port": world.smtp_port},
            "dns": {"nameserver": world.dns},
            "control": {"socket": str(work / "c"), "metrics": f"127.0.0.1:{metrics}"},
        }
        server = stack.enter_context(RunningServer(work / "server", config))
        page = stack.enter_context(browsing(work / "browser"))
        page.scheme("light")
        url = f"http://127.0.0.1:{port}/"
        where = ("--web-host", "127.0.0.1", "--web-port", str(port), "--autostart")
        target = ("--host", f"smtp://127.0.0.1:{server.port}")
        seen = ("--metrics-url", f"http://127.0.0.1:{metrics}/metrics", "--scenario", SCENARIO)
        stack.enter_context(started(*where, *target, *seen, settings=LOAD))
        world.set_start()
        eventually(lambda: fetched(f"{url}server/data/0") is not None)
        page.size(1280)
        page.open(f"{url}?tab=server")
        time.sleep(SHOWN_S)
        page.run("document.querySelector('[data-window=\"60\"]').click()")
        take(page, directory / "dashboard.png", 1280)
        if all_of_them:
            take(page, directory / "dashboard-800.png", 800)
            page.scheme("dark")
            page.until("document.querySelector('#server-tab').dataset.theme === 'dark'")
            page.open(f"{url}?tab=server")
            page.until("testbedServer.known.rows.length > 2")
            take(page, directory / "dashboard-dark.png", 1280)
            take(page, directory / "dashboard-dark-800.png", 800)


if __name__ == "__main__":
    os.chdir(ROOT)
    main(Path(sys.argv[1]), all_of_them="--all" in sys.argv[2:])
