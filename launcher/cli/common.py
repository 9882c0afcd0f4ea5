"""What commands share: the project of their flags, the benchmarks that they select, and a question about high costs."""

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
from launcher.cli.command import DIRECTORY_FLAGS
from launcher.core.errors import ConfigError, suggest
from launcher.core.terminal import styled
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
    """The project that the flags and the environment describe. Raises ConfigError, also for an unknown rule in
    ``--accept``."""
    for rule in getattr(arguments, "accept", ()):
        require_rule(rule, "--accept")
    paths = {name: getattr(arguments, name) for name in DIRECTORY_FLAGS}
    project = Project.open(os.environ, **paths, look=look)
    return dataclasses.replace(project, slurm_backend=getattr(arguments, "slurm_backend", None))


def require_rule(rule: str, where: str) -> str:
    """The name of the rule itself. Raises ConfigError, with similar names, when `check` has no such rule."""
    from launcher.check.report import RULES

    if rule not in RULES:
        hint = suggest(rule, RULES, "launcher check --explain lists the rules")
        raise ConfigError(f"there is no rule {rule!r}", where=where, hint=hint)
    return rule


@contextlib.contextmanager
def show_elapsed(what: str, arguments: argparse.Namespace) -> Iterator[None]:
    """Within the block, standard error shows what is done and for how long: in a terminal each second until the end of
    the block; elsewhere once, after two seconds."""
    over, stream, began = threading.Event(), styled(sys.stderr), time.monotonic()
    in_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def show_on() -> None:
        while not over.wait(1.0 if in_terminal else 2.0):
            text = f"{what}, for {time.monotonic() - began:.0f} s"
            stream.write(f"\r\033[K{text}" if in_terminal else f"{text}\n")
            stream.flush()
            if not in_terminal:
                return
        if in_terminal and time.monotonic() - began >= 1.0:
            stream.write("\r\033[K")
            stream.flush()

    if arguments.quiet:
        yield
        return
    thread = threading.Thread(target=show_on, daemon=True, name="elapsed")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(1.0)


def selection_filters(arguments: argparse.Namespace, **more: Any) -> Selection:
    """A selection by the flags that all commands about matrices have; ``more`` are further fields of it."""
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
    """The benchmarks that the flags select, each with its location: rows of a matrix, or the one of a recipe.

    The errors of rows that cannot be read are added to ``refused``. Raises ConfigError when nothing is selected.
    """
    if arguments.recipe:
        return [(_from_recipe(arguments, project), "--recipe")]
    if not arguments.key:
        raise ConfigError("no benchmark is selected", hint="-k KEY (globs are taken), or --recipe FILE")
    selection = selection_filters(arguments, evals="only" if arguments.evals else "none")
    matrix = project.matrix(arguments.matrix, keys=arguments.key)
    selected: list[PlacedBenchmark] = [(e.benchmark, e.place) for e in matrix.entries(selection, refused)]
    return filter_by_topology(selected, arguments.topology, lambda placed: placed[0].topology, "entry")


def filter_by_topology(
    values: list[Value], globs: Sequence[str], topology: Callable[[Value], str], noun: str
) -> list[Value]:
    """The values whose topology matches one of the globs; all values without globs. Raises ConfigError for no match."""
    patterns = [re.compile(fnmatch.translate(glob.lower())) for glob in globs]
    matches = [value for value in values if not globs or any(p.match(topology(value).lower()) for p in patterns)]
    if not matches and values:
        topologies = ", ".join(dict.fromkeys(map(topology, values)))
        raise ConfigError(f"no {noun} has topology {' or '.join(globs)}", hint=f"there are: {topologies}")
    return matches


def for_each_plan(
    arguments: argparse.Namespace,
    project: Project,
    refused: list[ConfigError],
    do: Callable[[Plan, SourceLocation | str], Value],
    run_id: str | None = None,
) -> list[Value]:
    """Call ``do`` with the plan and the location of each benchmark that is selected, and return its results. Errors of
    planning and of ``do`` are added to ``refused``. Only one plan at a time is kept, because thousands need too much
    memory.

    Raises ConfigError when nothing is selected, and when the only one that is selected cannot be planned.
    """
    benchmarks, narrow = selected_benchmarks(arguments, project, refused), bool(arguments.conc)
    results = []
    for benchmark, location in benchmarks:
        try:
            plan = project.plan_by_hand(benchmark, arguments.runner, narrow=narrow, run_id=run_id)
            results.append(do(plan, location))
        except ConfigError as error:
            if len(benchmarks) + len(refused) == 1:
                raise
            where = str(location)
            at = f" ({error.where})" if error.where not in (None, where) else ""
            refused.append(ConfigError(f"{benchmark.title}: {error.message}{at}", where=where, hint=error.hint))
    if not results and len(refused) == 1:
        raise refused[0]
    return results


