"""Who is a user: of the system, and of the configuration."""

import os
from pathlib import Path

from mta.core.lookup import NOT_FOUND, Account, TemporaryError
from mta.effects import Effects
from mta.tables import (
    StaticUsers,
    SystemUsers,
    TableEffects,
    UserConfig,
)
from tests.support.faults import FaultyEffects, Plan, io_error


def test_users_of_the_system():
    """root is one; nobody is called so, or with a NUL."""
    users = SystemUsers(TableEffects(Effects()))
    root = users.user("root")
    assert isinstance(root, Account)
    assert (root.name, root.uid) == ("root", 0)
    for name in ("no-such-user-here", "", "a\0b", "x" * 300, "\u00fc"):
        assert users.user(name) == NOT_FOUND


def test_a_user_database_that_is_down():
    """Temporary, never unknown."""
    users = SystemUsers(TableEffects(FaultyEffects(Plan(1, io_error))))
    assert users.user("root") == TemporaryError("Input/output error")


def test_users_of_the_configuration():
    """Without numbers they are the server's own user."""
    users = StaticUsers({"a": UserConfig(Path("/home/a")), "b": UserConfig(Path("/b"), 7, 8)})
    assert users.user("a") == Account("a", "/home/a", os.getuid(), os.getgid())
    assert users.user("b") == Account("b", "/b", 7, 8)
    assert users.user("c") == NOT_FOUND
