"""The environment of a GitHub job: read as a benchmark, and written for a benchmark.

`contracts` has the variables of jobs of several nodes and of one node. Every value is text, an input that was not
given is the empty text, and agentic jobs have ``'0'`` for sequence lengths.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from launcher.benchmark.benchmark import AGENTIC, FIXED, Benchmark, Component, Role
from launcher.benchmark.contracts import ADDITIONAL_SETTINGS, MULTI_NODE, contract_of, contract_of_environment
from launcher.benchmark.fields import (
    DECODE_FIELDS,
    ENVIRONMENT,
    FILE_NAME,
    PREFILL_FIELDS,
    Field,
    exported,
    matching,
    one_line,
    parse_setting,
    read_variables,
    require,
    unexpected_value,
    write_variables,
)
from launcher.core.errors import ConfigError, closest

_RUNNER_NAME = matching(r"[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits, '.', '_' and '-'")
_NUMBER = r"[A-Za-z0-9._-]+"
_JOB_FIELDS = (
    Field("runner_name", "RUNNER_NAME", None, _RUNNER_NAME, required=True),
    Field("run_id", "GITHUB_RUN_ID", None, matching(_NUMBER, "a run's number")),
    Field("attempt", "GITHUB_RUN_ATTEMPT", None, matching(_NUMBER, "an attempt's number")),
    Field("user", "LOGNAME", None),
    Field("user", "USER", None),
)
"""The fields of a `GithubJob`; USER overrides LOGNAME."""


class GithubJob(msgspec.Struct, frozen=True):
    """The GitHub job that this process runs in.

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
    """The benchmark that a job's environment describes; the set variables tell a job of several nodes from one of one.

    Additional settings come from the variables that the contract lists for them, where not empty, and from the lists
    in ADDITIONAL_SETTINGS. Raises ConfigError that names the variable, its value and what is expected, or all missing
    variables.
    """
    contract = contract_of_environment(environ)
    scenario = read_variables(environ, [f for f in contract.fields if f.attribute == "scenario"]).get("scenario", FIXED)
    require(environ, contract.required(environ, scenario), contract.name)
    # Defaults for what a caller may leave out (`Contract.not_set_with`).
    values: dict[str, Any] = {"runner": "", "concurrencies": ()}
    values |= read_variables(environ, [f for f in contract.fields if f.scenario in (None, scenario)])
    if scenario == AGENTIC:
        values.setdefault("kv_offloading", "none")
    if backend := environ.get("KV_OFFLOAD_BACKEND"):
        # The name alone is used when the metadata are not given.
        values.setdefault("kv_offload_backend", Component(one_line("KV_OFFLOAD_BACKEND", backend)))
    for side, fields in contract.roles.items():
        values[side] = Role(**{"workers": 1, **read_variables(environ, fields)})
    benchmark = Benchmark(
        **values,
        multinode=contract is MULTI_NODE,
        settings=_settings(environ) if contract.settings else {},
        options=contract.options_in(environ),
        source=ENVIRONMENT,
    )
    _check_consistency(environ, benchmark)
    return benchmark


