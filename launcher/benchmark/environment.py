"""The environment of a GitHub multi-node job, both ways: from it to a benchmark, and from a benchmark to it.

The variables and their meaning are those of InferenceX's `benchmark-multinode-tmpl.yml` (commit 843c6254f): every
value is text, an input that was not given is the empty text, and agentic jobs have ``'0'`` for sequence lengths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.benchmark.benchmark import AGENTIC, FIXED, Benchmark, Component, Role
from launcher.benchmark.fields import (
    DECODE_FIELDS,
    FIELDS,
    FILE_NAME,
    PREFILL_FIELDS,
    SETTING_KEYS,
    WHERE,
    Field,
    boolean,
    exported,
    matching,
    parse_setting,
    read_variables,
    require,
    unexpected_value,
    write_variables,
)
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

_RUNNER_NAME = matching(r"[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits, '.', '_' and '-'")
_NUMBER = r"[A-Za-z0-9._-]+"
_JOB_FIELDS = (
    Field("runner_name", "RUNNER_NAME", None, _RUNNER_NAME, required=True),
    Field("run_id", "GITHUB_RUN_ID", None, matching(_NUMBER, "a run's number")),
    Field("attempt", "GITHUB_RUN_ATTEMPT", None, matching(_NUMBER, "an attempt's number")),
    Field("user", "LOGNAME", None),
    Field("user", "USER", None),
)
"""The fields of a `GithubJob`; USER counts before LOGNAME."""


@dataclass(frozen=True, slots=True)
class GithubJob:
    """The job that this process runs in, or what stands for one when started by hand.

    ``run_id`` is ``manual`` and ``attempt`` ``0`` outside GitHub; both are safe in file names. ``workspace`` is the
    checkout, ``user`` the account on the login node; each is None where the environment does not have it.
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
    require(environ, _JOB_FIELDS)
    workspace = environ.get("GITHUB_WORKSPACE")
    return GithubJob(workspace=Path(workspace) if workspace else None, **read_variables(environ, _JOB_FIELDS))


def benchmark_from_environment(environ: Mapping[str, str]) -> Benchmark:
    """The benchmark that a multi-node job's environment means.

    Additional settings are the variables of `SETTING_KEYS` that are set and not empty. Raises ConfigError naming the
    variable, what was found and what is expected; all missing variables at once.
    """
    multinode = environ.get("IS_MULTINODE") or "true"
    if not boolean("IS_MULTINODE", multinode):
        raise unexpected_value("IS_MULTINODE", multinode, "'true': single-node jobs have other variables")
    scenario = read_variables(environ, [f for f in FIELDS if f.attribute == "scenario"]).get("scenario", FIXED)
    fields = [f for f in FIELDS if f.scenario in (None, scenario)]
    require(environ, [*fields, *PREFILL_FIELDS, *DECODE_FIELDS])
    values = read_variables(environ, fields)
    if scenario == AGENTIC:
        values.setdefault("kv_offloading", "none")
    if name := environ.get("KV_OFFLOAD_BACKEND"):
        # The name alone stands in for metadata that are not given.
        values.setdefault("kv_offload_backend", Component(name))
    return Benchmark(
        **values,
        prefill=Role(**read_variables(environ, PREFILL_FIELDS)),
        decode=Role(**read_variables(environ, DECODE_FIELDS)),
        settings=dict(
            parse_setting(f"{key}={environ[key]}", WHERE) for key in sorted(SETTING_KEYS) if environ.get(key)
        ),
        options={key: environ[key] for key, usual in OPTIONS.items() if environ.get(key, usual) != usual},
        source=WHERE,
    )


def environment_of(benchmark: Benchmark) -> dict[str, str]:
    """The variables that the multi-node workflow would have exported for this benchmark.

    Without those of the runner (RUNNER_NAME, GITHUB_*), secrets, and RESULT_FILENAME where the benchmark has none.
    Raises ConfigError for a benchmark without a prefill and a decode side.
    """
    prefill, decode = _roles(benchmark)
    environment = {
        **write_variables(benchmark, FIELDS),
        **write_variables(prefill, PREFILL_FIELDS),
        **write_variables(decode, DECODE_FIELDS),
        "IS_MULTINODE": "true",
        "IS_AGENTIC": "0",
        "SCENARIO_SUBDIR": "fixed_seq_len/",
        "CONC": "",
        "KV_OFFLOAD_BACKEND": benchmark.kv_offload_backend.name if benchmark.kv_offload_backend else "",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPYCACHEPREFIX": "/tmp/inferencex-pycache",
        **OPTIONS,
        **benchmark.options,
    }
    if benchmark.agentic:
        evaluated = benchmark.eval_concurrencies if benchmark.eval_only else ()
        environment |= {
            "IS_AGENTIC": "1",
            "SCENARIO_SUBDIR": "agentic/",
            "CONC": str((evaluated or benchmark.concurrencies)[0]),
            **{name: environment[name] or "0" for name in ("ISL", "OSL", "MAX_MODEL_LEN")},
        }
    if not benchmark.result_filename:
        del environment["RESULT_FILENAME"]
    return environment | dict(benchmark.settings)


def result_filename(benchmark: Benchmark, runner_name: str) -> str:
    """RESULT_FILENAME as the workflow's step computes it: the stem of every result file's name.

    Raises ConfigError for a benchmark without a prefill and a decode side, or with a slash in a part of the name.
    """
    prefill, decode = _roles(benchmark)
    name = (
        f"{benchmark.exp_name}_{benchmark.precision}_{benchmark.framework}"
        f"_prefill-{_role_name(prefill)}_decode-{_role_name(decode)}"
        f"_disagg-{exported(benchmark.disagg)}_spec-{benchmark.spec_decoding}"
        f"_conc{'x'.join(map(str, benchmark.concurrencies))}_{runner_name}"
    )
    if benchmark.recipe_fingerprint:
        name += f"_recipe-{benchmark.recipe_fingerprint[:16]}"
    if not re.fullmatch(FILE_NAME, name):
        raise ConfigError(f"the result's name is not usable as a file name: {name!r}", where=benchmark.source)
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
    dp = exported(role.dp_attention)
    return f"tp{role.tp}-pp{role.pp}-dcp{role.dcp}-pcp{role.pcp}-ep{role.ep}-dp{dp}-nw{role.workers}"
