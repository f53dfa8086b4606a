"""`mtactl`: what an operator types to see and steer a running server. The words are smtpctl's.

Each word may be cut short as long as it stays clear: ``mtactl sh q`` is ``mtactl show queue``. On a
terminal there are tables; in a pipe, lines as smtpctl prints them; with ``--json``, JSON.

Exit status: 0 done; 1 there is no such thing, or the server could not; 2 asked wrongly, or no server.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TextIO

SOCKET: Final = "var/control.sock"
"""Where the server's configuration puts the socket if nothing else is said."""
TIMEOUT_S: Final = 60.0
"""Longest wait for the next line of an answer, seconds."""


class CtlError(Exception):
    """What keeps us from doing what was asked; one line."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status
        """Exit status."""


@dataclass(frozen=True, slots=True)
class Verb:
    """One thing that can be asked."""

    words: str
    """In full, as the server knows it."""
    argument: str
    """What follows: ``NAME``, ``[NAME]`` if it may be left out, ``[for NAME]`` for one with a word before it; words
    with names may come in any order."""
    field: str
    """The fields of the request that the arguments go to, in their order."""
    help: str
    """One line."""


VERBS: Final = (
    Verb("show queue", "[MSGID]", "id", "envelopes in the queue"),
    Verb("show envelope", "EVPID", "id", "everything that is known of one envelope"),
    Verb("show message", "MSGID", "id", "header and body of a message"),
    Verb("show stats", "", "", "counters and gauges"),
    Verb("show relays", "", "", "destinations, and what they wait for"),
    Verb("show routes", "", "", "pairs of source and host, and their penalties"),
    Verb("show hosts", "", "", "hosts that were connected to"),
    Verb("show hoststats", "", "", "what each destination said last, of four hours"),
    Verb("show users", "", "", "users with local mail to do"),
    Verb("show shape", "", "", "age of queued mail by destination, minutes (as qshape)"),
    Verb("show limits", "[PATTERN]", "pattern", "limits, and which can change now"),
    Verb("show profile", "", "", "where the time went since profile"),
    Verb("show mta paused", "", "", "domains and users that are paused one by one"),
    Verb("show sessions", "", "", "open connections, both ways"),
    Verb("show status", "", "", "what runs and what is paused"),
    Verb("monitor", "", "", "a line of counters each second (-n COUNT, -i SECONDS)"),
    Verb("top", "", "", "rates, queue, memory, slowest destinations, live (--once)"),
    Verb("schedule", "EVPID|MSGID|all", "id", "try envelopes now"),
    Verb("remove", "EVPID|MSGID|all", "id", "delete envelopes; nobody is told"),
    Verb("pause envelope", "EVPID|MSGID|all", "id", "leave envelopes alone until they are resumed"),
    Verb(
        "discover", "EVPID|MSGID", "id", "take over envelopes that were put into the queue by hand"
    ),
    Verb(
        "pause mta", "[for DOMAIN] [from ADDRESS]", "only source", "stop relaying, or to one domain"
    ),
    Verb("pause mda", "[for USER]", "only", "stop local delivery, or that of one user"),
    Verb("pause smtp", "", "", "stop accepting mail"),
    Verb("resume envelope", "EVPID|MSGID|all", "id", "let paused envelopes go on"),
    Verb("resume mta", "[for DOMAIN] [from ADDRESS]", "only source", "relay again"),
    Verb("resume mda", "[for USER]", "only", "deliver local mail again"),
    Verb("resume smtp", "", "", "accept mail again"),
    Verb("resume route", "ADDRESS", "address", "use a route again that rests after failures"),
    Verb("expand", "ADDRESS", "address", "what an address becomes, as a tree; no mail is sent"),
    Verb("set", "limits.KEY=VALUE", "assignment", "change a limit until the next start"),
    Verb("update table", "NAME", "table", "read a table again now"),
    Verb("update tls", "", "", "read the certificate again now"),
    Verb("update auth", "", "", "read the users who may log in again now"),
    Verb("update relay", "", "", "read authorities and passwords for other hosts again now"),
    Verb("encrypt", "", "", "hash a password, asked for or from stdin"),
    Verb("profile", "", "", "measure time per stimulus, instruction and effect"),
    Verb("unprofile", "", "", "stop that"),
    Verb(
        "trace",
        "SUBSYSTEM [ABOUT]",
        "subsystem only",
        "log what a subsystem does (--follow: show it here)",
    ),
    Verb("untrace", "SUBSYSTEM", "subsystem", "stop that"),
    Verb("log brief", "", "", "no debug lines in the log"),
    Verb("log verbose", "", "", "debug lines in the log"),
)


LOCAL: Final = frozenset({"encrypt"})
"""Verbs that no server is asked for."""


def find_verb(words: Sequence[str]) -> tuple[Verb, list[str]]:
    """Return the verb that words, or beginnings of words, mean, and the words after it.

    Raises:
        CtlError: no verb, or more than one.
    """
    candidates = list(VERBS)
    for depth in range(max(len(verb.words.split()) for verb in VERBS)):
        here = [verb for verb in candidates if len(verb.words.split()) > depth]
        if not here:
            break
        choices = list(dict.fromkeys(verb.words.split()[depth] for verb in here))
        before = " ".join(candidates[0].words.split()[:depth])
        if depth >= len(words):
            missing = ", ".join(choices)
            where = f"{before}: " if before else ""
            raise CtlError(f"{where}what? One of {missing}; see mtactl --help", 2)
        word = choose(words[depth], choices, before)
        candidates = [verb for verb in here if verb.words.split()[depth] == word]
    (verb,) = candidates
    return verb, list(words[len(verb.words.split()) :])


def choose(word: str, choices: Sequence[str], before: str = "") -> str:
    """Return the choice that a word, or the beginning of one, means.

    Raises:
        CtlError: none, or more than one.
    """
    found = [word] if word in choices else [choice for choice in choices if choice.startswith(word)]
    if len(found) == 1 and word:
        return found[0]
    where = f"{before}: " if before else ""
    if found and word:
        raise CtlError(f"{where}{word!r} may be {' or '.join(found)}", 2)
    raise CtlError(f"{where}no {word!r}; there are {', '.join(choices)}", 2)


def read_argument(verb: Verb, rest: Sequence[str]) -> dict[str, str]:
    """Return the argument of a verb as fields of a request.

    Raises:
        CtlError: it is missing, or there are more.
    """
    found: dict[str, str] = {}
    words = list(rest)
    for wanted, field in zip(_arguments(verb), verb.field.split(), strict=True):
        if wanted.word:
            if wanted.word in words[:-1:2]:
                at = words.index(wanted.word)
                found[field] = words[at + 1]
                del words[at : at + 2]
        elif words:
            found[field] = words.pop(0)
        elif not wanted.optional:
            raise CtlError(f"{verb.words}: {wanted.name} is missing", 2)
    if words:
        raise CtlError(f"{verb.words}: unexpected {words[0]!r}", 2)
    if "subsystem" in found:
        from mta.trace import ALL, SUBSYSTEMS

        found["subsystem"] = choose(found["subsystem"], (*SUBSYSTEMS, ALL), verb.words)
    return found


@dataclass(frozen=True, slots=True)
class _Argument:
    """One argument of a verb."""

    word: str
    """What stands before it, or nothing."""
    name: str
    optional: bool


def _arguments(verb: Verb) -> list[_Argument]:
    """Take `Verb.argument` apart."""
    found = []
    for bracketed, plain_name in re.findall(r"\[([^]]*)\]|(\S+)", verb.argument):
        word, _, name = (bracketed or plain_name).rpartition(" ")
        found.append(_Argument(word, name, bool(bracketed)))
    return found


class Client:
    """A connection to a server's control socket."""

    def __init__(self, path: Path) -> None:
        """Connect.

        Raises:
            CtlError: no server there, or it does not let us in.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT_S)
        self.end: dict[str, Any] = {}
        """The last line of the last answer."""
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            if isinstance(error, FileNotFoundError | ConnectionRefusedError):
                raise CtlError(f"{path}: the server is not running", 2) from None
            raise CtlError(f"{path}: {error.strerror or error}", 2) from None
        self._file = self._socket.makefile("rb")

    def ask(self, request: dict[str, Any], *, patient: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the rows of an answer.

        Args:
            request: what is asked.
            patient: wait for rows as long as it takes.

        Raises:
            CtlError: the server refused, or the connection ended before the answer did.
        """
        with contextlib.suppress(
            OSError
        ):  # it hung up; what it said before that is still to be read
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        if patient:
            self._socket.settimeout(None)
        while True:
            try:
                line = self._file.readline()
            except TimeoutError:
                raise CtlError(f"no answer within {TIMEOUT_S:.0f} seconds", 2) from None
            except ConnectionError:
                line = b""
            if not line.endswith(b"\n"):
                raise CtlError("the connection ended before the answer did", 2)
            answer = json.loads(line)
            if "error" in answer:
                raise CtlError(answer["error"], 2 if answer.get("usage") else 1)
            if "end" in answer:
                self.end = answer["end"]
                return
            if "row" in answer:
                yield answer["row"]

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._file.close()
        self._socket.close()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CtlError(message, 2)

    def format_help(self) -> str:
        columns = max(80, min(shutil.get_terminal_size().columns, 120))
        lead = max(len(verb.words) + len(verb.argument) for verb in VERBS) + 5

        def entry(words: str, text: str) -> str:
            return textwrap.fill(
                text,
                columns,
                initial_indent=f"  {words}".ljust(lead),
                subsequent_indent=" " * lead,
                break_on_hyphens=False,
            )

        options = (
            ("-s, --socket PATH", f"the server's socket (MTA_CONTROL, or {SOCKET})"),
            ("--json", "JSON, one object a line"),
            ("-n COUNT, -i SECONDS", "monitor, top: how often, and time between them"),
            ("--once", "top: once, rates since the server's start"),
            ("-f, --follow", "trace: show the lines here until interrupted; not in the log"),
        )
        lines = [
            "usage: mtactl [-s SOCKET] [--json] VERB ...",
            "",
            "See and steer a running server. Words may be cut short: mtactl sh q",
            "",
            *(entry(f"{verb.words} {verb.argument}", verb.help) for verb in VERBS),
            "",
            *(entry(words, text) for words, text in options),
            "",
            textwrap.fill(
                "An EVPID has 16 hexadecimal digits, a MSGID 8; ABOUT is an address or one of these. Exit status: 0 done;"
                " 1 no such thing, or it could not be done; 2 asked wrongly, or the server is not running.",
                columns,
            ),
            "",
        ]
        return "\n".join(lines)


