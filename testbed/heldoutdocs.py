"""Puts a validation into what ships: the data of the notebook, and the table of docs/validation.md.

``python -m testbed.heldoutdocs RUN`` is run in a checkout, after `testbed validate` on a quiet machine; instead of RUN, the notebook's
own data make the table again. A test holds the two together.
"""

import gzip
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mta.core.settings import ConfigError
from testbed.children import RunError, UsageError
from testbed.heldout import RESULT, read
from testbed.heldoutgates import HOLDS, word_of
from testbed.rundir import find

DATA: Final = Path("notebooks/data/held-out/validation.json.gz")
PAGE: Final = Path("docs/validation.md")
BEGIN: Final = "<!-- begin: made by testbed.heldoutdocs -->\n"
END: Final = "<!-- end -->\n"


def block(result: Mapping[str, Any]) -> str:
    """Return what docs/validation.md says of a validation."""
    held_out = [each for each in result["settings"] if not each["trains"]]
    runs = sum(each["repeats"] for each in held_out)
    busy = max(each["foreign_cpu_share"] for each in result["settings"])
    key = str(result["key"]).rpartition(".")[2]
    settings = ", ".join(str(each["value"]) for each in held_out)
    words = (
        f"`{result['command']}`, {str(result['started'])[:10]}, {result['host'].get('cores', '?')} cores: calibrated at `{key}` = {result['train']}"
        f" ({result['training_runs']} runs), predicted at {settings} ({runs} real runs; other programs took at most {busy:.0%} of the machine).\n"
    )
    lines = [
        "| | held | error, median | worst | gate | real runs' spread | naive | |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
        *(
            f"| {line['title']} | {line['held']} of {line['settings']} | {_share(line['median_error'])} | {_share(line['worst_error'])} |"
            f" {_share(line['gate'])} | {_share(line['real_spread'])} | {_share(line['naive_error'])} | {_strong(word_of(result, line))} |"
            for line in result["verdict"]["quantities"]
        ),
    ]
    why = [
        f"- {line['title']}: {each}."
        for line in result["verdict"]["quantities"]
        for each in line["why"]
    ]
    return "\n".join([words, *lines, *([""] if why else []), *why]) + "\n"


def _strong(word: str) -> str:
    return word if word == HOLDS else f"**{word}**"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def with_block(page: str, result: Mapping[str, Any]) -> str:
    """Return a page with the table of a validation between its marks.

    Raises:
        UsageError: it has no marks.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(page):
        raise UsageError(f"{PAGE}: has no line {BEGIN.strip()}")
    return pattern.sub(lambda _: BEGIN + block(result) + END, page)


def _without_places(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result that names its training runs without saying where they were."""
    calibration = result["calibration"]
    origin = dict(calibration["provenance"])
    if "run" in origin:
        origin["run"] = Path(origin["run"]).name
    if "runs" in origin:
        origin["runs"] = [Path(run).name for run in origin["runs"]]
    return {**result, "calibration": {**calibration, "provenance": origin}}


def publish(source: Path, *, data: Path = DATA, page: Path = PAGE) -> None:
    """Write the data of the notebook and the table of the page.

    Args:
        source: a validation.json, compressed or not.
        data: where the notebook reads it.
        page: what has the table between marks.

    Raises:
        UsageError: there is no validation, or a file can't be written.
    """
    result = _without_places(read(source))
    try:
        text = with_block(page.read_text(encoding="utf-8"), result)
        data.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(result, separators=(",", ":"), allow_nan=False).encode()
        # Without a time in it: the same result is the same file.
        data.write_bytes(gzip.compress(content, 9, mtime=0))
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{error.filename}: {(error.strerror or 'unusable').lower()}") from None


def main(arguments: list[str]) -> int:
    """Run the command."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m testbed.heldoutdocs RUN\n")
        return 2
    try:
        source = Path(arguments[0])
        publish(source if source.is_file() else find(arguments[0], Path("runs")) / RESULT)
    except (ConfigError, RunError) as error:
        sys.stderr.write(f"heldoutdocs: {error}\n")
        return 2
    sys.stdout.write(f"{DATA} and {PAGE} written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
