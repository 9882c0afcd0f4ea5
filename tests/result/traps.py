"""A plan's expectations, a job's directory and a workspace, in which a test lays results to be collected."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace as change

from launcher.container.results import JobFiles
from launcher.container.results import collect as collect_in_container
from launcher.core.errors import ResultError
from launcher.plan.plan import Expected
from launcher.result.collect import CollectedResults, CollectRequest, collect
from tests.result.documents import agentic, changed, evaluation, fixed, write

FOLDER = "sa-bench_isl_128_osl_128"
ROW: dict[str, str | int | bool] = {
    "framework": "dynamo-vllm",
    "precision": "fp8",
    "infmax_model_prefix": "minimaxm3",
    "spec_decoding": "none",
    "is_multinode": True,
    "prefill_tp": 4,
}


@dataclass
class Lane:
    """One lane: what its plan expects, and where its job leaves what."""

    root: Path
    expected: Expected
    kind: str = "srtctl"
    there_before: dict[str, int] = field(default_factory=dict)
    submitted: float = field(default_factory=lambda: time.time() - 60)

    def __post_init__(self) -> None:
        self.logs, self.workspace = self.root / "outputs/3/logs", self.root / "workspace"
        self.logs.mkdir(parents=True)
        self.workspace.mkdir()

    def fixed(self, text: str | None = None, *, gpus: str = "12_ctx_4_gen_8", at: int = 4, **changes: Any) -> Path:
        """One result of sa-bench, of the lane's only concurrency."""
        folder = changes.pop("folder", FOLDER)
        name = f"{folder}/results_concurrency_{at}_gpus_{gpus}.json"
        return write(self.logs / name, text or fixed(**{"concurrency": at, **changes}))

    def only(self, **changes: Any) -> Path:
        """The one result of a job in a container."""
        document = agentic(4, **changes) if self.expected.mode == "agentic" else fixed(4, **changes)
        return write(self.workspace / "RF.json", document)

    def agentic(self, **changes: Any) -> Path:
        return write(self.workspace / "RF_conc4.json", whole_agentic(**changes))

    def evaluated(self, name: str = "results_1.json", **changes: Any) -> Path:
        return write(self.evals / name, evaluation(**changes))

    def meta(self, **changes: Any) -> Path:
        """meta_env.json, of the lane's row."""
        document = {**ROW, "conc": 4, "isl": "128", "osl": "128", "model": "org/Model-X"}
        return write(self.evals / "meta_env.json", changed(document, changes))

    @property
    def evals(self) -> Path:
        return self.workspace if self.kind == "container" else self.logs / "eval_results"

    def expects(self, **changes: Any) -> None:
        self.expected = change(self.expected, **changes)

    def collect(self) -> CollectedResults:
        if self.kind == "container":
            place = JobFiles(self.workspace, self.workspace, self.submitted, 12, self.there_before)
            return collect_in_container(self.expected, place, patience=0)
        request = CollectRequest(
            logs_dir=self.logs,
            workspace=self.workspace,
            expected=self.expected,
            job_id="3",
            started=self.submitted,
            there_before=self.there_before,
        )
        return collect(request)


def whole_agentic(**changes: Any) -> dict[str, Any]:
    """An agentic result in which nothing contradicts anything: 100 requests in 100 s on 4+8 GPUs."""
    document = agentic(4, num_prefill_gpu=4, num_decode_gpu=8, model="org/Model-X", scenario_type="agentic-coding")
    document["request_accounting"] |= {"records_profiled": 100, "records_dropped_total": 20}
    document["request_metrics"] = {
        "latency": {
            "ttft": {"p50": 0.5, "p75": 0.6, "p90": 0.7, "p95": 0.8},
            "tpot": {"p50": 0.02, "p95": 0.03},
            "itl": {"p50": 0.02, "p95": 0.03},
            "e2el": {"p50": 12.0, "p95": 20.0},
            "intvty": {"p50": 50.0, "p95": 33.3},
        },
        "tokens": {"input": {"mean": 30000.0, "p50": 29000, "p95": 40000}, "output_actual": {"mean": 300.0}},
        "throughput": {
            "input": {"tokens_per_second": 30000.0},
            "output": {"tokens_per_second": 300.0},
            "total": {"tokens_per_second": 30300.0},
            "duration_seconds": 100.0,
            "per_gpu": {"total_tput_tps": 2525.0, "output_tput_tps": 25.0},
        },
    }
    return changed(document, {**ROW, **changes})


def metrics(**groups: Mapping[str, Any]) -> dict[str, Any]:
    """The ``request_metrics`` of `whole_agentic` with a key or more of a group changed."""
    document: dict[str, Any] = whole_agentic()["request_metrics"]
    for group, changes in groups.items():
        document[group] |= changes
    return document


def lane(root: Path, kind: str, mode: Any) -> Lane:
    """A lane of 4+8 GPUs and one concurrency, whose plan says everything that there is to say."""
    container = kind == "container"
    result = "results*.json" if mode == "eval" else "RF.json"
    expected = Expected(
        (4,),
        "RF",
        mode,
        mode == "eval",
        *((None, None) if mode == "agentic" else (128, 128)),
        required=(result,) if container else (),
        eval=("meta_env.json", "results*.json", "sample*.jsonl") if container and mode == "eval" else (),
        gpus=(4, 8),
        models=("org/Model-X", "/lustre/models/model-x-fp8", "mx"),
        tool="sa-bench" if mode == "fixed" and not container else None,
        engine="vllm",
        row=ROW,
        rehearsal=False,
    )
    return Lane(root, expected, kind)


def outcome(lane: Lane, lay: Callable[[Lane], object]) -> tuple[int, str]:
    """Lay results and collect them: the exit code that a command would have, and all that is said."""
    lay(lane)
    try:
        collected = lane.collect()
        collected.raise_if_bad()
    except ResultError as error:
        return error.exit_code, str(error)
    return 0, "\n".join(collected.doubts)


def text_of(document: Mapping[str, Any], **more: str) -> str:
    """A document as text, with raw pairs appended to its top level: a key twice, or a word that is no JSON."""
    pairs = "".join(f', "{key}": {value}' for key, value in more.items())
    return json.dumps(document)[:-1] + pairs + "}"
