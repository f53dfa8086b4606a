"""A small SMTP server with a script, in threads: it takes messages, and misbehaves when told to."""

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Script = Callable[[str, int], bytes | None]
"""(verb, how often it came before, counted over all connections) -> reply, or None to hang up.

An empty reply says nothing at all and goes on reading.
"""

OK = {
    "CONNECT": b"220 fake.test ESMTP\r\n",
    "EHLO": b"250-fake.test\r\n250-PIPELINING\r\n250 SIZE 1000000\r\n",
    "MAIL": b"250 2.1.0 Ok\r\n",
    "RCPT": b"250 2.1.5 Ok\r\n",
    "DATA": b"354 Go on\r\n",
    ".": b"250 2.0.0 Taken\r\n",
    "RSET": b"250 2.0.0 Ok\r\n",
    "QUIT": b"221 2.0.0 Bye\r\n",
}


def agreeable(verb: str, before: int) -> bytes | None:
    """Accept everything."""
    return OK[verb]


@dataclass
class Taken:
    """A transaction that reached its final dot, whatever the answer was."""

    sender: str
    recipients: list[str]
    message: bytes
    reply: bytes | None


@dataclass
class FakeServer:
    """Listens on a free port until `stop`."""

    script: Script = agreeable
    taken: list[Taken] = field(default_factory=list)
    verbs: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        self.address: tuple[str, int] = self._listener.getsockname()

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.address[1]}"

    def stop(self) -> None:
        """Close everything and wait for the threads."""
        self._listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
                self._talk(connection, lines)
        finally:
            with self._lock:
                self._open.discard(connection)

    def _answer(self, verb: str) -> bytes | None:
        with self._lock:
            before = self.verbs[verb]
            self.verbs[verb] += 1
        return self.script(verb, before)

    def _talk(self, connection: socket.socket, lines: Iterator[bytes]) -> None:
        reply = self._answer("CONNECT")
        sender = ""
        recipients: list[str] = []
        while reply is not None:
            connection.sendall(reply)
            line = next(lines, b"")
            if not line:
                return
            verb, _, argument = line.strip().decode().partition(" ")
            verb = verb.upper()
            reply = self._answer(verb)
            if reply is None:
                return
            path = argument.partition("<")[2].partition(">")[0]
            if verb == "MAIL":
                sender, recipients = path, []
            elif verb == "RCPT" and reply.startswith(b"2"):
                recipients.append(path)
            elif verb == "DATA" and reply.startswith(b"354"):
                connection.sendall(reply)
                message = b""
                for line in lines:
                    if line == b".\r\n":
                        break
                    message += line[1:] if line.startswith(b".") else line
                reply = self._answer(".")
                with self._lock:
                    self.taken.append(Taken(sender, recipients, message, reply))
            elif verb == "QUIT":
                connection.sendall(reply)
                return
