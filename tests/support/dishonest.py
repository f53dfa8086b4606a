"""A relay that answers 250 and does not do what that promises: it drops, repeats, alters and swaps messages."""

import smtplib
import socketserver
import threading
from collections.abc import Mapping
from typing import Literal

from sim.workload import identify

Deed = Literal["drop", "twice", "alter", "later"]
"""``later``: the message goes on after the one that follows it."""


class DishonestRelay:
    """Takes messages over SMTP, one connection at a time or several, and passes them to one host. A context."""

    def __init__(self, target: tuple[str, int], deeds: Mapping[int, Deed]) -> None:
        """Listen.

        Args:
            target: the host that messages go to.
            deeds: what is done to which message, by its sequence number; nothing to all others.
        """
        self._target = target
        self._deeds = deeds
        self._kept: list[tuple[str, list[str], bytes]] = []
        self._turn = threading.Lock()
        relay = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                relay._session(self)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = False
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> "DishonestRelay":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _session(self, handler: socketserver.StreamRequestHandler) -> None:
        def say(text: str) -> None:
            handler.wfile.write(text.encode("ascii") + b"\r\n")

        sender, recipients = "", list[str]()
        say("220 relay.testbed.test ESMTP")
        while line := handler.rfile.readline():
            verb, _, rest = line.decode("ascii").strip().partition(" ")
            match verb.upper():
                case "EHLO":
                    say("250-relay.testbed.test\r\n250 PIPELINING")
                case "MAIL":
                    sender, recipients = _path(rest), []
                    say("250 2.1.0 Ok")
                case "RCPT":
                    recipients.append(_path(rest))
                    say("250 2.1.5 Ok")
                case "DATA":
                    say("354 Go on")
                    body = _read_body(handler)
                    with self._turn:
                        number = self._pass_on(sender, recipients, body)
                    say(f"250 2.0.0 {number:08x} Message accepted for delivery")
                case "QUIT":
                    say("221 2.0.0 Bye")
                    return
                case _:
                    say("250 2.0.0 Ok")

    def _pass_on(self, sender: str, recipients: list[str], body: bytes) -> int:
        number = identify(body).seq
        deed = self._deeds.get(number)
        if deed == "later":
            self._kept.append((sender, recipients, body))
            return number
        if deed == "alter":
            # One byte, in the middle of the text.
            at = len(body) - 20
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        times = {"drop": 0, "twice": 2}.get(deed or "", 1)
        kept, self._kept = self._kept, []
        with smtplib.SMTP(*self._target, local_hostname="relay.testbed.test", timeout=10) as client:
            for each in [(sender, recipients, body)] * times + kept:
                client.sendmail(*each)
        return number


def _path(argument: str) -> str:
    return argument.partition("<")[2].partition(">")[0]


def _read_body(handler: socketserver.StreamRequestHandler) -> bytes:
    lines = []
    while (line := handler.rfile.readline()) != b".\r\n":
        assert line, "the client hung up in the middle of a message"
        lines.append(line[1:] if line.startswith(b".") else line)
    return b"".join(lines)
