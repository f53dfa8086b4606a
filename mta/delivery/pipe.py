"""Delivery to a command, which reads the message from its standard input.

The command is a list of words, run without a shell in a process group of its own, with an environment
that we made. It takes responsibility by exit status 0; the other values mean what sysexits.h says.

A command never sees the end of a message that is not whole: it is killed before its input is closed
early. Only the death of the server itself can cut a message, and only one that is larger than a
pipe holds (64 KiB); it stays in the queue, so that the next delivery is whole.
"""

import asyncio
import os
import re
import shlex
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, suppress
from itertools import chain
from typing import Final

from mta.core.reply import Outcome
from mta.delivery.base import (
    BAD_ADDRESS,
    BAD_SENDER,
    DELIVERED,
    NO_RIGHT,
    DeliveryLimits,
    DeliveryResult,
    Job,
    Log,
    RefusedError,
    report,
)
from mta.delivery.effects import Child, DeliveryEffects, can_act_as, must_give_away
from mta.delivery.headers import heading, refusal, unix_pieces
from mta.effects import Effects
from mta.smtpreply import printable

_SITE: Final = "pipe"
DEFAULT_PATH: Final = "/usr/bin:/bin"
"""PATH of commands. The least that POSIX systems have; OpenSMTPD's _PATH_DEFPATH."""
_READ: Final = 64 * 1024
_DRAIN_MAX: Final = 32
"""Reads of what a command has left in its output pipe; Linux lets a pipe hold 1 MiB at most by default."""
SHOWN_MAX: Final = 256
"""Characters of the last line of output that are shown; OpenSMTPD mda.c: ``out[256]``."""

PREMATURE: Final = "mda exited prematurely"
TIMEOUT: Final = "terminated; timeout"
ABNORMAL: Final = "exited abnormally"
"""Words of OpenSMTPD's mda.c and smtpd.c."""

SYSEXITS: Final = {
    64: ("5.3.0", "command line usage error"),
    65: ("5.6.0", "data format error"),
    66: ("5.3.0", "cannot open input"),
    67: ("5.1.1", "user unknown"),
    68: ("5.1.2", "host name unknown"),
    69: ("5.3.0", "service unavailable"),
    70: ("5.3.0", "internal software error"),
    71: ("4.3.0", "system resource problem"),
    72: ("5.3.0", "critical OS file missing"),
    73: ("5.2.0", "can't create user output file"),
    74: ("5.3.0", "input/output error"),
    75: ("4.3.0", "temporary failure"),
    76: ("5.5.0", "remote error in protocol"),
    77: ("5.7.0", "permission denied"),
    78: ("5.3.5", "local configuration error"),
}
"""Exit status: code of Postfix's sys_exits.c, words of OpenSMTPD's mda.c. Only 71 and 75 are temporary,
as in OpenSMTPD."""

_PLACE = re.compile(r"\{(sender|recipient|dest|user|local|domain|extension|home)\}")
_UNSAFE = re.compile(r"[\x00-\x20!#$%&'*/?^`{|}~\"\\()<>;\x7f]")
"""What is replaced by a colon in the environment: OpenSMTPD's MAILADDR_ESCAPE, and what else a careless
script would feel."""


