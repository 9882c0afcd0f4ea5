"""What versions of srt-slurm demand of a recipe beyond the types of its values.

Each demand is one function, and is made only by the versions whose source makes it. The demands were read out of the
``__post_init__`` and ``_validate_…`` functions of v1.0.0 to v1.0.68 and of three branches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from launcher.core.yaml_source import Key

Broken = tuple[tuple[Key, ...], str]
"""The keys that a demand is about, and what is wrong with them."""

PER_NODE = "vllm-per-node"
"""Not a demand but a default: ``backend.dp_launch_mode`` is ``per_node`` where a recipe does not say."""

SOURCES: dict[str, tuple[str, str, str]] = {
    "profiling-no-torch": ("SrtConfig", "_validate_profiling", "torch profiling is not supported"),
    "profiling-time-trtllm": ("SrtConfig", "_validate_profiling", "only supported for the trtllm"),
    "profiling-time": ("SrtConfig", "_validate_profiling", "required for nsys-time"),
    "profiling-vllm-own": ("SrtConfig", "_validate_vllm_nsys_profiler_config_not_set", ""),
    "scraper-image": ("SrtConfig", "_validate_telemetry", "telemetry.container_image is required"),
    "mooncake-vllm": ("SrtConfig", "_validate_mooncake_kv_store", "neither vllm_config.prefill"),
    "het-dedicated": ("SrtConfig", "_validate_het_jobs", "are not supported together"),
    "trtllm-serve-disagg": ("SrtConfig", "_validate_trtllm_serve", "requires a disaggregated layout"),
    "vllm-frontend-one-node": ("SrtConfig", "_validate_vllm_frontend", "single-node aggregate jobs only"),
    "vllm-frontend-one-worker": ("SrtConfig", "_validate_vllm_frontend", "exactly one aggregate worker"),
}
"""Demand → the class, its function, and a text in it by which a version that makes the demand is known.

These are parts of demands that not all versions make; the demands themselves are added below.
"""

_MODES = ("prefill", "decode", "aggregated")


@dataclass(frozen=True)
class Recipe:
    """A recipe whose types are right, and the demands of the version that judges it."""

    demands: frozenset[str]
    document: Mapping[str, Any]

    def part(self, *keys: str) -> Mapping[str, Any]:
        value: Any = self.document
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}

    def number(self, part: Mapping[str, Any], key: str, default: float = 0) -> float:
        """A number as the schema reads it; ``default`` where the recipe does not say."""
        value = part.get(key)
        return default if value is None else float(value)

    def is_on(self, part: Mapping[str, Any], key: str, default: bool = False) -> bool:
        value = part.get(key, default)
        return value.lower() in ("t", "true", "on", "y", "yes", "1") if isinstance(value, str) else bool(value)

    @property
    def backend(self) -> str:
        return str(self.part("backend").get("type", "sglang"))

    @property
    def frontend(self) -> str:
        return str(self.part("frontend").get("type", "dynamo"))

    @property
    def several_frontends(self) -> bool:
        return self.is_on(self.part("frontend"), "enable_multiple_frontends", True)

    @property
    def disaggregated(self) -> bool:
        resources = self.part("resources")
        return resources.get("prefill_nodes") is not None or resources.get("decode_nodes") is not None

    def resource(self, key: str) -> int:
        return int(self.number(self.part("resources"), key))

    def engine(self, mode: str) -> Mapping[str, Any]:
        return self.part("backend", f"{self.backend}_config", mode)


_Look = Callable[[Recipe], Iterator[Broken]]
_DEMANDS: dict[str, _Look] = {}


def unmet_demands(demands: frozenset[str], recipe: Mapping[str, Any]) -> Iterator[Broken]:
    """Which of a version's demands a recipe, whose types are right, does not meet."""
    seen = Recipe(demands, recipe)
    for demand, look in _DEMANDS.items():
        if demand in demands:
            yield from look(seen)


def _demand(name: str, owner: str, function: str, text: str = "") -> Callable[[_Look], _Look]:
    def add(look: _Look) -> _Look:
        SOURCES[name] = (owner, function, text)
        _DEMANDS[name] = look
        return look

    return add


@_demand("dynamo-one-source", "DynamoConfig", "__post_init__", "Cannot specify both")
def _one_dynamo(r: Recipe) -> Iterator[Broken]:
    dynamo = r.part("dynamo")
    sources = [k for k in ("hash", "wheel") if dynamo.get(k) is not None]
    sources += ["top_of_tree"] if r.is_on(dynamo, "top_of_tree") else []
    if len(sources) > 1:
        yield ("dynamo",), f"dynamo has the sources {' and '.join(sources)}; expected one"


