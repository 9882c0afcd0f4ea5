"""Reads and validates matrix files, makes entries of the selected rows, and a benchmark of an entry."""

from __future__ import annotations

import contextlib
import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from launcher.benchmark.benchmark import FIXED, Benchmark, Role
from launcher.benchmark.expand import (
    SelectedRow,
    Selection,
    dram_budget,
    expand_row,
    explain_empty,
    mark_evaluations,
    selected_rows,
    shortened_list,
)
from launcher.benchmark.family import Family, RefusedKey, families_in
from launcher.benchmark.fields import DECODE_FIELDS, FIELDS, PREFILL_FIELDS, parse_setting, read_entry
from launcher.benchmark.matrix_schema import Agentic, AgenticRow, RunnerLabels
from launcher.core.errors import ConfigError
from launcher.core.lines import count_of
from launcher.core.reading import read_file
from launcher.core.yaml_source import LARGEST_FILE, Document, SourceLocation, convert

RUNNERS_FILE = "runners.yaml"


@dataclass(frozen=True, eq=False)
class Entry:
    """An entry as InferenceX's generator makes it (``data``), its key in the matrix, and the place of its row.

    ``data`` shares parts with other entries of the row, so it must not be changed.
    """

    key: str
    data: Mapping[str, Any]
    place: SourceLocation = field(repr=False)

    @cached_property
    def benchmark(self) -> Benchmark:
        """The benchmark that a job measures for this entry.

        For a row of several nodes that is only *marked* (``run-eval`` without ``eval-only``) that is the throughput
        job: InferenceX's workflows run its evaluation as a second job, which is the entry of
        ``Selection(evals="only")``. For a marked row of one node with fixed lengths one job does both.
        """
        source = f"{self.place.document.path} ({self.key})"
        return benchmark_of(self.data, key=self.key, source=source, place=self.place)


