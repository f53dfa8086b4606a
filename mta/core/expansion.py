"""What one recipient becomes: users of ours, addresses elsewhere, files, commands, or a refusal.

Pure: tables, users and files are asked through `Tables`. All or nothing: one bad member, and the whole
RCPT gets one reply. The order of decisions is OpenSMTPD's (lka_session.c, ``lka_expand``): the rules for an
address; then the virtual table, or the user of that name; for a user the aliases, the account, and
``.forward``; every address found on the way goes through the rules again, as an internal one.

Nodes are expanded breadth first, from a queue, never by recursion. Three bounds: the depth, the number of
nodes, and the number of entries that were looked at. A node that was seen before is dropped, which is what
breaks loops; a user's own name in the own alias or ``.forward`` is not a loop but the user's mailbox.

Where this differs from OpenSMTPD:

- An address is one node however it was reached, so ``a@x: b@x`` with ``b@x: a@x`` ends here and not at depth 10.
- A ``.forward`` that leads back to its user through others (``bob``, or ``alice@example.test``) delivers to
  the user; there such mail is refused at depth 10, or lost to the copy that went elsewhere.
- A mailbox, file, command or address gets one copy; there it gets one for each address on the way.
- An included file that can't be opened is a temporary failure; there the list loses its members in silence.
- So is a ``.forward`` that can't be trusted; there it is permanent. The user can still mend it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from mta.core.address import Path
from mta.core.aliases import Entry, EntryKind, fold
from mta.core.expanded import Delivery, DeliveryKind, Expansion, Fate, Mode, Node
from mta.core.expansionlimits import ExpansionSettings
from mta.core.lookup import Account, Answer, Found, NotFound, Tables, TemporaryError
from mta.core.reply import Reply
from mta.core.rules import Client, Rule, RuleSet

UNKNOWN_USER: Final = Reply(550, "5.1.1", "Invalid recipient")
"""OpenSMTPD: 550 Invalid recipient. RFC 3463 X.1.1."""
NO_RELAY: Final = Reply(550, "5.7.1", "Relaying denied")
"""No rule for the recipient. RFC 5321 3.6.2, RFC 3463 X.7.1; `mta.core.admission` says the same."""
NO_RELAY_INSIDE: Final = Reply(550, "5.7.1", "Recipient forwards to where we do not relay")
"""No rule for an address that the recipient stands for: the client's address was right."""
BAD_EXPANSION: Final = Reply(524, "5.2.4", "Mailing list expansion problem")
"""OpenSMTPD lka_session.c; RFC 3463 X.2.4."""
BAD_EXPANSION_NOW: Final = Reply(424, "4.2.4", "Mailing list expansion problem")
"""The same while somebody can still mend it."""
TEMPORARY: Final = Reply(451, "4.3.0", "Temporary failure, try again later")
"""OpenSMTPD: 451 Temporary failure."""

_SHOWN_MAX = 20
"""Entries of one answer that a trace shows."""


Trace: TypeAlias = Callable[[str], None]


class Expander:
    """Expands recipients by one set of rules and tables. Holds no state between calls."""

    __slots__ = ("_allow_root", "_rules", "_settings", "_tables")

    def __init__(
        self,
        rules: RuleSet,
        tables: Tables,
        settings: ExpansionSettings | None = None,
        *,
        allow_root: bool = False,
    ) -> None:
        self._rules = rules
        self._allow_root = allow_root
        self._tables = tables
        self._settings = settings or ExpansionSettings()

    def expand(self, recipient: Path, *, client: Client, trace: Trace | None = None) -> Expansion:
        """Return what a recipient becomes.

        Args:
            recipient: the address of RCPT.
            client: who sends; see `RuleSet.client`.
            trace: is told each step, as one line without a line end, indented by depth. The lines are
                subsystem ``expand`` of `mta.trace`.
        """
        run = _Run(self._rules, self._tables, self._settings, client, trace, self._allow_root)
        return run.expand(recipient)


