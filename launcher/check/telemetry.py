"""What the demands of `launcher.check.cross_field_rules` look at, and those about telemetry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from launcher.core.yaml_source import Key

Unmet = tuple[tuple[Key, ...], str]
"""The keys that a demand is about, and what is wrong."""


@dataclass(frozen=True)
class Recipe:
    """A recipe whose types are right, and the demands of the version that judges it."""

    demands: frozenset[str]
    document: Mapping[str, Any]

    def part(self, *keys: str) -> Mapping[str, Any]:
        value: Any = self.document
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, Mapping) else {}

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


def scraper(r: Recipe) -> Iterator[Unmet]:
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


def _scraper_numbers(r: Recipe, part: Mapping[str, Any], at: tuple[str, ...]) -> Iterator[Unmet]:
    if r.number(part, "default_frequency", 1) <= 0:
        yield (*at, "default_frequency"), "default_frequency must be above 0"
    for key in ("sync_interval_secs", "compaction_threads"):
        if r.number(part, key) < 0:
            yield (*at, key), f"{key} must not be below 0"


def power(r: Recipe) -> Iterator[Unmet]:
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
        message = f"telemetry.collector_join_timeout_seconds is {join:g}, and must be above {least:g}"
        yield ("telemetry", "collector_join_timeout_seconds"), message
    yield from _below_logs(telemetry.get("storage_subdir", "power"), ("telemetry", "storage_subdir"))
    yield from _power_benchmark(r)


def _power_benchmark(r: Recipe) -> Iterator[Unmet]:
    benchmark = r.part("benchmark")
    if benchmark.get("type", "manual") != "sa-bench":
        yield ("benchmark", "type"), "power telemetry needs benchmark.type sa-bench"
    if benchmark.get("client_placement", "head") != "head":
        yield ("benchmark", "client_placement"), "power telemetry needs benchmark.client_placement head"
    if r.is_on(r.part("infra"), "etcd_nats_dedicated_node"):
        yield ("infra", "etcd_nats_dedicated_node"), "power telemetry needs infra.etcd_nats_dedicated_node false"
    numbers = _numbers(benchmark.get("concurrencies"))
    if not numbers or len(set(numbers)) != len(numbers) or any(n <= 0 for n in numbers):
        yield ("benchmark", "concurrencies"), "power telemetry needs benchmark.concurrencies, all different and above 0"


def _numbers(said: str | list[Any] | None) -> list[int]:
    """Concurrencies as srtctl reads them; none for a text that holds something else."""
    try:
        return [int(part) for part in (said.split("x") if isinstance(said, str) else said or ())]
    except ValueError:
        return []


def _exporter(exporter: Mapping[str, Any], at: tuple[str, ...]) -> Iterator[Unmet]:
    if not exporter.get("container_image"):
        yield (*at, "container_image"), f"{'.'.join(at)}.container_image is empty"
    if not 1 <= int(exporter["port"]) <= 65535:
        yield (*at, "port"), f"{'.'.join(at)}.port must be from 1 to 65535"


def _below_logs(path: str, at: tuple[str, ...]) -> Iterator[Unmet]:
    if not path or path.startswith(("/", "~")) or ".." in PurePosixPath(path).parts or not PurePosixPath(path).parts:
        yield at, f"{'.'.join(at)} must be a path below the log directory, and is {path!r}"


def tachometer(r: Recipe) -> Iterator[Unmet]:
    at = ("observability", "tachometer")
    tachometer, powered = r.part(*at), r.is_on(r.part("telemetry"), "enabled")
    if not r.is_on(tachometer, "enabled"):
        return
    if not r.is_on(r.part("observability"), "enabled"):
        yield at, "observability.tachometer needs observability.enabled true"
    if powered and tachometer.get("dcgm_exporter") is not None:
        yield (*at, "dcgm_exporter"), "with power telemetry the DCGM exporter is said under telemetry, not here"
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
