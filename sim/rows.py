"""Tables of numbers that grow by a row for each message: columns, for rows of Python objects take ten times as much."""

from array import array
from collections.abc import Iterator
from typing import Any, Generic, TypeVar, cast

Row = TypeVar("Row", bound=tuple[Any, ...])


class Rows(Generic[Row]):
    """A table: 8 bytes a cell, where a list of tuples takes a hundred a row."""

    def __init__(self, types: str) -> None:
        """``types``: a letter for each column: d for a float, q for an int, O for a word that is there anyway."""
        self._types = types
        self.columns: tuple[Any, ...] = tuple(array(t) if t != "O" else [] for t in types)
        """The cells of each column."""

    def append(self, row: Row) -> None:
        """Add one row."""
        for column, cell in zip(self.columns, row, strict=True):
            column.append(cell)

    def __add__(self, later: "Rows[Row]") -> "Rows[Row]":
        """Return the rows of both."""
        both: Rows[Row] = Rows(self._types)
        for column, own, more in zip(both.columns, self.columns, later.columns, strict=True):
            column.extend(own)
            column.extend(more)
        return both

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.columns[0])

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows."""
        return cast("Iterator[Row]", zip(*self.columns, strict=True))
