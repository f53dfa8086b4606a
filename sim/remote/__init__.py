"""How a remote host behaves: one pure state machine per address, composed of behaviours.

The scripted sink puts a `RemoteHost` behind a socket, the model puts one behind an event; both hear
the same answers. A host reads no clock and owns its chance: `now` is seconds since the start of the
scenario, never decreasing for one host (negative before the start), and the streams come from the
scenario's seed and the host's address.

How replies are timed: a command that arrives at ``a`` is answered at
``max(a + delay_s, when the reply before left) + work_s``. Delays (latency) of commands that arrive at
the same instant are one draw, so pipelining helps; work (tarpits) is done for one reply after the other.

`replies` are the words and limits of every host, `verdicts` what is answered, `host` is the machine, and `building` makes the
hosts and name servers of a scenario. Others import from here.
"""

from sim.behaviours.base import Conn
from sim.behaviours.nameserver import NameServer
from sim.remote.building import build_host, build_hosts, build_name_servers
from sim.remote.host import RemoteHost
from sim.remote.replies import RECIPIENTS_MAX, SIZE_MAX, TAKEN
from sim.remote.verdicts import TransactionVerdict, Verdict

__all__ = [
    "RECIPIENTS_MAX",
    "SIZE_MAX",
    "TAKEN",
    "Conn",
    "NameServer",
    "RemoteHost",
    "TransactionVerdict",
    "Verdict",
    "build_host",
    "build_hosts",
    "build_name_servers",
]