class PipeDeliverer:
    """Delivers to a command: the one it is set to, or that of the job."""

    def __init__(
        self,
        effects: Effects,
        limits: DeliveryLimits | None = None,
        *,
        command: Sequence[str] = (),
        path: str = DEFAULT_PATH,
        allow_root: bool = False,
        executor: Executor | None = None,
        log: Log | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            effects: the server's.
            limits: what a delivery may take.
            command: program and arguments, for jobs without a target. In arguments ``{sender}``,
                ``{recipient}`` (as RCPT named it), ``{dest}``, ``{user}``, ``{local}``, ``{domain}``,
                ``{extension}`` and ``{home}`` are replaced; in the program itself nothing is.
            path: PATH of the command.
            allow_root: run commands for root. OpenSMTPD never does.
            executor: whose threads fork; the loop's default if None.
            log: told of faults of this machine.
        """
        self._effects = DeliveryEffects(effects)
        self._limits = limits or DeliveryLimits()
        self._command = tuple(command)
        self._path = path
        self._allow_root = allow_root
        self._executor = executor
        self._log = log

    async def deliver(self, job: Job) -> DeliveryResult:
        """Deliver a message; see `Deliverer`. A job's target is a command line, quoted as for a shell."""
        refused = refusal(job, self._limits.hops_max) or _dangerous(job)
        if refused is not None:
            return refused
        try:
            return await self._deliver(job)
        except Exception as error:  # noqa: BLE001  # whatever it is, the mail waits
            return report(self._log, job, error)

    async def _deliver(self, job: Job) -> DeliveryResult:
        if job.uid == 0 and not self._allow_root:
            return _error("5.7.0", f"permission denied: not allowed to deliver to: {job.user}")
        if not can_act_as(job.uid):
            raise RefusedError(NO_RIGHT, f"not running as uid {job.uid}, nor as root")
        effects = self._effects
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.timeout_s
        arguments = self._arguments(job)
        with ExitStack() as stack:
            feed = _Feed(effects, chain((heading(job),), unix_pieces(job.body)), stack)
            output = _Output(effects, self._limits, stack)
            # What the pipe holds is there before the command: most messages are whole then.
            feed.pump()
            feed.check()
            async with asyncio.timeout_at(deadline):
                child = await effects.spawn(
                    arguments,
                    environment=self._environment(job),
                    directory=job.home,
                    stdin=feed.theirs,
                    stdout=output.theirs,
                    identity=(job.uid, job.gid) if must_give_away(job.uid) else None,
                    executor=self._executor,
                    site=_SITE,
                )
            try:
                feed.start()
                output.start()
                in_time = await self._wait(child, feed, deadline)
                output.drain()
            finally:
                # Before the pipes are closed, for then a command that still reads sees an end.
                await self._bury(child)
            feed.check()
            return _verdict(child, feed, output, in_time=in_time)

    async def _wait(self, child: Child, feed: "_Feed", deadline: float) -> bool:
        """Wait for the command's end; return False if it has to be killed, or was."""
        timeout_s = deadline - asyncio.get_running_loop().time()
        ends = (child.exited, feed.failed)
        await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if feed.failed.done() or child.exited.done():
            return child.exited.done()
        child.kill(signal.SIGTERM, site=_SITE)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.kill_grace_s):
                await asyncio.shield(child.exited)
        # Also when the command is gone: the rest of its group may have taken SIGTERM lightly.
        child.kill(signal.SIGKILL, site=_SITE)
        return False

    async def _bury(self, child: Child) -> None:
        """Leave no process and no zombie behind: one that runs still is killed."""
        if not child.exited.done():
            child.kill(signal.SIGKILL, site=_SITE)
        try:
            async with asyncio.timeout(self._limits.kill_grace_s):
                await asyncio.shield(child.exited)
        except TimeoutError:
            child.abandon()  # it hangs in the kernel
        except BaseException:
            child.abandon()
            raise
        else:
            child.reap()

    def _arguments(self, job: Job) -> list[str]:
        words: Sequence[str] = self._command
        if job.target:
            if len(job.target.encode()) > self._limits.command_max or "\0" in job.target:
                raise RefusedError(_NO_COMMAND, "the command line is too long, or has a NUL")
            try:
                words = shlex.split(job.target)
            except ValueError as error:
                raise RefusedError(_NO_COMMAND, f"{job.target!r}: {error}") from error
        if not words:
            raise RefusedError(_NO_COMMAND, "no command")
        values = _values(job)
        return [words[0], *(_PLACE.sub(lambda m: values[m[1]], word) for word in words[1:])]

    def _environment(self, job: Job) -> dict[str, str]:
        """Return what OpenSMTPD's mda_unpriv.c sets, escaped as there."""
        values = {name: _UNSAFE.sub(":", value) for name, value in _values(job).items()}
        return {
            "PATH": self._path,
            "SHELL": "/bin/sh",
            "HOME": str(job.home),
            "USER": job.user,
            "LOGNAME": job.user,
            "SENDER": values["sender"],
            "RECIPIENT": values["dest"],
            "ORIGINAL_RECIPIENT": values["recipient"],
            "LOCAL": values["local"],
            "DOMAIN": values["domain"],
        } | ({"EXTENSION": values["extension"]} if job.tag else {})


_NO_COMMAND: Final = DeliveryResult(Outcome.TEMPFAIL, "4.3.5 Command is not usable")


def _values(job: Job) -> dict[str, str]:
    local, _, domain = job.rcpt.rpartition("@")
    return {
        "sender": job.sender,
        "recipient": job.rcpt,
        "dest": job.dest,
        "user": job.user,
        "local": local,
        "domain": domain,
        "extension": job.tag,
        "home": str(job.home),
    }


def _dangerous(job: Job) -> DeliveryResult | None:
    """Return why a command must not see these addresses, or None.

    A value that begins with a hyphen is an option to most programs: Postfix refuses such addresses
    everywhere (``allow_min_user = no``).
    """
    if job.sender.startswith("-"):
        return BAD_SENDER
    for value in (job.rcpt, job.dest, job.tag, job.user):
        if value.startswith("-") or not value.isprintable():
            return BAD_ADDRESS
    return None


