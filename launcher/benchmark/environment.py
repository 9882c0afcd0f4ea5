"""The environment of a GitHub multi-node job, both ways: from it to a benchmark, and from a benchmark to it.

The names and their meaning are those of InferenceX's `benchmark-multinode-tmpl.yml` (commit 843c6254f): everything is
text, an input that was not given is the empty text, and agentic jobs have ``'0'`` for sequence lengths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.benchmark.benchmark import AGENTIC, FIXED, Benchmark, Component, Role
from launcher.benchmark.settings import SETTING_KEYS, parse_setting
from launcher.benchmark.variables import WHERE, Variables, wrong
from launcher.core.errors import ConfigError

OPTIONS: Mapping[str, str] = {
    "AIPERF_EXPERIMENTAL_FAST": "0",
    "EVAL_LIMIT": "",
    "POWER_PRODUCER_SHA": "",
    "RANDOM_RANGE_RATIO": "0.8",
    "REQUIRE_POWER": "0",
    "SWEBENCH_GEN_MODE": "",
    "SWEBENCH_USE_MODAL": "true",
}
"""What the workflow is dispatched with beside the matrix row, and its defaults."""

_REQUIRED = (
    "EXP_NAME",
    "IMAGE",
    "MODEL",
    "MODEL_PREFIX",
    "PRECISION",
    "FRAMEWORK",
    "RUNNER_TYPE",
    "CONC_LIST",
    "PREFILL_NUM_WORKERS",
    "PREFILL_TP",
    "PREFILL_EP",
    "DECODE_NUM_WORKERS",
    "DECODE_TP",
    "DECODE_EP",
)

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[^/\x00-\x1f\x7f]+")
_RUNNER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RUN = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class GithubJob:
    """The job that this process runs in, or what stands for one when started by hand.

    ``run_id`` is ``manual`` and ``attempt`` ``0`` outside GitHub; both are safe in file names. ``workspace`` is the
    checkout, ``user`` the account on the login node; None where the environment does not tell.
    """

    runner_name: str
    """The physical runner (``gb300-nv_0``)."""
    workspace: Path | None = None
    run_id: str = "manual"
    attempt: str = "0"
    user: str | None = None

    @property
    def prefix(self) -> str:
        """The runner's name up to its first underscore: the cluster as its runners see it."""
        return self.runner_name.partition("_")[0]


def github_job(environ: Mapping[str, str]) -> GithubJob:
    """The job of an environment. Raises ConfigError when RUNNER_NAME is missing, or a name is not fit for a path."""
    variables = Variables(environ)
    variables.require(["RUNNER_NAME"])
    workspace = variables.text("GITHUB_WORKSPACE")
    return GithubJob(
        runner_name=variables.matching("RUNNER_NAME", _RUNNER_NAME, "letters, digits, '.', '_' and '-'") or "",
        workspace=Path(workspace) if workspace else None,
        run_id=variables.matching("GITHUB_RUN_ID", _RUN, "a run's number") or "manual",
        attempt=variables.matching("GITHUB_RUN_ATTEMPT", _RUN, "an attempt's number") or "0",
        user=variables.text("USER") or variables.text("LOGNAME"),
    )


def benchmark_from_environment(environ: Mapping[str, str]) -> Benchmark:
    """The benchmark that a multi-node job's environment means.

    Additional settings are the variables of `SETTING_KEYS` that are set and not empty. Raises ConfigError naming the
    variable, what was found and what is expected; all missing variables at once.
    """
    variables = Variables(environ)
    if not variables.boolean("IS_MULTINODE", default=True):
        raise wrong("IS_MULTINODE", environ["IS_MULTINODE"], "'true': single-node jobs have other variables")
    variables.require(_REQUIRED)
    scenario = variables.choice("SCENARIO_TYPE", (FIXED, AGENTIC), default=FIXED)
    agentic = scenario == AGENTIC
    if not agentic:
        variables.require(["ISL", "OSL"])
    return Benchmark(
        exp_name=environ["EXP_NAME"],
        image=environ["IMAGE"],
        model=environ["MODEL"],
        model_prefix=environ["MODEL_PREFIX"],
        precision=environ["PRECISION"],
        framework=environ["FRAMEWORK"],
        runner=environ["RUNNER_TYPE"],
        concurrencies=variables.integers("CONC_LIST"),
        isl=None if agentic else variables.integer("ISL"),
        osl=None if agentic else variables.integer("OSL"),
        max_model_len=variables.integer("MAX_MODEL_LEN", least=0) or None,
        disagg=variables.boolean("DISAGG"),
        multinode=True,
        spec_decoding=variables.choice("SPEC_DECODING", ("none", "mtp", "draft_model"), default="none"),
        prefill=variables.role("PREFILL", least=1),
        decode=variables.role("DECODE", least=0),
        settings={
            key: parse_setting(f"{key}={environ[key]}", WHERE)[1] for key in sorted(SETTING_KEYS) if environ.get(key)
        },
        scenario=scenario,
        run_eval=variables.boolean("RUN_EVAL"),
        eval_only=variables.boolean("EVAL_ONLY"),
        eval_concurrencies=variables.integers("EVAL_CONC"),
        kv_offloading=variables.choice("KV_OFFLOADING", ("none", "dram"), default="none") if agentic else None,
        kv_offload_backend=variables.component("KV_OFFLOAD_BACKEND_METADATA", name="KV_OFFLOAD_BACKEND"),
        kv_p2p_transfer=variables.text("KV_P2P_TRANSFER"),
        router=variables.component("ROUTER_METADATA"),
        total_cpu_dram_gb=variables.integer("TOTAL_CPU_DRAM_GB", least=0) if agentic else None,
        duration=variables.integer("DURATION") if agentic else None,
        options={key: environ[key] for key, usual in OPTIONS.items() if environ.get(key, usual) != usual},
        result_filename=variables.matching("RESULT_FILENAME", _FILE_NAME, "a file name, not a path"),
        recipe_fingerprint=variables.matching("RECIPE_FINGERPRINT", _FINGERPRINT, "64 hexadecimal digits"),
        source=WHERE,
    )


