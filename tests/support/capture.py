"""A remote host in a thread that keeps what it takes, whole, and refuses recipients whose name says so."""

import asyncio
import threading
from typing import NamedTuple


class Captured(NamedTuple):
    """One message as the host got it, without dot-stuffing."""

    sender: str
    rcpts: tuple[str, ...]
    body: bytes


class CapturingHost:
    """``no...`` is refused with 550, ``later...`` with 451. A context."""

    def __init__(self, address: str, port: int) -> None:
        self.taken: list[Captured] = []
        self.patient = True
        """``later...`` is refused for now."""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(address, port))

    def _run(self, address: str, port: int) -> None:
        self._loop.run_until_complete(self._serve(address, port))
        self._loop.close()

    async def _serve(self, address: str, port: int) -> None:
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._session, address, port, limit=1 << 20)
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        sender, rcpts = "", []
        try:
            writer.write(b"220 capture.test\r\n")
            while line := (await reader.readline()).decode():
                verb, argument = line[:4].upper(), line.partition("<")[2].partition(">")[0]
                reply = "250 2.0.0 ok"
                if verb == "EHLO":
                    reply = "250-capture.test\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 PIPELINING"
                elif verb == "MAIL":
                    sender, rcpts = argument, []
                elif verb == "RCPT":
                    if argument.startswith("no"):
                        reply = "550 5.1.1 no such user"
                    elif self.patient and argument.startswith("later"):
                        reply = "451 4.2.1 later"
                    else:
                        rcpts.append(argument)
                elif verb == "DATA" and not rcpts:
                    reply = "554 5.5.1 no valid recipients"
                elif verb == "DATA":
                    writer.write(b"354 go\r\n")
                    body = (b"\r\n" + await reader.readuntil(b"\r\n.\r\n")).replace(
                        b"\r\n..", b"\r\n."
                    )
                    self.taken.append(Captured(sender, tuple(rcpts), body[2:-3]))
                elif verb == "QUIT":
                    break
                writer.write(reply.encode() + b"\r\n")
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    def __enter__(self) -> "CapturingHost":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
