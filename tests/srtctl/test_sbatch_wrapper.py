"""The sure sbatch: a program of that name on PATH that answers badly, and a squeue that knows better."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from launcher.srtctl.sbatch_wrapper import VARIABLE, reported_cluster, wrapper_on_path

LINE = "4242|PENDING|||1795289084|N/A|N/A||None|tok-a\n"


class ScriptedPrograms:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        self.path = f"{self.bin}:{os.environ['PATH']}"
        for name in ("squeue", "sacct", "scontrol"):
            self.program(name, "exit 0")

    def program(self, name: str, body: str) -> None:
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)

    def sbatch(
        self, *argv: str, earlier: frozenset[str] = frozenset(), hold: bool = False
    ) -> subprocess.CompletedProcess[str]:
        with wrapper_on_path("tok-a", earlier, self.path, hold=hold) as environment:
            return subprocess.run(
                ["sbatch", *argv],
                env={**os.environ, **environment},
                cwd=self.root,
                capture_output=True,
                text=True,
                timeout=60,
            )


@pytest.fixture
def programs(tmp_path: Path) -> ScriptedPrograms:
    return ScriptedPrograms(tmp_path)


@pytest.mark.parametrize(
    "says",
    [
        'echo "Submitted batch job 4242"',
        'echo "4242;fake"',
        'echo "Submitted batch job 4242 on cluster fake"',
        'echo "*** 12 nodes are down ***"; echo "Submitted batch job 4242"; echo "Welcome"',
    ],
)
def test_an_answer_in_any_form_is_given_in_one(programs: ScriptedPrograms, says: str) -> None:
    programs.program("sbatch", says)
    script = programs.root / "job.slurm"
    script.write_text(f"#!/bin/bash\n#SBATCH --output={programs.root}/outputs/%j/logs/sweep_%j.log\n")
    done = programs.sbatch(str(script))
    assert (programs.root / "outputs/4242/logs").is_dir()
    assert (done.returncode, done.stdout) == (0, "Submitted batch job 4242\n")


@pytest.mark.parametrize(
    ("says", "cluster"), [("4242;east", "east"), ("Submitted batch job 4242 on cluster east", "east"), ("4242", "")]
)
def test_the_cluster_that_sbatch_names_is_left_for_the_launcher(
    programs: ScriptedPrograms, says: str, cluster: str
) -> None:
    programs.program("sbatch", f'echo "{says}"')
    with wrapper_on_path("tok-a", frozenset(), programs.path) as environment:
        subprocess.run(["sbatch", "x"], env={**os.environ, **environment}, capture_output=True, timeout=60, check=True)
        assert reported_cluster(environment) == cluster
    assert reported_cluster(environment) == reported_cluster({}) == ""


@pytest.mark.parametrize(
    "says", ["exit 0", 'echo "sbatch: error: Socket timed out on send/recv" >&2; exit 1', "exit 1"]
)
def test_a_lost_answer_is_found_by_the_token_and_submitted_once(programs: ScriptedPrograms, says: str) -> None:
    programs.program("sbatch", f'echo x >> "{programs.root}/calls"; {says}')
    programs.program("squeue", f"printf '{LINE}'")
    script = programs.root / "job.slurm"
    script.write_text(f"#!/bin/bash\n#SBATCH --output={programs.root}/outputs/%j/logs/sweep_%j.log\n")
    done = programs.sbatch(str(script))
    assert (done.returncode, done.stdout) == (0, "Submitted batch job 4242\n"), done
    assert (programs.root / "calls").read_text() == "x\n"
    assert (programs.root / "outputs/4242/logs").is_dir()
    assert "did not print the job's id" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "",
        LINE.replace("tok-a", "tok-b"),
        LINE.replace("PENDING", "FAILED"),  # what was refused leaves such a record, without a node
    ],
)
def test_a_refusal_stays_one(programs: ScriptedPrograms, line: str) -> None:
    programs.program("sbatch", 'echo "sbatch: error: invalid partition specified: x" >&2; exit 1')
    programs.program("squeue", f"printf '{line}'")
    done = programs.sbatch("script")
    assert (done.returncode, done.stdout) == (1, "")
    assert "invalid partition" in done.stderr


def test_a_job_of_an_earlier_submission_is_not_taken_for_this_one(programs: ScriptedPrograms) -> None:
    programs.program("sbatch", "exit 1")
    programs.program("squeue", f"printf '{LINE}'")
    assert programs.sbatch("script", earlier=frozenset({"4242"})).returncode == 1


def test_the_real_one_sees_nothing_of_us(programs: ScriptedPrograms) -> None:
    programs.program("sbatch", f'env > "{programs.root}/env"; printf "%s\\n" "$@" > "{programs.root}/argv"; echo 7')
    programs.sbatch("--parsable", "a b")
    seen = dict(line.split("=", 1) for line in (programs.root / "env").read_text().splitlines() if "=" in line)
    assert VARIABLE not in seen
    assert seen["PATH"] == programs.path
    assert (programs.root / "argv").read_text() == "--parsable\na b\n"


def test_a_job_is_submitted_held_by_an_option_before_the_script(programs: ScriptedPrograms) -> None:
    programs.program("sbatch", f'printf "%s\\n" "$@" > "{programs.root}/argv"; echo 7')
    programs.sbatch("--parsable", "job.slurm", hold=True)
    assert (programs.root / "argv").read_text().split() == ["--hold", "--parsable", "job.slurm"]


def test_nothing_is_put_before_an_sbatch_that_is_not_there(tmp_path: Path) -> None:
    with wrapper_on_path("t", frozenset(), str(tmp_path)) as environment:
        assert environment == {"PATH": str(tmp_path)}


def test_the_program_goes_with_the_submission(programs: ScriptedPrograms) -> None:
    programs.program("sbatch", "exit 0")
    with wrapper_on_path("t", frozenset({"2", "1"}), programs.path) as environment:
        told = json.loads(environment[VARIABLE])
        assert told["earlier"] == ["1", "2"] and Path(told["directory"], "sbatch").is_file()
    assert not Path(told["directory"]).exists()
