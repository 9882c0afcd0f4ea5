"""Matrix files: read and validate them, and expand what is selected of them into entries."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import msgspec

from launcher.benchmark import evals
from launcher.benchmark.benchmark import AGENTIC, FIXED
from launcher.benchmark.expand import AgenticRow, Config, Path, dram_budget, expand
from launcher.benchmark.matrix_entry import Entry
from launcher.benchmark.matrix_schema import MultiAgentic, MultiConfig, MultiFixed, RunnerLabels, SingleConfig
from launcher.benchmark.selection import Selection, some, why_empty
from launcher.benchmark.settings import parse_setting
from launcher.core.errors import ConfigError
from launcher.core.validation import schema_error
from launcher.core.yaml_source import Document, Key, Place

RUNNERS_FILE = "runners.yaml"


@dataclass(frozen=True)
class Family:
    """What stands under one key of a matrix file: its topologies and their concurrencies."""

    key: str
    config: Config
    document: Document

    def place(self, *keys: Key) -> Place:
        """A place below the key."""
        return Place(self.document, self.key, *keys)


@dataclass(frozen=True)
class Matrix:
    """The families of some matrix files by key, in the files' order, and the hardware behind runner labels.

    ``labels`` is None when no runners file is at hand; then entries that need a node's DRAM cannot be had.
    """

    families: Mapping[str, Family]
    files: tuple[str, ...]
    labels: RunnerLabels | None = None

    def entries(self, selection: Selection | None = None) -> list[Entry]:
        """The selected entries, in the files' order. Raises ConfigError when there are none, saying what comes near."""
        selection = selection or Selection()
        families = self._families(selection)
        found = [
            (family, path, data)
            for family in families
            if selection.wants_config(family.config)
            for path, data in expand(family.config, selection, partial(self._budget, family))
        ]
        if not found:
            wrong, hint = why_empty(selection, [(f.key, data) for f in families for data in _every_entry(f.config)])
            raise ConfigError(wrong, where=self._where, hint=hint)
        if selection.evals != "none":
            evals.mark([data for _, _, data in found], agentic=selection.evals == "only")
        if selection.evals == "only":
            found = self._marked(found)
        return [Entry(family.key, data, family.place(*path)) for family, path, data in found]

    @property
    def _where(self) -> str:
        return ", ".join(self.files)

    def _families(self, selection: Selection) -> list[Family]:
        for pattern in selection.keys:
            if not any(fnmatch.fnmatchcase(key, pattern) for key in self.families):
                near = difflib.get_close_matches(pattern.strip("*"), self.families, n=5, cutoff=0.4)
                hint = f"near keys: {', '.join(near)}" if near else f"keys: {some(list(self.families))}"
                raise ConfigError(f"no key matches {pattern!r}", where=self._where, hint=hint)
        return [family for family in self.families.values() if selection.wants_key(family.key)]

    def _marked(self, found: list[Found]) -> list[Found]:
        marked = [item for item in found if item[2]["run-eval"]]
        if not marked:
            raise ConfigError(
                f"none of the {len(found)} selected entries is marked for evaluation",
                where=self._where,
                hint="marked are 8k1k entries of concurrency 16 and more, and agentic ones",
            )
        for _, _, data in marked:
            data["eval-only"] = True
        return marked

    def _budget(self, family: Family, row: AgenticRow, utilization: float | None, path: Path) -> int:
        if row.kv_offloading == "none" or utilization is None:  # the schema refuses dram without a utilization
            return 0
        runner = family.config.runner
        hardware = self.labels.hardware.get(runner) if self.labels else None
        if hardware is None:
            known = ", ".join(sorted(self.labels.hardware)) if self.labels else ""
            raise ConfigError(
                f"kv-offloading: dram needs the DRAM and the GPUs of a node of {runner!r}"
                + (", which the runners file does not tell" if self.labels else ", and no runners file is read"),
                where=str(family.place(*path)),
                hint=f"it tells of: {known}"
                if known
                else f"name a runners file, or put {RUNNERS_FILE} beside the matrix",
            )
        try:
            return dram_budget(row, utilization, hardware)
        except ValueError as error:
            raise ConfigError(f"{error} (runner {runner})", where=str(family.place(*path))) from None


Found = tuple[Family, Path, dict[str, Any]]


def load_matrix(paths: Sequence[FilePath | str], runners_file: FilePath | str | None = None) -> Matrix:
    """Read matrix files and a runners file: the one named, or `runners.yaml` beside the first matrix file that has it.

    Raises ConfigError with file and line for anything that is not as `matrix_schema` has it, for a key that stands in
    two files, and for additional settings that are not acceptable.
    """
    families: dict[str, Family] = {}
    for path in map(FilePath, paths):
        document = Document.read(path)
        for key, data in document.mapping().items():
            family = _family(document, key, data)
            if key in families:
                raise ConfigError(
                    f"key {key!r} stands in two files",
                    where=str(family.place()),
                    hint=f"first: {families[key].place()}",
                )
            families[key] = family
    beside = [found for path in paths if (found := FilePath(path).with_name(RUNNERS_FILE)).is_file()]
    source = runners_file if runners_file is not None else next(iter(beside), None)
    return Matrix(families, tuple(map(str, paths)), None if source is None else _labels(FilePath(source)))


def _family(document: Document, key: Any, data: Any) -> Family:
    if not isinstance(key, str) or set("*?[") & set(key):
        raise ConfigError(f"key {key!r} is not a plain text: globs are for selecting", where=document.where((key,)))
    if not isinstance(data, dict):
        raise ConfigError(f"{key}: a mapping is expected here", where=document.where((key,)))
    kind: type[Config] = MultiConfig if data.get("multinode") is True else SingleConfig
    try:
        family = Family(key, msgspec.convert(data, kind), document)
    except msgspec.ValidationError as error:
        raise schema_error(document, error, kind, under=(key,)) from None
    if isinstance(family.config, MultiConfig):
        _check_settings(family, family.config)
    return family


def _check_settings(family: Family, config: MultiConfig) -> None:
    groups: tuple[tuple[str, Sequence[MultiFixed | MultiAgentic]], ...] = (
        (FIXED, config.scenarios.fixed_seq_len),
        (AGENTIC, config.scenarios.agentic_coding),
    )
    for scenario, group in groups:
        for i, space in enumerate(group):
            for j, row in enumerate(space.search_space):
                for role, worker in (("prefill", row.prefill), ("decode", row.decode)):
                    for k, text in enumerate(worker.additional_settings or ()):
                        place = ("scenarios", scenario, i, "search-space", j, role, "additional-settings", k)
                        parse_setting(text, family.place(*place))


def _labels(path: FilePath) -> RunnerLabels:
    document = Document.read(path)
    try:
        return msgspec.convert(document.mapping(), RunnerLabels)
    except msgspec.ValidationError as error:
        raise schema_error(document, error, RunnerLabels) from None


def _every_entry(config: Config) -> Iterator[dict[str, Any]]:
    """All entries of a configuration, with no look at hardware: to tell what could have been selected."""
    return (data for _, data in expand(config, Selection(), lambda row, utilization, path: 0))
