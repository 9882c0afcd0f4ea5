"""The tables of row_fields.yaml, and the rows that they give from a job's environment variables. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.errors import ConfigError, ResultError
from launcher.core.reading import prepare_type

Row = dict[str, Any]


def finite(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that is too large for a float
        return False


def is_row(value: Any) -> bool:
    """Whether a document is an aggregate's row, of either scenario."""
    # The metadata of an evaluation has the required keys too, but none of the measured ones.
    required, measured = {"hw", "conc", "infmax_model_prefix"}, {"tput_per_gpu", "request_metrics"}
    return isinstance(value, dict) and required <= value.keys() and bool(measured & value.keys())


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One field of a row; row_fields.yaml explains the keys."""

    variable: str | None = None
    raw: str | None = None
    share: tuple[str, ...] = ()
    type: str = "text"
    default: str | None = None
    optional: bool = False
    without_decode: int | None = None
    unit: str = ""
    digits: int | None = None
    means: str = ""


@cache
def tables() -> Mapping[str, Mapping[str, Field]]:
    """The tables of row_fields.yaml by name, their fields by key."""
    text = Path(__file__).with_name("row_fields.yaml").read_bytes()
    return msgspec.yaml.decode(text, type=prepare_type(dict[str, dict[str, Field]]))


def _size(text: str) -> int:
    if (value := int(text)) <= 0:
        raise ValueError("not positive")
    return value


def component(text: str, *, version_needed: bool = True) -> Any:
    """``{name, version}`` from a JSON text; None for an empty text or null. Raises ValueError for any other value."""
    if text in ("", "null"):
        return None
    value = json.loads(text)
    allowed = ({"name", "version"},) if version_needed else ({"name"}, {"name", "version"})
    if not isinstance(value, dict) or set(value) not in allowed:
        raise ValueError("not {name, version}")
    if not all(isinstance(part, str) and part for part in value.values()):
        raise ValueError("name and version are non-empty texts")
    return value


_TYPES: Mapping[str, Callable[[str], Any]] = {
    "text": str,
    "whole": int,
    "size": _size,
    "flag": lambda text: text.lower() == "true",
    "component": component,
    "number": int,
    "width": _size,
    "switch": lambda text: text.lower() in ("1", "true", "yes", "on"),
}
_EMPTY_IS_UNSET = frozenset({"number", "width", "switch"})


def read_variables(table: str, environ: Mapping[str, str]) -> Row:
    """The fields of a table that come from variables. Raises ConfigError that names all missing variables, or the first
    one with an invalid value."""
    fields = {key: field for key, field in tables()[table].items() if field.variable is not None}
    missing, row = [], {}
    for key, field in fields.items():
        name = str(field.variable)
        text = environ.get(name)
        if text is None or (not text and field.type in _EMPTY_IS_UNSET):
            text = "" if field.optional or field.type == "switch" else field.default
        if text is None:
            missing.append(name)
            continue
        try:
            value = _TYPES[field.type](text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{name} is {text[:200]!r}: {error}", where="environment") from None
        if not field.optional or value:
            row[key] = value
    if missing:
        raise ConfigError(f"not set: {', '.join(missing)}", where="environment")
    if ("prefill_hw" in row) != ("decode_hw" in row):
        raise ConfigError("PREFILL_HARDWARE and DECODE_HARDWARE are set together or not at all", where="environment")
    return row


def without_decode(table: str) -> Row:
    """The decode fields of a row without a decode side."""
    return {k: field.without_decode for k, field in tables()[table].items() if field.without_decode is not None}


def shares(table: str, quantities: Mapping[str, float]) -> Row:
    """The fields of a table that are shares: the first quantity divided by each of the others, in order, not rounded.

    Raises ZeroDivisionError.
    """
    row = {}
    for key, field in tables()[table].items():
        if field.share:
            first, *others = field.share
            value = quantities[first]
            for other in others:
                value = value / quantities[other]
            row[key] = value
    return row


def fixed_row(raw: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[Row, tuple[int, int]]:
    """The row of a fixed-length result, and the GPUs of prefill and decode; on one node these are all GPUs and 0.

    ``raw`` is the client's document. Raises ConfigError for the variables, ResultError for the document. Equal to
    InferenceX's utils/process_result.py, except for numbers that JSON does not have: `refuse_not_finite`.
    """
    row = read_variables("fixed", environ)
    table = "fixed_several_nodes" if row["is_multinode"] else "fixed_one_node"
    if row["disagg"] and not row["is_multinode"]:
        raise ConfigError("DISAGG is true, and IS_MULTINODE is not", where="environment")
    sides = read_variables(table, environ)
    if row["is_multinode"]:
        prefill, decode = sides["num_prefill_gpu"], sides["num_decode_gpu"]
        if prefill <= 0 or prefill + decode <= 0:
            raise ConfigError(f"{prefill} prefill and {decode} decode GPUs: prefill needs one", where="environment")
        if decode <= 0:
            sides |= without_decode(table)
    else:
        prefill, decode = sides["tp"] * sides["pp"] * sides["pcp_size"], 0
    try:
        row |= {"conc": int(raw["max_concurrency"]), "model": raw["model_id"]}
        total, output = float(raw["total_token_throughput"]), float(raw["output_throughput"])
        gpus = {"gpus": prefill + decode, "input_gpus": prefill}
        gpus["output_gpus"] = decode if decode > 0 else prefill + decode
        row |= sides | shares(table, {"total": total, "output": output, "input": total - output, **gpus})
        row |= _statistics(raw)
    except KeyError as error:
        raise ResultError(f"the raw result has no {error.args[0]}") from None
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ResultError(f"the raw result gives no aggregate: {error}") from None
    refuse_not_finite(row)
    return row, (prefill, decode)


def _statistics(raw: Mapping[str, Any]) -> Row:
    """Seconds for each key that ends in ``ms``, and interactivity for each key that contains ``tpot``."""
    row: Row = {}
    for key, value in raw.items():
        name = key.replace("_ms", "")
        if key.endswith("ms"):
            row[name] = float(value) / 1000.0
        if "tpot" in key:
            try:
                row[name.replace("tpot", "intvty")] = 1000.0 / float(value)
            except ZeroDivisionError:
                raise ResultError(f"{key} is 0: the raw result gives no interactivity") from None
    return row


def refuse_not_finite(row: Mapping[str, Any]) -> None:
    """Raise ResultError if a row contains NaN or an infinity. InferenceX writes them, although JSON has none."""
    for key, value in row.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ResultError(f"{key} is {str(value)[:80]}, or has such a number in it: no aggregate is made") from None
