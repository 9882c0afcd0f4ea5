"""The fields of a `Benchmark`, one row each: its attribute, the variable of a GitHub job, the key of a matrix entry.

`environment` reads and writes the variables of a job by this table, and `matrix` reads entries by it. They assemble
what consists of several variables or keys: roles, evaluations and additional settings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

from launcher.benchmark.benchmark import AGENTIC, FIXED, Benchmark, Component, KvOffloading, Role, SpecDecoding
from launcher.core.errors import ConfigError, closest
from launcher.core.yaml_source import SourceLocation

ENVIRONMENT = "environment"
"""The place that is named in errors about variables."""


def unexpected_value(variable: str, text: str, expected: str) -> ConfigError:
    """The error for a variable whose text is not a valid value."""
    shown = repr(text) if len(text) <= 200 else f"{text[:200]!r}… ({len(text)} characters)"
    return ConfigError(f"{variable} is {shown}; expected {expected}", where=ENVIRONMENT)


_NOT_UTF8 = r"\ud800-\udfff"
"""Surrogates, which stand for bytes that are not UTF-8: neither a JSON file nor a terminal accepts them."""
NOT_IN_NAMES = rf"\x00-\x1f\x7f-\x9f{_NOT_UTF8}"
"""These and control characters, for the inside of a ``[…]``."""

Reader = Callable[[str, str], Any]
"""(variable, its text, which is not empty) → the value. Raises ConfigError for an invalid text."""


def as_text(variable: str, text: str) -> str:
    """The text unchanged; it may have several lines."""
    if re.search(f"[{_NOT_UTF8}]", text):
        raise unexpected_value(variable, text, "UTF-8")
    return text


def matching(pattern: str, expected: str) -> Reader:
    """A reader of texts that match the whole pattern; ``expected`` describes the pattern in words."""

    def read(variable: str, text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise unexpected_value(variable, text, expected)
        return text

    return read


one_line = matching(rf"[^{NOT_IN_NAMES}]+", "text of one line without control characters")
"""A name, which may have slashes (a model, an image)."""


def one_of(*words: str) -> Reader:
    """A reader of one of these words."""
    return matching("|".join(map(re.escape, words)), " or ".join(map(repr, words)))


_LARGEST_NUMBER = 10**12 - 1
"""The largest number that a variable may have; JSON and all programs that read it represent such numbers exactly."""


def boolean(variable: str, text: str) -> bool:
    """``true`` or ``false``."""
    if text not in ("true", "false"):
        raise unexpected_value(variable, text, "'true', 'false' or nothing")
    return text == "true"


def integer(least: int = 1, most: int = _LARGEST_NUMBER) -> Reader:
    """A reader of a whole number from ``least`` to ``most``."""
    return lambda variable, text: _number(variable, text, text, least, most)


def one_integer(variable: str, text: str) -> tuple[int]:
    """One whole number of at least 1, as a tuple, for an attribute that can have several."""
    return (_number(variable, text, text, least=1),)


def integer_or_zero_for_none(variable: str, text: str) -> int | None:
    """A whole number; 0 means None."""
    return _number(variable, text, text, least=0) or None


def integers(variable: str, text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, separated by spaces."""
    return tuple(_number(variable, word, text, least=1) for word in text.split())


def _number(variable: str, word: str, text: str, least: int, most: int = _LARGEST_NUMBER) -> int:
    # The length is limited because int() raises an error of its own for a text of some thousand digits.
    if not re.fullmatch(r"[0-9]{1,12}", word) or not least <= int(word) <= most:
        numbers = "a whole number" if word == text else "whole numbers"
        limit = "" if most == _LARGEST_NUMBER else f" and at most {most}"
        raise unexpected_value(variable, text, f"{numbers} of at least {least}{limit}")
    return int(word)


def component(variable: str, text: str) -> Component:
    """JSON with a name and optionally a version."""
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError):  # no JSON; a number of too many digits; too deep
        data = None
    if not (
        isinstance(data, dict)
        and isinstance(data.get("name"), str)
        and isinstance(data.get("version", ""), str)
        and data.keys() <= {"name", "version"}
    ):
        raise unexpected_value(variable, text, 'JSON of the form {"name": …, "version": …}')
    for part in filter(None, data.values()):
        # An escape in JSON can produce characters that no variable can hold.
        one_line(variable, part)
    return Component(**data)


