"""How much one recipient may be made of, and how addresses are taken apart: ``[expansion]``."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from mta.core.limits import Problem


@dataclass(slots=True)
class ExpansionLimits:
    """How much one RCPT may be made of."""

    depth: int = 10
    """Steps from the recipient to a delivery. OpenSMTPD EXPAND_DEPTH (5 until 2012: its issue 92)."""
    nodes: int = 1000
    """Addresses, users, files and commands of one recipient. Ours; OpenSMTPD has no limit but for .forward."""
    entries: int = 10_000
    """Entries looked at for one recipient, those seen before included. Ours; bounds the work, not the mail."""
    forward_nodes: int = 100
    """Entries of one .forward. OpenSMTPD MAX_EXPAND_NODES (forward.c)."""
    forward_bytes: int = 4096
    """A .forward is smaller than this. OpenSMTPD MAX_FORWARD_SIZE (forward.c)."""
    include_bytes: int = 256 * 1024
    """Bytes of an included file. Ours; room for more addresses than ``nodes``."""

    def problems(self) -> Iterator[Problem]:
        """Yield every value that contradicts itself or another."""
        for one in fields(self):
            value = getattr(self, one.name)
            if not value > 0:
                yield one.name, value, "must be above 0; a cap of 0 is not unlimited"
        if self.entries < self.nodes:
            yield "entries", self.entries, f"must not be below nodes ({self.nodes})"


@dataclass(slots=True)
class ExpansionSettings:
    """How addresses are taken apart."""

    delimiter: str = "+"
    """Between a user and a tag; empty for no tags. OpenSMTPD ``smtp sub-addr-delim``, Postfix
    ``recipient_delimiter``."""
    limits: ExpansionLimits = field(default_factory=ExpansionLimits)

    def problems(self) -> Iterator[Problem]:
        """Yield a delimiter that can't be one."""
        if len(self.delimiter) > 1 or self.delimiter.isalnum() or self.delimiter in tuple('@."\\ '):
            yield "delimiter", self.delimiter, 'must be one punctuation mark, not one of @."\\'
