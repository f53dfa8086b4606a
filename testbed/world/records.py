"""What the sink took, one JSON line per message; and how often everything else happened.

A line is written when the 250 leaves, because a message that was not acknowledged was not taken.
Lines are written in batches; what can't be written is counted, never kept.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

FLUSH_S: Final = 0.1
"""A line is in the file so long after its message at the latest."""

PENDING_MAX: Final = 1000
"""Lines that wait for a flush; more are written at once."""


class Records:
    """Appends lines to one file. Use from one event loop; `close` when done."""

    def __init__(self, path: Path | None) -> None:
        """Open the file for appending; None records nothing.

        Raises:
            OSError: it can't be opened.
        """
        self._file = None if path is None else path.open("ab", buffering=0)
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._encode = msgspec.json.Encoder().encode
        self.written_count = 0
        """Lines in the file."""
        self.lost_count = 0
        """Lines that could not be written; a ledger that sees one must not trust the file."""

    def add(
        self,
        *,
        t: float,
        address: str,
        session: str,
        mail_from: str,
        rcpts: Sequence[str],
        size: int,
        run: str,
        seq: int,
        digest: str,
        code: int,
        connections: int,
    ) -> None:
        """Take note of one message.

        Args:
            t: When its reply left, seconds since the epoch.
            address: Of the host that took it.
            session: Of the connection that brought it.
            mail_from: Reverse-path; empty for ``<>``.
            rcpts: Accepted recipients.
            size: Bytes as received, with CRLF, without dot-stuffing.
            run: What the message says of its run; empty if it does not.
            seq: Its number in the run; -1 if it has none.
            digest: Of what must arrive unchanged; see `sim.workload.identify`.
            code: Of the reply.
            connections: That the host had let in when the message had come, this one included: what its clients use at once.
        """
        if self._file is None:
            return
        line = self._encode(
            {
                "t": t,
                "address": address,
                "session": session,
                "mail_from": mail_from,
                "rcpts": rcpts,
                "size": size,
                "run": run,
                "seq": seq,
                "digest": digest,
                "code": code,
                "connections": connections,
            }
        )
        self._lines.append(line)
        if len(self._lines) >= PENDING_MAX:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._lines or self._file is None:
            return
        count = len(self._lines)
        rest = memoryview(b"\n".join(self._lines) + b"\n")
        self._lines.clear()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            # Perhaps some of them are there, even half a line; the count says: do not trust it.
            self.lost_count += count
        else:
            self.written_count += count

    def close(self) -> None:
        """Flush and close. Idempotent."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None


class Tally:
    """Counts of what a sink saw; names are stable and few, whatever clients send."""

    __slots__ = (
        "abandoned",
        "altered",
        "bytes",
        "connections",
        "eight_bit",
        "messages",
        "open",
        "recipients",
        "refused",
        "resets",
        "tls",
        "tls_failed",
    )

    def __init__(self) -> None:
        self.connections = 0
        """Connections taken."""
        self.open = 0
        """Connections open now."""
        self.messages = 0
        """Messages acknowledged with 250."""
        self.recipients = 0
        """Recipients of those."""
        self.bytes = 0
        """Bytes of those."""
        self.refused: Counter[str] = Counter()
        """Replies of 400 and more: "RCPT 451" -> how many."""
        self.resets = 0
        """Connections that the sink reset."""
        self.abandoned = 0
        """Messages whose client was gone before the 250 left; they count as not taken."""
        self.altered = 0
        """Messages, acknowledged or not, with a CR or LF that is not half of a CRLF, which is how
        mail is smuggled; our load sends none."""
        self.eight_bit = 0
        """Messages with bytes above 127 that were not declared 8BITMIME (RFC 6152)."""
        self.tls = 0
        """TLS handshakes that were completed."""
        self.tls_failed = 0
        """TLS handshakes that were not, and TLS that broke later."""

    def snapshot(self) -> dict[str, object]:
        """Return all counts, for JSON."""
        return {
            name: dict(self.refused) if name == "refused" else getattr(self, name)
            for name in self.__slots__
        }


def merge(tallies: Sequence[dict[str, object]]) -> dict[str, object]:
    """Return the sums of several snapshots."""
    total: dict[str, object] = Tally().snapshot()
    refused: Counter[str] = Counter()
    for each in tallies:
        for name, value in each.items():
            if isinstance(value, dict):
                refused.update(value)
            elif isinstance(value, int):
                before = total.get(name, 0)
                assert isinstance(before, int), name
                total[name] = before + value
    total["refused"] = dict(refused)
    return total
