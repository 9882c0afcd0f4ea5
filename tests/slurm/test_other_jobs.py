"""Jobs of other clusters: refused where that is known, else followed and ended there. The replies are Slurm's."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from launcher.core.errors import ConfigError
from launcher.core.process import NOT_FOUND, Completed
from launcher.slurm.client import JobKey, JobState, Phase, SchedulerUnreachable
from launcher.slurm.commands import SlurmCommands
from launcher.slurm.other_jobs import (
    MultiClusterScheduler,
    find_named_jobs,
    foreign_cluster,
    other_clusters,
    refuse_other_clusters,
)
from launcher.slurm.submission import parse_cluster, parse_job_ids
from tests.conftest import SlurmCluster
from tests.container.stand_ins import submit_as_stand_in_run

CONFIG = (
    "Configuration data as of 2026-11-26T20:00:00\nClusterName             = west\nCommunicationParameters = (null)\n"
)


class Replies:
    """A stand-in for running Slurm's clients: by program, what it prints; it remembers argv and environment."""

    def __init__(self, code: int = 0, stderr: str = "", **printed: str) -> None:
        self.code, self.stderr, self.printed = code, stderr, printed
        self.calls: list[tuple[tuple[str, ...], Mapping[str, str]]] = []

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
    ) -> Completed:
        self.calls.append((tuple(argv), env or {}))
        return Completed(tuple(argv), self.code, self.printed.get(argv[0], ""), self.stderr, 0.0)


@pytest.mark.parametrize(
    ("said", "cluster"),
    [
        ("Submitted batch job 7\n", ""),
        ("Submitted batch job 7 on cluster east\n", "east"),
        ("7;east\n", "east"),
        ("7\n", ""),
        ("welcome\nSubmitted batch job 7 on cluster east-2\nbye\n", "east-2"),
        ("7;$(east)\n", ""),
    ],
)
def test_the_cluster_that_sbatch_names(said: str, cluster: str) -> None:
    assert parse_job_ids(said) == ["7"] and parse_cluster(said) == cluster


def test_this_hosts_own_cluster_is_no_other() -> None:
    slurm = Replies(scontrol=CONFIG)
    assert foreign_cluster("west", {}, slurm) == "" and foreign_cluster("WEST", {}, slurm) == ""
    assert foreign_cluster("east", {}, slurm) == "east"
    assert foreign_cluster("", {}, slurm) == "" and len(slurm.calls) == 3


@pytest.mark.parametrize("name", ["SLURM_CLUSTERS", "SBATCH_CLUSTERS"])
def test_an_environment_that_means_another_cluster_is_refused(name: str) -> None:
    slurm = Replies(scontrol=CONFIG)
    refuse_other_clusters({name: "west"}, {}, slurm)
    refuse_other_clusters({}, {"nodelist": "x"}, slurm)
    with pytest.raises(ConfigError, match=f"{name} is east"):
        refuse_other_clusters({name: "east"}, {}, slurm)


@pytest.mark.parametrize("option", ["clusters", "M"])
def test_a_directive_for_another_cluster_is_refused(option: str) -> None:
    slurm = Replies(scontrol=CONFIG)
    refuse_other_clusters({}, {option: "west"}, slurm)
    with pytest.raises(ConfigError, match=f"{option} is east,west") as caught:
        refuse_other_clusters({}, {option: "east,west"}, slurm)
    assert caught.value.where == "sbatch_directives"


def test_the_clients_speak_to_the_jobs_cluster() -> None:
    slurm = Replies()
    SlurmCommands(runner=slurm, environ={"SLURM_CLUSTERS": "north"}, cluster="east").cancel([JobKey("7")])
    SlurmCommands(runner=slurm, environ={"SLURM_CLUSTERS": "north"}).cancel([JobKey("7")])
    assert [env.get("SLURM_CLUSTERS") for argv, env in slurm.calls if argv[0] == "scancel"] == ["east", None]


class Cluster:
    """A stand-in for a scheduler that knows how every job stands, and remembers what it was asked to end. It finds
    ``jobs``, and does not answer where there is no such list."""

    name = "slurm"

    def __init__(self, word: str, jobs: Sequence[JobKey] | None = ()) -> None:
        self.word, self.jobs = word, jobs
        self.cancelled: list[str] = []
        self.released: list[str] = []

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        return {job: JobState(Phase.ALIVE, self.word) for job in jobs}

    def find(self, token: str) -> list[JobKey]:
        if self.jobs is None:
            raise SchedulerUnreachable("nobody could say")
        return [job for job in self.jobs if job.token == token]

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        if self.jobs is None:
            raise SchedulerUnreachable("nobody was told")
        self.cancelled += [job.id for job in jobs]

    def release(self, job: JobKey) -> None:
        self.released.append(job.id)

    def describe(self, job: JobKey) -> dict[str, str]:
        return {"squeue": self.word}


def test_a_job_is_followed_and_ended_where_it_is() -> None:
    """The job of the same number here is another's."""
    here, east = Cluster("PENDING"), Cluster("RUNNING")
    scheduler = MultiClusterScheduler(here, {"east": east}.__getitem__)
    ours, local = JobKey("7", 1.0, "r", "east"), JobKey("7", 1.0, "r")
    states = scheduler.poll([ours, local])
    assert (states[ours].word, states[local].word) == ("RUNNING", "PENDING")
    assert str(ours) == "job 7 on cluster east" and scheduler.describe(ours) == {"squeue": "RUNNING"}
    scheduler.release(ours)
    scheduler.cancel([ours])
    assert (east.cancelled, east.released, here.cancelled, here.released) == (["7"], ["7"], [], [])


