"""One address of the scripted Internet: a state machine that hears commands and gives verdicts."""

import math
from collections.abc import Sequence
from typing import Final

from mta.core.reply import Reply
from sim.behaviours.base import CONNECT, END_OF_DATA, Behaviour, Conn, Refusal
from sim.behaviours.composition import Composition
from sim.behaviours.maker import Maker
from sim.remote.replies import (
    GREETING,
    HELLO_FIRST,
    MAIL_FIRST,
    NESTED,
    NO_RECIPIENTS,
    PLAIN,
    RECIPIENT_OK,
    RECIPIENTS_MAX,
    SIZE_MAX,
    TAKEN,
    TOO_BIG,
    TOO_MANY,
    UNKNOWN,
)
from sim.remote.verdicts import RESET, SILENCE, TransactionVerdict, Verdict, broken, closed

_new: Final = tuple.__new__
"""Of a named tuple, without the call of Python code that its own is: for what there is one of for each message."""


class RemoteHost:
    """One address of the scripted Internet. See the package for its clock.

    A shell calls `connect` for each connection and hands the `Conn` to the other methods until a
    verdict closes it or `disconnect` was called.
    """

    def __init__(self, behaviours: Sequence[Behaviour], maker: Maker | None = None) -> None:
        """Compose a host; the order of behaviours that refuse is the order in which they are asked."""
        self.maker = maker
        """What made them, for those who change them."""
        self._phases = [Composition(-math.inf, math.inf, behaviours)]
        self._enter(self._phases[0])
        self._notified = _notified(self._phases)
        self._open: set[Conn] = set()

    @property
    def open_count(self) -> int:
        """Connections that were let in and are not gone."""
        return len(self._open)

    def plan(self, changes: Sequence[tuple[float, Sequence[Behaviour]]]) -> None:
        """Say what the host will be like from which instants on; they rise. Before the first connection."""
        assert not self._open, self
        begins = [-math.inf, *(at for at, _ in changes), math.inf]
        lists = [self._phases[0].behaviours, *(behaviours for _, behaviours in changes)]
        self._phases = [
            Composition(begin, end, behaviours)
            for begin, end, behaviours in zip(begins, begins[1:], lists, strict=False)
        ]
        self._notified = _notified(self._phases)
        self._enter(self._phases[0])

    def change(self, behaviours: Sequence[Behaviour], now: float) -> None:
        """Be like this from now on, until the next instant that was planned.

        A behaviour that is there already goes on with what it remembers; a new one is told of who is connected.
        """
        known = set(map(id, self._notified))
        later = [one for one in self._phases if one.begin > now]
        end = later[0].begin if later else math.inf
        self._phases = [Composition(-math.inf, end, behaviours), *later]
        self._notified = _notified(self._phases)
        for one in self._notified:
            if id(one) not in known:
                for conn in self._open:
                    one.opened(conn, now)
        self._enter(self._phases[0])
        if self.maker is not None:
            self.maker.keep(each for phase in self._phases for each in phase.behaviours)

    def behaviours_at(self, now: float) -> tuple[Behaviour, ...]:
        """Return what makes up the host at an instant."""
        return next(one for one in self._phases if one.begin <= now < one.end).behaviours

    def listening(self, now: float) -> bool:
        """Return False while connections are refused by the host's kernel, as it were."""
        if not self._phase_begin <= now < self._phase_end:
            self._turn(now)
        return not any(one.mode == "refuse" and one.away(now) for one in self._windows)

    def next_change(self, now: float) -> float | None:
        """Return the first instant after ``now`` at which the host goes away or comes back, or may."""
        if not self._phase_begin <= now < self._phase_end:
            self._turn(now)
        at = min((one.next_change(now) for one in self._windows), default=math.inf)
        at = min(at, self._phase_end)
        return at if at < math.inf else None

    def _turn(self, now: float) -> None:
        """Become what the host is at an instant."""
        self._enter(next(one for one in self._phases if one.begin <= now < one.end))

    def _enter(self, phase: Composition) -> None:
        """Take a phase's tables as ours: every command looks something up there."""
        self._phase_begin, self._phase_end = phase.begin, phase.end
        self._windows = phase.windows
        self._samplers, self._sample = phase.samplers, phase.sample
        self._delayed, self._work_s = phase.delayed, phase.work_s
        self._judges = phase.judges
        self._is_plain = phase.is_plain
        # A transaction may end in another phase, whose windows nobody has looked at.
        self._is_straight = phase.is_straight and not any(one.windows for one in self._phases)
        self._calm_from, self._calm_until = math.inf, -math.inf

    def connect(self, peer: str, now: float) -> tuple[Conn, Verdict]:
        """Answer a new connection from an address.

        The verdict's reply is the greeting, or 421 or 554 with ``close``, or there is none: refused
        (``close``) or silent.
        """
        conn = Conn(peer)
        refusal = self._away(now) or self._judge(conn, CONNECT, "", 0, now)
        if refusal is not None and refusal.reply is not None:
            # RFC 5321 3.1 lets a host that greets with 554 stay for QUIT; few do, and none must.
            refusal = refusal._replace(close=True)
        if refusal is None or not refusal.close:
            self._open.add(conn)
            for one in self._notified:
                one.opened(conn, now)
        else:
            # It was never counted, so that nobody is told that it left.
            conn.closed = True
        return conn, self._verdict(conn, CONNECT, refusal, GREETING, now)

    def command(
        self, conn: Conn, verb: str, argument: str, now: float, *, size: int = 0
    ) -> Verdict:
        """Answer one command.

        Args:
            conn: A connection that is not closed.
            verb: In upper case; any.
            argument: The address for MAIL and RCPT, without brackets and parameters; else as it came.
            now: When it arrived.
            size: What MAIL declared (RFC 1870), or 0.
        """
        assert not conn.closed, verb
        refusal = self._away(now)
        if conn.silent and not (refusal is not None and refusal.close):
            return SILENCE
        wrong = self._out_of_order(conn, verb, size)
        if refusal is None and wrong is None:
            refusal = self._judge(conn, verb, argument, size, now)
        reply = wrong or PLAIN[verb]
        if refusal is None and wrong is None:
            _advance(conn, verb, argument)
        verdict = self._verdict(conn, verb, refusal, reply, now)
        if verb == "QUIT" and not verdict.close and verdict.reply is not None:
            verdict = verdict._replace(close=True)
        if verdict.close:
            self.disconnect(conn, now)
        return verdict

    def end_of_data(self, conn: Conn, size: int, now: float) -> Verdict:
        """Answer the final dot of a message of ``size`` bytes; the transaction is over."""
        assert not conn.closed and conn.rcpts, conn.rcpts
        refusal = self._away(now)
        if conn.silent and not (refusal is not None and refusal.close):
            return SILENCE
        reply = TAKEN
        if refusal is None and size > SIZE_MAX:
            reply = TOO_BIG
        elif refusal is None:
            refusal = self._judge(conn, END_OF_DATA, "", size, now)
        conn.sender = None
        conn.rcpts = []
        verdict = self._verdict(conn, END_OF_DATA, refusal, reply, now)
        if verdict.close:
            self.disconnect(conn, now)
        return verdict

    def disconnect(self, conn: Conn, now: float) -> None:
        """Forget a connection that is gone, whoever ended it. Idempotent."""
        if conn.closed:
            return
        conn.closed = True
        self._open.remove(conn)
        for one in self._notified:
            one.left(conn, now)

    def transaction(
        self, conn: Conn, sender: str, rcpts: Sequence[str], size: int, now: float
    ) -> TransactionVerdict:
        """Answer a whole transaction: MAIL, each RCPT and DATA at once, then the message at once.

        The same verdicts as verb by verb, without the time of the client and the network. A host
        that goes away meanwhile (`refuse`) resets the connection at that instant, and has not taken
        a message that it has not acknowledged by then. Connections that are idle at that instant are
        the shell's to end: see `next_change` and `listening`.
        """
        assert conn.greeted and conn.sender is None and not conn.closed, conn.closed
        if (
            self._is_plain
            and self._calm_from <= now < self._calm_until
            and rcpts
            and not conn.silent
            and size <= SIZE_MAX
            and len(rcpts) <= RECIPIENTS_MAX
        ):
            sample = self._sample
            if sample is None:
                return _new(TransactionVerdict, (0.0, (TAKEN,) * len(rcpts), True))
            first_s = conn.waves[0] if conn.wave_at == now else sample()
            data_at = now + first_s
            # Two instants that are the same to a float are the same to everybody.
            last_s = sample() if data_at != now else first_s
            done_at = data_at + last_s
            if done_at < self._calm_until:
                conn.wave_at = data_at
                conn.waves = [last_s]
                return _new(TransactionVerdict, (done_at - now, (TAKEN,) * len(rcpts), True))
            # A window begins meanwhile. The second draw is lost, which biases nothing.
            conn.wave_at = now
            conn.waves = [first_s]
        if not self._phase_begin <= now < self._phase_end:
            self._turn(now)
        if (
            self._is_straight
            and rcpts
            and not conn.silent
            and size <= SIZE_MAX
            and len(rcpts) <= RECIPIENTS_MAX
        ):
            return self._straight(conn, sender, rcpts, size, now)
        return self._verb_by_verb(conn, sender, rcpts, size, now)

    def _straight(
        self, conn: Conn, sender: str, rcpts: Sequence[str], size: int, now: float
    ) -> TransactionVerdict:
        """Answer as `_verb_by_verb` does, for a host whose replies to one group leave together.

        A quarter of its calls: what is accepted needs no verdict of its own.
        """
        judges, results = self._judges, list[Reply | None]()
        refusal = None
        for judge in judges["MAIL"]:
            refusal = judge(conn, "MAIL", sender, size, now)
            if refusal is not None:
                break
        if refusal is not None:
            stop, refused = self._refuse(conn, "MAIL", refusal, results, len(rcpts), now, 0.0)
            if stop is not None:
                return stop
            return TransactionVerdict(_first_wave(conn, now), (refused,) * len(rcpts), True)
        conn.sender = sender
        if self._samplers and conn.wave_at != now:
            conn.wave_at = now
            conn.waves = [sample() for sample in self._samplers]
        left_at = now + conn.waves[0] if self._samplers else now
        judging = judges["RCPT"]
        for rcpt in rcpts:
            refusal = None
            for judge in judging:
                refusal = judge(conn, "RCPT", rcpt, 0, now)
                if refusal is not None:
                    break
            if refusal is None:
                conn.rcpts.append(rcpt)
                results.append(RECIPIENT_OK)
                continue
            stop, refused = self._refuse(
                conn, "RCPT", refusal, results, len(rcpts), now, left_at - now
            )
            if stop is not None:
                return stop
            results.append(refused)
        if conn.rcpts:
            refusal = self._judge(conn, "DATA", "", 0, now) if judges["DATA"] else None
            if refusal is None:
                return self._take(conn, results, size, now, left_at, math.inf)
            stop, refused = self._refuse(
                conn, "DATA", refusal, results, len(rcpts), now, left_at - now
            )
            if stop is not None:
                return stop
        else:
            refused = NO_RECIPIENTS
        self._forget_transaction(conn)
        final = tuple([refused if one is None or one.code < 400 else one for one in results])
        return TransactionVerdict(left_at - now, final, True)

    def _refuse(
        self,
        conn: Conn,
        verb: str,
        refusal: Refusal,
        results: list[Reply | None],
        count: int,
        now: float,
        spent_s: float,
    ) -> tuple[TransactionVerdict | None, Reply | None]:
        """Return the end of the transaction if a refusal ends the connection, and its reply."""
        verdict = self._verdict(conn, verb, refusal, TAKEN, now)
        if verdict.close:
            self.disconnect(conn, now)
        if verdict.reply is None:
            return broken(verdict, results, count, spent_s), None
        if verdict.close:
            left_at = verdict.due_at(now, now)
            return closed(verdict.reply, results, count, left_at - now), verdict.reply
        return None, verdict.reply

    def _verb_by_verb(
        self, conn: Conn, sender: str, rcpts: Sequence[str], size: int, now: float
    ) -> TransactionVerdict:
        results: list[Reply | None] = []
        left_at = now
        reset_at = self._next_reset(now)
        steps = [("MAIL", sender, size), *(("RCPT", rcpt, 0) for rcpt in rcpts), ("DATA", "", 0)]
        refused: Reply | None = None
        go_ahead = False
        for verb, argument, declared in steps:
            verdict = self.command(conn, verb, argument, now, size=declared)
            if verdict.reply is None:
                return broken(verdict, results, len(rcpts), left_at - now)
            left_at = verdict.due_at(now, left_at)
            if left_at >= reset_at:
                self.disconnect(conn, reset_at)
                return broken(RESET, results, len(rcpts), reset_at - now)
            if verdict.close:
                # What was not answered has the last answer: 421 is about the whole channel.
                return closed(verdict.reply, results, len(rcpts), left_at - now)
            if verb == "MAIL":
                refused = verdict.reply if verdict.reply.code >= 400 else None
            elif verb == "RCPT":
                results.append(refused or verdict.reply)
            else:
                go_ahead = verdict.reply.code == 354
                refused = refused or verdict.reply
        if not go_ahead:
            assert refused is not None, results
            self._forget_transaction(conn)
            final = tuple(refused if one is None or one.code < 400 else one for one in results)
            return TransactionVerdict(left_at - now, final, True)
        return self._take(conn, results, size, now, left_at, reset_at)

    def _take(
        self,
        conn: Conn,
        results: list[Reply | None],
        size: int,
        now: float,
        left_at: float,
        reset_at: float,
    ) -> TransactionVerdict:
        """Answer the message of a transaction whose recipients were answered."""
        verdict = self.end_of_data(conn, size, left_at)
        if verdict.reply is None:
            return broken(verdict, results, len(results), left_at - now)
        done_at = verdict.due_at(left_at, left_at)
        if done_at >= reset_at:
            # Taking a message and never saying so is what a host does that dies; this one says no
            # earlier than it takes: what it has not acknowledged it has not got.
            self.disconnect(conn, reset_at)
            return broken(RESET, results, len(results), reset_at - now)
        final = tuple([verdict.reply if one is None or one.code < 400 else one for one in results])
        return TransactionVerdict(done_at - now, final, not verdict.close)

    def _forget_transaction(self, conn: Conn) -> None:
        """Do what the client's RSET would do, without its time: it goes with the next MAIL."""
        conn.sender = None
        conn.rcpts = []

    def _out_of_order(self, conn: Conn, verb: str, size: int) -> Reply | None:
        """Return what any server says to a command that has no place here, or None."""
        if verb == "RCPT":
            if conn.sender is None:
                return MAIL_FIRST
            return TOO_MANY if len(conn.rcpts) >= RECIPIENTS_MAX else None
        if verb == "MAIL":
            if not conn.greeted:
                return HELLO_FIRST
            if conn.sender is not None:
                return NESTED
            return TOO_BIG if size > SIZE_MAX else None
        if verb == "DATA":
            if conn.sender is None:
                return MAIL_FIRST
            return None if conn.rcpts else NO_RECIPIENTS
        return None if verb in PLAIN else UNKNOWN

    def _away(self, now: float) -> Refusal | None:
        """Return how the host is away, or None; remembers for how long it surely is not."""
        if self._calm_from <= now < self._calm_until:
            return None
        if not self._phase_begin <= now < self._phase_end:
            self._turn(now)
        for one in self._windows:
            if one.away(now):
                return one.refusal
        self._calm_from = now if self._windows else self._phase_begin
        change_at = min((one.next_change(now) for one in self._windows), default=math.inf)
        self._calm_until = min(change_at, self._phase_end)
        return None

    def _next_reset(self, now: float) -> float:
        """Return when the host next resets its connections; inf if never."""
        for phase in self._phases:
            if phase.end <= now:
                continue
            refusing = [one for one in phase.windows if one.mode == "refuse"]
            if phase.begin > now and any(one.away(phase.begin) for one in refusing):
                return phase.begin
            at = max(now, phase.begin)
            change_at = min(
                (one.next_change(at) for one in refusing if not one.away(at)), default=math.inf
            )
            if change_at < phase.end:
                return change_at
        return math.inf

    def _judge(self, conn: Conn, verb: str, argument: str, size: int, now: float) -> Refusal | None:
        for judge in self._judges.get(verb, ()):
            refusal = judge(conn, verb, argument, size, now)
            if refusal is not None:
                return refusal
        return None

    def _verdict(
        self, conn: Conn, verb: str, refusal: Refusal | None, reply: Reply, now: float
    ) -> Verdict:
        if refusal is not None:
            if refusal.reply is None and not refusal.close:
                conn.silent = True
            elif refusal.reply is None:
                return RESET
        if conn.silent:
            return SILENCE
        delay_s = 0.0
        if self._samplers:
            if conn.wave_at != now or len(conn.waves) != len(self._samplers):
                conn.wave_at = now
                conn.waves = [sample() for sample in self._samplers]
            for i in self._delayed.get(verb, ()):
                delay_s += conn.waves[i]
        work_s = self._work_s.get(verb, 0.0)
        if refusal is not None:
            return Verdict(refusal.reply, delay_s, work_s, refusal.close)
        return Verdict(reply, delay_s, work_s)


def _notified(phases: Sequence[Composition]) -> tuple[Behaviour, ...]:
    """Return who is told of connections, each once: what comes later counts from the beginning."""
    found = {
        id(one): one
        for phase in phases
        for one in phase.behaviours
        if type(one).opened is not Behaviour.opened
    }
    return tuple(found.values())


def _first_wave(conn: Conn, now: float) -> float:
    """Return how long replies to what came now take; 0 for a host without latency."""
    return now + conn.waves[0] - now if conn.wave_at == now else 0.0


def _advance(conn: Conn, verb: str, argument: str) -> None:
    """Let a connection go on by an accepted command."""
    if verb == "RCPT":
        conn.rcpts.append(argument)
    elif verb == "MAIL":
        conn.sender = argument
    elif verb in ("EHLO", "HELO", "RSET"):
        conn.greeted = conn.greeted or verb != "RSET"
        conn.sender = None
        conn.rcpts = []
