"""A host that answers as a log says it did.

Three reasons for a failure, and no fourth: the host is out of order, the recipient has failures left, the recipient
is refused for good.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from mta.core.reply import Reply
from sim.behaviours.windows import WindowBehaviour
from sim.logs.fate import Fate
from sim.remote import TAKEN, RemoteHost, TransactionVerdict

if TYPE_CHECKING:
    from sim.behaviours.base import Conn

EDGE_S: Final = 1.0
"""Seconds around the edges of an outage in which an attempt has the fate of the recorded one; the grain of syslog."""

DEFERRED: Final = Reply(451, "4.0.0", "as recorded")
REFUSED: Final = Reply(550, "5.0.0", "as recorded")
DOWN: Final = Reply(451, "4.3.2", "out of order, as recorded")


class RecordedHost(RemoteHost):
    """All hosts of a destination, as one that answers as they did.

    Recipients are known by number: ``user17@...`` is recipient 17. Everybody else is taken at once.
    """

    def __init__(
        self,
        windows: Sequence[tuple[float, float, bool]],
        *,
        service_s: Sequence[float],
        fates: Mapping[int, Fate],
        usual_s: float,
        left: dict[int, int] | None = None,
    ) -> None:
        """Be in order.

        Args:
            windows: from when to when it is not, and whether it can be connected to then; in order.
            service_s: what an attempt takes, by recipient.
            fates: of recipients that are not simply taken.
            usual_s: what an attempt takes for everybody else.
            left: failures that are left, by recipient, shared by all hosts of a destination.
        """
        super().__init__(
            [
                WindowBehaviour(max(begin, -1e9), end, 0.0, "refuse")
                for begin, end, reachable in windows
                if not reachable
            ]
        )
        self._down = [(begin, end) for begin, end, reachable in windows if reachable]
        self._service_s = service_s
        self._fates = fates
        self._usual_s = usual_s
        self._left = {} if left is None else left

    def transaction(
        self, conn: "Conn", sender: str, rcpts: Sequence[str], size: int, now: float
    ) -> TransactionVerdict:
        """Answer a whole transaction at once."""
        if len(rcpts) == 1:
            seconds, reply = self._answer(rcpts[0], now)
            return TransactionVerdict(seconds, (reply,), True)
        answers = [self._answer(rcpt, now) for rcpt in rcpts]
        # They went together, and what one took all took.
        return TransactionVerdict(
            max(seconds for seconds, _ in answers), tuple(reply for _, reply in answers), True
        )

    def _answer(self, rcpt: str, now: float) -> tuple[float, Reply]:
        if not rcpt.startswith("user"):
            return self._usual_s, TAKEN
        number = int(rcpt[4 : rcpt.index("@")])
        fate = self._fates.get(number)
        if self._is_down(now) if fate is None else self._fails(fate, now):
            return (fate.failed_s if fate is not None else self._usual_s), DOWN
        if fate is None:
            return self._service_s[number], TAKEN
        left = self._left.get(number, fate.failures)
        if left:
            self._left[number] = left - 1
            return fate.failed_s, DEFERRED
        return self._service_s[number], REFUSED if fate.fatal else TAKEN

    def _fails(self, fate: Fate, now: float) -> bool:
        for edge in fate.edges:
            if abs(now - edge.at) <= EDGE_S:
                return edge.fails
        return self._is_down(now)

    def _is_down(self, now: float) -> bool:
        return any(begin <= now < end for begin, end in self._down)
