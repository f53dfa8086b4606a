"""Local deliveries of the model: what each costs the event loop, how long it takes, how it ends.

The counterpart of mta/localmail.py: every `DeliverLocally` is answered by one `LocalDeliveryDone`. Who is delivered
to next is decided in `mta.core.local`. How long a delivery takes and whether it fails was drawn with the message
(`sim.workload.Schedule`): the same message fails as often under every policy.
"""

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mta.core.ids import EvpId, MsgId
from mta.core.instructions import DeliverLocally
from mta.core.reply import Outcome
from mta.core.stimuli import LocalDeliveryDone, Stimulus
from sim.costs import Costs
from sim.cpu import EventLoop
from sim.groups import LocalGroup
from sim.kernel import Kernel
from sim.message import Message
from sim.workload import Schedule

DELIVERED: Final = "Delivered"
TRY_AGAIN: Final = "4.3.0 Error (temporary failure: exited abnormally)"
TIMED_OUT: Final = "4.3.0 Error (terminated; timeout)"
UNAVAILABLE: Final = "5.3.0 Error (service unavailable: exited abnormally)"
"""Words of mta/delivery/pipe.py for exit status 75, a deadline and 69, so that a trace of the model reads like one of
the server."""

Floats = npt.NDArray[np.float64]


class LocalMail:
    """All local deliveries under way."""

    def __init__(
        self,
        kernel: Kernel,
        loop: EventLoop,
        costs: Costs,
        *,
        groups: Sequence[LocalGroup],
        schedule: Schedule,
        messages: dict[MsgId, Message],
        tell: Callable[[Stimulus], None],
        timeout_s: float = math.inf,
    ) -> None:
        """Deliver nothing yet.

        Args:
            kernel: the clock.
            loop: our CPU.
            costs: what a delivery costs it, and what it waits for.
            groups: how each group's mail is delivered.
            schedule: every message, with the outcome of its delivery.
            messages: what the queue has, by id.
            tell: takes what happened.
            timeout_s: a delivery that takes longer is ended then, and fails for now.
        """
        self._kernel = kernel
        self._loop = loop
        self._messages = messages
        self._tell = tell
        self._group = schedule.group.tolist() if schedule.users else []
        self._service_s: list[float] = schedule.service_s.tolist()
        self._failures: list[int] = schedule.failures.tolist()
        self._fatal: list[bool] = schedule.fatal.tolist()
        self._cpu_s = [costs.delivery_cpu_s(group.delivery) for group in groups]
        self._waits_s = [costs.delivery_wait_s(group.delivery) for group in groups]
        self._done_s = costs.local_done_s
        self._timeout_s = timeout_s
        self.running = 0
        """Deliveries under way."""
        self.started = 0

    def start(self, instruction: DeliverLocally) -> None:
        """Begin a delivery."""
        self.running += 1
        self.started += 1
        envelope = instruction.evpid
        number = self._messages[envelope >> 32].number  # type: ignore[index]  # `msgid_of`, without its calls
        group = self._group[number]
        loop, kernel = self._loop, self._kernel
        loop.done_at += self._cpu_s[group]
        seconds = self._service_s[number] + self._waits_s[group]
        in_time = seconds <= self._timeout_s
        if not in_time:
            seconds = self._timeout_s
        kernel.schedule(loop.done_at - kernel.now + seconds, self._end, (envelope, number, in_time))

    def lose(self) -> None:
        """The process is gone: what it was delivering is delivered again."""
        self.running = 0

    def delivered(self, job: Callable[[Any], None], argument: Any) -> EvpId | None:
        """Return the envelope that a job would have told the core is delivered; None if it is no such job."""
        if job != self._finish:
            return None
        envelope, number, in_time = argument
        well = in_time and not self._failures[number] and not self._fatal[number]
        return envelope if well else None

    def _end(self, ended: tuple[EvpId, int, bool]) -> None:
        self._loop.do(self._finish, ended)

    def _finish(self, ended: tuple[EvpId, int, bool]) -> None:
        envelope, number, in_time = ended
        self.running -= 1
        self._loop.done_at += self._done_s
        if not in_time:
            done = LocalDeliveryDone(envelope, Outcome.TEMPFAIL, TIMED_OUT)
        elif self._failures[number]:
            self._failures[number] -= 1
            done = LocalDeliveryDone(envelope, Outcome.TEMPFAIL, TRY_AGAIN)
        elif self._fatal[number]:
            done = LocalDeliveryDone(envelope, Outcome.PERMFAIL, UNAVAILABLE)
        else:
            done = LocalDeliveryDone(envelope, Outcome.OK, DELIVERED)
        self._tell(done)


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What became of the mail of one local group."""

    name: str
    users: int
    offered: int
    """Messages."""
    accepted: int
    delivered: int
    failed: int
    """Given up for good, or expired."""
    tempfails: int
    """Attempts that failed for now, and messages that the agent sent back because too many waited."""
    refused: int
    """Those that the agent sent back: part of ``tempfails``."""
    overflows: int
    """Messages that found the hold queue full: due again soon, no attempt."""
    latency_s: Floats
    """float64[delivery]: from acceptance (250) to delivery. Why not from when it was due? Clients that wait for a
    free connection wait alike for every policy."""

    def summary(self) -> dict[str, Any]:
        """Return every number that is no array."""
        latency: dict[str, float | None] = dict.fromkeys(("p50", "p95", "p99", "max"))
        if len(self.latency_s):
            values = np.percentile(self.latency_s, (50, 95, 99, 100), method="inverted_cdf")
            latency = dict(zip(latency, (round(float(v), 6) for v in values), strict=True))
        return {
            "users": self.users,
            "offered": self.offered,
            "accepted": self.accepted,
            "delivered": self.delivered,
            "failed": self.failed,
            "tempfails": self.tempfails,
            "refused": self.refused,
            "overflows": self.overflows,
            "latency_s": latency,
        }


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What became of local mail, and how it was shared."""

    groups: tuple[GroupResult, ...]
    burst: str
    """The group whose users get most messages each; the burst window is from its first acceptance to its last."""
    burst_drain_s: float | None
    """From its first acceptance until the last of it was delivered or failed; None if that never came."""
    oldest_age_s: float
    """Greatest age that any local message had in the queue."""
    jain: float | None
    """Jain's index over users in the burst window; None if nothing was accepted in it. See `jain_index`."""
    peak_agent: int
    """Most envelopes that the agent had at once, those running included; sampled."""
    attempts: int
    """Deliveries started."""

    def summary(self) -> dict[str, Any]:
        """Return every number that is no array, for JSON."""
        total = {
            key: sum(getattr(group, key) for group in self.groups)
            for key in ("tempfails", "refused", "overflows")
        }
        return {
            "burst": self.burst,
            "burst_drain_s": None if self.burst_drain_s is None else round(self.burst_drain_s, 6),
            "oldest_age_s": round(self.oldest_age_s, 6),
            "jain": None if self.jain is None else round(self.jain, 6),
            "peak_agent": self.peak_agent,
            "attempts": self.attempts,
            # Whatever the reason: each of them makes the scheduler hand an envelope out once more.
            "retries": total["tempfails"] + total["overflows"],
            **total,
            "groups": {group.name: group.summary() for group in self.groups},
        }


