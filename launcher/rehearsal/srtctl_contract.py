"""The files that srtctl reads, refuses and resolves, as the stand-ins do it.

Known from recorded runs of srt-slurm c88ef731 and its source (``core/config.py``, ``core/schema.py``,
``core/validation.py``). Kept are the search for srtslurm.yaml, which one bad key invalidates as a whole; defaults and
aliases; the schema's errors about top-level keys, `model`, `resources` and `slurm`; the texts of preflight. Not kept
are sweeps, and the fields of `backend`, `benchmark` and `frontend`, whose names change from commit to commit.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

Kind = Literal["str", "int", "bool", "strings", "ints", "any"]

CLUSTER: Mapping[str, Kind] = {
    "cluster": "str",
    "default_account": "str",
    "default_partition": "str",
    "default_time_limit": "str",
    "gpus_per_node": "int",
    "network_interface": "str",
    "use_gpus_per_node_directive": "bool",
    "use_segment_sbatch_directive": "bool",
    "use_exclusive_sbatch_directive": "bool",
    "use_het_jobs": "bool",
    "default_sbatch_directives": "strings",
    "default_health_check": "ints",
    "srtctl_root": "str",
    "output_dir": "str",
    "model_paths": "strings",
    "containers": "strings",
    "cloud": "strings",
    "default_mounts": "strings",
    "default_bash_preamble": "str",
    "reporting": "any",
    "telemetry": "any",
    "nginx_raise_ulimit": "bool",
}
"""The keys of srtslurm.yaml."""

RECIPE: Mapping[str, Kind] = {
    "name": "str",
    "model": "any",
    "resources": "any",
    **dict.fromkeys(("slurm", "backend", "frontend", "dynamo", "benchmark", "profiling", "output"), "any"),
    **dict.fromkeys(("health_check", "infra", "observability", "telemetry", "identity", "reporting"), "any"),
    "environment": "strings",
    "container_mounts": "any",
    "extra_mount": "any",
    "srun_options": "strings",
    "sbatch_directives": "strings",
    "enable_config_dump": "bool",
    "setup_script": "str",
}

_SECTIONS: Mapping[str, Mapping[str, Kind]] = {
    "model": {"path": "str", "container": "str", "precision": "str", "stage_dir": "str"},
    "resources": {
        "gpu_type": "str",
        "gpus_per_node": "int",
        **{f"{side}_{what}": "int" for side in ("prefill", "decode", "agg") for what in ("nodes", "workers")},
        **{f"gpus_per_{side}": "int" for side in ("prefill", "decode", "agg")},
        "spread_workers": "bool",
        "het_jobs": "bool",
    },
    "slurm": {"account": "str", "partition": "str", "time_limit": "str"},
}
_REQUIRED = {
    "": ("name", "model", "resources"),
    "model": ("path", "container", "precision"),
    "resources": ("gpu_type",),
}
_BACKENDS = ("sglang", "trtllm", "vllm", "mocker")


class Refused(ValueError):
    """srtctl would print this after ``Error: ``."""


def load_cluster(environ: Mapping[str, str], cwd: Path) -> tuple[dict[str, Any], str | None]:
    """srtslurm.yaml as srtctl finds it, and a warning when it was invalid; without a valid one {}."""
    named = environ.get("SRTSLURM_CONFIG")
    if named and not Path(named).exists():
        return {}, f"SRTSLURM_CONFIG set but file not found: {named}"
    places = [Path(named)] if named else [p / "srtslurm.yaml" for p in (cwd, cwd.parent, cwd.parent.parent)]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        return {}, None
    try:
        document = yaml.safe_load(found.read_text())
    except yaml.YAMLError as error:
        return {}, f"Failed to load or validate srtslurm.yaml: {error}"
    wrong = complaints(document, CLUSTER)
    if wrong:
        return {}, f"Failed to load or validate srtslurm.yaml: {wrong}"
    return {k: v for k, v in document.items() if v is not None}, None


def load_recipe(path: Path) -> Any:
    """A recipe file's document. Raises Refused when it is not YAML, empty, or not a mapping."""
    try:
        with path.open() as handle:
            document = yaml.safe_load(handle)
    except yaml.YAMLError as error:
        raise Refused(str(error)) from None
    if document is None:
        raise Refused(f"Invalid config in {path}: YAML file is empty")
    if not isinstance(document, dict):
        raise Refused(f"Invalid config in {path}: top-level YAML must be a mapping")
    return document