def environment_of(benchmark: Benchmark) -> dict[str, str]:
    """The variables that the multi-node workflow would have exported for this benchmark.

    Without those of the runner (RUNNER_NAME, GITHUB_*), secrets, and RESULT_FILENAME where the benchmark has none.
    Raises ConfigError for a benchmark without a prefill and a decode side.
    """
    agentic = benchmark.agentic
    unset = "0" if agentic else ""
    first = (benchmark.eval_concurrencies if benchmark.eval_only else ()) or benchmark.concurrencies
    backend = benchmark.kv_offload_backend
    environment = {
        "IS_MULTINODE": "true",
        "EXP_NAME": benchmark.exp_name,
        "RECIPE_FINGERPRINT": benchmark.recipe_fingerprint or "",
        "IMAGE": benchmark.image,
        "MODEL_PREFIX": benchmark.model_prefix,
        "MODEL": benchmark.model,
        "FRAMEWORK": benchmark.framework,
        "PRECISION": benchmark.precision,
        "RUNNER_TYPE": benchmark.runner,
        "ISL": _number(benchmark.isl, unset),
        "OSL": _number(benchmark.osl, unset),
        "MAX_MODEL_LEN": _number(benchmark.max_model_len, unset),
        "CONC_LIST": _joined(benchmark.concurrencies),
        "SPEC_DECODING": benchmark.spec_decoding,
        "DISAGG": _truth(benchmark.disagg),
        "RUN_EVAL": _truth(benchmark.run_eval),
        "EVAL_ONLY": _truth(benchmark.eval_only),
        "EVAL_CONC": _joined(benchmark.eval_concurrencies),
        "SCENARIO_TYPE": benchmark.scenario,
        "SCENARIO_SUBDIR": "agentic/" if agentic else "fixed_seq_len/",
        "IS_AGENTIC": "1" if agentic else "0",
        "CONC": str(first[0]) if agentic else "",
        "DURATION": _number(benchmark.duration, "3600"),
        "KV_OFFLOADING": benchmark.kv_offloading or "",
        "KV_OFFLOAD_BACKEND": backend.name if backend else "",
        "KV_OFFLOAD_BACKEND_METADATA": _component_json(backend),
        "ROUTER_METADATA": _component_json(benchmark.router),
        "KV_P2P_TRANSFER": benchmark.kv_p2p_transfer or "",
        "TOTAL_CPU_DRAM_GB": _number(benchmark.total_cpu_dram_gb, "600"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPYCACHEPREFIX": "/tmp/inferencex-pycache",
        **OPTIONS,
        **benchmark.options,
    }
    for prefix, role in zip(("PREFILL", "DECODE"), _roles(benchmark), strict=True):
        environment |= {
            f"{prefix}_HARDWARE": role.hardware or "",
            f"{prefix}_NUM_WORKERS": str(role.workers),
            f"{prefix}_TP": str(role.tp),
            f"{prefix}_PP_SIZE": str(role.pp),
            f"{prefix}_DCP_SIZE": str(role.dcp),
            f"{prefix}_PCP_SIZE": str(role.pcp),
            f"{prefix}_EP": str(role.ep),
            f"{prefix}_DP_ATTN": _truth(role.dp_attention),
        }
    if benchmark.result_filename:
        environment["RESULT_FILENAME"] = benchmark.result_filename
    return environment | dict(benchmark.settings)


def result_filename(benchmark: Benchmark, runner_name: str) -> str:
    """RESULT_FILENAME as the workflow's step computes it: the stem of every result file's name.

    Raises ConfigError for a benchmark without a prefill and a decode side, or with a slash in a part of the name.
    """
    prefill, decode = _roles(benchmark)
    name = (
        f"{benchmark.exp_name}_{benchmark.precision}_{benchmark.framework}"
        f"_prefill-{_role_name(prefill)}_decode-{_role_name(decode)}"
        f"_disagg-{_truth(benchmark.disagg)}_spec-{benchmark.spec_decoding}"
        f"_conc{'x'.join(map(str, benchmark.concurrencies))}_{runner_name}"
    )
    if benchmark.recipe_fingerprint:
        name += f"_recipe-{benchmark.recipe_fingerprint[:16]}"
    if not _FILE_NAME.fullmatch(name):
        raise ConfigError(f"the result's name would be no file name: {name!r}", where=benchmark.source)
    return name


def _roles(benchmark: Benchmark) -> tuple[Role, Role]:
    if not benchmark.multinode or benchmark.prefill is None or benchmark.decode is None:
        raise ConfigError(
            f"{benchmark.exp_name} is a single-node benchmark: it has no prefill and decode side",
            where=benchmark.source,
            hint="select multi-node entries",
        )
    return benchmark.prefill, benchmark.decode


def _role_name(role: Role) -> str:
    dp = _truth(role.dp_attention)
    return f"tp{role.tp}-pp{role.pp}-dcp{role.dcp}-pcp{role.pcp}-ep{role.ep}-dp{dp}-nw{role.workers}"


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _number(value: int | None, unset: str) -> str:
    return unset if value is None else str(value)


def _joined(values: Collection[int]) -> str:
    return " ".join(map(str, values))


def _component_json(component: Component | None) -> str:
    """As GitHub's toJson writes it: over several lines."""
    if component is None:
        return ""
    fields = {"name": component.name, "version": component.version}
    return json.dumps({key: value for key, value in fields.items() if value is not None}, indent=2)
