"""Every end of a run: its verdict, its evidence, what GitHub is told, and that no secret is in any of it."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec import structs

from launcher.cli.ci import report_to_github
from launcher.cli.console import Console
from launcher.core.errors import (
    Cancelled,
    CheckoutError,
    ConfigError,
    ImageError,
    JobError,
    LauncherError,
    ModelError,
    SubmissionError,
    SubmissionUnknown,
)
from launcher.core.github import GitHub
from launcher.result.logs import LEFT_OUT, TARBALL
from launcher.run import finish
from launcher.run.fields import Verdict
from launcher.run.finish import FOLDER, Outcome
from launcher.run.kind import Run
from launcher.run.record import MAX_EVIDENCE_BYTES, RecordedJob, RunRecord
from launcher.slurm.client import JobKey, JobState, Phase
from launcher.srtctl.planned import SrtctlJob
from tests.benchmarks import a_recipe
from tests.core.test_redact import TOKENS
from tests.plans import with_job
from tests.result.documents import fixed_1k1k
from tests.result.test_logs import worst
from tests.run.runs import a_run, plan_on, services

SECRETS = {
    "HF_TOKEN": "hf_" + "q8Wm3ZtR7x" * 3 + "Lk2p",
    "GH_TOKEN": "ghp_" + "Zx9Yw8Vu7T" * 3 + "s6Rq5p",
    "DOCKER_PASSWORD": "correct horse/battery",
}
OTHERS = TOKENS["nvidia"]
"""A token that no variable of ours holds."""

SPILLED = f"token {SECRETS['HF_TOKEN']} {SECRETS['GH_TOKEN']} login {SECRETS['DOCKER_PASSWORD']} {OTHERS}\n"
ALWAYS = {"verdict.txt", "events.txt", "recipe.yaml", "srtslurm.yaml"}
OF_A_JOB = {"job.log", "scheduler.json", "sbatch_script.sh", "config.yaml"}


class Slurm:
    """Says of a job what it is asked to print, with a secret in its comment."""

    name = "slurm"

    def describe(self, job: JobKey) -> dict[str, str]:
        return {"scontrol": f"JobId={job.id} Comment={SPILLED}", "sacct": "x" * (2 * MAX_EVIDENCE_BYTES)}

    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)


@dataclass
class BegunRun:
    """A run of which the job has begun, in a directory of its own, as `launcher ci` would drive it."""

    root: Path
    run: Run

    @property
    def record(self) -> RunRecord:
        return self.run.record

    @property
    def verdict(self) -> Verdict:
        assert self.record.fields.verdict is not None
        return self.record.fields.verdict

    @property
    def output(self) -> Path:
        return self.root / "tree/outputs/7"

    def submitted(self, log: str = "", worker: str = "", results: tuple[int, ...] = ()) -> None:
        """As after a submission: srtctl's files, and logs."""
        logs = self.output / "logs"
        logs.mkdir(parents=True)
        (self.output / "sbatch_script.sh").write_text(f"#!/bin/bash\nexport HF_TOKEN={SPILLED}")
        (self.output / "config.yaml").write_text(f"environment: {{HF_TOKEN: {SPILLED.strip()!r}}}\n")
        (logs / "sweep_7.log").write_text(f"{SPILLED}{log}")
        (logs / "core").write_bytes(b"\0\xff" + SPILLED.encode() * 3 + b"\xfe")
        if worker:
            (logs / "node02_decode_w0.out").write_text(f"2026-11-21 10:00:05 ready {SPILLED}{worker}\n")
        now = time.time()
        job = RecordedJob("7", now - 5, str(self.output), str(self.output / "logs/sweep_7.log"))
        self.record.update(state="running", job=job)
        for at in results:
            path = logs / "sa-bench_isl_1024_osl_1024" / f"results_concurrency_{at}_gpus_8_ctx_4_gen_4.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(fixed_1k1k(at)))
        self.record.event("job", f"RUNNING on node[01-02] {SPILLED}")

    def annotation(self, outcome: Outcome) -> str:
        """What GitHub reads of the end."""
        said = io.StringIO()
        environ = {**SECRETS, "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(self.root / "summary.md")}
        with GitHub(environ, said) as github:
            report_to_github(github, self.record.directory.parent, [outcome])
        return said.getvalue()

    def evidence(self) -> dict[str, str]:
        return {p.name: p.read_text() for p in (self.record.directory / "evidence").iterdir()}

    def packed(self) -> dict[str, bytes]:
        """The members of the tarball that the workflow uploads."""
        with tarfile.open(self.root / "workspace" / TARBALL) as tar:
            return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]

    def everything(self) -> Iterator[tuple[str, bytes]]:
        """Whatever lies below the run's directory and in the workspace, tarballs opened."""
        for top in (self.record.directory, self.root / "workspace", self.root / "summary.md"):
            for path in [top, *top.rglob("*")] if top.exists() else ():
                if path.is_file() and path.name != TARBALL:
                    yield str(path), path.read_bytes()
        yield from self.packed().items()


