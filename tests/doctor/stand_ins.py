"""Facts of a cluster, made by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from launcher.doctor.facts import (
    ClusterFacts,
    DirectoryView,
    Host,
    Mount,
    Node,
    Partition,
    SlurmFacts,
    SubmissionCheck,
)

LOCAL = Mount("/", "/dev/sda1", "ext4")
LUSTRE = Mount("/lustre", "10.0.0.2@o2ib:/fs", "lustre")
NFS = Mount("/home", "filer:/home", "nfs4")
WEKA = Mount("/weka data", "backend0/fs", "wekafs")
NVME = Mount("/raid", "/dev/nvme0n1", "xfs")
GPU = (("gb200", 4),)


def node(name: str, gres: tuple[tuple[str, int], ...] = GPU, arch: str | None = "aarch64", state: str = "IDLE") -> Node:
    return Node(name, arch, gres, state, ("batch",))


def cluster(**changes: Any) -> SlurmFacts:
    """Two nodes of four GPUs in one partition with a MaxTime of eight hours, and accounting that is enforced."""
    config = {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageEnforce": "associations,limits",
        "AccountingStoreFlags": "job_comment",
        "MinJobAge": "300 sec",
        "PreemptMode": "OFF",
        "ClusterName": "stand-in",
    }
    made = SlurmFacts(
        user="runner",
        version="24.11.5",
        config={**config, **changes.pop("config", {})},
        partitions=(Partition("batch", True, False, "UP", 8 * 3600.0, 2),),
        nodes=(node("gb200-001"), node("gb200-002")),
        associations=(("benchmark", ""),),
        default_account="benchmark",
    )
    return dataclasses.replace(made, **changes)


def seen(path: str, **changes: Any) -> DirectoryView:
    on = next((m for m in (LUSTRE, NFS, WEKA, NVME) if path.startswith(m.target)), LOCAL)
    made = DirectoryView(path, True, "", on, 10**12, None)
    return dataclasses.replace(made, **changes)


def facts(paths: Sequence[str] = (), **changes: Any) -> ClusterFacts:
    """A login host and a node that see all of ``paths``, shared and writable; Slurm takes every job."""
    directories = {path: seen(path) for path in paths}
    shared = {path: seen(path, shared=True) for path in paths}
    login = Host("login1", "x86_64", "4.1.2", 0, directories, shares=(LUSTRE, NFS))
    compute = Host("gb200-001", "aarch64", "4.1.2", 4, shared, shares=(LUSTRE, NFS))
    return dataclasses.replace(ClusterFacts(cluster(), login, compute, "batch"), **changes)


def taken(*options: str) -> SubmissionCheck:
    return SubmissionCheck(options, True, "Job 1 to start at …")


def refused(said: str, *options: str) -> SubmissionCheck:
    return SubmissionCheck(options, False, said)
