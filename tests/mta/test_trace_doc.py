"""The example in the documentation is a real one."""

import os
import tomllib
from pathlib import Path

from mta.addressing import Addressing
from mta.config import Config
from mta.core.address import parse_path
from mta.core.settings import build
from mta.effects import Effects
from mta.log import Log
from mta.trace import Tracer
from tests.support.tracedoc import CONFIG, blocks, home


def test_the_example_is_what_the_server_says(tmp_path: Path) -> None:
    """Line by line: the expansion alone, and with the rules and look-ups that it rests on."""
    directory = str(home(tmp_path))
    config = build(Config, tomllib.loads(CONFIG.replace("HOME", directory)), source="x")
    log = Log(Effects(), tmp_path / "log", host="mx", pid=1)
    tracer = Tracer(log)
    addressing = Addressing(config, effects=Effects(), source="x", log=log, tracer=tracer)
    alone: list[str] = []
    together: list[str] = []
    tracer.follow("expand", alone.append)
    for subsystem in ("expand", "rules", "lookup"):
        tracer.follow(subsystem, together.append)
    recipient = parse_path("<board+2026@club.test>")
    assert recipient is not None
    addressing.expand(recipient, addressing.client("127.0.0.1"))
    addressing.close()
    log.close()
    first, second = blocks("text")
    assert first.splitlines() == [line.removeprefix("expand: ") for line in alone]
    shown = "\n".join(together).replace(directory, "HOME").replace(f"uid={os.getuid()}", "uid=UID")
    assert second.splitlines() == shown.splitlines()
    assert 12 <= len(alone) <= 20
