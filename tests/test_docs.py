"""What the documents name is there: files, links, commands, options, verbs, keys; and maps leave nothing out."""

import functools
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.main

from mta.core.limits import Limits
from mta.core.metrics import METRICS
from mta.core.settings import flatten
from mta.ctl import VERBS, CtlError, find_verb
from mta.reference.keys import keys
from testbed.world.world import parser as world_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCES = sorted(
    path
    for top in ("mta", "sim", "testbed", "loadtests", "tests", "notebooks")
    for path in (ROOT / top).rglob("*.py")
)
PACKAGES = ("mta", "sim", "testbed", "loadtests")
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def code(page: Path) -> Iterator[str]:
    """Yield what a page shows as code: each line of a block, each word between backticks."""
    block = False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            block = not block
        elif block or line.startswith("    "):
            yield from (part.strip() for part in line.partition(" #")[0].split(";"))
        else:
            yield from re.findall(r"`([^`]+)`", line)


# ---- files and links


def spelled_out(pattern: str) -> list[str]:
    """Return what a shell makes of ``a{b,c}d``."""
    parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
    fixed = [
        [part] if number % 2 == 0 else words
        for number, (part, words) in enumerate(zip(re.split(r"[{}]", pattern), parts, strict=True))
    ]
    return ["".join(each) for each in itertools.product(*fixed)]


def is_there(name: str) -> bool:
    return any(next(ROOT.glob(one.rstrip("/")), None) is not None for one in (name, f"{name}.py"))


@by_page
def test_files_are_there(page):
    """Also those behind braces and stars."""
    text = page.read_text()
    found = re.findall(
        r"(?<![\w/.-])((?:mta|sim|testbed|loadtests|tests|docs|notebooks|\.ci)/[\w./*{},-]+)", text
    )
    names = {one for name in found for one in spelled_out(name.rstrip(".,"))}
    assert [] == sorted(name for name in names if not is_there(name))


@by_page
def test_links_lead_somewhere(page):
    """To a file, and to a heading in it."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / name).resolve() if name else page
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M) if anchor else ()
        anchors = {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}
        if not file.exists() or (anchor and anchor not in anchors):
            broken.append(target)
    assert [] == broken


@functools.cache
def text_of(module: str) -> str | None:
    """Return a module's text, or None if there is none."""
    path = ROOT.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.exists():
            return file.read_text()
    return "" if path.is_dir() else None


