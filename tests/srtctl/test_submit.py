"""Submissions: a program in the tree's .venv answers what the real srtctl was recorded to answer."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.core.errors import JobsExist, SubmissionError, SubmissionUnknown
from launcher.run.kind import Submitted
from launcher.slurm.client import JobKey, JobState, Phase, SchedulerUnreachable
from launcher.slurm.submission import LOST_ANSWER_PAUSES
from launcher.srtctl.submit import Submission, apply
from tests.shared import needs_shared
from tests.srtctl.transcripts import transcript

TOKEN = "run-7"
MODERN = frozenset({"--json", "--no-preflight", "--setup-script", "--tags", "--file"})
OLD = frozenset({"--setup-script", "--tags", "--file"})


class Slurm:
    """A scheduler that knows the jobs of one token; each answer is used once, the last one for ever."""

    name = "fake"
    state = JobState(Phase.ALIVE, "PENDING")

    def __init__(self, *answers: Sequence[str] | None) -> None:
        self.answers = list(answers) or [[]]
        self.asked = 0

    def find(self, token: str) -> list[JobKey]:
        assert token == TOKEN
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise SchedulerUnreachable("Unable to contact slurm controller")
        return [JobKey(i, 1000.0, token) for i in answer]

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        return dict.fromkeys(jobs, self.state)

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        raise AssertionError

    def describe(self, job: JobKey) -> dict[str, str]:
        raise AssertionError


class ScriptedSrtctl:
    """A work tree whose srtctl says what it is told to say, and notes how it was called."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.slept: list[float] = []
        (root / ".venv/bin").mkdir(parents=True)

    def says(self, exit: int, stdout: str = "", stderr: str = "", then: str = "") -> None:
        (self.root / "out").write_text(stdout)
        (self.root / "err").write_text(stderr)
        program = self.root / ".venv/bin/srtctl"
        program.write_text(
            f'#!/bin/sh\nenv > "{self.root}/env"; pwd > "{self.root}/pwd"\n'
            f'for a; do printf "%s\\n" "$a"; done > "{self.root}/argv"\n'
            f'cat "{self.root}/out"; cat "{self.root}/err" >&2\n{then}\nexit {exit}\n'
        )
        program.chmod(0o755)

    def replays(self, name: str) -> None:
        recorded = transcript(name)
        self.says(recorded.exit, recorded.stdout, recorded.stderr)

    def apply(
        self,
        scheduler: Slurm,
        *argv: str,
        options: frozenset[str] = MODERN,
        timeout: float = 30.0,
        environment: dict[str, str] | None = None,
    ) -> Submitted:
        words = ("srtctl", "apply", "-f", "recipes/a.yaml", *argv)
        env = {"PATH": os.environ["PATH"], **(environment or {})}
        submission = Submission(words, self.root, env, TOKEN, options, timeout)
        return apply(submission, scheduler=scheduler, sleep=self.slept.append)

    def argv(self) -> list[str]:
        return (self.root / "argv").read_text().splitlines()

    def environ(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in (self.root / "env").read_text().splitlines() if "=" in line)


@pytest.fixture
def srtctl(tmp_path: Path) -> ScriptedSrtctl:
    return ScriptedSrtctl(tmp_path)


def ok(job: str = "4242") -> str:
    return json.dumps({"status": "submitted", "slurm_job_id": job, "output_dir": f"/outputs/{job}"}) + "\n"


@needs_shared
def test_a_modern_srtctl_is_asked_for_json(srtctl: ScriptedSrtctl) -> None:
    srtctl.replays("apply-json")
    done = srtctl.apply(Slurm(["4242"]), "--no-preflight", "--tags", "a,b")
    assert (done.job_id, done.submitted, done.adopted) == ("4242", 1000.0, False)
    assert done.output == Path("/srv/srt-slurm/outputs/4242")
    assert "🚀 Submitting" in done.printed and done.notes == ()
    assert srtctl.argv() == ["apply", "-f", "recipes/a.yaml", "--no-preflight", "--tags", "a,b", "--json"]


