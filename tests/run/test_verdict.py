"""Verdicts from facts, and the first failure among logs of real shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.core.errors import (
    Cancelled,
    CheckoutError,
    ConfigError,
    ImageError,
    JobError,
    LauncherError,
    ModelError,
    ResultError,
    SubmissionError,
)
from launcher.run.failures import FILES, first_failures
from launcher.run.finish import judge
from launcher.run.kind import Run
from launcher.run.log_failure import LINES, Failure
from launcher.run.log_lines import TAIL, tail
from launcher.run.record import RecordedJob
from launcher.run.verdict import verdict
from launcher.slurm.client import JobState, Phase
from tests.run.runs import a_run, services

ENDED = JobError("the job ended as it did")


def ended(word: str, code: tuple[int, int] | None = (1, 0), nodes: str = "node[01-02]") -> JobState:
    return JobState(Phase.TERMINAL, word, exit_code=code, nodes=nodes)


def failure(text: str, file: str = "node02_decode_w0.out", source: str = "server") -> Failure:
    return Failure(file, source, text, 100.0)


@pytest.mark.parametrize(
    ("error", "layer"),
    [
        (ConfigError("unknown key"), "configuration"),
        (ImageError("404"), "image"),
        (ModelError("3 shards are missing"), "model"),
        (ResultError("concurrency 4: no result"), "results"),
        (CheckoutError("`make setup` failed (exit 2)"), "checkout"),
        (LauncherError("unexpected KeyError: 'x'"), "launcher"),
        (SubmissionError("sbatch: error: invalid partition specified: nowhere"), "scheduler"),
        (SubmissionError("Unknown field 'x'"), "configuration"),
        (JobError("no definite answer from slurm for 30 min"), "scheduler"),
        (Cancelled("stopped by SIGINT"), "cancelled"),
    ],
)
def test_what_ends_before_or_after_the_job_names_its_own_layer(error: LauncherError, layer: str) -> None:
    ruling = verdict(error)
    assert ruling.layer == layer
    assert error.message in str(ruling)


@pytest.mark.parametrize(
    ("word", "code", "layer"),
    [
        ("NODE_FAIL", (1, 0), "node"),
        ("BOOT_FAIL", (0, 0), "node"),
        ("FAILED", (0, 53), "node"),
        ("TIMEOUT", (0, 15), "scheduler"),
        ("DEADLINE", (0, 0), "scheduler"),
        ("CANCELLED", (0, 15), "scheduler"),
        ("PREEMPTED", (0, 0), "scheduler"),
        ("REVOKED", (0, 0), "scheduler"),
        ("OUT_OF_MEMORY", (0, 0), "server"),
        ("OUT_OF_MEMORY", (0, 125), "server"),
        ("FAILED", (3, 0), "benchmark"),
    ],
)
def test_without_a_log_slurms_word_decides(word: str, code: tuple[int, int], layer: str) -> None:
    assert verdict(ENDED, ended(word, code)).layer == layer


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "server"),
        ("RuntimeError: NCCL error: unhandled system error", "server"),
        ("pyxis: failed to create container filesystem for image: /x.sqsh", "image"),
        ("slurmstepd-n1: error: pyxis: container start failed with error code: 1", "image"),
        ("slurmstepd-n1: error: execve(): bash: No such file or directory", "image"),
        ("slurmstepd-n1: error: pyxis: --container-mounts: source path does not exist: /x/cache", "configuration"),
        ("launcher: error: image org/x:1: cannot be pulled, and is not on n1", "image"),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/m/model.safetensors.index.json'", "model"),
        ("KeyError: 'layers.0.w13_input_scale'", "model"),
        ("NVRM: Xid (PCI:0009:01:00): 79, GPU has fallen off the bus.", "node"),
        ("OSError: [Errno 116] Stale file handle: '/home/x'", "node"),
        ("vllm serve: error: unrecognized arguments: --moe-backendd", "configuration"),
    ],
)
def test_the_first_failure_of_a_server_decides_by_its_words(text: str, layer: str) -> None:
    ruling = verdict(ENDED, ended("FAILED"), [failure(text), failure("RuntimeError: later", source="benchmark")])
    assert ruling.layer == layer
    assert f"; node02_decode_w0.out: {text}" in ruling.text and "FAILED, exit code 1" in ruling.text
    assert " failed at " in ruling.text.partition(";")[0]


def test_a_benchmark_that_fails_first_is_the_benchmarks() -> None:
    first = failure("ValueError: no prompt", "benchmark.out", "benchmark")
    assert verdict(ENDED, ended("FAILED"), [first]).layer == "benchmark"


def test_a_node_failure_is_no_servers_fault_though_servers_complain() -> None:
    assert verdict(ENDED, ended("NODE_FAIL"), [failure("RuntimeError: peer is gone")]).layer == "node"


SLURM_SAYS = [
    "slurmstepd-node01: error: Detected 1 oom-kill event(s) in StepId=7.0. Some of your processes may have been killed "
    "by the cgroup out-of-memory handler.",
    "slurmstepd: error: Detected 2284 oom-kill event(s) in step 7.batch cgroup. Some of your processes may have been "
    "killed by the cgroup out-of-memory handler.",
    "slurmstepd: error: Detected 50 oom-kill event(s). Some of your processes may have been killed by the cgroup "
    "out-of-memory handler.",
    "slurmstepd-node01: error: Detected 1 oom_kill event in StepId=7.18. Some of the step tasks have been OOM Killed.",
    "slurmstepd: error: Exceeded job memory limit",
    "slurmstepd: Exceeded step memory limit at some point.",
    "slurmstepd-node01: error: StepId=7.2 exceeded memory limit (328347648 > 83886080), being killed",
    "slurmstepd: error: Job 7 exceeded virtual memory limit (328347648 > 83886080), being killed",
    "srun: error: node01: task 0: Out Of Memory",
    "srun: error: node01: tasks 0,2-3: Out Of Memory",
    "0: slurmstepd-n1: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
]
PROGRAMS_SAY = [
    "RuntimeError: slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0, says the page on memory",
    "ERROR pod exceeded memory limit (2 GiB > 1 GiB)",
    "RuntimeError: Exceeded step memory limit of the scheduler's planner",
    "ERROR Detected 3 out-of-memory events in the KV cache",
    "ERROR gpu0: task 0: Out Of Memory",
    "slurmstepd-node01: error: execve(): bash: No such file or directory",
    "srun: error: node01: task 0: Killed",
]


@pytest.mark.parametrize(("line", "limit"), [*((x, True) for x in SLURM_SAYS), *((x, False) for x in PROGRAMS_SAY)])
def test_what_slurm_itself_says_of_memory_is_the_limit_whatever_else_was_seen_of_the_end(
    line: str, limit: bool, tmp_path: Path
) -> None:
    """The job is one that failed: accounting may have no more of a step by then. The line stands behind the program's
    own words, before srun's, or alone."""
    words = {
        "behind": f"2026-11-21 10:00:00 ERROR worker is gone\n{line}\n",
        "before": f"{line}\nsrun: error: node01: task 0: Exited with exit code 137\n",
        "alone": f"{line}\n",
    }
    for place, text in words.items():
        logs = tmp_path / place
        logs.mkdir()
        (logs / "node01_decode_w0.out").write_text(text)
        end = "2026-11-21 10:00:01 [ERROR] Critical process 'decode_0_node01' exited with code 137\n"
        (logs / "sweep_7.log").write_text(end)
        said = verdict(ENDED, ended("FAILED"), first_failures(logs, seconds=5)).text
        assert ("the memory limit of the job was reached" in said) == limit, (place, said)
        assert not limit or ("node01_decode_w0.out: " in said and line[3:40] in said), (place, said)