def complaints(document: Any, fields: Mapping[str, Kind], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """The errors of marshmallow about a mapping, by field; {} for a valid one."""
    if not isinstance(document, Mapping):
        return {"_schema": ["Invalid input type."]}
    wrong: dict[str, Any] = {}
    for name, kind in fields.items():
        if name in required and name not in document:
            wrong[name] = ["Missing data for required field."]
        elif document.get(name) is not None and (complaint := _complaint(document[name], kind)):
            wrong[name] = complaint
    return wrong | {name: ["Unknown field."] for name in document if name not in fields}


def _complaint(value: Any, kind: Kind) -> Any:
    if kind == "str":
        return None if isinstance(value, str) else ["Not a valid string."]
    if kind == "int":
        whole = isinstance(value, (int, float)) or (isinstance(value, str) and value.lstrip("-").isdecimal())
        return None if whole else ["Not a valid integer."]
    if kind == "bool":
        known = str(value).lower() in ("true", "false", "1", "0", "yes", "no", "on", "off", "t", "f", "y", "n")
        return None if known else ["Not a valid boolean."]
    if kind == "any":
        return None
    if not isinstance(value, Mapping):
        return ["Not a valid mapping type."]
    inner: Kind = "str" if kind == "strings" else "int"
    wrong = {k: {"value": said} for k, v in value.items() if (said := _complaint(v, inner))}
    return wrong or None


def recipe_complaints(document: Mapping[str, Any]) -> dict[str, Any]:
    """The schema's errors about one resolved recipe, as far as the schema is kept here."""
    wrong = complaints(document, RECIPE, _REQUIRED[""])
    for name, fields in _SECTIONS.items():
        if name in document and (said := complaints(document[name], fields, _REQUIRED.get(name, ()))):
            wrong[name] = said
    backend = document.get("backend")
    kind = backend.get("type", "sglang") if isinstance(backend, Mapping) else "sglang"
    if kind not in _BACKENDS:
        wrong["backend"] = [f"Unknown backend type: {kind!r}. Supported types: {', '.join(_BACKENDS)}"]
    return wrong


def resolve(document: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the cluster's defaults and aliases. An alias must match the whole string; an unknown one stays."""
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
        holder = config.get(section)
        if isinstance(holder, dict) and holder.get(key) in containers:
            holder[key] = containers[holder[key]]
    return config


def preflight(raw: Mapping[str, Any], cluster: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """The texts of preflight about the model and about the container, and its errors (``field: text``).

    A container that looks like an image name with a tag passes without a check, because pyxis would pull it.
    """
    model, container = (str(raw.get("model", {}).get(key) or "") for key in ("path", "container"))
    resolved = resolve(raw, cluster).get("model", {})
    errors: list[str] = []
    if model.startswith("hf:"):
        said_model = f"HuggingFace model ID: {model[3:]}"
    else:
        place = Path(os.path.expandvars(str(resolved.get("path")))).expanduser().resolve()
        said_model = f"exists: {place}"
        if not place.is_dir():
            said_model = (
                f"Model alias '{model}' resolved to '{resolved.get('path')}', but that path is unavailable. "
                if model in cluster.get("model_paths", {})
                else f"Model '{model}' is not a local model path and is not defined in srtslurm.yaml model_paths. "
            ) + "Pull or register the model yourself before submitting."
            errors.append(f"model.path: {said_model}")
    if not container.startswith(("/", "./")) and ":" in container:
        said_container = f"Container image URI: {container}"
    else:
        place = Path(os.path.expandvars(str(resolved.get("container")))).expanduser().resolve()
        said_container = f"exists: {place}"
        if not place.is_file():
            said_container = (
                f"Container alias '{container}' resolved to '{resolved.get('container')}', but that file is "
                "unavailable."
                if container in cluster.get("containers", {})
                else f"Container '{container}' is not a local container path and is not defined in srtslurm.yaml "
                "containers."
            ) + " Provide or register the container yourself before submitting."
            errors.append(f"model.container: {said_container}")
    return said_model, said_container, errors + _topology(raw.get("resources") or {})


def _topology(resources: Mapping[str, Any]) -> list[str]:
    number = {key: resources.get(key) or 0 for key in _SECTIONS["resources"]}
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
