"""What a command shows, as lines: text that knows its width, tables that cut nothing, and printing them.

What a person copies or compares (an id, a number, a path) is always whole: a table that is too wide for its terminal
says once what all rows share, then puts its last column below, then becomes blocks. A line may be longer than the
terminal where one word of it is; no word is broken.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.core.terminal import one_line, printable, styled, unguarded, uses_colours

_CODES = {"bold": "1", "dim": "2", "red": "1;31", "green": "32", "yellow": "33", "magenta": "35"}
_NUMBER = re.compile(r"-|[-+]?[0-9][0-9.,]*")
_READABLE = 24
"""Columns that running text needs to be read beside others."""


class Line(str):
    """A line with a style for all of it. ``raw``: tabs and line ends are kept. ``command``: GitHub's runner may take it
    for a command, as `launcher.core.github.annotation` makes them."""

    style: str
    raw: bool
    command: bool

    def __new__(cls, text: object, style: str = "", *, raw: bool = False, command: bool = False) -> Line:
        line = super().__new__(cls, text)
        line.style, line.raw, line.command = style, raw, command
        return line


@dataclass(frozen=True)
class Terminal:
    """Where lines go: the columns of a terminal, None for what is none; whether it shows colours."""

    width: int | None = None
    colours: bool = False

    @classmethod
    def of(cls, stream: Any, environ: Mapping[str, str] = os.environ) -> Terminal:
        width = shutil.get_terminal_size().columns if stream.isatty() else None
        return cls(width, uses_colours(stream, environ))


def print_lines(lines: Iterable[str], terminal: Terminal, stream: Any = None) -> None:
    """Print lines as they come; what they hold of other people's text can neither move a cursor nor begin a line."""
    out = sys.stdout if stream is None else stream
    for line in lines:
        text = printable(line) if getattr(line, "raw", False) else one_line(line)
        if getattr(line, "command", False):
            unguarded(out).write(f"{text}\n")
        elif terminal.colours and (style := getattr(line, "style", "")):
            styled(out).write(f"\033[{_CODES[style]}m{text}\033[0m\n")
        else:
            out.write(f"{text}\n")
    out.flush()


