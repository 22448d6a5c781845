"""Markdown tables: the first row is the head."""

from typing import Any, Sequence

from .errors import printable


def markdown_table(rows: Sequence[Sequence[Any]]) -> str:
    """A table for a page."""
    lines = [_line([_cell(value) for value in row]) for row in rows]
    return "\n".join([lines[0], _line(["---" for _ in rows[0]]), *lines[1:]])


def aligned_table(rows: Sequence[Sequence[Any]]) -> str:
    """A table that is also read as it is, in a terminal: its columns are aligned."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [_line([text.ljust(width) for text, width in zip(row, widths)]) for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _cell(value: Any) -> str:
    return printable(value).replace("|", "\\|")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
