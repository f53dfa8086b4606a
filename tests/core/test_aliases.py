"""The entries of aliases and .forward files: what each is, where it ends, and what is none."""

import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.aliases import (
    LINE_MAX,
    Entry,
    EntryKind,
    ParseError,
    alias_key,
    decode,
    fold,
    parse_aliases,
    parse_domains,
    parse_entries,
)
from mta.core.reply import Reply

ADDRESS, USER, FILE = EntryKind.ADDRESS, EntryKind.USER, EntryKind.FILE
COMMAND, INCLUDE, ERROR = EntryKind.COMMAND, EntryKind.INCLUDE, EntryKind.ERROR


def entries(text: str) -> list[tuple[EntryKind, str]]:
    found = parse_entries(text)
    assert isinstance(found, list), (text, found)
    return [(entry.kind, entry.text) for entry in found]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("alice", USER, "alice"),
        ("Alice_B.c-d+tag", USER, "Alice_B.c-d+tag"),
        ("\\alice", USER, "alice"),
        ("bob@Example.TEST", ADDRESS, "bob@example.test"),
        ("o'neil@a.test", ADDRESS, "o'neil@a.test"),
        ("a#b@a.test", ADDRESS, "a#b@a.test"),
        ('"a b"@a.test', ADDRESS, '"a b"@a.test'),
        ('"a,b\\"c"@a.test', ADDRESS, '"a,b\\"c"@a.test'),
        ("b\u00fccher@b\u00fccher.test", ADDRESS, "b\u00fccher@b\u00fccher.test"),
        ("|/bin/cat", COMMAND, "/bin/cat"),
        ("| /bin/cat -n ", COMMAND, "/bin/cat -n"),
        ('"|/bin/cat a, b"', COMMAND, "/bin/cat a, b"),
        ('"|/bin/cat \\"a b\\""', COMMAND, '/bin/cat "a b"'),
        ("|/bin/cat 'a, b'", COMMAND, "/bin/cat 'a, b'"),
        ('|/bin/cat "a, b"', COMMAND, '/bin/cat "a, b"'),
        ("|x@y", COMMAND, "x@y"),
        ("/var/mail/list", FILE, "/var/mail/list"),
        ('"/var/mail/a, b"', FILE, "/var/mail/a, b"),
        ("/a@b.test", FILE, "/a@b.test"),
        (":include:/etc/list", INCLUDE, "/etc/list"),
        ("include:/etc/list", INCLUDE, "/etc/list"),
        (":INCLUDE: /etc/list", INCLUDE, "/etc/list"),
        ("error:550 gone", ERROR, "550 gone"),
        (":error:450 4.2.1 Back soon", ERROR, "450 4.2.1 Back soon"),
    ],
)
def test_one_entry(text, kind, value):
    """Each syntax of 6.2 is what OpenSMTPD takes it for."""
    assert entries(text) == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "@a.test", "a@", "a@b c", "a b", "user!", "a@b@c", "<a@b.test>", "|", '"|"', "| ", ":include:list",
        "include:", "/a/../b", "/..", ":include:/../etc", "error:550", "error:550 ", "error:250 fine",
        "error:5x0 no", "error:550 \u00fcber", "error:650 x", '"open', "|'open", "x" * 256, "a\x00b",
        "a\x7f", "\u2028", "caf\u00e9", "a@b_c.test", "a@-b.test",
    ],
)  # fmt: skip
def test_what_is_no_entry(text):
    """A bad entry makes the whole text bad; the error says the line and repeats nothing of it."""
    found = parse_entries(f"good\n{text}\nalso")
    assert isinstance(found, ParseError), found
    assert found.line == 2
    assert len(text) < 3 or text not in str(found)


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("error:550 gone", Reply(550, "5.2.0", "gone")),
        ("error:551 5.1.6 Moved away", Reply(551, "5.1.6", "Moved away")),
        ("error:450 5.1.1 odd", Reply(450, "4.2.0", "odd")),
        ("error:421 4.3.2 go away", Reply(450, "4.3.2", "go away")),
    ],
)
def test_replies_of_errors(text, reply):
    """The code is the entry's, the enhanced code fits it, and 421 never closes the client's connection."""
    found = parse_entries(text)
    assert isinstance(found, list)
    assert found[0].reply == reply


def test_separators_comments_and_continuations():
    """Commas and line ends separate; comments and empty entries are nothing; a backslash joins lines."""
    text = (
        "# all of us\r\n"
        "alice, bob@a.test,, carol,\r\n"
        "\r\n"
        '"|/bin/cat # , \\" x" # a comment, with a comma\n'
        "dave, \\\n"
        "  erin\n"
        " # not alone\n"
        "frank"
    )
    assert entries(text) == [
        (USER, "alice"), (ADDRESS, "bob@a.test"), (USER, "carol"), (COMMAND, '/bin/cat # , " x'),
        (USER, "dave"), (USER, "erin"), (USER, "frank"),
    ]  # fmt: skip


def test_a_backslash_at_the_end_continues_with_nothing():
    """As fparseln(3) has it: the last line has no next one."""
    assert entries("alice\\") == entries("alice\\\n\\\n") == [(USER, "alice")]
    assert entries("|x \\\\") == [(COMMAND, "x \\")]


def test_an_apostrophe_in_two_addresses():
    """OpenSMTPD takes what is between them for one quoted string; here they are two addresses."""
    assert entries("o'neil@a.test, d'arcy@a.test") == [
        (ADDRESS, "o'neil@a.test"),
        (ADDRESS, "d'arcy@a.test"),
    ]


