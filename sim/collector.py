"""Leaves Python's cycle collector out where millions of objects are made that do not refer back to themselves."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collector() -> Iterator[None]:
    """Switch it off, and on again if it was: it would look through all of a queue, again and again, in vain."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
