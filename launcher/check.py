"""Findings: what would fail, or measure something else than was asked, before a GPU is held.

A check is a function from a `Subject` to findings. Checks are pure, and a fact that only the checkout or the cluster
can tell is never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.benchmark import Benchmark, Role
from launcher.document import Key, Place, nearest
from launcher.plan import Finding
from launcher.runner.file import Applied, RunnerFile
from launcher.runner.schema import LaneRule, ModelRule
from launcher.srtctl.locate import FoundRecipe
from launcher.srtctl.recipe import RecipeFacts, RoleFacts, Variant

NAME_MAX = 255
"""Bytes of a directory entry's name on every file system that the fleets use."""


@dataclass(frozen=True)
class Subject:
    """Everything that the checks of one plan look at."""

    benchmark: Benchmark
    file: RunnerFile
    model: Applied[ModelRule]
    lane: Applied[LaneRule]
    recipe: FoundRecipe | None
    variant: Variant | None
    variants: int
    selector_problem: str | None
    facts: RecipeFacts | None
    tree_at_hand: bool
    aliases: Sequence[str]
    containers: Mapping[str, str]
    filename: str
    setup_script: str | None
    setup_found: bool
    narrowed: bool
    passed_over: FoundRecipe | None

    def place(self, *keys: str) -> Place | str:
        """Where the recipe says it: in the variant's own section when that has the key, else in the base."""
        if self.recipe is None:
            return self.benchmark.source
        file = self.recipe.file
        section = self.recipe.section
        if section:
            places: tuple[tuple[Key, ...], ...] = ((*section, *keys), ("base", *keys))
        else:
            places = self.variant.places(keys) if self.variant is not None else (keys,)
        return Place(file, *next((p for p in places if _holds(file.data, p)), places[-1]))


def _holds(data: Any, keys: Sequence[Key]) -> bool:
    for key in keys:
        if not isinstance(data, Mapping) or key not in data:
            return False
        data = data[key]
    return True


def check(subject: Subject) -> list[Finding]:
    """All findings of one plan, in the order of the checks."""
    return [finding for one in _CHECKS for finding in one(subject)]


_Check = Callable[[Subject], Iterator[Finding]]


def _recipe_missing(s: Subject) -> Iterator[Finding]:
    if s.recipe is not None:
        return
    path = (s.benchmark.config_file or "").partition(":")[0]
    lane = s.lane.rule
    if s.tree_at_hand:
        yield Finding(
            "recipe-missing",
            "error",
            f"{path} is neither in the workspace, nor in this repository, nor in srt-slurm {lane.ref}",
            s.benchmark.source,
        )
    else:
        yield Finding(
            "recipe-unread",
            "warning",
            f"{path} is not at hand; it is read from srt-slurm {lane.ref} after the checkout, and all is checked again",
            s.benchmark.source,
        )


def _recipe_elsewhere(s: Subject) -> Iterator[Finding]:
    if s.passed_over is not None and s.recipe is not None:
        message = (
            f"the copy of {s.recipe.path} in the {s.passed_over.origin} runs another image than the matrix row; "
            f"the one of {s.recipe.origin} runs the row's, and is taken"
        )
        yield Finding("recipe-elsewhere", "warning", message, Place(s.passed_over.file))


def _selector(s: Subject) -> Iterator[Finding]:
    if s.recipe is None:
        return
    if s.selector_problem is not None:
        yield Finding("selector-none", "error", s.selector_problem, Place(s.recipe.file))
    elif s.variants > 1:
        asked = f"selector {s.recipe.selector!r}" if s.recipe.selector else "a recipe of variants without a selector"
        message = f"{asked} gives {s.variants} variants, and srtctl would submit a job for each"
        yield Finding("selector-several", "error", message, Place(s.recipe.file))
    elif s.variants == 0:
        message = "the recipe has only a base and no variant; srtctl submits nothing"
        yield Finding("selector-none", "error", message, Place(s.recipe.file))


def _model_alias(s: Subject) -> Iterator[Finding]:
    path = s.facts.model_path if s.facts else None
    if path is None or s.aliases or path.startswith("/"):
        return
    rule = s.model.rule
    if path.startswith("hf:"):
        message = f"the recipe takes its model from {path}, not from {rule.path}"
        yield Finding("model-from-hub", "warning", message, s.place("model", "path"))
        return
    known = [rule.alias, *rule.also]
    message = (
        f"model alias {path!r} is not registered: runner {s.file.runner.name} registers {', '.join(known)} "
        f"for {s.benchmark.model}"
    )
    yield Finding("alias-unregistered", "error", message, s.place("model", "path"))


