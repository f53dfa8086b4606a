"""Who a recipient is: rules, tables and users of the configuration, and the envelopes that an address becomes.

Without ``[[rules]]`` there is no `Addressing`, and every address is relayed. With them nothing is that no rule
allows.
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from mta.core.address import NULL_PATH, Path, parse_path
from mta.core.admission import Network, parse_networks
from mta.core.envelopes.base import Recipient, local_key
from mta.core.expanded import DeliveryKind, Expansion, render_tree, tree
from mta.core.expansion import Expander, Trace
from mta.core.lookup import Account, Answer, Found, NotFound, Tables, TemporaryError
from mta.core.rules import Client, Rule, RuleConfig, RuleSet
from mta.tables import ServerTables

if TYPE_CHECKING:
    from mta.config import Config
    from mta.effects import Effects
    from mta.log import Log
    from mta.trace import Tracer


LOOKUP_THREADS: Final = 4
"""Threads that ask tables. A table of SQLite answers one question at a time, so some wait for each other."""
_THREAD: Final = "look-up"


class _TracedTables:
    """Tables that say what they were asked and answered; subsystem ``lookup``."""

    def __init__(self, tables: ServerTables, tracer: "Tracer") -> None:
        self._tables = tables
        self._tracer = tracer

    def lookup(self, table: str, key: str) -> Answer:
        answer = self._tables.lookup(table, key)
        if self._tracer.lookup:
            self._say(f'"{key}" in table {table}', answer)
        return answer

    def user(self, userbase: str, name: str) -> Account | NotFound | TemporaryError:
        answer = self._tables.user(userbase, name)
        if self._tracer.lookup:
            self._say(f'"{name}" as user in {userbase or "system"}', answer)
        return answer

    def forward(self, account: Account) -> Answer:
        answer = self._tables.forward(account)
        if self._tracer.lookup:
            self._say(f"~{account.name}/.forward", answer)
        return answer

    def include(self, path: str) -> Answer:
        answer = self._tables.include(path)
        if self._tracer.lookup:
            self._say(f"include {path}", answer)
        return answer

    def _say(self, what: str, answer: Answer | Account) -> None:
        match answer:
            case Found(entries):
                shown = f'"{", ".join(map(str, entries[:20]))}"'
            case Account():
                shown = f"uid={answer.uid} home={answer.home}"
            case TemporaryError(text):
                shown = f"error: {text}"
            case _:
                shown = "none"
        self._tracer.line("lookup", f"lookup {what} -> {shown}")


class _TracedRules(RuleSet):
    """Rules that say which of them matched, and for whom; subsystem ``rules``."""

    __slots__ = ("_tracer",)

    def __init__(
        self, configs: Sequence[RuleConfig], networks: Sequence[Network], tracer: "Tracer"
    ) -> None:
        super().__init__(configs, networks=networks)
        self._tracer = tracer

    def match(
        self, domain: str, words: frozenset[str], tables: Tables
    ) -> Rule | TemporaryError | None:
        found = super().match(domain, words, tables)
        if self._tracer.rules:
            shown = f"{domain} for {','.join(sorted(words))}: {self._shown(found, domain, tables)}"
            self._tracer.line("rules", shown)
        return found

    def _shown(self, found: Rule | TemporaryError | None, domain: str, tables: Tables) -> str:
        if isinstance(found, Rule):
            return f"{found} matches {found.what(domain)}: {found.config.action}"
        if found is not None:
            return f"no answer now: {found.text}"
        near = self.near_miss(domain, tables)
        also = "" if near is None else f"; {near} is for {near.for_whom()}"
        return f"no rule of {len(self.rules)} matches{also}"


class Addressing:
    """Expands recipients, as the configuration says."""

    def __init__(
        self, config: "Config", *, effects: "Effects", source: str, log: "Log", tracer: "Tracer"
    ) -> None:
        """Read the tables.

        Raises:
            ConfigError: one of them can't be used.
            ValueError: ``smtp.relay_networks`` has what is no network.
        """
        self._log = log
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: ThreadPoolExecutor | None = None
        self.takes_time = any(table.kind == "sqlite" for table in config.tables.values())
        """Tables may take so long that the event loop must not wait: a database may be locked, or have no index."""
        networks = parse_networks(config.smtp.relay_networks)
        self.rules = RuleSet(config.rules, networks=networks)
        self.tables = ServerTables(
            config.tables,
            config.userbases,
            effects=effects,
            source=source,
            log=self._warn,
            expansion=config.expansion.limits,
        )
        self._tracer = tracer
        # Why two? What is never traced need not even ask whether it is.
        allow_root = config.local.allow_root
        self._expander = Expander(self.rules, self.tables, config.expansion, allow_root=allow_root)
        self._traced = Expander(
            _TracedRules(config.rules, networks, tracer),
            _TracedTables(self.tables, tracer),
            config.expansion,
            allow_root=allow_root,
        )
        local = self.rules.client()
        self._inside = local._replace(words=local.internal)

    def client(self, address: str, *, user: str = "") -> Client:
        """Return a client at the door, as rules see it; ``user`` is its login."""
        return self.rules.client(address, user=user)

    def expand(self, recipient: Path, client: Client) -> Expansion:
        """Return what a recipient becomes."""
        if self._is_traced:
            expansion = self._expand_traced(recipient, client)
        else:
            expansion = self._expander.expand(recipient, client=client)
        return self._logged(recipient, expansion)

    async def expand_on_thread(self, recipient: Path, client: Client) -> Expansion:
        """Return what `expand` does, while the event loop goes on; `LOOKUP_THREADS` at once.

        Whoever is cancelled here gives up the answer; the thread is free when the tables have answered. What
        is traced is not left to a thread: log and trace belong to the event loop.
        """
        if self._is_traced:
            return self.expand(recipient, client)
        loop = self._loop = asyncio.get_running_loop()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix=_THREAD)
        expand = partial(self._expander.expand, recipient, client=client)
        return self._logged(recipient, await loop.run_in_executor(self._pool, expand))

    @property
    def _is_traced(self) -> bool:
        tracer = self._tracer
        return tracer.expand or tracer.rules or tracer.lookup

    def _logged(self, recipient: Path, expansion: Expansion) -> Expansion:
        """Log why an expansion is refused, if it is."""
        if expansion.reply is not None:
            self._log.info(
                f'expand to=<{recipient.address}> result="{expansion.reply}"'
                f' reason="{expansion.reason}"'
            )
        return expansion

    def _warn(self, line: str) -> None:
        """Log what a table says, on whatever thread it does."""
        if self._loop is None or not threading.current_thread().name.startswith(_THREAD):
            self._log.warn(line)
            return
        with suppress(RuntimeError):  # the loop is closed: nobody reads it any more
            self._loop.call_soon_threadsafe(self._log.warn, line)

    def _expand_traced(self, recipient: Path, client: Client) -> Expansion:
        tracer = self._tracer
        trace: Trace | None = self._trace if tracer.expand else None
        tracer.about = recipient.address
        try:
            return self._traced.expand(recipient, client=client, trace=trace)
        finally:
            tracer.about = ""

    def _trace(self, text: str) -> None:
        self._tracer.line("expand", text)

    def envelopes(self, recipient: Recipient, expansion: Expansion) -> tuple[Recipient, ...]:
        """Return the envelopes that a recipient becomes, in the order of their deliveries."""
        found = []
        for delivery in expansion.deliveries:
            if delivery.kind is DeliveryKind.RELAY:
                rule = self.rules.by_name[delivery.rule].config
                key = rule.smart_host.lower() or delivery.domain
                found.append(
                    recipient._replace(address=delivery.address, domain=key, rule=delivery.rule)
                )
                continue
            method = delivery.kind.value
            if delivery.target:
                method = f"{method}:{delivery.target}"
            found.append(
                recipient._replace(
                    domain=local_key(delivery.user),
                    delivery=method,
                    user=delivery.user,
                    tag=delivery.tag,
                    dest="" if delivery.address == recipient.address else delivery.address,
                    rule=delivery.rule,
                )
            )
        return tuple(found)

    def of_ours(self, recipient: Recipient) -> Expansion:
        """Expand a recipient of mail that is from us: a report."""
        return self.expand(Path(recipient.address, recipient.domain), self._inside)

    def show(self, address: str) -> Iterator[str]:
        """Yield how an address expands for mail from inside, as lines of a tree.

        Raises:
            ValueError: it is no address.
        """
        path = parse_path(f"<{address}>")
        if path is None or path == NULL_PATH:
            raise ValueError(f"not an address: {address[:60]!r}")
        return render_tree(tree(self.expand(path, self._inside)))

    def close(self) -> None:
        """Let go of the tables. Idempotent."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self.tables.close()


__all__ = ["Addressing"]
