"""What versions of srt-slurm demand of a recipe beyond the types of its values.

Each demand is one function named as in `source.DEMANDS`, and is made only by the versions whose source makes it. They
were read out of the ``__post_init__`` and ``_validate_…`` functions of v1.0.0 to v1.0.68 and of three branches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from launcher.check.srtctl_schema import PER_NODE, Schema
from launcher.check.telemetry import Recipe, Unmet, power, scraper, tachometer

_MODES = ("prefill", "decode", "aggregated")


def unmet(schema: Schema, recipe: Mapping[str, Any]) -> Iterator[Unmet]:
    """The demands of a version that a recipe, whose types are right, does not meet."""
    seen = Recipe(schema.demands, recipe)
    for demand, look in _DEMANDS.items():
        if demand in schema.demands:
            yield from look(seen)


_Look = Callable[[Recipe], Iterator[Unmet]]


def _one_dynamo(r: Recipe) -> Iterator[Unmet]:
    dynamo = r.part("dynamo")
    sources = [k for k in ("hash", "wheel") if dynamo.get(k) is not None]
    sources += ["top_of_tree"] if r.is_on(dynamo, "top_of_tree") else []
    if len(sources) > 1:
        yield ("dynamo",), f"dynamo is to come from {' and from '.join(sources)}; one source is allowed"


def _wheel(r: Recipe) -> Iterator[Unmet]:
    wheel = r.part("dynamo").get("wheel")
    if wheel is not None and (not wheel.strip() or "/" in wheel or wheel.endswith(".whl")):
        yield ("dynamo", "wheel"), f"dynamo.wheel must be a package version, and is {wheel!r}"


def _patches(r: Recipe) -> Iterator[Unmet]:
    dynamo = r.part("dynamo")
    if dynamo.get("cargo_patches") and dynamo.get("hash") is None:
        yield ("dynamo", "cargo_patches"), "dynamo.cargo_patches needs dynamo.hash, a commit to build"


def _profiling(r: Recipe) -> Iterator[Unmet]:
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
        yield from _phases(r, [mode for mode in _MODES if profiling.get(mode) is not None])
        if kind == "nsys" and r.backend == "vllm" and "profiling-vllm-own" in r.demands:
            yield from _own_profiler(r)


def _phases(r: Recipe, phases: list[str]) -> Iterator[Unmet]:
    needed = ["prefill", "decode"] if r.disaggregated else ["aggregated"]
    if phases != needed:
        has = " and ".join(phases) or "none"
        yield ("profiling",), f"profiling needs the phases {' and '.join(needed)}, and has {has}"
    workers = ["prefill_workers", "decode_workers"] if r.disaggregated else ["agg_workers"]
    if any(r.resource(w) <= 0 for w in workers):
        yield ("resources",), f"profiling needs resources.{' and resources.'.join(workers)} above 0"


def _own_profiler(r: Recipe) -> Iterator[Unmet]:
    for mode in _MODES:
        for key in r.engine(mode):
            if str(key).replace("_", "-").startswith("profiler-config"):
                yield ("backend", "vllm_config", mode, key), f"{key} is set by srtctl when nsys profiling is on"


def _mooncake(r: Recipe) -> Iterator[Unmet]:
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


def _het(r: Recipe) -> Iterator[Unmet]:
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


def _dedicated(r: Recipe) -> Iterator[Unmet]:
    for part, flag, placement in (
        ("frontend", "dedicated_node", "orchestrator_placement"),
        ("benchmark", "client_dedicated_node", "client_placement"),
    ):
        if r.is_on(r.part(part), flag) and r.part(part).get(placement, "head") != "head":
            yield (part, placement), f"{part}.{flag} needs {part}.{placement} head"


def _trtllm_serve(r: Recipe) -> Iterator[Unmet]:
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


def _vllm_frontend(r: Recipe) -> Iterator[Unmet]:
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
        yield where, f"frontend.type vllm needs one aggregated worker, and there are {workers}"
    nodes = r.resource("agg_nodes") or 1
    if nodes != 1 and "vllm-frontend-one-node" in r.demands:
        message = f"frontend.type vllm runs on one node at this version, and {nodes} are asked for"
        yield ("resources", "agg_nodes"), message


def _no_headless(r: Recipe) -> Iterator[Unmet]:
    mode = r.part("backend").get("dp_launch_mode", "per_node" if PER_NODE in r.demands else "per_gpu")
    if r.backend != "vllm" or mode != "per_node":
        return
    for side in _MODES:
        config = {str(k).replace("_", "-"): v for k, v in r.engine(side).items()}
        if config.get("data-parallel-size") is not None and "headless" in config:
            place = ("backend", "vllm_config", side, "headless")
            yield place, "headless is srtctl's to set with dp_launch_mode per_node"


_DEMANDS: Mapping[str, _Look] = {
    "dynamo-one-source": _one_dynamo,
    "dynamo-wheel-version": _wheel,
    "dynamo-patches-hash": _patches,
    "profiling": _profiling,
    "scraper": scraper,
    "power": power,
    "tachometer": tachometer,
    "mooncake": _mooncake,
    "het": _het,
    "dedicated": _dedicated,
    "trtllm-serve": _trtllm_serve,
    "vllm-frontend": _vllm_frontend,
    "vllm-no-headless": _no_headless,
}
