"""Delivery to a Maildir (cr.yp.to/proto/maildir.html).

A message is written in ``tmp`` under a name that nobody else has, made durable, and then moved to
``new``, where it appears whole or not at all. The move is made durable before anybody hears of it.
Lines end with LF, as Unix programs keep them. What a crash leaves in ``tmp`` is nobody's mail: readers
remove it after 36 hours.
"""

import contextlib
import itertools
import os
import random
import re
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import Final

from mta.delivery.base import (
    DELIVERED,
    DeliveryLimits,
    DeliveryResult,
    Job,
    Log,
    RefusedError,
    report,
)
from mta.delivery.effects import DeliveryEffects, must_give_away
from mta.delivery.files import Attempt, enter, on_thread, open_home, remove, steps
from mta.delivery.headers import heading, refusal, unix_pieces
from mta.effects import Effects

_SITE: Final = "maildir"
_NAMES_MAX: Final = 5
"""Names that are tried. One is enough, unless the recipient plays games."""
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""A tag that may name a folder. No dots: they are levels of folders in Maildir++."""


class MaildirDeliverer:
    """Delivers to a Maildir below the recipient's home directory."""

    def __init__(
        self,
        effects: Effects,
        limits: DeliveryLimits | None = None,
        *,
        directory: str = "Maildir",
        tags: bool = False,
        hostname: str = "localhost",
        executor: Executor | None = None,
        log: Log | None = None,
    ) -> None:
        """Touch nothing yet.

        Args:
            effects: the server's.
            limits: what a delivery may take.
            directory: path of the Maildir below the home directory; made if it is missing.
            tags: mail for ``user+tag`` goes to the folder ``.tag`` if there is one. It is not made:
                strangers choose tags.
            hostname: part of each file's name.
            executor: whose threads write; the loop's default if None.
            log: told of faults of this machine.

        Raises:
            ValueError: ``directory`` does not lead below the home directory.
        """
        self._effects = DeliveryEffects(effects)
        self._limits = limits or DeliveryLimits()
        self._steps = steps(directory)
        self._tags = tags
        # As the specification asks, in the form that readers undo.
        self._host = hostname.replace("/", "\\057").replace(":", "\\072")
        self._executor = executor
        self._log = log
        self._numbers = itertools.count(1)
        self._random = random.Random(effects.entropy(site=_SITE))

    async def deliver(self, job: Job) -> DeliveryResult:
        """Deliver a message; see `Deliverer`."""
        refused = refusal(job, self._limits.hops_max)
        if refused is not None:
            return refused
        try:
            return await on_thread(
                self._executor,
                lambda attempt: self._deliver(job, attempt),
                timeout_s=self._limits.timeout_s,
                grace_s=self._limits.kill_grace_s,
            )
        except Exception as error:  # noqa: BLE001  # whatever it is, the mail waits
            return report(self._log, job, error)

    def _deliver(self, job: Job, attempt: Attempt) -> DeliveryResult:
        attempt.check()
        effects = self._effects
        with ExitStack() as stack:
            directory = open_home(effects, job, stack, site=_SITE)
            for step in self._steps:
                directory = enter(effects, job, directory, step, stack, site=_SITE)
            directory = self._folder(job, directory, stack)
            tmp, new, _ = [
                enter(effects, job, directory, name, stack, site=_SITE)
                for name in ("tmp", "new", "cur")
            ]
            descriptor, name = self._create(tmp)
            try:
                try:
                    self._fill(job, descriptor, attempt)
                finally:
                    # Its error counts: some file systems tell only here that the disk is full.
                    effects.close(descriptor, site=_SITE)
                attempt.commit()
                effects.rename_at(tmp, name, new, site=_SITE)
                effects.fsync(new, site=_SITE)
            except BaseException as error:
                # Wherever it is by now. What stays in `new` is a copy too many.
                for place in (tmp, new):
                    problem = remove(effects, place, name, site=_SITE)
                    if problem is not None:
                        error.add_note(f"{name} stays: {problem!r}")
                raise
        return DELIVERED

    def _folder(self, job: Job, directory: int, stack: ExitStack) -> int:
        if self._tags and _TAG.fullmatch(job.tag):
            # Whatever is wrong with the folder, the mail has a place.
            with contextlib.suppress(FileNotFoundError, RefusedError):
                name = f".{job.tag}"
                return enter(self._effects, job, directory, name, stack, make=False, site=_SITE)
        return directory

    def _create(self, tmp: int) -> tuple[int, str]:
        for _ in range(_NAMES_MAX - 1):
            name = self._unique_name()
            with contextlib.suppress(FileExistsError):
                return self._effects.create_at(tmp, name, site=_SITE), name
        name = self._unique_name()
        return self._effects.create_at(tmp, name, site=_SITE), name

    def _unique_name(self) -> str:
        """Return a name that nobody has, nor can guess: so that the move to ``new`` replaces nothing."""
        seconds, fraction = divmod(self._effects.now(), 1)
        # next() and getrandbits() are atomic: threads share them.
        return (
            f"{int(seconds)}.M{int(fraction * 1e6):06d}P{os.getpid()}Q{next(self._numbers)}"
            f"R{self._random.getrandbits(64):016x}.{self._host}"
        )

    def _fill(self, job: Job, descriptor: int, attempt: Attempt) -> None:
        effects = self._effects
        if must_give_away(job.uid):
            effects.chown(descriptor, job.uid, job.gid, site=_SITE)
        effects.write(descriptor, heading(job), site=_SITE)
        for piece in unix_pieces(job.body):
            attempt.check()
            effects.write(descriptor, piece, site=_SITE)
        effects.fsync(descriptor, site=_SITE)
