"""A stand-in for srtctl that behaves as recorded.

``python -m launcher.rehearsal.srtctl_stand_in apply -f recipe.yaml`` submits a job. Implemented, from transcripts of
srt-slurm c88ef731, are the options of `apply`; text on stdout, or with ``--json`` on stderr, and then one JSON line for
each submission on stdout after all of them; wrapping and colours by rich; exit codes; selectors; the messages of
preflight and of sbatch's failures; the layout of ``outputs/<job>``; the job's name from RUNNER_NAME. Not implemented
are sweeps, identity checks, recipes from a directory or from standard input, ``--bash``, ``--mock``, the other
subcommands, and messages about files and selectors that the launcher refuses before it submits.

The jobs are real: of `sbatch`, or of the embedded scheduler when LAUNCHER_LOCAL_JOBS names its directory. They run
`launcher.rehearsal.engine_stand_in`. LAUNCHER_REHEARSAL_FAULTS requests failures (`requested_faults`).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from launcher.core import process
from launcher.core.errors import ConfigError, LauncherError
from launcher.core.slurm_notation import limit_seconds
from launcher.rehearsal import srtctl_contract as contract
from launcher.rehearsal.engine_stand_in import requested_faults, run_embedded
from launcher.rehearsal.srtctl_contract import LOCAL_JOBS, Job, Refused
from launcher.slurm.local import submit
from launcher.srtctl import recipe

if TYPE_CHECKING:
    from rich.console import Console

MADE_BY_SETUP = (
    ("configs/nats-server", "configs/nats-server"),
    ("configs/etcd", "configs/etcd"),
    ("bin/uv", "bin/uv (compute-arch uv)"),
    ("bin/tachometer-scraper", "bin/tachometer-scraper (compute-arch Tachometer scraper)"),
)
"""The programs of `make setup` that `apply` requires, and the names that it prints."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; 2 for a wrong command line is raised as SystemExit by argparse."""
    from rich.console import Console

    faults = requested_faults()
    arguments = _parser(faults).parse_args(argv)
    json_mode = bool(getattr(arguments, "json_output", False))
    console = Console(file=sys.stderr) if json_mode else Console()
    command = _Command(console, arguments, faults)
    try:
        path, selector = recipe.split_selector(arguments.config)
        command.run(Path(path), selector)
    except (Refused, ConfigError, OSError) as error:
        if json_mode:
            sys.stdout.write(json.dumps({"status": "error", "error": str(error)}) + "\n")
        else:
            console.print(f"[bold red]Error:[/] {error}")
        return 1
    if json_mode:
        records = command.records or [{"status": "no-submissions"}]
        sys.stdout.write("".join(json.dumps(record) + "\n" for record in records))
    return 0