def is_name(name: str) -> bool:
    """Whether ``package.module.name`` is a module, or a word in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        text = text_of(".".join(parts[:count]))
        if text is not None:
            return count == len(parts) or re.search(rf"\b{parts[count]}\b", text) is not None
    return False


def test_names_in_prose_are_those_of_the_code():
    """`package.module.name` between backticks; what is a gauge's name and no module's has quotes of its own."""
    wanted = re.compile(rf"(?<!`)`((?:{'|'.join(PACKAGES)}|tests)(?:\.\w+)+)`(?!`)")
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (*PAGES, *SOURCES)
        for name in wanted.findall(path.read_text())
        if not name.endswith(".toml") and not is_name(name)
    ]
    assert [] == wrong


# ---- maps


MAPS = (
    "mta/core",
    "sim",
    "sim/behaviours",
    "sim/logs",
    "sim/remote",
    "sim/scenario",
    "sim/validation",
)


@pytest.mark.parametrize("package", MAPS)
def test_a_map_has_every_module(package):
    """Of the package whose docstring it is."""
    text = import_module(package.replace("/", ".")).__doc__
    assert text is not None
    modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}
    assert [] == sorted(name for name in modules if not re.search(rf"\b{name}\b", text))


def test_the_table_of_the_architecture_has_every_module_of_the_server():
    """By name, or by a star."""
    rows = [
        line
        for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    names = re.findall(r"`(mta/[^`]+)`", "\n".join(row.split("|")[1] for row in rows))
    named = {path for name in names for one in spelled_out(name) for path in ROOT.glob(one)}
    modules = set((ROOT / "mta").glob("*.py")) - {
        ROOT / "mta" / f"__{name}__.py" for name in ("init", "main")
    }
    assert [] == sorted(path.name for path in modules - named)


def cells(script: str) -> list[str]:
    """Return the cells of a notebook that is written as a script, prose without its hashes."""
    found = []
    for cell in re.split(r"^# %%", script, flags=re.M)[1:]:
        head, _, body = cell.partition("\n")
        if "[markdown]" in head:
            body = re.sub(r"^# ?", "", body, flags=re.M)
        found.append(body.strip())
    return found


@pytest.mark.parametrize(
    "script", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem
)
def test_a_notebook_is_its_script(script):
    """Cell by cell: who edits one edits both."""
    made = json.loads(script.with_suffix(".ipynb").read_text())
    assert ["".join(cell["source"]).strip() for cell in made["cells"]] == cells(script.read_text())


# ---- commands and keys


@functools.cache
def program(name: str) -> Any:
    return typer.main.get_command(import_module(f"{name}.__main__").app)


def complaint(words: list[str]) -> str | None:
    """Return what is wrong with a command line of ours, or None: commands and options, not their values."""
    command = program(words[0])
    rest = words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    if " ".join(words) in (ROOT / "docs/reference/log.md").read_text() or "COMMAND..." in words:
        return None  # `mta tls` is a line of the log
    if words[:2] == ["testbed", "world"]:
        known = set(world_parser()._option_string_actions)
    elif getattr(command, "commands", None) and command.name != "peers":
        return f"no command {' '.join(rest) or words}"
    else:
        known = {option for parameter in command.params for option in parameter.opts}
    unknown = [
        word for word in rest if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known
    ]
    return f"no option {' '.join(unknown)}" if unknown else None


def command_lines(page: Path, *programs: str) -> Iterator[list[str]]:
    wanted = re.compile(
        rf"^(?:sudo )?(?:\.venv/bin/)?(?:python -m )?((?:{'|'.join(programs)})(?:\.compiled)? .*)"
    )
    for each in code(page):
        for part in each.split(" && "):
            found = wanted.match(part.removeprefix("sudo "))
            if found:
                words = shlex.split(found[1].rstrip("&"))
                yield [words[0].removesuffix(".compiled"), *words[1:]]


@by_page
def test_commands_and_options_are_there(page):
    """Of `mta`, `sim` and `testbed`, wherever a page shows one."""
    wrong = []
    for words in command_lines(page, "mta", "sim", "testbed"):
        alternatives = words[1].split("|")  # `sim run|replay --calibration FILE`
        for one in alternatives:
            problem = complaint([words[0], one, *words[2:]])
            if problem:
                wrong.append((" ".join(words), problem))
    assert [] == wrong


@by_page
def test_verbs_of_mtactl_are_there(page):
    """Words that it takes, in their places."""
    wrong = []
    for words in command_lines(page, "mtactl"):
        rest = [word for word in words[1:] if not word.startswith("-")]
        if any(verb.words.split()[: len(rest)] == rest for verb in VERBS):
            continue  # a whole family of them, as `mtactl update`
        try:
            find_verb(rest)
        except CtlError as error:
            wrong.append((" ".join(words), str(error)))
    assert [] == wrong


@by_page
def test_keys_are_there(page):
    """Of the configuration, between backticks: with a dot, and its first part one of the tables."""
    known = {re.sub(r"\[\]|\.NAME", "", key.path) for key in keys()} | set(flatten(Limits()))
    known |= set(METRICS)
    known |= {".".join(key.split(".")[:count]) for key in known for count in (1, 2, 3)}
    tables = {key.partition(".")[0] for key in known}
    found = re.findall(r"`((?:\w+\.)+\w+)(?: = [^`]*|=[^`]*)?`", page.read_text())
    places = {name for name in found if name.partition(".")[0] in tables}
    assert [] == sorted(
        name
        for name in places
        if name not in known
        and name.rpartition(".")[2] not in ("toml", "py", "json", "jsonl", "html")
    )


def test_targets_of_make_are_there():
    """Those of the pages, and those that `make help` lists."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    named = {
        name
        for page in PAGES
        for each in code(page)
        for name in re.findall(r"^make ([a-z]+)", each)
    }
    listed = set(re.findall(r"'make ([a-z]+)  ", makefile))
    assert named | listed <= targets
    assert {"demo", "test", "check", "bench", "notebooks", "reference"} <= listed
