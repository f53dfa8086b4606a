"""The control socket of a running world, and who asks there: ``testbed world set`` and ``testbed world show``.

JSON lines over a Unix socket that only its owner can open. Each world has one in ``testbed-<uid>`` below the runtime
directory, unless it is told another place. Bounded: connections, the length of a line, the time of one.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from mta.core.settings import ConfigError

CONNECTIONS_MAX: Final = 20
"""Connections at a time; more are closed at once."""

LINE_MAX: Final = 65_536
"""Bytes of a request."""

IDLE_S: Final = 60.0
"""A connection that asks nothing for so long is closed."""

ANSWER_S: Final = 15.0
"""Longest wait for an answer."""

Ask = Callable[[bytes], Awaitable[dict[str, Any]]]


def directory() -> Path:
    """Return where the sockets of this user's worlds are."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(base) / f"testbed-{os.getuid()}"


@contextlib.asynccontextmanager
async def control(path: Path | None, ask: Ask) -> AsyncIterator[Path]:
    """Serve requests on a socket; the path is ``world-<pid>`` in `directory` if none is given.

    Raises:
        ConfigError: the socket can't be made there.
    """
    open_ = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_
        open_ += 1
        try:
            while open_ <= CONNECTIONS_MAX:
                async with asyncio.timeout(IDLE_S):
                    line = await reader.readline()
                if not line.endswith(b"\n"):
                    return
                writer.write(msgspec.json.encode(await ask(line)) + b"\n")
                await writer.drain()
        except (TimeoutError, ValueError, ConnectionError):
            pass  # it says nothing, too much, or is gone
        finally:
            open_ -= 1
            writer.close()

    where = path or directory() / f"world-{os.getpid()}"
    try:
        if path is None:
            where.parent.mkdir(mode=0o700, exist_ok=True)
            if where.parent.stat().st_uid != os.getuid():
                raise ConfigError(
                    "--control", value=str(where.parent), problem="is somebody else's"
                )
        where.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(serve, where, limit=LINE_MAX)
        finally:
            os.umask(mask)
    except OSError as error:
        problem = str(error.strerror or error)
        raise ConfigError("--control", value=str(where), problem=problem) from None
    try:
        yield where
    finally:
        server.close()
        where.unlink(missing_ok=True)


def request(path: Path | None, what: dict[str, Any]) -> dict[str, Any]:
    """Ask a world; the only one that runs, if no path is given.

    Raises:
        ConfigError: there is none, there are several, or it refuses: its own words.
    """
    sock = _connected(path)
    with sock, sock.makefile("rb") as answers:
        try:
            sock.sendall(msgspec.json.encode(what) + b"\n")
            line = answers.readline()
        except OSError:
            line = b""
    if not line.endswith(b"\n"):
        raise ConfigError("--control", problem="the world does not answer")
    answer: dict[str, Any] = msgspec.json.decode(line)
    if answer.get("event") == "error":
        raise ConfigError("world", problem=str(answer.get("problem")))
    return answer


def _connected(path: Path | None) -> socket.socket:
    paths = [path] if path is not None else sorted(directory().glob("world-*"))
    found: list[tuple[Path, socket.socket]] = []
    for each in paths:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(ANSWER_S)
        try:
            sock.connect(str(each))
        except OSError:
            sock.close()  # of a world that was killed
        else:
            found.append((each, sock))
    if len(found) == 1:
        return found[0][1]
    for _, sock in found:
        sock.close()
    if found:
        names = ", ".join(str(each) for each, _ in found)
        raise ConfigError("--control", problem=f"several worlds run: name one of {names}")
    where = "" if path is None else str(path)
    raise ConfigError("--control", value=where, problem="no world runs there")


def parser() -> argparse.ArgumentParser:
    """Return what reads the command lines of ``set`` and ``show``."""
    made = argparse.ArgumentParser(prog="testbed world", description=__doc__.splitlines()[0])
    verbs = made.add_subparsers(dest="verb", required=True)
    setter = verbs.add_parser("set", help="change groups of a running world")
    setter.add_argument("changes", nargs="+", metavar="GROUP.key=value")
    show = verbs.add_parser("show", help="what the groups of a running world are like")
    show.add_argument("--json", action="store_true", help="as JSON")
    for each in (setter, show):
        each.add_argument("--control", type=Path, metavar="PATH", help="the world's control socket")
    return made


def main(argv: Sequence[str]) -> int:
    """Run ``set`` or ``show``; return the exit status: 0, or 2 if the world refused or is not there."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.verb == "set":
            answer = request(arguments.control, {"cmd": "set", "changes": arguments.changes})
            sys.stdout.write(f"changed: {', '.join(answer['groups'])}\n")
            return 0
        answer = request(arguments.control, {"cmd": "show"})
    except ConfigError as error:
        sys.stderr.write(f"testbed world: {error}\n")
        return 2
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(answer["groups"]).decode() + "\n")
        return 0
    for row in answer["groups"]:
        what = [row["profile"], *(each.get("kind", "") for each in row["behaviours"])]
        said = ", ".join(filter(None, what)) or "accepts"
        tls = "" if row["tls"] == "none" else f", TLS {row['tls']}"
        sys.stdout.write(
            f"{row['group']}: {said}{tls}; "
            f"{row['listening']} of {row['hosts']} hosts listen, {row['open']} connections\n"
        )
    return 0
