"""Values as `mtactl` says them: short, and unable to do anything to a terminal."""

from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
"""One row of an answer: text, numbers, and lists of these."""


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, as OpenSMTPD writes them: ``1d2h``, ``3m4s``, ``5s``."""
    sign, left = ("-" if seconds < 0 else ""), int(abs(seconds))
    if not left and seconds:
        return f"{seconds:.1f}s"
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
        if len(parts) == 2:
            break
    return sign + ("".join(parts) or "0s")


def short_time(seconds: float | None) -> str:
    """Return a short time with the unit that fits: ``12.3 ms``; ``-`` for none."""
    if seconds is None:
        return "-"
    if seconds >= 99.5:
        return duration(seconds)
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def size(count: float) -> str:
    """Return a number of bytes in words: ``512 B``, ``4.0 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def escaped(text: str) -> str:
    r"""Return text that can do nothing to a terminal: control characters are written as ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def plain(value: Any) -> str:
    """Return a value as one word or one line: lists with commas, nothing as ``-``."""
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"
    if isinstance(value, list):
        return ",".join(plain(item) for item in value)
    return escaped(str(value))