def selected_plans(arguments: argparse.Namespace, project: Project, refused: list[ConfigError]) -> list[Plan]:
    """The plans of all benchmarks that are selected. A plan that contains a secret is refused."""

    def without_secrets(plan: Plan, location: object) -> Plan:
        require_no_secrets(plan)
        return plan

    return for_each_plan(arguments, project, refused, without_secrets)


def _from_recipe(arguments: argparse.Namespace, project: Project) -> Benchmark:
    """The benchmark that a recipe describes without a matrix."""
    from launcher.srtctl.facts import recipe_facts
    from launcher.srtctl.recipe import variants

    if arguments.recipe.endswith(".sh"):
        hint = "what runs a script in a container on one node is a row of a matrix: -k KEY, --matrix FILE"
        raise ConfigError(f"{arguments.recipe} is a script, and no recipe of srtctl", where="--recipe", hint=hint)
    recipe = project.finder.find(arguments.recipe)
    if recipe is None:
        finder = project.finder
        directories = " and ".join(str(path) for path in (finder.overlays, *finder.repository) if path is not None)
        hint = f"recipes/DIR/NAME.yaml[:SELECTOR] is DIR/NAME.yaml below {directories}; --recipes DIR, --workspace DIR"
        raise ConfigError(f"no recipe {arguments.recipe}", where="--recipe", hint=hint)
    candidates = variants(recipe.document, recipe.selector, where=recipe.file.location())
    if len(candidates) != 1:
        names = ", ".join(v.selector or "" for v in candidates)
        raise ConfigError(
            f"{arguments.recipe} has {len(candidates)} variants", where="--recipe", hint=f"name one: {names}"
        )
    facts = recipe_facts(candidates[0].document)
    # Attribute → the flag that gives it, and its value by flag or recipe.
    needed = {
        "model": ("--model ID", arguments.model),
        "model_prefix": ("--model-prefix KEY", arguments.model_prefix),
        "runner": ("--runner NAME", arguments.runner),
        "concurrencies": ("--conc N …", tuple(arguments.conc or facts.concurrencies or ())),
        "image": ("--image REF", arguments.image or facts.container),
        "precision": ("--precision NAME", (arguments.precision or [facts.precision])[0]),
    }
    if missing := [flag for flag, value in needed.values() if not value]:
        raise ConfigError(f"a benchmark from a recipe alone also needs {', '.join(missing)}", where="--recipe")
    _require_srtctl(project, arguments.runner)
    prefill, decode = _role(facts.prefill or facts.aggregated), _role(facts.decode)
    if decode is None and prefill is not None:  # as matrices say that prefill's workers serve both
        decode = dataclasses.replace(prefill, workers=0)
    return Benchmark(
        **{attribute: value for attribute, (_, value) in needed.items()},
        exp_name=arguments.model_prefix + (f"_{facts.isl}x{facts.osl}" if facts.isl else ""),
        framework=(arguments.framework or [f"dynamo-{'trt' if facts.engine == 'trtllm' else facts.engine}"])[0],
        isl=facts.isl,
        osl=facts.osl,
        max_model_len=max_model_len(facts.isl, facts.osl) if facts.isl and facts.osl else None,
        disagg=facts.prefill is not None,
        prefill=prefill,
        decode=decode,
        settings={"CONFIG_FILE": arguments.recipe},
        scenario=arguments.scenario or FIXED,
        source="--recipe",
    )


def _require_srtctl(project: Project, name: str) -> None:
    """Raise ConfigError for an unknown runner, or one without a lane for recipes of srtctl."""
    runners = [file.runner for file in project.fleet.readable()]
    suitable = [r.name for r in runners if any(lane.container is None and lane.multinode is None for lane in r.lanes)]
    if project.fleet.get(name).runner.name not in suitable:
        hint = f"its benchmarks are rows of a matrix: -k KEY. Recipes run on {', '.join(suitable)}"
        raise ConfigError(f"runner {name} runs scripts in containers, and no recipe", where="--recipe", hint=hint)


def _role(side: RoleFacts | None) -> Role | None:
    if side is None:
        return None
    return side.as_role() or Role(workers=side.workers or 1, tp=side.gpus_per_worker or 1)


def confirm_cost(project: Project, costs: Mapping[str, float | None], *, yes: bool) -> None:
    """In a terminal, ask before starting jobs that can cost more GPU-hours than `limits.ask-above` of their runner's
    file. Raises ConfigError when the answer is no."""
    for name, cost in costs.items():
        bound = project.fleet.get(name).runner.limits.ask_above
        if yes or bound is None or cost is None or cost <= bound or not sys.stdin.isatty():
            continue
        answer = input(f"{name}: {cost:.1f} GPU-hours at most, more than {bound:g}. Start? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            raise ConfigError("nothing was started", where=f"runner {name}", hint="--yes answers this question")
