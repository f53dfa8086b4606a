"""How every figure looks, of reports and of notebooks: one palette, one size, light and dark.

Each representation and each policy has one colour everywhere (Okabe and Ito's palette, which colour-blind readers can tell
apart). A figure never touches files or global state: no pyplot, no rc of the process is changed.
"""

import io
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

MARKERS: Final = {"fixed": "v", "whole": "s", "full": "D", "slim": "o", "packed": "^"}
"""Of each representation."""


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a figure; its background is transparent, that of the page shows through."""

    name: str
    ink: str
    faint: str
    shade: str
    colours: Mapping[str, str]

    def colour(self, representation: str) -> str:
        """Return the colour of a representation, of a policy, or of anything else that has one."""
        return self.colours.get(representation, self.ink)


LIGHT: Final = Theme(
    "light",
    ink="#1c1e21",
    faint="#c9ccd1",
    shade="#f2d9d9",
    colours={
        "fixed": "#882255",
        "tempfail": "#7b3294",
        "raised": "#c51b1b",
        "hold": "#1b7837",
        "whole": "#d55e00",
        "full": "#b8860b",
        "slim": "#0072b2",
        "packed": "#009e73",
        "peer": "#6b7075",
    },
)
DARK: Final = Theme(
    "dark",
    ink="#e6e6e6",
    faint="#4a4d52",
    shade="#4a2f2f",
    colours={
        "fixed": "#ee88bb",
        "tempfail": "#c79be0",
        "raised": "#ff7070",
        "hold": "#6fd08a",
        "whole": "#ff8c42",
        "full": "#e6b800",
        "slim": "#56b4e9",
        "packed": "#2fd6a4",
        "peer": "#a0a5ab",
    },
)
THEMES: Final = (LIGHT, DARK)


def rc(theme: Theme) -> AbstractContextManager[None]:
    """Return the context in which figures of a theme are made."""
    return mpl.rc_context(
        {
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "text.color": theme.ink,
            "axes.labelcolor": theme.ink,
            "axes.edgecolor": theme.ink,
            "axes.titlecolor": theme.ink,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 9.5,
            "xtick.color": theme.ink,
            "ytick.color": theme.ink,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "grid.color": theme.faint,
            "grid.linewidth": 0.6,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "font.size": 9.5,
            "lines.linewidth": 1.6,
        }
    )


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG, the same bytes for the same figure."""
    out = io.BytesIO()
    # Ids inside are made of a random salt otherwise.
    with mpl.rc_context({"svg.hashsalt": "testbed"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def in_theme(drawn: bytes, before: Theme, after: Theme) -> bytes:
    """Return an SVG of one theme in the colours of another: a fraction of the time that drawing again takes.

    What is text in a figure is drawn as outlines, so a colour's code is nothing else by accident.
    """
    colours = _codes(before), _codes(after)
    for old, new in zip(*colours, strict=True):
        drawn = drawn.replace(old, new)
    return drawn


def _codes(theme: Theme) -> list[bytes]:
    names = sorted(theme.colours)
    codes = [theme.ink, theme.faint, theme.shade, *(theme.colours[name] for name in names)]
    assert len(set(codes)) == len(codes), theme.name
    return [code.encode("ascii") for code in codes]


def png(figure: Figure, *, dpi: int = 144, background: str = "white") -> bytes:
    """Return a figure as PNG on a background of its own, for places that take no SVG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, facecolor=background)
    return out.getvalue()


def make_panels(columns: int, rows: int = 1, *, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Return a figure as wide as the page and its panels, row by row."""
    figure = Figure(figsize=(9.2, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    return figure, [cast("Axes", axes) for axes in grid.flat]


def thousands(axes: Axes, which: str) -> None:
    """Label an axis of counts."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_major_locator(MaxNLocator(6, integer=True))


def from_zero(axes: Axes) -> None:
    """Let a y axis begin at 0, with room above the highest value.

    What matplotlib leaves above is a part of the range of values: nothing, if they are nearly the same.
    """
    top, highest = axes.get_ylim()[1], float(axes.dataLim.y1)
    axes.set_ylim(0, max(top, highest * 1.08) if math.isfinite(highest) else top)


def plain_numbers(axes: Axes, which: str) -> None:
    """Label a logarithmic axis with plain numbers, as many as its length bears."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 2000 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
