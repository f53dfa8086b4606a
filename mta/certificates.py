"""The server's certificate: read, checked, and read again without a pause.

A certificate that can't be read or used keeps the server from starting, with one line; later it changes
nothing: the one that was read before goes on to count.
"""

import os
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mta.core.settings import ConfigError
from mta.tables.effects import Check, RefusedFileError, TableEffects
from mta.tlswire import describe

if TYPE_CHECKING:
    from mta.config import TlsConfig
    from mta.effects import Effects

_TOO_OPEN: Final = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO
"""What others may not with a private key. OpenSMTPD, ssl.c: "must be at most rwxr-----"."""
_FILE_BYTES: Final = 1024 * 1024
"""Bytes of a certificate with its chain, or of a key. Ours."""
_VERSIONS: Final = {
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}


class Certificates:
    """Certificate and key of ``[tls]``."""

    def __init__(
        self,
        config: "TlsConfig",
        *,
        effects: "Effects",
        source: str,
        log: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        """Read them.

        Args:
            config: where they are.
            effects: how they are read.
            source: the configuration's file, for errors.
            log: is told in one line what has happened.
            warn: is told in one line what a human should look at.

        Raises:
            ConfigError: they can't be used.
        """
        assert config.certificate is not None
        assert config.key is not None
        self._certificate: Path = config.certificate
        self._key: Path = config.key
        self._minimum = _VERSIONS[config.minimum]
        self._effects = effects
        self._files = TableEffects(effects)
        self._source = source
        self._log = log
        self._warn = warn
        self._context = self._read()

    def context(self) -> ssl.SSLContext:
        """Return what one more connection is encrypted with."""
        self._effects.point("tls", "smtp")
        return self._context

    def update(self) -> str:
        """Read certificate and key again; return in one line what came of it. Connections stay as they are.

        Raises:
            ValueError: they can't be used; those that were read before still count. One line.
        """
        try:
            self._context = self._read()
        except ConfigError as error:
            self._warn(f"tls: {error}; the certificate that was read before is kept")
            raise ValueError(f"{error}; the certificate that was read before is kept") from None
        line = f"read {self._certificate}"
        self._log(f"tls: {line}")
        return line

    def _read(self) -> ssl.SSLContext:
        # Read first, so that what can't be read has its own line. OpenSSL takes nothing but names of files.
        self._check("certificate", self._certificate, _anybody)
        self._check("key", self._key, _private)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self._minimum
        # A client could make us work for nothing: CVE-2011-1473.
        context.options |= ssl.OP_NO_RENEGOTIATION
        try:
            self._effects.point("read", "openssl")
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
            self._effects.done("read", "openssl")
        except _EncryptedKeyError:
            raise self._error("key", self._key, "is encrypted, and nobody is asked") from None
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                problem = f"is not the key of {self._certificate}"
                raise self._error("key", self._key, problem) from None
            raise self._unusable(error) from None
        except OSError as error:
            raise self._error("certificate", self._certificate, _why(error)) from None
        return context

    def _check(self, name: str, path: Path, check: Check) -> None:
        try:
            self._files.read_checked(path, check, max_bytes=_FILE_BYTES, follow=True, site=name)
        except OSError as error:
            raise self._error(name, path, _why(error)) from None

    def _unusable(self, error: ssl.SSLError) -> ConfigError:
        """Return which of the two OpenSSL can't read."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(self._certificate)
        except (ssl.SSLError, OSError):
            return self._error("certificate", self._certificate, "is no certificate in PEM")
        if error.reason in (None, "NO_START_LINE"):
            return self._error("key", self._key, "is no private key in PEM")
        return self._error("certificate", self._certificate, f"can't be used: {describe(error)}")

    def _error(self, name: str, path: Path, problem: str) -> ConfigError:
        return ConfigError(self._source, f"tls.{name}", str(path), problem)


class _EncryptedKeyError(Exception):
    """The private key has a password. OpenSSL would ask for it on the terminal."""


def _no_password() -> str:
    raise _EncryptedKeyError


def _anybody(directory: os.stat_result, found: os.stat_result) -> None:
    pass


def _private(directory: os.stat_result, found: os.stat_result) -> None:
    if found.st_mode & _TOO_OPEN:
        raise RefusedFileError("may be read by others, make it rw-r----- at most")


def _why(error: OSError) -> str:
    if isinstance(error, RefusedFileError):
        return error.why
    return (error.strerror or type(error).__name__).lower()


__all__ = ["Certificates"]