def benchmark_of(data: Mapping[str, Any], *, key: str | None, source: str, place: SourceLocation | str) -> Benchmark:
    """The benchmark of an entry in InferenceX's JSON form; errors name ``place``.

    The topology of a single-node entry becomes the prefill side. Raises ConfigError for an invalid additional setting.
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
            evaluate_all = data.get("eval-all-concs")
            values["eval_concurrencies"] = values["concurrencies"] if evaluate_all else (data["eval-conc"],)
    elif not multinode and data.get("run-eval") and values.get("scenario", FIXED) == FIXED:
        values["run_eval"] = True
    # When both sides have a setting, that of decode counts, as in the workflow's shell line.
    settings = dict(parse_setting(text, place) for side in sides for text in side.get("additional-settings") or ())
    return Benchmark(**values, multinode=multinode, settings=settings, key=key, source=source)


@dataclass(frozen=True)
class Matrix:
    """The families of some matrix files by key, in the files' order, and the hardware behind runner labels.

    ``labels`` is None when there is no runners file; then entries that need a node's DRAM are an error. ``refused``
    are the invalid keys and files, ``labels_error`` is the error of the runners file.
    """

    families: Mapping[str, Family]
    files: tuple[str, ...]
    labels: RunnerLabels | None = None
    refused: tuple[RefusedKey, ...] = ()
    labels_error: ConfigError | None = None

    def entries(self, selection: Selection | None = None, refused: list[ConfigError] | None = None) -> list[Entry]:
        """The selected entries, in the files' order. Raises ConfigError, with similar names, when there are none.

        Errors of invalid keys and rows that are selected are added to ``refused``, and the other entries are returned;
        without that list the first error is raised.
        """
        selection = selection or Selection()
        errors: list[ConfigError] = []
        entries: list[tuple[Family, SelectedRow, dict[str, Any]]] = []
        families = self._families(selection, errors)
        for family in families:
            if family.refused:
                # An invalid row has no concurrencies to compare.
                rows = selected_rows(family.config, replace(selection, concurrencies=()))
                errors += [family.refused[row.path] for row in rows if row.path in family.refused]
            for selected in selected_rows(family.config, selection):
                if selected.path not in family.refused:
                    try:
                        dram = self._dram(family, selected)
                    except ConfigError as error:
                        errors.append(error)
                        continue
                    entries += [(family, selected, data) for data in expand_row(family.config, selected, dram)]
        if errors and refused is None:
            raise errors[0]
        if refused is not None:
            refused += errors
        if not entries and errors:
            return []
        if not entries:
            message, hint = explain_empty(selection, {family.key: family.config for family in families})
            raise ConfigError(message, where=self._where, hint=hint)
        if selection.evals != "none":
            mark_evaluations([data for _, _, data in entries], agentic=selection.evals == "only")
        if selection.evals == "only":
            count = count_of(len(entries), "selected entry", "selected entries")
            entries = [(family, selected, data) for family, selected, data in entries if data["run-eval"]]
            if not entries:
                hint = "marked are 8k1k entries of concurrency 16 and more, and agentic ones"
                raise ConfigError(f"none of the {count} is marked for evaluation", where=self._where, hint=hint)
            for _, _, data in entries:
                data["eval-only"] = True
        return [Entry(family.key, data, family.place(*selected.path)) for family, selected, data in entries]

    @property
    def _where(self) -> str:
        return ", ".join(self.files)

    def _families(self, selection: Selection, errors: list[ConfigError]) -> list[Family]:
        """The families of the selected keys; the errors of selected keys that are invalid are added to ``errors``."""
        refused_keys = [(refused.key, refused.error) for refused in self.refused if refused.key is not None]
        unread = [refused.error for refused in self.refused if refused.key is None]
        errors += [error for key, error in refused_keys if selection.wants_key(key)]
        if any(pattern not in self.families for pattern in selection.keys or ["*"]):
            errors += unread  # the selected key may be in such a file
        keys = [*self.families, *(key for key, _ in refused_keys)]
        for pattern in selection.keys:
            if not unread and not any(fnmatch.fnmatchcase(key, pattern) for key in keys):
                import difflib  # only needed for a typing error

                near = difflib.get_close_matches(pattern.strip("*"), keys, n=5, cutoff=0.4)
                hint = f"near keys: {', '.join(near)}" if near else f"keys: {shortened_list(keys)}"
                raise ConfigError(f"no key matches {pattern!r}", where=self._where, hint=hint)
        return [family for family in self.families.values() if selection.wants_key(family.key)]

    def _dram(self, family: Family, selected: SelectedRow) -> int:
        """GB of a node's DRAM that KV offloading of this row may use; 0 when the row does not offload.

        Raises ConfigError when the node's DRAM is not known, or the row's GPUs do not fit the nodes.
        """
        row, scenario = selected.row, selected.scenario
        if not isinstance(row, AgenticRow) or not isinstance(scenario, Agentic) or row.kv_offloading == "none":
            return 0
        assert scenario.dram_utilization is not None  # the schema refuses kv-offloading without it
        runner, place = family.config.runner, family.place(*selected.path)
        needs = f"kv-offloading: dram needs the DRAM and the GPUs of a node of {runner!r}"
        if self.labels_error is not None:
            raise self.labels_error
        if self.labels is None:
            hint = f"name a runners file, or put {RUNNERS_FILE} beside the matrix"
            raise ConfigError(f"{needs}, and no runners file was read", where=str(place), hint=hint)
        if (hardware := self.labels.hardware.get(runner)) is None:
            hint = f"it has: {', '.join(sorted(self.labels.hardware)) or 'none'}"
            raise ConfigError(f"{needs}, which the runners file does not have", where=str(place), hint=hint)
        try:
            return dram_budget(row, scenario.dram_utilization, hardware)
        except ValueError as error:
            raise ConfigError(f"{error} (runner {runner})", where=str(place)) from None


def load_matrix(
    paths: Sequence[Path | str],
    runners_file: Path | str | None = None,
    *,
    strict: bool = True,
    keys: Sequence[str] = (),
) -> Matrix:
    """Read matrix files and a runners file: the one named, or `runners.yaml` beside the first matrix file that has it.

    Raises ConfigError with file and line for whatever `matrix_schema` refuses, for a key that is in two files, and for
    invalid additional settings. With ``strict=False`` the matrix has the valid rest, and `Matrix.entries` reports the
    errors of what is selected. With globs in ``keys`` only the keys that they match may be read.
    """
    families: dict[str, Family] = {}
    refused: list[RefusedKey] = []
    selected = _selected_keys(paths, keys) if keys else {}
    for path in map(Path, paths):
        try:
            families_of_file = [*families_in(selected.get(path) or Document.read(path, strict=False))]
        except ConfigError as error:
            refused.append(RefusedKey(None, error))
            continue
        for family in families_of_file:
            if isinstance(family, RefusedKey):
                refused.append(family)
            elif family.key in families:
                message, hint = f"key {family.key!r} is in two files", f"the first is at {families[family.key].place()}"
                refused.append(RefusedKey(family.key, ConfigError(message, where=str(family.place()), hint=hint)))
            else:
                families[family.key] = family
    for invalid in refused:
        families.pop(invalid.key or "", None)
    runners_files = (Path(path).with_name(RUNNERS_FILE) for path in paths)
    source = runners_file if runners_file is not None else next(filter(Path.is_file, runners_files), None)
    labels, labels_error = None, None
    try:
        labels = None if source is None else convert(Document.read(Path(source)), RunnerLabels)
    except ConfigError as error:
        labels_error = error
    row_errors = [error for family in families.values() for error in family.refused.values()]
    if strict and (errors := [*(invalid.error for invalid in refused), *row_errors, *filter(None, [labels_error])]):
        raise errors[0]
    return Matrix(families, tuple(map(str, paths)), labels, tuple(refused), labels_error)


_KEY_LINE = re.compile(r"^([A-Za-z0-9][A-Za-z0-9_.-]*):[ \t]*(?:#.*)?$", re.MULTILINE)
_MARGIN_LINE = re.compile(r"^[^ #\r\n]", re.MULTILINE)
_COMMENT = re.compile(r"^ *#.*$", re.MULTILINE)
_OTHER_LINE_BREAK = re.compile(r"\r(?!\n)|[\x85\u2028\u2029]")


def _selected_keys(paths: Sequence[Path | str], keys: Sequence[str]) -> dict[Path, Document]:
    """Documents of the matrix files with only the selected keys, at their lines: parsing the others takes most time.

    A file that cannot be split with certainty is left out. The result is empty when a glob matches no key of the split
    files, because similar keys are looked for in whole files.
    """
    documents: dict[Path, Document] = {}
    matched = set[str]()
    for path in map(Path, paths):
        with contextlib.suppress(OSError, UnicodeDecodeError, ConfigError):
            if (parts := _split_by_key(read_file(path, LARGEST_FILE).decode("utf-8"))) is not None:
                wanted = {key for key, _ in parts if any(fnmatch.fnmatchcase(key, glob) for glob in keys)}
                text = "".join(part if key in wanted else "\n" * part.count("\n") for key, part in parts)
                documents[path] = Document(path, text, strict=False) if wanted else Document(path, "{}")
                matched |= wanted
    return documents if all(any(fnmatch.fnmatchcase(key, glob) for key in matched) for glob in keys) else {}


def _split_by_key(text: str) -> list[tuple[str, str]] | None:
    """A file's top-level keys with their text; the text before the first key has the key "".

    None when a line at the margin is not just a key, or may be inside a quoted text or brackets, or when YAML counts
    more line ends than ``\\n``.
    """
    starts = [*_KEY_LINE.finditer(text)]
    if len(starts) != len(_MARGIN_LINE.findall(text)) or _OTHER_LINE_BREAK.search(text):
        return None
    ends = [*(start.start() for start in starts[1:]), len(text)]
    parts = [(start[1], text[start.start() : end]) for start, end in zip(starts, ends, strict=False)]
    for _, part in parts:
        bare = _COMMENT.sub("", part) if "#" in part else part
        if any(bare.count(quote) % 2 for quote in "\"'") or any(
            bare.count(a) != bare.count(b) for a, b in ("[]", "{}")
        ):
            return None
    return [("", text[: starts[0].start()]), *parts] if starts else None
