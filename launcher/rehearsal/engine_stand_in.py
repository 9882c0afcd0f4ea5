"""A stand-in for what runs inside a job: it leaves the files of srt-slurm's orchestrator, in a second instead of hours.

It is started as ``python -m launcher.rehearsal.engine_stand_in OUTPUT_DIR [CONFIG_NAME]`` by the batch script, or as
`run_embedded` by the embedded scheduler. Its standard output is the job's ``sweep_<job>.log``, with the lines that a
real one has (recorded with srt-slurm c88ef731). It starts no server: results come from `launcher.rehearsal.results`
and say so.

Environment: LAUNCHER_REHEARSAL_SECONDS (the time of each concurrency, 0.3), LAUNCHER_REHEARSAL_FAULTS
(`requested_faults`), and what real jobs read: SLURM_JOB_ID, SLURM_JOB_NODELIST, EVAL_ONLY, RUN_EVAL, EVAL_CONC,
INFMAX_WORKSPACE, RESULT_FILENAME.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launcher.benchmark.benchmark import agentic_result_name
from launcher.core import process
from launcher.core.errors import ConfigError, LauncherError, suggest
from launcher.rehearsal import results
from launcher.rehearsal.results import Topology
from launcher.rehearsal.srtctl_contract import MARK, load_cluster, resolve, stand_in_data
from launcher.srtctl.facts import recipe_facts

RULE = "=" * 42
CONFIG_WAIT = 20.0
"""Seconds to wait for the configuration: srtctl writes it after the submission, when the job may already run."""

FAULTS = "LAUNCHER_REHEARSAL_FAULTS"


def requested_faults(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The requested faults, name → value ("" without one). Raises ConfigError for one that stand_ins.yaml lacks."""
    requested = (os.environ if environ is None else environ).get(FAULTS, "")
    known = stand_in_data().faults
    faults: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in requested.split(","))):
        name, _, value = item.partition("=")
        if name not in known:
            hint = suggest(name, known, ", ".join(sorted(known)))
            raise ConfigError(f"no such fault {name!r}", where=FAULTS, hint=hint)
        faults[name] = value
    return faults


def main() -> int:
    """Run the job of a command line. Returns its exit code."""
    output, config_name, *_ = [*sys.argv[1:], "config.yaml"]
    return run_job(Path(output), config_name, os.environ)


def run_embedded(output_base: str, config_name: str) -> None:
    """Run the job as a function of the embedded scheduler: only inside is the job's id known. Exits with its code."""
    code = run_job(Path(output_base) / os.environ["SLURM_JOB_ID"], config_name, os.environ)
    if code:
        raise SystemExit(code)