def _parser(faults: dict[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="srtctl", description="srtctl - SLURM job submission (rehearsal)")
    commands = parser.add_subparsers(dest="command", required=True)
    apply = commands.add_parser("apply", help="Submit job(s) to SLURM")
    apply.add_argument("-f", "--file", required=True, dest="config", metavar="CONFIG", help="file, or file:selector")
    apply.add_argument("-o", "--output", type=Path, dest="output_dir", help="Custom output directory for job logs")
    apply.add_argument("--setup-script", help="Custom setup script in configs/")
    apply.add_argument("--tags", help="Comma-separated tags")
    if "no-json" not in faults:
        apply.add_argument("--json", action="store_true", dest="json_output", help="One JSON line per submission")
    if "no-no-preflight" not in faults:
        apply.add_argument("--no-preflight", action="store_true", help="Skip the pre-submit file system checks")
    return parser


class _Command:
    def __init__(self, console: Console, arguments: argparse.Namespace, faults: dict[str, str]) -> None:
        self.console, self.arguments, self.faults = console, arguments, faults
        self.records: list[dict[str, Any]] = []
        self.cluster: dict[str, Any] = {}

    def run(self, path: Path, selector: str | None) -> None:
        document = yaml.safe_load(path.read_text())
        self.cluster, warning = contract.load_cluster(os.environ, Path.cwd())
        if warning:
            _log("WARNING", warning)
        plain = "base" not in document
        if plain and selector:
            _log("WARNING", f"Selector ':{selector}' ignored — config is not an override file")
        for variant in recipe.variants(document, None if plain else selector):
            raw = {key: value for key, value in variant.document.items() if key != "lock"}
            if not plain:
                label = "base" if variant.suffix == "base" else f"override_{variant.suffix}"
                _log("INFO", f"Override variant: {label} -> {raw.get('name', 'unnamed')}")
            resolved = contract.resolve(raw, self.cluster)
            if "sweep" in raw and plain:
                raise Refused("sweeps are not rehearsed")
            if errors := contract.recipe_errors(resolved):
                raise Refused(f"Invalid config in {path}: {errors}" if plain else str(errors))
            if plain:
                _log("INFO", f"Loaded config: {resolved['name']}")
            self._submit_variant(path, variant, raw, resolved)

    def _submit_variant(
        self, path: Path, variant: recipe.Variant, raw: dict[str, Any], resolved: dict[str, Any]
    ) -> None:
        skipped = "no_preflight" not in self.arguments or self.arguments.no_preflight
        if not skipped and (errors := contract.preflight(raw, self.cluster)):
            raise Refused("\n".join([f"Preflight failed for {path}:", *(f"- {error}" for error in errors)]))
        root = Path(self.cluster.get("srtctl_root") or Path.cwd())
        base = self.arguments.output_dir
        if base is None:
            configured = self.cluster.get("output_dir")
            base = Path(os.path.expandvars(configured)) if configured else root / "outputs"
        config_name = f"config_{variant.suffix}.yaml" if variant.suffix else "config.yaml"
        job = Job(
            name=os.environ.get("RUNNER_NAME") or resolved["name"],
            resolved=resolved,
            cluster=self.cluster,
            root=root,
            output_base=base.resolve(),
            config_name=config_name,
            setup_script=self.arguments.setup_script,
            log=None if "no-log" in self.faults else base.resolve() / "%j/logs/sweep_%j.log",
        )
        if missing := [label for name, label in MADE_BY_SETUP if not (root / name).exists()]:
            self.console.print(f"\n[red bold]ERROR:[/] Required binaries not found in {root}:")
            for label in missing:
                self.console.print(f"  [red]✗[/] {label}")
            self.console.print("\nRun [bold]make setup ARCH=<compute_arch>[/] first:")
            raise SystemExit(1)
        for _ in range(2 if "two-ids" in self.faults else 1):
            self._submit(job, path, variant, base)

    def _submit(self, job: Job, path: Path, variant: recipe.Variant, base: Path) -> None:
        silent, jobs = "silent" in self.faults, os.environ.get(LOCAL_JOBS)
        if not silent:
            self.console.print(f"[bold cyan]🚀 Submitting:[/] {job.resolved['name']}")
        if "fail" in self.faults:
            raise self._sbatch_failed("/tmp/rehearsal.slurm", "sbatch: error: rehearsal: refused on request")
        job_id = self._embedded(job, Path(jobs)) if jobs else self._sbatch(job)
        directory = base / job_id
        tags = [t.strip() for t in (self.arguments.tags or "").split(",") if t.strip()] or None
        contract.write_output(job, directory, job_id, path, variant, tags)
        if silent:
            raise SystemExit(0)
        self.records.append(
            {
                "status": "submitted",
                "slurm_job_id": job_id,
                "job_name": job.name,
                "output_dir": str(directory),
                "metadata_path": str(directory / f"{job_id}.json"),
                "config_path": str(path),
                "tags": tags,
            }
        )
        log = directory / f"logs/sweep_{job_id}.log"
        if job.log is not None:
            log.touch()
        self.console.print(f"[bold green]✅ Job {job_id} submitted![/]")
        self.console.print(f"[dim]📁 Logs:[/] {log.parent}")
        self.console.print(f"[dim]📋 Monitor:[/] tail -f {log}")
        self.console.print(f"[dim]📊 Queue:[/] squeue --job {job_id}")
        self._summary(job.resolved)

    def _sbatch(self, job: Job) -> str:
        """Submit to Slurm. As with srtctl, the script of a failed submission is left where it is."""
        handle, script = tempfile.mkstemp(suffix=".slurm", prefix="srtctl_", text=True)
        with os.fdopen(handle, "w") as file:
            file.write(contract.batch_script(job))
        done = process.run(["sbatch", script], timeout=300)
        if not done.ok and done.returncode != process.NOT_FOUND:
            raise self._sbatch_failed(script, done.stderr, done.returncode or 1)
        Path(script).unlink()
        if not done.ok:
            raise FileNotFoundError(2, "No such file or directory", "sbatch")
        if not done.stdout.split():
            raise OSError("list index out of range")
        return done.stdout.split()[-1]

    def _embedded(self, job: Job, directory: Path) -> str:
        """Submit to the embedded scheduler. The token is the recipe's comment, by which jobs are found in Slurm."""
        limit = limit_seconds(job.time_limit)
        if limit is None:
            raise self._sbatch_failed("(embedded)", "sbatch: error: Invalid --time specification")
        try:
            key = submit(
                directory,
                functools.partial(run_embedded, str(job.output_base), job.config_name),
                name=job.name,
                token=str(job.directives.get("comment") or ""),
                log=job.log or Path("/dev/null"),
                time_limit=limit,
            )
        except LauncherError as error:
            raise self._sbatch_failed("(embedded)", f"sbatch: error: {error.message}") from None
        return key.id

    def _sbatch_failed(self, script: str, stderr: str, returncode: int = 1) -> Refused:
        self.console.print(f"[bold red]❌ sbatch failed:[/] {stderr}\n")
        return Refused(f"Command '['sbatch', '{script}']' returned non-zero exit status {returncode}.")

    def _summary(self, resolved: Mapping[str, Any]) -> None:
        self.console.print("\n[bold]Running:[/]")
        self.console.print(f"  Model:     {resolved['model']['path']}")
        self.console.print(f"  Container: {resolved['model']['container']}")
        self.console.print(f"  Backend:   {(resolved.get('backend') or {}).get('type', 'sglang')}")
        self.console.print(f"  Benchmark: {(resolved.get('benchmark') or {}).get('type', 'manual')}")
        if not resolved.get("identity"):
            self.console.print("\n[yellow]Tip:[/] an [bold]identity:[/] block lets others repeat this run.")


def _log(level: str, text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} | {level} | {text}\n")


if __name__ == "__main__":
    raise SystemExit(main())
