"""Directories of several runs: policies, comparisons and validations leave one result each, printed and rendered alike.

Numpy and Matplotlib are loaded when there is something to show, not before.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import typer
from rich.console import Console, RenderableType

from testbed.children import UsageError


class _Kind(NamedTuple):
    """What a result is read, tabled and drawn with."""

    file: Path
    read: Callable[[Path], dict[str, Any]]
    tables: Callable[[Mapping[str, Any]], Iterable[RenderableType]]
    html: Callable[[Mapping[str, Any]], str]


def _kind_of(directory: Path) -> _Kind | None:
    from testbed import comparereport, comparing, heldout, heldoutreport, policies, policyreport

    compared = comparing.result_file(directory)
    if compared is not None:
        return _Kind(compared, comparing.read, comparereport.tables, comparereport.html)
    if (directory / policies.RESULT).is_file():
        file = directory / policies.RESULT
        return _Kind(file, policies.read, policyreport.tables, policyreport.html)
    if (directory / heldout.RESULT).is_file():
        file = directory / heldout.RESULT
        return _Kind(file, heldout.read, heldoutreport.tables, heldoutreport.html)
    return None


def render_result(directory: Path) -> Path | None:
    """Make report.html of a result again; None if the directory has none.

    Raises:
        UsageError: it is damaged, or the page can't be written.
    """
    kind = _kind_of(directory)
    if kind is None:
        return None
    path = directory / "report.html"
    page = kind.html(kind.read(kind.file))
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: can't be written: {(error.strerror or '').lower()}") from error
    return path


def print_result(
    directory: Path, *, as_json: bool, as_markdown: bool = False
) -> dict[str, Any] | None:
    """Print a result and return it; None if the directory has none.

    Args:
        directory: where it is.
        as_json: print all of it.
        as_markdown: print tables for a document; of a comparison of servers only.

    Raises:
        UsageError: it is damaged.
    """
    kind = _kind_of(directory)
    if kind is None:
        return None
    result = kind.read(kind.file)
    if as_json:
        typer.echo(json.dumps(result))
        return result
    if as_markdown:
        if result.get("kind") != "peers":
            raise UsageError(f"{directory}: --markdown: no comparison of servers")
        from testbed.peermarkdown import measured

        typer.echo(measured(result), nl=False)
        return result
    console = Console(highlight=False)
    for each in kind.tables(result):
        console.print(each)
    report = directory / "report.html"
    if report.is_file():
        console.print(f"report: {report}", soft_wrap=True, markup=False)
    return result
