"""What an alias, a virtual address or a ``.forward`` may say, and how it is written.

One entry is a reply, a file to include, a command, a file, an address or a user; they are tried in this
order. Reading is strict and total: any text is either entries or a `ParseError` that says where and why, in
linear time. What a text says is never repeated in an error: it may come from a file that nobody else may read.

Sources: OpenSMTPD to.c (``text_to_expandnode``), expand.c (``expand_line``), table_static.c; Postfix aliases(5)
for continuation lines. Two things OpenSMTPD does otherwise: there an apostrophe opens a quoted string, so
that ``o'neil@a.test, d'arcy@a.test`` is one bad entry, and any ``#`` begins a comment, also in ``a#b@a.test``.
Here an apostrophe quotes in commands only, and a comment begins a line or follows white space.
"""

import enum
import re
import string
from collections.abc import Iterator
from typing import NamedTuple

from mta.core.address import domain_key, parse_path
from mta.core.reply import Reply

LINE_MAX = 2048
"""Bytes of a line, its continuations included. OpenSMTPD: LINE_MAX, in expand.c."""

USER_MAX = 255
"""Characters of a user's name in an entry; as long as a local part may be (`mta.core.address`)."""


class EntryKind(enum.Enum):
    """What an entry is; the words of OpenSMTPD's ``enum expand_type`` where they say it."""

    ERROR = "error"
    INCLUDE = "include"
    COMMAND = "command"
    FILE = "file"
    ADDRESS = "address"
    USER = "user"


class Entry(NamedTuple):
    """One of the things that an address stands for."""

    kind: EntryKind
    text: str
    """The address, the user, the absolute path, the command without its ``|``, or the reply as written."""
    domain: str = ""
    """What an address is routed by; see `mta.core.address.Path`."""
    reply: Reply | None = None
    """What an error answers."""

    def __str__(self) -> str:
        """Return the entry as it is written."""
        match self.kind:
            case EntryKind.ERROR:
                return f"error:{self.text}"
            case EntryKind.INCLUDE:
                return f":include:{self.text}"
            case EntryKind.COMMAND:
                return f"|{self.text}"
            case _:
                return self.text


class ParseError(NamedTuple):
    """Where a text can't be read, and why. Says nothing of what the text says."""

    line: int
    """From 1."""
    why: str

    def __str__(self) -> str:
        """Return ``line 3: why``."""
        return f"line {self.line}: {self.why}"


_USER = re.compile(rf"[A-Za-z0-9_.+-]{{1,{USER_MAX}}}")
_ERROR = re.compile(
    r"([45][0-9]{2}) +(?:([45]\.[0-9]{1,3}\.[0-9]{1,3}) +)?([A-Za-z0-9][ -~]*)", re.ASCII
)
_PREFIX = re.compile(r":?(error|include):[ \t]*", re.IGNORECASE)
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_COMMENT = re.compile(r"(?:^|[ \t])#")
_KEY = re.compile(r'(?:"([^"\\]*)"|([^\s:"]+))(?:[ \t]*:[ \t]*|[ \t]+|$)')
_SPECIAL = re.compile(r"[\"'\\#]")
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def fold(local: str) -> str:
    """Return a local part or a user's name with ASCII letters in lower case, and only those.

    Why not `str.lower`? It makes ``k`` of the Kelvin sign: one user's mail would be another's.
    """
    return local.lower() if local.isascii() else local.translate(_LOWER)


