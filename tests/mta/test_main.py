"""The `mta` command: what it prints, and how it says no."""

import json

import pytest
from typer.testing import CliRunner

from mta.__main__ import app

run = CliRunner().invoke


def test_check_says_ok(tmp_path):
    """The file's name, and status 0; without a file, the defaults."""
    path = tmp_path / "mta.toml"
    path.write_text('hostname = "mx.test"\n')
    assert f"{path}: ok\n" == run(app, ["check", "-c", str(path)]).stdout
    assert "defaults: ok\n" == run(app, ["check"]).stdout


@pytest.mark.parametrize("command", ["check", "config", "serve"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hostnam = 1\n", "hostnam = 1"),
        ("[limits.smtp]\nmax_rcpt = 1.5\n", "limits.smtp.max_rcpt = 1.5"),
        ('envelope = "fat"\n', 'envelope = "fat"'),
        ("[", "not TOML"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, command, text, words):
    """File, key and value, on standard error, with status 2, whatever was asked for."""
    path = tmp_path / "mta.toml"
    path.write_text(text)
    done = run(app, [command, "-c", str(path)])
    assert 2 == done.exit_code
    assert "" == done.stdout
    assert 1 == done.stderr.count("\n")
    assert done.stderr.startswith(f"mta: {path}: ")
    assert words in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[tls]\ncertificate = "none.pem"\nkey = "none.pem"\n', 'tls.certificate = "none.pem"'),
        ('[auth]\nfile = "nobody"\n', 'auth.file = "nobody": no such file'),
        ('[relay]\nca_file = "none.pem"\n', 'relay.ca_file = "none.pem": no such file'),
        ('[smtp]\nlisten = "127.0.0.1:99999"\n', 'smtp.listen = "127.0.0.1:99999"'),
        ('[smtp]\nproxy_networks = ["10.0.0.0/33"]\n', 'smtp.proxy_networks.0 = "10.0.0.0/33"'),
        ('[dns]\nnameserver = "here"\n', 'dns.nameserver = "here"'),
        ('[control]\nmetrics = "here"\n', 'control.metrics = "here"'),
        ('[log]\ntrace = ["mail"]\n', 'log.trace.0 = "mail"'),
        (
            '[tables.a]\npath = "none"\n[[rules]]\nname = "r"\nmatch_domains = ["*"]\n'
            'action = "local"\naliases = "a"\n',
            "none: No such file",
        ),
    ],
)
def test_check_reads_what_the_file_names(tmp_path, monkeypatch, text, words):
    """Certificates, users, tables, addresses: what would keep the server from starting is said before."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mta.toml"
    path.write_text(text)
    done = run(app, ["check", "-c", str(path)])
    assert 2 == done.exit_code
    assert 1 == done.stderr.count("\n")
    assert words in done.stderr
    assert [path] == list(tmp_path.iterdir())


def test_a_file_that_is_not_there_is_named(tmp_path):
    """With the system's word for it."""
    done = run(app, ["check", "-c", str(tmp_path / "none")])
    assert 2 == done.exit_code
    assert f"mta: {tmp_path / 'none'}: no such file or directory\n" == done.stderr


def test_config_prints_every_key():
    """As postconf does; with --changed as postconf -n; with --json one object."""
    done = run(app, ["config"])
    assert 'hostname = "localhost.localdomain"\n' in done.stdout
    assert "limits.mta.max_conn_per_host = 10\n" in done.stdout
    done = run(app, ["config", "--changed", "--set", "limits.mta.max_conn_per_host=3"])
    assert "limits.mta.max_conn_per_host = 3\n" == done.stdout
    done = run(app, ["config", "--json", "-s", "envelope=packed"])
    assert "packed" == json.loads(done.stdout)["envelope"]


def test_without_a_command_there_is_help():
    """And no server."""
    done = run(app, [])
    assert "serve" in done.output
