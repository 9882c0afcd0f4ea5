"""Plans of jobs in a container, built by hand, and what such a job meets on its node."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from launcher.container.planned import (
    ContainerJob,
    ContainerOptions,
    PlannedAllocation,
    PlannedContainer,
    PlannedScript,
    PlannedStaging,
)
from launcher.image.reference import PlannedImage
from launcher.plan.plan import Expected, Plan, PlannedModel, SchedulerPlan, WorkspacePlan
from tests.benchmarks import a_benchmark

SCRIPT = "benchmarks/single_node/fixed_seq_len/m_fp8_x.sh"
RESULT = "RESULT"

LOGS, METRICS = ("server.log", "results/**"), ("gpu_metrics.csv",)
EVAL = ("meta_env.json", "results*.json", "sample*.jsonl")


def an_allocation(**changes: Any) -> PlannedAllocation:
    fields: dict[str, Any] = {
        "partition": "batch",
        "account": "root",
        "nodes": 1,
        "gpus": 2,
        "gpu_type": None,
        "cpus_per_task": None,
        "memory": None,
        "exclusive": False,
        "minutes": 10,
        "job_name": "x_00",
    }
    return PlannedAllocation(**{**fields, **changes})


def a_container(**changes: Any) -> PlannedContainer:
    fields: dict[str, Any] = {
        "engine": "pyxis",
        "image": "/images/x.sqsh",
        "workdir": "/workspace",
        "mounts": {"/workspace": "{workspace}", "/mnt/hf_hub_cache": "/raid/hf-hub-cache", "/models": "/models:ro"},
        "options": ContainerOptions(),
        "environment": {"PORT": "40000+$JOB%10000"},
        "passes": ("MODEL", "TP", "HF_TOKEN", "RESULT_FILENAME"),
    }
    return PlannedContainer(**{**fields, **changes})


def a_job(**changes: Any) -> ContainerJob:
    fields: dict[str, Any] = {
        "allocation": an_allocation(),
        "container": a_container(),
        "script": PlannedScript(SCRIPT, (SCRIPT,), True, (), ()),
        "environment": {"MODEL": "org/m", "TP": "2", "CONC": "4", "RESULT_FILENAME": RESULT},
    }
    return ContainerJob(**{**fields, **changes})


def an_image(root: Path, **changes: Any) -> PlannedImage:
    """An image of a directory that each node has for itself."""
    squash = root / "squash/x.sqsh"
    fields: dict[str, Any] = {
        "reference": "org/image:tag",
        "uri": "docker://registry-1.docker.io#org/image:tag",
        "squash": str(squash),
        "import_on": "compute",
        "role": "benchmark",
        "lock": f"{squash}.lock",
        "lock_wait": 60,
        "import_timeout": 60,
        "environment": {},
        "shared": False,
    }
    return PlannedImage(**{**fields, **changes})


def staging(root: Path, **changes: Any) -> PlannedStaging:
    fields: dict[str, Any] = {
        "to": f"{root}/node/inferencex-$JOB",
        "exclude": ("big",),
        "back": ("results", "LOGS", "*.json", "*.log", "gpu_metrics.csv", "profile_*.trace.json.gz"),
        "through": f"{root}/home",
    }
    return PlannedStaging(**{**fields, **changes})


def expected(**changes: Any) -> Expected:
    fields: dict[str, Any] = {
        "concurrencies": (4,),
        "filename": RESULT,
        "mode": "fixed",
        "run_eval": False,
        "isl": 128,
        "osl": 128,
        "directory": "{workspace}",
        "required": (f"{RESULT}.json",),
        "eval": EVAL,
        "logs": LOGS,
        "metrics": METRICS,
    }
    return Expected(**{**fields, **changes})


def a_plan(workspace: Path, job: ContainerJob | None = None, **changes: Any) -> Plan:
    """A plan of kind ``container``; of kind ``docker`` where the job has no allocation."""
    job = job or a_job()
    slurm = job.allocation is not None
    plan = Plan(
        kind="container" if slurm else "docker",
        runner="x",
        runner_name="x_00",
        job_name="x_00",
        run_key="r1",
        sku="x",
        tools="system",
        benchmark=a_benchmark(framework="sglang", disagg=False, concurrencies=(4,)),
        scheduler=SchedulerPlan("slurm" if slurm else "local", "batch", "root", time_limit="0:10:00"),
        workspace=WorkspacePlan(str(workspace), None),
        images=(),
        model=PlannedModel(None, "fp8", "hub", ("login", "compute"), id="org/m"),
        results=expected(),
        details=job.as_details(),
    )
    return dataclasses.replace(plan, **changes)
