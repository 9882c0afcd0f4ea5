"""Reads the keys of a matrix file, so that an invalid row or key is refused alone and the others are still read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from launcher.benchmark.benchmark import AGENTIC
from launcher.benchmark.fields import parse_setting
from launcher.benchmark.matrix_schema import Config, MultiConfig, MultiRow, RowPath, SingleConfig
from launcher.core.errors import ConfigError
from launcher.core.reading import prepare_type
from launcher.core.yaml_source import Document, Key, SourceLocation, depth_reached, error_path, schema_error

_ROW_DEPTH = 5
"""Length of a row's path below its key: ``scenarios``, a kind of scenario, its index, ``search-space``, an index."""


class Family(msgspec.Struct, frozen=True):
    """One key of a matrix file: its topologies and their concurrencies.

    ``refused`` has the error of each invalid row, by its path; ``config`` has a placeholder in its place.
    """

    key: str
    config: Config
    document: Document
    refused: Mapping[RowPath, ConfigError] = msgspec.field(default_factory=dict)

    def place(self, *keys: Key) -> SourceLocation:
        """A place below the key."""
        return SourceLocation(self.document, self.key, *keys)


class RefusedKey(msgspec.Struct, frozen=True):
    """A key of a matrix file that is invalid; its ``key`` is None when the whole file cannot be read."""

    key: str | None
    error: ConfigError


def families_in(document: Document) -> Iterator[Family | RefusedKey]:
    """The family of each key of a matrix file. Raises ConfigError for a file that is no mapping."""
    repeated = _repeated_keys(document)
    for key, data in document.mapping().items():
        if key in repeated:
            yield RefusedKey(key, repeated[key])
            continue
        try:
            yield _read_family(document, key, data)
        except ConfigError as error:
            yield RefusedKey(key if isinstance(key, str) else None, error)


def _repeated_keys(document: Document) -> dict[Any, ConfigError]:
    """The errors of top-level keys that are given twice, or that have a mapping with a key given twice."""
    errors: dict[Any, ConfigError] = {}
    if document.repeated:
        keys = list(document.mapping())
        lines = [int(document.location((key,)).rpartition(":")[2]) for key in keys]
        for repeated_key, line in document.repeated:
            key = keys[max(bisect_right(lines, line) - 1, 0)]
            if repeated_key in document.mapping() and line in lines:
                key = repeated_key
            message = f"not valid YAML: key {repeated_key!r} is given twice"
            errors.setdefault(key, ConfigError(message, where=f"{document.path}:{line}"))
    return errors


def _read_family(document: Document, key: Any, data: Any) -> Family:
    """The family of one key. Raises ConfigError when something beside rows is invalid, or when no row is valid."""
    if not isinstance(key, str) or set("*?[") & set(key):
        message = f"key {key!r}: expected plain text without *, ? and [, which select keys"
        raise ConfigError(message, where=document.location((key,)))
    if not isinstance(data, dict):
        raise ConfigError(f"{key}: expected a mapping", where=document.location((key,)))
    multinode = data.get("multinode") is True
    kind: type[Config] = MultiConfig if multinode else SingleConfig
    refused: dict[RowPath, ConfigError] = {}
    while True:
        try:
            config: Config = msgspec.convert(data, prepare_type(kind))
        except msgspec.ValidationError as error:
            path = tuple(error_path(error)[:_ROW_DEPTH])
            row_error = schema_error(document, error, kind, under=(key,))
            is_row = depth_reached(data, path) == _ROW_DEPTH and path[3] == "search-space"
            if not is_row or path in refused:
                raise row_error from None
            refused[path] = row_error
            data = _with_row(data, path, _placeholder_row(multinode, path[1] == AGENTIC, data))
        else:
            break
    family = Family(key, config, document, refused)
    for path, _, row in config.rows():
        if path not in refused and isinstance(row, MultiRow):
            try:
                _check_settings(family, path, row)
            except ConfigError as error:
                refused[path] = error
    if len(refused) == sum(1 for _ in config.rows()):
        raise next(iter(refused.values()))
    return family


def _check_settings(family: Family, path: RowPath, row: MultiRow) -> None:
    for role, worker in (("prefill", row.prefill), ("decode", row.decode)):
        for i, text in enumerate(worker.additional_settings or ()):
            parse_setting(text, family.place(*path, role, "additional-settings", i))


def _with_row(data: Any, path: RowPath, row: dict[str, Any]) -> Any:
    """A copy with another row at ``path``. The document keeps its own row, because lines are found by identity."""
    if not path:
        return row
    copy = data.copy()
    copy[path[0]] = _with_row(data[path[0]], path[1:], row)
    return copy


def _placeholder_row(multinode: bool, agentic: bool, data: Mapping[str, Any]) -> dict[str, Any]:
    """A valid row to replace an invalid one with, so that the rest of the family is still checked."""
    if not multinode:
        return {"tp": 1, "conc-list": [1], **({"kv-offloading": "none"} if agentic else {})}
    worker = {"num-worker": 1, "tp": 1, "ep": 1, "dp-attn": False}
    transfer = {} if data.get("kv-p2p-transfer") is not None else {"kv-p2p-transfer": "none"}
    return {"prefill": worker, "decode": worker, "conc-list": [1], **transfer}
