"""The server's certificate: what can be wrong with it, and reading it again."""

import os
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from mta.certificates import Certificates
from mta.config import Config, TlsConfig
from mta.core.settings import ConfigError, build
from tests.support.faults import FaultyEffects, Plan
from tests.support.tls import Pair, write_pair


def read(pair: Pair, effects: FaultyEffects | None = None, **options) -> Certificates:
    lines: list[str] = []
    config = TlsConfig(pair.certificate, pair.key, **options)
    made = Certificates(
        config,
        effects=effects or FaultyEffects(),
        source="mta.toml",
        log=lines.append,
        warn=lines.append,
    )
    made.lines = lines  # type: ignore[attr-defined]
    return made


def problem(pair: Pair) -> str:
    """Return the one line that a server does not start with."""
    with pytest.raises(ConfigError) as caught:
        read(pair)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.fixture
def pair(tmp_path) -> Pair:
    return write_pair(tmp_path)


def test_a_good_one(pair):
    """TLS 1.2 and later, no renegotiation."""
    context = read(pair).context()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert ssl.TLSVersion.TLSv1_3 is read(pair, minimum="TLSv1.3").context().minimum_version


def _encrypted(pair: Pair) -> None:
    key = load_pem_private_key(pair.key.read_bytes(), None)
    pair.key.write_bytes(
        key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"never asked")
        )
    )


@pytest.mark.parametrize(
    ("spoil", "key", "text"),
    [
        (lambda pair: pair.certificate.unlink(), "certificate", "no such file or directory"),
        (lambda pair: pair.key.unlink(), "key", "no such file or directory"),
        (lambda pair: pair.key.chmod(0o644), "key", "may be read by others, make it rw-r-----"),
        (lambda pair: pair.key.chmod(0o620), "key", "may be read by others"),
        (lambda pair: pair.certificate.write_text("x"), "certificate", "is no certificate in PEM"),
        (lambda pair: pair.key.write_text("x"), "key", "is no private key in PEM"),
        (_encrypted, "key", "is encrypted, and nobody is asked"),
        (
            lambda pair: pair.key.write_bytes(b"x" * 2_000_000),
            "key",
            "is longer than 1048576 bytes",
        ),
        (
            lambda pair: pair.key.write_bytes(
                write_pair(pair.key.parent, stem="other").key.read_bytes()
            ),
            "key",
            "is not the key of",
        ),
    ],
)
def test_what_can_be_wrong(pair, spoil, key, text):
    """One line with file, key, value and what to do."""
    spoil(pair)
    line = problem(pair)
    assert line.startswith(f'mta.toml: tls.{key} = "')
    assert text in line


def test_no_files_are_waited_for(tmp_path, pair):
    """A FIFO has no other end."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "is not a regular file" in problem(Pair(fifo, pair.key))
    assert "tls.certificate" in problem(Pair(tmp_path, pair.key))


def test_one_file_for_both(tmp_path, pair):
    """As many programs have it."""
    both = tmp_path / "both.pem"
    both.touch(mode=0o600)
    both.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
    assert read(Pair(both, both)).context()


def test_read_again(pair):
    """A new one counts for new connections; one that can't be used changes nothing, and says so."""
    made = read(pair)
    first = made.context()
    write_pair(pair.key.parent)
    assert made.update() == f"read {pair.certificate}"
    second = made.context()
    assert second is not first
    pair.key.write_text("x")
    with pytest.raises(
        ValueError, match=r"no private key in PEM; the certificate that was read before is"
    ):
        made.update()
    assert second is made.context()
    assert "is kept" in made.lines[-1]


@pytest.mark.parametrize("number", range(1, 6))
def test_faults_while_reading_again(pair, number):
    """Whatever fails, it is one line, and the old one is kept."""
    effects = FaultyEffects()
    made = read(pair, effects)
    context = made.context()
    effects.plan = Plan(number, lambda: OSError(5, "Input/output error"))
    with pytest.raises(ValueError, match="input/output error"):
        made.update()
    effects.plan = None
    assert context is made.context()
    assert made.update()


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"tls": {"certificate": "x"}}, "tls.key"),
        ({"tls": {"key": "x"}}, "tls.certificate"),
        ({"tls": {"certificate": "x", "key": "x", "minimum": "SSLv3"}}, "tls.minimum"),
        ({"tls": "required"}, 'listeners.0.tls = "required": needs tls.certificate and tls.key'),
        ({"tls": "implicit"}, "listeners.0.tls"),
        ({"tls": "starttls"}, "listeners.0.tls"),
        ({"auth": "optional"}, 'listeners.0.auth = "optional": needs auth.file or auth.users'),
        ({"auth": "required", "users": True}, "needs TLS, or auth_requires_tls = false"),
    ],
)
def test_what_makes_no_sense_is_refused(config, line):
    """When the configuration is read; no file is looked at."""
    if not isinstance(config.get("tls", ""), dict):
        users = {"users": {"alice": "$x"}} if config.pop("users", False) else {}
        config = {"listeners": [{"name": "a", "address": "127.0.0.1:0", **config}], "auth": users}
    with pytest.raises(ConfigError) as caught:
        build(Config, config, source="mta.toml")
    assert line in str(caught.value)


def test_without_files_nothing_is_asked():
    """The defaults have no TLS."""
    assert TlsConfig().certificate is None
    assert Path("x") == build(Config, {"tls": {"certificate": "x", "key": "x"}}, source="x").tls.key
