"""What a client said, fit for the log: bounded, printable, and without its password."""

from typing import Final

from mta.core.sasl import MECHANISMS

_LOGGED_MAX: Final = 200


def quote_for_log(text: str) -> str:
    """Return client text for a quoted value: no control characters, no quotes, bounded."""
    printable = "".join(
        letter if letter.isprintable() and letter != '"' else f"\\x{ord(letter):02x}"
        for letter in text[:_LOGGED_MAX]
    )
    return printable if len(text) <= _LOGGED_MAX else printable + "..."


def line_for_log(line: bytes) -> str:
    """Return a command for the log, without what may be a password."""
    word, _, rest = line.strip(b" ").partition(b" ")
    if word[:4].upper() == b"AUTH":
        mechanism, _, initial = rest.partition(b" ")
        shown = mechanism.upper().decode("ascii", "replace")
        if shown not in MECHANISMS:
            return "AUTH ****" if len(line) > 4 else "AUTH"
        return f"AUTH {shown}{' ****' if initial else ''}"
    return quote_for_log(line.decode("utf-8", "backslashreplace"))
