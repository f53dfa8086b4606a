"""The way into a recipient's directory, and deliveries that run on a thread.

The rule: a path is walked one directory at a time, from one that the operator named, each opened
relative to the last and checked when it is open. Nothing on the way may be a link, belong to somebody
else, or be writable by everybody; so nobody but the recipient decides where the mail goes.
"""

import asyncio
import contextlib
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TypeVar

from mta.delivery.base import (
    BAD_NAME,
    NO_RIGHT,
    NOT_OURS,
    NOT_PLAIN,
    WRITABLE,
    Job,
    RefusedError,
)
from mta.delivery.effects import DeliveryEffects, can_act_as, must_give_away
from mta.effects import PRIVATE_DIRECTORY

_T = TypeVar("_T")

NAME_MAX: Final = 255
"""Bytes of a file name, on every file system that mail is kept on."""


class AbandonedError(Exception):
    """Nobody waits for this delivery any more, and it has not been made."""


class Attempt:
    """One delivery on a thread, and the one place where it is decided whether it still counts."""

    __slots__ = ("_committing", "_mutex", "abandoned")

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._committing = False
        self.abandoned = threading.Event()
        """The deadline has passed, or the waiter was cancelled."""

    def check(self) -> None:
        """Go on only if somebody waits for the result.

        Raises:
            AbandonedError: nobody does.
        """
        if self.abandoned.is_set():
            raise AbandonedError

    def commit(self) -> None:
        """Say that from now on the message counts as delivered, unless an error comes.

        Raises:
            AbandonedError: too late.
        """
        with self._mutex:
            self.check()
            self._committing = True

    def abandon(self) -> bool:
        """Wait no more; return False if that comes too late, because `commit` was called."""
        with self._mutex:
            self.abandoned.set()
            return not self._committing


async def on_thread(
    executor: Executor | None, work: Callable[[Attempt], _T], *, timeout_s: float, grace_s: float
) -> _T:
    """Run a delivery on a thread, and return what it returns.

    A thread can't be stopped. So a delivery that is too late is told so, and then makes nothing of
    what it has; one that was just committing gets ``grace_s`` more seconds to say how that ended.

    Raises:
        TimeoutError: it took too long. Nothing is delivered, unless a commit hangs.
        asyncio.CancelledError: likewise.
    """
    attempt = Attempt()
    future = asyncio.get_running_loop().run_in_executor(executor, work, attempt)
    try:
        done, _ = await asyncio.wait((future,), timeout=timeout_s)
        if not done and not attempt.abandon():
            done, _ = await asyncio.wait((future,), timeout=grace_s)
    except asyncio.CancelledError:
        attempt.abandon()
        _disown(future)
        raise
    if not done:
        _disown(future)
        raise TimeoutError
    try:
        return future.result()
    except AbandonedError:
        raise TimeoutError from None


def _disown(future: "asyncio.Future[_T]") -> None:
    """Let a delivery that waits for a thread never start, and one that runs end unheard."""
    future.cancel()


def open_home(effects: DeliveryEffects, job: Job, stack: ExitStack, *, site: str) -> int:
    """Open the recipient's home directory; the stack closes it.

    Raises:
        RefusedError: it is not the recipient's, or we may not act for the recipient.
        OSError: it can't be opened.
    """
    return open_trusted(effects, job, job.home, stack, site=site)


def open_trusted(
    effects: DeliveryEffects,
    job: Job,
    path: Path,
    stack: ExitStack,
    *,
    spool: bool = False,
    site: str,
) -> int:
    """Open a directory by an absolute path, which may lead over links.

    Args:
        effects: for opening it.
        job: for whom.
        path: the directory.
        stack: closes it.
        spool: the operator's directory for everybody's mail: it need not be the recipient's.
        site: who asks.

    Raises:
        RefusedError: it is not the recipient's, or we may not act for the recipient.
        OSError: it can't be opened.
    """
    if not can_act_as(job.uid):
        raise RefusedError(NO_RIGHT, f"not running as uid {job.uid}, nor as root")
    if not path.is_absolute():
        raise RefusedError(BAD_NAME, f"{path} is not absolute")
    descriptor = effects.open_directory(path, site=site)
    stack.callback(_close, effects, descriptor, site)
    if not spool:
        _check_directory(effects, job, descriptor, site)
    return descriptor


