"""What a mail log says, whoever wrote it: messages, recipients, attempts, refusals.

Columns instead of objects: a log of millions of messages has to fit. Instants are seconds since the epoch as
far as the log knows its zone; only differences matter to a replay.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from mta.core.reply import Outcome

OPEN_MAX: Final = 1_000_000
"""Messages that are not settled, of which a reader remembers what later lines need. The oldest is forgotten first."""

MESSAGES_MAX: Final = 20_000_000
"""Messages of a record: at 150 bytes each, what a large machine can hold. What comes then is counted and left out."""

NAMES_MAX: Final = 200_000
"""Different domains, and as many hosts and replies; more are all ``other``."""

TRIED: Final = 1
CONNECTED: Final = 2

RECIPIENTS_MAX: Final = 10_000
"""Recipients of one message that are told apart; more than any server takes by default."""

OTHER: Final = "other"
"""Stands for names beyond `NAMES_MAX`."""

UNKNOWN: Final = -1
"""A size that no line has said."""


class Attempt(NamedTuple):
    """One attempt to deliver to one recipient."""

    recipient: int
    """Number of the recipient, in the order in which the log names them."""
    at: float
    """When it was over."""
    outcome: Outcome
    tried: bool
    """False: it was put off without asking the host, because others had failed shortly before."""
    connected: bool
    """False: there was no connection, so that the failure is one of the host and not of the message."""
    service_s: float
    """From the beginning of the connection's set-up to the reply; 0 if the log does not say."""
    host: int
    """Index into `Record.hosts`."""
    reply: int
    """Index into `Record.replies`."""


class Names:
    """Gives numbers to names, up to a limit."""

    def __init__(self, limit: int = NAMES_MAX) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._limit = limit

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> str:
        return self.names[number]

    def number(self, name: str) -> int:
        """Return the number of a name; that of `OTHER` for new ones when there are too many."""
        found = self._numbers.get(name)
        if found is None:
            if len(self.names) >= self._limit:
                name = OTHER
                if name in self._numbers:
                    return self._numbers[name]
            found = self._numbers[name] = len(self.names)
            # A log has what strangers said; what it may do to a terminal stays here.
            self.names.append(
                "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
            )
        return found


class _Open:
    """A message of which more lines will come."""

    __slots__ = ("due", "message", "recipients")

    def __init__(self, message: int) -> None:
        self.message = message
        self.recipients: dict[str, int] = {}
        """Address -> number of the recipient."""
        self.due = 0
        """Recipients that the log has promised."""


