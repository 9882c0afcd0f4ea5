"""Each refusal of a result has a check with a name, which `launcher report --explain` tells about."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.core.errors import ResultError
from launcher.result.contradictions import refusals, rule_of
from tests.result.test_traps import TRAPS
from tests.result.traps import lane


def test_what_is_refused_is_named(tmp_path: Path) -> None:
    """By all traps: each check is reached, and the last one only by numbers that contradict each other."""
    named: dict[str, str] = {}
    for number, (kind, mode, lay, _) in enumerate(TRAPS.values()):
        there = lane(tmp_path / str(number), kind, mode)
        lay(there)
        with contextlib.suppress(ResultError):
            named |= {one.text: rule_of(one.text) for one in there.collect().problems if one.kind == "invalid"}
    assert len(named) > 80
    # Files of nobody are problems of no concurrency; what a sweep or a failed job spoils is not collected; a low score
    # is only shown.
    assert {*refusals()} - {*named.values()} <= {"result-twice", "result-image", "result-job", "result-score"}
    rest = [text for text, rule in named.items() if rule == "result-numbers"]
    assert [text for text in rest if not re.search(r"is \S+, (?:and|more than|less than|below) ", text)] == []


@pytest.mark.parametrize("explained", ["", *refusals()])
def test_it_is_explained(explained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--explain", *([explained] if explained else [])]) == 0
    output = capsys.readouterr().out
    shown = [explained] if explained else [*refusals()]
    assert all(rule in output and refusals()[rule].title in output for rule in shown)
    assert not explained or "Next: " in output


def test_a_check_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--explain", "result-gpu"]) == 2
    assert "result-gpus" in capsys.readouterr().err
