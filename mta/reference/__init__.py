"""The reference, made from the code so that it can't drift: ``python -m mta.reference docs/reference``.

- keys: the configuration, from the dataclasses and their docstrings
- verbs: `mtactl`, metrics and trace subsystems, from their tables
- loglines: every line that the server can log, from its source
- commands: `mta`, `sim` and `testbed`, from what they parse
- scenarios: what a scenario can say, from its dataclasses

A test compares what this makes with the files; ``--check`` does the same.
"""

import functools
from collections.abc import Mapping

from mta.reference.commands import commands_page
from mta.reference.keys import configuration_page, limits_page
from mta.reference.loglines import log_page
from mta.reference.scenarios import scenarios_page
from mta.reference.verbs import metrics_page, verbs_page

__all__ = ["pages"]

NOTE = "<!-- Made by `python -m mta.reference`; change the docstrings, not this file. -->\n\n"


@functools.cache
def pages() -> Mapping[str, str]:
    """Return every page by its file name."""
    made = {
        "configuration.md": configuration_page(),
        "limits.md": limits_page(),
        "mtactl.md": verbs_page(),
        "metrics.md": metrics_page(),
        "log.md": log_page(),
        "commands.md": commands_page("mta", "sim", "testbed"),
        "scenarios.md": scenarios_page(),
    }
    return {name: NOTE + text.rstrip("\n") + "\n" for name, text in made.items()}