LOST = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


@pytest.mark.parametrize("printed", ["", "Submitted batch job 7 on cluster east\n"])
def test_a_submission_to_another_cluster_whose_answer_was_lost_is_found_there(printed: str) -> None:
    """By its token; the job of the same number here is another's, and is neither followed nor ended."""
    here = Cluster("RUNNING", [JobKey("7", 1.0, "another")])
    east, north = Cluster("PENDING", [JobKey("7", 2.0, "r")]), Cluster("PENDING", None)
    scheduler = MultiClusterScheduler(here, {"east": east, "north": north}.__getitem__, lambda: ("north", "east"))
    lost = Replies(1, LOST, sbatch=printed)
    told = submit_as_stand_in_run("r", scheduler, lost)
    assert (told.job_id, told.submitted, told.cluster) == ("7", 2.0, "east") and told.adopted
    scheduler.cancel([JobKey(told.job_id, told.submitted, "r", told.cluster)])
    assert (east.cancelled, here.cancelled) == (["7"], [])


def test_where_another_cluster_is_silent_nobody_says_that_there_is_no_job() -> None:
    here, north = Cluster("RUNNING"), Cluster("PENDING", None)
    scheduler = MultiClusterScheduler(here, {"north": north}.__getitem__, lambda: ("north",))
    with pytest.raises(SchedulerUnreachable):
        scheduler.find("r")
    here.jobs = [JobKey("8", 1.0, "r")]
    assert scheduler.find("r") == here.jobs, "what is here is enough"
    with pytest.raises(SchedulerUnreachable):
        scheduler.cancel([JobKey("7", cluster="north"), JobKey("8")])
    assert here.cancelled == ["8"], "one cluster does not keep the jobs of another"


def test_which_other_clusters_there_are() -> None:
    several = Replies(scontrol=CONFIG, sacctmgr="east\nwest\n")
    assert other_clusters({"SLURM_CLUSTERS": "north"}, several) == ("east",)
    assert all("SLURM_CLUSTERS" not in env for _, env in several.calls)
    alone = Replies(scontrol=CONFIG, sacctmgr="west\n")
    assert other_clusters({}, alone) == () and len(alone.calls) == 1
    assert other_clusters({}, Replies(1)) is None


def test_a_database_that_did_not_answer_is_asked_again() -> None:
    answers: list[tuple[str, ...] | None] = [("east",), None]
    east = Cluster("PENDING", [JobKey("7", 2.0, "r")])
    scheduler = MultiClusterScheduler(Cluster("RUNNING"), {"east": east}.__getitem__, lambda: answers.pop())
    assert scheduler.find("r") == [] and [job.cluster for job in scheduler.find("r")] == ["east"]
    assert [job.cluster for job in scheduler.find("r")] == ["east"] and not answers


def test_jobs_of_a_runner_that_github_jobs_began() -> None:
    slurm = Replies(squeue="banner\n7|77-1-0123456789ab\n8|mine\n9|\n10|x 78-2-ba9876543210 y\n")
    found = find_named_jobs("gb300_0", {"SLURM_CLUSTERS": "east"}, slurm)
    assert [(job.id, job.token) for job in found] == [("7", "77-1-0123456789ab"), ("10", "78-2-ba9876543210")]
    assert "SLURM_CLUSTERS" not in slurm.calls[0][1] and "gb300_0" in slurm.calls[0][0]
    assert find_named_jobs("x", {}, Replies(NOT_FOUND)) == []
    assert find_named_jobs("x", {}, Replies(1, "squeue: fatal: Could not establish a configuration source")) == []
    with pytest.raises(SchedulerUnreachable, match="whether a job called x lives"):
        find_named_jobs("x", {}, Replies(1, "slurm_load_jobs error: Unable to contact slurm controller"))


@pytest.mark.slurm
def test_a_real_cluster_under_its_own_name(slurm_cluster: SlurmCluster) -> None:
    """By that name its database finds its controller, as it would find another cluster's."""
    env = slurm_cluster.env

    def client(*argv: str) -> str:
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True).stdout

    said = client("scontrol", "show", "config")
    name = next(line.split("=")[1].strip() for line in said.splitlines() if line.startswith("ClusterName"))
    assert foreign_cluster(name, env) == "" and foreign_cluster("east", env) == "east"
    token = "77-1-0123456789ab"
    options = ("--job-name=r_0", f"--comment={token}", "--output=/dev/null", "--wrap=sleep 300")
    job = JobKey(client("sbatch", "--parsable", "-M", name, *options).split(";")[0].strip(), None, token, name)
    assert [key.id for key in find_named_jobs("r_0", env)] == [job.id]
    scheduler = MultiClusterScheduler(
        SlurmCommands(environ=env), lambda other: SlurmCommands(environ=env, cluster=other)
    )
    assert scheduler.poll([job])[job].phase is Phase.ALIVE
    scheduler.cancel([job])
    deadline = time.monotonic() + 60
    while scheduler.poll([job])[job].phase is not Phase.TERMINAL:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert find_named_jobs("r_0", env) == []
