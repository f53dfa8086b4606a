"""A message in the load's record (load.jsonl), as fast as JSON is read: only what a replay asks of it is built."""

from typing import Final

import msgspec


class SentLine(msgspec.Struct, gc=False):
    """A message in the load's record: what a replay asks of it; the rest is skipped and not built."""

    kind: str
    seq: int
    scheduled: float
    sent: float
    done: float
    attempts: int
    code: int
    reply: str
    rcpts: list[msgspec.Raw]


_decode_sent: Final = msgspec.json.Decoder(SentLine).decode


def sent_line(line: bytes) -> SentLine | None:
    """Return what a line says of a message; None if it is of another kind, lacks something or is damaged: `decode` knows."""
    try:
        found = _decode_sent(line)
    except ValueError:
        return None
    return found if found.kind == "message" else None
