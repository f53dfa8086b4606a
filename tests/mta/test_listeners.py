"""Several places to listen: each has its name, all share the door."""

import asyncio
from pathlib import Path

import pytest

from mta.config import Config
from mta.core.settings import ConfigError, build
from mta.listeners import FIB_TRIE, IF_INET6, interface_addresses, parse_address
from tests.support.faults import FaultyEffects
from tests.support.inprocess import serving
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("unfrozen")

PAIR = [{"name": "one", "address": "127.0.0.1:0"}, {"name": "two", "address": "127.0.0.2:0"}]


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


FIB = b"""Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.1
              /32 host LOCAL
     |-- 192.0.2.1
        /32 host LOCAL
     |-- 192.0.2.255
        /32 link BROADCAST
Local:
     |-- 192.0.2.1
        /32 host LOCAL
     |-- 192.0.2
        /32 host LOCAL
"""
INET6 = b"""20010db8000000000000000000000001 04 40 00 82     eth0
00000000000000000000000000000001 01 80 10 80       lo
nonsense
"""


class Proc(FaultyEffects):
    """Knows what the kernel would say."""

    def __init__(self, files: dict[Path, bytes]) -> None:
        super().__init__()
        self.files = files

    def read_file(self, path: Path, *, site: str) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]


@pytest.mark.parametrize(
    ("files", "addresses"),
    [
        ({FIB_TRIE: FIB, IF_INET6: INET6}, ("192.0.2.1", "2001:db8::1")),
        ({FIB_TRIE: FIB}, ("192.0.2.1",)),
        ({IF_INET6: INET6}, ("2001:db8::1",)),
        ({}, ()),
    ],
)
def test_the_addresses_of_this_host(files, addresses):
    """Once each, the loopback's aside; what can't be read or makes no sense is missing."""
    assert interface_addresses(Proc(files)) == addresses
