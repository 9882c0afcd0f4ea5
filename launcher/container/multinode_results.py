"""Links the files that a job's nodes left in the workspace into the job's own directory, selected by name and time.

The directory is then as `launcher.result.collect` expects it: results below a directory that names the sequence
lengths, evaluations in ``eval_results``, and logs, in which the first failure is searched for and which workflows get.
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
"""AMD's client names results by concurrency only; results of llm-d and TileRT begin with RESULT_FILENAME."""

_JOB = re.compile(r"slurm_job-(\d+)")
"""The name of a job's output and directories."""

EVALUATIONS = ("meta_env.json", "results*.json", "sample*.jsonl", "agent_preds.json", "predictions.jsonl")


class NodeFiles:
    """A job's files. ``names`` maps sa-bench's name of a result to its name in the workspace."""

    def __init__(self, plan: Plan, workspace: Path, own: Path, job_id: str, window: Window) -> None:
        self._plan, self._own, self._window = plan, own, window
        self._workspace, self._job_id = workspace, job_id
        files = MultinodeJob.of(plan).files
        logs = workspace / files.directory
        job_directory = (files.on_nodes or "").rpartition("/")[2].replace("$JOB", job_id)
        # AMD's scripts make a directory with the job's id; without these scripts all of ``logs`` is this job's.
        self._source = logs / "logs" / job_directory if job_directory else logs
        self._output = list(logs.glob(f"slurm_job-{job_id}.*")) if logs.is_dir() else []
        self.names: dict[str, str] = {}
        self._linked: dict[Path, Path] = {}

    @property
    def logs(self) -> Path:
        return self._own / "logs"

    def gather(self) -> None:
        """Link all files of the job. Raises OSError."""
        expected = self._plan.results
        log = self.logs / LOG
        for path in self._output:
            if path.suffix == ".out" and log.is_symlink():  # made by `complete_directory` if it could not hard-link
                log.unlink()
            self._link(path, log if path.suffix == ".out" else self.logs / path.name)
        evaluations = self.logs / "eval_results"
        for path in self._new_files(self._source):
            relative = path.relative_to(self._source)
            if any(job != self._job_id for job in _JOB.findall(str(relative))):
                continue
            self._link(path, self.logs / relative)
            if path.parent.name == "eval_results":
                self._link(path, evaluations / path.name)
            self._link_fixed_result(path)
        for path in self._new_files(self._workspace, deep=False):
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in expected.logs if "/" not in pattern):
                self._link(path, self.logs / path.name)
            if expected.eval and any(fnmatch.fnmatch(path.name, pattern) for pattern in EVALUATIONS):
                self._link(path, evaluations / path.name)
            self._link_fixed_result(path)

    def _link_fixed_result(self, path: Path) -> None:
        """Link a result of fixed lengths under sa-bench's name, which `launcher.result.collect` reads."""
        expected, match = self._plan.results, _FIXED.fullmatch(path.name)
        if expected.mode != "fixed" or match is None or match["stem"] not in (None, expected.filename):
            return
        counts = f"gpus_{match['gpus']}_ctx_{match['prefill']}_gen_{match['decode']}"
        name = f"results_concurrency_{match['at']}_{counts}.json"
        folder = path.parent.name
        if not re.search(r"isl_\d+_osl_\d+", folder):
            folder = f"results_isl_{expected.isl}_osl_{expected.osl}"
        self.names[name] = path.name if match["stem"] else f"{expected.filename}_{path.name}"
        self._link(path, self.logs / folder / name)

    def _new_files(self, root: Path, *, deep: bool = True) -> Iterator[Path]:
        """The files below a directory (or, without ``deep``, in it) that were written while the job ran."""
        if not root.is_dir() or root.is_symlink():
            return
        for path, status in log_files(root) if deep else ((p, p.lstat()) for p in sorted(root.iterdir())):
            if (
                not path.is_symlink()
                and path.is_file()
                and self._window.time_problem(status.st_mtime, path.name) is None
            ):
                yield path

    def _link(self, path: Path, target: Path) -> None:
        """Hard-link a file as ``target``; if that is impossible, copy it with its time, again whenever it has changed.
        If several files have one target, the first is used."""
        if self._linked.setdefault(target, path) != path:
            return
        if target.exists():
            old, new = target.stat(), path.stat()
            if os.path.samestat(old, new) or (old.st_size, old.st_mtime) == (new.st_size, new.st_mtime):
                return
            target.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(path)
        except OSError:  # another file system, or another user's file
            shutil.copy2(path, target)

    def result_name(self, folder: str, name: ResultFileName) -> str:
        """A result's name in the workspace (`CollectRequest.name`)."""
        prefill, decode = name.split or (0, 0)
        return self.names[f"results_concurrency_{name.concurrency}_gpus_{name.gpus}_ctx_{prefill}_gen_{decode}.json"]