@needs_shared
@pytest.mark.parametrize("recorded", ["apply-ok", "narrow-columns-apply", "force-color-apply"])
def test_an_old_srtctl_is_read_in_prose(srtctl: ScriptedSrtctl, recorded: str) -> None:
    srtctl.replays(recorded)
    done = srtctl.apply(Slurm(["4242"]), "--no-preflight", options=OLD)
    assert done.job_id == "4242"
    assert not done.adopted
    assert srtctl.argv() == ["apply", "-f", "recipes/a.yaml"]
    assert "--no-preflight is left out" in done.notes[0]
    assert "\x1b" not in done.printed
    if recorded != "narrow-columns-apply":
        assert done.output == Path("/srv/srt-slurm/outputs/4242")


def test_the_command_is_run_wide_plain_and_in_its_tree(srtctl: ScriptedSrtctl) -> None:
    srtctl.says(0, ok())
    srtctl.apply(Slurm([]), environment={"FORCE_COLOR": "1", "COLUMNS": "15", "KEPT": "yes"})
    env = srtctl.environ()
    assert env["COLUMNS"] == "500" and env["NO_COLOR"] == "1" and env["KEPT"] == "yes" and "FORCE_COLOR" not in env
    assert env["PATH"].startswith(f"{srtctl.root}/.venv/bin:")
    assert (srtctl.root / "pwd").read_text().strip() == str(srtctl.root)


def test_a_job_that_slurm_does_not_show_yet_is_still_ours(srtctl: ScriptedSrtctl) -> None:
    srtctl.says(0, ok())
    for scheduler in (Slurm([]), Slurm(None)):
        done = srtctl.apply(scheduler)
        assert (done.job_id, done.submitted, done.adopted) == ("4242", None, False)
    assert srtctl.slept == []


def test_a_relative_output_directory_is_below_the_tree(srtctl: ScriptedSrtctl) -> None:
    srtctl.says(0, json.dumps({"status": "submitted", "slurm_job_id": "9", "output_dir": "rel-out/9"}))
    assert srtctl.apply(Slurm(["9"])).output == srtctl.root / "rel-out/9"


@needs_shared
@pytest.mark.parametrize(
    ("recorded", "text", "hint"),
    [
        ("unknown-alias-apply-json", "Model 'no-such-model-alias' is not a local model path", "register the alias"),
        ("unknown-alias-apply", "- model.path: Model 'no-such-model-alias'", "register the alias"),
        ("missing-model-dir-apply", "'/srv/wk/models/GONE', but that path is unavailable", "preflight: false"),
        ("unknown-field-top-apply-json", "{'bogus_top': ['Unknown field.']}", "pinned to the commit"),
        ("sbatch-fails-apply-json", "sbatch: error: invalid partition specified: batch", "partition and account"),
        ("sbatch-fails-apply", "Invalid partition name specified", "partition and account"),
        ("sbatch-missing-apply", "No such file or directory: 'sbatch'", "login node"),
        ("config-not-found-apply-json", "Config not found: /srv/wk/rec/nope.yaml", "overlay"),
        ("config-not-found-apply", "Config not found: /srv/wk/rec/nope.yaml", "overlay"),
        ("no-file-arg", "the following arguments are required", None),
        ("stdin-selector-dash", "expected one argument", "other options"),
        ("apply-no-binaries-json", "✗ bin/uv", "checkout.setup"),
        ("selector-out-of-range-json", "Index [7] out of range", None),
        ("override-base-only-json", "no-submissions", "selector"),
        ("empty-directory-json", "No YAML files found in", "selector"),
        ("bad-selector-syntax", "ValueError: Invalid selector 'foo'", None),
        ("topology-bad-apply", "prefill_workers is 0 in a disaggregated-style", None),
        ("output-dir-unwritable", "Not a directory: '/srv/wk/afile/x/4242'", None),
    ],
)
def test_a_refusal_is_passed_on_whole_and_leaves_no_doubt(
    srtctl: ScriptedSrtctl, recorded: str, text: str, hint: str | None
) -> None:
    srtctl.replays(recorded)
    with pytest.raises(SubmissionError) as caught:
        srtctl.apply(Slurm([]))
    assert not isinstance(caught.value, (SubmissionUnknown, JobsExist))
    assert text in caught.value.message.replace(" \n", " ")
    assert " | INFO | " not in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")
    assert caught.value.where == "recipes/a.yaml"


