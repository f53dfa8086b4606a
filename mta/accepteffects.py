"""What taking connections does to the world, beyond `mta.effects`.

Every effect here is a point of the server's one `Effects` (see there).
"""

import resource
import socket
from contextlib import suppress
from ipaddress import ip_address
from typing import Final, TypeAlias

from mta.effects import Effects

Wire: TypeAlias = socket.socket  # noqa: TID251  # part of the seam
"""A socket that listens, or one that is connected."""
_FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


class AcceptEffects:
    """Listens and accepts through the server's `Effects`."""

    __slots__ = ("effects",)

    def __init__(self, effects: Effects) -> None:
        self.effects = effects

    def listen(self, address: str, port: int, *, backlog: int, site: str) -> Wire:
        """Return a socket that listens on an IP address and port (0: any that is free).

        Raises:
            OSError: the port is taken, or not ours to take; the address is none.
        """
        self.effects.point("listen", site)
        try:
            family = _FAMILY[ip_address(address).version]
        except ValueError:
            # Nothing is looked up here: that could take seconds.
            raise socket.gaierror(socket.EAI_NONAME, "not an address") from None
        listener = socket.socket(family, socket.SOCK_STREAM)  # noqa: TID251  # part of the seam
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # As asyncio does: who wants both listens twice.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address, port))
            listener.listen(backlog)
            self.effects.done("listen", site)
        except BaseException:
            listener.close()
            raise
        return listener

    def accept(self, listener: Wire, *, site: str) -> Wire:
        """Return the next connection.

        Raises:
            BlockingIOError: there is none.
            OSError: no descriptors, no memory, or it is gone already.
        """
        self.effects.point("accept", site)
        wire, _ = listener.accept()
        try:
            wire.setblocking(False)
            self.effects.done("accept", site)
        except BaseException:
            wire.close()
            raise
        return wire

    def refuse(self, wire: Wire, line: str) -> None:
        """Send a line if that needs no waiting, and close. Never raises: the client may be gone."""
        with suppress(OSError):
            wire.send(line.encode())
        wire.close()

    def descriptors_max(self) -> int:
        """Return how many descriptors this process may have open."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def raise_descriptors_max(self) -> None:
        """Let this process open as many descriptors as it may without asking anybody.

        The usual 1,024 are a default for programs that use select().

        Raises:
            OSError, ValueError: it stays as it is.
        """
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.effects.point("setrlimit", "descriptors")
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.effects.done("setrlimit", "descriptors")
