"""Message ids: counted up from 1, reserved in blocks, so that a crash skips some and repeats none."""

from collections.abc import Callable
from typing import Final

from mta.core.ids import MsgId

LAST: Final = 0x7FFFFFFF
"""Last id before they start again at 1: an `EvpId` must fit SQLite's signed 64 bits."""
BLOCK: Final = 4096
"""Ids reserved at once, so that they are not written down one by one; a crash skips at most so many."""


def reserved_from(first: int) -> int:
    """Return the mark to write down before ids from ``first`` on are given out."""
    return min(first + BLOCK, LAST + 1)


class MsgIds:
    """Gives ids out. The mark, below which ids are spoken for, is durable long before they get there."""

    def __init__(
        self,
        first: int,
        *,
        wrapped: bool,
        is_known: Callable[[int], bool],
        set_mark: Callable[[int, bool], None],
    ) -> None:
        """Start at ``first``; the caller has written `reserved_from` of it down.

        Args:
            first: the mark that was written down last.
            wrapped: ids have started again at 1, so those of messages that are here must be left out.
            is_known: says whether a message is here.
            set_mark: has a mark, and whether ids have started again, written down with the next commit.
        """
        self._next = first
        self._reserved = reserved_from(first)
        self._wrapped = wrapped
        self._is_known = is_known
        self._set_mark = set_mark

    def next(self) -> MsgId:
        """Return an id that no message of this queue has, or had within the last 2**31."""
        msgid = self._next
        while True:
            if msgid > LAST:
                msgid, self._reserved, self._wrapped = 1, 1, True
            if not self._wrapped or not self._is_known(msgid):
                break
            msgid += 1
        self._next = msgid + 1
        if self._next + BLOCK // 2 > self._reserved <= LAST:
            self._reserved = reserved_from(self._next)
            self._set_mark(self._reserved, self._wrapped)
        return MsgId(msgid)

    def close(self) -> None:
        """Have the true mark written down: what nobody got need not be skipped."""
        self._set_mark(self._next, self._wrapped)
