"""What the logs of real jobs of srtctl say of their ends, logs that only look like it, and which jobs are held."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace as change

from launcher.slurm.client import LOST, JobKey, Phase
from launcher.srtctl.kind import end_markers
from launcher.srtctl.planned import SrtctlJob
from tests.run.runs import plan_on, srtctl_kind
from tests.shared import SHARED, needs_shared

RULE = "=" * 42
GOOD = f"work\n\n{RULE}\n✓ Sweep completed successfully\nEnd: Sat Nov 21 17:41:17 UTC 2026\n{RULE}\n"
BAD = GOOD.replace("✓ Sweep completed successfully", "✗ Sweep failed (exit code: 3)")
JOB = JobKey("7")


def code(log: Path, job: JobKey = JOB) -> int | None:
    state = end_markers().read(job, log)
    if state is None:
        return None
    assert (state.phase, state.word, state.succeeded) == (Phase.TERMINAL, LOST, False)
    assert state.exit_code is not None and state.exit_code[1] == 0
    return state.exit_code[0]


@needs_shared
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("srtctl-transcripts/lab/custom-ok.sweep.log", 0),
        ("srtctl-transcripts/lab/bench-exit3.sweep.log", 3),
        ("srtctl-transcripts/lab/manual-sigterm.sweep.log", 1),
        ("one-machine/samples/srtctl-disagg-job3/logs/sweep_3.log", 0),
    ],
)
def test_recorded_ends(name: str, expected: int) -> None:
    assert SHARED is not None
    assert code(SHARED / "reference" / name) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, 0),
        (BAD, 3),
        ("x" * 9000 + "\n" + BAD, 3),
        (BAD + "slurmstepd: error: *** JOB 7 ON node01 CANCELLED AT 2026-11-21 ***\n", 3),
        (BAD + GOOD, 0),
        (GOOD + f"{RULE}\n🚀 srtctl Sweep Orchestrator\n{RULE}\n", None),
        (GOOD[: -len(RULE) - 1], None),
        (GOOD.replace("✓ Sweep", "2026 [INFO] ✓ Sweep"), None),
        ("", None),
    ],
)
def test_ends_by_their_text(tmp_path: Path, text: str, expected: int | None) -> None:
    log = tmp_path / "sweep_7.log"
    log.write_text(text)
    assert code(log) == expected


def test_a_log_that_is_older_than_the_job_is_anothers(tmp_path: Path) -> None:
    log = tmp_path / "sweep_7.log"
    log.write_text(GOOD)
    os.utime(log, (time.time() - 500,) * 2)
    assert code(log, JobKey("7", time.time())) is None
    assert code(log, JobKey("7", time.time() - 600)) == 0


def test_a_log_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    markers, log = end_markers(), tmp_path / "sweep_7.log"
    assert markers.read(JOB, log) is None
    log.write_text("work\n")
    assert markers.read(JOB, log) is None
    with log.open("a") as file:
        file.write(GOOD)
    assert markers.read(JOB, log) is not None


@pytest.mark.parametrize("asked", [True, False])
def test_a_node_looks_before_the_submission_where_that_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    plan = plan_on("gb200-nv", tmp_path)
    plan = replace(plan, details=change(SrtctlJob.of(plan), look_from_node=asked).as_details())
    said: list[str] = []
    run = SimpleNamespace(
        plan=plan,
        log=said.append,
        record=SimpleNamespace(directory=tmp_path / "state/runs/r"),
        services=SimpleNamespace(run=None, environment={}),
    )
    looked = "launcher.srtctl.short_job.check_from_node"
    monkeypatch.setattr(looked, lambda plan, state, run, environment: f"looked, kept in {state}")
    srtctl_kind().check_nodes(run)
    assert said == ([f"preflight: looked, kept in {tmp_path / 'state/preflight'}"] if asked else [])


def test_a_hold_that_the_recipe_or_the_cluster_asks_for_is_theirs(tmp_path: Path) -> None:
    def holds(recipe: dict[str, Any] | None, srtslurm: dict[str, Any]) -> bool:
        plan = plan_on("gb200-nv", tmp_path)
        job = SrtctlJob.of(plan)
        job = change(job, recipe=change(job.recipe, document=recipe), srtslurm=srtslurm)
        return srtctl_kind().submits_held(replace(plan, details=job.as_details()))

    held: dict[str, dict[str, str]] = {"sbatch_directives": {"hold": ""}}
    assert not holds(held, {})
    assert not holds({"base": {}, "override_x": held}, {})
    assert not holds({}, {"default_sbatch_directives": {"hold": ""}})
    assert holds({"sbatch_directives": {"comment": "hold"}}, {"default_sbatch_directives": None})
    assert holds(None, {})
