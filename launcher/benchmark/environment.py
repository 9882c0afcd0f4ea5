"""The environment of a GitHub job, both ways: from it to a benchmark, and from a benchmark to it.

Which variables there are is in `contracts`: jobs of several nodes and of one node have others. Every value is text, an
input that was not given is the empty text, and agentic jobs have ``'0'`` for sequence lengths.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from launcher.benchmark.benchmark import AGENTIC, FIXED, Benchmark, Component, Role
from launcher.benchmark.contracts import ADDITIONAL_SETTINGS, MULTI_NODE, contract_in, contract_of
from launcher.benchmark.fields import (
    FILE_NAME,
    WHERE,
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
"""The fields of a `GithubJob`; USER counts before LOGNAME."""


class GithubJob(msgspec.Struct, frozen=True):
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
    """The benchmark that a job's environment means; what is set tells whether it is a job of several nodes or of one.

    Additional settings are the variables that the contract lists for them, set and not empty, and what the lists of
    ADDITIONAL_SETTINGS hold. Raises ConfigError naming the variable, what was found and what is expected; all missing
    variables at once.
    """
    contract = contract_in(environ)
    scenario = read_variables(environ, [f for f in contract.fields if f.attribute == "scenario"]).get("scenario", FIXED)
    require(environ, contract.required(environ, scenario), contract.name)
    # What the callers do not set that `required` excuses.
    values: dict[str, Any] = {"runner": "", "concurrencies": ()}
    values |= read_variables(environ, [f for f in contract.fields if f.scenario in (None, scenario)])
    if scenario == AGENTIC:
        values.setdefault("kv_offloading", "none")
    if backend := environ.get("KV_OFFLOAD_BACKEND"):
        # The name alone stands in for metadata that are not given.
        values.setdefault("kv_offload_backend", Component(one_line("KV_OFFLOAD_BACKEND", backend)))
    for side, fields in contract.roles.items():
        values[side] = Role(**{"workers": 1, **read_variables(environ, fields)})
    benchmark = Benchmark(
        **values,
        multinode=contract is MULTI_NODE,
        settings=_settings(environ) if contract.settings else {},
        options=contract.options_in(environ),
        source=WHERE,
    )
    _agree(environ, benchmark)
    return benchmark


def _settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The additional settings of a job. Raises ConfigError for one that is not known, and where list and variable
    contradict each other."""
    texts = [(name, text) for name in ADDITIONAL_SETTINGS for text in _texts(name, environ.get(name, ""))]
    listed = dict(parse_setting(text, name) for name, text in texts)
    exported = dict(
        parse_setting(f"{key}={environ[key]}", WHERE) for key in sorted(MULTI_NODE.settings) if environ.get(key)
    )
    if other := [key for key, value in exported.items() if listed.get(key, value) != value]:
        key = other[0]
        raise unexpected_value(key, exported[key], f"{listed[key]!r}, which the additional settings say, or nothing")
    return dict(sorted({**listed, **exported}.items()))


def _texts(name: str, text: str) -> list[str]:
    """The texts of a JSON list; none where there is no list (``null``)."""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text or "null")
        if value is None or (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            return value or []
    raise unexpected_value(name, text, "a JSON list of KEY=VALUE texts")


def variable_errors(environ: Mapping[str, str]) -> Iterator[ConfigError]:
    """Everything that is wrong with the variables of a job, where `benchmark_from_environment` stops at the first."""

    def wrong(fields: Iterable[Field], needed: Iterable[Field], job: str = "GitHub") -> Iterator[ConfigError]:
        try:
            require(environ, needed, job)
        except ConfigError as error:
            yield error
        for field in fields:
            try:
                read_variables(environ, [field])
            except ConfigError as error:
                yield error

    yield from wrong(_JOB_FIELDS, _JOB_FIELDS)
    try:
        contract = contract_in(environ)
    except ConfigError as error:
        yield error
        return
    scenario = environ.get("SCENARIO_TYPE") or FIXED
    fields = [*contract.fields, *(field for side in contract.roles.values() for field in side)]
    before = list(
        wrong(
            [f for f in fields if f.scenario in (None, scenario)], contract.required(environ, scenario), contract.name
        )
    )
    yield from before
    if not before:
        try:
            benchmark_from_environment(environ)
        except ConfigError as error:
            yield error


def unknown_settings(environ: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """Variables of a job of several nodes that look like settings of its row and are none, each with what comes near.

    A workflow exports a row's additional settings among all else that the host has, so that an unknown one is told only
    by its beginning, or by a name that is a slip of the pen away from a setting's.
    """
    if contract_in(environ) is not MULTI_NODE:
        return []
    fields = (*MULTI_NODE.fields, *(field for side in MULTI_NODE.roles.values() for field in side))
    known = {*(field.variable for field in fields), *MULTI_NODE.options, *MULTI_NODE.settings, *ADDITIONAL_SETTINGS}
    found = []
    for name in sorted(environ.keys() - known):
        near = closest(name, known, _SLIP)
        if near is not None or name.startswith(_SIDES):
            found.append((name, near))
    return found


_SLIP = 0.91
"""Likeness of two names that differ by a letter or two; SLURM_JOB_PARTITION and SLURM_PARTITION are less alike."""
_SIDES = ("PREFILL_", "DECODE_")


def _agree(environ: Mapping[str, str], benchmark: Benchmark) -> None:
    """Raise ConfigError where a variable that follows from others says something else: one of them is wrong."""
    follow = _scenario_variables(benchmark)
    if not benchmark.multinode:
        follow["GPU_COUNT"] = str(benchmark.gpus)
    for variable, expected in follow.items():
        if (found := environ.get(variable)) and found != expected:
            raise unexpected_value(variable, found, f"{expected!r}, which follows from the other variables")


def _scenario_variables(benchmark: Benchmark) -> dict[str, str]:
    """What scripts know the scenario by, beside SCENARIO_TYPE."""
    if benchmark.agentic:
        return {"IS_AGENTIC": "1", "SCENARIO_SUBDIR": "agentic/"}
    return {"IS_AGENTIC": "0", "SCENARIO_SUBDIR": "fixed_seq_len/"}


def environment_of(benchmark: Benchmark) -> dict[str, str]:
    """The variables that the workflow would have exported for this benchmark.

    Without those of the runner (RUNNER_NAME, GITHUB_*, GPU_COUNT), secrets, and RESULT_FILENAME where the benchmark has
    none. Raises ConfigError for a benchmark that lacks a side.
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
    if not _FILE_NAME.fullmatch(stem):
        raise ConfigError(f"the result's name is not usable as a file name: {stem!r}", where=benchmark.source)
    return stem


_FILE_NAME = re.compile(FILE_NAME)


@lru_cache(maxsize=1024)  # rows of a family have some dozen roles
def _role_name(role: Role, side: str | None) -> str:
    """A role in the name of a result: ``side`` of several, or None for the one role of one node."""
    widths = f"tp{role.tp}-pp{role.pp}-dcp{role.dcp}-pcp{role.pcp}-ep{role.ep}"
    attention = exported(role.dp_attention)
    return f"{widths}-dpa{attention}" if side is None else f"{side}-{widths}-dp{attention}-nw{role.workers}"
