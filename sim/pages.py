"""What every report is put together from: a page that needs nothing else, its tables and its figures."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from sim import figures
from sim.stylesheet import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE: Final = "\N{EN DASH}"
"""Where there is no number."""


def page(title: str, parts: Iterable[str]) -> str:
    """Return a page of these parts; the title is text, the parts are HTML already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def notes_list(kind: str, lines: Sequence[str]) -> str:
    """Return a list of lines, or nothing; ``kind`` is bad, warn or good."""
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{items}</ul>'


def picture(figure: "Figure", caption: str) -> str:
    """Return a figure for light and dark pages, with its caption."""
    drawn = figures.svg(figure)
    light, dark = (
        "data:image/svg+xml;base64," + base64.b64encode(each).decode("ascii")
        for each in (drawn, figures.in_theme(drawn, figures.LIGHT, figures.DARK))
    )
    return (
        '<figure><picture><source media="screen and (prefers-color-scheme: dark)"'
        f' srcset="{dark}"><img alt="{escape(caption)}" src="{light}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    text_columns: int = 1,
    classes: Mapping[int, str] | None = None,
    dense: bool = False,
) -> str:
    """Return a table; cells are HTML already. The first ``text_columns`` are text, the rest numbers; many columns are ``dense``."""
    of = {i: ("t" if i < text_columns else "n") for i in range(len(heads))} | dict(classes or {})
    head = "".join(f'<th class="{of[i]}">{escape(text)}</th>' for i, text in enumerate(heads))
    body = "\n".join(
        "<tr>" + "".join(f'<td class="{of[i]}">{cell}</td>' for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    kind = ' class="dense"' if dense else ""
    return f'<div class="wide"><table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with commas, or a dash; what rounds to nothing has no sign."""
    return NONE if value is None else f"{round(value, digits) + 0.0:,.{digits}f}"
