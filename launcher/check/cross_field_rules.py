"""What versions of srt-slurm demand of a recipe beyond the types of its values.

Demands are facts, and stand in srtctl_demands.json. A version is known to make one (``sources``) by a class, a function
of it and a text therein; a field's default can count as one. A version that makes those ``by`` which a demand is made,
and not those of ``not-by``, ``needs`` some values of every recipe that has those of ``when``; what is wrong is said
``at`` a key, else at each value's own. What no table can say is below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.reading import built
from launcher.core.yaml_source import Key

Broken = tuple[tuple[Key, ...], str]
"""The keys that a demand is about, and what is wrong with them."""

_MODES = ("prefill", "decode", "aggregated")


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a value has to be, where no word says it. One that is not given is right, unless it must be ``given``."""

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


Values = dict[str, Wanted | bool | str | None]
"""Key of a recipe, with dots → what it has to be; None is a value that is not given."""


class Demand(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """One row of the table; ``who`` begins what is said of a recipe that does not meet it."""

    by: frozenset[str]
    who: str
    when: Values
    needs: Values
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
    return msgspec.json.decode(Path(__file__).with_name("srtctl_demands.json").read_bytes(), type=built(Table))


@cache
def _demands_made(made: frozenset[str]) -> list[Demand]:
    return [demand for demand in table().demands if demand.by <= made and not demand.not_by & made]


def unmet_demands(made: frozenset[str], recipe: Mapping[str, Any]) -> Iterator[Broken]:
    """Which of a version's demands a recipe, whose types are right, does not meet."""
    seen = _Recipe(made, recipe)
    for demand in _demands_made(made):
        if seen.lacks(demand.when):
            continue
        unmet = seen.lacks(demand.needs)
        if unmet and demand.at is not None:
            yield tuple(demand.at.split(".")), f"{demand.who} needs {' and '.join(unmet.values())}"
        elif unmet:
            yield from ((tuple(key.split(".")), f"{demand.who} needs {said}") for key, said in unmet.items())
    for by, look in _OWN.items():
        if by in made:
            yield from look(seen)


def _is_on(value: Any) -> bool:
    return value.lower() in ("t", "true", "on", "y", "yes", "1") if isinstance(value, str) else bool(value)


class _Recipe(dict[str, Any]):
    """A recipe whose types are right, by its keys with dots, beside the demands that a version makes of it."""

    def __init__(self, made: frozenset[str], document: Mapping[str, Any]) -> None:
        self.made, self.document = made, document
        nodes = (self["resources.prefill_nodes"], self["resources.decode_nodes"])
        profiling, telemetry = self["profiling.type"], _is_on(self["telemetry.enabled"])
        of_power = "scraper" not in made or self["telemetry.provider"] == "dcgm-power"
        # What the table calls so, and no key of a recipe says.
        self["disaggregated"] = nodes != (None, None)
        self["profiled by phases"] = profiling not in ("none", "nsys-time" if "profiling-time" in made else None)
        self["telemetry of power"] = telemetry and of_power
        self["telemetry by scraper"] = telemetry and self["telemetry.provider"] != "dcgm-power"

    def __missing__(self, key: str) -> Any:
        """What the recipe says, else the schema's default where the table has it, else None."""
        found: Any = self.document
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        self[key] = table().defaults.get(key) if found is None else found
        return self[key]

    def lacks(self, values: Values) -> dict[str, str]:
        """Those values that are not what they have to be: key → what should be there."""
        wrong = {}
        for key, wanted in values.items():
            value = self[key]
            if isinstance(wanted, Wanted):
                met, said = wanted.is_met_by(value), wanted.said
            elif isinstance(wanted, bool):
                met, said = _is_on(value) == wanted, str(wanted).lower()
            else:
                met, said = value == wanted, wanted or "absent"
            if not met:
                wrong[key] = f"{key} {said}".rstrip() + ("" if value is None else f" (it is {value})")
        return wrong

    def engine(self, mode: str) -> Mapping[str, Any]:
        """The engine's flags on one side, as the recipe spells them."""
        return self[f"backend.{self['backend.type']}_config.{mode}"] or {}


def _profiler_keys(r: _Recipe) -> Iterator[Broken]:
    if (r["profiling.type"], r["backend.type"]) == ("nsys", "vllm"):
        for mode in _MODES:
            for key in r.engine(mode):
                if str(key).replace("_", "-").startswith("profiler-config"):
                    yield ("backend", "vllm_config", mode, key), f"{key} is set by srtctl when nsys profiling is on"


def _power(r: _Recipe) -> Iterator[Broken]:
    if not r["telemetry of power"]:
        return
    # two collector cycles, each of two requests and 1 s of grace
    request, join = (r[f"telemetry.{name}_timeout_seconds"] for name in ("request", "collector_join"))
    least = 2 * (2 * float(2 if request is None else request) + 1)
    if join is not None and float(join) <= least:
        message = f"telemetry.collector_join_timeout_seconds is {float(join):g}; expected more than {least:g}"
        yield ("telemetry", "collector_join_timeout_seconds"), message
    said = r["benchmark.concurrencies"] or ()
    try:
        numbers = [int(part) for part in (said.split("x") if isinstance(said, str) else said)]
    except ValueError:
        numbers = []
    if not numbers or len(set(numbers)) != len(numbers) or any(n <= 0 for n in numbers):
        message = "power telemetry needs benchmark.concurrencies, all different and above 0"
        yield ("benchmark", "concurrencies"), message


def _tachometer(r: _Recipe) -> Iterator[Broken]:
    own = "observability.tachometer.storage_subdir"
    both = _is_on(r["observability.tachometer.enabled"]) and _is_on(r["telemetry.enabled"])
    if both and r[own] == r["telemetry.storage_subdir"]:
        yield tuple(own.split(".")), "tachometer and telemetry must not share a storage_subdir"


def _mooncake(r: _Recipe) -> Iterator[Broken]:
    if r["backend.mooncake_kv_store"] is None or not r["disaggregated"]:
        return
    sides = [{str(k).replace("_", "-"): v for k, v in r.engine(mode).items()} for mode in ("prefill", "decode")]
    where = ("backend", "mooncake_kv_store")
    if r["backend.type"] == "sglang" or "mooncake-vllm" not in r.made:
        if not any(side.get("disaggregation-transfer-backend") == "mooncake" for side in sides):
            yield where, "mooncake_kv_store is set, and neither side has disaggregation-transfer-backend: mooncake"
    elif r["backend.type"] == "vllm":
        said = [side.get("kv-transfer-config") for side in sides]
        if not any(isinstance(text, str) and "mooncake" in text.lower() for text in said):
            yield where, "mooncake_kv_store is set, and neither side's kv-transfer-config names a Mooncake connector"


def _no_headless(r: _Recipe) -> Iterator[Broken]:
    mode = r["backend.dp_launch_mode"] or ("per_node" if "vllm-per-node" in r.made else "per_gpu")
    if r["backend.type"] != "vllm" or mode != "per_node":
        return
    for side in _MODES:
        config = {str(k).replace("_", "-"): v for k, v in r.engine(side).items()}
        if config.get("data-parallel-size") is not None and "headless" in config:
            place = ("backend", "vllm_config", side, "headless")
            yield place, "headless is srtctl's to set with dp_launch_mode per_node"


_OWN: dict[str, Callable[[_Recipe], Iterator[Broken]]] = {
    "profiling-vllm-own": _profiler_keys,
    "power": _power,
    "tachometer": _tachometer,
    "mooncake": _mooncake,
    "vllm-no-headless": _no_headless,
}
"""What a demand needs that the table cannot say."""
