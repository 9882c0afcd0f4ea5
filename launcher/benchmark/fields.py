"""The fields of a `Benchmark`, one row each: its attribute, the variable of a GitHub job, the key of a matrix entry.

`environment` reads and writes the variables of a job by this table, and `matrix` reads entries by it. They put together
what takes more than one variable or key: roles, evaluations and additional settings.
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

WHERE = "environment"
"""The place that errors about variables give."""


def unexpected_value(variable: str, found: str, expected: str) -> ConfigError:
    """The error for a variable whose text means nothing."""
    shown = repr(found) if len(found) <= _SHOWN else f"{found[:_SHOWN]!r}… ({len(found)} characters)"
    return ConfigError(f"{variable} is {shown}; expected {expected}", where=WHERE)


_SHOWN = 200
_NOT_UTF8 = r"\ud800-\udfff"
"""What stands for bytes that are not UTF-8: neither a file of JSON nor a terminal takes it."""
NOT_IN_NAMES = rf"\x00-\x1f\x7f-\x9f{_NOT_UTF8}"
"""Control characters too, for the inside of a ``[…]``."""

Reader = Callable[[str, str], Any]
"""(variable, its text, which is not empty) → the value. Raises ConfigError for a text that means nothing."""


def as_text(variable: str, text: str) -> str:
    """The text as it stands, over several lines if need be."""
    if re.search(f"[{_NOT_UTF8}]", text):
        raise unexpected_value(variable, text, "UTF-8")
    return text


def matching(pattern: str, expected: str) -> Reader:
    """A text that the pattern matches whole; ``expected`` says the pattern in words."""

    def read(variable: str, text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise unexpected_value(variable, text, expected)
        return text

    return read


one_line = matching(rf"[^{NOT_IN_NAMES}]+", "text of one line without control characters")
"""A name, which may have slashes (a model, an image)."""


def one_of(*words: str) -> Reader:
    """One of some words."""
    return matching("|".join(map(re.escape, words)), " or ".join(map(repr, words)))


_LARGEST = 10**12 - 1
"""What no number of a job exceeds; JSON and every program behind it hold such numbers exactly."""


def boolean(variable: str, text: str) -> bool:
    """``true`` or ``false``."""
    if text not in ("true", "false"):
        raise unexpected_value(variable, text, "'true', 'false' or nothing")
    return text == "true"


def integer(least: int = 1, most: int = _LARGEST) -> Reader:
    """A whole number from ``least`` to ``most``."""
    return lambda variable, text: _number(variable, text, text, least, most)


def one_integer(variable: str, text: str) -> tuple[int]:
    """One whole number of at least 1, where others have several."""
    return (_number(variable, text, text, least=1),)


def integer_or_zero_for_none(variable: str, text: str) -> int | None:
    """A whole number, where 0 says that there is none."""
    return _number(variable, text, text, least=0) or None


def integers(variable: str, text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, with spaces between them."""
    return tuple(_number(variable, word, text, least=1) for word in text.split())


def _number(variable: str, word: str, text: str, least: int, most: int = _LARGEST) -> int:
    # The length is limited because int() refuses a text of some thousand digits with an error of its own.
    if not re.fullmatch(r"[0-9]{1,12}", word) or not least <= int(word) <= most:
        numbers = "a whole number" if word == text else "whole numbers"
        limit = "" if most == _LARGEST else f" and at most {most}"
        raise unexpected_value(variable, text, f"{numbers} of at least {least}{limit}")
    return int(word)


def component(variable: str, text: str) -> Component:
    """JSON with a name and perhaps a version."""
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
        # An escape in JSON can stand for what no variable can hold.
        one_line(variable, part)
    return Component(**data)


@dataclass(frozen=True, slots=True)
class Field:
    """One attribute of a `Benchmark` (or of another dataclass), and where it stands outside."""

    attribute: str
    variable: str
    key: str | None
    """In a matrix entry; None when entries have no such key."""
    read: Reader = one_line
    required: bool = False
    """Whether a job must have the variable."""
    scenario: str | None = None
    """The scenario of which the variable is read, where it is one only."""
    unset: str = ""
    """What the workflow exports when there is no value."""


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
    """The fields of a role's parallelism, by the names of their variables; ``sizes`` stands before the ``…_SIZE``."""
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
"""The fields of a `Role`, by side."""


def require(environ: Mapping[str, str], fields: Iterable[Field], job: str = "GitHub") -> None:
    """Raise ConfigError that names all required variables of ``fields`` that are not set, or blank.

    ``job`` is the kind of job that needs them, for the message.
    """
    missing = [f.variable for f in fields if f.required and not environ.get(f.variable, "").strip()]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        hint = f"the launch step of a {job} job has them; by hand, select a matrix entry instead"
        raise ConfigError(f"{', '.join(missing)} {verb} not set, or empty", where=WHERE, hint=hint)


def read_variables(environ: Mapping[str, str], fields: Iterable[Field]) -> dict[str, Any]:
    """Attribute → value of the variables that are set and not empty."""
    return {f.attribute: f.read(f.variable, text) for f in fields if (text := environ.get(f.variable))}


def write_variables(holder: Benchmark | Role, fields: Iterable[Field]) -> dict[str, str]:
    """Variable → text of all ``fields``."""
    texts = {}
    for field in fields:
        value = getattr(holder, field.attribute)
        texts[field.variable] = field.unset if value is None else value if type(value) is str else exported(value)
    return texts


def exported(value: Any) -> str:
    """A value as the workflow exports it."""
    return _WRITERS[type(value)](value)


@lru_cache
def _component_text(value: Component) -> str:
    # Over several lines, as GitHub's toJson writes it.
    parts = {"name": value.name} if value.version is None else {"name": value.name, "version": value.version}
    return json.dumps(parts, indent=2)


_WRITERS: Mapping[type, Callable[[Any], str]] = {
    str: str,
    int: str,
    bool: lambda value: "true" if value else "false",
    tuple: lambda values: " ".join(map(str, values)),
    Component: _component_text,
}
"""By the type of a field's value."""


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
"""What a row may set beside its own keys. Any other key (``PATH``, ``LD_PRELOAD``, a variable of `FIELDS`) is refused.

InferenceX's workflow pastes these KEY=VALUE texts into a shell line, where spaces, globs and ``$()`` are interpreted.
Here they are data.
"""


def parse_setting(text: str, place: SourceLocation | str) -> tuple[str, str]:
    """Key and value of one additional setting (``KEY=VALUE``); the value is taken literally, with its spaces.

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