def test_a_time_limit_stays_one_though_a_step_had_run_out_of_memory() -> None:
    told = failure(SLURM_SAYS[0])
    assert verdict(ENDED, ended("TIMEOUT"), [told]).layer == "scheduler"
    assert verdict(ENDED, ended("CANCELLED"), [told]).layer == "scheduler"
    assert verdict(ENDED, ended("CANCELLED"), [failure(SLURM_SAYS[4])]).layer == "server", "Slurm cancels it for that"


def test_a_success_has_no_layer() -> None:
    assert verdict(None, ended("COMPLETED", (0, 0))).layer == ""


def test_the_first_failure_is_the_earliest_and_the_orchestrator_comes_last(tmp_path: Path) -> None:
    (tmp_path / "sweep_7.log").write_text(
        "2026-11-21 10:00:00 [ERROR] Critical process 'decode_0' exited with code 1\n"
    )
    (tmp_path / "node01_prefill_w0.out").write_text(
        "2026-11-21 10:00:09 INFO up\nTraceback (most recent call last):\n  File x\nConnectionError: peer\n"
    )
    (tmp_path / "node02_decode_w0.out").write_text("2026-11-21 10:00:05 ERROR CUDA error: out of memory\nlast words\n")
    (tmp_path / "benchmark.out").write_text("2026-11-21 10:00:01 INFO 0 errors so far\n")
    found = first_failures(tmp_path, seconds=5)
    assert [f.file for f in found] == ["node02_decode_w0.out", "node01_prefill_w0.out", "sweep_7.log"]
    assert found[1].text == "ConnectionError: peer"
    assert "last words" in found[0].lines