def count_of(number: int, one: str, many: str = "") -> str:
    """A number with what it counts: ``1 entry``, ``0 files``, ``2 jobs are``. ``many`` is the plural of ``one`` where
    it is not made by an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def wrap_words(text: str, width: int | None, indent: str = "") -> list[str]:
    """The text in lines of at most ``width`` columns, all but the first behind ``indent``. No word is broken: one that
    is longer than a line has a line of its own."""
    if width is None or len(text) <= width:
        return [text]
    first, *words = text.lstrip(" ").split(" ")
    lines, room = [text[: len(text) - len(text.lstrip(" "))] + first], max(width, len(indent) + _READABLE)
    for word in words:
        if len(lines[-1]) + 1 + len(word) > room and word:
            lines[-1] = lines[-1].rstrip()
            lines.append(f"{indent}{word}")
        else:
            lines[-1] = f"{lines[-1]} {word}"
    return lines


def field_lines(
    pairs: Iterable[tuple[str, object]], width: int | None, *, indent: str = "  ", name: int = 10
) -> list[str]:
    """A line for each name and its value; in a terminal the value's words stay in their column."""
    lines, column = [], len(indent) + name + 1
    for key, value in pairs:
        words = wrap_words(str(value), None if width is None else max(width - column, _READABLE))
        lines.append(f"{indent}{key:{name}} {words[0]}".rstrip())
        lines += [f"{'':{column}}{line}" for line in words[1:]]
    return lines


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], width: int | None, styles: Sequence[str] = ()
) -> list[Line]:
    """A table without borders; the last column may be running text. ``styles`` are those of the rows, in order."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    styles = styles or [""] * len(cells)
    lines: list[Line] = []
    heads = list(columns)
    total = sum(max(map(len, column)) for column in zip(heads, *cells, strict=True)) + 2 * (len(heads) - 1)
    if width is not None and cells and total > width:
        numbers = _numbers(cells, len(heads))
        shared = [
            i
            for i, head in enumerate(heads)
            if i
            and head
            and not numbers[i]
            and len(cells) > 1
            and len({row[i] for row in cells}) == 1
            and (i < len(heads) - 1 or len(cells[0][i]) < _READABLE)
        ]
        if shared:
            shared_line = ""
            for pair in (f"{heads[i]} {cells[0][i]}" for i in shared if cells[0][i] not in ("", "-")):
                if shared_line and len(shared_line) + 3 + len(pair) > width:
                    lines += map(Line, wrap_words(f"{shared_line},", width, "  "))
                    shared_line = f"  {pair}"
                else:
                    shared_line = f"{shared_line}, {pair}" if shared_line else pair
            lines += map(Line, wrap_words(shared_line, width, "  ")) if shared_line else []
            heads = [head for i, head in enumerate(heads) if i not in shared]
            cells = [[cell for i, cell in enumerate(row) if i not in shared] for row in cells]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    left = sum(widths[:-1]) + 2 * (len(widths) - 1)
    if width is None or left + widths[-1] <= width:
        return [*lines, *_rows(heads, cells, widths, styles)]
    if left + _READABLE <= width:
        return [*lines, *_folding(heads, cells, widths, styles, width)]
    if left - 2 <= width and len(heads) > 2:
        return [*lines, *_below(heads, cells, widths, styles, width)]
    return [*lines, *_blocks(heads, cells, styles, width)]


def _numbers(cells: Sequence[Sequence[str]], columns: int) -> list[bool]:
    """Which columns hold numbers alone."""
    return [bool(cells) and all(_NUMBER.fullmatch(row[i]) for row in cells) for i in range(columns)]


def _rows(
    heads: Sequence[str], cells: Sequence[Sequence[str]], widths: Sequence[int], styles: Sequence[str]
) -> list[Line]:
    right = _numbers(cells, len(heads))

    def drawn(row: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(w) if number else cell.ljust(w) for cell, w, number in zip(row, widths, right, strict=True)
        ).rstrip()

    return [Line(drawn(heads), "bold"), *(Line(drawn(row), style) for row, style in zip(cells, styles, strict=True))]


def _folding(
    heads: Sequence[str], cells: Sequence[Sequence[str]], widths: Sequence[int], styles: Sequence[str], width: int
) -> list[Line]:
    """Each row in as many lines as its last column takes; that stands below where one of its words has no room."""
    lines, indent = [], " " * (sum(widths[:-1]) + 2 * (len(widths) - 1))
    for row in _rows(heads, cells, [*widths[:-1], 0], styles):
        begun, last = row[: len(indent)].rstrip(), row[len(indent) :]
        if max(map(len, last.split()), default=0) > width - len(indent):
            lines += [Line(text, row.style) for text in (begun, *wrap_words(f"    {last}", width, "    "))]
            continue
        words = wrap_words(indent + last, width, indent)
        words[0] = row[: len(indent)] + words[0][len(indent) :]
        lines += [Line(text.rstrip(), row.style) for text in words]
    return lines


def _below(
    heads: Sequence[str], cells: Sequence[Sequence[str]], widths: Sequence[int], styles: Sequence[str], width: int
) -> list[Line]:
    """The last column of each row below it."""
    upper = _rows(heads[:-1], [row[:-1] for row in cells], widths[:-1], styles)
    lines = [upper[0]]
    for row, line in zip(cells, upper[1:], strict=True):
        lines.append(line)
        name = f"{heads[-1]} " if heads[-1] else ""
        lines += [Line(text, line.style) for text in wrap_words(f"    {name}{row[-1]}", width, "    ") if row[-1]]
    return lines


def _blocks(heads: Sequence[str], cells: Sequence[Sequence[str]], styles: Sequence[str], width: int) -> list[Line]:
    """Each row as a block: its first column, then the others, each whole with its name."""
    lines = []
    for row, style in zip(cells, styles, strict=True):
        lines.append(Line(row[0], style or "bold"))
        text = ""
        for head, cell in zip(heads[1:], row[1:], strict=True):
            piece = f"{head} {cell}".strip()
            if cell in ("", "-"):
                continue
            if text and len(text) + 3 + len(piece) > width:
                lines.append(Line(text, style))
                text = ""
            text = f"{text}   {piece}" if text else f"  {piece}"
            if len(text) > width:
                *whole, text = wrap_words(text, width, "    ")
                lines += [Line(part, style) for part in whole]
        lines += [Line(text, style)] if text else []
    return lines
