"""Tables that behave, for tests of expansion."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mta.core.address import Path, parse_path
from mta.core.aliases import ParseError, parse_aliases, parse_entries
from mta.core.expanded import Expansion
from mta.core.expansion import Expander
from mta.core.expansionlimits import ExpansionSettings
from mta.core.lookup import NOT_FOUND, Account, Answer, Found, NotFound, TemporaryError
from mta.core.rules import RuleConfig, RuleSet

DOWN = TemporaryError("is down")


def path(address: str) -> Path:
    found = parse_path(f"<{address}>")
    assert found is not None, address
    return found


def parsed(text: str) -> Answer:
    entries = parse_entries(text)
    assert not isinstance(entries, ParseError), (text, entries)
    return Found(tuple(entries))


class FakeTables:
    """Tables, users and files in memory, written as they are in files.

    Anything may be `DOWN` instead of text. Who has a .forward is a user; the user ``root`` is root.
    """

    def __init__(
        self,
        *,
        users: str = "",
        forwards: Mapping[str, str | TemporaryError] | None = None,
        includes: Mapping[str, str | TemporaryError] | None = None,
        **tables: str | TemporaryError,
    ) -> None:
        self.answers: dict[str, TemporaryError | dict[str, Answer]] = {}
        for name, text in tables.items():
            if isinstance(text, TemporaryError):
                self.answers[name] = text
            else:
                aliases = parse_aliases(text)
                assert not isinstance(aliases, ParseError), (text, aliases)
                self.answers[name] = {key: Found(entries) for key, entries in aliases.items()}
        self.forwards = dict(forwards or {})
        self.users = {*users.split(), *self.forwards}
        self.includes = dict(includes or {})
        self.users_down = False
        self.asked: list[tuple[str, ...]] = []

    def lookup(self, table: str, key: str) -> Answer:
        self.asked.append((table, key))
        answers = self.answers[table]
        return answers if isinstance(answers, TemporaryError) else answers.get(key, NOT_FOUND)

    def user(self, userbase: str, name: str) -> Account | NotFound | TemporaryError:
        self.asked.append(("user", name))
        if self.users_down:
            return DOWN
        if name not in self.users:
            return NOT_FOUND
        return Account(name, f"/home/{name}", 0 if name == "root" else 1000, 1000)

    def forward(self, account: Account) -> Answer:
        self.asked.append(("forward", account.name))
        text = self.forwards.get(account.name, NOT_FOUND)
        return parsed(text) if isinstance(text, str) else text

    def include(self, path: str) -> Answer:
        self.asked.append(("include", path))
        text = self.includes.get(path, NOT_FOUND)
        return parsed(text) if isinstance(text, str) else text


RULES = (
    RuleConfig(
        "local",
        ["example.test"],
        "local",
        aliases="aliases",
        commands_from=["alias", "include", "forward"],
        files_from=["alias", "include", "forward"],
    ),
    RuleConfig("virtual", ["virtual.test", "v2.test"], "virtual", virtual="virtual"),
    RuleConfig("relay", ["*"], "relay"),
)
"""Local users at example.test, virtual ones at virtual.test and v2.test, the rest elsewhere."""
LOCAL, VIRTUAL, RELAY = RULES


def local(**changes: Any) -> list[RuleConfig]:
    """Return the rules, with a first one that is a little different."""
    return [dataclasses.replace(LOCAL, **changes), VIRTUAL, RELAY]


def expand(
    address: str,
    tables: FakeTables,
    *,
    rules: Sequence[RuleConfig] = RULES,
    settings: ExpansionSettings | None = None,
    client: str = "198.51.100.1",
    trace: list[str] | None = None,
) -> Expansion:
    for table in ("aliases", "virtual"):
        tables.answers.setdefault(table, {})
    ruleset = RuleSet(rules)
    expander = Expander(ruleset, tables, settings)
    return expander.expand(
        path(address),
        client=ruleset.client(client),
        trace=None if trace is None else trace.append,
    )


def deliveries(address: str, tables: FakeTables, **options: object) -> list[str]:
    """Return the deliveries in words, sorted; fail if the recipient is refused."""
    found = expand(address, tables, **options)  # type: ignore[arg-type]
    assert found.reply is None, (found.reply, found.reason)
    return sorted(map(str, found.deliveries))


def refusal(address: str, tables: FakeTables, **options: object) -> tuple[str, str]:
    """Return (code and enhanced code, reason); fail if the recipient is accepted."""
    found = expand(address, tables, **options)  # type: ignore[arg-type]
    assert found.reply is not None, found.deliveries
    assert found.deliveries == ()
    return f"{found.reply.code} {found.reply.enhanced}", found.reason
