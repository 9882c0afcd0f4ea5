"""The files that srtctl reads, refuses, resolves and writes, as the stand-ins do it.

The behaviour is known from recorded runs of srt-slurm c88ef731 and its source (``core/config.py``,
``core/validation.py``; its schema is in the tables of `launcher.check`, and in stand_ins.yaml). Implemented are the
search for srtslurm.yaml, which one bad key invalidates as a whole; defaults and aliases; the schema's errors about
top-level keys, `model`, `resources` and `slurm`; the messages of preflight. Not implemented are sweeps, and the fields
of `backend`, `benchmark` and `frontend`, whose names change from commit to commit.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

import launcher
from launcher.check.schema_validation import ROOT, Type, accepts, parse
from launcher.check.srtctl_schema import Schemas
from launcher.core.publish import write_text
from launcher.core.reading import prepare_type
from launcher.srtctl import recipe
from launcher.srtctl.facts import recipe_facts

LOCAL_JOBS = "LAUNCHER_LOCAL_JOBS"
"""The variable that names the jobs directory of the embedded scheduler; without it jobs go to Slurm."""

MARK: Mapping[str, Any] = {
    "rehearsal": True,
    "rehearsal_note": "nothing was measured; numbers from a closed queueing network: prefill queue and batched decode, "
    "Schweitzer's mean values (launcher/rehearsal)",
}
"""The keys that mark every document of a rehearsal."""

RECORDED = "v1.0.68"
"""The version of srt-slurm that was recorded: c88ef731."""


class MetaEnv(msgspec.Struct):
    """Keys of meta_env.json and their variables. Default: in the pair for words, 1 for numbers, false for flags."""

    words: dict[str, tuple[str, str]]
    numbers: dict[str, str]
    flags: dict[str, str]


class StandInData(msgspec.Struct):
    """The facts and texts of stand_ins.yaml, which describes each."""

    cluster: dict[str, str]
    faults: dict[str, str]
    repository: dict[str, str]
    checkpoint: dict[str, dict[str, Any]]
    lm_eval: dict[str, Any]
    meta_env: MetaEnv


@cache
def stand_in_data() -> StandInData:
    """The content of stand_ins.yaml."""
    return msgspec.yaml.decode(Path(__file__).with_name("stand_ins.yaml").read_bytes(), type=prepare_type(StandInData))


class Refused(ValueError):
    """An error that srtctl prints after ``Error: ``."""


def load_cluster(environ: Mapping[str, str], cwd: Path) -> tuple[dict[str, Any], str | None]:
    """srtslurm.yaml as srtctl finds it, {} without a valid one; and a warning when it is invalid."""
    named = environ.get("SRTSLURM_CONFIG")
    if named and not Path(named).exists():
        return {}, f"SRTSLURM_CONFIG set but file not found: {named}"
    paths = [Path(named)] if named else [p / "srtslurm.yaml" for p in (cwd, cwd.parent, cwd.parent.parent)]
    path = next((candidate for candidate in paths if candidate.exists()), None)
    if path is None:
        return {}, None
    try:
        document = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        return {}, f"Failed to load or validate srtslurm.yaml: {error}"
    errors = schema_errors(document, stand_in_data().cluster)
    if errors:
        return {}, f"Failed to load or validate srtslurm.yaml: {errors}"
    return {k: v for k, v in document.items() if v is not None}, None


def schema_errors(document: Any, fields: Mapping[str, str]) -> dict[str, Any]:
    """The errors by field that marshmallow reports for a document; {} for a valid one. ``fields``: name → type."""
    if not isinstance(document, Mapping):
        return {"_schema": ["Invalid input type."]}
    errors: dict[str, Any] = {}
    for name, text in fields.items():
        if name not in document and text.endswith("!"):
            errors[name] = ["Missing data for required field."]
        elif document.get(name) is not None and (error := _type_error(document[name], parse(text.replace(" ", "")))):
            errors[name] = error
    return errors | {name: ["Unknown field."] for name in document if name not in fields}


_TYPE_ERRORS = {"str": "Not a valid string.", "int": "Not a valid integer.", "bool": "Not a valid boolean."}


def _type_error(value: Any, kind: Type) -> Any:
    if kind.kind == "dict" and not isinstance(value, Mapping):
        return ["Not a valid mapping type."]
    if kind.kind == "dict":
        inner = kind.parts[1] if kind.parts else parse("any")
        return {k: {"value": error} for k, v in value.items() if (error := _type_error(v, inner))}
    return [_TYPE_ERRORS[kind.kind]] if kind.kind in _TYPE_ERRORS and not accepts(kind, value) else None


def recipe_errors(document: Mapping[str, Any]) -> dict[str, Any]:
    """The schema's errors about one resolved recipe, as far as the schema is implemented here."""
    schema = Schemas().get(RECORDED, None)
    assert schema is not None
    fields = schema.classes[ROOT]
    errors = schema_errors(document, fields)
    for name in ("model", "resources", "slurm"):
        section = schema.classes[parse(fields[name]).parts[0]]
        if name in document and (section_errors := schema_errors(document[name], section)):
            errors[name] = section_errors
    backend = document.get("backend")
    kind = backend.get("type", "sglang") if isinstance(backend, Mapping) else "sglang"
    if kind not in schema.backends:
        known = ", ".join(schema.backends)
        errors["backend"] = [f"Unknown backend type: {kind!r}. Supported types: {known}"]
    return errors


