"""Drafts of clusters of many kinds: each loads, claims only what was found, and says what is to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from launcher.core.yaml_source import Document
from launcher.doctor import comparison, scheduling
from launcher.doctor.comparison import compare
from launcher.doctor.draft import draft, todos
from launcher.doctor.facts import ClusterFacts, Host, Partition, SubmissionCheck, Unknown
from launcher.rehearsal.stand_ins import REPOSITORY_SHA
from launcher.runner.file import RunnerFile
from tests.doctor.stand_ins import NFS, NVME, WEKA, cluster, facts, node, refused, seen, taken

STATE, DIRECTORY = "/home/runner/.local/state/launcher", "/lustre/images"


def fill(path: str) -> str:
    return path.replace("{state}", STATE)


def tried(on: ClusterFacts, *refuse: str) -> Mapping[str, SubmissionCheck]:
    """What is asked about a first draft, taken but for what has one of these words."""
    file, _ = load(on)
    return {
        name: refused("not here", *options) if any(word in " ".join(options) for word in refuse) else taken(*options)
        for name, options in scheduling.jobs_to_check(file, on.slurm).items()
    }


def made(*refuse: str, **changes: Any) -> ClusterFacts:
    files = [load(facts(**changes), root=root)[0] for root in (None, DIRECTORY)]
    named = [path for file in files for required in comparison.required_paths(file, fill) for path in required.paths]
    on = facts([*named, "/lustre", "/raid", "/home", "/weka data"], **changes)
    return dataclasses.replace(on, submissions=tried(on, *refuse))


def of_login(on: ClusterFacts, **changes: Any) -> ClusterFacts:
    return dataclasses.replace(on, login=dataclasses.replace(on.login, **changes))


def of_compute(on: ClusterFacts, **changes: Any) -> ClusterFacts:
    assert isinstance(on.compute, Host)
    return dataclasses.replace(on, compute=dataclasses.replace(on.compute, **changes))


def load(on: ClusterFacts, **changes: Any) -> tuple[RunnerFile, str]:
    text = draft(**{"name": "mine", "account": "benchmark", "root": DIRECTORY, "fill": fill, "facts": on, **changes})
    return RunnerFile(Document("mine.yaml", text)), text


def differing(file: RunnerFile, on: ClusterFacts) -> list[str]:
    """What the doctor would find otherwise, had it looked at the same cluster."""
    paths = [path for required in comparison.required_paths(file, fill) for path in required.paths]
    full = made(slurm=on.slurm)
    directories = {p: on.login.directories.get(p) or seen(p) for p in paths}
    on = of_login(on, directories=directories)
    if isinstance(on.compute, Host):
        there = {p: dataclasses.replace(s, shared=True) for p, s in directories.items() if "weka" not in p}
        on = of_compute(on, directories=there)
    asked = scheduling.jobs_to_check(file, on.slurm)
    tried = {**full.submissions, **on.submissions, "whole": taken(*asked["whole"])}
    answers = {name: tried.get(name) or taken(*options) for name, options in asked.items()}
    stand_ins = ("enroot",) if file.runner.tools == "rehearsal" else ()
    on = dataclasses.replace(on, submissions=answers, stand_ins=stand_ins)
    return [f"{c.key}: {c.found}" for c in compare(file, on, fill) if c.verdict == "differ"]


SITES: dict[str, ClusterFacts] = {
    "plain": made(),
    "typed GRES only": made("--gpus-per-node", "--gres=gpu:1", "--segment"),
    "no node": made(compute=Unknown("no node was free within 60 s")),
    "no GRES": made(slurm=cluster(nodes=(node("a", ()), node("b", ())))),
    "mixed GPUs": made(slurm=cluster(nodes=(node("a"), node("b", (("h100", 8),)), node("c", ())))),
    "mixed architectures": made(slurm=cluster(nodes=(node("a"), node("b", arch="x86_64")))),
    "strange architecture": of_compute(made(slurm=cluster(nodes=(node("a", arch="ppc64le"),))), arch="ppc64le"),
    "no limit": made(slurm=cluster(partitions=(Partition("batch", True, False, "UP", None, 2),))),
    "a short limit": made(slurm=cluster(partitions=(Partition("batch", True, False, "UP", 1800.0, 2),))),
    "no accounting": made(slurm=cluster(config={"AccountingStorageType": "accounting_storage/none"})),
    "sbatch is silent": dataclasses.replace(
        made(), submissions={"job": SubmissionCheck((), None, "sbatch did not answer")}
    ),
    "sbatch refuses": dataclasses.replace(made(), submissions={"job": refused("Invalid qos specification")}),
    "no enroot": of_compute(of_login(made(), enroot=Unknown("none")), enroot=Unknown("none")),
    "enroot on nodes": of_login(made(), enroot=Unknown("none")),
    "many file systems": of_compute(of_login(made(), shares=(NFS, WEKA)), shares=(NFS,), disks=(NVME,)),
    "down nodes": made(slurm=cluster(nodes=(node("a", state="DOWN*"), node("b", state="IDLE+DRAIN")))),
}


@pytest.mark.parametrize("name", SITES)
def test_a_draft_loads_and_claims_nothing_that_differs(name: str) -> None:
    on = SITES[name]
    for changes in ({}, {"root": None}, {"account": None}):
        file, _ = load(on, **changes)
        assert file.runner.scheduler.partition == "batch"
        if name not in ("sbatch refuses",):
            assert differing(file, on) == []


def test_what_is_not_known_is_to_do_and_not_claimed() -> None:
    mixed, text = load(SITES["mixed architectures"])
    assert mixed.runner.node.arch is None and "TODO arch" in text
    none, text = load(SITES["no accounting"], account=None)
    assert none.runner.scheduler.account is None and "takes a job of any account" in text
    two, text = load(SITES["mixed GPUs"])
    assert two.runner.node.gpus == 4 and "TODO the partition is mixed: GRES: 4 on 1 node" in text
    bare = of_compute(SITES["no GRES"], devices=0)
    assert "TODO Slurm knows of no GPUs in this partition" in load(bare)[1]
    alone, text = load(SITES["no node"])
    assert alone.runner.tools == "system" and "on no node: no node was free within 60 s" in text
    quiet, text = load(SITES["sbatch is silent"])
    assert set(quiet.runner.srtslurm) == {"network_interface"} and "TODO sbatch did not answer" in text


def test_each_line_says_what_the_doctor_says_of_it() -> None:
    lines = {line.strip() for line in load(SITES["plain"])[1].splitlines()}
    assert "partition: batch   # up, 2 nodes, the default one" in lines
    assert "arch: aarch64   # aarch64 on 2 nodes by Slurm, gb200-001 says aarch64" in lines
    down = load(SITES["down nodes"])[1]
    assert "count: 2   # batch has as many; out of use now: a DOWN*, b IDLE+DRAIN" in down
    alone = load(SITES["no node"])[1]
    assert "directory: /lustre/images   # TODO compute: no node was free within 60 s; login (login1): " in alone


def test_what_is_known_is_in_the_file() -> None:
    runner = load(SITES["plain"])[0].runner
    assert (runner.node.gpus, runner.node.arch, runner.node.login_arch) == (4, "aarch64", "x86_64")
    assert (runner.images.directory, runner.images.import_on) == (DIRECTORY, "login")
    assert [(s.path, s.kind) for s in runner.storage] == [("/lustre", "lustre"), ("/home", "nfs")]
    typed = load(SITES["typed GRES only"])[0].runner.srtslurm
    assert typed["use_gpus_per_node_directive"] is False and typed["use_segment_sbatch_directive"] is False
    assert typed["default_sbatch_directives"] == {"gres": "gpu:gb200:4"}
    assert load(SITES["a short limit"])[0].runner.scheduler.time_limit == "0:30:00"
    assert load(SITES["enroot on nodes"])[0].runner.images.import_on == "compute"
    assert SITES["no enroot"].no_enroot and load(SITES["no enroot"])[0].runner.tools == "rehearsal"
    kinds = {s.path: (s.kind, s.seen_by) for s in load(SITES["many file systems"])[0].runner.storage}
    assert kinds == {
        "/home": ("nfs", ("login", "compute")),
        "/weka data": ("nfs", ("login",)),
        "/raid": ("node-local", ("compute",)),
    }


def test_what_is_to_do_is_listed_with_its_line() -> None:
    text = load(SITES["plain"])[1]
    lines = text.splitlines()
    assert todos(text) and all(
        "TODO" in lines[number - 1] and what in lines[number - 1] for number, what in todos(text)
    )


def test_the_examples_in_the_comments_are_valid_rules() -> None:
    """Taken out of their comments, they load: an admin will do just that."""
    text = load(SITES["plain"])[1]
    block = text[text.index("# Which checkpoint") : text.index("# Keys of srtslurm")]
    rows = [line.removeprefix("#") for line in block.splitlines() if line.startswith("#   ")]
    models, lanes = "\n".join(rows[:3]), "\n".join(rows[3:])
    filled = text.replace("models: []", f"models:\n{models}").replace("lanes: []", f"lanes:\n{lanes}")
    runner = RunnerFile(Document("mine.yaml", filled)).runner
    assert (runner.models[0].alias, runner.lanes[0].ref) == ("minimax-m3-mxfp8", "v1.0.53")


def test_the_tables_of_the_handbook_are_valid_rules() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "new-cluster.md").read_text(encoding="utf-8")
    tables = page[page.index("```yaml\nmodels:") :].removeprefix("```yaml\n").partition("```")[0]
    models, _, lanes = tables.partition("\nlanes:")
    text = load(SITES["no enroot"])[1].replace("models: []", models).replace("lanes: []", f"lanes:{lanes}")
    runner = RunnerFile(Document("mine.yaml", text)).runner
    assert (runner.models[0].alias, runner.lanes[0].repository) == ("minimax-m3-mxfp8", "rehearsal")
    assert runner.lanes[0].sha == REPOSITORY_SHA