@dataclass(frozen=True, slots=True)
class Field:
    """One attribute of a `Benchmark` (or of another dataclass), and its names in a job and in a matrix entry."""

    attribute: str
    variable: str
    key: str | None
    """Its key in a matrix entry; None when entries have none."""
    read: Reader = one_line
    required: bool = False
    """Whether a job must have the variable."""
    scenario: str | None = None
    """The only scenario for which the variable is read; None for all."""
    unset: str = ""
    """The text that the workflow exports when there is no value."""


FILE_NAME = rf"[^/{NOT_IN_NAMES}]+"
_PART = matching(FILE_NAME, "a part of a file name: no '/', no control characters")
_FINGERPRINT = matching(r"[0-9a-f]{64}", "64 hexadecimal digits")

FIELDS = (
    Field("exp_name", "EXP_NAME", "exp-name", _PART, required=True),
    Field("image", "IMAGE", "image", required=True),
    Field("model", "MODEL", "model", required=True),
    Field("model_prefix", "MODEL_PREFIX", "model-prefix", _PART, required=True),
    Field("precision", "PRECISION", "precision", _PART, required=True),
    Field("framework", "FRAMEWORK", "framework", _PART, required=True),
    Field("runner", "RUNNER_TYPE", "runner", required=True),
    Field("concurrencies", "CONC_LIST", "conc", integers, required=True),
    Field("isl", "ISL", "isl", integer(), required=True, scenario=FIXED),
    Field("osl", "OSL", "osl", integer(), required=True, scenario=FIXED),
    Field("max_model_len", "MAX_MODEL_LEN", "max-model-len", integer_or_zero_for_none),
    Field("disagg", "DISAGG", "disagg", boolean),
    Field("spec_decoding", "SPEC_DECODING", "spec-decoding", one_of(*get_args(SpecDecoding))),
    Field("scenario", "SCENARIO_TYPE", "scenario-type", one_of(FIXED, AGENTIC)),
    Field("run_eval", "RUN_EVAL", None, boolean),
    Field("eval_only", "EVAL_ONLY", "eval-only", boolean),
    Field("eval_concurrencies", "EVAL_CONC", None, integers),
    Field("kv_offloading", "KV_OFFLOADING", "kv-offloading", one_of(*get_args(KvOffloading)), scenario=AGENTIC),
    Field("kv_offload_backend", "KV_OFFLOAD_BACKEND_METADATA", "kv-offload-backend", component),
    Field("kv_p2p_transfer", "KV_P2P_TRANSFER", "kv-p2p-transfer"),
    Field("router", "ROUTER_METADATA", "router", component),
    Field("total_cpu_dram_gb", "TOTAL_CPU_DRAM_GB", "total-cpu-dram-gb", integer(0), scenario=AGENTIC, unset="600"),
    Field("duration", "DURATION", "duration", integer(), scenario=AGENTIC, unset="3600"),
    Field("result_filename", "RESULT_FILENAME", None, matching(FILE_NAME, "a file name, not a path")),
    Field("recipe_fingerprint", "RECIPE_FINGERPRINT", "recipe-fingerprint", _FINGERPRINT),
)


_WIDTH = integer(most=9999)


def role_fields(tp: str, ep: str, dp_attention: str, sizes: str = "") -> tuple[Field, ...]:
    """The fields of a role's parallelism, by the names of their variables; ``sizes`` is the prefix of ``…_SIZE``."""
    return (
        Field("tp", tp, "tp", _WIDTH, required=True),
        Field("ep", ep, "ep", _WIDTH, required=True),
        Field("dp_attention", dp_attention, "dp-attn", boolean),
        Field("pp", f"{sizes}PP_SIZE", "pp", _WIDTH),
        Field("dcp", f"{sizes}DCP_SIZE", "dcp-size", _WIDTH),
        Field("pcp", f"{sizes}PCP_SIZE", "pcp-size", _WIDTH),
    )


def _side_fields(side: str, least_workers: int) -> tuple[Field, ...]:
    return (
        Field("workers", f"{side}_NUM_WORKERS", "num-worker", integer(least_workers), required=True),
        *role_fields(f"{side}_TP", f"{side}_EP", f"{side}_DP_ATTN", f"{side}_"),
        Field("hardware", f"{side}_HARDWARE", "hardware"),
    )