def _parser() -> _Parser:
    parser = _Parser(prog="mtactl", allow_abbrev=False)
    parser.add_argument("-s", "--socket", default=os.environ.get("MTA_CONTROL", SOCKET), type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("-n", "--count", type=int)
    parser.add_argument("-i", "--interval", type=float)
    parser.add_argument("-f", "--follow", action="store_true")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("words", nargs="*")
    return parser


def _request(options: argparse.Namespace) -> tuple[Verb, dict[str, Any]]:
    verb, rest = find_verb(options.words)
    request: dict[str, Any] = {"verb": verb.words, **read_argument(verb, rest)}
    if options.once and verb.words != "top":
        raise CtlError(f"{verb.words}: --once is for top", 2)
    if options.count is not None and options.count < 1:
        raise CtlError(f"-n {options.count}: at least 1", 2)
    if verb.words == "monitor":
        request["count"] = options.count or 0
        request["interval_s"] = 1.0 if options.interval is None else options.interval
    elif verb.words == "top":
        if options.interval is not None and not 0.1 <= options.interval <= 3600:
            raise CtlError(f"-i {options.interval:g}: 0.1 to 3600", 2)
    elif options.count is not None or options.interval is not None:
        raise CtlError(f"{verb.words}: -n and -i are for monitor and top", 2)
    if options.follow:
        if verb.words != "trace":
            raise CtlError(f"{verb.words}: --follow is for trace", 2)
        request["follow"] = True
    return verb, request


def run(arguments: Sequence[str], out: TextIO) -> int:
    """Do what the arguments say, write to ``out``, and return the exit status.

    Raises:
        CtlError: it can't be done.
    """
    options = _parser().parse_intermixed_args(arguments)
    verb, request = _request(options)
    if verb.words == "encrypt":
        from mta.ctlencrypt import hashes

        try:
            out.writelines(f"{line}\n" for line in hashes(sys.stdin))
        except ValueError as error:  # UnicodeDecodeError is one
            raise CtlError(f"encrypt: {error}", 2) from None
        return 0
    # Why so late? Rendering loads rich, and a wrong word should be told at once.
    from mta.ctlshow import show

    client = Client(options.socket)
    try:
        rows = client.ask(request, patient=verb.words == "monitor" or options.follow)
        mode: Literal["json", "terminal", "pipe"]
        mode = "json" if options.json else "terminal" if out.isatty() else "pipe"
        if verb.words == "top":
            from mta.ctltop import show_top

            def poll() -> dict[str, Any]:
                (row,) = client.ask(request)
                return row

            count = 1 if options.once else options.count
            interval_s = 1.0 if options.interval is None else options.interval
            show_top(poll, out, mode, count=count, interval_s=interval_s, sleep=time.sleep)
            return 0
        show(verb.words, rows, out=out, mode=mode, now=time.time(), end=lambda: client.end)
    except KeyError as error:
        raise CtlError(f"{verb.words}: the server's answer has no {error}", 1) from error
    else:
        touched = client.end.get("envelopes")
        return 1 if touched == 0 and request.get("id") != "all" else 0
    finally:
        client.close()


def main() -> None:
    """Run `mtactl`."""
    try:
        status = run(sys.argv[1:], sys.stdout)
        sys.stdout.flush()
    except CtlError as error:
        print(f"mtactl: {error}", file=sys.stderr)
        status = error.status
    except KeyboardInterrupt:
        status = 0  # how monitor, top and trace --follow end
    except BrokenPipeError:
        # Whoever read (head, a pager) has enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


if __name__ == "__main__":
    main()