def resolve(document: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the cluster's defaults and aliases filled in. An alias must match the whole string."""
    config: dict[str, Any] = copy.deepcopy(dict(document))
    if not cluster:
        return config
    slurm = config.setdefault("slurm", {})
    for key in ("account", "partition", "time_limit"):
        if key not in slurm and cluster.get(f"default_{key}"):
            slurm[key] = cluster[f"default_{key}"]
    for key, value in cluster.get("default_sbatch_directives", {}).items():
        config.setdefault("sbatch_directives", {}).setdefault(key, value)
    model = config.get("model", {})
    models, containers = cluster.get("model_paths", {}), cluster.get("containers", {})
    if model.get("path") in models:
        model["path"] = models[model["path"]]
    for section, key in (("model", "container"), ("frontend", "nginx_container"), ("benchmark", "container_image")):
        fields = config.get(section)
        if isinstance(fields, dict) and fields.get(key) in containers:
            fields[key] = containers[fields[key]]
    return config


def preflight(raw: Mapping[str, Any], cluster: Mapping[str, Any]) -> list[str]:
    """The errors of preflight, ``field: text`` each, about the model, the container and the topology.

    A container that looks like an image name with a tag is not checked, because pyxis would pull it.
    """
    model, container = (str(raw.get("model", {}).get(key) or "") for key in ("path", "container"))
    resolved, errors = resolve(raw, cluster).get("model", {}), []
    if not model.startswith("hf:"):
        errors += _unavailable("Model", model, resolved.get("path"), cluster.get("model_paths", {}))
    if container.startswith(("/", "./")) or ":" not in container:
        errors += _unavailable("Container", container, resolved.get("container"), cluster.get("containers", {}))
    return errors + _topology(raw.get("resources") or {})


def _unavailable(
    kind: Literal["Model", "Container"], value: str, resolved: Any, aliases: Mapping[str, str]
) -> list[str]:
    """Preflight's error when the directory of a model, or the file of a container, does not exist."""
    path = Path(os.path.expandvars(str(resolved))).expanduser().resolve()
    if path.is_dir() if kind == "Model" else path.is_file():
        return []
    what, table, verb = ("path", "model_paths", "Pull") if kind == "Model" else ("file", "containers", "Provide")
    noun, key = kind.lower(), "path" if kind == "Model" else "container"
    if value in aliases:
        message = f"{kind} alias '{value}' resolved to '{resolved}', but that {what} is unavailable."
    else:
        message = f"{kind} '{value}' is not a local {noun} path and is not defined in srtslurm.yaml {table}."
    return [f"model.{key}: {message} {verb} or register the {noun} yourself before submitting."]


def _topology(resources: Mapping[str, Any]) -> list[str]:
    number = defaultdict(int, {key: value or 0 for key, value in resources.items()})
    split = [k for k in ("prefill_nodes", "decode_nodes", "prefill_workers", "decode_workers") if k in resources]
    joint = [k for k in ("agg_nodes", "agg_workers") if k in resources]
    if split and joint:
        return [
            f"resources: Mixes disaggregated fields ({', '.join(sorted(split))}) with aggregated fields "
            f"({', '.join(sorted(joint))}). Use disaggregated (prefill_*/decode_*) or aggregated (agg_*), not both."
        ]
    for side, other in (("prefill", "decode"), ("decode", "prefill")):
        if split and not number[f"{side}_workers"] and number[f"{other}_workers"]:
            nodes, workers = number[f"{other}_nodes"], number[f"{other}_workers"]
            return [
                f"resources.{side}_workers: {side}_workers is 0 in a disaggregated-style resources block. For a "
                f"single-side topology on {nodes} node(s) with {workers} worker(s), use aggregated mode: `agg_nodes: "
                f"{nodes}, agg_workers: {workers}` (remove prefill_*/decode_*)."
            ]
    return []


@dataclass(frozen=True)
class Job:
    """A job to submit: ``resolved`` is the recipe with defaults and aliases, ``log`` a path with ``%j`` or None."""

    name: str
    resolved: Mapping[str, Any]
    cluster: Mapping[str, Any]
    root: Path
    output_base: Path
    config_name: str
    setup_script: str | None
    log: Path | None

    @property
    def directives(self) -> Mapping[str, Any]:
        return self.resolved.get("sbatch_directives") or {}

    @property
    def time_limit(self) -> str:
        return str((self.resolved.get("slurm") or {}).get("time_limit") or "01:00:00")


def batch_script(job: Job) -> str:
    """The script for sbatch: srt-slurm's directives in its order, and the stand-in for the engine as its body."""
    slurm, resources = job.resolved.get("slurm") or {}, job.resolved.get("resources") or {}
    nodes = recipe_facts(job.resolved).nodes or 1
    per_node = resources.get("gpus_per_node", 4)
    cluster = job.cluster.get
    directives = [
        f"job-name={job.name}",
        f"output={job.log or '/dev/null'}",
        f"nodes={nodes}",
        f"ntasks={nodes}",
        "ntasks-per-node=1",
        *([f"gpus-per-node={per_node}"] if cluster("use_gpus_per_node_directive", True) else []),
        *([f"segment={nodes}"] if cluster("use_segment_sbatch_directive", True) else []),
        *(["exclusive"] if cluster("use_exclusive_sbatch_directive", False) else []),
        f"account={slurm.get('account') or 'default'}",
        f"time={job.time_limit}",
        f"partition={slurm.get('partition') or 'default'}",
        *(f"{key}={value}" if value else key for key, value in job.directives.items()),
    ]
    package = shlex.quote(str(Path(launcher.__file__).parents[1]))
    # The workflow's PYTHONPYCACHEPREFIX, which the job has, would have it compile all that it imports.
    engine = shlex.join([sys.executable, "-X", "pycache_prefix=", "-m", "launcher.rehearsal.engine_stand_in"])
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{directive}" for directive in directives),
            "",
            "exec 2>&1",
            f"cd {shlex.quote(str(job.root))}",
            f"export PYTHONPATH={package}${{PYTHONPATH:+:$PYTHONPATH}}",
            *([f"export SRTCTL_SETUP_SCRIPT={shlex.quote(job.setup_script)}"] if job.setup_script else []),
            f'exec {engine} {shlex.quote(str(job.output_base))}/"$SLURM_JOB_ID" {shlex.quote(job.config_name)}',
            "",
        ]
    )


