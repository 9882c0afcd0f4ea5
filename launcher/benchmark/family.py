"""What stands under one key of a matrix file: read so that a bad row is refused alone, and a bad key alone."""

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
from launcher.core.yaml_source import Document, Key, SourceLocation, error_path, schema_error

_ROW = 5
"""Steps from a key to a row: ``scenarios``, the scenario's kind, its index, ``search-space``, the row's index."""


class Family(msgspec.Struct, frozen=True):
    """What stands under one key of a matrix file: its topologies and their concurrencies.

    ``refused`` are the rows that cannot be understood, by their path; in ``config`` another stands in their place.
    """

    key: str
    config: Config
    document: Document
    refused: Mapping[RowPath, ConfigError] = msgspec.field(default_factory=dict)

    def place(self, *keys: Key) -> SourceLocation:
        """A place below the key."""
        return SourceLocation(self.document, self.key, *keys)


class RefusedKey(msgspec.Struct, frozen=True):
    """A key of a matrix file that cannot be understood; None stands for all keys of a file that cannot be read."""

    key: str | None
    error: ConfigError


def families_in(document: Document) -> Iterator[Family | RefusedKey]:
    """What stands under each key of a matrix file. Raises ConfigError for what is no mapping."""
    twice = _twice(document)
    for key, data in document.mapping().items():
        if key in twice:
            yield RefusedKey(key, twice[key])
            continue
        try:
            yield _family(document, key, data)
        except ConfigError as error:
            yield RefusedKey(key if isinstance(key, str) else None, error)


def _twice(document: Document) -> dict[Any, ConfigError]:
    """The top-level keys below which a mapping has a key twice, or that are there twice themselves."""
    found: dict[Any, ConfigError] = {}
    if document.repeated:
        keys = list(document.mapping())
        lines = [int(document.location((key,)).rpartition(":")[2]) for key in keys]
        for word, line in document.repeated:
            above = keys[max(bisect_right(lines, line) - 1, 0)]
            where = f"{document.path}:{line}"
            found.setdefault(
                word if word in document.mapping() and line in lines else above,
                ConfigError(f"not valid YAML: key {word!r} is given twice", where=where),
            )
    return found


def _family(document: Document, key: Any, data: Any) -> Family:
    """What stands under one key. Raises ConfigError where more than single rows is wrong, or no row is right."""
    if not isinstance(key, str) or set("*?[") & set(key):
        raise ConfigError(
            f"key {key!r}: expected plain text without *, ? and [, which select keys", where=document.location((key,))
        )
    if not isinstance(data, dict):
        raise ConfigError(f"{key}: expected a mapping", where=document.location((key,)))
    multinode = data.get("multinode") is True
    kind: type[Config] = MultiConfig if multinode else SingleConfig
    refused: dict[RowPath, ConfigError] = {}
    while True:
        try:
            config: Config = msgspec.convert(data, prepare_type(kind))
        except msgspec.ValidationError as error:
            path = tuple(error_path(error)[:_ROW])
            wrong = schema_error(document, error, kind, under=(key,))
            if not _is_row(data, path) or path in refused:
                raise wrong from None
            refused[path] = wrong
            data = _with_row(data, path, _other_row(multinode, path[1] == AGENTIC, data))
        else:
            break
    family = Family(key, config, document)
    for path, _, row in config.rows():
        if path not in refused and (found := _wrong_setting(family, path, row)) is not None:
            refused[path] = found
    if len(refused) == sum(1 for _ in config.rows()):
        raise next(iter(refused.values()))
    return Family(key, config, document, refused)


def _wrong_setting(family: Family, path: RowPath, row: object) -> ConfigError | None:
    if isinstance(row, MultiRow):
        for role, worker in (("prefill", row.prefill), ("decode", row.decode)):
            for k, text in enumerate(worker.additional_settings or ()):
                try:
                    parse_setting(text, family.place(*path, role, "additional-settings", k))
                except ConfigError as error:
                    return error
    return None


def _is_row(data: Any, path: RowPath) -> bool:
    for key in path:
        inside = isinstance(data, list) and isinstance(key, int) and key < len(data)
        if not inside and not (isinstance(data, dict) and key in data):
            return False
        data = data[key]
    return len(path) == _ROW and path[3] == "search-space"


def _with_row(data: Any, path: RowPath, row: dict[str, Any]) -> Any:
    """A copy with another row at ``path``; the document keeps its own, by whose identity lines are found."""
    if not path:
        return row
    copy = data.copy()
    copy[path[0]] = _with_row(data[path[0]], path[1:], row)
    return copy


def _other_row(multinode: bool, agentic: bool, data: Mapping[str, Any]) -> dict[str, Any]:
    """A row that the schema takes, to stand where one is that it does not take: what is beside it is still judged."""
    if not multinode:
        return {"tp": 1, "conc-list": [1], **({"kv-offloading": "none"} if agentic else {})}
    worker = {"num-worker": 1, "tp": 1, "ep": 1, "dp-attn": False}
    transfer = {} if data.get("kv-p2p-transfer") is not None else {"kv-p2p-transfer": "none"}
    return {"prefill": worker, "decode": worker, "conc-list": [1], **transfer}
