"""Runs as values: which are chosen, by which names they are known, and that the forms agree with their schema."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from launcher.cli import ending, helping, main
from launcher.cli.arguments import parser
from launcher.core.errors import ConfigError
from launcher.run.naming import shortest, sweep_named
from launcher.run.record import RecordedJob, RunRecord
from tests.report.made import write_runs


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunRecord]:
    """Four runs: two succeeded on one runner, one failed on another a long time ago, and one that cannot be read."""
    monkeypatch.setenv("LAUNCHER_STATE", str(tmp_path))
    made = [RunRecord.load(tmp_path / "runs", name) for name in write_runs(tmp_path, 4)]
    made[0].update(created=1000.0, state="failed", runner="other", job=RecordedJob("4242", says="FAILED"))
    for record in made[1:3]:
        record.update(created=time.time())
    (made[3].directory / "run.json").write_text("{")
    return made


def printed(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    assert main(list(argv)) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.out + captured.err


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ((), [0, 1, 2, 3]),
        (("--limit", "2"), [2, 3]),
        (("--state", "failed"), [0]),
        (("--state", "failed", "--state", "unreadable"), [0, 3]),
        (("--runner", "other"), [0]),
        (("--since", "1d", "--state", "succeeded"), [1, 2]),
    ],
)
def test_runs_are_chosen(
    runs: list[RunRecord], flags: tuple[str, ...], kept: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = json.loads(printed(capsys, "status", "--json", *flags))
    assert {one["id"] for one in shown} == {runs[i].directory.name for i in kept}
    table = printed(capsys, "status", *flags)
    assert [i for i, record in enumerate(runs) if record.directory.name in table] == kept


def test_a_state_directory_is_named_by_the_same_flag(
    runs: list[RunRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no runs below" in printed(capsys, "status", "--state", str(tmp_path / "none"), "--state", "failed")


def test_a_run_is_known_by_its_beginning_and_by_its_job(
    runs: list[RunRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    listed = json.loads(printed(capsys, "status", "--json"))
    for line in listed[:3]:
        assert json.loads(printed(capsys, "status", line["short"], "--json"))["id"] == line["id"]
    assert json.loads(printed(capsys, "status", "4242", "--json"))["id"] == runs[0].id
    assert json.loads(printed(capsys, "results", listed[1]["short"], "--json"))[0]["run_id"]
    assert printed(capsys, "report", listed[1]["short"], "--format", "csv").count("\n") > 4
    runs[1].update(job=RecordedJob("4242"))
    wrong = printed(capsys, "status", "4242", code=2)
    assert "may be any of 2 runs" in wrong and runs[0].id in wrong and runs[1].id in wrong
    assert "may be any of 4 runs" in printed(capsys, "status", runs[0].id[:1], code=2)


def test_one_run_of_several_that_there_is_not_keeps_no_other_back(
    runs: list[RunRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = printed(capsys, "status", runs[0].id, "nothing", runs[1].id, code=2)
    assert "1 of 3 runs cannot be shown" in shown and "there is no run nothing" in shown
    assert shown.index(f"{runs[0].id}   failed") < shown.index(f"{runs[1].id}   succeeded")


def test_short_forms_are_whole_words_that_no_other_name_begins_with() -> None:
    names = ["1127-004012-a-1p1d-ab12", "1127-004012-a-1p1d-cd34", "1127-0041", "m3", "12345-1-abcdef"]
    assert shortest(names) == {
        "1127-004012-a-1p1d-ab12": "1127-004012-a-1p1d-ab12",
        "1127-004012-a-1p1d-cd34": "1127-004012-a-1p1d-cd34",
        "1127-0041": "1127-0041",
        "m3": "m3",
        "12345-1-abcdef": "12345",
    }


def test_a_sweep_is_known_by_its_beginning(tmp_path: Path) -> None:
    for name in ("m3", "m3-weekend", "night"):
        (tmp_path / name).mkdir()
    assert [sweep_named(tmp_path, given) for given in ("m3", "m3-", "n", "x")] == ["m3", "m3-weekend", "night", "x"]
    with pytest.raises(ConfigError, match="may be any of 2 sweeps"):
        sweep_named(tmp_path, "m")


def test_what_is_printed_agrees_with_its_schema(runs: list[RunRecord], capsys: pytest.CaptureFixture[str]) -> None:
    both = [runs[0].id, runs[1].id]
    for argv in (
        ["status"],
        ["status", both[0]],
        ["status", *both],
        ["results", both[1]],
        ["matrix"],
        ["report", *both],
    ):
        value = json.loads(printed(capsys, *argv, "--json"))
        jsonschema.validate(value, json.loads(printed(capsys, "schema", argv[0])))


def test_every_command_that_gives_a_value_has_a_schema(capsys: pytest.CaptureFixture[str]) -> None:
    found = dict(helping.commands_with_schemas(parser()))
    assert printed(capsys, "schema").split("\n")[:-1] == list(found)
    for name, command in found.items():
        jsonschema.Draft202012Validator.check_schema(command.schema)
        one = parser()
        for word in name.split():
            one.fill()
            one = one.commands[word]
        one.fill()
        assert "--json" in {flag for action in one.all_flags for flag in action.option_strings}, name
    assert len(found) > 35
    assert "did you mean 'status'" in printed(capsys, "schema", "statsu", code=2)


def test_logs_of_several_runs_are_told_apart_and_one_without_a_job_keeps_no_other_back(
    runs: list[RunRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (0, 1):
        log = tmp_path / f"log{number}"
        log.write_text(f"line {number}\nlast")
        runs[number].update(job=RecordedJob(f"424{number}", log=str(log)))
    assert printed(capsys, "logs", "4240") == "line 0\nlast\n"
    assert printed(capsys, "logs", "-f", "4240", "4241").splitlines() == [
        f"{runs[i].id}  | {line}" for i in (0, 1) for line in (f"line {i}", "last")
    ]
    parts = [json.loads(line) for line in printed(capsys, "logs", "4240", "--json").splitlines()]
    assert [line for part in parts for line in part["lines"]] == ["line 0", "last"]
    runs[2].update(job=None)
    shown = printed(capsys, "logs", runs[2].id, "4241", code=2)
    assert "has no job yet" in shown and "line 1" in shown


def test_what_ending_runs_log_comes_at_once_and_errors_come_last_in_order() -> None:
    first_logged = threading.Event()

    def fails(log: Callable[[str], None]) -> None:
        raise ConfigError("x")

    def ends(log: Callable[[str], None]) -> None:
        log("one")
        assert first_logged.wait(60)  # the reader of the messages has this one while the run is still being ended
        log("two")

    messages = []
    for message in ending._end_all({"b": fails, "a": ends, "c": fails}):
        messages.append((message.run, message.text, [one.message for one in message.wrong]))
        first_logged.set()
    assert messages == [("a", "one", []), ("a", "two", []), ("b", "", ["x"]), ("c", "", ["x"])]
