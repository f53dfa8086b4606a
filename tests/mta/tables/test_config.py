"""Tables in the configuration, and configurations that cannot work."""

import pytest

from mta.core.lookup import NOT_FOUND
from mta.core.settings import ConfigError, build
from mta.tables import (
    StaticTable,
    TableConfig,
    TableLimits,
    UserConfig,
)
from tests.support.tables import texts


def test_static_tables():
    """Entries of the configuration, with an error for each that is none."""
    table = StaticTable("t", {"Info": "a, b", "@V.test": "error:550 no"}, source="mta.toml")
    table.load()
    assert texts(table.lookup("info")) == ["a", "b"]
    assert texts(table.lookup("@v.test")) == ["550 no"]
    assert table.lookup("x") == NOT_FOUND
    assert table.update() == "2 keys of the configuration"
    table.close()


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ({"a": "b c"}, 't.toml: tables.t.entries.a = "b c": an entry is neither'),
        ({"a@": "b"}, 't.toml: tables.t.entries.a@ = "a@": is neither a name nor an address'),
        ({"a": "b", "A": "c"}, 't.toml: tables.t.entries.A = "A": was given before'),
    ],
)
def test_static_tables_that_cannot_be_used(entries, line):
    """One line that names the key."""
    with pytest.raises(ConfigError) as caught:
        StaticTable("t", entries, source="t.toml")
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("cls", "data", "line"),
    [
        (TableConfig, {}, 'path = "": is missing for kind = "file"'),
        (TableConfig, {"kind": "sqlite"}, 'path = "": is missing for kind = "sqlite"'),
        (TableConfig, {"kind": "static", "path": "/x"}, 'path = "/x": is not for kind = "static"'),
        (TableConfig, {"path": "/x", "entries": {"a": "b"}}, 'entries = {a = "b"}: are only for kind = "static"'),
        (UserConfig, {"home": "x"}, 'home = "x": must be absolute'),
        (UserConfig, {"home": "/x", "uid": -1}, "uid = -1: must be a number of a user or group"),
        (UserConfig, {"home": "/x", "gid": 2**32 - 1}, "gid = 4294967295: must be a number of a user or group"),
        (TableLimits, {"rows": 0}, "rows = 0: must be above 0; a cap of 0 is not unlimited"),
        (TableLimits, {"check_s": -1.0}, "check_s = -1.0: must not be negative"),
    ],
)  # fmt: skip
def test_configurations_that_cannot_work(cls, data, line):
    """Each is one line."""
    with pytest.raises(ConfigError) as caught:
        build(cls, data, source="t")
    assert str(caught.value) == f"t: {line}"
