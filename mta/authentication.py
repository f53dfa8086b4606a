"""Checks passwords on threads of its own: so many at a time, so many waiting, and not for ever.

Checking a password is made to be slow, and a client that guesses must not make others wait: the event loop
never checks. What can't be checked within the limits is a temporary failure; who is refused hears of it later.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, Protocol

from mta.core.limits import SmtpLimits
from mta.core.metrics import Metrics
from mta.effects import Effects
from mta.inbound_door import Verdict
from mta.passwords import PasswordCheckError

_COUNTER: Final = {
    Verdict.OK: "smtp.auth.ok",
    Verdict.PERMFAIL: "smtp.auth.permfail",
    Verdict.TEMPFAIL: "smtp.auth.tempfail",
}


class Checker(Protocol):
    """What knows passwords: `mta.passwords.Passwords`."""

    def verify(self, user: str, password: str) -> bool:
        """Say whether a password is right; may block.

        Raises:
            PasswordCheckError: it can't be said now.
        """
        ...


class Authenticator:
    """Answers logins. `close` when nobody asks any more."""

    def __init__(
        self,
        passwords: Checker,
        *,
        effects: Effects,
        limits: SmtpLimits,
        metrics: Metrics,
        log: Callable[[str], None],
    ) -> None:
        self._passwords = passwords
        self._effects = effects
        self._limits = limits
        self._metrics = metrics
        self._log = log
        self._threads = ThreadPoolExecutor(limits.auth_threads, thread_name_prefix="auth")
        self.pending = 0
        """Passwords being checked or waiting for that, also those that nobody waits for any more."""

    def authenticate(self, user: str, password: str) -> "asyncio.Future[Verdict]":
        """Check credentials; both as `mta.core.sasl` cleans them."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Verdict] = loop.create_future()
        if self.pending >= self._limits.max_auth_pending:
            self._decide(answer, Verdict.TEMPFAIL, "too many logins at once")
            return answer
        try:
            self._effects.point("thread", "auth")
            check = loop.run_in_executor(self._threads, self._check, user, password)
        except (OSError, RuntimeError, MemoryError) as error:
            # RuntimeError: no thread can be started, or all were told to end.
            self._decide(answer, Verdict.TEMPFAIL, str(error))
            return answer
        self.pending += 1
        self._metrics.inc("smtp.auth.pending")
        timer = loop.call_later(
            self._limits.auth_timeout_s, self._decide, answer, Verdict.TEMPFAIL, "timeout"
        )
        check.add_done_callback(partial(self._checked, answer, timer))
        return answer

    def _check(self, user: str, password: str) -> tuple[Verdict, str]:
        """Run on a thread."""
        try:
            right = self._passwords.verify(user, password)
        except PasswordCheckError as error:
            return Verdict.TEMPFAIL, str(error)
        return (Verdict.OK if right else Verdict.PERMFAIL), ""

    def _checked(
        self,
        answer: "asyncio.Future[Verdict]",
        timer: asyncio.TimerHandle,
        check: "asyncio.Future[tuple[Verdict, str]]",
    ) -> None:
        self.pending -= 1
        self._metrics.dec("smtp.auth.pending")
        timer.cancel()
        if check.cancelled():
            self._decide(answer, Verdict.TEMPFAIL, "cancelled")
        elif (error := check.exception()) is not None:
            self._decide(answer, Verdict.TEMPFAIL, f"{type(error).__name__}: {error}")
        else:
            self._decide(answer, *check.result())

    def _decide(self, answer: "asyncio.Future[Verdict]", verdict: Verdict, why: str) -> None:
        if answer.done():
            return  # too late: the client was told that it can't be said
        if why:
            self._log(f'auth: a login could not be checked: "{why}"')
        self._metrics.inc(_COUNTER[verdict])
        if verdict is Verdict.PERMFAIL:
            # Why here? Its place is free already: who guesses waits, and nobody else does.
            delay = self._limits.auth_failure_delay_s
            asyncio.get_running_loop().call_later(delay, _tell, answer, verdict)
        else:
            answer.set_result(verdict)

    def close(self) -> None:
        """End the threads; what waits is forgotten, what runs is let finish. Idempotent."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def _tell(answer: "asyncio.Future[Verdict]", verdict: Verdict) -> None:
    if not answer.done():
        answer.set_result(verdict)


__all__ = ["Authenticator", "Checker"]
