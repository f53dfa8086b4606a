"""Tables, users and files as the expander asks for them: the shell of `mta.core.lookup`.

Files are read on the thread that asks. They are small and local; who keeps homes on a network file system
calls `mta.core.expansion.Expander.expand` on a thread: everything here may be asked from several.
"""

from collections.abc import Callable, Mapping

from mta.core.expansionlimits import ExpansionLimits
from mta.core.lookup import Account, Answer, NotFound, TemporaryError
from mta.effects import Effects
from mta.tables.base import Table, TableConfig, TableLimits, UserConfig
from mta.tables.effects import TableEffects
from mta.tables.files import FileTable, StaticTable, read_include
from mta.tables.sqlite import SqliteTable
from mta.tables.users import StaticUsers, SystemUsers, read_forward

__all__ = [
    "FileTable",
    "ServerTables",
    "SqliteTable",
    "StaticTable",
    "StaticUsers",
    "SystemUsers",
    "Table",
    "TableConfig",
    "TableEffects",
    "TableLimits",
    "UserConfig",
    "read_forward",
    "read_include",
]


class ServerTables:
    """Implements `mta.core.lookup.Tables` for the server."""

    def __init__(
        self,
        tables: Mapping[str, TableConfig],
        userbases: Mapping[str, Mapping[str, UserConfig]],
        *,
        effects: Effects,
        source: str,
        log: Callable[[str], None],
        expansion: ExpansionLimits | None = None,
        limits: TableLimits | None = None,
    ) -> None:
        """Make the tables that the configuration describes, and read them.

        Args:
            tables: by name.
            userbases: tables of users by name; the system's users are always there, without one.
            effects: how the world is reached.
            source: the configuration's file, for errors.
            log: is told in one line what a human should look at.
            expansion: how large ``.forward`` and included files may be.
            limits: what a table may cost.

        Raises:
            ConfigError: a table can't be used.
        """
        self._effects = TableEffects(effects)
        self._expansion = expansion or ExpansionLimits()
        self._users: dict[str, StaticUsers | SystemUsers] = {"": SystemUsers(self._effects)}
        self._users |= {name: StaticUsers(users) for name, users in userbases.items()}
        self.tables: dict[str, Table] = {}
        """By name."""
        try:
            for name, config in tables.items():
                self.tables[name] = self._table(name, config, source, log, limits or TableLimits())
                self.tables[name].load()
        except BaseException:
            self.close()
            raise

    def _table(
        self,
        name: str,
        config: TableConfig,
        source: str,
        log: Callable[[str], None],
        limits: TableLimits,
    ) -> Table:
        if config.kind == "static":
            return StaticTable(name, config.entries, source=source)
        assert config.path is not None, name
        if config.kind == "sqlite":
            return SqliteTable(config.path, config.query, self._effects, log=log, limits=limits)
        domains = config.kind == "domains"
        return FileTable(config.path, self._effects, log=log, limits=limits, domains=domains)

    def lookup(self, table: str, key: str) -> Answer:
        """Return what a table says to a key."""
        return self.tables[table].lookup(key)

    def user(self, userbase: str, name: str) -> Account | NotFound | TemporaryError:
        """Return a user."""
        return self._users[userbase].user(name)

    def forward(self, account: Account) -> Answer:
        """Return what a user's ``.forward`` says."""
        return read_forward(account, self._effects, self._expansion)

    def include(self, path: str) -> Answer:
        """Return what an included file says."""
        return read_include(path, self._effects, max_bytes=self._expansion.include_bytes)

    def update(self, name: str) -> str:
        """Read a table again now; return in one line what came of it.

        Raises:
            KeyError: there is no such table.
        """
        return self.tables[name].update()

    def close(self) -> None:
        """Let go of what is open. Idempotent."""
        for table in self.tables.values():
            table.close()
