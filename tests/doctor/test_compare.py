"""Every claim of a file against facts made by hand: agree, differ at its line, or unknown with the reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from launcher.core.yaml_source import Document
from launcher.doctor import scheduling
from launcher.doctor.comparison import Claim, compare, notes
from launcher.doctor.facts import ClusterFacts, Host, NodeCheck, Unknown
from launcher.image.probe import GRANTED_TO_BOTH, LockProbe
from launcher.runner.file import RunnerFile
from tests.doctor.stand_ins import LOCAL, LUSTRE, cluster, facts, node, refused, seen, taken

TEXT = """\
name: x
sku: gb200
scheduler:
  partition: batch
  account: benchmark
  time-limit: "4:00:00"
node: {gpus: 4, arch: aarch64, login-arch: x86_64, count: 2}
storage:
  - {path: /lustre, kind: lustre}
  - {path: /raid, kind: node-local, seen-by: [compute]}
images:
  directory: /lustre/images
  import-on: login
checkout:
  directory: /lustre/runs
  cache: /lustre/cache
repositories:
  nvidia: https://example.org/srt-slurm.git
models:
  - {path: /lustre/models/a, alias: a}
  - {path: /raid/models/b, alias: b}
lanes:
  - repository: nvidia
    ref: v1.0.53
    sha: 217f94387abeddfed7149a71955dc523e07cd765
srtslurm:
  use_gpus_per_node_directive: true
  use_segment_sbatch_directive: true
exclude-nodes:
  - {node: gb200-002, reason: slow}
