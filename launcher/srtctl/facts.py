"""The content of a recipe as typed values, read from one resolved variant. Nothing is guessed.

A value that the recipe does not give is None. Some numbers follow from others by a rule of srtctl or of the engine
(GPUs of a worker, size of an expert group); a comment explains each rule at the line that applies it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from launcher.benchmark.benchmark import Role
from launcher.core.errors import ConfigError

KeyPath = tuple[str, ...]

VLLM, SGLANG = "vllm", "sglang"


def _spellings(*flags: str) -> tuple[str, ...]:
    """Each flag with hyphens and with underscores, because engines accept both (``max-model-len``)."""
    return tuple(s for f in flags for s in dict.fromkeys((f, f.replace("-", "_"), f.replace("_", "-"))))


_FLAGS = {
    "tp": _spellings("tensor-parallel-size", "tp-size", "tp"),
    "pp": _spellings("pipeline-parallel-size", "pp-size"),
    "dp": _spellings("data-parallel-size", "dp-size"),
    "ep": _spellings("expert-parallel-size", "ep-size", "moe-expert-parallel-size"),
    "ep_switch": _spellings("enable-expert-parallel"),
    "dp_attention": _spellings("enable-dp-attention", "enable-attention-dp"),
    "dcp": _spellings("decode-context-parallel-size"),
    "pcp": _spellings("prefill-context-parallel-size", "attn-cp-size"),
    "max_model_len": _spellings("max-model-len", "context-length", "max-seq-len"),
    "served_model_name": _spellings("served-model-name"),
}
"""The spellings of each flag by engine; if a recipe gives several, the first in this order counts."""

_CONTAINER_PATHS: tuple[KeyPath, ...] = (
    ("model", "container"),
    ("frontend", "nginx_container"),
    ("benchmark", "container_image"),
    ("telemetry", "dcgm_exporter", "container_image"),
    ("observability", "tachometer", "dcgm_exporter", "container_image"),
    ("observability", "tachometer", "node_exporter", "container_image"),
)
"""Where srtctl resolves container aliases (`resolve_config_with_defaults`, src/srtctl/core/config.py at c88ef731)."""


class RoleFacts(msgspec.Struct, frozen=True):
    """One side of a topology: nodes, workers, GPUs per worker, and the flags of its engine.

    None means that a flag is not given. ``ep`` is a size; vLLM has a switch instead, which stands for
    ``tp * dp * pcp`` GPUs when it is on and for 1 when it is off. ``dp_attention`` is a switch of sglang and
    TensorRT-LLM; for vLLM, which has none, it means a ``dp`` above 1.
    """

    nodes: int | None
    workers: int | None
    gpus_per_worker: int | None
    max_model_len: int | None
    served_model_name: str | None
    engine: str
    tp: int | None
    pp: int | None
    dp: int | None
    ep: int | None
    dp_attention: bool | None
    dcp: int | None
    pcp: int | None

    def as_role(self) -> Role | None:
        """This side as a matrix writes it, with the engines' defaults (1, off); None if that is not certain.

        A matrix calls the GPUs of one worker ``tp``: DEP8 of vLLM (tp 1, dp 8) is tp 8 with dp-attn. The result is None
        for tp *and* dp above 1, and for sglang's plain data parallelism, which matrices write in several ways.
        """
        if self.workers is None or self.tp is None:
            return None
        tp, dp, pcp, dp_attention = self.tp, self.dp or 1, self.pcp or 1, bool(self.dp_attention)
        if self.engine == VLLM:
            if tp > 1 and dp > 1:
                return None
            tp *= dp
        elif self.engine == SGLANG:
            if dp > 1 and not dp_attention:
                return None
            tp //= pcp  # sglang's attn-cp-size divides its tp, where a matrix multiplies tp by pcp-size
        return Role(self.workers, tp, self.ep or 1, dp_attention, self.pp or 1, self.dcp or 1, pcp)


class ContainerUse(msgspec.Struct, frozen=True):
    """A container string of a recipe, and every path in the document that has this value."""

    alias: str
    paths: tuple[KeyPath, ...]


class RecipeFacts(msgspec.Struct, frozen=True):
    """The facts of one resolved recipe.

    ``nodes`` is the number that srtctl requests from Slurm: the workers' nodes and dedicated nodes for infrastructure.
    ``time_limit`` is in Slurm's notation; it is None also if YAML read a number (an unquoted 4:00:00 is 14400).
    ``nginx_by_default``: srtctl starts an nginx that the recipe does not name. ``pinned`` has the model's repository
    and commit from the recipe's ``identity`` section (``hf:ORGANISATION/NAME@COMMIT``).
    """

    name: str | None
    model_path: str | None
    container: str | None
    precision: str | None
    engine: str
    nginx_by_default: bool
    container_aliases: tuple[ContainerUse, ...]
    benchmark_type: str | None
    isl: int | None
    osl: int | None
    concurrencies: tuple[int, ...] | None
    gpu_type: str | None
    gpus_per_node: int | None
    prefill: RoleFacts | None
    decode: RoleFacts | None
    aggregated: RoleFacts | None
    nodes: int | None
    time_limit: str | None
    sbatch_directives: Mapping[str, Any]
    pinned: str | None = None

    @property
    def roles(self) -> dict[str, RoleFacts]:
        """The sides that the recipe has, by the names that engine configurations use."""
        sides = {"prefill": self.prefill, "decode": self.decode, "aggregated": self.aggregated}
        return {name: side for name, side in sides.items() if side is not None}

    @property
    def served_model_name(self) -> str | None:
        """The name under which all sides serve the model; None if they give none, or different ones."""
        names = {side.served_model_name for side in self.roles.values()}
        return names.pop() if len(names) == 1 else None


def recipe_facts(document: Mapping[str, Any]) -> RecipeFacts:
    """Read the facts of one resolved recipe (a variant's document, not a file of the ``base:`` form).

    Raises ConfigError for concurrencies that srtctl could not read either.
    """
    engine = _text(document, "backend", "type") or SGLANG  # srtctl's default backend
    prefill = _role(document, engine, "prefill")
    decode = _role(document, engine, "decode", colocated_with=prefill)
    aggregated = _role(document, engine, "agg")
    nodes = _nodes(document, prefill, decode, aggregated)
    # By default srtctl starts several frontends behind an nginx, except on a single node. The schema fills in
    # nginx:1.27.4 after it resolved aliases, so the cluster receives this string unchanged.
    several_frontends = _value_at(document, "frontend", "enable_multiple_frontends") is not False and nodes != 1
    aliases: dict[str, list[KeyPath]] = {}
    for path in _CONTAINER_PATHS:
        if (alias := _text(document, *path)) is not None:
            aliases.setdefault(alias, []).append(path)
    repository, commit = (_text(document, "identity", "model", key) or "" for key in ("repo", "revision"))
    return RecipeFacts(
        name=_text(document, "name"),
        model_path=_text(document, "model", "path"),
        container=_text(document, "model", "container"),
        precision=_text(document, "model", "precision"),
        engine=engine,
        nginx_by_default=several_frontends and _text(document, "frontend", "nginx_container") is None,
        container_aliases=tuple(ContainerUse(alias, tuple(paths)) for alias, paths in aliases.items()),
        benchmark_type=_text(document, "benchmark", "type"),
        isl=_number(document, "benchmark", "isl"),
        osl=_number(document, "benchmark", "osl"),
        concurrencies=_concurrencies(_value_at(document, "benchmark", "concurrencies")),
        gpu_type=_text(document, "resources", "gpu_type"),
        gpus_per_node=_number(document, "resources", "gpus_per_node"),
        prefill=prefill,
        decode=decode,
        aggregated=aggregated,
        nodes=nodes,
        time_limit=_text(document, "slurm", "time_limit"),
        sbatch_directives=_mapping(document, "sbatch_directives"),
        pinned=f"hf:{repository}@{commit}" if repository and re.fullmatch(r"[0-9a-f]{40}", commit) else None,
    )


def _role(
    document: Mapping[str, Any], engine: str, side: str, colocated_with: RoleFacts | None = None
) -> RoleFacts | None:
    """One side (prefill, decode or agg); ``colocated_with`` is the side whose nodes it may share."""
    nodes = _number(document, "resources", f"{side}_nodes")
    workers = _number(document, "resources", f"{side}_workers")
    config = _mapping(document, "backend", f"{engine}_config", "aggregated" if side == "agg" else side)
    if nodes is None and workers is None and not config:
        return None
    gpus, per_node = (_number(document, "resources", name) for name in (f"gpus_per_{side}", "gpus_per_node"))
    # srtctl's ResourceConfig: the given number, else an equal share of the side's nodes, else prefill's if they share.
    if gpus is None and nodes and workers and per_node:
        gpus = nodes * per_node // workers
    elif gpus is None and nodes == 0 and workers and colocated_with is not None:
        gpus = colocated_with.gpus_per_worker
    flags = {name: next((config[s] for s in spellings if s in config), None) for name, spellings in _FLAGS.items()}
    numbers = {name: _number(flags, name) for name in ("tp", "pp", "dp", "ep", "dcp", "pcp", "max_model_len")}
    attention = flags["dp_attention"]
    if engine == VLLM:
        switch = flags["ep_switch"]
        width = math.prod(numbers[name] or 1 for name in ("tp", "dp", "pcp"))
        numbers["ep"] = None if not isinstance(switch, bool) else width if switch else 1
        attention = None if numbers["dp"] is None else numbers["dp"] > 1
    served = flags["served_model_name"]
    return RoleFacts(
        nodes=nodes,
        workers=workers,
        gpus_per_worker=gpus,
        served_model_name=served if isinstance(served, str) else None,
        engine=engine,
        dp_attention=attention if isinstance(attention, bool) else None,
        **numbers,
    )


def _nodes(
    document: Mapping[str, Any], prefill: RoleFacts | None, decode: RoleFacts | None, aggregated: RoleFacts | None
) -> int | None:
    """The workers' nodes, and dedicated nodes for etcd and NATS, the frontend and the client."""
    resources, backend = _mapping(document, "resources"), _mapping(document, "backend")
    if resources.get("prefill_nodes") is not None or resources.get("decode_nodes") is not None:
        nodes = (_number(resources, "prefill_nodes") or 0) + (_number(resources, "decode_nodes") or 0)
        per_node = _number(resources, "gpus_per_node")
        gpus = [(s.workers or 0) * (s.gpus_per_worker or 0) for s in (prefill, decode) if s and s.engine == VLLM]
        # Both sides of vLLM share nodes if they fit on one, or may span several.
        may_share = backend.get("allow_prefill_decode_colocation") is True
        may_span = backend.get("allow_prefill_decode_colocation_across_nodes") is True
        if may_share and per_node and len(gpus) == 2 and all(gpus) and (may_span or sum(gpus) <= per_node):
            nodes = -(-sum(gpus) // per_node)
    elif aggregated is not None and aggregated.nodes is not None:
        nodes = aggregated.nodes or 1
    else:
        return None
    switches = (
        ("infra", "etcd_nats_dedicated_node"),
        ("frontend", "dedicated_node"),
        ("benchmark", "client_dedicated_node"),
    )
    dedicated = sum(_value_at(document, *path) is True for path in switches)
    colocated = _mapping(document, "benchmark").get("colocate_with_frontend", True)
    return nodes + (min(dedicated, 1) if colocated else dedicated)


def _concurrencies(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = value.split("x") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    numbers = [_integer(part) for part in parts]
    if not numbers or any(n is None or n < 1 for n in numbers):
        raise ConfigError(
            f"benchmark.concurrencies: {value!r} is neither a number, a list of numbers, nor numbers joined by 'x'",
            hint='write "4x8x16" or [4, 8, 16]',
        )
    return tuple(n for n in numbers if n is not None)


def _value_at(document: Any, *path: str) -> Any:
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _mapping(document: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    value = _value_at(document, *path)
    return value if isinstance(value, dict) else {}


def _text(document: Mapping[str, Any], *path: str) -> str | None:
    value = _value_at(document, *path)
    return value if isinstance(value, str) and value else None


def _number(document: Mapping[str, Any], *path: str) -> int | None:
    return _integer(_value_at(document, *path))


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else None
