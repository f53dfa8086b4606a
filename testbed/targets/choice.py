"""Which targets there are, which of them can run here, and how one is made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from testbed import packages
from testbed.children import UsageError
from testbed.targets import apart
from testbed.targets.exim import Exim
from testbed.targets.opensmtpd import OpenSmtpd
from testbed.targets.peer import PeerServer
from testbed.targets.postfix import Postfix

OURS: Final = "ours"

PEERS: Final[Mapping[str, type[PeerServer]]] = {
    "postfix": Postfix,
    "opensmtpd": OpenSmtpd,
    "exim": Exim,
}

TARGETS: Final = (OURS, *PEERS)
"""By the names that ``--target`` takes."""


def why_not(name: str) -> str:
    """Return why a target can't run here, with what to do about it; empty if it can.

    Raises:
        UsageError: there is no such target.
    """
    if name == OURS:
        return ""
    if name not in PEERS:
        raise UsageError(f"--target: there is no {name}; there are {', '.join(TARGETS)}")
    peer = packages.find(name)
    if not peer.is_here:
        return f"{name} is not here: {peer.how}"
    reason = apart.why_not()
    return f"{name} can't be set apart here: {reason}" if reason else ""


def make_peer(
    name: str, directory: Path, *, overrides: Mapping[str, Any], nameserver: str
) -> PeerServer:
    """Return another server, ready to be started in a directory.

    Raises:
        UsageError: it can't run here.
    """
    reason = why_not(name)
    if reason:
        raise UsageError(reason)
    return PEERS[name](directory, packages.find(name), overrides=overrides, nameserver=nameserver)
