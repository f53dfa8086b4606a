"""Plays a schedule: who sends which message next, and when it is due.

Open loop: every message has an instant, whatever the server does; a user takes the next one and
waits for it, and latency counts from that instant. A slow server cannot slow the load down without
the latency telling (Schroeder, Wierman, Harchol-Balter, NSDI 2006). Closed loop: users take the same
messages in the same order, each after it has thought.

When all users are busy messages leave late; that is the server's doing. When a user is free and is
woken late, that is ours: the lag of the generator, which must stay small or the run means nothing.
"""

import collections
import functools
import math
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import gevent
from gevent.event import Event

from loadtests._dialogue import Attempt, Message
from loadtests._record import Recorder, Spread
from sim.scenario import Scenario
from sim.shapes import Shape, relative_rate
from sim.shares import in_share
from sim.workload import Schedule, digest, message_bytes, wire_form

LAG_MAX_S: Final = 0.05
"""A generator that is later than this for one message in a hundred does not offer the load it says."""

BLOCK: Final = 256
"""Messages whose columns become Python's numbers at a time: one by one it costs ten times as much."""

CROWD_S: Final = 0.05
"""How often a user of a closed loop that the shape leaves out asks whether it takes part again."""

STOPPED: Final = "stopped"
"""Outcome of a message whose user was stopped before it knew better."""


class Taken(NamedTuple):
    """A message that a user has to send now."""

    seq: int
    scheduled: float
    """Instant of `time.time`; in a closed loop, when it was taken."""
    sender: str
    recipients: tuple[str, ...]
    message: Message
    bdat: bool
    """Whether it is of the part that goes by BDAT."""


