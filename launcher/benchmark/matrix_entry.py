"""One entry of a matrix: InferenceX's JSON shape, and the benchmark that it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from launcher.benchmark.benchmark import FIXED, Benchmark, Component, Role
from launcher.benchmark.settings import parse_setting
from launcher.core.yaml_source import Place


@dataclass(frozen=True, eq=False)
class Entry:
    """An entry as InferenceX's generator gives it (``data``), its key in the matrix, and where it stands.

    ``data`` shares parts with other entries of its row: read it, do not change it.
    """

    key: str
    data: Mapping[str, Any]
    place: Place = field(repr=False)

    @property
    def where(self) -> str:
        """``file:line`` of its row."""
        return str(self.place)

    @cached_property
    def benchmark(self) -> Benchmark:
        """What a job measures for this entry.

        A row that is only *marked* (``run-eval`` without ``eval-only``) gives the throughput job: InferenceX's
        workflows run its evaluation as a second job, which is the entry that ``Selection(evals="only")`` gives.
        """
        source = f"{self.place.document.path} ({self.key})"
        return benchmark_of(self.data, key=self.key, source=source, place=self.place)


def benchmark_of(data: Mapping[str, Any], *, key: str | None, source: str, place: Place | str) -> Benchmark:
    """The benchmark that an entry in InferenceX's JSON shape means; ``place`` is where an error is said to be.

    A single-node entry has its topology on the prefill side. Raises ConfigError for an additional setting that is not
    acceptable.
    """
    multinode = "prefill" in data
    concurrencies = tuple(data["conc"]) if isinstance(data["conc"], list) else (data["conc"],)
    eval_only = bool(data.get("eval-only"))
    evaluated: tuple[int, ...] = ()
    if eval_only and multinode:
        evaluated = concurrencies if data.get("eval-all-concs") else (data["eval-conc"],)
    return Benchmark(
        exp_name=data["exp-name"],
        image=data["image"],
        model=data["model"],
        model_prefix=data["model-prefix"],
        precision=data["precision"],
        framework=data["framework"],
        runner=data["runner"],
        concurrencies=concurrencies,
        isl=data.get("isl"),
        osl=data.get("osl"),
        max_model_len=data.get("max-model-len"),
        disagg=data.get("disagg", False),
        multinode=multinode,
        spec_decoding=data["spec-decoding"],
        prefill=_role(data["prefill"]) if multinode else _role({"num-worker": 1, **data}),
        decode=_role(data["decode"]) if multinode else None,
        settings=_settings(data, place),
        scenario=data.get("scenario-type", FIXED),
        run_eval=eval_only,
        eval_only=eval_only,
        eval_concurrencies=evaluated,
        kv_offloading=data.get("kv-offloading"),
        kv_offload_backend=_component(data.get("kv-offload-backend")),
        kv_p2p_transfer=data.get("kv-p2p-transfer"),
        router=_component(data.get("router")),
        total_cpu_dram_gb=data.get("total-cpu-dram-gb"),
        duration=data.get("duration"),
        recipe_fingerprint=data.get("recipe-fingerprint"),
        key=key,
        source=source,
    )


def _settings(data: Mapping[str, Any], place: Place | str) -> dict[str, str]:
    """The additional settings of prefill, then of decode; the later one wins."""
    texts = [text for role in ("prefill", "decode") for text in data.get(role, {}).get("additional-settings") or ()]
    return dict(parse_setting(text, place) for text in texts)


def _role(worker: Mapping[str, Any]) -> Role:
    return Role(
        workers=worker["num-worker"],
        tp=worker["tp"],
        ep=worker["ep"],
        dp_attention=worker["dp-attn"],
        pp=worker["pp"],
        dcp=worker["dcp-size"],
        pcp=worker["pcp-size"],
        hardware=worker.get("hardware"),
    )


def _component(data: Mapping[str, str] | None) -> Component | None:
    return None if data is None else Component(data["name"], data.get("version"))