class _Run:
    """The expansion of one recipient."""

    __slots__ = (
        "allow_root", "client", "deliveries", "entries", "limits", "mailboxes", "nodes", "queue", "reason",
        "reply", "rules", "seen", "settings", "tables", "trace",
    )  # fmt: skip

    def __init__(
        self,
        rules: RuleSet,
        tables: Tables,
        settings: ExpansionSettings,
        client: Client,
        trace: Trace | None,
        allow_root: bool,
    ) -> None:
        self.rules = rules
        self.allow_root = allow_root
        self.tables = tables
        self.settings = settings
        self.limits = settings.limits
        self.client = client
        self.trace = trace
        self.queue: deque[Node] = deque()
        self.nodes: list[Node] = []
        self.seen: set[object] = set()
        self.mailboxes: set[object] = set()
        self.entries = 0
        self.deliveries: list[Delivery] = []
        self.reply: Reply | None = None
        self.reason = ""

    def expand(self, recipient: Path) -> Expansion:
        root = Node(EntryKind.ADDRESS, recipient.address, recipient.domain, None, "rcpt")
        if self.trace is not None:
            self.trace(f"rcpt to=<{recipient.address}> client={self.client}")
        self.nodes.append(root)
        self.queue.append(root)
        while self.queue:
            self.step(self.queue.popleft())
            if self.reply is not None:
                return self.refused()
        if not self.deliveries:
            self.fail(root, BAD_EXPANSION, "expands to nothing")
            return self.refused()
        if self.trace is not None:
            count = len(self.deliveries)
            shown = _listed([str(delivery) for delivery in self.deliveries])
            self.trace(f"{count} {'delivery' if count == 1 else 'deliveries'}: {shown}")
        return Expansion(tuple(self.deliveries), None, "", tuple(self.nodes))

    def refused(self) -> Expansion:
        if self.trace is not None:
            dropped = len(self.deliveries)
            also = f", {dropped} found so far dropped" if dropped else ""
            self.trace(f"refused: {self.reply}{also}")
        return Expansion((), self.reply, self.reason, tuple(self.nodes))

    def say(self, node: Node, text: str) -> None:
        """Trace a decision about a node. Only under ``if self.trace is not None``, which costs nothing."""
        assert self.trace is not None
        self.trace(f"{'  ' * (node.depth + 1)}{_name(node)}: {text}")

    def fail(self, node: Node, reply: Reply, reason: str) -> None:
        """End everything with a reply."""
        node.fate = Fate.FAILED
        self.reply = reply
        self.reason = f"{_name(node)}: {reason}"
        if self.trace is not None:
            self.say(node, reason)

    def step(self, node: Node) -> None:
        """Decide about one node."""
        if node.depth >= self.limits.depth:
            self.fail(node, BAD_EXPANSION, f"deeper than {self.limits.depth} steps")
            return
        match node.kind:
            case EntryKind.ADDRESS:
                self.address(node)
            case EntryKind.USER:
                self.user(node)
            case EntryKind.COMMAND | EntryKind.FILE:
                self.external(node)
            case EntryKind.ERROR:
                assert node.reply is not None, node.text
                if node.rule is not None and node.rule.config.delivery == "forward-only":
                    self.fail(node, BAD_EXPANSION_NOW, "an error is not a .forward")
                else:
                    self.fail(node, node.reply, f"answers {node.reply}")
            case EntryKind.INCLUDE:
                raise AssertionError("files are included where they are named")

    # ---- addresses

    def address(self, node: Node) -> None:
        client = self.client
        inside = node.parent is not None
        words = client.internal if inside else client.words
        rule = self.rules.match(node.domain, words, self.tables)
        if isinstance(rule, TemporaryError):
            self.fail(node, TEMPORARY, f"rules: {rule.text}")
            return
        if rule is None:
            if self.trace is not None:
                near = self.rules.near_miss(node.domain, self.tables)
                if near is not None:
                    self.say(node, f"{near} is for {near.for_whom()}, not for this client")
            self.fail(node, NO_RELAY_INSIDE if inside else NO_RELAY, "no rule matches")
            return
        node.rule = rule
        if self.trace is not None:
            self.say(node, f"{rule} matches {rule.what(node.domain)}: {rule.config.action}")
        match rule.config.action:
            case "relay":
                self.deliver(node, DeliveryKind.RELAY)
            case "reject":
                self.fail(node, rule.reply, f"{rule} rejects")
            case "virtual":
                self.virtual(node, rule)
            case "local":
                node.fate = Fate.RULE
                local = fold(node.text.rpartition("@")[0])
                self.insert(node, EntryKind.USER, local, "", "rule")

    def virtual(self, node: Node, rule: Rule) -> None:
        local = fold(node.text.rpartition("@")[0])
        user, tag = self.split(local)
        at = f"@{node.domain}"
        keys = [f"{user}{at}", user, at, "@"]
        if tag:
            keys[1:1] = [local]
            keys[:0] = [f"{local}{at}"]
        answer = self.ask(node, rule.config.virtual, keys)
        if isinstance(answer, TemporaryError):
            self.fail(
                node, BAD_EXPANSION_NOW, f"virtual table {rule.config.virtual}: {answer.text}"
            )
        elif isinstance(answer, NotFound):
            self.fail(
                node, BAD_EXPANSION, f"virtual table {rule.config.virtual} has none of its keys"
            )
        else:
            node.fate = Fate.VIRTUAL
            self.insert_all(node, answer.entries, "alias")

    # ---- users

    def user(self, node: Node) -> None:
        rule = node.rule
        assert rule is not None, node.text
        if node.mode is Mode.KEPT:
            node.tag = self.split(node.text)[1]
            if self.trace is not None:
                self.say(node, "back from the own .forward, keeps a copy")
            self.unforwarded(node, "the .forward names its own user")
            return
        table = rule.config.aliases or rule.config.virtual
        if table and node.mode is Mode.FRESH:
            name = fold(node.text)
            user, tag = self.split(name)
            answer = self.ask(node, table, [name, user] if tag else [name])
            if isinstance(answer, TemporaryError):
                self.fail(node, BAD_EXPANSION_NOW, f"table {table}: {answer.text}")
                return
            if isinstance(answer, Found):
                node.fate = Fate.ALIASED
                self.insert_all(node, answer.entries, "alias")
                return
        elif table and self.trace is not None:
            self.say(node, "named by its own alias, not looked up again")
        user, node.tag = self.split(node.text)
        account = self.tables.user(rule.config.userbase, user)
        if isinstance(account, TemporaryError):
            self.fail(node, TEMPORARY, f"users: {account.text}")
        elif isinstance(account, NotFound):
            self.fail(node, UNKNOWN_USER, f"there is no user {user}")
        else:
            node.account = account.name
            self.account(node, rule, account)

    def account(self, node: Node, rule: Rule, account: Account) -> None:
        """Deliver to a user who exists, or to whom the user's .forward names."""
        config = rule.config
        tagged = f", tag {node.tag}" if node.tag else ""
        if _forwards_above(node):
            if self.trace is not None:
                self.say(
                    node, f"user {account.name}{tagged}, back from the own .forward, keeps a copy"
                )
            self.unforwarded(node, "the .forward leads back to its own user")
            return
        if not config.forward or (config.user and config.user != account.name):
            if self.trace is not None:
                why = (
                    f"the rule delivers as {config.user}" if config.forward else "the rule says so"
                )
                self.say(node, f"user {account.name}{tagged}, .forward not looked for: {why}")
            self.unforwarded(node, "not looked for")
            return
        answer = self.tables.forward(account)
        if isinstance(answer, TemporaryError):
            self.fail(node, BAD_EXPANSION_NOW, f".forward: {answer.text}")
            return
        if isinstance(answer, NotFound):
            if self.trace is not None:
                self.say(node, f"user {account.name}{tagged}, no .forward")
            self.unforwarded(node, "no .forward")
            return
        if self.trace is not None:
            self.say(node, f"user {account.name}{tagged}, .forward {_answered(answer.entries)}")
        if len(answer.entries) > self.limits.forward_nodes:
            self.fail(
                node,
                BAD_EXPANSION_NOW,
                f".forward has more than {self.limits.forward_nodes} entries",
            )
            return
        node.forwarded = True
        node.fate = Fate.FORWARDED
        before = len(self.queue)
        self.insert_all(node, answer.entries, "forward", owner=account)
        if self.reply is None and len(self.queue) == before:
            # As OpenSMTPD (forwards_get): nothing new, so nothing would be left of the user's own mail
            # if everybody in a circle of .forward files dropped it.
            node.forwarded = False
            if self.trace is not None:
                self.say(node, ".forward names nobody new")
            self.unforwarded(node, ".forward names nobody new")

    def unforwarded(self, node: Node, why: str) -> None:
        """Deliver to a user as the rule says."""
        assert node.rule is not None, node.text
        match node.rule.config.delivery:
            case "forward-only":
                self.fail(node, BAD_EXPANSION_NOW, f"{node.rule} is forward-only: {why}")
            case "expand-only":
                self.fail(node, BAD_EXPANSION, f"{node.rule} is expand-only: {why}")
            case _:
                self.deliver(node, DeliveryKind.LOCAL)

    # ---- commands and files

    def external(self, node: Node) -> None:
        rule = node.rule
        assert rule is not None, node.text
        is_file = node.kind is EntryKind.FILE
        places: Sequence[str] = rule.config.files_from if is_file else rule.config.commands_from
        if rule.config.delivery == "forward-only":
            self.fail(node, BAD_EXPANSION_NOW, f"{rule} is forward-only")
        elif node.origin not in places:
            key = "files_from" if is_file else "commands_from"
            self.fail(node, BAD_EXPANSION_NOW, f"{rule}: {key} does not have {node.origin}")
        else:
            self.deliver(node, DeliveryKind.FILE if is_file else DeliveryKind.PIPE)

    # ---- the way down

    def split(self, name: str) -> tuple[str, str]:
        """Return user and tag. A name that begins with the delimiter has none."""
        delimiter = self.settings.delimiter
        if not delimiter or delimiter not in name[1:]:
            return name, ""
        user, _, tag = name[1:].partition(delimiter)
        return name[0] + user, tag

    def ask(self, node: Node, table: str, keys: Sequence[str]) -> Answer:
        """Return the answer to the first key that a table has."""
        answer: Answer = NotFound()
        for tried, key in enumerate(keys):
            answer = self.tables.lookup(table, key)
            if isinstance(answer, NotFound):
                continue
            if self.trace is not None and isinstance(answer, Found):
                missing = f"no {', '.join(keys[:tried])}; " if tried else ""
                self.say(node, f"table {table}: {missing}{key} {_answered(answer.entries)}")
            return answer
        if self.trace is not None:
            self.say(node, f"table {table}: no {', '.join(keys)}")
        return answer

    def insert_all(
        self, parent: Node, entries: Sequence[Entry], origin: str, *, owner: Account | None = None
    ) -> None:
        """Queue what a table or file says.

        Args:
            parent: whose entries they are.
            entries: the answer.
            origin: where they stand: ``alias``, ``include`` or ``forward``.
            owner: whose .forward it is.
        """
        for entry in entries:
            if entry.kind is not EntryKind.INCLUDE:
                roots = owner is not None and owner.uid == 0 and not self.allow_root
                if roots and entry.kind in _EXTERNAL:
                    self.fail(
                        parent, BAD_EXPANSION_NOW, "root's .forward may not name commands or files"
                    )
                else:
                    self.insert(parent, entry.kind, entry.text, entry.domain, origin, entry.reply)
            elif origin == "alias":
                self.include(parent, entry)
            else:
                # OpenSMTPD: no includes in .forward, nor in an included file.
                self.drop(parent, entry, origin, Fate.IGNORED)
            if self.reply is not None:
                break

    def include(self, parent: Node, entry: Entry) -> None:
        answer = self.tables.include(entry.text)
        if not isinstance(answer, Found):
            why = answer.text if isinstance(answer, TemporaryError) else "is not there"
            self.fail(parent, BAD_EXPANSION_NOW, f"{entry}: {why}")
            return
        if self.trace is not None:
            self.say(parent, f"{entry} {_answered(answer.entries)}")
        self.insert_all(parent, answer.entries, "include")

    def insert(
        self,
        parent: Node,
        kind: EntryKind,
        text: str,
        domain: str,
        origin: str,
        reply: Reply | None = None,
    ) -> None:
        """Queue a node, unless it was seen before."""
        self.entries += 1
        if self.entries > self.limits.entries:
            self.fail(parent, BAD_EXPANSION_NOW, f"more than {self.limits.entries} entries in all")
            return
        node = Node(kind, text, domain, parent, origin)
        node.reply = reply
        key: tuple[object, ...]
        if kind is EntryKind.USER:
            if parent.kind is EntryKind.USER and text in (parent.text, parent.account):
                node.mode, node.account = (
                    (Mode.KEPT, parent.account) if parent.forwarded else (Mode.SAME, "")
                )
            key = (kind, text, node.mode, id(node.anchor))
            if key in self.seen and (user := _forwards_above(node)):
                # Not a loop to be cut: the user's .forward leads back to the user.
                node.mode, node.account = Mode.KEPT, user
                key = (kind, text, node.mode, id(node.anchor))
        elif kind is EntryKind.ADDRESS:
            # The rule of the recipient itself may be another one than that of the same address inside.
            node.rule = None
            key = (kind, text)
        else:
            key = (kind, text, parent.account, node.rule)
        if key in self.seen:
            self.drop_node(node, Fate.LOOP if _is_above(node) else Fate.SEEN)
            return
        if len(self.seen) >= self.limits.nodes:
            self.fail(parent, BAD_EXPANSION_NOW, f"more than {self.limits.nodes} nodes in all")
            return
        self.seen.add(key)
        self.nodes.append(node)
        self.queue.append(node)

    def drop(self, parent: Node, entry: Entry, origin: str, fate: Fate) -> None:
        self.entries += 1
        if self.entries > self.limits.entries:
            self.fail(parent, BAD_EXPANSION_NOW, f"more than {self.limits.entries} entries in all")
            return
        self.drop_node(Node(entry.kind, entry.text, "", parent, origin), fate)

    def drop_node(self, node: Node, fate: Fate) -> None:
        node.fate = fate
        self.nodes.append(node)
        if self.trace is not None:
            self.say(node, fate.value)

    def deliver(self, node: Node, kind: DeliveryKind) -> None:
        """Note a delivery, unless the same place already gets the message."""
        rule = node.rule
        assert rule is not None, node.text
        anchor = node.anchor
        if kind is DeliveryKind.RELAY:
            user = tag = target = ""
            identity: tuple[object, ...] = (kind, node.text)
        elif kind is DeliveryKind.LOCAL:
            user, tag, target = node.account, node.tag, ""
            identity = (kind, user, tag, rule.number)
        else:
            # Only the entries of a .forward have an account above them: what stands in an alias runs as us.
            above = node.parent
            assert above is not None, node.text
            user, tag, target = above.account, "", node.text
            identity = (kind, user, target)
        if identity in self.mailboxes:
            node.fate = Fate.DUPLICATE
            if self.trace is not None:
                self.say(node, node.fate.value)
            return
        self.mailboxes.add(identity)
        node.fate = Fate.DELIVERED
        delivery = Delivery(kind, anchor.text, anchor.domain, rule.name, user, tag, target)
        self.deliveries.append(delivery)
        if self.trace is not None and kind is not DeliveryKind.RELAY:
            self.say(node, f"delivery: {delivery}")


_EXTERNAL: Final = (EntryKind.COMMAND, EntryKind.FILE)


def _forwards_above(node: Node) -> str:
    """Return the user whose own .forward led, by whatever way, to this node of the same user, or nothing."""
    above = node.parent
    while above is not None:
        if above.forwarded and (
            above.account == node.account or node.text in (above.text, above.account)
        ):
            return above.account
        above = above.parent
    return ""


def _is_above(node: Node) -> bool:
    """Say whether a node repeats one that it comes from."""
    above = node.parent
    while above is not None:
        if above.kind is node.kind and above.text == node.text:
            return True
        above = above.parent
    return False


def _name(node: Node) -> str:
    """Return a node as it is written."""
    return str(Entry(node.kind, node.text))


def _answered(entries: Sequence[Entry]) -> str:
    return f"-> {_listed([str(entry) for entry in entries])}" if entries else "is empty"


def _listed(texts: Sequence[str]) -> str:
    if len(texts) <= _SHOWN_MAX:
        return ", ".join(texts)
    return f"{', '.join(texts[:_SHOWN_MAX])} and {len(texts) - _SHOWN_MAX} more"