def run_job(output: Path, config_name: str, environ: Mapping[str, str]) -> int:
    """Run the whole job: banner, orchestrator, banner. Returns the exit code of srt-slurm's batch script."""
    job_id = environ.get("SLURM_JOB_ID", output.name)
    (output / "logs").mkdir(parents=True, exist_ok=True)
    config, deadline = output / config_name, time.monotonic() + CONFIG_WAIT
    while not config.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    _say(RULE, "🚀 srtctl Sweep Orchestrator (rehearsal: no GPU, nothing is measured)", RULE, f"Job ID: {job_id}")
    _say(f"Config: {config}", f"Nodes: {environ.get('SLURM_JOB_NUM_NODES', 1)}", f"Start: {time.ctime()}", RULE, "")
    _say(f"Runtime config: {config}", "", "Preparing srtctl environment...")
    _say("Running orchestrator on host (with srun access)...", "")
    try:
        code = _Orchestrator(output, config, job_id, environ).run()
    except (LauncherError, OSError, ValueError, TypeError, yaml.YAMLError) as error:
        _log("ERROR", "Fatal error")
        _say(f"{type(error).__name__}: {error}")
        code = 1
    verdict = f"✗ Sweep failed (exit code: {code})" if code else "✓ Sweep completed successfully"
    _say("", RULE, verdict, f"End: {time.ctime()}", RULE)
    return code


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _log(level: str, *lines: str) -> None:
    _say(*(f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{level}] {line}" for line in lines))


@dataclass(frozen=True)
class _Worker:
    role: str
    index: int
    node: str

    @property
    def log(self) -> str:
        return f"{self.node}_{self.role}_w{self.index}.out"


class _Orchestrator:
    """One job: ``output`` is its directory, ``config`` the recipe in it, ``environ`` the job's environment."""

    def __init__(self, output: Path, config: Path, job_id: str, environ: Mapping[str, str]) -> None:
        self.output, self.logs = output, output / "logs"
        self.config, self.job_id, self.environ = config, job_id, environ
        cluster, warning = load_cluster(environ, Path.cwd())
        if warning:
            _log("WARNING", warning)
        self.text = config.read_text()
        self.document = resolve(yaml.safe_load(self.text), cluster)
        self.facts = recipe_facts(self.document)
        self.faults = requested_faults(environ)
        self.seconds = float(environ.get("LAUNCHER_REHEARSAL_SECONDS") or 0.3)
        self.per_node = self.facts.gpus_per_node or 4
        sides = self._worker_groups()
        self.topology = Topology(*sides[0][1:], *sides[-1][1:], aggregated=len(sides) == 1)
        self.nodes = self._nodes()
        self.workers = self._workers(sides)
        self.model = self.facts.served_model_name or Path(str(self.facts.model_path)).name

    def run(self) -> int:
        name = self.facts.name or "unnamed"
        _log("INFO", f"Loaded config: {name}")
        model, container = str(self.facts.model_path), str(self.facts.container)
        if not model.startswith("hf:") and not Path(model).exists():
            raise FileNotFoundError(f"Model path does not exist: {Path(model).resolve()}")
        if not container.startswith(("/", "./")):
            _log("WARNING", f"rehearsal: pyxis would pull {container} from a registry")
        elif not Path(container).is_file():
            raise FileNotFoundError(f"Container image path does not exist: {container}")
        _log("INFO", "Sweep Orchestrator", f"Job ID: {self.job_id}", f"Run name: {name}_{self.job_id}")
        _log("INFO", f"Head node: {self.nodes[0]}", f"Worker nodes: {', '.join(self.nodes)}")
        lock = {"lock": {"job_id": self.job_id, "nodes": self.nodes, **MARK}}
        (self.output / "recipe.lock.yaml").write_text(f"{self.text}\n{yaml.safe_dump(lock, sort_keys=False)}")
        _log("INFO", f"Wrote lockfile: {self.output / 'recipe.lock.yaml'}")
        self._write_json("resource_snapshot.json", {"nodes": self.nodes, "gpus": self.topology.gpus, **MARK})
        for worker in self.workers:
            started = f"Starting {worker.role} worker {worker.index} on {worker.node}"
            _log("INFO", started, f"Log: {self.logs / worker.log}")
            (self.logs / worker.log).write_text(f"rehearsal: {worker.role} worker {worker.index} is ready\n")
            fingerprint = {"arch": os.uname().machine, **MARK}
            self._write_json(f"fingerprint_{worker.role}_w{worker.index}.json", fingerprint)
        _log("INFO", f"Started {len(self.workers)} worker processes")
        (self.logs / f"{self.nodes[0]}_frontend_0.out").write_text("rehearsal: frontend is ready\n")
        (self.logs / "infra.out").write_text("rehearsal: nats and etcd are ready\n")
        _log("INFO", "Waiting for workers to be ready...")
        time.sleep(float(self.faults.get("slow-start") or min(self.seconds, 0.1)))
        prefills = 0 if self.topology.aggregated else self.topology.prefill_workers
        _log("INFO", f"Model is ready. Have {prefills} prefills and {self.topology.decode_workers} decodes.")
        _log("INFO", "Server is healthy - starting benchmark")
        code = self._measure()
        _log("INFO", "Cleanup")
        for file in ("config.yaml", "sbatch_script.sh", f"{self.job_id}.json", self.config.name):
            if (self.output / file).is_file():
                shutil.copy(self.output / file, self.logs / file)
                _log("INFO", f"Copied {file} to log directory")
        benchmark = {"model": self.model, "isl": self.facts.isl, "osl": self.facts.osl}
        rollup = {"benchmark_type": self.facts.benchmark_type, "config": benchmark, **MARK}
        self._write_json("benchmark-rollup.json", rollup)
        return code or int(self.faults.get("exit") or 0)

    def _measure(self) -> int:
        only = self.environ.get("EVAL_ONLY", "").lower() == "true"
        if only:
            _log("INFO", "EVAL_ONLY=true: Skipping benchmark stage and running lm-eval evaluation...")
        else:
            agentic = self.facts.benchmark_type != "sa-bench"
            kind = "Custom" if agentic else "SA-Bench"
            _log("INFO", f"Running {kind} benchmark", f"Log: {self.logs / 'benchmark.out'}")
            if not self._benchmark(agentic):
                return 1
            _log("INFO", "Benchmark completed successfully")
        if only or self.environ.get("RUN_EVAL", "").lower() == "true":
            self._evaluate()
        return 0

    def _benchmark(self, agentic: bool) -> bool:
        """Measure every concurrency in turn; False when a worker died meanwhile."""
        concurrencies = self.facts.concurrencies or ()
        if agentic:
            benchmark_env = (self.document.get("benchmark") or {}).get("env") or {}
            environ = {**self.environ, **{k: str(v) for k, v in benchmark_env.items()}}
            concurrency_list = environ.get("CONC_LIST") or environ.get("CONC") or ""
            concurrencies = tuple(int(n) for n in re.findall(r"\d+", concurrency_list))
        with (self.logs / "benchmark.out").open("a") as out:
            for number, concurrency in enumerate(concurrencies):
                last = number == len(concurrencies) - 1
                out.write(f"Running benchmark with concurrency: {concurrency}\n")
                out.flush()
                time.sleep(self.seconds)
                if not (last and "partial-results" in self.faults):
                    self._write_result(concurrency, agentic, last)
                out.write(f"Completed benchmark with concurrency: {concurrency}\n{'-' * 41}\n")
                if "worker-death" in self.faults:
                    self._report_death(self.workers[-1])
                    return False
                while "hang" in self.faults:
                    time.sleep(1)
            out.write("SA-Bench complete.\n" if not agentic else "")
        return True

    def _report_death(self, worker: _Worker) -> None:
        name = f"{worker.role}_{worker.index}_{worker.node}"
        with (self.logs / worker.log).open("a") as out:
            out.write("rehearsal: torch.OutOfMemoryError: CUDA out of memory\n")
        critical = f"Critical process '{name}' exited with code 137"
        _log("ERROR", critical, "Critical process failure detected!", "FAILURE DETAILS")
        _log("ERROR", f"--- Process: {name} ---\nExit code: 137\nNode: {worker.node}")
        _log("ERROR", f"Log file: {self.logs / worker.log}")

    def _write_result(self, concurrency: int, agentic: bool, last: bool) -> None:
        seed, t = self.facts.name or "", self.topology
        if agentic:
            document = results.agentic_result(t, concurrency, model=self.model, seed=seed)
            directory = Path(self.environ.get("INFMAX_WORKSPACE") or self.logs / "agentic")
            path = directory / agentic_result_name(self.environ.get("RESULT_FILENAME", "result"), concurrency)
            (self.logs / f"agentic/conc_{concurrency}").mkdir(parents=True, exist_ok=True)
        else:
            isl, osl = self.facts.isl or 1024, self.facts.osl or 1024
            mult = (self.document.get("benchmark") or {}).get("num_prompts_mult")
            each = mult if isinstance(mult, int) else 10
            document = results.benchmark_result(
                t, concurrency, isl, osl, model=self.model, prompts_each=each, seed=seed
            )
            name = f"results_concurrency_{concurrency}_gpus_{t.gpus}_ctx_{t.prefill_total}_gen_{t.decode_total}.json"
            if t.aggregated:  # srtctl gives sa-bench the GPUs of the nodes here, not those of the workers
                nodes = self.facts.aggregated.nodes if self.facts.aggregated else None
                name = f"results_concurrency_{concurrency}_gpus_{(nodes or 1) * self.per_node}.json"
            path = self.logs / f"sa-bench_isl_{isl}_osl_{osl}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(results.result_text(document, self.faults, last=last))

    def _evaluate(self) -> None:
        requested = re.findall(r"\d+", self.environ.get("EVAL_CONC", ""))
        concurrencies = [int(n) for n in requested] or [max(self.facts.concurrencies or (1,))]
        _log("INFO", f"Eval concurrency: {' '.join(map(str, concurrencies))}")
        time.sleep(self.seconds)
        directory = self.logs / "eval_results"
        directory.mkdir(exist_ok=True)
        for name, document in results.eval_documents(self.environ, concurrencies, self.model).items():
            (directory / name).write_text(json.dumps(document) + "\n")
        (self.logs / "eval.out").write_text("rehearsal: evaluated\n")
        _log("INFO", "Eval completed successfully")

    def _worker_groups(self) -> list[tuple[str, int, int]]:
        """(role, number of workers, GPUs per worker) for prefill and decode, or for aggregated workers alone."""
        facts = self.facts
        if facts.aggregated is not None and facts.aggregated.workers:
            sides = [("agg", facts.aggregated)]
        elif facts.prefill is not None and facts.decode is not None:
            sides = [("prefill", facts.prefill), ("decode", facts.decode)]
        else:
            raise ValueError("the recipe has neither aggregated workers nor prefill and decode ones")
        return [(role, side.workers or 1, side.gpus_per_worker or self.per_node) for role, side in sides]

    def _nodes(self) -> list[str]:
        node_list = self.environ.get("SLURM_JOB_NODELIST", "")
        if node_list:
            done = process.run(["scontrol", "show", "hostnames", node_list], timeout=60)
            if done.ok and done.stdout.split():
                return done.stdout.split()
        return [f"node{i + 1:02d}" for i in range(self.facts.nodes or 1)]

    def _workers(self, sides: list[tuple[str, int, int]]) -> list[_Worker]:
        """The workers, placed on the nodes in order. Each role, and a worker that does not fit, begins a new node."""
        workers, used = [], 0  # used GPUs, with those left over on full nodes
        for role, count, gpus in sides:
            for index in range(count):
                if index == 0 or used % self.per_node + gpus > self.per_node:
                    used = math.ceil(used / self.per_node) * self.per_node
                workers.append(_Worker(role, index, self.nodes[used // self.per_node % len(self.nodes)]))
                used += gpus
        return workers

    def _write_json(self, name: str, document: Mapping[str, Any]) -> None:
        (self.logs / name).write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