@pytest.fixture
def begun_run(tmp_path: Path) -> BegunRun:
    (tmp_path / "workspace").mkdir()
    plan = plan_on("local", tmp_path / "workspace")
    tree = structs.replace(SrtctlJob.of(plan).srt_slurm, root=str(tmp_path / "tree"))
    plan = with_job(plan, srt_slurm=tree, recipe=structs.replace(SrtctlJob.of(plan).recipe, document=a_recipe()))
    run = a_run(tmp_path, plan, services(Slurm(), SECRETS))
    run.record.update(results="workspace")
    return BegunRun(tmp_path, run)


def leaks(begun_run: BegunRun, said: str) -> list[str]:
    """Where a secret survived."""
    values = [*SECRETS.values(), OTHERS]
    found = [where for where, data in begun_run.everything() if any(v.encode() in data for v in values)]
    return found + ["the annotation" for v in values if v in said]


OOM = "torch.OutOfMemoryError: CUDA out of memory"


@dataclass(frozen=True)
class End:
    """How a job ended, what its logs say, and what is to be said of it."""

    word: str
    code: tuple[int, int]
    layer: str
    text: str
    worker: str = ""
    results: tuple[int, ...] = ()
    exit_code: int = 6


JOBS = {
    "good": End("COMPLETED", (0, 0), "", "good:", results=(4, 16), exit_code=0),
    "out of memory, exit code 0": End("OUT_OF_MEMORY", (0, 0), "server", "OUT_OF_MEMORY"),
    "out of memory": End("OUT_OF_MEMORY", (0, 125), "server", "oom-kill", worker="slurmstepd: error: oom-kill event"),
    "time limit": End("TIMEOUT", (0, 0), "scheduler", "the time limit was reached"),
    "time limit, after a failure": End(
        "TIMEOUT", (0, 0), "scheduler", f"before that node02_decode_w0.out: {OOM}", worker=OOM
    ),
    "deadline": End("DEADLINE", (0, 0), "scheduler", "its deadline"),
    "node failure": End("NODE_FAIL", (1, 0), "node", "a node failed on node[01-02]", worker=OOM),
    "boot failure": End("BOOT_FAIL", (0, 0), "node", "did not boot"),
    "cancelled by another": End("CANCELLED", (0, 15), "scheduler", "somebody else cancelled it"),
    "preempted": End("PREEMPTED", (0, 15), "scheduler", "another job took its place"),
    "a server fails": End("FAILED", (1, 0), "server", f"node02_decode_w0.out: {OOM}", worker=OOM),
    "an image that pyxis cannot mount": End(
        "FAILED", (1, 0), "image", "pyxis", worker="pyxis: failed to create container filesystem"
    ),
    "a node that lost its GPU": End("FAILED", (1, 0), "node", "Xid", worker="NVRM: Xid (PCI:0009): 79"),
    "no log can be written": End("FAILED", (0, 53), "node", "could not be opened"),
    "the script fails": End("FAILED", (3, 0), "benchmark", "exit code 3"),
    "results are missing": End("COMPLETED", (0, 0), "results", "concurrency 16", results=(4,), exit_code=7),
    "no results at all": End("COMPLETED", (0, 0), "results", "2 of the results", exit_code=7),
}


