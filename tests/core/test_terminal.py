"""Text from outside gives neither a terminal nor GitHub's runner a command."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.reading import open_regular
from launcher.core.terminal import Guarded, log_line, one_line, printable

HOSTILE = [
    "a\n::set-output name=x::y",
    "a\r::add-mask::1",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\u202egnp.exe",
    "a\u2028b",
    "\udcff.log",
    "\0",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_is_shown_as_one_line_without_controls(text: str) -> None:
    shown = one_line(text)
    assert len(shown.splitlines()) == 1 and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    assert shown.encode()
    assert "\u202e" not in shown and "\u2028" not in shown


def test_what_is_ordinary_stays_as_it_is() -> None:
    for text in ("sa-bench_isl_1024/results.json", "caf\u00e9 … 漢字", "a: b, 50 %"):
        assert one_line(text) == printable(text) == log_line(text) == text
    assert printable("two\n\tlines") == "two\n\tlines"


def test_a_log_loses_its_colours_and_nothing_else() -> None:
    assert log_line("\x1b[32mINFO\x1b[0m ready\x1b[K") == "INFO ready\\x1b[K"


def commands(said: str) -> list[str]:
    """What a GitHub runner would obey."""
    return [line for line in said.splitlines() if line.strip().startswith("::") or "##[" in line]


@given(
    st.lists(st.sampled_from(["::", "set-output name=x::y", " ", "\n", "\r", "\t", "##[error]", "x", "\x1b", "\u2028"]))
)
def test_nothing_that_is_printed_is_a_command_however_it_is_cut(parts: list[str]) -> None:
    inner = io.StringIO()
    guarded = Guarded(inner, github=True)
    for part in parts:
        guarded.write(part)
    assert commands(inner.getvalue()) == [], inner.getvalue()
    whole = io.StringIO()
    Guarded(whole, github=True, styled=True).write("".join(parts))
    assert [line for line in whole.getvalue().split("\n") if line.strip().startswith("::")] == []


def test_outside_of_github_a_line_may_begin_so() -> None:
    inner = io.StringIO()
    Guarded(inner, github=False).write("::1 is an address\n")
    assert inner.getvalue() == "::1 is an address\n"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null"), tmp_path / "none"):
        with pytest.raises(OSError):
            open_regular(path)
