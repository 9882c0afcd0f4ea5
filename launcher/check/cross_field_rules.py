"""What versions of srt-slurm demand of a recipe beyond the types of its values.

The demands are facts in srtctl_demands.json. Each has an id; ``sources`` says how an id is recognised in a version's
source: by a class, one of its functions (or a field's default) and a text in it. A row of ``demands`` holds for a
version that has all ids of ``by`` and none of ``not-by``: a recipe that has the values of ``when`` must have those of
``needs``. A violation is reported at the key ``at``, otherwise at the key of each value. Demands that a table cannot
express are functions below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.reading import prepare_type
from launcher.core.yaml_source import Key

UnmetDemand = tuple[tuple[Key, ...], str]
"""The path of the key that a demand is about, and what is wrong with its value."""

_MODES = ("prefill", "decode", "aggregated")


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A condition on a value that one word cannot express. A missing value meets it, unless it must be ``given``."""

    said: str = ""
    given: bool = False
    like: str | None = None
    unlike: tuple[Any, ...] = ()
    above: float | None = None
    least: float | None = None
    most: float | None = None

    def is_met_by(self, value: Any) -> bool:
        if value is None:
            return not self.given
        if value in self.unlike or (self.like is not None and not re.fullmatch(self.like, value)):
            return False
        return (
            (self.above is None or float(value) > self.above)
            and (self.least is None or float(value) >= self.least)
            and (self.most is None or float(value) <= self.most)
        )


Conditions = dict[str, Condition | bool | str | None]
"""Dotted key of a recipe → what its value must be; None: the value must be missing."""