def _settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The additional settings of a job. Raises ConfigError for an unknown one, or when a list and a variable differ."""
    texts = [(name, text) for name in ADDITIONAL_SETTINGS for text in _setting_texts(name, environ.get(name, ""))]
    settings = dict(parse_setting(text, name) for name, text in texts)
    for key in sorted(key for key in MULTI_NODE.settings if environ.get(key)):
        _, value = parse_setting(f"{key}={environ[key]}", ENVIRONMENT)
        if settings.setdefault(key, value) != value:
            raise unexpected_value(key, value, f"{settings[key]!r}, which the additional settings say, or nothing")
    return dict(sorted(settings.items()))


def _setting_texts(name: str, text: str) -> list[str]:
    """The texts of a JSON list; none for ``null`` or an empty text."""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text or "null")
        if value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            return value or []
    raise unexpected_value(name, text, "a JSON list of KEY=VALUE texts")


def variable_errors(environ: Mapping[str, str]) -> Iterator[ConfigError]:
    """All errors in the variables of a job, where `benchmark_from_environment` raises the first."""

    def errors_of(function: Callable[..., object], *arguments: Any) -> list[ConfigError]:
        try:
            function(environ, *arguments)
        except ConfigError as error:
            return [error]
        return []

    def field_errors(fields: Sequence[Field], required: Sequence[Field], job: str = "GitHub") -> list[ConfigError]:
        return [
            *errors_of(require, required, job),
            *(e for field in fields for e in errors_of(read_variables, [field])),
        ]

    yield from field_errors(_JOB_FIELDS, _JOB_FIELDS)
    try:
        contract = contract_of_environment(environ)
    except ConfigError as error:
        yield error
        return
    scenario = environ.get("SCENARIO_TYPE") or FIXED
    errors = field_errors(contract.fields_in(scenario), contract.required(environ, scenario), contract.name)
    yield from errors or errors_of(benchmark_from_environment)


def unknown_settings(environ: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """Variables of a job of several nodes that look like settings of its row and are none, each with a similar name.

    A workflow exports a row's additional settings beside all variables of the host, so an unknown setting can only be
    recognised by its prefix, or by a name that differs from a setting's by a typing error.
    """
    if contract_of_environment(environ) is not MULTI_NODE:
        return []
    fields = (*MULTI_NODE.fields, *PREFILL_FIELDS, *DECODE_FIELDS)
    known = {*(field.variable for field in fields), *MULTI_NODE.options, *MULTI_NODE.settings, *ADDITIONAL_SETTINGS}
    unknown = []
    for name in sorted(environ.keys() - known):
        # Two names that differ by a letter or two are that similar; SLURM_JOB_PARTITION and SLURM_PARTITION are not.
        near = closest(name, known, 0.91)
        if near is not None or name.startswith(("PREFILL_", "DECODE_")):
            unknown.append((name, near))
    return unknown


def _check_consistency(environ: Mapping[str, str], benchmark: Benchmark) -> None:
    """Raise ConfigError when a variable that follows from others has another value: one of them is wrong."""
    derived = _scenario_variables(benchmark)
    if not benchmark.multinode:
        derived["GPU_COUNT"] = str(benchmark.gpus)
    for variable, expected in derived.items():
        if (value := environ.get(variable)) and value != expected:
            raise unexpected_value(variable, value, f"{expected!r}, which follows from the other variables")


def _scenario_variables(benchmark: Benchmark) -> dict[str, str]:
    """The variables by which scripts recognise the scenario, beside SCENARIO_TYPE."""
    if benchmark.agentic:
        return {"IS_AGENTIC": "1", "SCENARIO_SUBDIR": "agentic/"}
    return {"IS_AGENTIC": "0", "SCENARIO_SUBDIR": "fixed_seq_len/"}


def environment_of(benchmark: Benchmark) -> dict[str, str]:
    """The variables that the workflow would export for this benchmark.

    Variables of the runner (RUNNER_NAME, GITHUB_*, GPU_COUNT) and secrets are not among them, nor RESULT_FILENAME where
    the benchmark has none. Raises ConfigError for a benchmark that lacks a side.
    """
    contract = contract_of(benchmark)
    environment = write_variables(benchmark, contract.fields)
    for side, role in contract.roles_of(benchmark).items():
        environment |= write_variables(role, contract.roles[side])
    environment |= {
        **_scenario_variables(benchmark),
        "KV_OFFLOAD_BACKEND": benchmark.kv_offload_backend.name if benchmark.kv_offload_backend else "",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPYCACHEPREFIX": "/tmp/inferencex-pycache",
        **contract.options,
        **benchmark.options,
    }
    if benchmark.multinode:
        evaluated = benchmark.eval_concurrencies if benchmark.eval_only else ()
        first = (evaluated or benchmark.concurrencies)[0] if benchmark.agentic else ""
        environment |= {"IS_MULTINODE": "true", "CONC": str(first)}
    if benchmark.agentic:
        environment |= {name: environment[name] or "0" for name in ("ISL", "OSL", "MAX_MODEL_LEN")}
    if not benchmark.result_filename:
        del environment["RESULT_FILENAME"]
    return environment | dict(benchmark.settings)


def result_filename(benchmark: Benchmark, runner_name: str) -> str:
    """RESULT_FILENAME as the workflow's step computes it: the stem of every result file's name.

    Raises ConfigError for a benchmark that lacks a side, or with a slash in a part of the name.
    """
    sides = contract_of(benchmark).roles_of(benchmark)
    topology = "_".join(_role_name(role, side if benchmark.multinode else None) for side, role in sides.items())
    stem = (
        f"{benchmark.exp_name}_{benchmark.precision}_{benchmark.framework}_{topology}"
        f"_disagg-{exported(benchmark.disagg)}_spec-{benchmark.spec_decoding}"
        f"_conc{'x'.join(map(str, benchmark.concurrencies))}_{runner_name}"
    )
    if benchmark.recipe_fingerprint:
        stem += f"_recipe-{benchmark.recipe_fingerprint[:16]}"
    if not re.fullmatch(FILE_NAME, stem):
        raise ConfigError(f"the result's name is not usable as a file name: {stem!r}", where=benchmark.source)
    return stem


@lru_cache(maxsize=1024)  # rows of a family have some dozen roles
def _role_name(role: Role, side: str | None) -> str:
    """A role in the name of a result; ``side`` is None for the only role of a job of one node."""
    widths = f"tp{role.tp}-pp{role.pp}-dcp{role.dcp}-pcp{role.pcp}-ep{role.ep}"
    attention = exported(role.dp_attention)
    return f"{widths}-dpa{attention}" if side is None else f"{side}-{widths}-dp{attention}-nw{role.workers}"
