"""What expansion found: the nodes on the way, the deliveries at its end, and the tree for the operator.

The rows of a tree are plain data, so that they can go over the control socket.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from mta.core.aliases import Entry, EntryKind
from mta.core.reply import Reply

if TYPE_CHECKING:
    from mta.core.rules import Rule


class DeliveryKind(enum.Enum):
    """How mail leaves."""

    LOCAL = "local"
    """To a user, as the rule says."""
    RELAY = "relay"
    FILE = "file"
    PIPE = "pipe"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One envelope that a recipient becomes."""

    kind: DeliveryKind
    address: str
    """Where to relay to; else the address whose expansion led here, for Delivered-To."""
    domain: str
    """What the address is routed by."""
    rule: str
    """Name of the rule that says how."""
    user: str = ""
    """Whose mailbox; or as whom to run the command or write the file, empty for the server's own user."""
    tag: str = ""
    """What followed the user's name in the address, without the delimiter."""
    target: str = ""
    """The command or the absolute path."""

    def __str__(self) -> str:
        """Return the delivery in a few words."""
        match self.kind:
            case DeliveryKind.RELAY:
                return f"relay {self.address}"
            case DeliveryKind.LOCAL:
                return f"local {self.user}" + (f" tag {self.tag}" if self.tag else "")
            case DeliveryKind.FILE:
                return f"file {self.target} as {self.user or 'server'}"
            case DeliveryKind.PIPE:
                return f"pipe |{self.target} as {self.user or 'server'}"


class Fate(enum.Enum):
    """What became of a node."""

    OPEN = "not looked at"
    RULE = "matched"
    """An address that is for a local rule: its local part is a user."""
    VIRTUAL = "virtual"
    ALIASED = "aliases"
    FORWARDED = ".forward"
    INCLUDED = "included"
    DELIVERED = "delivered"
    DUPLICATE = "already delivered to, dropped"
    SEEN = "already seen, dropped"
    LOOP = "already seen, dropped (loop)"
    IGNORED = "ignored: a file may not be included here"
    FAILED = "failed"


class Mode(enum.IntEnum):
    """What is still to be asked about a user."""

    FRESH = 0
    """Aliases, account, .forward."""
    SAME = 1
    """Account and .forward: the own alias named the user. OpenSMTPD ``sameuser``."""
    KEPT = 2
    """Nothing: the own .forward named the user."""


class Node:
    """An address, user, file, command or error on the way from a recipient to its deliveries."""

    __slots__ = (
        "account", "anchor", "depth", "domain", "fate", "forwarded", "kind", "mode", "origin", "parent",
        "reply", "rule", "tag", "text",
    )  # fmt: skip

    def __init__(
        self, kind: EntryKind, text: str, domain: str, parent: "Node | None", origin: str
    ) -> None:
        self.kind = kind
        self.text = text
        self.domain = domain
        """Of an address."""
        self.parent = parent
        self.origin = origin
        """``rcpt``, ``rule``, ``alias``, ``include`` or ``forward``: who named it."""
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.anchor: Node = self if parent is None or kind is EntryKind.ADDRESS else parent.anchor
        """The nearest address on the way here, or the node itself."""
        self.rule: Rule | None = None if parent is None else parent.rule
        self.mode = Mode.FRESH
        self.account = ""
        """Name of the user once the account was found."""
        self.tag = ""
        self.forwarded = False
        """The user's .forward is being followed."""
        self.fate = Fate.OPEN
        self.reply: Reply | None = None
        """What an error answers."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """What became of one recipient: deliveries, or a reply that refuses it."""

    deliveries: tuple[Delivery, ...]
    reply: Reply | None
    """None if there are deliveries."""
    reason: str
    """Why it was refused, for the log: names tables and users, so never for the client."""
    nodes: tuple[Node, ...] = field(compare=False, repr=False)
    """All nodes, in the order in which they were found, the recipient first; see `tree`."""


class Row(NamedTuple):
    """A node in the tree of an expansion."""

    text: str
    """The address, user, file, command or error, as it is written."""
    note: str
    """What became of it."""
    children: tuple["Row", ...] = ()


def tree(expansion: Expansion) -> Row:
    """Return how an address was expanded, as nested rows; what ``mtactl expand ADDRESS`` shows.

    The last row below the recipient says how it was refused, if it was.
    """
    below: dict[Node, list[Row]] = {}
    # From the end, because a node comes after its parent: no recursion, however deep it is.
    for node in reversed(expansion.nodes):
        children = below.pop(node, [])
        children.reverse()
        if node.parent is None:
            if expansion.reply is not None:
                children.append(Row(f"refused: {expansion.reply}", expansion.reason))
            return Row(node.text, _note(node), tuple(children))
        row = Row(str(Entry(node.kind, node.text)), _note(node), tuple(children))
        below.setdefault(node.parent, []).append(row)
    raise AssertionError("there is always a recipient")


def render_tree(root: Row) -> Iterator[str]:
    """Yield a tree as lines of text, with the branches drawn."""
    stack = [("", "", root)]
    while stack:
        lead, branch, row = stack.pop()
        yield f"{lead}{branch}{row.text}" + (f"  ({row.note})" if row.note else "")
        lead += {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        branches = ["├─ "] * (len(row.children) - 1) + ["└─ "]
        pairs = list(zip(branches, row.children, strict=False))
        stack += [(lead, branch, child) for branch, child in reversed(pairs)]


def _note(node: Node) -> str:
    """Return in words what became of a node."""
    rule = f"{node.rule}: " if node.kind is EntryKind.ADDRESS and node.rule is not None else ""
    match node.fate:
        case Fate.RULE:
            return f"{node.rule}"
        case Fate.DELIVERED if node.kind is EntryKind.ADDRESS:
            return f"{rule}relay"
        case Fate.DELIVERED if node.kind is EntryKind.USER:
            assert node.rule is not None, node.text
            tag = f", tag {node.tag}" if node.tag else ""
            return f"delivered to {node.account}{tag} by {node.rule.config.delivery}"
        case Fate.DELIVERED:
            assert node.parent is not None, node.text
            return f"delivered as {node.parent.account or 'server'}"
        case _:
            return f"{rule}{node.fate.value}"
