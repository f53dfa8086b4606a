"""`mtactl encrypt`: the hash of a password, as ``[auth]`` wants it. No server is asked.

A password is never an argument: those can be seen by everybody on the machine.
"""

import getpass
from collections.abc import Iterator
from typing import TextIO

from mta.passwords import encrypt


def hashes(source: TextIO) -> Iterator[str]:
    """Yield the hash of each line of ``source``; on a terminal ask for one password, twice and unseen.

    Raises:
        ValueError: that can't be a password, or the two differ; one line that does not show it.
    """
    if source.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise ValueError("the two differ")
        yield encrypt(password)
        return
    for line in source:
        yield encrypt(line.rstrip("\r\n"))


__all__ = ["hashes"]
