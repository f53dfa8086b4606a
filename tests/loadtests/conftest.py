"""Servers of `fake_server` that end with their test."""

from collections.abc import Callable, Iterator

import pytest

from tests.loadtests.fake_server import FakeServer, Script, agreeable


@pytest.fixture
def serve() -> Iterator[Callable[[Script], FakeServer]]:
    servers: list[FakeServer] = []

    def start(script: Script = agreeable) -> FakeServer:
        servers.append(FakeServer(script))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