class LocalLedger:
    """When each local message was accepted and settled, and what happened to it on the way."""

    __slots__ = (
        "_group",
        "_groups",
        "_schedule",
        "accepted_at",
        "delivered",
        "overflows",
        "peak_agent",
        "refused",
        "settled_at",
        "tempfails",
    )

    def __init__(self, groups: Sequence[LocalGroup], schedule: Schedule) -> None:
        self._groups = groups
        self._schedule = schedule
        self._group: list[int] = schedule.group.tolist()
        nothing = array("d", [float("nan")]) * len(schedule)
        self.accepted_at = nothing[:]
        """By message; NaN if it was not."""
        self.settled_at = nothing
        """When it left the queue."""
        self.delivered = bytearray(len(schedule))
        """1 if it left delivered."""
        self.tempfails = [0] * len(groups)
        self.refused = [0] * len(groups)
        self.overflows = [0] * len(groups)
        self.peak_agent = 0

    def put_back(self, number: int, status: str, too_many: str) -> None:
        """Note that an envelope waits for another try; ``too_many`` is what the agent says when it has no room."""
        group = self._group[number]
        if group < 0:
            return
        if not status:
            self.overflows[group] += 1
            return
        self.tempfails[group] += 1
        if status == too_many:
            self.refused[group] += 1

    def result(self, *, now: float, attempts: int) -> LocalResult:
        """Return what it came to; ``now`` is the end of the run."""
        group_of = self._schedule.group
        user_of = self._schedule.mailbox[self._schedule.first[:-1]]
        accepted_at, settled_at = np.array(self.accepted_at), np.array(self.settled_at)
        delivered = np.frombuffer(self.delivered, dtype=np.uint8).astype(bool)
        results = []
        for number, group in enumerate(self._groups):
            own = group_of == number
            settled = own & np.isfinite(settled_at)
            results.append(
                GroupResult(
                    name=group.name,
                    users=group.users,
                    offered=int(own.sum()),
                    accepted=int(np.isfinite(accepted_at[own]).sum()),
                    delivered=int((own & delivered).sum()),
                    failed=int((settled & ~delivered).sum()),
                    tempfails=self.tempfails[number],
                    refused=self.refused[number],
                    overflows=self.overflows[number],
                    latency_s=(settled_at - accepted_at)[own & delivered],
                )
            )
        # Of the schedule, not the settings: of a replayed run it has what was really sent.
        per_user = [result.offered / result.users for result in results]
        burst = int(np.argmax(per_user))
        mine = (group_of == burst) & np.isfinite(accepted_at)
        local = (group_of >= 0) & np.isfinite(accepted_at)
        left_at = np.where(np.isfinite(settled_at), settled_at, now)
        drain_s = jain = None
        if mine.any():
            begin, end = float(accepted_at[mine].min()), float(accepted_at[mine].max())
            if np.isfinite(settled_at[mine]).all():
                drain_s = float(settled_at[mine].max()) - begin
            inside = local & (accepted_at >= begin) & (accepted_at <= end)
            # One number for each user of each group.
            _, user = np.unique(
                np.stack((group_of[inside], user_of[inside])), axis=1, return_inverse=True
            )
            user = np.ravel(user)
            served = delivered[inside] & (settled_at[inside] <= end)
            shares = np.bincount(user, weights=served) / np.bincount(user)
            jain = jain_index(shares)
        return LocalResult(
            groups=tuple(results),
            burst=self._groups[burst].name,
            burst_drain_s=drain_s,
            oldest_age_s=float((left_at - accepted_at)[local].max()) if local.any() else 0.0,
            jain=jain,
            peak_agent=self.peak_agent,
            attempts=attempts,
        )


def jain_index(shares: Floats) -> float | None:
    """Return Jain's index of fairness: 1 if all have the same, 1/n if one of n has everything.

    ``(sum x)**2 / (n * sum x**2)``: Jain, Chiu and Hawe, "A Quantitative Measure of Fairness and Discrimination for
    Resource Allocation in Shared Computer Systems", DEC TR-301, 1984. Here x of a user is the part of the mail accepted
    for them in the burst window that was delivered in it: demand differs a ten-thousandfold, so that what is shared out
    is measured against what was asked for, as the paper proposes. Whoever floods is worse off by right: with
    50 users served at once and one not at all it is 50/51. It falls when the fifty pay for the one.

    Args:
        shares: of each user, 0 or more.

    Returns:
        None if nobody has anything.
    """
    total = float(shares.sum())
    if not total:
        return None
    return total**2 / (len(shares) * float((shares**2).sum()))