@pytest.mark.parametrize("name", JOBS)
def test_the_end_of_a_job(begun_run: BegunRun, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    end = JOBS[name]
    monkeypatch.setattr(finish, "RESULT_PATIENCE", 0.0)
    begun_run.submitted(worker=end.worker, results=end.results)
    state = JobState(Phase.TERMINAL, end.word, exit_code=end.code, nodes="node[01-02]")
    outcome = finish.finish(begun_run.run, state)
    said = begun_run.annotation(outcome)
    assert leaks(begun_run, said) == []
    assert outcome.exit_code == end.exit_code
    kept = json.loads((begun_run.record.directory / "run.json").read_text())
    assert kept["verdict"]["layer"] == end.layer and end.text in kept["verdict"]["text"], kept["verdict"]
    evidence = begun_run.evidence()
    assert evidence.keys() >= ALWAYS | OF_A_JOB | ({"first-failure.txt"} if end.exit_code else set())
    assert f"job 7: {state.describe()}" in evidence["verdict.txt"] and "RUNNING on node" in evidence["events.txt"]
    assert all(len(text) <= 2 * MAX_EVIDENCE_BYTES for text in evidence.values())
    assert {n.removeprefix(f"{FOLDER}/") for n in begun_run.packed() if n.startswith(FOLDER)} == evidence.keys()
    if end.layer:
        assert f"::{end.layer}: " in said and end.text in said
    else:
        assert "::error" not in said
    if end.worker:
        assert end.worker in evidence["first-failure.txt"] or end.word == "NODE_FAIL"


EARLY = {
    "configuration": (ConfigError(f"a key is wrong {SPILLED}", where="x.yaml:3"), "configuration", 2),
    "image": (ImageError("404, the registry has no such image"), "image", 3),
    "model": (ModelError("3 shards are missing"), "model", 4),
    "checkout": (CheckoutError("fatal: unable to access git"), "checkout", 5),
    "set-up": (
        CheckoutError("`make setup` failed (exit 2):\nmake: entering\nmake: *** [setup] Error 1"),
        "checkout",
        5,
    ),
    "a full disk": (LauncherError("No space left on device", where="/state"), "launcher", 1),
    "refused": (
        SubmissionError("srtctl apply exited with 1\nsaid\nsbatch: error: invalid partition specified: nowhere"),
        "scheduler",
        5,
    ),
    "refused by srtctl": (SubmissionError("srtctl apply exited with 1\nUnknown field 'x'"), "configuration", 5),
    "lost": (SubmissionUnknown("whether a job was submitted is unknown."), "scheduler", 5),
    "given up": (JobError("no definite answer for 30 min"), "scheduler", 6),
    "cancelled": (Cancelled("stopped by SIGINT"), "cancelled", 130),
}


@pytest.mark.parametrize("name", EARLY)
def test_an_end_before_the_job(begun_run: BegunRun, name: str) -> None:
    error, layer, code = EARLY[name]
    assert isinstance(error, LauncherError)
    begun_run.record.event("stage", "images …")
    ended = finish.end_early(begun_run.run, error)
    said = begun_run.annotation(ended)
    assert leaks(begun_run, said) == []
    assert ended.exit_code == code
    assert begun_run.verdict.layer == layer
    last = error.message.split("***")[0].splitlines()[-1].split(" token")[0]
    assert last in begun_run.verdict.text
    assert f"::{layer}: " in said and last in said
    evidence = begun_run.evidence()
    assert evidence.keys() == ALWAYS | {"first-failure.txt"}
    assert "images …" in evidence["events.txt"] and a_recipe()["name"] in evidence["recipe.yaml"]
    assert {n.removeprefix(f"{FOLDER}/") for n in begun_run.packed()} == evidence.keys()


@pytest.mark.parametrize(
    ("step", "facts", "text"),
    [
        ("images", {"last": "acme/engine:1"}, "stopped by SIGTERM while importing acme/engine:1"),
        ("images", {}, "stopped by SIGTERM while importing the images"),
        ("model", {}, "stopped by SIGTERM while looking at the checkpoint"),
        ("workspace", {}, "stopped by SIGTERM while preparing the checkout"),
        ("submit", {}, "stopped by SIGTERM"),
    ],
)
def test_a_cancel_before_the_job_says_at_what(begun_run: BegunRun, step: str, facts: dict[str, str], text: str) -> None:
    begun_run.record.set_step("workspace", "done")
    begun_run.record.set_step(step, "running", **facts)
    finish.end_early(begun_run.run, Cancelled("stopped by SIGTERM", exit_code=143))
    assert begun_run.verdict == Verdict("cancelled", text)


def test_a_cancelled_job_leaves_its_logs_and_evidence_and_then_what_became_of_it(begun_run: BegunRun) -> None:
    begun_run.submitted(worker=OOM)
    outcome = finish.end_early(begun_run.run, Cancelled("stopped by SIGTERM", exit_code=143))
    assert begun_run.verdict == Verdict("cancelled", "stopped by SIGTERM")
    assert {
        "sweep_7.log",
        f"{FOLDER}/job.log",
        f"{FOLDER}/verdict.txt",
        f"{FOLDER}/config.yaml",
    } <= begun_run.packed().keys()
    finish.record_state_after_cancel(begun_run.run, JobState(Phase.TERMINAL, "CANCELLED", exit_code=(0, 15)))
    assert "after cancelling: CANCELLED" in begun_run.evidence()["events.txt"]
    assert begun_run.evidence().keys() == ALWAYS | OF_A_JOB | {"first-failure.txt"}
    assert leaks(begun_run, begun_run.annotation(outcome)) == []


def test_what_lies_in_the_tarball_is_bounded_and_no_result(begun_run: BegunRun) -> None:
    begun_run.submitted(log="x" * 79 + "\n" + "a line of a long log\n" * 100_000)
    for name in ("sbatch_script.sh", "config.yaml"):
        (begun_run.output / name).write_text("# a line of a long file\n" * 100_000)
    for number in range(20_000):
        begun_run.record.event("job", f"event {number} " + "x" * 60)
    finish.finish(begun_run.run, JobState(Phase.TERMINAL, "FAILED", exit_code=(1, 0)))
    packed = {name: data for name, data in begun_run.packed().items() if name.startswith(FOLDER)}
    assert 0 < max(map(len, packed.values())) <= MAX_EVIDENCE_BYTES + 4096, {n: len(d) for n, d in packed.items()}
    assert not any(Path(name).suffix == ".json" and "result" in name for name in packed)
    assert b"event 19999 " in packed[f"{FOLDER}/events.txt"] and packed[f"{FOLDER}/config.yaml"].endswith(b"file\n")


def test_whatever_a_job_leaves_its_end_is_written_and_gives_nobody_a_command(
    begun_run: BegunRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names that are not UTF-8 or of two lines, links to themselves, 1,500 levels, pipes, an endless line."""
    monkeypatch.setattr(finish, "RESULT_PATIENCE", 0.0)
    begun_run.submitted(results=(4,))
    logs = begun_run.output / "logs"
    os.mkfifo(logs / "node01.out")
    (logs / "node02.out").write_bytes(b"x" * 5_000_000)
    (logs / "eval_results").mkdir()
    (logs / "eval_results" / "results_1\n::set-output name=x::y\x1b[2J.json").write_text("[1]")
    console = Console({"r1": "r1"}, None)
    begun_run.record.listeners.append(console.event)
    with worst(logs / "worst"):
        outcome = finish.finish(begun_run.run, JobState(Phase.TERMINAL, "COMPLETED", exit_code=(0, 0)))
    console.outcomes(begun_run.record.directory.parent, [outcome])
    said = capsys.readouterr().out
    assert outcome.exit_code == 7 and begun_run.verdict.layer == "results"
    shown = said + begun_run.annotation(outcome) + (begun_run.root / "summary.md").read_text()
    assert not [line for line in shown.splitlines() if line.strip().startswith("::set-output")]
    assert "\x1b[2J" not in shown
    assert {"sweep_7.log", "worst/caf\udce9\udcff.log", "node02.out"} <= begun_run.packed().keys()
    assert b"more than 32 levels" in begun_run.packed()[LEFT_OUT]
