"""The rehearsal's srtctl against what the real one was recorded to say (srt-slurm c88ef731)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from launcher.rehearsal import srtctl_stand_in
from tests.rehearsal.recorded_machine import RecordedMachine
from tests.shared import needs_shared
from tests.srtctl.transcripts import Transcript, transcript

RECORDED = [
    "apply-json",
    "apply-ok",
    "apply-ok-preflight",
    "bad-type-dryrun",
    "force-color-apply",
    "hf-model-apply",
    "int-in-string-map-dryrun",
    "missing-container-abspath-apply",
    "missing-container-alias-apply",
    "missing-container-alias-apply-nopreflight",
    "missing-container-alias-target-apply",
    "missing-container-registry-alias-apply",
    "missing-model-dir-apply",
    "missing-model-dir-apply-nopreflight",
    "missing-name-dryrun",
    "narrow-columns-apply",
    "output-dir-unwritable",
    "override-apply-all",
    "override-apply-all-json",
    "override-base-only-json",
    "override-second-sbatch-fails-json",
    "relative-output-dir",
    "sbatch-fails-apply",
    "sbatch-fails-apply-json",
    "sbatch-missing-apply",
    "sbatch-odd-cluster",
    "sbatch-odd-empty",
    "sbatch-odd-warn",
    "topology-bad-apply",
    "unknown-alias-apply",
    "unknown-alias-apply-json",
    "unknown-alias-apply-nopreflight",
    "unknown-backend-type-dryrun",
    "unknown-field-nested-dryrun",
    "unknown-field-top-apply-json",
    "unknown-field-top-dryrun",
    "unquoted-time-limit-dryrun",
]

_FIRST_IDS = {"override-apply-all": "5006", "override-apply-all-json": "5001"}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> RecordedMachine:
    return RecordedMachine(tmp_path_factory.mktemp("srv"))


def _stand_in(machine: RecordedMachine, recorded: Transcript, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put the process where the recorded one was: directory, environment. Returns its arguments."""
    words = [machine.here(word) for word in recorded.command]
    start = next(i for i, word in enumerate(words) if word in ("apply", "dry-run"))
    environ = dict(recorded.environ)
    stubs = re.findall(r"/srv/wk/(stub[\w-]*)", environ.pop("PATH", "/srv/wk/stub"))
    for name in ("SRTSLURM_CONFIG", "RUNNER_NAME", "COLUMNS", "FORCE_COLOR", "NO_COLOR", "LAUNCHER_LOCAL_JOBS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, machine.here(value))
    monkeypatch.setenv("PATH", machine.path(stubs[0] if stubs else None))
    monkeypatch.setenv("TMPDIR", str(machine.root))
    monkeypatch.setattr("tempfile.tempdir", None)
    if stubs:
        counter = machine.root / "wk" / stubs[0] / "sbatch.n"
        counter.unlink(missing_ok=True)
        if first := _FIRST_IDS.get(recorded.name):
            counter.write_text(first)
    monkeypatch.chdir(machine.here(recorded.cwd))
    # What `dry-run` refuses, `apply` refuses by the same words, and the stand-in has no other command.
    return ["apply", *words[start + 1 :]]


def _run(argv: list[str]) -> int:
    try:
        return srtctl_stand_in.main(argv)
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code


def _essence(text: str) -> str:
    """Text without white space (wrapping depends on the length of paths), times, temporary names and advice."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", text)
    text = re.sub(r"^Tip:(?:(?!🚀|❌|✅|\(\d|TIME|Error).*\n?)*", "", text, flags=re.M)
    text = re.sub(r"^\s*Configs to submit\s*$|^[┏┃┡│└].*$", "", text, flags=re.M)
    text = "".join(text.split())
    return re.sub(r"[\w./-]*/(srtctl_(?:stdin_)?)\w+\.(\w{4,5})", r"\1X.\2", text)


def _records(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"')]


@needs_shared
@pytest.mark.parametrize("name", RECORDED)
def test_it_says_what_srtctl_said(
    name: str, machine: RecordedMachine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = transcript(name)
    argv = _stand_in(machine, recorded, monkeypatch)
    code = _run(argv)
    captured = capsys.readouterr()
    assert code == recorded.exit
    out, err = machine.here(recorded.stdout), machine.here(recorded.stderr)
    assert [list(r) for r in _records(captured.out)] == [list(r) for r in _records(out)]
    assert _essence(captured.out) == _essence(out)
    assert _essence(captured.err) == _essence(err)


@needs_shared
def test_narrow_columns_break_the_line_with_the_job_id(
    machine: RecordedMachine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = _stand_in(machine, transcript("narrow-columns-apply"), monkeypatch)
    assert _run(argv) == 0
    assert "✅ Job 4242 \nsubmitted!" in capsys.readouterr().out


@needs_shared
def test_forced_colours_split_the_job_id(
    machine: RecordedMachine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = transcript("force-color-apply")
    assert _run(_stand_in(machine, recorded, monkeypatch)) == 0
    line = next(line for line in recorded.stdout.splitlines() if "✅" in line)
    assert line in capsys.readouterr().out


@needs_shared
@pytest.mark.parametrize("name", ["no-file-arg", "stdin-selector-dash", "unknown-subcommand"])
def test_a_wrong_command_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = transcript(name)
    start = next(i for i, word in enumerate(recorded.command) if word in ("apply", "submit"))
    assert _run(list(recorded.command[start:])) == recorded.exit == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    complaint = recorded.stderr.splitlines()[-1].partition(" (choose")[0]
    assert complaint in captured.err


@needs_shared
def test_missing_programs_are_told_and_json_stays_silent(
    machine: RecordedMachine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = transcript("apply-no-binaries-json")
    argv = _stand_in(machine, recorded, monkeypatch)
    programs = [machine.tree / "bin/uv", machine.tree / "bin/tachometer-scraper"]
    for program in programs:
        program.unlink()
    try:
        assert _run(argv) == recorded.exit == 1
    finally:
        for program in programs:
            program.touch()
    captured = capsys.readouterr()
    assert captured.out == recorded.stdout == ""
    for line in ("ERROR: Required binaries not found in", "✗ bin/uv (compute-arch uv)", "Run make setup ARCH="):
        assert line in captured.err and line in recorded.stderr
    assert "nats" not in captured.err


@needs_shared
@pytest.mark.parametrize("name", ["srtslurm-bogus", "srtslurm-sexa", "srtslurm-empty"])
def test_a_bad_srtslurm_yaml_is_dropped_whole(
    name: str, machine: RecordedMachine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = _stand_in(machine, transcript("apply-json"), monkeypatch)
    monkeypatch.setenv("SRTSLURM_CONFIG", str(machine.root / "wk/rec" / f"{name}.yaml"))
    assert _run(argv) == 0
    captured = capsys.readouterr()
    assert "| WARNING | Failed to load or validate srtslurm.yaml: {" in captured.err
    assert "Model:     minimax-m3-mxfp8" in captured.err, "no alias was resolved"


def _written(machine: RecordedMachine, job: str) -> Path:
    return machine.tree / "outputs" / job


@needs_shared
def test_the_output_directory_and_the_batch_script(
    machine: RecordedMachine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = _stand_in(machine, transcript("apply-json"), monkeypatch)
    monkeypatch.setenv("RUNNER_NAME", "gb200-nv_3")
    assert _run(argv) == 0
    (record,) = _records(capsys.readouterr().out)
    assert record["job_name"] == "gb200-nv_3", "RUNNER_NAME goes before the recipe's name"
    place = _written(machine, "4242")
    assert {p.name for p in place.iterdir()} >= {"4242.json", "config.yaml", "sbatch_script.sh", "logs"}
    assert (place / "config.yaml").read_text() == (machine.tree / argv[argv.index("-f") + 1]).read_text()
    script = (place / "sbatch_script.sh").read_text()
    for directive in (
        "job-name=gb200-nv_3",
        f"output={machine.tree}/outputs/%j/logs/sweep_%j.log",
        "nodes=3",
        "gpus-per-node=4",
        "account=benchmark",
        "partition=batch",
        "time=6:00:00",
        "mem=0",
    ):
        assert f"#SBATCH --{directive}\n" in script
    assert "segment" not in script and "exclusive" not in script
    assert json.loads((place / "4242.json").read_text())["tags"] == ["a", "b"]
    assert (place / "logs/sweep_4242.log").stat().st_size == 0