def test_what_slurm_says_at_a_cancel_is_no_failure_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "sweep_7.log").write_text("slurmstepd: error: *** JOB 7 ON node01 CANCELLED AT 2026-11-21T10:00 ***\n")
    assert first_failures(tmp_path, seconds=5) == []


def test_of_pyxis_the_line_that_says_something_is_taken(tmp_path: Path) -> None:
    said = ("child 5 failed with error code: 1", "failed to create container filesystem for image: /x.sqsh")
    (tmp_path / "benchmark_job.log").write_text("".join(f"slurmstepd-n1: error: pyxis: {line}\n" for line in said))
    (found,) = first_failures(tmp_path, seconds=5)
    assert "failed to create container filesystem" in found.text


def test_what_programs_say_when_the_time_limit_ends_them_is_no_failure(tmp_path: Path) -> None:
    limit = "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-21T10:00:00 DUE TO TIME LIMIT ***\n"
    after = 'srun: error: n1: task 0: Terminated\nslurm_script: line 23: 5 Killed  "$@"\n'
    log = tmp_path / "benchmark_job.log"
    log.write_text(f"step 1\n{limit}{after}")
    assert first_failures(tmp_path, seconds=5) == []
    log.write_text(f"RuntimeError: out of memory\n{limit}{after}")
    assert [f.text for f in first_failures(tmp_path, seconds=5)] == ["RuntimeError: out of memory"]


def test_logs_are_read_in_bounded_pieces(tmp_path: Path) -> None:
    log = tmp_path / "node01_decode_w0.out"
    with log.open("wb") as file:
        file.seek(50 << 30)  # a sparse file of 50 GiB
        file.write(b"\nERROR at the end\n" + b"after\n" * 100)
    (failure_,) = first_failures(tmp_path, seconds=5)
    assert failure_.text == "ERROR at the end" and len(failure_.lines) <= LINES
    assert sum(map(len, tail(log))) <= TAIL
    ticks = iter([0.0, 1.0, 9.0])
    assert first_failures(tmp_path, seconds=5, clock=lambda: next(ticks)) == [failure_]
    for number in range(FILES + 5):
        (tmp_path / f"x{number}.out").write_text("ERROR\n")
    assert len(first_failures(tmp_path, seconds=60)) <= FILES


def test_evidence_is_kept_without_secrets(tmp_path: Path) -> None:
    logs = tmp_path / "outputs/1/logs"
    logs.mkdir(parents=True)
    (logs / "sweep_1.log").write_text("ERROR hf_secretsecret\n")

    class Kind:
        """Gives one file that is there, and one that is not."""

        name = "files"

        def evidence(self, run: Run) -> dict[str, Path]:
            return {"sbatch_script.sh": logs / "sweep_1.log", "config.yaml": tmp_path / "absent"}

    run = a_run(tmp_path, given=services(environ={"HF_TOKEN": "hf_secretsecret"}), kind=Kind())  # type: ignore[arg-type]
    run.record.update(job=RecordedJob("1", 1.0, str(logs.parent), str(logs / "sweep_1.log")))
    run.record.event("job", "RUNNING")
    run.log("a note")
    judge(run, ENDED, ended("FAILED"))
    texts = {p.name: p.read_text() for p in run.record.evidence.iterdir()}
    assert set(texts) == {"verdict.txt", "events.txt", "first-failure.txt", "job.log", "sbatch_script.sh"}
    assert not any("hf_secret" in text for text in texts.values())
    assert texts["events.txt"].endswith("RUNNING\n") and "note" not in texts["events.txt"].split()