def _containers(s: Subject) -> Iterator[Finding]:
    if s.facts is None:
        return
    for use in s.facts.container_aliases:
        name, place = use.alias, s.place(*use.paths[0])
        if name in s.containers or name.startswith(("/", "./")):
            continue
        if use.paths[0][0] == "model":
            if names_an_image(name):
                message = f"the recipe runs {name}, and the matrix publishes its numbers as {s.benchmark.image}"
                yield Finding("image-mismatch", "error", message, place)
                continue
            message = f"container {name!r} is no image that this run stages"
        else:
            message = f"{'.'.join(use.paths[0])} {name!r} is no image that runner {s.file.runner.name} stages"
        near = nearest(name, s.containers)
        message += f" (near: {near})" if near else "; every node would pull it by itself"
        yield Finding("container-unresolved", "error", message, place)
    if s.facts.nginx_by_default:
        message = "several frontends and no frontend.nginx_container: srtctl's default image is looked up by no alias"
        yield Finding("nginx-by-default", "warning", message, s.place("frontend"))


def names_an_image(name: str) -> bool:
    """Whether a container name is an image reference and no alias."""
    return "/" in name or ":" in name


def _lengths(s: Subject) -> Iterator[Finding]:
    b, f = s.benchmark, s.facts
    if f is None or b.agentic:
        return
    for name, asked, has in (("isl", b.isl, f.isl), ("osl", b.osl, f.osl)):
        if asked is not None and has is not None and asked != has:
            message = f"the recipe measures {name} {has}, and the matrix asks for {asked}"
            yield Finding("sequence-length", "error", message, s.place("benchmark", name))
    if b.isl is None or b.osl is None:
        return
    for name, side in f.roles.items():
        # A prefill worker hands over after the first token: it never sees the output (TensorRT-LLM recipes say 8232).
        needed = b.isl if name == "prefill" else b.isl + b.osl
        if side.max_model_len is not None and side.max_model_len < needed:
            message = f"{name} takes at most {side.max_model_len} tokens, and a request has up to {needed}"
            yield Finding("max-model-len", "error", message, s.place("backend"))


def _concurrencies(s: Subject) -> Iterator[Finding]:
    f = s.facts
    if f is None or not f.concurrencies or s.benchmark.agentic or s.benchmark.eval_only:
        return
    asked, has = set(s.benchmark.concurrencies), set(f.concurrencies)
    place = s.place("benchmark", "concurrencies")
    if missing := sorted(asked - has):
        message = f"the recipe does not run concurrency {_several(missing)}, which the matrix asks for"
        yield Finding("concurrency", "error", message, place)
    if (more := sorted(has - asked)) and not s.narrowed:
        message = f"the recipe also runs concurrency {_several(more)}, which the matrix does not ask for"
        yield Finding("concurrency-extra", "warning", message, place)


def _topology(s: Subject) -> Iterator[Finding]:
    b, f = s.benchmark, s.facts
    if f is None:
        return
    if not b.disagg and f.aggregated is not None and b.prefill is not None:
        yield from _role(s, "agg", b.prefill, f.aggregated)
        return
    for name, asked, side in (("prefill", b.prefill, f.prefill), ("decode", b.decode, f.decode)):
        if asked is not None and asked.workers and side is not None:
            yield from _role(s, name, asked, side)


def _role(s: Subject, name: str, asked: Role, side: RoleFacts) -> Iterator[Finding]:
    has = side.as_role()
    if name == "agg" and _same_replicas(asked, side):
        return
    if side.workers is not None and side.workers != asked.workers:
        message = f"the recipe starts {side.workers} {name} workers, and the matrix says {asked.workers}"
        yield Finding("workers", "error", message, s.place("resources", f"{name}_workers"))
    if has is None:
        return
    tp = has.tp
    if asked.dp_attention and has.dp_attention and asked.tp == 1 and asked.ep == has.tp:
        tp = 1  # DEP8 stands in the matrices as tp 8 and as tp 1, ep 8 alike
    pairs = (
        ("TP", tp, asked.tp),
        ("PP", has.pp, asked.pp),
        ("EP", has.ep, asked.ep),
        ("DP attention", _on(has.dp_attention), _on(asked.dp_attention)),
    )
    if different := [f"{what} {its} against {wanted}" for what, its, wanted in pairs if its != wanted]:
        message = f"{name} parallelism of the recipe is not the matrix's: {', '.join(different)}"
        yield Finding("parallelism", "error", message, s.place("backend"))


