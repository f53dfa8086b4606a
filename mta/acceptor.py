"""Takes connections as long as there are descriptors for them, and leaves some for everything else.

A server that spends its last descriptor on a client can't open a body file, a mailbox, or a connection to deliver
what it has. Linux gives out the lowest number that is free, so the number of a new connection tells how many are in
use. From a share of them on (OpenSMTPD, smtp.c: half) a client is told 421 and the door is not looked at for a
moment: others wait in the kernel's queue ("Disabling incoming SMTP connections"). The same when accepting fails
for want of descriptors or memory: trying again at once would fail at once, with all of the CPU.

Why not the loop's own servers? asyncio's pauses after EMFILE, when it is too late; libuv's takes whoever waits and
closes the connection without a word.
"""

import asyncio
import errno
from collections.abc import Callable
from typing import Final

from mta.accepteffects import AcceptEffects, Wire
from mta.core import admission
from mta.core.limits import SmtpLimits
from mta.core.reply import Reply
from mta.effects import Effects

PAUSE_S: Final = 0.1
"""Seconds for which nobody is let in when there is no room."""
TURN_MAX: Final = 64
"""Connections that are accepted before the event loop goes on with other things."""
BACKLOG: Final = 1024
"""Connections that wait in the kernel. Not OpenSMTPD's 5: see `mta.effects.Effects.create_server`."""

_GONE: Final = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.ECONNRESET, errno.EINTR})
"""What accepting says of a client that has left already."""


class Acceptor:
    """One listening socket. `open`, then `close`."""

    def __init__(
        self,
        make: Callable[[], asyncio.BaseProtocol],
        effects: Effects,
        *,
        limits: SmtpLimits,
        log: Callable[[str], None],
        on_refused: Callable[[Reply], None],
        on_pause: Callable[[bool], None],
        in_clear: bool = True,
    ) -> None:
        """Listen nowhere yet.

        Args:
            make: returns the protocol of a new connection.
            effects: the way to the network.
            limits: say which share of the descriptors connections may reach.
            log: told when it stops and when it goes on.
            on_refused: told of a client that was refused.
            on_pause: told True when nobody is let in, False when somebody is again.
            in_clear: clients expect words before TLS.
        """
        self._make = make
        self._effects = AcceptEffects(effects)
        self._limits = limits
        self._log = log
        self._on_refused = on_refused
        self._in_clear = in_clear
        self._on_pause = on_pause
        self._loop = asyncio.get_running_loop()
        self._listener: Wire | None = None
        self._site = ""
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> tuple[str, int]:
        """Address and port."""
        assert self._listener is not None
        found: tuple[str, int] = self._listener.getsockname()[:2]
        return found

    def open(self, address: str, port: int, *, site: str) -> None:
        """Begin.

        Raises:
            OSError: the port is taken, or not ours to take.
        """
        assert self._listener is None, "opened twice"
        self._site = site
        self._listener = self._effects.listen(address, port, backlog=BACKLOG, site=site)
        self._loop.add_reader(self._listener, self._take)

    def close(self) -> None:
        """Let nobody in any more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        listener, self._listener = self._listener, None
        if listener is not None:
            self._loop.remove_reader(listener)
            listener.close()

    def _take(self) -> None:
        """Let in who waits."""
        ceiling = int(self._effects.descriptors_max() * self._limits.descriptor_share)
        for _ in range(TURN_MAX):
            if self._listener is None:
                return
            try:
                wire = self._effects.accept(self._listener, site=self._site)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _GONE:
                    self._pause(errno.errorcode.get(error.errno or 0, "error"))
                    return
                continue
            if wire.fileno() >= ceiling:
                self._refuse(wire)
                self._pause("descriptors")
                return
            if self._paused:
                self._set_paused(False, "")
            task = self._loop.create_task(self._start(wire), name="accept")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _start(self, wire: Wire) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, wire)
        except (OSError, MemoryError) as error:
            self._log(f"smtp a connection was lost: {type(error).__name__}")
            wire.close()
        except BaseException:
            wire.close()
            raise

    def _refuse(self, wire: Wire) -> None:
        """Tell a client to come again, and have its descriptor back at once."""
        reply = admission.TOO_MANY_CONNECTIONS
        # Who expects TLS would not understand.
        self._effects.refuse(wire, f"{reply}\r\n" if self._in_clear else "")
        self._log(f'smtp refused reason=descriptors result="{reply}"')
        self._on_refused(reply)

    def _pause(self, why: str) -> None:
        assert self._listener is not None
        self._loop.remove_reader(self._listener)
        self._timer = self._loop.call_later(PAUSE_S, self._resume)
        if not self._paused:
            self._set_paused(True, why)

    def _resume(self) -> None:
        self._timer = None
        assert self._listener is not None, "close cancels the timer"
        self._loop.add_reader(self._listener, self._take)

    def _set_paused(self, paused: bool, why: str) -> None:
        self._paused = paused
        self._on_pause(paused)
        if paused:
            self._log(f"smtp disabling incoming connections reason={why}")
        else:
            self._log("smtp enabling incoming connections")


__all__ = ["Acceptor"]
