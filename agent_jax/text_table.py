"""Tables of aligned text columns."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """A line for each row; the first `words` columns are flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) if column < words else cell.rjust(width)
                      for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]


def ruled(rows: Sequence[Sequence[str]], words: int) -> str:
    """The aligned rows as one text, with a rule under the first row."""
    lines = aligned(rows, words)
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