class Record:
    """What was read so far; readers add to it."""

    def __init__(self, *, open_max: int = OPEN_MAX, messages_max: int = MESSAGES_MAX) -> None:
        """Know nothing yet; limits as `OPEN_MAX` and `MESSAGES_MAX`."""
        self.domains = Names()
        self.hosts = Names()
        self.replies = Names()
        # Messages
        self.arrived_at = array("d")
        self.size = array("q")
        """Bytes; `UNKNOWN` if no line says."""
        self.is_report = array("b")
        """1 for what the server itself wrote: a model writes its own."""
        self.is_late = array("b")
        """1 for what was in the queue already when the log begins."""
        self.promised = array("q")
        """Recipients that the log says the message has; 0 if it does not."""
        self.queued_s = array("d")
        """From arrival until the first attempt could have been made; 0 if the log does not say."""
        # Recipients
        self.message_of = array("q")
        self.domain_of = array("q")
        self.gone_at = array("d")
        """When it was settled: delivered, refused for good, given up; nan while it is in the queue."""
        # Attempts: the fields of `Attempt`, one column each
        self.recipient_of = array("q")
        self.ended_at = array("d")
        self.outcome = array("b")
        self.flags = array("b")
        """`TRIED` and `CONNECTED`, added up."""
        self.service_s = array("d")
        self.host_of = array("q")
        self.reply_of = array("q")
        self.kinds: Counter[str] = Counter()
        """What was counted beside all this: lines by what was wrong with them, messages forgotten, refusals at the door."""
        self.first_at = float("inf")
        self.last_at = float("-inf")
        self.writers: set[bytes] = set()
        """Hosts that wrote lines of it, as the lines say."""
        self._open: dict[str, _Open] = {}
        self._open_max = open_max
        self._messages_max = messages_max

    # What a reader says

    def arrived(
        self, key: str, at: float, *, late: bool = False, report: bool = False
    ) -> int | None:
        """Note a message under the name that the log has for it; return its number, None if there are too many.

        Args:
            key: its id. If there is one of that name, that is another message: ids are used again.
            at: when it came.
            late: the log begins after it came.
            report: the server wrote it.
        """
        number = len(self.arrived_at)
        if number >= self._messages_max:
            self.kinds["message beyond the limit"] += 1
            return None
        self.arrived_at.append(at)
        self.size.append(UNKNOWN)
        self.is_report.append(report)
        self.is_late.append(late)
        self.promised.append(0)
        self.queued_s.append(0.0)
        self._open.pop(key, None)
        if len(self._open) >= self._open_max:
            del self._open[next(iter(self._open))]
            self.kinds["message forgotten: too many at once"] += 1
        self._open[key] = _Open(number)
        return number

    def number_of(self, key: str) -> int | None:
        """Return the number of the message that has this name now, or None."""
        found = self._open.get(key)
        return None if found is None else found.message

    def has_recipients(self, key: str) -> bool:
        """Return whether the log has named recipients of the message that has this name now."""
        found = self._open.get(key)
        return found is not None and bool(found.recipients)

    def describe(self, key: str, *, size: int = UNKNOWN, recipients: int = 0) -> None:
        """Note size and number of recipients of a message that has arrived; what is not known is left as it is."""
        found = self._open[key]
        if size >= 0:
            self.size[found.message] = size
        if recipients > 0:
            self.promised[found.message] = found.due = recipients

    def recipient(self, key: str, address: str, domain: str = "") -> int | None:
        """Return the number of a recipient of a message that has arrived; None if it has too many.

        Args:
            key: the message's name.
            address: tells recipients of a message apart.
            domain: by default what follows the last ``@``.
        """
        found = self._open[key]
        number = found.recipients.get(address)
        if number is None:
            if len(found.recipients) >= RECIPIENTS_MAX:
                self.kinds["recipient beyond the limit"] += 1
                return None
            number = found.recipients[address] = len(self.message_of)
            self.message_of.append(found.message)
            name = domain or address.rpartition("@")[2].lower() or "local"
            self.domain_of.append(self.domains.number(name))
            self.gone_at.append(float("nan"))
        return number

    def attempt(
        self,
        recipient: int,
        at: float,
        outcome: Outcome,
        *,
        tried: bool = True,
        connected: bool = True,
        service_s: float = 0.0,
        host: str = "",
        reply: str = "",
    ) -> None:
        """Note an attempt; arguments as the fields of `Attempt`."""
        self.recipient_of.append(recipient)
        self.ended_at.append(at)
        self.outcome.append(outcome)
        self.flags.append(TRIED * tried | CONNECTED * connected)
        self.service_s.append(service_s)
        self.host_of.append(self.hosts.number(host))
        self.reply_of.append(self.replies.number(reply))
        # Strictly, because True: a recipient is settled once, and what comes for it then is a repeated line.
        if outcome is not Outcome.TEMPFAIL and self.gone_at[recipient] != self.gone_at[recipient]:
            self.gone_at[recipient] = at

    def given_up(self, recipient: int, at: float) -> None:
        """Note that a recipient was given up without an attempt: it had become too old, or was removed."""
        if self.gone_at[recipient] != self.gone_at[recipient]:
            self.gone_at[recipient] = at

    def ended(self, key: str, at: float) -> None:
        """Note that the queue has the message no more: its name may be used again."""
        found = self._open.pop(key, None)
        if found is None:
            self.kinds["end of an unknown message"] += 1
            return
        for number in found.recipients.values():
            self.given_up(number, at)

    def expire(self, key: str, at: float) -> None:
        """Note that the message's recipients that are still there were given up."""
        found = self._open.get(key)
        if found is not None:
            for number in found.recipients.values():
                self.given_up(number, at)

    def settled(self, key: str) -> bool:
        """Return whether all promised recipients of a message are gone, for logs that do not say when it ends."""
        found = self._open.get(key)
        if found is None or not found.due or len(found.recipients) < found.due:
            return False
        gone = self.gone_at
        return all(gone[number] == gone[number] for number in found.recipients.values())

    def saw(self, at: float) -> None:
        """Note that a line is of this instant."""
        if at < self.first_at:
            self.first_at = at
        if at > self.last_at:
            self.last_at = at

    # What was read

    @property
    def messages(self) -> int:
        """Messages, reports included."""
        return len(self.arrived_at)

    @property
    def recipients(self) -> int:
        """Recipients of all messages."""
        return len(self.message_of)

    @property
    def open(self) -> int:
        """Messages that are remembered because more may come."""
        return len(self._open)

    def __len__(self) -> int:
        """Return the number of attempts."""
        return len(self.ended_at)

    def attempts(self) -> Iterator[Attempt]:
        """Yield every attempt, in the order of the log."""
        outcomes = list(Outcome)
        for recipient, at, outcome, flags, service_s, host, reply in zip(
            self.recipient_of,
            self.ended_at,
            self.outcome,
            self.flags,
            self.service_s,
            self.host_of,
            self.reply_of,
            strict=True,
        ):
            yield Attempt(
                recipient,
                at,
                outcomes[outcome],
                bool(flags & TRIED),
                bool(flags & CONNECTED),
                service_s,
                host,
                reply,
            )