@needs_shared
def test_several_jobs_are_named_so_that_they_can_go(srtctl: ScriptedSrtctl) -> None:
    srtctl.replays("override-apply-all-json")
    with pytest.raises(JobsExist, match="one job was asked for") as caught:
        srtctl.apply(Slurm([]))
    assert caught.value.job_ids == ("5002", "5003", "5004", "5005", "5006")
    srtctl.replays("override-apply-all")
    with pytest.raises(JobsExist) as caught:
        srtctl.apply(Slurm([]), options=OLD)
    assert caught.value.job_ids == ("5007", "5008", "5009", "5010", "5011")


def test_several_submissions_under_one_id_are_several(srtctl: ScriptedSrtctl) -> None:
    srtctl.says(0, ok() + ok(), "🚀 Submitting: a\n✅ Job 4242 submitted!\n" * 2)
    with pytest.raises(JobsExist):
        srtctl.apply(Slurm(["4242"]))


@needs_shared
def test_the_first_of_several_is_not_adopted_when_the_second_fails(srtctl: ScriptedSrtctl) -> None:
    srtctl.replays("override-second-sbatch-fails-json")
    with pytest.raises(JobsExist, match="QOSMaxSubmitJobPerUserLimit") as caught:
        srtctl.apply(Slurm(["61"]))
    assert caught.value.job_ids == ("61",)


@needs_shared
@pytest.mark.parametrize("recorded", ["sbatch-odd-cluster", "sbatch-odd-empty"])
def test_a_job_id_that_srtctl_misread_is_asked_of_slurm(srtctl: ScriptedSrtctl, recorded: str) -> None:
    srtctl.replays(recorded)
    done = srtctl.apply(Slurm(["4250"]), options=OLD)
    assert (done.job_id, done.adopted) == ("4250", True)
    assert "srtctl failed, and the job exists" in done.notes[0]


def test_an_answer_that_was_lost_is_looked_for_before_anything_else(srtctl: ScriptedSrtctl) -> None:
    srtctl.says(1, "🚀 Submitting: a\n❌ sbatch failed: sbatch: error: Socket timed out on send/recv operation\n")
    done = srtctl.apply(Slurm([], [], ["77"]))
    assert (done.job_id, done.submitted, done.adopted) == ("77", 1000.0, True)
    assert srtctl.slept == list(LOST_ANSWER_PAUSES), "slurmctld may still be at it when sbatch has given up"
    with pytest.raises(SubmissionError) as caught:
        srtctl.apply(Slurm([]))
    assert "trying again is safe" in (caught.value.hint or "")


def test_a_time_out_ends_srtctl_and_asks_slurm(srtctl: ScriptedSrtctl) -> None:
    srtctl.says(0, "🚀 Submitting: a\n", then="sleep 30")
    done = srtctl.apply(Slurm(["78"]), timeout=0.3)
    assert (done.job_id, done.adopted) == ("78", True)
    with pytest.raises(SubmissionError, match=r"did not end within 2 s and was stopped(?s:.*)🚀 Submitting: a"):
        srtctl.apply(Slurm([]), timeout=2.0)
    with pytest.raises(JobsExist) as caught:
        srtctl.apply(Slurm(["78", "79"]), timeout=0.3)
    assert caught.value.job_ids == ("78", "79")