@_demand("dynamo-wheel-version", "DynamoConfig", "__post_init__", "not a filename")
def _wheel(r: Recipe) -> Iterator[Broken]:
    wheel = r.part("dynamo").get("wheel")
    if wheel is not None and (not wheel.strip() or "/" in wheel or wheel.endswith(".whl")):
        yield ("dynamo", "wheel"), f"dynamo.wheel is {wheel!r}; expected a package version"


@_demand("dynamo-patches-hash", "DynamoConfig", "__post_init__", "dynamo.cargo_patches requires")
def _patches(r: Recipe) -> Iterator[Broken]:
    dynamo = r.part("dynamo")
    if dynamo.get("cargo_patches") and dynamo.get("hash") is None:
        yield ("dynamo", "cargo_patches"), "dynamo.cargo_patches needs dynamo.hash, a commit to build"


@_demand("profiling", "SrtConfig", "_validate_profiling")
def _profiling(r: Recipe) -> Iterator[Broken]:
    profiling = r.part("profiling")
    kind = profiling.get("type", "none")
    if kind == "none":
        return
    if kind == "torch" and r.backend == "trtllm" and "profiling-no-torch" in r.demands:
        yield ("profiling", "type"), "torch profiling is not possible with trtllm; nsys is"
    elif kind == "nsys-time" and r.backend != "trtllm" and "profiling-time-trtllm" in r.demands:
        yield ("profiling", "type"), "nsys-time profiling is only possible with trtllm"
    elif kind == "nsys-time" and "profiling-time" in r.demands:
        missing = [k for k in ("delay_secs", "duration_secs") if profiling.get(k) is None]
        if missing:
            yield ("profiling",), f"nsys-time profiling needs profiling.{' and profiling.'.join(missing)}"
    else:
        yield from _phases(r)
        if kind == "nsys" and r.backend == "vllm" and "profiling-vllm-own" in r.demands:
            for mode in _MODES:
                for key in r.engine(mode):
                    if str(key).replace("_", "-").startswith("profiler-config"):
                        yield ("backend", "vllm_config", mode, key), f"{key} is set by srtctl when nsys profiling is on"


def _phases(r: Recipe) -> Iterator[Broken]:
    phases = [mode for mode in _MODES if r.part("profiling").get(mode) is not None]
    needed = ["prefill", "decode"] if r.disaggregated else ["aggregated"]
    if phases != needed:
        has = " and ".join(phases) or "none"
        yield ("profiling",), f"profiling needs the phases {' and '.join(needed)}, and has {has}"
    workers = ["prefill_workers", "decode_workers"] if r.disaggregated else ["agg_workers"]
    if any(r.resource(w) <= 0 for w in workers):
        yield ("resources",), f"profiling needs resources.{' and resources.'.join(workers)} above 0"


@_demand("scraper", "SrtConfig", "_validate_telemetry", "telemetry.node_exporter is required")
def _scraper(r: Recipe) -> Iterator[Broken]:
    telemetry = r.part("telemetry")
    if not r.is_on(telemetry, "enabled") or telemetry.get("provider") == "dcgm-power":
        return
    needed = ["container_image"] if "scraper-image" in r.demands else []
    for key in (*needed, "dcgm_exporter", "node_exporter"):
        if not telemetry.get(key):
            yield ("telemetry",), f"telemetry needs telemetry.{key}"
    if telemetry.get("binary_path") == "" and "scraper-image" not in r.demands:
        yield ("telemetry", "binary_path"), "telemetry.binary_path is empty"
    yield from _scraper_numbers(r, telemetry, ("telemetry",))


def _scraper_numbers(r: Recipe, part: Mapping[str, Any], at: tuple[str, ...]) -> Iterator[Broken]:
    if r.number(part, "default_frequency", 1) <= 0:
        yield (*at, "default_frequency"), "default_frequency must be above 0"
    for key in ("sync_interval_secs", "compaction_threads"):
        if r.number(part, key) < 0:
            yield (*at, key), f"{key} must not be below 0"


