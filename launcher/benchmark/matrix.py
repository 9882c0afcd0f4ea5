"""Matrix files: they are read and validated, what is selected becomes entries, and an entry becomes a benchmark."""

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
    entries_of,
    listed,
    mark_evaluations,
    selected_rows,
    why_empty,
)
from launcher.benchmark.family import Family, RefusedKey, families_in
from launcher.benchmark.fields import DECODE_FIELDS, FIELDS, PREFILL_FIELDS, parse_setting, read_entry
from launcher.benchmark.matrix_schema import AgenticRow, RunnerLabels
from launcher.core.errors import ConfigError
from launcher.core.lines import count_of
from launcher.core.reading import read_file
from launcher.core.yaml_source import LARGEST_FILE, Document, SourceLocation, convert

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
class Matrix:
    """The families of some matrix files by key, in the files' order, and the hardware behind runner labels.

    ``labels`` is None when there is no runners file; then entries that need a node's DRAM are an error.
    ``refused`` are the keys and files that cannot be understood, ``labels_error`` says so of the runners file.
    """

    families: Mapping[str, Family]
    files: tuple[str, ...]
    labels: RunnerLabels | None = None
    refused: tuple[RefusedKey, ...] = ()
    labels_error: ConfigError | None = None

    def entries(self, selection: Selection | None = None, refused: list[ConfigError] | None = None) -> list[Entry]:
        """The selected entries, in the files' order. Raises ConfigError, with what comes near, when there are none.

        What is selected and cannot be understood is added to ``refused``, and the others are given; without such a
        list it raises.
        """
        selection = selection or Selection()
        wrong: list[ConfigError] = []
        found: list[Found] = []
        families = self._families(selection, wrong)
        for family in families:
            wrong += _refused_rows(family, selection)
            for selected in selected_rows(family.config, selection):
                if selected.path not in family.refused:
                    try:
                        dram = self._dram(family, selected)
                    except ConfigError as error:
                        wrong.append(error)
                        continue
                    found += [(family, selected, data) for data in entries_of(family.config, selected, dram)]
        if wrong and refused is None:
            raise wrong[0]
        if refused is not None:
            refused += wrong
        if not found and wrong:
            return []
        if not found:
            why, hint = why_empty(selection, {family.key: family.config for family in families})
            raise ConfigError(why, where=self._where, hint=hint)
        if selection.evals != "none":
            mark_evaluations([data for _, _, data in found], agentic=selection.evals == "only")
        if selection.evals == "only":
            found = self._marked(found)
        return [Entry(family.key, data, family.place(*selected.path)) for family, selected, data in found]

    @property
    def _where(self) -> str:
        return ", ".join(self.files)

    def _families(self, selection: Selection, wrong: list[ConfigError]) -> list[Family]:
        """The families of the selected keys; what is wrong with those that are none is added to ``wrong``."""
        keys = [*self.families, *(one.key for one in self.refused if one.key is not None)]
        unread = [one.error for one in self.refused if one.key is None]
        wrong += [one.error for one in self.refused if one.key is not None and selection.wants_key(one.key)]
        if any(pattern not in self.families for pattern in selection.keys or ["*"]):
            wrong += unread  # what is selected may be in there
        for pattern in selection.keys:
            if not unread and not any(fnmatch.fnmatchcase(key, pattern) for key in keys):
                import difflib  # for who makes a mistake

                near = difflib.get_close_matches(pattern.strip("*"), keys, n=5, cutoff=0.4)
                hint = f"near keys: {', '.join(near)}" if near else f"keys: {listed(keys)}"
                raise ConfigError(f"no key matches {pattern!r}", where=self._where, hint=hint)
        return [family for family in self.families.values() if selection.wants_key(family.key)]

    def _marked(self, found: list[Found]) -> list[Found]:
        marked = [item for item in found if item[2]["run-eval"]]
        if not marked:
            raise ConfigError(
                f"none of the {count_of(len(found), 'selected entry', 'selected entries')} is marked for evaluation",
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
        if self.labels_error is not None:
            raise self.labels_error
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


def _refused_rows(family: Family, selection: Selection) -> list[ConfigError]:
    """What is wrong with the rows of a family that are selected by all that is known of them."""
    if not family.refused:
        return []
    rows = {selected.path for selected in selected_rows(family.config, replace(selection, concurrencies=()))}
    return [error for path, error in family.refused.items() if path in rows]


def load_matrix(
    paths: Sequence[Path | str],
    runners_file: Path | str | None = None,
    *,
    strict: bool = True,
    keys: Sequence[str] = (),
) -> Matrix:
    """Read matrix files and a runners file: the one named, or `runners.yaml` beside the first matrix file that has it.

    Raises ConfigError with file and line for whatever `matrix_schema` refuses, for a key that is in two files, and for
    additional settings that are refused. With ``strict=False`` the matrix has the rest, and what is wrong is said of
    what is selected. Of globs in ``keys`` it may have the keys alone that they select.
    """
    families: dict[str, Family] = {}
    refused: list[RefusedKey] = []
    selected = _selected_keys(paths, keys) if keys else {}
    for path in map(Path, paths):
        try:
            inside = [*families_in(selected.get(path) or Document.read(path, strict=False))]
        except ConfigError as error:
            refused.append(RefusedKey(None, error))
            continue
        for family in inside:
            if isinstance(family, RefusedKey):
                refused.append(family)
            elif family.key in families:
                refused.append(RefusedKey(family.key, _in_two_files(family, families[family.key])))
            else:
                families[family.key] = family
    for one in refused:
        families.pop(one.key or "", None)
    beside = [found for path in paths if (found := Path(path).with_name(RUNNERS_FILE)).is_file()]
    source = runners_file if runners_file is not None else next(iter(beside), None)
    labels, labels_error = None, None
    try:
        labels = None if source is None else convert(Document.read(Path(source)), RunnerLabels)
    except ConfigError as error:
        labels_error = error
    rows = [error for family in families.values() for error in family.refused.values()]
    if strict and (wrong := [*(one.error for one in refused), *rows, *filter(None, [labels_error])]):
        raise wrong[0]
    return Matrix(families, tuple(map(str, paths)), labels, tuple(refused), labels_error)


_KEY = re.compile(r"^([A-Za-z0-9][A-Za-z0-9_.-]*):[ \t]*(?:#.*)?$", re.MULTILINE)
_AT_MARGIN = re.compile(r"^[^ #\r\n]", re.MULTILINE)
_COMMENT = re.compile(r"^ *#.*$", re.MULTILINE)
_RARE_BREAK = re.compile(r"\r(?!\n)|[\x85\u2028\u2029]")


def _selected_keys(paths: Sequence[Path | str], keys: Sequence[str]) -> dict[Path, Document]:
    """The matrix files with the keys alone that are selected, each on its own line; the others take most of the time.

    A file that cannot be taken apart with certainty is not there, and none is where a glob selects nothing of those
    that can: what comes near is told of whole files.
    """
    found: dict[Path, Document] = {}
    seen = set[str]()
    for path in map(Path, paths):
        with contextlib.suppress(OSError, UnicodeDecodeError, ConfigError):
            if (parts := _by_key(read_file(path, LARGEST_FILE).decode("utf-8"))) is not None:
                wanted = {key for key, _ in parts if any(fnmatch.fnmatchcase(key, glob) for glob in keys)}
                text = "".join(part if key in wanted else "\n" * part.count("\n") for key, part in parts)
                found[path] = Document(path, text, strict=False) if wanted else Document(path, "{}")
                seen |= wanted
    return found if all(any(fnmatch.fnmatchcase(key, glob) for key in seen) for glob in keys) else {}


def _by_key(text: str) -> list[tuple[str, str]] | None:
    """A file's top-level keys with their text, whatever precedes the first with an empty key.

    None where a line at the margin is no key alone, or might be the inside of a quoted text or of brackets; and where
    YAML sees more lines than ``\\n`` ends.
    """
    starts = [*_KEY.finditer(text)]
    if len(starts) != len(_AT_MARGIN.findall(text)) or _RARE_BREAK.search(text):
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


def _in_two_files(second: Family, first: Family) -> ConfigError:
    return ConfigError(
        f"key {second.key!r} is in two files",
        where=str(second.place()),
        hint=f"the first is at {first.place()}",
    )
