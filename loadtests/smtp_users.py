"""The users: one that connects for each message, one that keeps its connection, and one made of smtplib.

Which of the first two runs is what the scenario says (``load.keep``), unless they are named on the command
line. The rest of the options: ``locust -f loadtests --help``, "Test-bed".
"""

import smtplib
from typing import Any, Final

import gevent
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

from loadtests import _hooks
from loadtests._dialogue import Attempt, Reply, describe
from loadtests._hooks import HELO, Run
from loadtests._outcomes import failure_of, name_of
from loadtests._player import CROWD_S, STOPPED, Taken
from loadtests._session import Session

_hooks.listen()

TURN_S: Final = 0.1
"""How long a user sends without asking Locust whether it shall stop: asking costs as much as a verb."""


class _SmtpUser(User):
    """Sends the messages that the schedule hands out."""

    abstract = True
    keep = False
    on_request = False
    """Only runs if it is named."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._request: Any = environment.events.request.fire
        self._run: Run | None = None
        self._rank = 0

    def on_start(self) -> None:
        """Join the run that is going on, if it could begin."""
        run = self._run = _hooks.current_run()
        if run is None:
            return  # the task stops; here Locust would log where
        self._rank = run.player.rank()
        self._session = self._client(run)
        run.users += 1

    def _client(self, run: Run) -> Any:
        return Session(
            run.settings.address,
            helo=HELO,
            timeout_s=run.settings.timeout_s,
            observe=self._observe,
            pipelining=run.pipelining,
            wants=run.wants,
        )

    def on_stop(self) -> None:
        """Take leave of the server."""
        if self._run is not None:
            try:
                self._session.quit()
            finally:
                self._run.users -= 1
                self._run = None

    @task
    def messages(self) -> None:
        """Send messages for a while, each with as many attempts as a client would make."""
        run = self._run
        if run is None:
            raise StopUser
        player = run.player
        until = player.now() + TURN_S
        while player.now() < until:
            if not player.open_loop:
                users = self.environment.runner.target_user_count
                if not player.takes_part(self._rank, users):
                    gevent.sleep(CROWD_S)
                    continue
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
                last = session.send(taken.sender, taken.recipients, taken.message, bdat=taken.bdat)
                under_way = False
                unsure += last.unsure
                if last.code not in (0, 421) or attempts == run.settings.tries:
                    break
                gevent.sleep(run.settings.retry_wait_s)
        except BaseException:
            if under_way:
                at_dot = session.verb in (".", "BDAT")
                unsure += at_dot
                last = Attempt(session.verb, 0, STOPPED, (), (), at_dot)
            last = last._replace(code=0, text=STOPPED)
            player.settle(taken, sent=sent, attempts=attempts, unsure=unsure, last=last)
            raise
        took = player.settle(taken, sent=sent, attempts=attempts, unsure=unsure, last=last)
        self._count("message", took, last.code, last, taken.message.size)

    def _observe(
        self, verb: str, seconds: float, reply: Reply | None, error: Exception | None
    ) -> None:
        if reply is None:
            reply = Reply(0, describe(error) if error else "")
        self._count(verb, seconds, reply.code, reply, 0)

    def _count(
        self, what: str, seconds: float, code: int, end: Reply | Attempt, octets: int
    ) -> None:
        """Gather what was expected, and tell Locust of what was not."""
        run = self._run
        if run is None:
            return
        # A server that hangs up at QUIT has done nothing to anybody's mail.
        if (
            code // 100 in (2, 3)
            or run.settings.expected.covers(code)
            or (what == "QUIT" and not code)
        ):
            run.tally.add(name_of(what, code), seconds, octets)
            return
        verb = end.verb if isinstance(end, Attempt) else what
        self._request(
            request_type="SMTP",
            name=what,
            response_time=seconds * 1000,
            response_length=octets,
            exception=failure_of(verb, code, end.text),
            context={},
        )


class ConnectionPerMessage(_SmtpUser):
    """Connects, sends one message and quits: most clients on the Internet."""

    keep = False


class KeptConnection(_SmtpUser):
    """Sends message after message over one connection: a busy relay or a mailing list."""

    keep = True


class StandardLibrary(_SmtpUser):
    """Sends with Python's smtplib, a connection per message: a client that is not ours. No verbs in the statistics."""

    on_request = True

    def _client(self, run: Run) -> Any:
        return _Smtplib(run)


class _Smtplib:
    """What `Session` is to the other users, by the standard library; each message has a connection of its own."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._client: smtplib.SMTP | None = None
        self.verb = "CONNECT"

    def quit(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                client.quit()
            except (OSError, smtplib.SMTPException):
                client.close()

    def send(
        self, sender: str, recipients: tuple[str, ...], message: Any, *, bdat: bool
    ) -> Attempt:
        """Try once to send a message; smtplib knows no BDAT."""
        del bdat
        settings = self._run.settings
        wants = self._run.wants()
        self.verb = "CONNECT"
        refused: tuple[tuple[str, int, str], ...] = ()
        try:
            # With a name: otherwise it looks its own up, for each connection.
            self._client = client = smtplib.SMTP(
                *settings.address,
                local_hostname=HELO,
                timeout=settings.timeout_s,
                source_address=(wants.source, 0) if wants.source else None,
            )
            if wants.tls:
                self.verb = "STARTTLS"
                client.starttls()
            if wants.login:
                self.verb = "AUTH"
                client.login(*wants.login)
            self.verb = "."
            failed = client.sendmail(sender, recipients, message.plain())
        except smtplib.SMTPRecipientsRefused as error:
            code, text = next(reversed(error.recipients.values()))
            refused = _refusals(error.recipients)
            return self._ended("RCPT", code, text, refused)
        except smtplib.SMTPResponseException as error:
            return self._ended(self.verb, error.smtp_code, error.smtp_error, refused)
        except (OSError, smtplib.SMTPException) as error:
            unsure = self.verb == "."
            self._drop()
            lost = isinstance(error, smtplib.SMTPServerDisconnected)
            problem = "connection closed" if lost else describe(error)
            return Attempt(self.verb, 0, problem, (), (), unsure)
        accepted = tuple(each for each in recipients if each not in failed)
        return Attempt(".", 250, "", accepted, _refusals(failed), unsure=False)

    def _ended(
        self,
        verb: str,
        code: int,
        text: bytes | str,
        refused: tuple[tuple[str, int, str], ...],
    ) -> Attempt:
        if code == 421:
            self._drop()
        words = text.decode("latin-1") if isinstance(text, bytes) else text
        return Attempt(verb, code, " ".join(words.split()), (), refused, unsure=False)

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _refusals(answers: Any) -> tuple[tuple[str, int, str], ...]:
    return tuple((who, code, text.decode("latin-1")) for who, (code, text) in answers.items())