@_demand("power", "SrtConfig", "_validate_dcgm_power")
def _power(r: Recipe) -> Iterator[Broken]:
    telemetry = r.part("telemetry")
    if not r.is_on(telemetry, "enabled") or ("scraper" in r.demands and telemetry.get("provider") != "dcgm-power"):
        return
    exporter = telemetry.get("dcgm_exporter")
    if exporter is None:
        yield ("telemetry",), "power telemetry needs telemetry.dcgm_exporter"
    else:
        yield from _exporter(exporter, ("telemetry", "dcgm_exporter"))
    for key in ("default_frequency", "startup_timeout_seconds", "request_timeout_seconds"):
        value = r.number(telemetry, key, 1)
        if not (math.isfinite(value) and value > 0):
            yield ("telemetry", key), f"telemetry.{key} must be above 0"
    # the default was the scraper's while there was one, and no default for power
    if r.number(telemetry, "default_frequency", 5 if "scraper" in r.demands else 1) > 3:
        yield ("telemetry", "default_frequency"), "telemetry.default_frequency must not be above 3 s"
    # two collector cycles, each of two requests and 1 s of grace
    least = 2 * (2 * r.number(telemetry, "request_timeout_seconds", 2) + 1)
    join = r.number(telemetry, "collector_join_timeout_seconds", least + 2)
    if join <= least:
        message = f"telemetry.collector_join_timeout_seconds is {join:g}; expected more than {least:g}"
        yield ("telemetry", "collector_join_timeout_seconds"), message
    yield from _below_logs(telemetry.get("storage_subdir", "power"), ("telemetry", "storage_subdir"))
    benchmark = r.part("benchmark")
    if benchmark.get("type", "manual") != "sa-bench":
        yield ("benchmark", "type"), "power telemetry needs benchmark.type sa-bench"
    if benchmark.get("client_placement", "head") != "head":
        yield ("benchmark", "client_placement"), "power telemetry needs benchmark.client_placement head"
    if r.is_on(r.part("infra"), "etcd_nats_dedicated_node"):
        yield ("infra", "etcd_nats_dedicated_node"), "power telemetry needs infra.etcd_nats_dedicated_node false"
    numbers = _numbers(benchmark.get("concurrencies"))
    if not numbers or len(set(numbers)) != len(numbers) or any(n <= 0 for n in numbers):
        message = "power telemetry needs benchmark.concurrencies, all different and above 0"
        yield ("benchmark", "concurrencies"), message


def _numbers(said: str | list[Any] | None) -> list[int]:
    """Concurrencies as srtctl reads them; none for a text that holds something else."""
    try:
        return [int(part) for part in (said.split("x") if isinstance(said, str) else said or ())]
    except ValueError:
        return []


def _exporter(exporter: Mapping[str, Any], at: tuple[str, ...]) -> Iterator[Broken]:
    if not exporter.get("container_image"):
        yield (*at, "container_image"), f"{'.'.join(at)}.container_image is empty"
    if not 1 <= int(exporter["port"]) <= 65535:
        yield (*at, "port"), f"{'.'.join(at)}.port must be from 1 to 65535"


def _below_logs(path: str, at: tuple[str, ...]) -> Iterator[Broken]:
    if not path or path.startswith(("/", "~")) or ".." in PurePosixPath(path).parts or not PurePosixPath(path).parts:
        yield at, f"{'.'.join(at)} is {path!r}; expected a path below the log directory"


@_demand("tachometer", "SrtConfig", "_validate_observability")
def _tachometer(r: Recipe) -> Iterator[Broken]:
    at = ("observability", "tachometer")
    tachometer, powered = r.part(*at), r.is_on(r.part("telemetry"), "enabled")
    if not r.is_on(tachometer, "enabled"):
        return
    if not r.is_on(r.part("observability"), "enabled"):
        yield at, "observability.tachometer needs observability.enabled true"
    if powered and tachometer.get("dcgm_exporter") is not None:
        yield (*at, "dcgm_exporter"), "with power telemetry the DCGM exporter is configured under telemetry, not here"
    subdir = tachometer.get("storage_subdir", "tachometer")
    if powered and subdir == r.part("telemetry").get("storage_subdir", "power"):
        yield (*at, "storage_subdir"), "tachometer and telemetry must not share a storage_subdir"
    for name in ("dcgm_exporter", "node_exporter"):
        if tachometer.get(name) is not None:
            yield from _exporter(tachometer[name], (*at, name))
    if tachometer.get("binary_path") == "":
        yield (*at, "binary_path"), "observability.tachometer.binary_path is empty"
    yield from _scraper_numbers(r, tachometer, at)
    yield from _below_logs(subdir, (*at, "storage_subdir"))


