"""The table of endings: each job's end is put down to the right layer, by the right line (endings.yaml)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.core import errors
from launcher.core.errors import JobError, LauncherError
from launcher.run.failures import first_failures
from launcher.run.verdict import verdict
from launcher.slurm.client import JobState, Phase

ENDINGS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("endings.yaml").read_text())


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    name = request.getfixturevalue("name") if "name" in request.fixturenames else ""
    monkeypatch.setenv("TZ", ENDINGS.get(name, {}).get("zone", "UTC"))
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _job(fields: dict[str, Any]) -> JobState:
    times = {key: _time(fields[key]) for key in ("started", "ended") if key in fields}
    codes = {key: tuple(fields[key]) for key in ("exit_code", "derived") if key in fields}
    words = {key: fields[key] for key in ("word", "nodes", "reason") if key in fields}
    return JobState(Phase.TERMINAL, **words, **codes, **times)


@pytest.mark.parametrize("name", ENDINGS)
def test_the_ending_of_a_job(name: str, tmp_path: Path) -> None:
    ending = ENDINGS[name]
    for file, text in ending.get("logs", {}).items():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        written = _time(str(ending.get("written", "2026-11-21 10:30:00")))
        os.utime(path, (written, written))
    job = _job(ending["job"]) if "job" in ending else None
    error: LauncherError = JobError(f"the job ended as {job.describe() if job else 'nobody knows'}")
    for kind, message in ending.get("error", {}).items():
        error = getattr(errors, kind)(message)
    during = (job.started, job.ended) if job is not None else (None, None)
    ruling = verdict(error, job, first_failures(tmp_path, seconds=60, during=during))
    assert ruling.layer == ending["layer"], ruling
    assert [words for words in ending["says"] if words not in ruling.text] == [], ruling
    assert [words for words in ending.get("never", ()) if words in ruling.text] == [], ruling
    assert "\n" not in ruling.text and ruling.text.isprintable()


def test_the_table_has_every_layer() -> None:
    assert len(ENDINGS) >= 70
    layers = {ending["layer"] for ending in ENDINGS.values()}
    of_jobs = {"scheduler", "node", "server", "benchmark", "image", "model", "configuration", "checkout"}
    assert layers == of_jobs | {"results", "cancelled", "launcher"}