"""
PATHS = ["/lustre", "/raid", "/lustre/images", "/lustre/runs", "/lustre/cache", "/lustre/models/a", "/raid/models/b"]
SHA = "217f94387abeddfed7149a71955dc523e07cd765"
REFS = {"nvidia": {"refs/tags/v1.0.53": SHA, "refs/heads/main": "c" * 40}}


def file(text: str = TEXT) -> RunnerFile:
    return RunnerFile(Document("x.yaml", text))


def probed(where: str, flock: str) -> LockProbe:
    return LockProbe(where, flock, flock, "is not seen", None, 0.0)


def whole(of: RunnerFile, **changes: Any) -> ClusterFacts:
    """A facts where all of the file holds."""
    made = facts(PATHS, refs=REFS, locks=probed("two processes", "holds"))
    login = dataclasses.replace(
        made.login, directories={p: s for p, s in made.login.directories.items() if "raid" not in p}
    )
    tried = {name: taken(*options) for name, options in scheduling.jobs_to_check(of, made.slurm).items()}
    return dataclasses.replace(made, **{"login": login, "submissions": tried, **changes})


def judged(of: RunnerFile, on: ClusterFacts) -> dict[str, Claim]:
    on = dataclasses.replace(on, partition_name=of.runner.scheduler.partition)
    return {claim.key: claim for claim in compare(of, on, str)}


def line(text: str, of: str = TEXT) -> str:
    return f"x.yaml:{1 + next(i for i, one in enumerate(of.splitlines()) if text in one)}"


def test_what_holds_agrees_in_the_order_of_the_file() -> None:
    claims = compare(file(), whole(file()), str)
    assert {claim.verdict for claim in claims} == {"agree"}
    lines = [int(claim.where.rpartition(":")[2]) for claim in claims]
    assert lines == sorted(lines)
    assert {"scheduler", "scheduler.partition", "scheduler.account", "scheduler.time-limit", "node.gpus", "node.arch",
            "node.login-arch", "node.count", "storage[0]", "storage[1]", "images.directory", "images.import-on",
            "images.lock", "checkout.directory", "checkout.cache", "repositories.nvidia", "models[0].path",
            "models[1].path", "lanes[0].ref", "srtslurm.use_gpus_per_node_directive",
            "srtslurm.use_segment_sbatch_directive", "exclude-nodes[0].node"} == {c.key for c in claims}  # fmt: skip


SPOILED = [
    ("partition: batch", "partition: bacht", "scheduler.partition", "did you mean 'batch'?"),
    ('time-limit: "4:00:00"', 'time-limit: "9:00:00"', "scheduler.time-limit", "8:00:00"),
    ("gpus: 4", "gpus: 8", "node.gpus", "gpus: 4"),
    ("arch: aarch64", "arch: x86_64", "node.arch", "arch: aarch64"),
    ("login-arch: x86_64", "login-arch: aarch64", "node.login-arch", "login-arch: x86_64"),
    ("count: 2", "count: 18", "node.count", "count: 2"),
    ("kind: lustre", "kind: nfs", "storage[0]", "kind: lustre"),
    ("kind: node-local", "kind: lustre", "storage[1]", "kind: local or node-local"),
    ("node: gb200-002", "node: gb200-202", "exclude-nodes[0].node", "did you mean 'gb200-002'?"),
    ("ref: v1.0.53", "ref: v1.0.35", "lanes[0].ref", "did you mean 'v1.0.53'?"),
    (f"sha: {SHA}", f"sha: {'a' * 40}", "lanes[0].ref", SHA),
]


@pytest.mark.parametrize(("right", "wrong", "key", "hint"), SPOILED)
def test_what_is_spoiled_differs_at_its_line(right: str, wrong: str, key: str, hint: str) -> None:
    text = TEXT.replace(right, wrong, 1)
    on = whole(file())  # as it was before
    claim = judged(file(text), on)[key]
    held = {"storage[0]": "/lustre,", "storage[1]": "/raid,", "lanes[0].ref": "ref: "}.get(key, wrong)
    assert (claim.verdict, claim.where) == ("differ", line(held, text))
    assert hint in claim.hint + claim.found


def with_seen(on: ClusterFacts, side: str, path: str, **changes: Any) -> ClusterFacts:
    host = getattr(on, side)
    directories = {**host.directories, path: seen(path, **changes)}
    return dataclasses.replace(on, **{side: dataclasses.replace(host, directories=directories)})


@pytest.mark.parametrize(
    ("side", "path", "changes", "key", "found"),
    [
        ("compute", "/lustre/models/a", {"existing": "/lustre/models"}, "models[0].path", "is not there"),
        ("compute", "/raid/models/b", {"existing": "/raid"}, "models[1].path", "is not there"),
        ("login", "/lustre/images", {"write_error": "Permission denied"}, "images.directory", "Permission denied"),
        ("login", "/lustre/cache", {"existing": "/", "write_error": "Read-only file system"}, "checkout.cache",
         "cannot make it"),
        ("compute", "/lustre/runs", {"write_error": "Permission denied"}, "checkout.directory", "cannot write"),
        ("compute", "/lustre/runs", {"mount": LOCAL, "shared": False}, "checkout.directory", "it is another"),
        ("compute", "/lustre", {"mount": LOCAL}, "storage[0]", "not lustre"),
        ("login", "/lustre/models/a", {"readable": False}, "models[0].path", "runner cannot list"),
        ("login", "/lustre/images", {"existing": "/lustre/f", "write_error": "/lustre/f is not a directory"},
         "images.directory", "is not a directory"),
    ],
)  # fmt: skip
def test_a_directory_that_is_otherwise_differs(side: str, path: str, changes: Any, key: str, found: str) -> None:
    claim = judged(file(), with_seen(whole(file()), side, path, **changes))[key]
    assert claim.verdict == "differ"
    assert found in claim.found and claim.hint


def test_shared_storage_that_the_file_hides_from_a_side_differs() -> None:
    text = TEXT.replace("{path: /lustre, kind: lustre}", "{path: /lustre, kind: lustre, seen-by: [compute]}")
    claim = judged(file(text), whole(file(text)))["storage[0]"]
    assert claim.verdict == "differ" and "login (login1): sees it too" in claim.found


def test_a_directory_that_the_launcher_makes_may_be_missing() -> None:
    on = with_seen(whole(file()), "login", "/lustre/images", existing="/lustre")
    on = with_seen(on, "compute", "/lustre/images", existing="/lustre", shared=True)
    assert judged(file(), on)["images.directory"].verdict == "agree"


def test_without_a_node_what_only_it_could_say_is_unknown() -> None:
    claims = judged(file(), whole(file(), compute=Unknown("no node was free within 60 s")))
    for key in ("storage[1]", "models[1].path", "checkout.directory", "images.directory"):
        assert (claims[key].verdict, "no node was free" in claims[key].why) == ("unknown", True)
    assert claims["checkout.cache"].verdict == claims["node.gpus"].verdict == "agree"
    missing = with_seen(whole(file(), compute=Unknown("busy")), "login", "/lustre/models/a", existing="/lustre")
    assert judged(file(), missing)["models[0].path"].verdict == "differ"  # what is known to be wrong, is


def test_a_silent_slurm_is_unknown_and_never_otherwise() -> None:
    why = Unknown("Unable to contact slurm controller")
    silent = dataclasses.replace(cluster(), config=why, partitions=why, nodes=why, associations=why)
    tried = {"job": dataclasses.replace(taken(), accepted=None, answer=why.why)}
    claims = judged(file(), whole(file(), slurm=silent, submissions=tried, compute=why, refs={"": why}))
    assert "differ" not in {claim.verdict for claim in claims.values()}
    for key in ("scheduler", "scheduler.partition", "scheduler.account", "scheduler.time-limit", "node.gpus",
                "node.arch", "node.count", "exclude-nodes[0].node"):  # fmt: skip
        assert claims[key].verdict == "unknown" and claims[key].why


@pytest.mark.parametrize(
    ("changes", "job", "verdict", "text"),
    [
        ({"associations": ()}, refused("Invalid account or …"), "differ", "Invalid account"),
        ({}, refused("Invalid account or …"), "differ", "Invalid account"),  # AllowAccounts of the partition
        ({"associations": ()}, taken(), "agree", "sbatch --test-only takes it"),
        ({"associations": Unknown("sacctmgr: permission denied")}, taken(), "agree", "takes it"),
        (
            {"associations": Unknown("slurmdbd is down"), "config": {"AccountingStorageEnforce": "none"}},
            taken(),
            "unknown",
            "slurmdbd is down",
        ),
        ({"associations": (), "config": {"AccountingStorageEnforce": "none"}}, taken(), "unknown", "every account"),
        ({"associations": (), "config": {"AccountingStorageType": "accounting_storage/none"}}, taken(), "unknown",
         "keeps no accounting"),
    ],
)  # fmt: skip
def test_an_account(changes: Any, job: Any, verdict: str, text: str) -> None:
    on = whole(file())
    claim = judged(
        file(), dataclasses.replace(on, slurm=cluster(**changes), submissions={**on.submissions, "job": job})
    )
    assert claim["scheduler.account"].verdict == verdict
    assert text in claim["scheduler.account"].why + claim["scheduler.account"].found


@pytest.mark.parametrize(
    ("nodes", "key", "verdict", "text"),
    [
        ((node("a"), node("b", (("h100", 8),))), "node.gpus", "unknown", "4 on 1 node, 8 on 1 node"),
        ((node("a", ()), node("b", ())), "node.gpus", "agree", "4 /dev/nvidia"),
        ((node("a"), node("b", arch="x86_64")), "node.arch", "unknown", "mixed"),
        ((node("a", arch=None), node("b", arch=None)), "node.arch", "agree", "says aarch64"),
    ],
)
def test_a_mixed_or_bare_partition_is_said_and_not_guessed(nodes: Any, key: str, verdict: str, text: str) -> None:
    claim = judged(file(), whole(file(), slurm=cluster(nodes=nodes)))[key]
    assert claim.verdict == verdict
    assert text in claim.found + claim.why


def test_an_architecture_that_nobody_knows_is_unknown_with_the_reason() -> None:
    nodes = (node("a", arch=None), node("b", arch=None))
    on = whole(file(), slurm=cluster(nodes=nodes))
    assert isinstance(on.compute, Host)
    on = dataclasses.replace(on, compute=dataclasses.replace(on.compute, arch=Unknown("uname was not found")))
    claim = judged(file(), on)["node.arch"]
    assert (claim.verdict, claim.why) == ("unknown", "uname was not found")


def test_the_gpu_form_that_works_is_named() -> None:
    typed = cluster()
    on = whole(file(), slurm=typed)
    key = "use_gpus_per_node_directive"
    tried = {
        name: refused("Invalid generic resource (gres)", *t.options) if "gpu" in name and "gb200" not in name else t
        for name, t in on.submissions.items()
    }
    claim = judged(file(), dataclasses.replace(on, submissions=tried))[f"srtslurm.{key}"]
    assert (claim.verdict, claim.where) == ("differ", line(key))
    assert f'{key}: false, default_sbatch_directives: {{gres: "gpu:gb200:<GPUs of a node>"}}' == claim.hint


def test_a_directive_that_sbatch_does_not_know_differs_at_its_line() -> None:
    text = TEXT.replace("srtslurm:\n", 'srtslurm:\n  default_sbatch_directives: {mem: "0", qos: nope}\n')
    of = file(text)
    on = whole(of)
    tried = {**on.submissions, "default_sbatch_directives.qos": refused("Invalid qos specification", "--qos=nope")}
    claims = judged(of, dataclasses.replace(on, submissions=tried))
    assert claims["srtslurm.default_sbatch_directives.mem"].verdict == "agree"
    assert claims["srtslurm.default_sbatch_directives.qos"].verdict == "differ"


@pytest.mark.parametrize(
    ("login", "compute", "verdict", "text"),
    [
        (Unknown("none"), "4.1.2", "differ", "import-on: compute"),
        (Unknown("none"), Unknown("none"), "differ", "install enroot"),
        ("4.1.2", Unknown("none"), "agree", "4.1.2"),
    ],
)
def test_enroot_is_where_images_are_imported(login: Any, compute: Any, verdict: str, text: str) -> None:
    on = whole(file())
    assert isinstance(on.compute, Host)
    on = dataclasses.replace(
        on,
        login=dataclasses.replace(on.login, enroot=login),
        compute=dataclasses.replace(on.compute, enroot=compute),
    )
    claim = judged(file(), on)["images.import-on"]
    assert claim.verdict == verdict and text in claim.found + claim.hint


def test_nothing_is_asked_about_programs_that_a_stand_in_replaces() -> None:
    of = file(TEXT.replace("name: x\n", "name: x\ntools: rehearsal\n"))
    claims = judged(of, whole(of, stand_ins=("enroot", "srtctl")))
    assert claims["tools"].verdict == "unknown" and "images.import-on" not in claims
    missing = with_seen(whole(of, stand_ins=("enroot", "srtctl")), "login", "/lustre/models/a", existing="/lustre")
    assert judged(of, missing)["models[0].path"].verdict == "agree"  # a rehearsal makes its checkpoint


def test_locks_that_do_not_hold_differ() -> None:
    claims = [
        c
        for c in compare(file(), whole(file(), locks=probed("two hosts", GRANTED_TO_BOTH)), str)
        if c.key == "images.lock"
    ]
    assert [c.verdict for c in claims] == ["differ"]


@pytest.mark.parametrize(
    ("look", "key", "looked", "verdict", "said"),
    [
        ("locks", "images.lock", NodeCheck("", "locks hold with the login node"), "agree", "hold with the login node"),
        ("locks", "images.lock", NodeCheck("the node n: a lock in /x is not seen"), "differ", "is not seen"),
        ("locks", "images.lock", NodeCheck("", "locks are each host's own, as …"), "agree", "are each host's own"),
        ("locks", "images.lock", NodeCheck("", "locks hold …, though the runner file says …"), "differ", "though"),
        ("locks", "images.lock", NodeCheck(""), "unknown", "did not come to it"),
        ("locks", "images.lock", Unknown("it took too long"), "unknown", "too long"),
        ("clock", "node", NodeCheck("the node n: its clock is 9 s off", "clock_offset 9"), "differ", "9 s off"),
        ("/lustre/models/a", "models[0].path", NodeCheck("", "checkpoint_files 9"), "agree", "checkpoint files 9"),
        ("/lustre/models/a", "models[0].path", NodeCheck("the checkpoint … lacks 1 file"), "differ", "lacks 1 file"),
    ],
)
def test_what_a_job_would_look_at_on_its_node(
    look: str, key: str, looked: NodeCheck | Unknown, verdict: str, said: str
) -> None:
    on = whole(file())
    assert isinstance(on.compute, Host)
    before = [c for c in compare(file(), on, str) if c.key == key]
    on = dataclasses.replace(on, compute=dataclasses.replace(on.compute, checks={look: looked}))
    (claim,) = [c for c in compare(file(), on, str) if c.key == key and c not in before]
    assert (
        claim.verdict == verdict and said in f"{claim.found}{claim.why}" and bool(claim.hint) == (verdict == "differ")
    )


def test_notes_say_what_the_file_does_not_claim() -> None:
    assert notes(whole(file())) == []
    config = {
        "AccountingStoreFlags": "(null)",
        "MinJobAge": "30 sec",
        "PreemptMode": "REQUEUE",
        "ConstrainRAMSpace": "yes",
    }
    said = " ".join(notes(whole(file(), slurm=cluster(config=config))))
    for word in ("job_comment", "MinJobAge is 30 s", "PreemptMode is REQUEUE", "ConstrainRAMSpace"):
        assert word in said


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "runners").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_file_of_the_fleet_can_be_compared_with_a_cluster_that_is_not_its_own(path: Path) -> None:
    claims = compare(RunnerFile.read(path), facts(), lambda text: text.replace("{state}", "/s"))
    assert claims and all(claim.where.startswith(str(path)) for claim in claims)


def test_lustre_is_a_network_file_system_and_a_disk_is_not() -> None:
    assert LUSTRE.network and not LOCAL.network
