"""Chromium without a window, over its DevTools protocol on two pipes: no driver, no port, nothing to install beside it.

https://chromedevtools.github.io/devtools-protocol/; with ``--remote-debugging-pipe`` it reads commands from descriptor 3
and writes to 4, JSON with a zero byte after each.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
ANSWER_S = 60.0
"""Longest wait for an answer; the first one comes when Chromium has started."""


def chromium() -> str | None:
    """Return where Chromium is, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """The one page of a browser."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._input = b""
        self._number = 0
        self._session: str | None = None
        self.said: list[str] = []
        """Errors that the page's scripts did not catch, and what they wrote to the console as such."""
        self.requested: list[str] = []
        """Addresses that the page has asked for."""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give a command and return its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_S
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._input:
            ready, _, _ = select.select([self._back], [], [], max(deadline - time.monotonic(), 0))
            assert ready, "Chromium does not answer"
            data = os.read(self._back, 1 << 20)
            assert data, "Chromium has ended"
            self._input += data
        line, _, self._input = self._input.partition(b"\0")
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        method, of = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.said.append(json.dumps(of["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and of["type"] == "error":
            self.said.append(json.dumps(of["args"]))
        elif method == "Network.requestWillBeSent":
            self.requested.append(of["request"]["url"])

    def run(self, script: str) -> Any:
        """Return what an expression of JavaScript is, once it is, if it is a promise."""
        done = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, script: str, timeout_s: float = 30.0) -> Any:
        """Wait until an expression is true; return it."""
        deadline = time.monotonic() + timeout_s
        while not (found := self.run(script)):
            assert time.monotonic() < deadline, (script, self.run("document.body.innerText"))
            time.sleep(0.05)
        return found

    def open(self, url: str) -> None:
        """Go somewhere, and wait until the document is there."""
        self("Page.navigate", url=url)
        self.until(
            f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'"
        )

    def size(self, width: int, height: int = 900) -> None:
        """Make the window so many CSS pixels large."""
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def scheme(self, name: str) -> None:
        """Make the system ``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path, clip: dict[str, float]) -> None:
        """Write a PNG of a part of the page, also if it is outside of the window."""
        done = self("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(done["data"]))


@contextlib.contextmanager
def browsing(directory: Path) -> Iterator[Page]:
    """Run Chromium, which keeps its files in a directory; end it."""
    found = chromium()
    assert found is not None, "no Chromium"
    theirs, to = os.pipe()
    back, theirs_too = os.pipe()
    # Away from the numbers that they shall have.
    inside = [fcntl.fcntl(each, fcntl.F_DUPFD, 20) for each in (theirs, theirs_too)]
    os.close(theirs)
    os.close(theirs_too)
    process = subprocess.Popen(
        [
            *("bash", "-c", f'exec "$@" 3<&{inside[0]} 4>&{inside[1]}', "bash"),
            *(found, *FLAGS, f"--user-data-dir={directory}"),
        ],
        pass_fds=inside,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    for each in inside:
        os.close(each)
    try:
        page = Page(to, back)
        yield page
        with contextlib.suppress(AssertionError):
            page("Browser.close")
    finally:
        os.close(to)
        os.close(back)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