def decode(data: bytes) -> str | ParseError:
    """Return a file's text, or say which line is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return ParseError(data.count(b"\n", 0, error.start) + 1, "is not UTF-8")


def parse_entries(text: str) -> list[Entry] | ParseError:
    """Return the entries of a ``.forward``, an included file, or the value of one alias.

    Entries are separated by commas and line ends. A backslash before a line end continues the line.
    """
    entries: list[Entry] = []
    for number, line in _lines(text, indented=False):
        found = _unreadable(line) or _entries_of(line)
        if isinstance(found, str):
            return ParseError(number, found)
        entries += found
    return entries


def parse_aliases(text: str) -> dict[str, tuple[Entry, ...]] | ParseError:
    """Return an alias file: ``key: entry, ...`` per line, keys as `alias_key` gives them.

    The colon may be white space. A line that begins with white space continues the one before
    (Postfix aliases(5)), and so does the line after a backslash (OpenSMTPD). A key that is given twice is an
    error: of two answers, one would be a surprise.
    """
    aliases: dict[str, tuple[Entry, ...]] = {}
    for number, line in _lines(text, indented=True):
        why = _unreadable(line)
        match = _KEY.match(line)
        if why is not None or match is None:
            return ParseError(number, why or "must be key: entry, ...")
        key = alias_key(match[2] if match[1] is None else match[1])
        if key is None:
            return ParseError(number, "the key is neither a name nor an address")
        if key in aliases:
            return ParseError(number, "the key was given before")
        found = _entries_of(line[match.end() :])
        if isinstance(found, str):
            return ParseError(number, found)
        if not found:
            return ParseError(number, "the key has no entries")
        aliases[key] = tuple(found)
    return aliases


def parse_domains(text: str) -> dict[str, tuple[Entry, ...]] | ParseError:
    """Return a file of domains, one per line, as `mta.core.address.domain_key` gives them, without entries."""
    domains: dict[str, tuple[Entry, ...]] = {}
    for number, line in _lines(text, indented=False):
        name = line.strip(" \t")
        key = domain_key(name)
        if key is None:
            return ParseError(number, _unreadable(line) or "must be one domain")
        domains[key] = ()
    return domains


def alias_key(key: str) -> str | None:
    """Return ``user``, ``user@domain``, ``@domain`` or ``@`` as it is looked up, or None if it is none.

    The local part is folded, the domain in A-labels: so is what looks for it.
    """
    local, at, domain = key.rpartition("@")
    if not at:
        local, domain = key, ""
    elif domain:
        found = domain_key(domain)
        if found is None:
            return None
        domain = found
    elif local:
        return None
    if not (local or at) or _CONTROL.search(local) or len(local.encode()) > USER_MAX:
        return None
    return f"{fold(local)}{at}{domain}"


def parse_entry(token: str, *, raw: str | None = None) -> Entry | str:
    """Return one entry, or what is wrong with it.

    Args:
        token: without the white space and the quotes around it, backslashes resolved.
        raw: the token as it was written; a quoted local part needs its backslashes.
    """
    prefix = _PREFIX.match(token)
    if prefix is not None:
        rest = token[prefix.end() :]
        return _error(rest) if prefix[1].lower() == "error" else _file(rest, EntryKind.INCLUDE)
    if token[:1] == "|":
        command = token[1:].strip(" \t")
        return Entry(EntryKind.COMMAND, command) if command else "there is no command after |"
    if token[:1] == "/":
        return _file(token, EntryKind.FILE)
    if "@" in token:
        quoted = raw if raw is not None and raw[:1] == '"' else token
        path = parse_path(f"<{quoted}>")
        if path is None or not path.address:
            return "an address is malformed"
        return Entry(EntryKind.ADDRESS, path.address, path.domain)
    if _USER.fullmatch(token):
        return Entry(EntryKind.USER, token)
    return "an entry is neither an address, a user, a file, a command, an include nor an error"


def _file(path: str, kind: EntryKind) -> Entry | str:
    if path[:1] != "/":
        return "a path must be absolute"
    if "/../" in f"{path}/":
        return "a path must not go up with .."
    return Entry(kind, path)


def _error(text: str) -> Entry | str:
    match = _ERROR.fullmatch(text)
    if match is None:
        return "an error must be 4xx or 5xx and a text in ASCII"
    code, enhanced = int(match[1]), match[2] or ""
    if code == 421:
        # It would end the client's connection (RFC 5321 3.8), and with it mail for others.
        code = 450
    if enhanced[:1] != match[1][0]:
        # RFC 3463 X.2.0: something about this mailbox. A class that contradicts the code goes, too.
        enhanced = f"{match[1][0]}.2.0"
    return Entry(EntryKind.ERROR, text, reply=Reply(code, enhanced, match[3].rstrip()))


def _unreadable(line: str) -> str | None:
    """Return why a line can't be read at all, or None."""
    if len(line.encode("utf-8", "replace")) > LINE_MAX:
        return f"is longer than {LINE_MAX} bytes"
    return "has a control character" if _CONTROL.search(line) else None


