"""One look at a server's ``/metrics``: bounded in time and bytes, on this machine only, and never an exception of Python's.

Why not prometheus_client's parser? It makes an object of every sample: milliseconds, once a second, in a process that must send
its next message on time. What is wanted here are plain numbers without labels.
"""

import http.client
import ipaddress
import math
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

import gevent
from gevent import socket

from mta.core.settings import ConfigError

DEFAULT_URL: Final = "http://127.0.0.1:9125/metrics"
"""Where the server of the README has its metrics (``control.metrics``)."""

TIMEOUT_S: Final = 0.8
"""Longest fetch, all in all: the next one is due after a second."""

BYTES_MAX: Final = 512 * 1024
"""Largest page; ours has 16 KiB."""

_OPTION: Final = "--metrics-url"


class ScrapeError(Exception):
    """There is no page, or it is none of ours. The text says why, in words for the operator."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the page is."""

    host: str
    """Address of this machine's loopback."""
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Return what an URL names.

        Raises:
            ConfigError: it is none, or not of this machine. Nothing is looked up: a name could be anywhere.
        """
        problem = "must be http://ADDRESS:PORT/PATH"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", 80 if parts.port is None else parts.port
        except ValueError as error:
            raise ConfigError(_OPTION, value=url, problem=problem) from error
        # Spaces and the like would end up in a request line.
        plain = url.isascii() and url.isprintable() and " " not in url and not parts.username
        if parts.scheme != "http" or not host or not port or not plain:
            raise ConfigError(_OPTION, value=url, problem=problem)
        host = "127.0.0.1" if host == "localhost" else host
        try:
            is_here = ipaddress.ip_address(host).is_loopback
        except ValueError:
            is_here = False
        if not is_here:
            problem = "must be an address of this machine's loopback"
            raise ConfigError(_OPTION, value=url, problem=problem)
        path = (parts.path or "/metrics") + (f"?{parts.query}" if parts.query else "")
        return cls(host, port, path)

    @property
    def place(self) -> str:
        """Address and port, for people."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def fetch(self) -> dict[str, float]:
        """Return the numbers on the page by name, those with labels left out.

        Raises:
            ScrapeError: no answer within `TIMEOUT_S`, another answer than 200, or a page that is none.
        """
        connection = http.client.HTTPConnection(self.host, self.port)
        try:
            # Why no timeout of the socket? It is for each read; a server that sends a byte at a time passes it.
            with gevent.Timeout(TIMEOUT_S):
                # gevent's own: others send while this one waits, whether or not Python's calls are patched.
                connection.sock = socket.create_connection((self.host, self.port))
                connection.request("GET", self.path)
                answer = connection.getresponse()
                page = answer.read(BYTES_MAX + 1)
                # Asked for a number of bytes, it does not complain that there were fewer than announced.
                if len(page) <= BYTES_MAX and answer.length:
                    raise http.client.IncompleteRead(page, answer.length)
        except gevent.Timeout:
            raise ScrapeError(f"{self.place} did not answer within {TIMEOUT_S:g} s") from None
        except ConnectionRefusedError:
            raise ScrapeError(
                f"nothing listens on {self.place}: is the server running, with [control] metrics?"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ScrapeError(
                f"{self.place} broke off: {str(error) or type(error).__name__}"
            ) from None
        finally:
            connection.close()
        if answer.status != 200:
            raise ScrapeError(
                f"{self.place} answered {answer.status} {answer.reason} to {self.path}"
            )
        if len(page) > BYTES_MAX:
            raise ScrapeError(f"{self.place} answered with more than {BYTES_MAX} bytes")
        return parse(page)


def parse(page: bytes) -> dict[str, float]:
    """Return the numbers of a page in Prometheus' text format (version 0.0.4) by name, those with labels left out.

    Raises:
        ScrapeError: a line is neither a comment nor a name with a finite number; it is quoted.
    """
    found: dict[str, float] = {}
    for line in page.decode("utf-8", "replace").split("\n"):
        if not line or line[0] == "#" or line.isspace() or "{" in line:
            continue
        words = line.split()
        try:
            value = float(words[1])
        except (IndexError, ValueError):
            value = math.nan
        if not math.isfinite(value) or len(words) > 3:  # the third would be a time
            raise ScrapeError(f"this is no line of metrics: {line[:60]!r}")
        found[words[0]] = value
    return found