def test_a_job_of_an_earlier_submission_is_not_taken_for_this_one(srtctl: ScriptedSrtctl) -> None:
    srtctl.says(1, "🚀 Submitting: a\n")
    words = ("srtctl", "apply", "-f", "a.yaml")
    environ = {"PATH": os.environ["PATH"]}
    submission = Submission(words, srtctl.root, environ, TOKEN, MODERN, earlier=frozenset({"77"}))
    assert apply(submission, scheduler=Slurm(["77"], ["77", "78"]), sleep=srtctl.slept.append).job_id == "78"
    with pytest.raises(SubmissionError, match="exited with 1"):
        apply(submission, scheduler=Slurm(["77"]), sleep=srtctl.slept.append)


def test_when_nobody_can_be_asked_the_state_is_unknown_and_said_so(srtctl: ScriptedSrtctl) -> None:
    srtctl.says(1, "", "slurmctld is away\n")
    scheduler = Slurm(None)
    with pytest.raises(SubmissionUnknown, match="slurmctld is away") as caught:
        srtctl.apply(scheduler)
    assert TOKEN in (caught.value.where or "") and "not submitted again" in (caught.value.hint or "")
    assert scheduler.asked == 1


def test_a_failure_after_the_submission_keeps_the_job(srtctl: ScriptedSrtctl) -> None:
    """srtctl works on after sbatch returned (metadata, status report), and can fail there with the job queued."""
    srtctl.says(1, "🚀 Submitting: a\n✅ Job 4242 submitted!\nError: [Errno 28] No space left on device\n")
    done = srtctl.apply(Slurm([]))
    assert (done.job_id, done.adopted) == ("4242", True) and "No space left" in done.notes[0]


def test_a_record_of_what_slurm_refused_is_not_a_job(srtctl: ScriptedSrtctl) -> None:
    srtctl.says(1, "", "🚀 Submitting: x\n❌ sbatch failed: Requested node configuration is not available\n")
    scheduler = Slurm(["7"])
    scheduler.state = JobState(Phase.TERMINAL, "FAILED", exit_code=(1, 0))
    with pytest.raises(SubmissionError, match="Requested node configuration") as caught:
        srtctl.apply(scheduler)
    assert not isinstance(caught.value, JobsExist)
    scheduler.state = JobState(Phase.TERMINAL, "FAILED", exit_code=(1, 0), nodes="node01")
    assert srtctl.apply(scheduler).adopted


def test_a_job_without_srtslurm_yaml_must_not_stay(srtctl: ScriptedSrtctl) -> None:
    warning = "2026-11-21 17:13:22 | WARNING | Failed to load or validate srtslurm.yaml: {'x': ['Unknown field.']}\n"
    srtctl.says(0, ok(), warning)
    with pytest.raises(JobsExist, match=r"without aliases and defaults: \{'x'") as caught:
        srtctl.apply(Slurm(["4242"]))
    assert caught.value.job_ids == ("4242",)
    srtctl.says(1, '{"status": "error", "error": "no"}\n', warning)
    with pytest.raises(SubmissionError, match=r"had dropped srtslurm\.yaml"):
        srtctl.apply(Slurm([]))


@pytest.mark.parametrize("argv", [("-f", ""), ("-f",), ("--tags", "x")])
def test_a_recipe_must_be_named(srtctl: ScriptedSrtctl, argv: tuple[str, ...]) -> None:
    """srtctl takes ``-f ''`` for the current directory and submits every recipe in it."""
    srtctl.says(0, ok())
    with pytest.raises(SubmissionError, match="no recipe"):
        apply(Submission(("srtctl", "apply", *argv), srtctl.root, {}, TOKEN, MODERN), scheduler=Slurm([]))
    assert not (srtctl.root / "argv").exists()


def test_an_option_that_this_srtctl_lacks_stops_before_the_submission(srtctl: ScriptedSrtctl) -> None:
    srtctl.says(0, ok())
    with pytest.raises(SubmissionError, match="no option --mock"):
        srtctl.apply(Slurm([]), "--mock")
    assert not (srtctl.root / "argv").exists()


def test_an_srtctl_that_is_not_there(srtctl: ScriptedSrtctl) -> None:
    with pytest.raises(SubmissionError, match="exited with 127"):
        srtctl.apply(Slurm([]), environment={"PATH": "/nowhere"})
