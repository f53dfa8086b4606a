"""What the load wrote of each message it sent (load.jsonl), read once, as columns.

Objects for a million messages take a gigabyte; columns take fifty megabytes.
"""

import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mta.core.settings import ConfigError
from sim.sentline import SentLine, sent_line
from sim.tracefile import decode

NOT_OURS: Final = -1
"""In place of a message id: it was not accepted, or not by our server."""

_ACCEPTED: Final = re.compile(r"\b([0-9a-f]{8}) Message accepted")
"""What our server answers to the final dot."""


class LoadRecord:
    """A row for each message, in the order in which their dialogues ended; instants in seconds since the epoch."""

    def __init__(self) -> None:
        """Begin without messages."""
        self.start = 0.0
        """When the load began; 0 if the record does not say."""
        self.number: array[int] = array("q")
        """Of the message in the scenario's schedule."""
        self.scheduled: array[float] = array("d")
        self.sent: array[float] = array("d")
        self.done: array[float] = array("d")
        self.code: array[int] = array("q")
        """Of the last reply."""
        self.attempts: array[int] = array("q")
        self.recipients: array[int] = array("q")
        self.msgid: array[int] = array("q")
        """By which our server knows it, or `NOT_OURS`."""

    def __len__(self) -> int:
        """Return the number of messages."""
        return len(self.number)

    def accepted(self) -> Iterator[tuple[int, float]]:
        """Yield message id and instant of sending of each message that our server took."""
        return (
            (msgid, sent)
            for msgid, sent in zip(self.msgid, self.sent, strict=True)
            if msgid != NOT_OURS
        )


def read(path: Path) -> LoadRecord:
    """Return what a load did; a last line that a killed load left half is not counted.

    Raises:
        ConfigError: the file is missing, or is no record of a load.
    """
    found = LoadRecord()
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                said = sent_line(line)
                if said is not None:
                    _take_whole(found, said)
                    continue
                record = decode(line)
                if record["kind"] == "message":
                    _take(found, record)
                elif record["kind"] == "start":
                    found.start = float(record["load_start"])
    except OSError as error:
        raise ConfigError(str(path), problem=f"can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(str(path), problem=f"is no record of a load: {error!r}") from None
    return found


def _take_whole(found: LoadRecord, said: SentLine) -> None:
    accepted = _ACCEPTED.search(said.reply) if said.code == 250 else None
    found.msgid.append(int(accepted[1], 16) if accepted else NOT_OURS)
    found.number.append(said.seq)
    found.sent.append(said.sent)
    found.scheduled.append(said.scheduled)
    found.done.append(said.done)
    found.code.append(said.code)
    found.attempts.append(said.attempts)
    found.recipients.append(len(said.rcpts))


def _take(found: LoadRecord, record: dict[str, Any]) -> None:
    code = int(record["code"] or 0)
    accepted = _ACCEPTED.search(record["reply"]) if code == 250 else None
    found.msgid.append(int(accepted[1], 16) if accepted else NOT_OURS)
    found.number.append(int(record["seq"]))
    sent = float(record["sent"])
    found.sent.append(sent)
    found.scheduled.append(float(record.get("scheduled", sent)))
    found.done.append(float(record.get("done", sent)))
    found.code.append(code)
    found.attempts.append(int(record.get("attempts", 1)))
    found.recipients.append(len(record.get("rcpts", ())))
