"""What Slurm and the system print: lines as 22.05 and 24.11 write them, and garbage."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from launcher.core import slurm_notation
from launcher.doctor import programs
from launcher.doctor.facts import Node

NODE = (
    "NodeName=gb200-001 Arch=aarch64 CoresPerSocket=72 CPUAlloc=0 CPUTot=144 CPULoad=0.16 "
    "AvailableFeatures=(null) Gres={gres} NodeAddr=10.0.0.1 NodeHostName=gb200-001 Version=24.11.5 "
    "OS=Linux 6.8.0-1014-nvidia-64k #15 SMP RealMemory=900000 State={state} Partitions=batch,all "
    "Reason=Not responding Gres=gpu:9 [slurm@2026-01-01T00:00:00]"
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gpu:gb200:4(S:0-1)", [("gb200", 4)]),
        ("gpu:4", [("", 4)]),
        ("gpu:a100:4(S:0,2),gpu:1g.10gb:7", [("a100", 4), ("1g.10gb", 7)]),
        ("tmpdisk:no_consume:2T,gpu:4,xgpu:2", [("", 4)]),
        ("(null)", []),
        ("", []),
        ("gpu", []),
        ("gpu:many", []),
    ],
)  # fmt: skip
def test_gpus_among_the_resources(text: str, found: list[tuple[str, int]]) -> None:
    assert list(programs.gpus(text)) == found


def test_a_node_and_the_free_text_behind_it() -> None:
    line = NODE.format(gres="gpu:gb200:4(S:0-1)", state="IDLE+CLOUD")
    (node,) = programs.nodes(f"a banner\n{line}\n")
    assert node == Node("gb200-001", "aarch64", (("gb200", 4),), "IDLE+CLOUD", ("batch", "all"))
    assert (node.gpus, node.usable) == (4, True)
    (down,) = programs.nodes(NODE.format(gres="(null)", state="DOWN*+DRAIN").replace("Arch=aarch64 ", ""))
    assert (down.gpus, down.usable, down.arch) == (0, False, None)


def test_partitions() -> None:
    text = (
        "PartitionName=batch AllowAccounts=ALL Default=YES Hidden=NO MaxTime=UNLIMITED State=UP TotalNodes=18\n"
        "PartitionName=secret Default=NO Hidden=YES MaxTime=1-00:00:00 State=DRAIN TotalNodes=2\nnonsense\n"
    )
    batch, secret = programs.partitions(text)
    assert (batch.name, batch.default, batch.hidden, batch.max_time, batch.nodes) == ("batch", True, False, None, 18)
    assert (secret.hidden, secret.state, secret.max_time) == (True, "DRAIN", 86400.0)
    assert programs.partitions("garbage = yes\n\x00") == ()


def test_config_and_associations() -> None:
    text = (
        "Configuration data as of 2026\nAccountingStoreFlags    = job_comment\nMinJobAge = 300 sec\n\nCgroup Support:\n"
    )
    assert programs.config(text) == {"AccountingStoreFlags": "job_comment", "MinJobAge": "300 sec"}
    rows = programs.associations("benchmark|\nother|gpu\n|root\nsacctmgr: a banner\n")
    assert rows == (("benchmark", ""), ("other", "gpu"))


HOST_LISTS = ["gb200-[001-003,007],login1", "a[1-2]b[3-4]", "node01", "n[9-11]", "x[1,3-4],y"]


@pytest.mark.parametrize("text", HOST_LISTS)
def test_a_host_list_is_expanded_as_scontrol_does(text: str, request: pytest.FixtureRequest) -> None:
    known = {"gb200-[001-003,007],login1": ["gb200-001", "gb200-002", "gb200-003", "gb200-007", "login1"]}
    names = slurm_notation.node_names(text)
    assert names == known.get(text, names)
    assert "[" not in "".join(names)


@pytest.mark.slurm
def test_host_lists_against_scontrol(slurm_cluster) -> None:  # type: ignore[no-untyped-def]
    for text in HOST_LISTS:
        argv = [shutil.which("scontrol") or "scontrol", "show", "hostnames", text]
        said = subprocess.run(argv, env=slurm_cluster.env, capture_output=True, text=True, check=True, timeout=30)
        assert slurm_notation.node_names(text) == said.stdout.split()


def test_mounts_with_spaces_and_children() -> None:
    text = """{"filesystems": [{"target":"/", "source":"/dev/sda1", "fstype":"ext4", "children":[
        {"target":"/mnt/my models", "source":"10.0.0.2@o2ib:/fs", "fstype":"lustre"},
        {"target":"/empty", "source":null, "fstype":"autofs"}]}]}"""
    root, models, empty = programs.mounts(text)
    assert (root.network, models.target, models.network, empty.source) == (False, "/mnt/my models", True, "")
    for garbage in ("findmnt: command not found", "", "[]", "{}", '{"filesystems": [1, {"target": null}]}'):
        assert all(mount.target == "" for mount in programs.mounts(garbage))
    assert programs.mounts("findmnt: command not found") == ()


def test_refs_of_annotated_tags_are_what_they_point_at() -> None:
    tag, commit = "a" * 40, "b" * 40
    assert programs.refs(f"warning: x\n{tag}\trefs/tags/v1\n{commit}\trefs/tags/v1^{{}}\n") == {"refs/tags/v1": commit}
