"""The users: one that connects for each message, and one that keeps its connection.

Which of them runs is what the scenario says (``load.keep``), unless they are named on the command
line. The rest of the options: ``locust -f loadtests --help``, "Test-bed".
"""

from typing import Any

import gevent
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

from loadtests import _hooks
from loadtests._hooks import Run
from loadtests._outcomes import failure_of, name_of
from loadtests._player import STOPPED, Taken
from loadtests._session import Attempt, Reply, Session, describe

_hooks.listen()


class _SmtpUser(User):
    """Sends the messages that the schedule hands out."""

    abstract = True
    keep = False

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._request: Any = environment.events.request.fire
        self._run: Run | None = None
        self._next_at = 0.0

    def on_start(self) -> None:
        """Join the run that is going on, or stop at once if it could not begin."""
        run = _hooks.current_run()
        if run is None:
            raise StopUser
        self._run = run
        self._session = Session(
            run.settings.address,
            helo="client.testbed.test",
            timeout_s=run.settings.timeout_s,
            observe=self._observe,
        )
        player = run.player
        if not player.open_loop:
            # Spread over one pace, or all would send in the same instant for ever.
            users = max(self.environment.runner.target_user_count, 1)
            self._next_at = player.now() + player.pace_s(users) * (player.rank() % users) / users
        run.users += 1

    def on_stop(self) -> None:
        """Take leave of the server."""
        if self._run is not None:
            try:
                self._session.quit()
            finally:
                self._run.users -= 1
                self._run = None

    @task
    def message(self) -> None:
        """Send one message, with as many attempts as a client would make."""
        run = self._run
        assert run is not None
        player = run.player
        if not player.open_loop:
            gevent.sleep(max(0.0, self._next_at - player.now()))
            users = self.environment.runner.target_user_count
            self._next_at = max(self._next_at + player.pace_s(users), player.now())
        taken = player.take()
        if taken is None:
            raise StopUser
        self._play(run, taken)
        if not self.keep:
            self._session.quit()

    def _play(self, run: Run, taken: Taken) -> None:
        """Try a message until it is settled: 421 and a lost connection are tried again."""
        player, session = run.player, self._session
        sent = player.now()
        attempts = unsure = 0
        last = Attempt("", 0, STOPPED, (), (), unsure=False)
        under_way = False
        try:
            while True:
                attempts += 1
                under_way = True
                last = session.send(taken.sender, taken.recipients, taken.message)
                under_way = False
                unsure += last.unsure
                if last.code not in (0, 421) or attempts == run.settings.tries:
                    break
                gevent.sleep(run.settings.retry_wait_s)
        except BaseException:
            if under_way:
                at_dot = session.verb == "."
                unsure += at_dot
                last = Attempt(session.verb, 0, STOPPED, (), (), at_dot)
            last = last._replace(code=0, text=STOPPED)
            player.settle(taken, sent=sent, attempts=attempts, unsure=unsure, last=last)
            raise
        took = player.settle(taken, sent=sent, attempts=attempts, unsure=unsure, last=last)
        expected = run.settings.expected.covers(last.code)
        self._request(
            request_type="SMTP",
            name=name_of("message", last.code) if expected else "message",
            response_time=took * 1000,
            response_length=len(taken.message),
            exception=None if expected else failure_of(last.verb, last.code, last.text),
            context={},
        )

    def _observe(
        self, verb: str, seconds: float, reply: Reply | None, error: Exception | None
    ) -> None:
        run = self._run
        code = reply.code if reply else 0
        text = reply.text if reply else describe(error) if error else ""
        expected = code // 100 in (2, 3) or (run is not None and run.settings.expected.covers(code))
        # A server that hangs up at QUIT has done nothing to anybody's mail.
        expected = expected or (verb == "QUIT" and code == 0)
        self._request(
            request_type="SMTP",
            name=name_of(verb, code) if expected else verb,
            response_time=seconds * 1000,
            response_length=0,
            exception=None if expected else failure_of(verb, code, text),
            context={},
        )


class ConnectionPerMessage(_SmtpUser):
    """Connects, sends one message and quits: most clients on the Internet."""

    keep = False


class KeptConnection(_SmtpUser):
    """Sends message after message over one connection: a busy relay or a mailing list."""

    keep = True
