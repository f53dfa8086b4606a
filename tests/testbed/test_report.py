"""The page: whole, on its own, readable, and never fooled by what it shows."""

import html.parser
import io
import re
from pathlib import Path

from testbed import plots, report
from testbed.plots import DARK, LIGHT
from testbed.run import render
from testbed.rundir import Run
from testbed.show import tables

from .conftest import make_run

VOID = {"meta", "img", "source", "br"}


class Checker(html.parser.HTMLParser):
    """Collects tags and attributes, and fails at a tag that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop(), tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert [] == checker.open
    return checker


def test_the_page_needs_nothing_else(made: Run) -> None:
    """Well formed; every picture is inside; no script, no style and no font from elsewhere."""
    page = render(made).read_text()
    checker = check(page)

    assert checker.links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in checker.links)
    assert not {"script", "link", "iframe", "object"} & set(checker.tags)
    without_pictures = re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "", page)
    assert "http://" not in without_pictures
    assert "https://" not in without_pictures
    assert "url(" not in without_pictures


def test_the_shipped_run_makes_a_page(shipped: Run) -> None:
    """The page of the run in the repository has all its parts."""
    checker = check(report.html(shipped))
    text = " ".join(" ".join(checker.text).split())

    for words in (
        "What an envelope costs",
        "What saves how much",
        "Postfix",
        "KumoMTA",
        "Stalwart",
        "OpenSMTPD, January 2013, slim",
        "in-sample",
        "Ledger",
        "testbed run backlog",
        "Every promise was kept",
    ):
        assert words in text, words
    assert 6 == checker.tags.count("img")


def test_figures_know_light_and_dark(made: Run) -> None:
    """Both have the same lines in other colours; the same figure has the same bytes."""
    render(made, page=False)
    light, dark = (plots.svg(plots.memory_over_time(made, theme)) for theme in (LIGHT, DARK))

    assert light.startswith(b"<?xml")
    assert light != dark
    # Ids are hashes of what is drawn, colours included: they differ, what they name does not.
    without_ids = re.compile(rb"(?<=[\"#])[mp][0-9a-f]{8,12}(?=[\")])")
    recoloured = plots.in_theme(light, LIGHT, DARK)
    assert without_ids.sub(b"", dark) == without_ids.sub(b"", recoloured)
    assert light == plots.svg(plots.memory_over_time(made, LIGHT))
    assert plots.png(plots.memory_over_time(made)).startswith(b"\x89PNG")


def test_what_a_scenario_says_is_text(made: Run) -> None:
    """A title with a tag in it is shown, not obeyed."""
    path = made.directory / "scenario.toml"
    text = path.read_text()
    path.write_text(
        re.sub(r"^title = .*$", 'title = "<script>alert(1)</script>"', text, flags=re.M)
    )
    page = render(made).read_text()

    assert "<script" not in page
    assert "&lt;script&gt;" in page
    check(page)


def test_a_failed_run_says_so_first(tmp_path: Path) -> None:
    """Nobody has to look for it."""
    run = make_run(tmp_path / "run", {"slim": 400.0}, delivered=17_799, lost=1)
    text = " ".join(check(render(run).read_text()).text)

    assert "Failed." in text
    assert text.index("Failed.") < text.index("What an envelope costs")
    assert "Every promise was kept" not in text


def test_one_representation_is_enough(tmp_path: Path) -> None:
    """A run of packed alone has a page too, without comparisons."""
    run = make_run(tmp_path / "run", {"packed": 60.0})
    check(render(run).read_text())


def test_the_tables_fit_a_terminal(shipped: Run) -> None:
    """80 columns are enough, with nothing cut or wrapped."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(width=80, file=out)
    for each in tables(shipped):
        console.print(each)
    text = out.getvalue()

    assert "…" not in text
    for name in ("whole", "full", "slim", "packed"):
        assert re.search(rf"^ *{name} +[\d,]+±", text, re.M), text
