"""A database with aliases, good and bad."""

import sqlite3
from pathlib import Path

import pytest


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "mail.db"
    connection = sqlite3.connect(path)
    connection.executescript(
        """
        CREATE TABLE aliases (key TEXT, value);
        INSERT INTO aliases VALUES ('info', 'alice, bob'), ('info', 'carol@example.test'), ('bad', 'a b'),
            ('null', NULL), ('number', 7), ('empty', ''), ('blob', x'ff');
        """
    )
    connection.close()
    return path
