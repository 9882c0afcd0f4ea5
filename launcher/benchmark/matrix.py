"""Matrix files: they are read and validated, what is selected becomes entries, and an entry becomes a benchmark."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.benchmark.benchmark import FIXED, Benchmark, Role
from launcher.benchmark.expand import dram_budget, entries_of, mark_evaluations
from launcher.benchmark.fields import DECODE_FIELDS, FIELDS, PREFILL_FIELDS, parse_setting, read_entry
from launcher.benchmark.matrix_schema import AgenticRow, Config, MultiConfig, MultiRow, RunnerLabels, SingleConfig
from launcher.benchmark.selection import SelectedRow, Selection, listed, selected_rows, why_empty
from launcher.core.errors import ConfigError
from launcher.core.yaml_source import Document, Key, SourceLocation, convert

RUNNERS_FILE = "runners.yaml"


@dataclass(frozen=True, eq=False)
class Entry:
    """An entry as InferenceX's generator gives it (``data``), its key in the matrix, and where it stands.

    ``data`` shares parts with other entries of its row: read it, do not change it.
    """

    key: str
    data: Mapping[str, Any]
    place: SourceLocation = field(repr=False)

    @property
    def where(self) -> str:
        """``file:line`` of its row."""
        return str(self.place)

    @cached_property
    def benchmark(self) -> Benchmark:
        """What a job measures for this entry.

        A row of several nodes that is only *marked* (``run-eval`` without ``eval-only``) gives the throughput job:
        InferenceX's workflows run its evaluation as a second job, which is the entry that ``Selection(evals="only")``
        gives. A marked row of one node with fixed lengths gives a job that does both.
        """
        source = f"{self.place.document.path} ({self.key})"
        return benchmark_of(self.data, key=self.key, source=source, place=self.place)


def benchmark_of(data: Mapping[str, Any], *, key: str | None, source: str, place: SourceLocation | str) -> Benchmark:
    """The benchmark that an entry in InferenceX's JSON shape means; errors name ``place``.

    A single-node entry has its topology on the prefill side. Raises ConfigError for an additional setting that is
    refused.
    """
    values = read_entry(data, FIELDS)
    values["concurrencies"] = tuple(data["conc"]) if isinstance(data["conc"], list) else (data["conc"],)
    multinode = "prefill" in data
    if multinode:
        sides = [data["prefill"], data["decode"]]
        values["prefill"] = Role(**read_entry(data["prefill"], PREFILL_FIELDS))
        values["decode"] = Role(**read_entry(data["decode"], DECODE_FIELDS))
    else:
        sides = []
        values["prefill"] = Role(workers=1, **read_entry(data, PREFILL_FIELDS))
    if values.get("eval_only"):
        values["run_eval"] = True
        if multinode:
            all_of_them = data.get("eval-all-concs")
            values["eval_concurrencies"] = values["concurrencies"] if all_of_them else (data["eval-conc"],)
    elif not multinode and data.get("run-eval") and values.get("scenario", FIXED) == FIXED:
        values["run_eval"] = True
    # Where both sides have a setting, that of decode counts, as in the workflow's shell line.
    settings = dict(parse_setting(text, place) for side in sides for text in side.get("additional-settings") or ())
    return Benchmark(**values, multinode=multinode, settings=settings, key=key, source=source)


@dataclass(frozen=True)
class Family:
    """What stands under one key of a matrix file: its topologies and their concurrencies."""

    key: str
    config: Config
    document: Document

    def place(self, *keys: Key) -> SourceLocation:
        """A place below the key."""
        return SourceLocation(self.document, self.key, *keys)


@dataclass(frozen=True)
class Matrix:
    """The families of some matrix files by key, in the files' order, and the hardware behind runner labels.

    ``labels`` is None when there is no runners file; then entries that need a node's DRAM are an error.
    """

    families: Mapping[str, Family]
    files: tuple[str, ...]
    labels: RunnerLabels | None = None

    def entries(self, selection: Selection | None = None) -> list[Entry]:
        """The selected entries, in the files' order. Raises ConfigError, with what comes near, when there are none."""
        selection = selection or Selection()
        families = self._families(selection)
        found = [
            (family, selected, data)
            for family in families
            for selected in selected_rows(family.config, selection)
            for data in entries_of(family.config, selected, self._dram(family, selected))
        ]
        if not found:
            wrong, hint = why_empty(selection, {family.key: family.config for family in families})
            raise ConfigError(wrong, where=self._where, hint=hint)
        if selection.evals != "none":
            mark_evaluations([data for _, _, data in found], agentic=selection.evals == "only")
        if selection.evals == "only":
            found = self._marked(found)
        return [Entry(family.key, data, family.place(*selected.path)) for family, selected, data in found]

    @property
    def _where(self) -> str:
        return ", ".join(self.files)

    def _families(self, selection: Selection) -> list[Family]:
        for pattern in selection.keys:
            if not any(fnmatch.fnmatchcase(key, pattern) for key in self.families):
                near = difflib.get_close_matches(pattern.strip("*"), self.families, n=5, cutoff=0.4)
                hint = f"near keys: {', '.join(near)}" if near else f"keys: {listed(list(self.families))}"
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

    def _dram(self, family: Family, selected: SelectedRow) -> int:
        """GB of a node's DRAM that KV offloading of this row may take; 0 where it takes none.

        Raises ConfigError where the node's DRAM is not known, or the row's GPUs do not fit the nodes.
        """
        row, utilization = selected.row, selected.dram_utilization
        # The schema refuses dram without a utilization.
        if not isinstance(row, AgenticRow) or row.kv_offloading == "none" or utilization is None:
            return 0
        runner, place = family.config.runner, family.place(*selected.path)
        needs = f"kv-offloading: dram needs the DRAM and the GPUs of a node of {runner!r}"
        if self.labels is None:
            hint = f"name a runners file, or put {RUNNERS_FILE} beside the matrix"
            raise ConfigError(f"{needs}, and no runners file was read", where=str(place), hint=hint)
        if (hardware := self.labels.hardware.get(runner)) is None:
            hint = f"it has: {', '.join(sorted(self.labels.hardware)) or 'none'}"
            raise ConfigError(f"{needs}, which the runners file does not have", where=str(place), hint=hint)
        try:
            return dram_budget(row, utilization, hardware)
        except ValueError as error:
            raise ConfigError(f"{error} (runner {runner})", where=str(place)) from None