class Player:
    """One run of a schedule, or of a share of it, in one process."""

    def __init__(
        self,
        scenario: Scenario,
        schedule: Schedule,
        *,
        run_id: str,
        start_at: float,
        share: tuple[int, int] = (0, 1),
        recorder: Recorder | None = None,
    ) -> None:
        """Get ready.

        Args:
            scenario: Where the schedule came from.
            schedule: All messages.
            run_id: Carried by each message.
            start_at: Instant of `time.time` that the schedule counts from.
            share: (i, n): this process sends every n-th message, from the i-th on.
            recorder: Where to write what became of each.
        """
        index, of = share
        assert 0 <= index < of, share
        self.run_id = run_id
        self.open_loop = scenario.load.loop == "open"
        self.finished = Event()
        self._schedule = schedule
        self._shape = scenario.load.shape
        self._length_s = len(schedule) / scenario.load.rate
        self._bdat = scenario.load.bdat
        self.start_at = start_at
        self.statistics_from = start_at + scenario.load.warm_up_s
        """Instant of `time.time` at which the warm-up ends."""
        self._waiting = self._rows(index, of)
        self._share_size = len(range(index, len(schedule), of))
        self._settled = 0
        self._recorder = recorder
        self._outcomes: collections.Counter[str] = collections.Counter()
        self._envelopes = 0
        self._retries = 0
        self._lag = Spread()
        self._delay = Spread()
        self._worst = 0.0
        self._latency = Spread()
        self._ranks = 0
        self._first = math.inf
        self._last = -math.inf
        self._end: dict[str, Any] | None = None
        # One clock for all intervals; the wall clock may be set while the run goes on.
        self._epoch = time.time() - time.perf_counter()
        if recorder:
            recorder.write(
                {
                    "kind": "start",
                    "run": run_id,
                    "scenario": scenario.name,
                    "seed": scenario.seed,
                    "messages": self._share_size,
                    "share": [index, of],
                    "rate": scenario.load.rate,
                    "open_loop": self.open_loop,
                    "load_start": start_at,
                }
            )
            recorder.flush()

    def now(self) -> float:
        """Return seconds since the epoch, never falling."""
        return self._epoch + time.perf_counter()

    @property
    def counts_from(self) -> float:
        """The same by `time.perf_counter`; 0 if there is no warm-up."""
        if self.statistics_from == self.start_at:
            return 0.0
        return self.statistics_from - self._epoch

    def rank(self) -> int:
        """Return 0 to the first user that asks, 1 to the second, and so on."""
        self._ranks += 1
        return self._ranks - 1

    def takes_part(self, rank: int, users: int) -> bool:
        """Return whether a user of a closed loop is among those that the shape wants now."""
        if self._shape.kind == "steady":
            return True
        part = min(max((self.now() - self.start_at) / self._length_s, 0.0), 1.0)
        return rank < math.ceil(users * relative_rate(self._shape, part) / _peak(self._shape))

    def _rows(self, index: int, of: int) -> Iterator[tuple[int, float, str, tuple[str, ...]]]:
        """Yield (number, due, sender, recipients) of this process's messages."""
        schedule = self._schedule
        names = [(schedule.prefix(where), domain) for where, domain in schedule.domains]
        times = schedule.due_s if self.open_loop else schedule.think_s
        for low in range(0, len(schedule), BLOCK):
            high = min(low + BLOCK, len(schedule))
            due = times[low:high].tolist()
            first = schedule.first[low : high + 1].tolist()
            mailboxes = schedule.mailbox[first[0] : first[-1]].tolist()
            domains = schedule.recipient_domain[first[0] : first[-1]].tolist()
            senders = schedule.sender_number[low:high].tolist()
            for seq in range(low + (index - low) % of, high, of):
                i = seq - low
                recipients = []
                for k in range(first[i] - first[0], first[i + 1] - first[0]):
                    prefix, domain = names[domains[k]]
                    recipients.append(f"{prefix}{mailboxes[k]}@{domain}")
                sender = f"sender{senders[i]}@{schedule.sender_domain}"
                yield seq, due[i], sender, tuple(recipients)

    def take(self) -> Taken | None:
        """Return the next message when it is due, or None if there is none left.

        The calling greenlet sleeps until then; in a closed loop it thinks. A message that is taken must be settled.
        """
        row = next(self._waiting, None)
        if row is None:
            return None
        seq, wait, sender, recipients = row
        try:
            asked = self.now()
            schedule, run_id = self._schedule, self.run_id
            # Before the sleep: what costs time must not make the message late.
            message = Message(
                int(schedule.size[seq]),
                wire_form(schedule, seq, run_id, sender),
                functools.partial(message_bytes, schedule, seq, run_id),
            )
            bdat = in_share(seq, self._bdat)
            due = (self.start_at if self.open_loop else asked) + wait
            while (left := due - self.now()) > 0:
                gevent.sleep(left)
            started = self.now()
        except BaseException:
            # Stopped while it waited: it was never sent, and nobody has to wonder about it.
            self._settle(STOPPED)
            raise
        self._first = min(self._first, started)
        self._worst = max(self._worst, started - max(due, asked))
        if due >= self.statistics_from:
            self._lag.add(started - max(due, asked))
            self._delay.add(started - due)
        return Taken(seq, due, sender, recipients, message, bdat)

    def settle(
        self, taken: Taken, *, sent: float, attempts: int, unsure: int, last: Attempt
    ) -> float:
        """Count and record what became of a message; return the seconds from its instant until now.

        Args:
            taken: The message.
            sent: Instant of the first attempt.
            attempts: How often it was tried.
            unsure: How many of the attempts ended without a reply to the final dot; the server may
                have taken the message each time.
            last: The last attempt.
        """
        done = self._last = self.now()
        if last.code // 100 == 2 and taken.scheduled >= self.statistics_from:
            self._latency.add(done - taken.scheduled)
        self._envelopes += len(last.accepted)
        self._retries += attempts - 1
        if self._recorder:
            self._recorder.write(
                {
                    "kind": "message",
                    "seq": taken.seq,
                    "scheduled": round(taken.scheduled, 6),
                    "sent": round(sent, 6),
                    "done": round(done, 6),
                    "attempts": attempts,
                    "unsure": unsure,
                    "verb": last.verb,
                    "code": last.code,
                    "reply": last.text,
                    "sender": taken.sender,
                    "rcpts": taken.recipients,
                    "accepted": last.accepted,
                    "refused": last.refused,
                    "size": taken.message.size,
                    "digest": digest(taken.message.plain()),
                }
            )
        self._settle(STOPPED if last.text == STOPPED else str(last.code or "lost"))
        return done - taken.scheduled

    def _settle(self, outcome: str) -> None:
        self._outcomes[outcome] += 1
        self._settled += 1
        if self._settled == self._share_size:
            self.finished.set()

    @property
    def lag_s(self) -> float:
        """The lag that 99 of 100 messages did not exceed; 0 in a closed loop, where nothing can be late."""
        lag = self._lag.summary()
        return lag["p99"] if self.open_loop and lag else 0.0

    def take_worst_lag_s(self) -> float:
        """Return by how much a message left late because of the generator, at worst, since this was last asked."""
        worst, self._worst = self._worst, 0.0
        return worst

    def end(self, **more: Any) -> dict[str, Any]:
        """Write the last line and return it, with what else belongs to it. Idempotent."""
        if self._end is not None:
            return self._end
        complete = self._settled == self._share_size and not self._outcomes[STOPPED]
        self._end = {
            "kind": "end",
            "run": self.run_id,
            "complete": complete,
            "messages": self._share_size,
            "settled": self._settled,
            "accepted_envelopes": self._envelopes,
            "retries": self._retries,
            "outcomes": dict(sorted(self._outcomes.items())),
            "took_s": round(max(self._last - self._first, 0.0), 6),
            "ended": round(self.now(), 6),
            "generator_lag_s": self._lag.summary(),
            "start_delay_s": self._delay.summary(),
            "latency_s": self._latency.summary(),
            **more,
        }
        if self._recorder:
            self._recorder.write(self._end)
            self._recorder.flush()
        return self._end


def _peak(shape: Shape) -> float:
    """Return the highest relative rate that a shape reaches."""
    return 1.0 if shape.kind == "steady" else shape.factor
