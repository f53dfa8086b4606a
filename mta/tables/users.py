"""Who has mail here, and to whom they forward it.

A ``.forward`` decides where a user's mail goes and, if the rules let it, which commands run as the user. So
it counts only if nobody but the user, or root, could have written it. One that is there and can't be trusted
or read holds the mail back: to ignore it would deliver what the user wanted elsewhere.

Source of the checks: OpenSMTPD smtpd.c (``parent_forward_open``), util.c (``secure_file``), and its commit
f6fd583b: a hard link to another's file had shown its first line.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mta.core.expansionlimits import ExpansionLimits
from mta.core.lookup import NOT_FOUND, Account, Answer, Found, NotFound, TemporaryError
from mta.tables.base import UserConfig
from mta.tables.effects import RefusedFileError, TableEffects
from mta.tables.files import entries_of, why_not

FORWARD: Final = ".forward"
_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH


class StaticUsers:
    """Users that the configuration holds."""

    def __init__(self, users: Mapping[str, UserConfig]) -> None:
        uid, gid = os.getuid(), os.getgid()
        self._accounts = {
            name: Account(
                name,
                str(user.home),
                uid if user.uid is None else user.uid,
                gid if user.gid is None else user.gid,
            )
            for name, user in users.items()
        }

    def user(self, name: str) -> Account | NotFound | TemporaryError:
        """Return a user."""
        return self._accounts.get(name, NOT_FOUND)


class SystemUsers:
    """The users of the system; getpwnam(3), so also what nsswitch.conf adds."""

    def __init__(self, effects: TableEffects) -> None:
        self._effects = effects

    def user(self, name: str) -> Account | NotFound | TemporaryError:
        """Return a user."""
        try:
            found = self._effects.passwd(name, site="users")
        except OSError as error:
            return TemporaryError(why_not(error))
        if found is None:
            return NOT_FOUND
        return Account(found.pw_name, found.pw_dir, found.pw_uid, found.pw_gid)


def read_forward(account: Account, effects: TableEffects, limits: ExpansionLimits) -> Answer:
    """Return what a user's ``.forward`` says; `NotFound` if there is none, or no home to have it in.

    A `TemporaryError` if the home directory is sticky, or it or the file may be written by others or has
    another owner; if the file is a link, has another name elsewhere, is no regular file, is
    ``forward_bytes`` long or longer, can't be understood, or can't be read now.
    """

    def check(home: os.stat_result, found: os.stat_result) -> None:
        if home.st_mode & stat.S_ISVTX:
            # A user's way to say: hold my mail while I edit. OpenSMTPD and qmail (dot-qmail(5)).
            raise RefusedFileError("is in a sticky home directory")
        if home.st_uid not in (0, account.uid) or home.st_mode & _WRITABLE:
            raise RefusedFileError("is in a home directory that others may write to")
        if found.st_uid != account.uid:
            raise RefusedFileError("is not owned by the user")
        if found.st_mode & _WRITABLE:
            raise RefusedFileError("is writable by others")
        if found.st_nlink != 1:
            raise RefusedFileError("has another name elsewhere")

    if not account.home.startswith("/"):
        return NOT_FOUND
    try:
        data, _ = effects.read_checked(
            Path(account.home, FORWARD),
            check,
            max_bytes=limits.forward_bytes - 1,
            follow=False,
            site="forward",
        )
    except (FileNotFoundError, NotADirectoryError):
        return NOT_FOUND
    except OSError as error:
        return TemporaryError(why_not(error))
    return entries_of(data) if data else Found()
