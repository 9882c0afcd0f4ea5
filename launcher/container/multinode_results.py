"""Brings together, in a job's own directory, what its nodes left in the workspace: this job's alone, by name and time.

There it lies as `launcher.result.collect` expects it: results below a directory that names the sequence lengths,
evaluations in ``eval_results``, and logs, from which what failed first is told and which workflows get.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from launcher.container.planned import LOG, MultinodeJob
from launcher.plan.plan import Plan
from launcher.result.contradictions import Window
from launcher.result.logs import log_files
from launcher.result.validate import ResultFileName

_FIXED = re.compile(
    r"(?:concurrency_|(?P<stem>.+)_c)(?P<at>\d{1,7})(?:_req_rate_[^_/]+)?_gpus_(?P<gpus>\d{1,5})"
    r"_ctx_(?P<prefill>\d{1,5})_gen_(?P<decode>\d{1,5})\.json"
)
"""AMD's client names its results by concurrency, those of llm-d and TileRT begin with RESULT_FILENAME."""

_JOB = re.compile(r"slurm_job-(\d+)")
"""How outputs and directories of jobs are called there."""

EVALUATIONS = ("meta_env.json", "results*.json", "sample*.jsonl", "agent_preds.json", "predictions.jsonl")


class Gathered:
    """A job's files, and how its results are called in the workspace (name as sa-bench has it → that name)."""

    def __init__(self, plan: Plan, workspace: Path, own: Path, job_id: str, window: Window) -> None:
        self._plan, self._own, self._window = plan, own, window
        self._workspace, self._job_id = workspace, job_id
        files = MultinodeJob.of(plan).files
        logs = workspace / files.directory
        mine = (files.on_nodes or "").rpartition("/")[2].replace("$JOB", job_id)
        # AMD's scripts leave a directory with the job's id there; where they do not, the directory is this job's.
        self._from = [logs / "logs" / mine] if mine else [logs]
        self._output = list(logs.glob(f"slurm_job-{job_id}.*")) if logs.is_dir() else []
        self.names: dict[str, str] = {}
        self._taken: dict[Path, Path] = {}

    @property
    def logs(self) -> Path:
        return self._own / "logs"

    def gather(self) -> None:
        """Take the files. Raises OSError."""
        expected = self._plan.results
        for path in self._output:  # the log is the same file under another name, or where that cannot be leads to it
            log = self.logs / LOG
            if path.suffix == ".out" and log.is_symlink():
                log.unlink()
            self._take(path, log if path.suffix == ".out" else self.logs / path.name)
        for root in self._from:
            for path in self._fresh(root):
                relative = path.relative_to(root)
                if any(job != self._job_id for job in _JOB.findall(str(relative))):  # it names another job
                    continue
                self._take(path, self.logs / relative)
                if path.parent.name == "eval_results":
                    self._take(path, self.logs / "eval_results" / path.name)
                self._result(path)
        evaluated = self.logs / "eval_results"
        for path in self._fresh(self._workspace, deep=False):
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in expected.logs if "/" not in pattern):
                self._take(path, self.logs / path.name)
            if expected.eval and any(fnmatch.fnmatch(path.name, pattern) for pattern in EVALUATIONS):
                self._take(path, evaluated / path.name)
            self._result(path)

    def _result(self, path: Path) -> None:
        """A result of fixed lengths, under the name that it is read by."""
        expected, found = self._plan.results, _FIXED.fullmatch(path.name)
        if expected.mode != "fixed" or found is None or found["stem"] not in (None, expected.filename):
            return
        name = f"results_concurrency_{found['at']}_gpus_{found['gpus']}_ctx_{found['prefill']}_gen_{found['decode']}"
        above = path.parent.name  # where it names sequence lengths
        folder = above if re.search(r"isl_\d+_osl_\d+", above) else f"results_isl_{expected.isl}_osl_{expected.osl}"
        target = path.name if found["stem"] else f"{expected.filename}_{path.name}"
        self.names[f"{name}.json"] = target
        self._take(path, self.logs / folder / f"{name}.json")

    def _fresh(self, root: Path, *, deep: bool = True) -> Iterator[Path]:
        """The files below a directory that were written while the job ran."""
        if not root.is_dir() or root.is_symlink():
            return
        for path, status in log_files(root) if deep else ((p, p.lstat()) for p in sorted(root.iterdir())):
            if (
                not path.is_symlink()
                and path.is_file()
                and self._window.time_problem(status.st_mtime, path.name) is None
            ):
                yield path

    def _take(self, path: Path, target: Path) -> None:
        """A file under another name: the same one where that can be, or else a copy, with its time, which is made again
        when the file has changed. The first of several that would have one name has it."""
        if self._taken.setdefault(target, path) != path:
            return
        if target.exists():
            there, now = target.stat(), path.stat()
            if os.path.samestat(there, now) or (there.st_size, there.st_mtime) == (now.st_size, now.st_mtime):
                return
            target.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(path)
        except OSError:  # another file system, or another user's file
            shutil.copy2(path, target)

    def named(self, folder: str, name: ResultFileName) -> str:
        """How a result is called in the workspace (`CollectRequest.name`)."""
        split = name.split or (0, 0)
        own = f"results_concurrency_{name.concurrency}_gpus_{name.gpus}_ctx_{split[0]}_gen_{split[1]}.json"
        return self.names[own]