def _entries_of(line: str) -> list[Entry] | str:
    """Return the entries of one line, or what is wrong with it."""
    tokens = _split(line)
    if isinstance(tokens, str):
        return tokens
    entries = []
    for token, raw in tokens:
        if not token:
            continue
        entry = parse_entry(token, raw=raw)
        if isinstance(entry, str):
            return entry
        entries.append(entry)
    return entries


def _split(line: str) -> list[tuple[str, str]] | str:
    """Split a line at commas into (token, as written), or say what is wrong with it."""
    if not _SPECIAL.search(line):
        return [(token, token) for token in map(str.strip, line.split(","))]
    tokens: list[tuple[str, str]] = []
    cooked: list[str] = []
    start, closed_at, first, quote, escaped = 0, -1, "", "", False
    for position, letter in enumerate(f"{line},"):
        if escaped:
            assert position < len(line), "a backslash at the end of a line continues it"
            cooked.append(letter)
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter == "," and not quote:
            raw = line[start:position].strip(" \t")
            token = "".join(cooked).strip(" \t")
            # A string from one end of the token to the other: what is inside is meant.
            if raw[:1] == '"' and not line[closed_at + 1 : position].strip(" \t"):
                token = token[1:-1].strip(" \t")
            tokens.append((token, raw))
            cooked, start, closed_at, first = [], position + 1, -1, ""
        else:
            first = first or letter.strip(" \t")
            if letter == quote:
                quote = ""
                if closed_at < 0:
                    closed_at = position
            elif not quote and (letter == '"' or (letter == "'" and first == "|")):
                quote = letter
            cooked.append(letter)
    return "a quoted string does not end" if quote else tokens


def _lines(text: str, *, indented: bool) -> Iterator[tuple[int, str]]:
    """Yield the logical lines that say something, each with the number of the line where it begins.

    Args:
        text: what to read.
        indented: a line that begins with white space continues the one before.
    """
    begun, parts, continues = 0, "", False
    for number, line in enumerate(text.split("\n"), start=1):
        rest = line.removesuffix("\r")
        if "#" in rest:
            rest = _without_comment(rest)
            if not rest.strip(" \t") and not continues:
                continue
        joined = continues or (indented and rest[:1] in (" ", "\t") and bool(parts))
        if not joined:
            if parts.strip(" \t"):
                yield begun, parts
            begun, parts = number, ""
        continues = rest.endswith("\\") and (len(rest) - len(rest.rstrip("\\"))) % 2 == 1
        if len(parts) <= LINE_MAX:  # the rest of a line that is too long already is not needed
            parts += rest[:-1] if continues else rest
    if parts.strip(" \t"):
        yield begun, parts


def _without_comment(line: str) -> str:
    """Return a line up to its comment; in a quoted string there is none."""
    if '"' not in line and "\\" not in line:
        match = _COMMENT.search(line)
        return line if match is None else line[: match.start()]
    quoted = escaped = False
    for position, letter in enumerate(line):
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter == '"':
            quoted = not quoted
        elif letter == "#" and not quoted and (position == 0 or line[position - 1] in " \t"):
            return line[:position]
    return line