@pytest.mark.parametrize("join", ["", " \\\n"])
def test_the_line_limit(join):
    """A line of 2,048 bytes can be read, one more byte can't, also if it was continued."""
    head = f"alice,{join}"
    fits = LINE_MAX - len(head.replace("\\\n", ""))
    assert len(entries(head + "," * (fits - 3) + "bob")) == 2
    error = parse_entries(f"\n{head}{',' * (fits - 2)}bob")
    assert error == ParseError(2, "is longer than 2048 bytes")


def test_the_line_limit_counts_bytes():
    """2,048 bytes, not characters."""
    line = "|" + "\u00fc" * 1024
    assert parse_entries(line) == ParseError(1, "is longer than 2048 bytes")
    assert entries(line[:-1]) == [(COMMAND, "\u00fc" * 1023)]


def test_alias_file():
    """Keys with colon or white space, continuation by indentation, quoted and virtual keys."""
    text = (
        "# aliases\n"
        "Postmaster: root\n"
        "root   alice,\n"
        "\tbob\n"
        "# in between\n"
        "  , carol\n"
        "\n"
        '"j doe" : dave\n'
        "list :include:/etc/list\n"
        "user+Tag@B\u00fccher.test: erin\n"
        "@virtual.test: frank@a.test\n"
        "@: gina\n"
    )
    aliases = parse_aliases(text)
    assert isinstance(aliases, dict), aliases
    assert {key: [str(entry) for entry in value] for key, value in aliases.items()} == {
        "postmaster": ["root"],
        "root": ["alice", "bob", "carol"],
        "j doe": ["dave"],
        "list": [":include:/etc/list"],
        "user+tag@xn--bcher-kva.test": ["erin"],
        "@virtual.test": ["frank@a.test"],
        "@": ["gina"],
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: b\na: c", ParseError(2, "the key was given before")),
        ("a: b\nA: c", ParseError(2, "the key was given before")),
        ("a:", ParseError(1, "the key has no entries")),
        ("a: # none", ParseError(1, "the key has no entries")),
        ("\n: b", ParseError(2, "must be key: entry, ...")),
        ("a@b_c: d", ParseError(1, "the key is neither a name nor an address")),
        ("a@: d", ParseError(1, "the key is neither a name nor an address")),
        ("a: b\nc: d,\n  e f", ParseError(2, "an entry is neither an address, a user, a file, a command, an include nor an error")),
        ("a: b\x01", ParseError(1, "has a control character")),
    ],
)  # fmt: skip
def test_bad_alias_files(text, error):
    """The error names the line where the key stands."""
    assert parse_aliases(text) == error


def test_domain_lists():
    """One domain per line, in A-labels."""
    assert parse_domains("# ours\nExample.TEST\n b\u00fccher.test # too\n\n") == {
        "example.test": (),
        "xn--bcher-kva.test": (),
    }
    assert parse_domains("a.test\nb test") == ParseError(2, "must be one domain")


def test_keys_are_folded_in_ascii_only():
    """The Kelvin sign is not a k: otherwise one user's mail would be another's."""
    assert fold("AbC\u212a") == "abc\u212a"
    assert alias_key("AbC\u212a@A.Test") == "abc\u212a@a.test"
    assert alias_key("") is None


def test_files_are_utf8():
    """What is not is an error with its line; a byte order mark is nothing."""
    assert decode(b"\xef\xbb\xbfalice\n") == "alice\n"
    assert decode(b"a\nb\n\xff") == ParseError(3, "is not UTF-8")


@given(st.text(max_size=200))
def test_any_text_is_entries_or_an_error(text):
    """Nothing that a user can write into a file raises."""
    for parse in (parse_entries, parse_aliases, parse_domains):
        found = parse(text)
        assert not isinstance(found, ParseError) or 1 <= found.line <= text.count("\n") + 1


NAMES = st.from_regex(r"[a-z][a-z0-9_.-]{0,10}[a-z0-9]", fullmatch=True).filter(
    lambda name: ".." not in name
)
ENTRIES = st.one_of(
    NAMES.map(lambda name: Entry(USER, name)),
    NAMES.map(lambda name: Entry(ADDRESS, f"{name}@example.test", "example.test")),
    NAMES.map(lambda name: Entry(FILE, f"/{name}")),
    NAMES.map(lambda name: Entry(COMMAND, f"/bin/{name} -x")),
    NAMES.map(lambda name: Entry(INCLUDE, f"/etc/{name}")),
    NAMES.map(lambda name: Entry(ERROR, f"550 {name}", reply=Reply(550, "5.2.0", name))),
)


@given(
    st.lists(ENTRIES, max_size=20), st.sampled_from([", ", ",", "\n", ",\\\n", " # x\n", "\r\n"])
)
def test_entries_survive_being_written(wanted, separator):
    """What is written as `str` says is read as what it was, whatever is between."""
    assert parse_entries(separator.join(map(str, wanted))) == wanted


def test_hostile_files_take_linear_time():
    """A quarter of a megabyte of quotes, backslashes or continuations is read in well under a second."""
    for piece in ('"', "\\", "\\\n", "'", "#", " ", ",", '|"', ":", "@", "a\\\n"):
        text = piece * (250_000 // len(piece))
        took = min(timeit.repeat(lambda text=text: parse_entries(text), number=1, repeat=2))
        assert took < 2, piece
