"""Which model is it? A digest of everything that a run's numbers come from, besides what it is asked.

Results of a sweep are kept by it: who changes the model gets no numbers of the one before.
"""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

import mta.core
import sim

AROUND: Final = frozenset(
    {
        "__main__", "calibrate", "executors", "figures", "listing", "pages", "pareto", "perfetto", "replay",
        "studyplots", "stylesheet", "sweep", "sweepcache", "sweepcommand", "sweepplots", "sweepreport", "sweepresult", "sweeprun",
        "sweepstats", "sweepwords",
        "sweepsubject", "theory", "validate",
    }
)  # fmt: skip
"""Modules of `sim` that only ask the model or show what it said. A test sees that the model imports none of them."""


@functools.cache
def model_digest() -> str:
    """Return 64 hexadecimal digits: of the core, the model, the data they read, and numpy's version.

    Why numpy's? Its generators may give other draws in another version.
    """
    digest = hashlib.sha256(f"numpy {np.__version__}\n".encode())
    for name, path in sorted(_files()):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _files() -> Iterator[tuple[str, Path]]:
    for package in (mta.core, sim):
        root = Path(str(package.__file__)).parent
        for path in root.rglob("*"):
            inside = path.relative_to(root)
            if path.suffix not in (".py", ".toml") or inside.parts[0] in _ELSEWHERE:
                continue
            if package is sim and len(inside.parts) == 1 and path.stem in AROUND:
                continue
            yield f"{package.__name__}/{inside.as_posix()}", path


_ELSEWHERE: Final = ("scenarios", "layouts", "validation")
"""What a run is asked is part of its key already; experiments ask."""
