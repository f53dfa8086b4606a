"""Clients of the model that send no mail that counts: slow ones, and ones that break the rules.

What loadtests/rude_users.py does over sockets, as events: a client has one connection at a time, and comes again a pause
after the last one, as long as the load goes on. Who is let in, who is sent away and when is decided by `mta.core.admission` and
`mta.core.stress` with the server's limits, as at its door: a client that was idle for too long by the limits of stress goes
the moment that stress begins.

Left out: what single bytes cost the loop.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from mta.core.admission import IDLE, SESSION_TOO_LONG, on_junk
from mta.core.limits import SmtpLimits
from mta.core.reply import Reply
from mta.core.stress import Stress
from sim.clients import ClientGroup
from sim.costs import Costs
from sim.cpu import EventLoop
from sim.kernel import Kernel

if TYPE_CHECKING:
    from sim.inbound import Inbound

NO_COMMAND: Final = Reply(421, "4.7.0", "This is a mail server, goodbye")
"""To the first line of ``garbage``; mta/inbound_session.py."""
OUT_OF_STEP: Final = Reply(554, "5.5.0", "SMTP protocol synchronization")
"""To ``early-talker``; mta/inbound_session.py."""
LINES: Final = (26, 30, 6)
"""Bytes of the lines of ``slow-commands``, over and over: EHLO, MAIL, RSET; a test holds them to loadtests/rude_users.py."""
VERBS: Final = 6
"""``hang-up`` leaves after 0, 1, ... 5 lines, and begins anew."""
STEP_MIN_S: Final = 1e-4
"""Between two commands of a client that does not pause at all."""
_ROUNDING_S: Final = 1e-9

_Turn: TypeAlias = tuple["Client", int]
"""A client, and which of its lives an event is about."""


class Said(NamedTuple):
    """Connections that ended with the same last word."""

    times: int
    mean_s: float
    """How long they lasted."""


class Client:
    """One client of a group."""

    __slots__ = (
        "active_at", "base_at", "counted", "deadline", "group", "junk", "life", "opened_at", "rate", "step", "timer_at", "turn",
    )  # fmt: skip

    def __init__(self, group: ClientGroup) -> None:
        self.group = group
        self.life = 0
        """Rises with each connection and its end: an event of another life is over."""
        self.turn = 0
        """Connections so far."""
        self.counted = False
        """It has a connection that the server counts."""
        self.opened_at = self.active_at = self.deadline = 0.0
        self.timer_at = math.inf
        """When the server looks at it next."""
        self.junk = self.step = 0
        self.base_at = math.nan
        """Since when ``active_at`` moves with a body that comes at an even pace; NaN if it does not."""
        self.rate = 0
        """The data rate that counts since then."""


class Beside:
    """All of them, and the server's side of their connections."""

    def __init__(
        self,
        kernel: Kernel,
        loop: EventLoop,
        costs: Costs,
        limits: SmtpLimits,
        *,
        inbound: "Inbound",
        groups: Sequence[ClientGroup],
    ) -> None:
        """Get ready; `start` lets them come.

        Args:
            kernel: the clock.
            loop: the server's CPU.
            costs: what a connection costs.
            limits: the door's.
            inbound: counts connections; those who send mail are among them.
            groups: who they are.
        """
        self._kernel = kernel
        self._loop = loop
        self._costs = costs
        self._limits = limits
        self._inbound = inbound
        self._clients = [Client(group) for group in groups for _ in range(group.users)]
        self._over = False
        self.stress = Stress(limits)
        self.stress_entered = 0
        """How often stress began, over all processes."""
        self._counts: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}

    @property
    def said(self) -> Mapping[str, Said]:
        """How connections ended, by kind and last word: ``slow-body 421 4.4.2``, ``hang-up lost``."""
        return {
            name: Said(count, self._seconds[name] / count)
            for name, count in sorted(self._counts.items())
        }

    def start(self) -> None:
        """Let them come."""
        for client in self._clients:
            self._kernel.schedule(0.0, self._come, (client, client.life))

    def end(self) -> None:
        """The load is over: they leave, and do not come again."""
        self._over = True
        for client in self._clients:
            client.life += 1
            if client.counted:
                client.counted = False
                self._inbound.disconnect()

    def lose(self) -> None:
        """The process is gone, and all connections with it."""
        self.stress = Stress(self._limits)
        for client in self._clients:
            if client.counted:
                client.counted = False
                self._tell(client, None, heard=True)
            self._again(client)

    def limits_changed(self) -> None:
        """Take changed limits over, for those who are here, too."""
        self.stress.refresh()
        self.look()
        self._bind()

    def look(self) -> None:
        """See whether so many connections are stress, or the end of it."""
        if self.stress.update(self._inbound.connections):
            self.stress_entered += self.stress.active
            self._bind()

    # Coming and going

    def _come(self, turn: _Turn) -> None:
        client, life = turn
        if life != client.life or self._over:
            return
        client.opened_at = self._kernel.now
        if self._inbound.is_down:
            self._tell(client, None)
            self._again(client)
        else:
            self._loop.do(self._connect, turn)

    def _connect(self, turn: _Turn) -> None:
        """Let a client in, or send it away."""
        client, life = turn
        if life != client.life or self._over:
            return
        self._loop.done_at += self._costs.session_s
        refusal = self._inbound.connect()
        if refusal is not None:
            self._tell(client, refusal)
            self._again(client)
            return
        now = self._kernel.now
        client.counted = True
        client.active_at = now
        client.deadline = now + self._limits.max_session_s
        client.base_at, client.timer_at = math.nan, math.inf
        client.junk = client.step = 0
        self.look()
        self._arm(client)
        self._begin(client)

    def _begin(self, client: Client) -> None:
        """Say when the client does something for the first time."""
        round_trip_s = self._costs.client_recipient_s
        group = client.group
        match group.kind:
            case "idle":
                return
            case "slow-commands":
                self._next(client, round_trip_s + (LINES[0] - 1) / group.bytes_per_s)
            case "slow-body":
                self._next(client, 5 * round_trip_s)
            case "hang-up":
                self._next(client, (1 + client.turn % VERBS) * round_trip_s)
            case "noop":
                self._next(client, round_trip_s + group.pause_s)
            case _:
                self._next(client, round_trip_s)

    def _next(self, client: Client, seconds: float) -> None:
        self._kernel.schedule(max(seconds, STEP_MIN_S), self._act, (client, client.life))

    def _act(self, turn: _Turn) -> None:
        if turn[1] == turn[0].life:
            self._loop.do(self._obey, turn)

    def _obey(self, turn: _Turn) -> None:
        """Take what a client says."""
        client, life = turn
        if life != client.life:
            return  # sent away while this was on its way
        now, group = self._kernel.now, client.group
        client.active_at = now
        match group.kind:
            case "slow-commands":
                line = client.step % len(LINES)
                # The first EHLO and MAIL are none.
                if line == 2 or (line == 0 and client.step):
                    client.junk += 1
                client.step += 1
                wait_s = LINES[client.step % len(LINES)] / group.bytes_per_s
            case "slow-body":
                client.base_at, client.rate = now, self.stress.limits.min_data_rate
                self._arm(client)
                return
            case "noop":
                client.junk += 1
                wait_s = group.pause_s + self._costs.client_recipient_s
            case "hang-up":
                self._leave(client, None)
                return
            case "early-talker":
                self._leave(client, OUT_OF_STEP)
                return
            case _:
                self._leave(client, NO_COMMAND)
                return
        self._loop.done_at += self._costs.command_s
        goodbye = on_junk(junk=client.junk, limits=self.stress.limits)
        if goodbye is not None:
            self._leave(client, goodbye)
        else:
            self._next(client, wait_s)

    def _leave(self, client: Client, last: Reply | None) -> None:
        """End a connection; the server counts it until the client has closed its side."""
        client.life += 1
        self._kernel.schedule(
            self._costs.client_recipient_s, self._gone, (client, client.life, last)
        )

    def _gone(self, end: tuple[Client, int, Reply | None]) -> None:
        client, life, last = end
        if life != client.life:
            return  # the process was gone before
        client.counted = False
        self._inbound.disconnect()
        # Who hangs up at once has heard nothing.
        self._tell(client, last, heard=client.turn % VERBS > 0)
        self._again(client)
        self.look()

    def _again(self, client: Client) -> None:
        client.life += 1
        client.turn += 1
        pause_s = max(client.group.pause_s, STEP_MIN_S)
        self._kernel.schedule(pause_s, self._come, (client, client.life))

    def _tell(self, client: Client, last: Reply | None, *, heard: bool = False) -> None:
        """Note how a connection ended: with a refusal, in the middle of a dialogue, or without a word."""
        name: str = client.group.kind
        if last is not None:
            name = f"{name} {last.code} {last.enhanced}"
        elif not heard:
            name = f"{name} lost"
        self._counts[name] += 1
        lasted_s = self._kernel.now - client.opened_at
        self._seconds[name] = self._seconds.get(name, 0.0) + lasted_s

    # The server's patience

    def _due(self, client: Client) -> float:
        """Return when the client will have been idle, or here, for too long; `mta.inbound_connection`."""
        timeout_s = self.stress.limits.timeout_s
        if math.isnan(client.base_at):
            return min(client.active_at + timeout_s, client.deadline)
        pace = client.group.bytes_per_s
        if not client.rate or pace >= client.rate:
            # Any byte is activity.
            if 1 / pace > timeout_s:
                byte_at = (
                    client.base_at + math.floor((self._kernel.now - client.base_at) * pace) / pace
                )
                return min(byte_at + timeout_s, client.deadline)
            return client.deadline
        # Each byte buys 1/rate seconds, which is less than it took to come.
        gain = pace / client.rate
        due = (client.active_at + timeout_s - client.base_at * gain) / (1 - gain)
        return min(due, client.deadline)

    def _bind(self) -> None:
        """Let other limits count for everybody who is here."""
        now, limits = self._kernel.now, self.stress.limits
        for client in self._clients:
            if not client.counted:
                continue
            if not math.isnan(client.base_at):
                pace, rate = client.group.bytes_per_s, client.rate
                gain = pace / rate if rate else 1.0
                bought = client.active_at + (now - client.base_at) * gain
                client.active_at = min(now, bought)
                client.base_at, client.rate = now, limits.min_data_rate
            self._arm(client)

    def _arm(self, client: Client) -> None:
        due = self._due(client)
        if due < client.timer_at:
            client.timer_at = due
            wait_s = max(0.0, due - self._kernel.now)
            self._kernel.schedule(wait_s, self._time_is_up, (client, client.life))

    def _time_is_up(self, turn: _Turn) -> None:
        client, life = turn
        if life != client.life:
            return
        now = self._kernel.now
        client.timer_at = math.inf
        if now < self._due(client) - _ROUNDING_S:
            self._arm(client)
        else:
            over = now >= client.deadline - _ROUNDING_S
            self._leave(client, SESSION_TOO_LONG if over else IDLE)


__all__ = ["Beside", "Client", "Said"]
