"""What the command line or the web UI says about the client, checked: all of it, before it is used."""

import ipaddress
from argparse import Namespace
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from loadtests._outcomes import Expectations
from mta.core.settings import ConfigError
from sim.workload import RUN_ID_MAX, is_run_id

DEFAULT_HOST: Final = "smtp://127.0.0.1:2525"


@dataclass(frozen=True, slots=True)
class Settings:
    """How the clients behave."""

    address: tuple[str, int]
    """Host and port; always of this machine."""
    timeout_s: float
    """Longest wait for a connection or a reply. RFC 5321 4.5.3.2 has minutes; 60 s by default."""
    tries: int
    """Attempts per message when the server says 421 or the connection is lost."""
    retry_wait_s: float
    """Between two of them."""
    expected: Expectations

    @classmethod
    def read(cls, options: Namespace, host: str) -> "Settings":
        """Return what the options say.

        Raises:
            ConfigError: one of them makes no sense.
        """
        if options.run_id and not is_run_id(options.run_id):
            problem = (
                f"must be letters, digits, dots, hyphens and underscores, {RUN_ID_MAX} at most"
            )
            raise ConfigError("--run-id", value=options.run_id, problem=problem)
        for option, value, low, high in (
            ("--tries", options.tries, 1, 100),
            ("--retry-wait", options.retry_wait, 0, 3600),
            ("--smtp-timeout", options.smtp_timeout, 0.001, 3600),
            ("--load-start", options.load_start, 0, 1e11),
            ("--lag-max", options.lag_max, 0, 3600),
        ):
            if not low <= value <= high:
                raise ConfigError(option, value=value, problem=f"must be from {low:g} to {high:g}")
        try:
            expected = Expectations.parse(options.expect)
        except ValueError as error:
            problem = f"must be codes, 4xx, 5xx or lost, not {error}"
            raise ConfigError("--expect", value=options.expect, problem=problem) from error
        return cls(
            address_of(host), options.smtp_timeout, options.tries, options.retry_wait, expected
        )


def address_of(host: str) -> tuple[str, int]:
    """Return the address and port that ``smtp://127.0.0.1:2525`` names; the port is 25 if it has none.

    Raises:
        ConfigError: no such URL, or not this machine. Nothing is looked up: a name could be anywhere.
    """
    problem = "must be smtp://ADDRESS:PORT"
    try:
        parts = urlsplit(host if "://" in host else f"smtp://{host}")
        name, port = parts.hostname or "", 25 if parts.port is None else parts.port
    except ValueError as error:
        raise ConfigError("--host", value=host, problem=problem) from error
    plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
    if parts.scheme != "smtp" or not name or not plain or port == 0:
        raise ConfigError("--host", value=host, problem=problem)
    name = "127.0.0.1" if name == "localhost" else name
    try:
        is_here = ipaddress.ip_address(name).is_loopback
    except ValueError:
        is_here = False
    if not is_here:
        raise ConfigError(
            "--host", value=host, problem="must be an address of this machine's loopback"
        )
    return name, port
