"""Waiting for what nobody tells: a condition is looked at again and again, until it holds or patience ends."""

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 30.0
"""Only a broken test waits so long."""


def eventually(
    condition: Callable[[], object], what: str = "", *, timeout_s: float = PATIENCE_S
) -> None:
    """Wait until something holds; fail with ``what`` if it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what or f"waited for {timeout_s:g} s"
        time.sleep(0.01)


async def until(condition: Callable[[], object], *, timeout_s: float = PATIENCE_S) -> None:
    """Wait until something holds; fail if it never does. The loop goes on meanwhile."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - threads and processes are among those who make it true
            await asyncio.sleep(0.002)
