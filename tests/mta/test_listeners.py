"""Several places to listen: each has its name, all share the door."""

import asyncio

import pytest

from mta.config import Config
from mta.core.settings import ConfigError, build
from mta.listeners import parse_address
from tests.support.faults import FaultyEffects
from tests.support.inprocess import serving, until

PAIR = [{"name": "one", "address": "127.0.0.1:0"}, {"name": "two", "address": "127.0.0.2:0"}]


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    monkeypatch.setattr("mta.server.gc.freeze", lambda: None)


async def test_each_listener_accepts(tmp_path):
    """And the sessions of all are the server's: they are shown, and sent away when it stops."""
    async with serving(tmp_path, FaultyEffects(), listeners=PAIR) as server:
        addresses = server.listeners.addresses
        assert ["smtp", "one", "two"] == list(addresses)
        streams = [await asyncio.open_connection(*address) for address in addresses.values()]
        for reader, _ in streams:
            assert (await reader.readline()).startswith(b"220 ")
        stats = server.stats()
        assert 3 == len(server.listeners.clients) == stats["smtp.session"]
        assert 1 == stats["smtp.listener.two.session"] == stats["smtp.listener.two.accepted"]
        server.stop()
        for reader, writer in streams:
            assert (await reader.readline()).startswith(b"421 4.3.2 ")
            writer.close()
        await until(lambda: not server.listeners.clients)
    log = (tmp_path / "log").read_text()
    assert f"port={addresses['two'][1]} listener=two tls=none auth=none envelope=slim" in log


async def test_listeners_alone_will_do(tmp_path):
    """`smtp.listen` may be empty; then the first of the others is what status shows."""
    async with serving(tmp_path, FaultyEffects(), smtp={"listen": ""}, listeners=PAIR) as server:
        assert server.smtp_address == server.listeners.addresses["one"]


async def test_a_listener_that_can_not_be_is_one_line(tmp_path, fds):
    """With its number; and the others are not left open."""
    bad = [PAIR[0], {"name": "two", "address": "no.such.host.test:25"}]
    with pytest.raises(ConfigError) as caught:
        async with serving(tmp_path, FaultyEffects(), listeners=bad):
            pass
    assert 'test: listeners.1.address = "no.such.host.test:25": not an address' == str(caught.value)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"smtp": {"listen": ""}}, "smtp.listen"),
        ({"listeners": [PAIR[0], PAIR[0]]}, 'listeners.1.name = "one": is the name of a listener'),
        ({"listeners": [{**PAIR[0], "name": "smtp"}]}, "listeners.0.name"),
        ({"listeners": [{**PAIR[0], "name": "Not this"}]}, "must be 1 to 32"),
        ({"listeners": [{"name": "x"}]}, "listeners.0.address: missing"),
    ],
)
def test_what_makes_no_sense_is_refused(config, line):
    """When the configuration is read."""
    with pytest.raises(ConfigError) as caught:
        build(Config, config, source="mta.toml")
    assert line in str(caught.value)


def test_addresses():
    """IPv6 stands in brackets."""
    assert ("::1", 25) == parse_address("x", "k", "[::1]:25")
    for bad in ("", ":25", "::", "127.0.0.1:65536", "127.0.0.1:x"):
        with pytest.raises(ConfigError, match="expected address:port"):
            parse_address("x", "k", bad)
