"""What every test gets: no way out of this machine; and, for those who ask, an account of descriptors."""

import gc
import ipaddress
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_OUTWARD = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})


def _stay_on_loopback(event: str, args: tuple[object, ...]) -> None:
    """Audit hook: a test that would send a packet to another machine fails right there.

    It sees Python's own sockets, not those that uvloop opens by itself.
    """
    if event not in _OUTWARD:
        return
    address = args[1]
    if not isinstance(address, tuple):  # a Unix socket, or one that is connected already
        return
    try:
        loopback = ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
    except ValueError:
        loopback = address[0] in ("localhost", "")
    if not loopback:
        raise AssertionError(f"{event} to {address}: tests stay on loopback")


sys.addaudithook(_stay_on_loopback)


def open_descriptors() -> dict[int, str]:
    """Return what is open in this process: descriptor -> what it leads to."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the listing's own descriptor is gone below
        try:
            found[int(entry)] = str(Path("/proc/self/fd", entry).readlink())
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def fds() -> Iterator[Callable[[], dict[int, str]]]:
    """Fail the test if it leaves a descriptor open; give it `open_descriptors` to look in between.

    Only for tests whose set-up imports everything first: a library may open files as it is loaded.
    """
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc/self/fd")
    gc.collect()
    before = open_descriptors()
    yield open_descriptors
    gc.collect()
    after = open_descriptors()
    # A number may have been reused: what it leads to tells the difference.
    leaked = {fd: to for fd, to in after.items() if before.get(fd) != to}
    assert leaked == {}, f"left open: {leaked}"