PREFILL_FIELDS, DECODE_FIELDS = _side_fields("PREFILL", 1), _side_fields("DECODE", 0)
"""The fields of a `Role`, for each side."""


def require(environ: Mapping[str, str], fields: Iterable[Field], job: str = "GitHub") -> None:
    """Raise ConfigError that names all required variables of ``fields`` that are unset or blank.

    ``job`` is the kind of job that needs them, for the message.
    """
    missing = [f.variable for f in fields if f.required and not environ.get(f.variable, "").strip()]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        hint = f"the launch step of a {job} job has them; by hand, select a matrix entry instead"
        raise ConfigError(f"{', '.join(missing)} {verb} not set, or empty", where=ENVIRONMENT, hint=hint)


def read_variables(environ: Mapping[str, str], fields: Iterable[Field]) -> dict[str, Any]:
    """Attribute → value of the variables that are set and not empty."""
    return {f.attribute: f.read(f.variable, text) for f in fields if (text := environ.get(f.variable))}


def write_variables(source: Benchmark | Role, fields: Iterable[Field]) -> dict[str, str]:
    """Variable → text of all ``fields``."""
    values = ((field, getattr(source, field.attribute)) for field in fields)
    return {field.variable: field.unset if value is None else exported(value) for field, value in values}


def exported(value: Any) -> str:
    """The text with which the workflow exports a field's value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return _component_text(value) if isinstance(value, Component) else str(value)


@lru_cache
def _component_text(value: Component) -> str:
    parts = {"name": value.name} if value.version is None else {"name": value.name, "version": value.version}
    return json.dumps(parts, indent=2)  # on several lines, as GitHub's toJson writes it


def read_entry(data: Mapping[str, Any], fields: Iterable[Field]) -> dict[str, Any]:
    """Attribute → value of the keys that a matrix entry has."""
    values = {}
    for field in fields:
        if field.key is not None and (value := data.get(field.key)) is not None:
            values[field.attribute] = Component(**value) if isinstance(value, dict) else value
    return values


SETTING_KEYS = frozenset(
    {
        "CLIENT_IMAGE",
        "CONFIG_FILE",
        "DECODE_GPU_MEM_FRACTION",
        "DECODE_IMAGE",
        "DECODE_MAX_BATCH_SIZE",
        "DECODE_MAX_NUM_TOKENS",
        "DECODE_MTP_SIZE",
        "DECODE_NODES",
        "DECODE_WORKERS",
        "EVAL_CONFIG_FILE",
        "GPUS_PER_NODE",
        "NUM_SPEC_TOKENS",
        "PREFILL_IMAGE",
        "PREFILL_MAX_BATCH_SIZE",
        "PREFILL_MAX_NUM_TOKENS",
        "PREFILL_NODES",
        "PREFILL_WORKERS",
        "RESULT_CLOCK_SKEW",
        "RESULT_FAILED",
        "RESULT_LONGEST",
        "RESULT_SHORTEST",
        "RESULT_TOLERANCE",
        "SLURM_EXCLUDE_NODES",
        "SLURM_PARTITION",
        "SYNTHETIC_ACCEPTANCE",
        "SYNTHETIC_ACCEPTANCE_LENGTH",
        "THINKING_MODE",
        "TIME_LIMIT",
    }
)
"""The additional settings that a row may have. Any other key (``PATH``, ``LD_PRELOAD``, a variable of `FIELDS`) is
refused.

InferenceX's workflow pastes these KEY=VALUE texts into a shell line, which interprets spaces, globs and ``$()``. Here
they are data.
"""


def parse_setting(text: str, place: SourceLocation | str) -> tuple[str, str]:
    """Key and value of one additional setting (``KEY=VALUE``); the value is literal, with its spaces.

    Raises ConfigError, with ``place`` as the place, for a text without ``=``, a key that is not in `SETTING_KEYS`, or a
    value with control characters.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"additional setting {text!r} is not KEY=VALUE", where=str(place))
    if key not in SETTING_KEYS:
        near = closest(key, SETTING_KEYS)
        hint = f"did you mean {near!r}?" if near else f"known settings: {', '.join(sorted(SETTING_KEYS))}"
        raise ConfigError(f"additional setting {key!r} is not known", where=str(place), hint=hint)
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise ConfigError(f"additional setting {key} has a control character in its value {value!r}", where=str(place))
    return key, value