def _error(code: str, words: str) -> DeliveryResult:
    """Return a failure in the form of OpenSMTPD's ``stat=``, behind its status code."""
    outcome = Outcome.TEMPFAIL if code[0] == "4" else Outcome.PERMFAIL
    return DeliveryResult(outcome, f"{code} Error ({words})")


def _verdict(child: Child, feed: "_Feed", output: "_Output", *, in_time: bool) -> DeliveryResult:
    if not in_time or child.status is None:
        return _error("4.3.0", TIMEOUT)
    if child.status == 0:
        # What fits into the pipe counts as read, as in OpenSMTPD: a command that looks at the
        # header only and says 0 is right.
        return DELIVERED if feed.is_done else _error("4.3.0", PREMATURE)
    said = output.last_line()
    words = f'"{said}"' if said else ABNORMAL
    if child.status < 0:
        return _error("4.3.0", f'"{said}"' if said else f"terminated; signal {-child.status}")
    code, name = SYSEXITS.get(child.status, ("5.3.0", ""))
    return _error(code, f"{name}: {words}" if name else words)


class _Feed:
    """Puts a message into a pipe, as the reader takes it."""

    def __init__(self, effects: DeliveryEffects, pieces: Iterator[bytes], stack: ExitStack) -> None:
        self._effects = effects
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._loop = asyncio.get_running_loop()
        self.theirs, self._ours = effects.pipe(site=_SITE)
        self._stack = stack
        stack.callback(self.close)
        os.set_blocking(self._ours, False)
        self.is_done = False
        """The whole message is in the pipe, or through it."""
        self.failed: asyncio.Future[Exception] = self._loop.create_future()
        """Done when we can't go on, for a reason that is not the command's."""

    def pump(self) -> None:
        """Write what the pipe takes. At the end, or when nobody reads, close it.

        A fault of ours leaves it open: an end would look like that of the message.
        """
        try:
            while self._rest or self._next():
                count = self._effects.write_some(self._ours, self._rest, site=_SITE)
                self._rest = self._rest[count:]
            self.is_done = True
        except BlockingIOError:
            return
        except BrokenPipeError:
            pass  # the exit status will tell what that means
        except Exception as error:  # noqa: BLE001  # the deliverer raises it
            self._loop.remove_writer(self._ours)
            self.failed.set_result(error)
            return
        self._close_ours()

    def _next(self) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._rest = memoryview(piece)
        return True

    def check(self) -> None:
        """Raise what went wrong with us, if anything did."""
        if self.failed.done():
            raise self.failed.result()

    def start(self) -> None:
        """Go on whenever the pipe takes more. The command has its end by now."""
        self._close_theirs()
        if self._ours >= 0:
            self._loop.add_writer(self._ours, self.pump)

    def close(self) -> None:
        """Close both ends. Idempotent."""
        self._close_theirs()
        self._close_ours()

    def _close_theirs(self) -> None:
        if self.theirs >= 0:
            descriptor, self.theirs = self.theirs, -1
            os.close(descriptor)

    def _close_ours(self) -> None:
        if self._ours >= 0:
            descriptor, self._ours = self._ours, -1
            self._loop.remove_writer(descriptor)
            os.close(descriptor)


class _Output:
    """Reads what a command says, and remembers the end of it."""

    def __init__(self, effects: DeliveryEffects, limits: DeliveryLimits, stack: ExitStack) -> None:
        self._effects = effects
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._tail = b""
        self._total = 0
        self._ours, self.theirs = effects.pipe(site=_SITE)
        stack.callback(self.close)
        os.set_blocking(self._ours, False)

    def start(self) -> None:
        """Read whenever there is something. The command has its end by now."""
        self._close_theirs()
        self._loop.add_reader(self._ours, self._read)

    def _read(self) -> bool:
        """Read once; return whether there may be more now."""
        try:
            data = self._effects.read_some(self._ours, _READ, site=_SITE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # what it says is not worth a failure
        self._tail = (self._tail + data)[-self._limits.output_max :]
        self._total += len(data)
        if not data or self._total > self._limits.output_flood:
            self._close_ours()
            return False
        return True

    def drain(self) -> None:
        """Read what is there when the command has ended; what its children say is not waited for."""
        for _ in range(_DRAIN_MAX):
            if self._ours < 0 or not self._read():
                return

    def last_line(self) -> str:
        """Return the last line that is not blank, as printable ASCII."""
        lines = self._tail.decode("latin-1").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return printable(last.encode("latin-1"))[:SHOWN_MAX]

    def close(self) -> None:
        """Close both ends. Idempotent."""
        self._close_theirs()
        self._close_ours()

    def _close_theirs(self) -> None:
        if self.theirs >= 0:
            descriptor, self.theirs = self.theirs, -1
            os.close(descriptor)

    def _close_ours(self) -> None:
        if self._ours >= 0:
            descriptor, self._ours = self._ours, -1
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
