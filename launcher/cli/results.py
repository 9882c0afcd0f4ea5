"""`launcher results`: the table of results again, whole; and what InferenceX publishes of them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError, ResultError
from launcher.core.reading import json_of
from launcher.core.state import state_directory
from launcher.core.terminal import one_line, say, styled
from launcher.result import aggregates
from launcher.result.summary import rows, write_table
from launcher.run.fields import LARGEST


def results(arguments: argparse.Namespace) -> int:
    """Show what runs and sweeps measured, or aggregate it."""
    names: list[str] = arguments.names
    state = state_directory(os.environ, arguments.state)
    if names[:1] == ["aggregate"]:
        return _aggregate(names[1:], state, arguments)
    if not names:
        raise ConfigError("results of what?", hint="launcher results RUN|SWEEP …; `launcher status` lists the runs")
    from launcher.report.gather import gather

    gathered = gather(names, state)
    for problem in gathered.problems:
        print(one_line(problem), file=sys.stderr)
    found, whole = _summaries([Path(run.source) for run in gathered.runs.values() if run.source])
    if arguments.csv:
        from launcher.report.assemble import document
        from launcher.report.files import points_csv

        sys.stdout.write(points_csv(document(gathered, title=" ".join(names), made="")))
    elif arguments.json:
        print(json.dumps(found, indent=2))
    elif found:
        write_table(found, styled(sys.stdout), os.environ)
    else:
        say("no run of these has ended: launcher status RUN")
    return 0 if whole and not gathered.problems else ResultError.exit_code


def _summaries(directories: Iterable[Path]) -> tuple[list[dict[str, Any]], bool]:
    """The summaries of the runs in these directories, and whether they are all; one that cannot be read, or makes no
    rows of the table, is told and passed over."""
    found, whole = [], True
    for directory in directories:
        path = directory / "summary.json"
        try:
            summary = json_of(path, LARGEST) if path.exists() else None
            if summary is not None:
                rows([summary])
        except (OSError, ValueError) as error:
            why = str(error)
        except (TypeError, LookupError, AttributeError, OverflowError) as error:
            why = f"it is of another form ({error!r}), launcher collect RUN makes it anew"
        else:
            found += [] if summary is None else [summary]
            continue
        whole = False
        print(f"{one_line(str(path))}: it cannot be read: {one_line(why)}", file=sys.stderr)
    return found, whole


def show_table(directories: Sequence[Path]) -> None:
    """Write the table of the runs in these directories, as it stood when they ended, if any did."""
    if found := _summaries(directories)[0]:
        write_table(found, styled(sys.stdout), os.environ)


def _aggregate(names: Sequence[str], state: Path, arguments: argparse.Namespace) -> int:
    """Write aggregates: of a job's workspace, of runs again, or of a directory of artifacts collected."""
    if arguments.from_env:
        _of_job(Path(os.environ.get("GITHUB_WORKSPACE") or "."))
        return 0
    if not names:
        hint = "launcher results aggregate RUN|DIR …, or --from-env in a job's workspace"
        raise ConfigError("aggregates of what?", hint=hint)
    for name in names:
        if (state / "runs" / name / "run.json").is_file():
            _of_run(state / "runs", name)
        elif Path(name).is_dir():
            _collected(Path(name), Path(arguments.output))
        else:
            raise ConfigError(f"there is no run or directory {name}", where=str(state), hint="launcher status")
    return 0


def _of_job(workspace: Path) -> None:
    """What the workflow's step "Process result" does, by the variables of the job."""
    from launcher.benchmark.benchmark import AGENTIC

    if not (stem := os.environ.get("RESULT_FILENAME")):
        raise ConfigError("RESULT_FILENAME is not set", where="environment")
    if os.environ.get("SCENARIO_TYPE") == AGENTIC:
        rows = [aggregates.aggregate_agentic(workspace, stem, os.environ)]
    elif os.environ.get("IS_MULTINODE", "").lower() == "true":
        rows = aggregates.aggregate_several_nodes(workspace, stem, os.environ)
    else:
        rows = [aggregates.aggregate_fixed(workspace, stem, os.environ)]
    say(f"{len(rows)} aggregates in {workspace}")


def _of_run(runs: Path, name: str) -> None:
    """The aggregates of a run again, from its collected results."""
    from launcher.run.record import RunRecord

    record = RunRecord.load(runs, name)
    by_hand = record.fields.results != "workspace"
    directory = record.directory / "results" if by_hand else Path(record.plan.workspace.path)
    published = record.step("collect").facts.get("published", {})
    logs = Path(record.job.output, "logs") if record.job is not None else None
    wrong = aggregates.aggregate_run(directory, record.plan.benchmark, published, logs)
    if wrong:
        raise ResultError("\n".join(wrong), where=f"run {name}")
    say(f"run {name}: {len(list(directory.glob('agg_*.json')))} aggregates in {directory}")


def _collected(directory: Path, output: Path) -> None:
    """The rows of a directory of artifacts in two lists, as the workflow has them: benchmarks and evaluations."""
    from launcher.result.evaluation_rows import evaluation_rows

    rows = []
    for path in sorted(directory.rglob("*.json")):
        try:
            row = aggregates.document(path)
        except ResultError as error:
            print(f"passed over: {one_line(str(error))}", file=sys.stderr)
            continue
        if isinstance(row, dict) and "infmax_model_prefix" in row and {"tput_per_gpu", "request_metrics"} & row.keys():
            rows.append(row)
    lists = {"agg_bmk.json": rows, "agg_eval_all.json": evaluation_rows(directory)}
    if not any(lists.values()):
        raise ResultError("no aggregate and no evaluation is below it", where=str(directory))
    for name, found in lists.items():
        if found:
            aggregates.write(output / name, found)
            say(f"{output / name}: {len(found)} rows")