def write_output(
    job: Job, directory: Path, job_id: str, source: Path, variant: recipe.Variant, tags: Sequence[str] | None
) -> None:
    """Fill ``outputs/<job>``: the original recipe, the variant that runs, the script, the metadata."""
    directory.mkdir(parents=True, exist_ok=True)  # first: the error names it, as srtctl's does
    (directory / "logs").mkdir(exist_ok=True)
    # The job waits for its configuration, and must not see it half-written.
    if variant.suffix:
        write_text(directory / job.config_name, recipe.dump(variant.document))
    write_text(directory / "config.yaml", source.read_text())
    (directory / "sbatch_script.sh").write_text(batch_script(job))
    facts = recipe_facts(job.resolved)
    resources = job.resolved.get("resources") or {}
    sides = {"prefill": facts.prefill, "decode": facts.decode, "agg": facts.aggregated}
    metadata: dict[str, Any] = {
        "version": "2.0",
        "orchestrator": True,
        "job_id": job_id,
        "job_name": job.name,
        "generated_at": time.strftime("%Y-%m-%d %H:%M:%S"),
        "model": {key: job.resolved["model"].get(key) for key in ("path", "container", "precision")},
        "resources": {
            "gpu_type": facts.gpu_type,
            "gpus_per_node": facts.gpus_per_node,
            **{f"{name}_nodes": resources.get(f"{name}_nodes") for name in sides},
            **{f"{name}_workers": resources.get(f"{name}_workers") or 0 for name in sides},
            **{f"gpus_per_{name}": side.gpus_per_worker if side else None for name, side in sides.items()},
        },
        "backend_type": facts.engine,
        "frontend_type": (job.resolved.get("frontend") or {}).get("type", "dynamo"),
        "benchmark": {"type": facts.benchmark_type, "isl": facts.isl, "osl": facts.osl},
        **({"tags": list(tags)} if tags else {}),
        **MARK,
    }
    (directory / f"{job_id}.json").write_text(json.dumps(metadata, indent=2))