def enter(
    effects: DeliveryEffects,
    job: Job,
    directory: int,
    name: str,
    stack: ExitStack,
    *,
    make: bool = True,
    site: str,
) -> int:
    """Open a directory in an open one, made with mode 0700 for the recipient if missing.

    Raises:
        RefusedError: it is a link, somebody else's, or open to everybody.
        OSError: it can't be opened or made; FileNotFoundError if it is not to be made.
    """
    check_name(name)
    try:
        descriptor = _enter(effects, directory, name, stack, site)
    except FileNotFoundError:
        if not make:
            raise
        with contextlib.suppress(FileExistsError):  # by another delivery, just now
            effects.mkdir_at(directory, name, site=site)
        descriptor = _enter(effects, directory, name, stack, site)
        effects.fsync(directory, site=site)
    if must_give_away(job.uid):
        _give_away(effects, job, descriptor, site)
    _check_directory(effects, job, descriptor, site)
    return descriptor


def _enter(effects: DeliveryEffects, directory: int, name: str, stack: ExitStack, site: str) -> int:
    try:
        descriptor = effects.open_subdirectory(directory, name, site=site)
    except NotADirectoryError as error:  # what O_DIRECTORY with O_NOFOLLOW says of a link, too
        raise RefusedError(NOT_PLAIN, f"{name} is a link, or no directory") from error
    stack.callback(_close, effects, descriptor, site)
    return descriptor


def _close(effects: DeliveryEffects, descriptor: int, site: str) -> None:
    """Close what was only read or is durable already: an error changes nothing."""
    with contextlib.suppress(OSError):
        effects.close(descriptor, site=site)


def _check_directory(effects: DeliveryEffects, job: Job, descriptor: int, site: str) -> None:
    found = effects.stat(descriptor, site=site)
    if found.st_uid != job.uid:
        raise RefusedError(NOT_OURS, f"a directory belongs to uid {found.st_uid}")
    if found.st_mode & stat.S_IWOTH:
        raise RefusedError(WRITABLE, "a directory is writable by everybody")


def _give_away(effects: DeliveryEffects, job: Job, descriptor: int, site: str) -> None:
    """Give the recipient a directory that root has made here, now or before it was interrupted.

    Only an empty one: a recipient can move any directory of root's within the home directory, and
    must not come by what is in it.
    """
    found = effects.stat(descriptor, site=site)
    if found.st_uid != 0 or stat.S_IMODE(found.st_mode) != PRIVATE_DIRECTORY:
        return
    if effects.is_empty(descriptor, site=site):
        effects.chown(descriptor, job.uid, job.gid, site=site)


def remove(effects: DeliveryEffects, directory: int, name: str, *, site: str) -> OSError | None:
    """Remove a name that is in the way, trying twice; return why it stays, or None."""
    problem: OSError | None = None
    for _ in range(2):
        try:
            effects.unlink_at(directory, name, site=site)
        except FileNotFoundError:
            return None
        except OSError as error:
            problem = error
        else:
            return None
    return problem


def check_name(name: str) -> None:
    """Make sure that a name is one step down: not empty, not up, no further than one directory.

    Raises:
        RefusedError: it is anything else.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name.encode()) > NAME_MAX:
        raise RefusedError(BAD_NAME, f"{name!r} is not the name of a file")


def steps(path: str) -> tuple[str, ...]:
    """Return the names on the operator's path below a home directory.

    Raises:
        ValueError: it is absolute, empty, or leads up.
    """
    names = tuple(name for name in path.split("/") if name not in ("", "."))
    if path.startswith("/") or not names or ".." in names or "\0" in path:
        raise ValueError(f"{path!r} is not a path below a home directory")
    return names
