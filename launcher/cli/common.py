"""What the commands share: the project that their arguments describe, and the benchmarks that were selected."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from launcher.benchmark.benchmark import FIXED, Benchmark, Role, max_model_len
from launcher.cli.command import refusal_lines
from launcher.core.errors import ConfigError, ErrorInfo, suggest
from launcher.core.terminal import print_line, styled
from launcher.plan.refusing import require_no_secrets
from launcher.project import Project

if TYPE_CHECKING:  # only who selects something has use for these
    from launcher.benchmark.expand import Selection
    from launcher.check.inputs import PlacedBenchmark
    from launcher.core.yaml_source import SourceLocation
    from launcher.plan.plan import Plan
    from launcher.srtctl.facts import RoleFacts


Value = TypeVar("Value")


def open_project(arguments: argparse.Namespace, *, look: bool = False) -> Project:
    """The project that the command's flags and the environment describe. Raises ConfigError for a rule in ``--accept``
    that there is not."""
    for rule in getattr(arguments, "accept", ()):
        require_rule(rule, "--accept")
    places = {name: getattr(arguments, name) for name in ("workspace", "state", "srt_slurm", "runners", "recipes")}
    project = Project.open(os.environ, **places, look=look)
    return dataclasses.replace(project, slurm_backend=getattr(arguments, "slurm_backend", None))


def require_rule(rule: str, where: str) -> str:
    """The rule itself. Raises ConfigError, naming the nearest, when `check` has none of that name."""
    from launcher.check.report import RULES

    if rule not in RULES:
        hint = suggest(rule, RULES, "launcher check --explain lists the rules")
        raise ConfigError(f"there is no rule {rule!r}", where=where, hint=hint)
    return rule


@contextlib.contextmanager
def show_elapsed(what: str, arguments: argparse.Namespace) -> Iterator[None]:
    """Within the block standard error says what is done, and since when: in a terminal from the first second on, and
    it is gone at the end; elsewhere once, after two seconds."""
    over, stream, began = threading.Event(), styled(sys.stderr), time.monotonic()
    told: list[str] = []
    live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def tell_on() -> None:
        while not over.wait(1.0 if live else 2.0):
            told.append(f"{what}, for {time.monotonic() - began:.0f} s")
            stream.write(f"\r\033[K{told[-1]}" if live else f"{told[-1]}\n")
            stream.flush()
            if not live:
                return

    teller = threading.Thread(target=tell_on, daemon=True, name="meanwhile")
    if not arguments.quiet:
        teller.start()
    try:
        yield
    finally:
        over.set()
        if not arguments.quiet:
            teller.join(1.0)
        if live and told:
            stream.write("\r\033[K")
            stream.flush()


def selection_filters(arguments: argparse.Namespace, **more: Any) -> Selection:
    """The flags that all commands about matrices have, and more fields of a selection."""
    from launcher.benchmark.expand import Selection

    return Selection(
        keys=arguments.key,
        frameworks=arguments.framework,
        precisions=arguments.precision,
        sequences=arguments.seq,
        scenarios=[arguments.scenario] if arguments.scenario else [],
        concurrencies=arguments.conc,
        **more,
    )


def selected_benchmarks(
    arguments: argparse.Namespace, project: Project, refused: list[ConfigError]
) -> list[PlacedBenchmark]:
    """The benchmarks that the flags select, each with its place: rows of a matrix, or the one of a recipe.

    What is selected and cannot be understood is added to ``refused``. Raises ConfigError when nothing is selected.
    """
    if arguments.recipe:
        return [(_from_recipe(arguments, project), "--recipe")]
    if not arguments.key:
        raise ConfigError("no benchmark is selected", hint="-k KEY (globs are taken), or --recipe FILE")
    selection = selection_filters(arguments, evals="only" if arguments.evals else "none")
    matrix = project.matrix(arguments.matrix, keys=arguments.key)
    found: list[PlacedBenchmark] = [(e.benchmark, e.place) for e in matrix.entries(selection, refused)]
    return filter_by_topology(found, arguments.topology, lambda one: one[0].topology, "entry")


def filter_by_topology(
    found: list[Value], globs: Sequence[str], topology: Callable[[Value], str], what: str
) -> list[Value]:
    """Those whose topology one of the globs fits; all of them where there is none. Raises ConfigError for none left."""
    fitting = [re.compile(fnmatch.translate(glob.lower())) for glob in globs]
    kept = [one for one in found if not fitting or any(glob.match(topology(one).lower()) for glob in fitting)]
    if not kept and found:
        there = ", ".join(dict.fromkeys(map(topology, found)))
        raise ConfigError(f"no {what} has topology {' or '.join(globs)}", hint=f"there are: {there}")
    return kept


def for_each_plan(
    arguments: argparse.Namespace,
    project: Project,
    refused: list[ConfigError],
    do: Callable[[Plan, SourceLocation | str], Value],
    run_id: str | None = None,
) -> list[Value]:
    """What ``do`` gives of the plan of every benchmark that is selected, and of its place; why others cannot be planned
    or done is added to ``refused``. Plans are let go of one by one: of thousands none would fit into memory.

    Raises ConfigError when nothing is selected, and when the only one that is selected cannot be planned.
    """
    benchmarks, narrow = selected_benchmarks(arguments, project, refused), bool(arguments.conc)
    done = []
    for benchmark, place in benchmarks:
        try:
            plan = project.plan_by_hand(benchmark, arguments.runner, narrow=narrow, run_id=run_id)
            done.append(do(plan, place))
        except ConfigError as error:
            if len(benchmarks) + len(refused) == 1:
                raise
            at = f" ({error.where})" if error.where not in (None, str(place)) else ""
            refused.append(ConfigError(f"{benchmark.title}: {error.message}{at}", where=str(place), hint=error.hint))
    if not done and len(refused) == 1:
        raise refused[0]
    return done


def selected_plans(arguments: argparse.Namespace, project: Project, refused: list[ConfigError]) -> list[Plan]:
    """The plans of all benchmarks that are selected, none of which holds a secret."""

    def checked(plan: Plan, place: object) -> Plan:
        require_no_secrets(plan)
        return plan

    return for_each_plan(arguments, project, refused, checked)


def print_refusals(refused: Sequence[ConfigError], others: int) -> int:
    """List what was selected and cannot be done, beside ``others`` that can, on standard error; the exit code."""
    for line in refusal_lines([ErrorInfo.from_error(error) for error in refused], others, "that were selected"):
        print_line(line, file=sys.stderr)
    return ConfigError.exit_code if refused else 0


def _from_recipe(arguments: argparse.Namespace, project: Project) -> Benchmark:
    """A benchmark out of a recipe alone: it measures what the recipe says."""
    from launcher.srtctl.facts import recipe_facts
    from launcher.srtctl.recipe import variants

    if arguments.recipe.endswith(".sh"):
        hint = "what runs a script in a container on one node is a row of a matrix: -k KEY, --matrix FILE"
        raise ConfigError(f"{arguments.recipe} is a script, and no recipe of srtctl", where="--recipe", hint=hint)
    recipe = project.finder.find(arguments.recipe)
    if recipe is None:
        finder = project.finder
        places = " and ".join(str(place) for place in (finder.overlays, *finder.repository) if place is not None)
        hint = f"recipes/DIR/NAME.yaml[:SELECTOR] is DIR/NAME.yaml below {places}; --recipes DIR, --workspace DIR"
        raise ConfigError(f"no recipe {arguments.recipe}", where="--recipe", hint=hint)
    found = variants(recipe.document, recipe.selector, where=recipe.file.location())
    if len(found) != 1:
        names = ", ".join(v.selector or "" for v in found)
        raise ConfigError(f"{arguments.recipe} has {len(found)} variants", where="--recipe", hint=f"name one: {names}")
    seen = recipe_facts(found[0].document)
    # Attribute → the flag that gives it, and its value by flag or recipe.
    needed = {
        "model": ("--model ID", arguments.model),
        "model_prefix": ("--model-prefix KEY", arguments.model_prefix),
        "runner": ("--runner NAME", arguments.runner),
        "concurrencies": ("--conc N …", tuple(arguments.conc or seen.concurrencies or ())),
        "image": ("--image REF", arguments.image or seen.container),
        "precision": ("--precision NAME", (arguments.precision or [seen.precision])[0]),
    }
    if missing := [flag for flag, value in needed.values() if not value]:
        raise ConfigError(f"a benchmark from a recipe alone also needs {', '.join(missing)}", where="--recipe")
    _require_srtctl(project, arguments.runner)
    prefill, decode = _role(seen.prefill or seen.aggregated), _role(seen.decode)
    if decode is None and prefill is not None:  # as matrices say that prefill's workers serve both
        decode = dataclasses.replace(prefill, workers=0)
    return Benchmark(
        **{attribute: value for attribute, (_, value) in needed.items()},
        exp_name=arguments.model_prefix + (f"_{seen.isl}x{seen.osl}" if seen.isl else ""),
        framework=(arguments.framework or [f"dynamo-{'trt' if seen.engine == 'trtllm' else seen.engine}"])[0],
        isl=seen.isl,
        osl=seen.osl,
        max_model_len=max_model_len(seen.isl, seen.osl) if seen.isl and seen.osl else None,
        disagg=seen.prefill is not None,
        prefill=prefill,
        decode=decode,
        settings={"CONFIG_FILE": arguments.recipe},
        scenario=arguments.scenario or FIXED,
        source="--recipe",
    )


def _require_srtctl(project: Project, name: str) -> None:
    """Raise ConfigError for a runner that there is not, or that has no lane for a recipe of srtctl."""
    runners = [file.runner for file in project.fleet.readable()]
    serving = [one.name for one in runners if any(r.container is None and r.multinode is None for r in one.lanes)]
    if project.fleet.get(name).runner.name not in serving:
        hint = f"its benchmarks are rows of a matrix: -k KEY. Recipes run on {', '.join(serving)}"
        raise ConfigError(f"runner {name} runs scripts in containers, and no recipe", where="--recipe", hint=hint)


def _role(side: RoleFacts | None) -> Role | None:
    if side is None:
        return None
    return side.as_role() or Role(workers=side.workers or 1, tp=side.gpus_per_worker or 1)


def confirm_cost(project: Project, costs: Mapping[str, float | None], *, yes: bool) -> None:
    """Ask before jobs that can cost more GPU-hours than the bound of their runner's file (`limits.ask-above`), where
    somebody can answer. Raises ConfigError when that is no."""
    for name, cost in costs.items():
        bound = project.fleet.get(name).runner.limits.ask_above
        if yes or bound is None or cost is None or cost <= bound or not sys.stdin.isatty():
            continue
        answer = input(f"{name}: {cost:.1f} GPU-hours at most, more than {bound:g}. Start? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            raise ConfigError("nothing was started", where=f"runner {name}", hint="--yes answers this question")
