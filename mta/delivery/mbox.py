"""Delivery to an mbox: one file, to which one message after the other is appended.

The file is locked in every way that other programs may look for. A message is whole and durable, or
the file is cut back to what it was; after a crash in between, the next message begins on a line of
its own all the same. Only a plain file with one name that belongs to the recipient is written to.
"""

import asyncio
import datetime
import re
import stat
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from mta.delivery.base import (
    BAD_NAME,
    DELIVERED,
    LOCKED,
    NOT_OURS,
    NOT_PLAIN,
    WRITABLE,
    DeliveryLimits,
    DeliveryResult,
    Job,
    Log,
    RefusedError,
    report,
)
from mta.delivery.effects import DeliveryEffects, is_plain_file, must_give_away
from mta.delivery.files import (
    Attempt,
    check_name,
    enter,
    on_thread,
    open_home,
    open_trusted,
    remove,
    steps,
)
from mta.delivery.headers import marker, mbox_pieces, refusal
from mta.effects import Effects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SITE: Final = "mbox"
_LOCK_GAP_S: Final = 0.05
"""Between two tries to lock. Nobody tells us when a lock is free."""
_REPLACED_MAX: Final = 5
"""How often a mailbox may be another file when it is locked than when it was opened."""


class MboxDeliverer:
    """Delivers to an mbox: below the home directory, in a spool directory, or where the job says."""

    def __init__(
        self,
        effects: Effects,
        limits: DeliveryLimits | None = None,
        *,
        path: str = "mbox",
        spool: Path | None = None,
        dotlock: bool = False,
        executor: Executor | None = None,
        log: Log | None = None,
    ) -> None:
        """Touch nothing yet.

        Args:
            effects: the server's.
            limits: what a delivery may take.
            path: of the mailbox below the home directory.
            spool: directory of all mailboxes, named like their users; then ``path`` is not used.
            dotlock: make a file ``mailbox.lock`` as well, for programs that know nothing else. The
                mailbox's directory has to be writable.
            executor: whose threads write; the loop's default if None.
            log: told of faults of this machine.

        Raises:
            ValueError: ``path`` does not lead below the home directory.
        """
        self._effects = DeliveryEffects(effects)
        self._limits = limits or DeliveryLimits()
        self._steps = steps(path)
        self._spool = spool
        self._dotlock = dotlock
        self._executor = executor
        self._log = log
        # So that deliveries to one mailbox wait here, not each on a thread.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def deliver(self, job: Job) -> DeliveryResult:
        """Deliver a message; see `Deliverer`. A job's target is the absolute path of a mailbox."""
        refused = refusal(job, self._limits.hops_max)
        if refused is not None:
            return refused
        if job.target == "/dev/null":
            return DELIVERED  # what half of all alias files say; it is no mailbox
        key = job.target or job.user
        turn = self._turns.get(key)
        if turn is None:
            turn = self._turns[key] = asyncio.Lock()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.timeout_s
        try:
            async with asyncio.timeout(self._limits.lock_timeout_s):
                await turn.acquire()
        except TimeoutError:
            return LOCKED
        try:
            return await on_thread(
                self._executor,
                lambda attempt: self._deliver(job, attempt),
                timeout_s=max(0.0, deadline - loop.time()),
                grace_s=self._limits.kill_grace_s,
            )
        except Exception as error:  # noqa: BLE001  # whatever it is, the mail waits
            return report(self._log, job, error)
        finally:
            turn.release()

    def _deliver(self, job: Job, attempt: Attempt) -> DeliveryResult:
        attempt.check()
        with ExitStack() as stack:
            directory, name = self._find(job, stack)
            lock_by = self._effects.now() + self._limits.lock_timeout_s
            if self._dotlock:
                stack.enter_context(self._dot_locked(job, directory, name, attempt, lock_by))
            descriptor = self._open_locked(job, directory, name, attempt, lock_by, stack)
            self._append(job, descriptor, attempt)
        return DELIVERED

    # ---- finding and locking

    def _find(self, job: Job, stack: ExitStack) -> tuple[int, str]:
        """Return the open directory of the mailbox, and its name in there."""
        effects = self._effects
        if job.target:
            path = PurePosixPath(job.target)
            if not path.is_absolute() or ".." in path.parts or "\0" in job.target:
                raise RefusedError(BAD_NAME, f"{job.target!r} is not the path of a mailbox")
            check_name(path.name)
            parent = Path(path.parent)
            return open_trusted(effects, job, parent, stack, site=_SITE), path.name
        if self._spool is not None:
            check_name(job.user)
            if job.user.startswith("."):
                raise RefusedError(BAD_NAME, f"{job.user!r} is not the name of a mailbox")
            spool = open_trusted(effects, job, self._spool, stack, spool=True, site=_SITE)
            return spool, job.user
        directory = open_home(effects, job, stack, site=_SITE)
        for step in self._steps[:-1]:
            directory = enter(effects, job, directory, step, stack, site=_SITE)
        return directory, self._steps[-1]

    def _open_locked(
        self,
        job: Job,
        directory: int,
        name: str,
        attempt: Attempt,
        lock_by: float,
        stack: ExitStack,
    ) -> int:
        """Return the mailbox, open and locked; the stack closes and so unlocks it."""
        effects = self._effects
        for _ in range(_REPLACED_MAX):
            descriptor = self._open(job, directory, name, stack)
            self._until(attempt, lock_by, partial(effects.lock, descriptor, site=_SITE))
            # Mail readers may put another file in its place, and lock the old one while they do.
            with suppress(FileNotFoundError):
                here = effects.stat(descriptor, site=_SITE)
                there = effects.stat_at(directory, name, site=_SITE)
                if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                    self._check(job, descriptor)
                    return descriptor
        raise RefusedError(LOCKED, "the mailbox is replaced again and again")

    def _open(self, job: Job, directory: int, name: str, stack: ExitStack) -> int:
        effects = self._effects
        try:
            descriptor = effects.open_append_at(directory, name, site=_SITE)
        except FileNotFoundError:
            with suppress(FileExistsError):
                return self._create(job, directory, name, stack)
            descriptor = effects.open_append_at(directory, name, site=_SITE)
        stack.callback(self._close, descriptor)
        self._check(job, descriptor)
        return descriptor

    def _create(self, job: Job, directory: int, name: str, stack: ExitStack) -> int:
        effects = self._effects
        descriptor = effects.create_at(directory, name, site=_SITE)
        stack.callback(self._close, descriptor)
        try:
            if must_give_away(job.uid):
                effects.chown(descriptor, job.uid, job.gid, site=_SITE)
            effects.fsync(directory, site=_SITE)
        except BaseException:
            # Root's empty file would be in the way for ever.
            remove(effects, directory, name, site=_SITE)
            raise
        return descriptor

    def _check(self, job: Job, descriptor: int) -> None:
        found = self._effects.stat(descriptor, site=_SITE)
        if not is_plain_file(found):
            kind = stat.filemode(found.st_mode)
            raise RefusedError(NOT_PLAIN, f"a mailbox is {kind} with {found.st_nlink} names")
        if found.st_uid != job.uid:
            raise RefusedError(NOT_OURS, f"a mailbox belongs to uid {found.st_uid}")
        if found.st_mode & stat.S_IWOTH:
            raise RefusedError(WRITABLE, "a mailbox is writable by everybody")

    def _until(self, attempt: Attempt, lock_by: float, lock: "Callable[[], None]") -> None:
        """Try to lock until it works, time is up, or nobody waits any more."""
        while True:
            attempt.check()
            try:
                lock()
            except (BlockingIOError, FileExistsError):
                if self._effects.now() >= lock_by:
                    raise RefusedError(LOCKED, "a mailbox is locked") from None
                attempt.abandoned.wait(_LOCK_GAP_S)
            else:
                return

    @contextmanager
    def _dot_locked(
        self, job: Job, directory: int, name: str, attempt: Attempt, lock_by: float
    ) -> "Iterator[None]":
        """Hold ``name.lock``; one that is too old was left by a program that is gone."""
        effects = self._effects
        lock_name = f"{name}.lock"
        check_name(lock_name)

        def take() -> None:
            try:
                descriptor = effects.create_at(directory, lock_name, site="mbox.lock")
            except FileExistsError:
                with suppress(FileNotFoundError):
                    age = effects.now() - effects.stat_at(directory, lock_name, site=_SITE).st_mtime
                    if age > self._limits.lock_stale_s:
                        effects.unlink_at(directory, lock_name, site="mbox.lock")
                raise
            self._close(descriptor)

        self._until(attempt, lock_by, take)
        try:
            yield
        finally:
            problem = remove(effects, directory, lock_name, site="mbox.lock")
            if problem is not None:
                # The next delivery waits until it is stale; this one is not undone for it.
                report(self._log, job, problem)

    def _close(self, descriptor: int) -> None:
        with suppress(OSError):  # all is durable by now, or cut back
            self._effects.close(descriptor, site=_SITE)

    # ---- writing

    def _append(self, job: Job, descriptor: int, attempt: Attempt) -> None:
        effects = self._effects
        size = effects.stat(descriptor, site=_SITE).st_size
        try:
            # An earlier delivery, or another program's, may have ended with the machine.
            end = effects.read_end(descriptor, 2, site=_SITE)
            missing = b"" if end in (b"", b"\n\n") else b"\n" if end[-1:] == b"\n" else b"\n\n"
            if missing:
                effects.write(descriptor, missing, site=_SITE)
            for piece in mbox_pieces(job, from_line(job.sender, effects.now())):
                attempt.check()
                effects.write(descriptor, piece, site=_SITE)
            attempt.commit()
            effects.fsync(descriptor, site=_SITE)
        except BaseException:
            self._cut_back(job, descriptor, size)
            raise

    def _cut_back(self, job: Job, descriptor: int, size: int) -> None:
        effects = self._effects
        for left in (
            1,
            0,
        ):  # a second try, because what stays is part of a message, or one too many
            try:
                effects.truncate(descriptor, size, site=_SITE)
                break
            except OSError as second:
                if left:
                    continue
                if self._log is not None:
                    self._log(f"warn: mda: {marker(job)}: part of a message stays: {second!r}")
        # What was cut off must not come back with the power.
        with suppress(OSError):
            effects.fsync(descriptor, site=_SITE)


def from_line(sender: str, now: float) -> bytes:
    """Return the line that begins a message: ``From sender date``, in UTC as RFC 4155 has it.

    Args:
        sender: reverse-path; MAILER-DAEMON stands for the null sender, as in Postfix and OpenSMTPD.
        now: time of delivery, in seconds since the epoch.
    """
    word = re.sub(r"\s", "_", sender) or "MAILER-DAEMON"
    date = datetime.datetime.fromtimestamp(now, datetime.UTC).ctime()
    return f"From {word} {date}\n".encode()