@_demand("mooncake", "SrtConfig", "_validate_mooncake_kv_store")
def _mooncake(r: Recipe) -> Iterator[Broken]:
    if r.part("backend").get("mooncake_kv_store") is None or not r.disaggregated:
        return
    sides = [r.engine(mode) for mode in ("prefill", "decode")]
    where = ("backend", "mooncake_kv_store")
    if r.backend == "sglang" or "mooncake-vllm" not in r.demands:
        keys = ("disaggregation-transfer-backend", "disaggregation_transfer_backend")
        if not any(side.get(k) == "mooncake" for side in sides for k in keys):
            yield where, "mooncake_kv_store is set, and neither side has disaggregation-transfer-backend: mooncake"
    elif r.backend == "vllm":
        said = [side.get(k) for side in sides for k in ("kv-transfer-config", "kv_transfer_config")]
        if not any(isinstance(text, str) and "mooncake" in text.lower() for text in said):
            yield where, "mooncake_kv_store is set, and neither side's kv-transfer-config names a Mooncake connector"


@_demand("het", "SrtConfig", "_validate_het_jobs")
def _het(r: Recipe) -> Iterator[Broken]:
    if not r.is_on(r.part("resources"), "het_jobs"):
        return
    where = ("resources", "het_jobs")
    if r.resource("prefill_nodes") < 1 or r.resource("decode_nodes") < 1:
        yield where, "het_jobs needs resources.prefill_nodes and resources.decode_nodes of 1 at least"
    if r.backend != "sglang":
        yield where, f"het_jobs is only possible with sglang, and the backend is {r.backend}"
    dedicated = r.is_on(r.part("frontend"), "dedicated_node") or r.is_on(r.part("benchmark"), "client_dedicated_node")
    if dedicated and "het-dedicated" in r.demands:
        yield where, "het_jobs is not possible with a dedicated node for the frontend or the client"


@_demand("dedicated", "SrtConfig", "_validate_dedicated_node_placement")
def _dedicated(r: Recipe) -> Iterator[Broken]:
    for part, flag, placement in (
        ("frontend", "dedicated_node", "orchestrator_placement"),
        ("benchmark", "client_dedicated_node", "client_placement"),
    ):
        if r.is_on(r.part(part), flag) and r.part(part).get(placement, "head") != "head":
            yield (part, placement), f"{part}.{flag} needs {part}.{placement} head"


@_demand("trtllm-serve", "SrtConfig", "_validate_trtllm_serve")
def _trtllm_serve(r: Recipe) -> Iterator[Broken]:
    if r.frontend != "trtllm_serve":
        return
    where = ("frontend", "type")
    if r.backend != "trtllm":
        yield where, f"frontend.type trtllm_serve needs backend.type trtllm, and it is {r.backend}"
    if r.several_frontends:
        yield where, "frontend.type trtllm_serve needs frontend.enable_multiple_frontends false"
    if not r.disaggregated and "trtllm-serve-disagg" in r.demands:
        yield where, "frontend.type trtllm_serve needs prefill and decode nodes"
    elif not r.disaggregated and r.resource("agg_workers") != 1:
        yield where, "frontend.type trtllm_serve needs resources.agg_workers 1 when nothing is disaggregated"


@_demand("vllm-frontend", "SrtConfig", "_validate_vllm_frontend")
def _vllm_frontend(r: Recipe) -> Iterator[Broken]:
    if r.frontend != "vllm":
        return
    where = ("frontend", "type")
    if r.backend != "vllm":
        yield where, f"frontend.type vllm needs backend.type vllm, and it is {r.backend}"
    if r.several_frontends:
        yield where, "frontend.type vllm needs frontend.enable_multiple_frontends false"
    if r.disaggregated:
        yield where, "frontend.type vllm is for aggregated workers only"
    workers = r.resource("agg_workers")
    if workers < 1 or (workers > 1 and "vllm-frontend-one-worker" in r.demands):
        yield where, f"frontend.type vllm needs one aggregated worker, and the recipe has {workers}"
    nodes = r.resource("agg_nodes") or 1
    if nodes != 1 and "vllm-frontend-one-node" in r.demands:
        message = f"frontend.type vllm runs on one node at this version, and {nodes} are asked for"
        yield ("resources", "agg_nodes"), message


@_demand("vllm-no-headless", "VLLMProtocol", "__post_init__", "remove headless")
def _no_headless(r: Recipe) -> Iterator[Broken]:
    mode = r.part("backend").get("dp_launch_mode", "per_node" if PER_NODE in r.demands else "per_gpu")
    if r.backend != "vllm" or mode != "per_node":
        return
    for side in _MODES:
        config = {str(k).replace("_", "-"): v for k, v in r.engine(side).items()}
        if config.get("data-parallel-size") is not None and "headless" in config:
            place = ("backend", "vllm_config", side, "headless")
            yield place, "headless is srtctl's to set with dp_launch_mode per_node"