class Demand(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """One row of the table; ``who`` begins the message about a recipe that does not meet it."""

    by: frozenset[str]
    who: str
    when: Conditions
    needs: Conditions
    not_by: frozenset[str] = frozenset()
    at: str | None = None


class Table(msgspec.Struct, frozen=True):
    """The file: class, function and text by which each demand is known, defaults of values, and the demands."""

    sources: dict[str, tuple[str, ...]]
    defaults: dict[str, bool | int | str]
    demands: list[Demand]


@cache
def table() -> Table:
    """The demands of all versions."""
    return msgspec.json.decode(Path(__file__).with_name("srtctl_demands.json").read_bytes(), type=prepare_type(Table))


def unmet_demands(demand_ids: frozenset[str], recipe: Mapping[str, Any]) -> Iterator[UnmetDemand]:
    """The demands of a version that a recipe, whose types are right, does not meet."""
    view = _RecipeView(demand_ids, recipe)
    for demand in table().demands:
        if not demand.by <= demand_ids or demand.not_by & demand_ids or view.unmet(demand.when):
            continue
        unmet = view.unmet(demand.needs)
        if unmet and demand.at is not None:
            unmet = {demand.at: " and ".join(unmet.values())}
        for key, problem in unmet.items():
            yield tuple(key.split(".")), f"{demand.who} needs {problem}"
    for demand_id, check in _CODED_DEMANDS.items():
        if demand_id in demand_ids:
            yield from check(view)


def _is_on(value: Any) -> bool:
    return value.lower() in ("t", "true", "on", "y", "yes", "1") if isinstance(value, str) else bool(value)


class _RecipeView(dict[str, Any]):
    """A recipe whose types are right, by dotted keys, with the ids of the demands that a version makes."""

    def __init__(self, demand_ids: frozenset[str], document: Mapping[str, Any]) -> None:
        self.demand_ids, self.document = demand_ids, document
        nodes = (self["resources.prefill_nodes"], self["resources.decode_nodes"])
        profiling, telemetry = self["profiling.type"], _is_on(self["telemetry.enabled"])
        of_power = "scraper" not in demand_ids or self["telemetry.provider"] == "dcgm-power"
        # The table uses these names for what no single key of a recipe states.
        self["disaggregated"] = nodes != (None, None)
        self["profiled by phases"] = profiling not in ("none", "nsys-time" if "profiling-time" in demand_ids else None)
        self["telemetry of power"] = telemetry and of_power
        self["telemetry by scraper"] = telemetry and self["telemetry.provider"] != "dcgm-power"

    def __missing__(self, key: str) -> Any:
        """The recipe's value, else the schema's default where the table has it, else None."""
        value: Any = self.document
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        self[key] = table().defaults.get(key) if value is None else value
        return self[key]

    def unmet(self, values: Conditions) -> dict[str, str]:
        """The values that do not meet their conditions: key → what is expected."""
        unmet_values = {}
        for key, condition in values.items():
            value = self[key]
            if isinstance(condition, Condition):
                is_met, expected = condition.is_met_by(value), condition.said
            elif isinstance(condition, bool):
                is_met, expected = _is_on(value) == condition, str(condition).lower()
            else:
                is_met, expected = value == condition, condition or "absent"
            if not is_met:
                unmet_values[key] = f"{key} {expected}".rstrip() + ("" if value is None else f" (it is {value})")
        return unmet_values

    def engine(self, mode: str) -> Mapping[str, Any]:
        """The engine's flags for one role, as the recipe spells them."""
        return self[f"backend.{self['backend.type']}_config.{mode}"] or {}


def _profiler_keys(r: _RecipeView) -> Iterator[UnmetDemand]:
    if (r["profiling.type"], r["backend.type"]) == ("nsys", "vllm"):
        for mode in _MODES:
            for key in r.engine(mode):
                if str(key).replace("_", "-").startswith("profiler-config"):
                    yield ("backend", "vllm_config", mode, key), f"{key} is set by srtctl when nsys profiling is on"


def _power(r: _RecipeView) -> Iterator[UnmetDemand]:
    if not r["telemetry of power"]:
        return
    # two collector cycles, each of two requests and 1 s of grace
    request, join = (r[f"telemetry.{name}_timeout_seconds"] for name in ("request", "collector_join"))
    least = 2 * (2 * float(2 if request is None else request) + 1)
    if join is not None and float(join) <= least:
        message = f"telemetry.collector_join_timeout_seconds is {float(join):g}; expected more than {least:g}"
        yield ("telemetry", "collector_join_timeout_seconds"), message
    concurrencies = r["benchmark.concurrencies"] or ()
    try:
        numbers = [int(n) for n in (concurrencies.split("x") if isinstance(concurrencies, str) else concurrencies)]
    except ValueError:
        numbers = []
    if not numbers or len(set(numbers)) != len(numbers) or any(n <= 0 for n in numbers):
        message = "power telemetry needs benchmark.concurrencies, all different and above 0"
        yield ("benchmark", "concurrencies"), message


def _tachometer(r: _RecipeView) -> Iterator[UnmetDemand]:
    key = "observability.tachometer.storage_subdir"
    are_both_on = _is_on(r["observability.tachometer.enabled"]) and _is_on(r["telemetry.enabled"])
    if are_both_on and r[key] == r["telemetry.storage_subdir"]:
        yield tuple(key.split(".")), "tachometer and telemetry must not share a storage_subdir"


def _mooncake(r: _RecipeView) -> Iterator[UnmetDemand]:
    if r["backend.mooncake_kv_store"] is None or not r["disaggregated"]:
        return
    sides = [{str(k).replace("_", "-"): v for k, v in r.engine(mode).items()} for mode in ("prefill", "decode")]
    keys = ("backend", "mooncake_kv_store")
    if r["backend.type"] == "sglang" or "mooncake-vllm" not in r.demand_ids:
        if not any(side.get("disaggregation-transfer-backend") == "mooncake" for side in sides):
            yield keys, "mooncake_kv_store is set, and neither side has disaggregation-transfer-backend: mooncake"
    elif r["backend.type"] == "vllm":
        transfer_configs = [side.get("kv-transfer-config") for side in sides]
        if not any(isinstance(text, str) and "mooncake" in text.lower() for text in transfer_configs):
            yield keys, "mooncake_kv_store is set, and neither side's kv-transfer-config names a Mooncake connector"


def _no_headless(r: _RecipeView) -> Iterator[UnmetDemand]:
    mode = r["backend.dp_launch_mode"] or ("per_node" if "vllm-per-node" in r.demand_ids else "per_gpu")
    if r["backend.type"] != "vllm" or mode != "per_node":
        return
    for side in _MODES:
        config = {str(k).replace("_", "-"): v for k, v in r.engine(side).items()}
        if config.get("data-parallel-size") is not None and "headless" in config:
            place = ("backend", "vllm_config", side, "headless")
            yield place, "headless is srtctl's to set with dp_launch_mode per_node"


_CODED_DEMANDS: dict[str, Callable[[_RecipeView], Iterator[UnmetDemand]]] = {
    "profiling-vllm-own": _profiler_keys,
    "power": _power,
    "tachometer": _tachometer,
    "mooncake": _mooncake,
    "vllm-no-headless": _no_headless,
}
"""Demand id → the check that a table cannot express."""
