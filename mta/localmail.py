"""Carries local deliveries out: one task for each that the core began, one answer for each to the core.

The core keeps the caps; here every delivery has a deadline (`mta.delivery.base.DeliveryLimits`), and whatever
goes wrong is an answer. When the server stops, what runs is cancelled: the mail is in the queue, and is delivered
after the next start.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mta.config import lmtp_server
from mta.core.ids import EvpId, MsgId, msgid_of, show_evpid
from mta.core.lookup import NotFound, TemporaryError
from mta.core.reply import Outcome
from mta.core.stimuli import LocalDeliveryDone
from mta.delivery.base import OUR_FAULT, Deliverer, DeliveryResult, Job
from mta.delivery.lmtp import LmtpDeliverer
from mta.delivery.maildir import MaildirDeliverer
from mta.delivery.mbox import MboxDeliverer
from mta.delivery.pipe import PipeDeliverer
from mta.queue.base import QueueUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mta.addressing import Addressing
    from mta.config import Config
    from mta.core.envelopes.base import MdaEnvelope
    from mta.core.instructions import DeliverLocally
    from mta.core.rules import RuleConfig
    from mta.effects import Effects
    from mta.log import Log

NO_RULE: Final = DeliveryResult(Outcome.TEMPFAIL, "4.3.5 Local delivery is not configured")
NO_USER: Final = DeliveryResult(Outcome.PERMFAIL, "5.1.1 User does not exist")
USER_UNKNOWN_NOW: Final = DeliveryResult(Outcome.TEMPFAIL, "4.3.0 User lookup failed")
UNREADABLE: Final = DeliveryResult(Outcome.TEMPFAIL, "4.3.0 Local error, try again later")


_THREADS_MAX = 256
"""Threads of file deliveries, started as they are needed. ``limits.mda.max_session`` bounds deliveries and may be
raised at run time; above this, files wait for a thread."""


class LocalMail:
    """All local deliveries under way."""

    def __init__(
        self,
        config: "Config",
        addressing: "Addressing | None",
        *,
        effects: "Effects",
        log: "Log",
        load: "Callable[[EvpId], MdaEnvelope | None]",
        body: "Callable[[MsgId], bytes]",
        on_done: "Callable[[LocalDeliveryDone], None]",
        on_fault: "Callable[[str, BaseException], None]",
    ) -> None:
        """Deliver nothing yet.

        Args:
            config: how.
            addressing: rules and users; None if there are no rules, and so no local mail that is ours to
                deliver.
            effects: the server's.
            log: told of faults of this machine.
            load: returns what a delivery needs of an envelope; it may raise `QueueUnavailableError`.
            body: returns a message; it may raise `QueueUnavailableError`.
            on_done: is told the end of each delivery.
            on_fault: is told of what nobody foresaw.
        """
        self._config = config
        self._addressing = addressing
        self._effects = effects
        self._log = log
        self._load = load
        self._body = body
        self._on_done = on_done
        self._on_fault = on_fault
        self._tasks: dict[EvpId, asyncio.Task[None]] = {}
        self._carried: dict[EvpId, MdaEnvelope] = {}
        self._stopped = False
        # Why not the loop's? A mailbox that is locked keeps its thread waiting for seconds.
        self._executor = ThreadPoolExecutor(
            max(config.limits.mda.max_session, _THREADS_MAX), thread_name_prefix="delivery"
        )
        self._deliverers: dict[str, Deliverer] = {}
        local = config.local
        self._file = MboxDeliverer(
            effects,
            local.limits,
            dotlock=local.dotlock,
            executor=self._executor,
            log=log.info,
        )
        self._command = PipeDeliverer(
            effects,
            local.limits,
            path=local.path,
            allow_root=local.allow_root,
            executor=self._executor,
            log=log.info,
        )
        if addressing is not None:
            for rule in addressing.rules.rules:
                made = self._made(rule.config)
                if made is not None:
                    self._deliverers[rule.name] = made

    def _made(self, rule: "RuleConfig") -> Deliverer | None:
        """Return how a rule delivers, or None if it does not."""
        effects, local, executor = self._effects, self._config.local, self._executor
        log = self._log.info
        match rule.delivery:
            case "maildir":
                return MaildirDeliverer(
                    effects,
                    local.limits,
                    directory=rule.path or "Maildir",
                    tags=local.tag_folders,
                    hostname=self._config.hostname,
                    executor=executor,
                    log=log,
                )
            case "mbox":
                return MboxDeliverer(
                    effects,
                    local.limits,
                    path=rule.path or "mbox",
                    spool=local.spool if not rule.path else None,
                    dotlock=local.dotlock,
                    executor=executor,
                    log=log,
                )
            case "lmtp":
                return LmtpDeliverer(
                    effects,
                    local.limits,
                    server=lmtp_server(rule.lmtp),
                    hostname=self._config.hostname,
                    log=log,
                )
            case "pipe":
                return PipeDeliverer(
                    effects,
                    local.limits,
                    command=rule.command,
                    path=local.path,
                    allow_root=local.allow_root,
                    executor=executor,
                    log=log,
                )
        return None

    @property
    def running(self) -> int:
        """Deliveries under way."""
        return len(self._tasks)

    def start(self, instruction: "DeliverLocally") -> None:
        """Begin a delivery."""
        envelope = instruction.evpid
        assert envelope not in self._tasks, envelope
        task = asyncio.get_running_loop().create_task(
            self._run(envelope), name=f"deliver {show_evpid(envelope)}"
        )
        self._tasks[envelope] = task
        # Why not in the coroutine? One that is cancelled before its first step never gets anywhere.
        task.add_done_callback(lambda _: self._tasks.pop(envelope, None))

    def carried(self, envelope: EvpId) -> "MdaEnvelope | None":
        """Return what a delivery carried that has just ended, once: for the log."""
        return self._carried.pop(envelope, None)

    async def _run(self, envelope: EvpId) -> None:
        try:
            result = await self._deliver(envelope)
        except Exception as error:  # noqa: BLE001  # ours; the envelope must not be in flight for ever
            self._on_fault(f"deliver {show_evpid(envelope)}", error)
            result = OUR_FAULT
        # First out of the way: the core may order the next delivery of this very envelope.
        self._tasks.pop(envelope, None)
        if not self._stopped:
            self._on_done(LocalDeliveryDone(envelope, result.outcome, result.status))

    async def _deliver(self, envelope: EvpId) -> DeliveryResult:
        try:
            details = self._load(envelope)
            if details is not None:
                self._carried[envelope] = details
            body = self._body(msgid_of(envelope))
        except (QueueUnavailableError, MemoryError) as error:
            self._log.warn(
                f"queue: failed to load envelope {show_evpid(envelope)}:"
                f" {str(error) or type(error).__name__}"
            )
            return UNREADABLE
        if details is None:
            self._log.warn(f"queue: envelope {show_evpid(envelope)} is no local delivery")
            return NO_RULE
        addressing = self._addressing
        rule = addressing.rules.by_name.get(details.rule) if addressing is not None else None
        if addressing is None or rule is None:
            return NO_RULE
        method, _, target = details.method.partition(":")
        deliverer: Deliverer | None
        if method == "file":
            deliverer = self._file
        elif method == "pipe":
            deliverer = self._command
        else:
            deliverer = self._deliverers.get(details.rule)
        if deliverer is None:
            return NO_RULE
        name = details.user
        if method == "local":
            name = rule.config.user or name
        elif not name:
            name = self._config.local.user
        uid, gid, home = os.getuid(), os.getgid(), Path("/")
        if name:
            account = addressing.tables.user(rule.config.userbase, name)
            if isinstance(account, NotFound):
                return NO_USER
            if isinstance(account, TemporaryError):
                self._log.warn(f"mda: user {name}: {account.text}")
                return USER_UNKNOWN_NOW
            uid, gid, home = account.uid, account.gid, Path(account.home)
        return await deliverer.deliver(
            Job(
                envelope,
                details.sender,
                details.rcpt,
                details.dest,
                details.user or name or "mta",
                uid,
                gid,
                home,
                details.tag,
                body,
                details.created_at,
                target,
            )
        )

    async def stop(self) -> None:
        """Cancel what runs; its mail is tried again after the next start. Idempotent."""
        self._stopped = True
        while tasks := list(self._tasks.values()):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._executor.shutdown(wait=False, cancel_futures=True)


__all__ = ["LocalMail"]
