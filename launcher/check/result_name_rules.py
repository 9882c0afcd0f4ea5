"""Rules about the names of result files: how long they get, and whether two rows share one."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from launcher.benchmark.benchmark import Benchmark
from launcher.benchmark.environment import result_filename
from launcher.benchmark.result_names import agentic_result_name, fixed_result_name
from launcher.check.engine import Found, Rule, rule
from launcher.check.inputs import CheckInput, Row
from launcher.core.errors import ConfigError
from launcher.core.publish import NAME_MAX
from launcher.srtctl.planned import SrtctlResolved

_AGGREGATE, _AUDIT = "agg_", "power_validation_"
"""What the workflow's process_result.py puts before the name of a result of fixed lengths."""


@rule("name-too-long", "error", "a result file's name is longer than a name may be")
def name_too_long(s: SrtctlResolved) -> Iterator[Found]:
    # A benchmark that came with its result's name is a workflow's, which aggregates each result under a longer name.
    before = _AGGREGATE if s.benchmark.result_filename and not s.benchmark.agentic else ""
    longest = max((before + name for name in _result_names(s.benchmark, s.plan.results.filename)), key=_bytes)
    if _bytes(longest) > NAME_MAX:
        yield f"{longest} has {_bytes(longest)} bytes, and a name may have {NAME_MAX}", s.benchmark.source


def _result_names(b: Benchmark, stem: str) -> Iterator[str]:
    prefill, decode = (r.workers * r.gpus_per_worker if r else 0 for r in (b.prefill, b.decode))
    split = (prefill, decode) if b.disagg else None
    for concurrency in b.concurrencies or (0,):
        if b.agentic:
            yield agentic_result_name(stem, concurrency)
        else:
            yield fixed_result_name(stem, f"sa-bench_isl_{b.isl}_osl_{b.osl}", concurrency, prefill + decode, split)


def _bytes(name: str) -> int:
    return len(name.encode())


def _workflow_name(row: Row, runners: Mapping[str, Sequence[str]], *, fingerprint: bool) -> str:
    """RESULT_FILENAME in a workflow, on the runner of the row's label whose name is longest.

    Raises ConfigError for a row that cannot have one, and so has no plan either.
    """
    b = row.benchmark
    physical = runners.get(b.runner) or [f"{p}_0" for p in (row.file.runner.runners if row.file else ())] or [b.runner]
    if fingerprint:
        b = dataclasses.replace(b, recipe_fingerprint="f" * 64)
    return result_filename(b, max(physical, key=len))


@rule("workflow-name-too-long", "error", "a name that the workflow makes of a result's is longer than a name may be")
def workflow_name_too_long(given: CheckInput) -> Iterator[Found]:
    for row in given.rows:
        longest = _longest(given, row, _AGGREGATE)
        if longest is not None and _bytes(longest) > NAME_MAX:
            yield f"in a workflow, {longest} would have {_bytes(longest)} bytes of {NAME_MAX}", row.place


@rule("audit-name-too-long", "warning", "the power audit's name is longer than a name may be")
def audit_name_too_long(given: CheckInput) -> Iterator[Found]:
    """The audit is lost then, and nothing else: so the rows of a key are said together, where no power is measured."""
    harmless: dict[str | None, list[tuple[Row, int]]] = defaultdict(list)
    for row in given.rows:
        name, longest = _longest(given, row, _AGGREGATE), _longest(given, row, _AUDIT)
        if name is None or longest is None or _bytes(name) > NAME_MAX or _bytes(longest) <= NAME_MAX:
            continue
        if row.job is not None and row.job.power:
            yield f"in a workflow, {longest} would have {_bytes(longest)} bytes of {NAME_MAX}", row.place, "error"
        else:
            harmless[row.benchmark.key].append((row, _bytes(longest)))
    for rows in harmless.values():
        most = max(length for _, length in rows)
        who = "a row" if len(rows) == 1 else f"{len(rows)} rows"
        message = f"in a workflow, {_AUDIT}… of {who} of this key would have up to {most} bytes of {NAME_MAX}"
        yield f"{message}, and be lost", rows[0][0].place


def _longest(given: CheckInput, row: Row, before: str) -> str | None:
    """The longest name that begins so; None for a row whose results the workflow does not process."""
    if row.benchmark.agentic or row.benchmark.eval_only or row.plan is None:
        return None
    stem = _workflow_name(row, given.runners, fingerprint=True)
    return max((before + name for name in _result_names(row.benchmark, stem)), key=_bytes)


@rule("name-duplicate", "warning", "rows share the name of their results")
def name_duplicate(given: CheckInput) -> Iterator[Found]:
    """Throughput rows get a fingerprint in a sweep, and so collide only in an end-to-end run; evaluations get none."""
    for rows, kind in ((given.rows, "without a fingerprint (an end-to-end run)"), (given.evaluations, "of evaluation")):
        named: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            with contextlib.suppress(ConfigError):
                named[_workflow_name(row, given.runners, fingerprint=False)].append(row)
        for shared in named.values():
            first, *others = shared
            for row in others:
                message = f"results {kind} have the name of those of {first.benchmark.key}'s row at {first.place}"
                yield message, row.place, "error" if row.benchmark.eval_only else "warning"


RULES: Sequence[Rule[SrtctlResolved]] = (name_too_long,)
WHOLE: Sequence[Rule[CheckInput]] = (workflow_name_too_long, audit_name_too_long, name_duplicate)
