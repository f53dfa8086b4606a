"""Plays a schedule: who sends which message next, and when it is due.

Open loop: every message has an instant, whatever the server does; a user takes the next one and
waits for it, and latency counts from that instant. A slow server cannot slow the load down without
the latency telling (Schroeder, Wierman, Harchol-Balter, NSDI 2006). Closed loop: users take the same
messages in the same order at their own pace.

When all users are busy messages leave late; that is the server's doing. When a user is free and is
woken late, that is ours: the lag of the generator, which must stay small or the run means nothing.
"""

import collections
import time
from typing import Any, Final, NamedTuple

import gevent
from gevent.event import Event

from loadtests._record import Recorder, Spread
from loadtests._session import Attempt
from sim.scenario import Scenario
from sim.workload import Schedule, digest, message_bytes

LAG_MAX_S: Final = 0.05
"""A generator that is later than this for one message in a hundred does not offer the load it says."""


STOPPED: Final = "stopped"
"""Outcome of a message whose user was stopped before it knew better."""


class Taken(NamedTuple):
    """A message that a user has to send now."""

    seq: int
    scheduled: float
    """Instant of `time.time`; in a closed loop, when it was taken."""
    sender: str
    recipients: tuple[str, ...]
    message: bytes


class Player:
    """One run of a schedule, or of a share of it, in one process."""

    def __init__(
        self,
        scenario: Scenario,
        schedule: Schedule,
        *,
        run_id: str,
        open_loop: bool,
        start_at: float,
        share: tuple[int, int] = (0, 1),
        recorder: Recorder | None = None,
    ) -> None:
        """Get ready.

        Args:
            scenario: Where the schedule came from.
            schedule: All messages.
            run_id: Carried by each message.
            open_loop: Whether messages have their instants.
            start_at: Instant of `time.time` that the schedule counts from.
            share: (i, n): this process sends every n-th message, from the i-th on.
            recorder: Where to write what became of each.
        """
        index, of = share
        assert 0 <= index < of, share
        self.run_id = run_id
        self.open_loop = open_loop
        self.finished = Event()
        self._schedule = schedule
        self._rate = scenario.load.rate / of
        self._start_at = start_at
        self._waiting = iter(range(index, len(schedule), of))
        self._share_size = len(range(index, len(schedule), of))
        self._settled = 0
        self._recorder = recorder
        self._outcomes: collections.Counter[str] = collections.Counter()
        self._envelopes = 0
        self._retries = 0
        self._lag = Spread()
        self._delay = Spread()
        self._latency = Spread()
        self._ranks = 0
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
                    "open_loop": open_loop,
                    "load_start": start_at,
                }
            )
            recorder.flush()

    def now(self) -> float:
        """Return seconds since the epoch, never falling."""
        return self._epoch + time.perf_counter()

    def rank(self) -> int:
        """Return 0 to the first user that asks, 1 to the second, and so on."""
        self._ranks += 1
        return self._ranks - 1

    def pace_s(self, users: int) -> float:
        """Return the seconds between two messages of one user in a closed loop."""
        return max(users, 1) / self._rate

    def take(self) -> Taken | None:
        """Return the next message when it is due, or None if there is none left.

        The calling greenlet sleeps until then. A message that is taken must be settled.
        """
        seq = next(self._waiting, None)
        if seq is None:
            return None
        try:
            asked = self.now()
            schedule = self._schedule
            # Before the sleep: what costs time must not make the message late.
            sender = schedule.sender(seq)
            recipients = tuple(mailbox.address for mailbox in schedule.recipients(seq))
            message = message_bytes(schedule, seq, self.run_id)
            due = self._start_at + float(schedule.due_s[seq]) if self.open_loop else asked
            left = due - self.now()
            if left > 0:
                gevent.sleep(left)
            started = self.now()
        except BaseException:
            # Stopped while it waited: it was never sent, and nobody has to wonder about it.
            self._settle(STOPPED)
            raise
        self._lag.add(started - max(due, asked))
        self._delay.add(started - due)
        return Taken(seq, due, sender, recipients, message)

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
        done = self.now()
        if last.code // 100 == 2:
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
                    "size": len(taken.message),
                    "digest": digest(taken.message),
                }
            )
        self._settle(STOPPED if last.text == STOPPED else str(last.code or "lost"))
        return done - taken.scheduled

    def _settle(self, outcome: str) -> None:
        self._outcomes[outcome] += 1
        self._settled += 1
        if self._settled == self._share_size:
            self.finished.set()

    def end(self) -> dict[str, Any]:
        """Write the last line and return it. Idempotent."""
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
            "ended": round(self.now(), 6),
            "generator_lag_s": self._lag.summary(),
            "start_delay_s": self._delay.summary(),
            "latency_s": self._latency.summary(),
        }
        if self._recorder:
            self._recorder.write(self._end)
            self._recorder.flush()
        return self._end