Found = tuple[Family, SelectedRow, dict[str, Any]]


def load_matrix(paths: Sequence[Path | str], runners_file: Path | str | None = None) -> Matrix:
    """Read matrix files and a runners file: the one named, or `runners.yaml` beside the first matrix file that has it.

    Raises ConfigError with file and line for whatever `matrix_schema` refuses, for a key that is in two files, and for
    additional settings that are refused.
    """
    families: dict[str, Family] = {}
    for path in map(Path, paths):
        document = Document.read(path)
        for key, data in document.mapping().items():
            family = _family(document, key, data)
            if key in families:
                raise ConfigError(
                    f"key {key!r} is in two files",
                    where=str(family.place()),
                    hint=f"the first is at {families[key].place()}",
                )
            families[key] = family
    beside = [found for path in paths if (found := Path(path).with_name(RUNNERS_FILE)).is_file()]
    source = runners_file if runners_file is not None else next(iter(beside), None)
    labels = None if source is None else convert(Document.read(Path(source)), RunnerLabels)
    return Matrix(families, tuple(map(str, paths)), labels)


def _family(document: Document, key: Any, data: Any) -> Family:
    if not isinstance(key, str) or set("*?[") & set(key):
        raise ConfigError(
            f"key {key!r}: expected plain text without *, ? and [, which select keys", where=document.location((key,))
        )
    if not isinstance(data, dict):
        raise ConfigError(f"{key}: expected a mapping", where=document.location((key,)))
    kind: type[Config] = MultiConfig if data.get("multinode") is True else SingleConfig
    family = Family(key, convert(document, kind, under=(key,)), document)
    for path, _, row in family.config.rows():
        if isinstance(row, MultiRow):
            for role, worker in (("prefill", row.prefill), ("decode", row.decode)):
                for k, text in enumerate(worker.additional_settings or ()):
                    parse_setting(text, family.place(*path, role, "additional-settings", k))
    return family
