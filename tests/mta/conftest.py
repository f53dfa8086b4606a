"""What tests of the server share beside `tests.support`."""

import asyncio

import pytest
import uvloop


@pytest.fixture(scope="module")
def warm_loop() -> None:
    """Let libuv open what it keeps for the life of the process, before descriptors are counted."""
    uvloop.run(asyncio.sleep(0))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be read, or not be reported, is tried again after milliseconds."""
    monkeypatch.setattr("mta.restorer.AGAIN_S", 0.01)
    monkeypatch.setattr("mta.queue.writer.PROBE_FIRST_S", 0.002)
    monkeypatch.setattr("mta.queue.writer.PROBE_MAX_S", 0.01)


@pytest.fixture
def unfrozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that starts inside the test's process leaves its garbage collector as it is."""
    monkeypatch.setattr("mta.server.gc.freeze", lambda: None)
