"""Lines for a terminal: nothing that is compared or copied is cut, at any width; colours only where they are wanted."""

from __future__ import annotations

import io
import os
import pty

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.lines import Line, Terminal, count_of, field_lines, print_lines, table, wrap_words

ROWS = [
    ("1126-170046-minimaxm3-1k1k-1p1d-dep4-tp4-79dc", "gb200-nv", "146.25", "4242", "server: out of memory on node01"),
    ("1126-170047-minimaxm3-8k1k-1p1d-dep4-tp8-80dd", "gb200-nv", "11.5", "-", ""),
]
HEADS = ("run", "runner", "tok/s", "job", "")


@pytest.mark.parametrize("width", [None, 200, 120, 100, 80, 60, 40, 20])
def test_a_table_keeps_every_cell_whole_at_any_width(width: int | None) -> None:
    lines = table(HEADS, ROWS, width)
    text = "\n".join(lines)
    assert all(word in text for row in ROWS for cell in row for word in cell.split())
    longest = max(len(cell) for row in ROWS for cell in row[:-1])
    assert width is None or all(len(line) <= max(width, longest) for line in lines)


def test_what_all_rows_share_is_said_once_where_room_is_short() -> None:
    lines = table(HEADS, ROWS, 100)
    assert lines[0] == "runner gb200-nv" and sum("gb200-nv" in line for line in lines) == 1
    assert sum("gb200-nv" in line for line in table(HEADS, ROWS, 200)) == 2


def test_numbers_stand_on_the_right() -> None:
    assert table(("n", "x"), [("1", "a"), ("14.5", "b")], None) == ["   n  x", "   1  a", "14.5  b"]


@given(
    st.lists(
        st.lists(st.text(st.characters(codec="ascii", categories=("L", "N")), max_size=40), min_size=3, max_size=3),
        max_size=5,
    ),
    st.one_of(st.none(), st.integers(1, 120)),
)
def test_no_table_loses_a_word(rows: list[list[str]], width: int | None) -> None:
    text = "\n".join(table(("a", "b", ""), rows, width))
    assert all(cell in text for row in rows for cell in row)


def test_running_text_is_folded_between_words_and_fields_keep_their_column() -> None:
    assert wrap_words("one two " + "x" * 60, 30, "  ") == ["one two", "  " + "x" * 60]
    assert wrap_words("a b", None) == ["a b"]
    assert wrap_words(f"  a b {'c' * 30} dd", 20, "    ") == ["  a b", f"    {'c' * 30}", "    dd"]
    assert field_lines([("tree", "x" * 60)], 40) == [f"  tree       {'x' * 60}"], "a long word stays beside its name"
    lines = field_lines([("verdict", "one two three four five six seven eight nine ten")], 40)
    assert len(lines) == 2 and lines[1].startswith(" " * 13 + "seven")


def test_text_from_outside_moves_no_cursor_and_begins_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines([Line("a\x1b[2J\nb", "red"), Line("c\td", raw=True), "e\tf"], Terminal(80, True))
    assert capsys.readouterr().out.splitlines() == ["\x1b[1;31ma\\x1b[2J\\nb\x1b[0m", "c\td", "e\\tf"]


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({}, True)],
)
def test_a_terminal_gets_colours_and_none_with_no_color(environ: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        print_lines([Line("x", "green")], Terminal.of(stream, environ), stream)
        assert (b"\x1b[32mx" in os.read(ours, 1 << 16)) is coloured
    os.close(ours)
    assert Terminal.of(io.StringIO(), environ) == Terminal()
    assert Terminal.of(io.StringIO(), {"FORCE_COLOR": "1"}) == Terminal(colours=True)


@pytest.mark.parametrize(
    ("number", "words", "said"),
    [
        (0, ("file",), "0 files"),
        (1, ("file",), "1 file"),
        (2, ("entry", "entries"), "2 entries"),
        (1, ("job is", "jobs are"), "1 job is"),
    ],
)
def test_a_number_fits_what_it_counts(number: int, words: tuple[str, ...], said: str) -> None:
    assert count_of(number, *words) == said
