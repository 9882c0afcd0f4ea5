"""Slurm's configuration files for a cluster. Each setting that is not obvious says what happens without it."""

from __future__ import annotations

import os
from pathlib import Path

from .settings import (
    ACCOUNT,
    CLUSTER,
    CPUS_PER_NODE,
    FIRST_NODE_PORT,
    MEMORY_PER_NODE_MIB,
    PARTITION,
    Settings,
    user_name,
)


def write(settings: Settings, host: str, address: str) -> None:
    """Write slurm.conf, gres.conf and, with accounting, slurmdbd.conf; and the munge key if there is none yet."""
    etc = settings.directory / "etc"
    _private(etc / "slurm.conf", slurm_conf(settings, host, address))
    _private(etc / "gres.conf", gres_conf(settings))
    if settings.accounting:
        _private(etc / "slurmdbd.conf", slurmdbd_conf(settings, host, address))  # refused unless mode 600
    key = etc / "munge.key"
    if not key.exists():
        _private(key, os.urandom(128))


def slurm_conf(settings: Settings, host: str, address: str) -> str:
    """slurm.conf for daemons that all run on ``host``, and listen on ``address``."""
    directory, first = settings.directory, settings.port + FIRST_NODE_PORT
    user = user_name()
    lines = [
        f"ClusterName={CLUSTER}",
        f"SlurmctldHost={host}({address})",
        f"SlurmctldPort={settings.port}",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        "# Without these two every daemon listens on 0.0.0.0.",
        "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={settings.munge_socket}",
        f"StateSaveLocation={directory}/state",
        f"SlurmdSpoolDir={directory}/spool/%n",
        f"SlurmctldPidFile={directory}/run/slurmctld.pid",
        f"SlurmdPidFile={directory}/run/%n.pid",
        f"SlurmctldLogFile={directory}/log/slurmctld.log",
        f"SlurmdLogFile={directory}/log/%n.log",
        "# No cgroups: they need root, and one machine has one tree of them.",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/linux",
        "PropagateResourceLimits=NONE",
        "MailProg=/bin/true",
        "# The machine has fewer CPUs than its nodes say; without this slurmd reports that, and the node is drained.",
        "SlurmdParameters=config_overrides",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "# The defaults put seconds between a submission and its start.",
        "SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1",
        "PriorityType=priority/basic",
        "ReturnToService=2",
        "KillWait=5",
        f"EnforcePartLimits={settings.enforce_part_limits}",
        *settings.extra,
        *_accounting(settings, address),
        "GresTypes=gpu",
        f"NodeName=DEFAULT CPUs={CPUS_PER_NODE} Boards=1 Sockets=2 CoresPerSocket={CPUS_PER_NODE // 2} "
        f"ThreadsPerCore=1 RealMemory={MEMORY_PER_NODE_MIB} Gres=gpu:{settings.gpus} State=UNKNOWN",
        f"NodeName={settings.node_range} NodeHostname={host} NodeAddr={address} Port=[{first}-{settings.last_port}]",
        f"PartitionName={PARTITION} Nodes=ALL Default=YES DefaultTime=04:00:00 MaxTime=INFINITE State=UP",
    ]
    return "\n".join(lines) + "\n"


def _accounting(settings: Settings, address: str) -> list[str]:
    if not settings.accounting:
        return ["AccountingStorageType=accounting_storage/none"]
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        f"AccountingStorageHost={address}",
        f"AccountingStoragePort={settings.port + 1}",
        "# Connections to slurmdbd ignore AuthInfo and look for munge in /run/munge (22.05).",
        f"AccountingStoragePass={settings.munge_socket}",
        "# Without it a job of a wrong account or QOS is accepted.",
        "AccountingStorageEnforce=associations,limits,qos",
        "AccountingStorageTRES=gres/gpu",
        "AccountingStoreFlags=job_comment",
    ]


def gres_conf(settings: Settings) -> str:
    """gres.conf with one device file for each GPU.

    A file must be a device, each GPU needs its own, and CUDA_VISIBLE_DEVICES takes the number in its name (22.05);
    links to /dev/null are enough, and need neither root nor devices that containers lack.
    """
    if settings.gpus == 0:
        return "AutoDetect=off\n"
    devices = settings.directory / "dev"
    devices.mkdir(mode=0o700, exist_ok=True)
    for index in range(settings.gpus):
        link = devices / f"gpu{index}"
        if not link.is_symlink():
            link.symlink_to("/dev/null")
    return f"AutoDetect=off\nNodeName={settings.node_range} Name=gpu File={devices}/gpu[0-{settings.gpus - 1}]\n"


def slurmdbd_conf(settings: Settings, host: str, address: str) -> str:
    """slurmdbd.conf. The database has no port and no password: only we can enter the directory of its socket."""
    directory = settings.directory
    lines = [
        f"DbdHost={host}",
        f"DbdAddr={address}",
        f"DbdPort={settings.port + 1}",
        "CommunicationParameters=NoInAddrAny",
        f"SlurmUser={user_name()}",
        "AuthType=auth/munge",
        f"AuthInfo=socket={settings.munge_socket}",
        f"PidFile={directory}/run/slurmdbd.pid",
        f"LogFile={directory}/log/slurmdbd.log",
        "StorageType=accounting_storage/mysql",
        "StorageHost=localhost",
        f"StorageUser={user_name()}",
        f"StorageLoc={ACCOUNT}_accounting",
    ]
    return "\n".join(lines) + "\n"


def _private(path: Path, content: str | bytes) -> None:
    """Replace a file by one that only we can read."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.touch(mode=0o600)
    temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    temporary.replace(path)
