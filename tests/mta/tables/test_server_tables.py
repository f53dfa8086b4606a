"""Includes, and all tables of a server together."""

import pytest

from mta.core.lookup import NOT_FOUND, Account, TemporaryError
from mta.core.settings import ConfigError
from mta.effects import Effects
from mta.tables import (
    ServerTables,
    TableConfig,
    TableEffects,
    UserConfig,
    read_include,
)
from tests.support.tables import texts


def test_includes(tmp_path, fds):
    """A list of members; missing, forbidden or broken ones say so, and never what is in them."""
    effects = TableEffects(Effects())
    path = tmp_path / "list"
    assert read_include(str(path), effects, max_bytes=100) == NOT_FOUND
    assert read_include("/", effects, max_bytes=100) == NOT_FOUND
    path.write_text("alice # first\nbob@example.test,\\\n carol\n")
    assert texts(read_include(str(path), effects, max_bytes=100)) == [
        "alice", "bob@example.test", "carol",
    ]  # fmt: skip
    path.chmod(0o666)
    assert read_include(str(path), effects, max_bytes=100) == TemporaryError(
        "is writable by everybody"
    )
    path.chmod(0o644)
    path.write_text("a\n" * 51)
    assert read_include(str(path), effects, max_bytes=100) == TemporaryError(
        "is longer than 100 bytes"
    )
    assert read_include("/dev/zero", effects, max_bytes=100) == TemporaryError(
        "is not a regular file"
    )
    shadow = tmp_path / "shadow"
    shadow.write_text("root:$6$secret:19000:0:99999:7:::\n")
    answer = read_include(str(shadow), effects, max_bytes=100)
    assert isinstance(answer, TemporaryError)
    assert "secret" not in answer.text


def test_the_server_s_tables(tmp_path, database, fds):
    """All kinds by name, users with and without a table of their own, and everything closed."""
    home = tmp_path / "alice"
    home.mkdir(mode=0o755)
    (home / ".forward").write_text("bob\n")
    (tmp_path / "aliases").write_text("info: alice, :include:/x\n")
    (tmp_path / "list").write_text("carol\n")
    tables = ServerTables(
        {
            "aliases": TableConfig(path=tmp_path / "aliases"),
            "virtual": TableConfig("sqlite", database),
            "few": TableConfig("static", entries={"a": "b"}),
        },
        {"staff": {"alice": UserConfig(home)}},
        effects=Effects(),
        source="mta.toml",
        log=pytest.fail,
    )
    try:
        assert texts(tables.lookup("aliases", "info")) == ["alice", "/x"]
        assert texts(tables.lookup("virtual", "info")) == ["alice", "bob", "carol@example.test"]
        assert texts(tables.lookup("few", "a")) == ["b"]
        alice = tables.user("staff", "alice")
        assert isinstance(alice, Account)
        assert texts(tables.forward(alice)) == ["bob"]
        assert tables.user("staff", "root") == NOT_FOUND
        assert isinstance(tables.user("", "root"), Account)
        assert texts(tables.include(str(tmp_path / "list"))) == ["carol"]
        assert [tables.update(name) for name in sorted(tables.tables)] == [
            f"{tmp_path / 'aliases'}: 1 keys",
            "1 keys of the configuration",
            f"{database}: opened",
        ]
        with pytest.raises(KeyError):
            tables.update("other")
    finally:
        tables.close()
        tables.close()


def test_a_table_that_cannot_be_used_closes_the_others(tmp_path, database, fds):
    """The start fails with one line, and leaves nothing open."""
    with pytest.raises(ConfigError) as caught:
        ServerTables(
            {"a": TableConfig("sqlite", database), "b": TableConfig(path=tmp_path / "missing")},
            {},
            effects=Effects(),
            source="mta.toml",
            log=pytest.fail,
        )
    assert str(caught.value) == f"{tmp_path / 'missing'}: No such file or directory"