def _same_replicas(asked: Role, side: RoleFacts) -> bool:
    """Whether one aggregated worker of dp replicas is what the matrix counts as that many workers."""
    p = side.parallelism
    return asked.workers > 1 and asked.workers == (p.dp or 1) * (side.workers or 1) and asked.tp == p.tp


def _capacity(s: Subject) -> Iterator[Finding]:
    f, node = s.facts, s.file.runner.node
    if f is None:
        return
    if f.gpus_per_node is not None and f.gpus_per_node != node.gpus:
        message = f"the recipe counts {f.gpus_per_node} GPUs a node, and {s.file.runner.name} has {node.gpus}"
        yield Finding("gpus-per-node", "error", message, s.place("resources", "gpus_per_node"))
    if f.nodes is not None and node.count is not None and f.nodes > node.count:
        message = f"the recipe needs {f.nodes} nodes, and the partition has {node.count}"
        yield Finding("nodes", "error", message, s.place("resources"))
    for name, side in f.roles.items():
        if not (side.nodes and side.workers and side.gpus_per_worker):
            continue
        if side.nodes * node.gpus < side.workers * side.gpus_per_worker:
            held = f"{side.workers} {name} workers of {side.gpus_per_worker}"
            message = f"{side.nodes} nodes of {node.gpus} GPUs cannot hold {held}"
            yield Finding("capacity", "error", message, s.place("resources"))


_FAMILY = {"nvfp4": "fp4", "mxfp4": "fp4", "mxfp8": "fp8"}
"""Formats by the word that matrices have for them."""


def _precision(s: Subject) -> Iterator[Finding]:
    has = s.facts.precision if s.facts else None
    if has is not None and _FAMILY.get(has.lower(), has.lower()) != s.benchmark.precision.lower():
        message = f"the recipe says precision {has}, and the matrix says {s.benchmark.precision}"
        yield Finding("precision", "warning", message, s.place("model", "precision"))


def _setup_script(s: Subject) -> Iterator[Finding]:
    if s.setup_script is None or s.setup_found:
        return
    severity, rest = ("error", "") if s.tree_at_hand else ("warning", "; whether the checkout has it is not known yet")
    message = f"set-up script {s.setup_script} is not in this repository{rest}"
    yield Finding("setup-script", "error" if severity == "error" else "warning", message, s.lane.where)


def _names(s: Subject) -> Iterator[Finding]:
    longest = max(len(name.encode()) for name in _result_names(s))
    if longest > NAME_MAX:
        message = f"result file names take up to {longest} bytes, and a name may have {NAME_MAX}: {s.filename}"
        yield Finding("name-too-long", "error", message, s.benchmark.source)


def _result_names(s: Subject) -> Iterator[str]:
    b = s.benchmark
    gpus = [r.workers * r.gpus_per_worker if r else 0 for r in (b.prefill, b.decode)]
    for concurrency in b.concurrencies or (0,):
        if b.agentic:
            yield f"{s.filename}_conc{concurrency}.json"
        else:
            tail = f"_gpus_{sum(gpus)}" + (f"_ctx_{gpus[0]}_gen_{gpus[1]}" if b.disagg else "")
            yield f"{s.filename}_sa-bench_isl_{b.isl}_osl_{b.osl}_conc{concurrency}{tail}.json"


def _several(numbers: Sequence[int]) -> str:
    return ", ".join(str(n) for n in numbers)


def _on(flag: bool) -> str:
    return "on" if flag else "off"


_CHECKS: tuple[_Check, ...] = (
    _recipe_missing,
    _recipe_elsewhere,
    _selector,
    _model_alias,
    _containers,
    _lengths,
    _concurrencies,
    _topology,
    _capacity,
    _precision,
    _setup_script,
    _names,
)
