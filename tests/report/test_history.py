"""What is remembered of all runs: the same as the records say, whatever becomes of the file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.core.mounts import file_system_type
from launcher.report.assemble import build_report
from launcher.report.document import ReportInput
from launcher.report.history import NAME, gather_history
from tests.report.made import BEGAN, CONCURRENCIES, write_runs
from tests.report.test_sources import REFUSED, change


def as_json(found: ReportInput) -> object:
    """What a report makes of it."""
    return build_report(found, title="", made="")


@pytest.fixture
def mounts(tmp_path: Path) -> Callable[[str], Path]:
    def table(kind: str) -> Path:
        path = tmp_path / f"mountinfo-{kind}"
        path.write_text(
            f"22 1 0:1 / / rw - overlay overlay rw\n23 22 0:2 / {tmp_path} rw,noatime shared:1 - {kind} x rw\n"
        )
        return path

    return table


def test_the_file_and_the_records_answer_alike(tmp_path: Path, mounts: Callable[[str], Path]) -> None:
    state = tmp_path / "state"
    runs = write_runs(state, 12)
    (state / "runs/torn").mkdir()
    (state / "runs/torn/run.json").write_text("{")
    local, nfs = mounts("ext4"), mounts("nfs4")
    for since, keys in ((0.0, ()), (BEGAN + 600 * 7 - 1, ()), (0.0, ("minimaxm3-fp8-gb200*",)), (0.0, ("nothing",))):
        read = gather_history(state, since, keys, nfs)
        assert not (state / NAME).exists() or since or keys, "a network's file system has no such file"
        assert as_json(gather_history(state, since, keys, local)) == as_json(read)
        assert len(read.problems) == 1
    assert {run.id for run in gather_history(state, BEGAN + 600 * 7 - 1, (), local).runs.values()} == {*runs[7:]}
    assert (state / NAME).stat().st_mode & 0o777 == 0o600


def test_it_follows_the_records(tmp_path: Path, mounts: Callable[[str], Path]) -> None:
    first, second, third = write_runs(tmp_path / "state", 3)
    ask = lambda: gather_history(tmp_path / "state", mounts=mounts("ext4"))  # noqa: E731
    assert len(ask().points) == 12
    change(tmp_path / "state", first, "summary", points={16: REFUSED})
    change(tmp_path / "state", first, "run", updated=time.time())
    shutil.rmtree(tmp_path / "state/runs" / second)
    found = ask()
    assert [*found.runs] == [first, third]
    assert [point.state for point in found.points].count("refused") == 1


@pytest.mark.parametrize("damage", ["text", "torn", "version", "locked", "directory"])
def test_a_file_that_cannot_be_used_costs_no_report(
    tmp_path: Path, mounts: Callable[[str], Path], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.report.history._PATIENCE", 0.1)
    state, path = tmp_path / "state", tmp_path / "state" / NAME
    write_runs(state, 3)
    good = as_json(gather_history(state, mounts=mounts("ext4")))
    other = None
    if damage == "text":
        path.write_text("no data base at all, but some text" * 100)
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "version":
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 99")
            database.execute("DELETE FROM runs")
    elif damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        other = sqlite3.connect(path)
        other.execute("BEGIN EXCLUSIVE")
        change(state, next((state / "runs").iterdir()).name, "run", updated=time.time())
    assert as_json(gather_history(state, mounts=mounts("ext4"))) == good
    if other is not None:
        other.close()


def test_a_summary_and_aggregates_that_come_later_are_seen(tmp_path: Path, mounts: Callable[[str], Path]) -> None:
    state, local, nfs = tmp_path / "state", mounts("ext4"), mounts("nfs4")
    (name,) = write_runs(state, 1)
    summary = state / "runs" / name / "summary.json"
    content = summary.read_text()
    summary.unlink()
    assert {point.state for point in gather_history(state, mounts=local).points} == {"missing"}
    summary.write_text(content)
    assert {point.state for point in gather_history(state, mounts=local).points} == {"ok"}
    row = {"conc": CONCURRENCIES[0], "infmax_model_prefix": "m", "median_ttft": 1e6, "hw": "b"}
    (state / "runs" / name / "results").mkdir(exist_ok=True)
    (state / "runs" / name / "results/agg_x.json").write_text(json.dumps(row))
    change(state, name, "run", results="run")
    assert as_json(gather_history(state, mounts=local)) == as_json(gather_history(state, mounts=nfs))
    (state / "runs" / name / "results/agg_y.json").write_text(json.dumps({**row, "median_ttft": 2e6}))
    assert as_json(gather_history(state, mounts=local)) == as_json(gather_history(state, mounts=nfs))


def test_names_and_rows_of_another_kind_cost_no_report(tmp_path: Path, mounts: Callable[[str], Path]) -> None:
    state, local, nfs = tmp_path / "state", mounts("ext4"), mounts("nfs4")
    write_runs(state, 2)
    odd = os.fsdecode(os.fsencode(state / "runs") + b"/n\xff")
    Path(odd).mkdir()
    Path(odd, "run.json").write_text("{}")
    for _ in range(2):
        found = gather_history(state, mounts=local)
        assert as_json(found) == as_json(gather_history(state, mounts=nfs)) and len(found.runs) == 2
        assert found.problems == ["run n\\xff: there is no record"]
        with contextlib.closing(sqlite3.connect(state / NAME)) as database, database:
            assert database.execute("SELECT count(*) FROM runs").fetchone() == (3,), "it is still remembered"
            database.execute("UPDATE runs SET said = ?", (b'["of another version"]',))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_runs(tmp_path, 6)
    change(tmp_path, runs[0], "run", created=time.time() - 3600)
    arguments = ["report", "--state", str(tmp_path), "--json"]
    assert main([*arguments, "--since", "2h"]) == 0
    assert [run["id"] for run in json.loads(capsys.readouterr().out)["runs"]] == [runs[0]]
    assert main([*arguments, "-k", "minimaxm3-*-gb200-dynamo-vllm"]) == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) > 0
    assert main([*arguments, runs[0], "--since", "2h"]) == 2
    for wrong in ("2", "d", "-1d", "nan d", "1y"):
        with pytest.raises(SystemExit):
            main([*arguments, f"--since={wrong}"])


def test_the_type_of_a_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    lines = (
        "/ rw - ext4 a rw",
        "/home rw shared:2 - nfs4 b rw",
        "/home/my\\040own rw - xfs c rw",
        "/home rw - lustre d rw",
    )
    table.write_text("".join(f"1 1 0:1 / {line}\n" for line in lines) + "torn line\n")
    places = {"/": "ext4", "/homes": "ext4", "/home": "lustre", "/home/a/b": "lustre", "/home/my own/x": "xfs"}
    assert {place: file_system_type(Path(place), table) for place in places} == places
    assert file_system_type(Path("/"), tmp_path / "none") == ""
    assert file_system_type(Path("/proc")) == "proc"
