"""Programs that are missing, fail, hang or print garbage: an unknown with the reason, and never a traceback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.core.process import Completed
from launcher.core.yaml_source import Document
from launcher.doctor import queries
from launcher.doctor.facts import Host, NodeCheck, Unknown
from launcher.doctor.programs import clean_runner
from launcher.runner.file import RunnerFile
from tests.commands import Answer, Reply, ScriptedCommands, failed, not_installed
from tests.doctor.stand_ins import cluster
from tests.doctor.test_compare import TEXT

SLURM = ["sinfo", "scontrol", "sacctmgr", "sbatch"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (not_installed, "there is no {} here"),
        (failed("slurm_load: Unable to contact slurm controller (connect failure)"), "connect failure"),
        (failed("", None), "{} did not answer within 20 s"),
        ("\x00garbage <html>", "printed nothing that could be read"),
        ("", "printed nothing that could be read"),
    ],
)
def test_a_slurm_that_cannot_be_asked_is_all_unknown(answer: Answer, why: str) -> None:
    found = queries.slurm_facts(ScriptedCommands(**dict.fromkeys(SLURM, answer)))
    for fact, program in ((found.config, "scontrol"), (found.partitions, "scontrol"), (found.nodes, "scontrol")):
        assert isinstance(fact, Unknown)
        assert why.format(program) in fact.why
    assert isinstance(found.partition("batch"), Unknown)
    assert not found.no_accounting


def test_accounting_may_be_silent_while_the_controller_answers() -> None:
    down = "sacctmgr: error: slurm_persist_conn_open: failed to open persistent connection: Connection refused"
    stand_in = ScriptedCommands(not_installed, scontrol="PartitionName=batch State=UP\n", sacctmgr=failed(down))
    found = queries.slurm_facts(stand_in)
    assert not isinstance(found.partition("batch"), Unknown)
    assert isinstance(found.associations, Unknown) and "Connection refused" in found.associations.why


def test_the_environment_is_clean_and_names_the_cluster() -> None:
    environ = {"SINFO_FORMAT": "%N", "SBATCH_PARTITION": "x", "SLURM_CONF": "/c", "SRUN_DEBUG": "3", "PATH": "/bin"}
    stand_in = ScriptedCommands(not_installed)
    clean_runner(environ, stand_in)(["sinfo"], timeout=1)
    assert stand_in.environments[0] == {"SLURM_CONF": "/c", "PATH": "/bin", "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}


@pytest.mark.parametrize(
    ("stderr", "accepted"),
    [
        ("allocation failure: Invalid account or account/partition combination specified", False),
        ("sbatch: unrecognized option '--segment=1'\nTry \"sbatch --help\" for more information", False),
        ("allocation failure: Unable to contact slurm controller (connect failure)", None),
        ("sbatch: fatal: Could not establish a configuration source", None),
    ],
)
def test_a_refusal_is_told_from_silence(stderr: str, accepted: bool | None) -> None:
    tried = queries.check_submissions(ScriptedCommands(sbatch=failed(stderr)), {"job": ["--nodes=1"]})["job"]
    assert tried.accepted is accepted
    assert "Try" not in tried.answer


def test_refs_of_a_real_repository_and_of_none(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path / "r"], check=True)
    commit = ["git", "-C", tmp_path / "r", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty"]
    subprocess.run([*commit, "-m", "x"], check=True)
    subprocess.run(["git", "-C", tmp_path / "r", "tag", "v1"], check=True)
    found = queries.repository_refs(clean_runner(os.environ), [str(tmp_path / "r"), str(tmp_path / "none")])
    here, none = found[str(tmp_path / "r")], found[str(tmp_path / "none")]
    assert not isinstance(here, Unknown) and len(here["refs/tags/v1"]) == 40
    assert isinstance(none, Unknown) and "none" in none.why


def test_a_look_at_this_host(tmp_path: Path) -> None:
    (tmp_path / "with space").mkdir()
    (tmp_path / "file").touch()
    paths = [str(tmp_path / name) for name in ("with space", "not/yet", "file/below")] + ["/proc/launcher"]
    login, compute = queries.probe_hosts(clean_runner(os.environ), paths)
    assert isinstance(compute, Unknown) and "--no-node" in compute.why
    spaced, new, below, proc = (login.directories[path] for path in paths)
    assert spaced.is_at(paths[0]) and not spaced.write_error and spaced.readable and spaced.free
    assert (new.existing, new.write_error) == (str(tmp_path), "")
    assert below.write_error == f"{tmp_path}/file is not a directory"
    assert proc.existing == "/proc" and proc.write_error
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "with space"]  # nothing of ours is left


def test_a_look_that_is_cut_off_keeps_what_was_seen(tmp_path: Path) -> None:
    def hangs(argv: Sequence[str]) -> Completed:
        token, side = argv[4:6]
        if side == "after":
            return Completed(tuple(argv), 0, "", "", 0.0)
        lines = [
            "a banner",
            f"{token}\tname\tlogin1",
            f"{token}\tarch\taarch64",
            f"{token}\t0.at\t/a",
            f"{token}\t0.end\t",
        ]
        return Completed(tuple(argv), None, "\n".join(lines), "", 60.0)  # fmt: skip

    login, _ = queries.probe_hosts(ScriptedCommands(not_installed, sh=hangs), ["/a", "/dead"])
    assert (login.name, login.arch, list(login.directories)) == ("login1", "aarch64", ["/a"])
    dead = login.directory("/dead")
    assert isinstance(dead, Unknown) and "did not answer within 60 s" in dead.why


@pytest.mark.parametrize(
    ("stderr", "code", "tries"),
    [
        ("srun: error: Unable to allocate resources: Requested nodes are busy", 1, 1),
        ("srun: error: Unable to allocate resources: Requested GPUs needed", 1, 2),  # the partition wants a GPU
        ("", None, 1),
    ],
)
def test_no_node_is_an_unknown_with_the_reason(stderr: str, code: int | None, tries: int) -> None:
    stand_in = ScriptedCommands(not_installed, srun=failed(stderr, code))
    _, compute = queries.probe_hosts(stand_in, [], [["--partition=p"], ["--partition=p", "--gpus-per-node=1"]])
    assert isinstance(compute, Unknown) and (stderr[-20:] in compute.why)
    assert ("no node was free within 60 s" in compute.why) == ("busy" in stderr)
    asked = [argv for argv in stand_in.calls if argv[0] == "srun"]
    assert len(asked) == tries
    assert {"--nodes=1", "--immediate=60", "--time=2"} <= set(asked[0])


@pytest.mark.parametrize(("taken", "started"), [("--gres=gpu:1", True), ("--nodes=1", True), ("nothing", False)])
def test_a_node_is_looked_at_where_slurm_takes_some_job_of_one_node(taken: str, started: bool) -> None:
    """A partition may refuse every job without a GPU."""

    def sbatch(argv: Sequence[str]) -> Reply:
        return "" if taken in argv else failed("allocation failure: Requested GPUs needed")

    stand_in = ScriptedCommands(not_installed, sbatch=sbatch, srun=failed("Requested nodes are busy"))
    said: list[str] = []
    file = RunnerFile(Document("x.yaml", TEXT))
    found = queries.cluster_facts(file, cluster(), str, stand_in, node=True, wait=1.0, log=said.append)
    assert isinstance(found.compute, Unknown)
    assert ("srun" in stand_in.programs(), len(said)) == (started, int(started))
    assert ("no node was free" if started else "no job was started to look") in found.compute.why


def test_a_node_whose_prolog_prints(tmp_path: Path) -> None:
    """The node's part by the real script, behind noise, in a directory that the login host wrote into."""

    def srun(argv: Sequence[str]) -> Completed:
        script = [*argv][[*argv].index("bash") :]
        said = subprocess.run(script, capture_output=True, text=True, check=True, timeout=30)
        return Completed(tuple(argv), 0, f"Welcome to node01!\n{said.stdout}\nepilog: done", "", 0.1)

    stand_in = ScriptedCommands(not_installed, srun=srun, sh=None)
    run = clean_runner({"PATH": "/usr/bin:/bin"}, stand_in)
    checks = {"good": ["fact all well"], "bad": ["fail 4 'it is bad'"], "silent": ["exit"], "later": ["SECONDS=99"]}
    checks |= {"late": ["fact x y"]}
    here = str(tmp_path)
    _, compute = queries.probe_hosts(run, [here], [["--partition=p"]], meeting_directory=here, checks=checks)
    assert isinstance(compute, Host)
    assert compute.directories[here].shared is True
    assert list(tmp_path.iterdir()) == []
    found = {
        name: check.failure or check.result for name, check in compute.checks.items() if isinstance(check, NodeCheck)
    }
    expected = {"locks": "locks hold with the login node", "clock": "clock_offset 0"}
    assert found == {**expected, "good": "all well", "bad": "it is bad", "later": "", "late": "x y"}
    assert isinstance(compute.checks["silent"], Unknown)
