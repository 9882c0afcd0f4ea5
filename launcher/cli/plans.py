"""A plan as a person reads it: what, where, with what, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.core.lines import Line, fields
from launcher.plan.plan import Plan, PlannedModel

if TYPE_CHECKING:  # a plan pays for nothing that only a run needs
    from launcher.run.kind import JobKind


@dataclass(frozen=True)
class PlanFinding:
    rule: str
    severity: str
    message: str
    where: str


@dataclass(frozen=True)
class PlanView:
    """A plan in names and values, as its kind of job describes it, and its findings."""

    title: str
    runner: str
    says: tuple[tuple[str, str], ...]
    findings: tuple[PlanFinding, ...]

    @property
    def bad(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)


def view_of(plan: Plan, kinds: Callable[[str], JobKind]) -> PlanView:
    b = plan.benchmark
    says = [
        ("measures", f"concurrency {' '.join(map(str, b.concurrencies)) or '-'}   {b.key or b.source}"),
        ("model", _model(plan.model)),
    ]
    for image in plan.images:
        says += [("image", image.reference), ("", f"{image.squash} (imported on the {image.import_on} node)")]
    says += [
        *kinds(plan.kind).describe(plan),
        ("job", _job(plan)),
        ("results", ", ".join(plan.results.required) or f"{plan.results.filename}_*.json"),
        ("believed", str(plan.results.limits)),
        ("decided by", f"{plan.rules.get('model', '-')}, {plan.rules.get('lane', '-')}"),
    ]
    findings = (PlanFinding(f.rule, f.severity, f.message, f.where) for f in plan.findings)
    return PlanView(b.title, plan.runner, tuple(says), tuple(findings))


def plan_lines(views: Sequence[PlanView], width: int | None) -> Iterator[str]:
    for i, view in enumerate(views):
        if i:
            yield ""
        yield Line(f"{view.title}   on {view.runner}", "bold")
        yield from fields(view.says, width)
        for f in view.findings:
            said = [(f.severity, f"{f.message} [{f.rule}]"), ("", f.where)]
            style = "red" if f.severity == "error" else "yellow"
            yield from (Line(line, style) for line in fields(said, width))
    if len(views) > 1:
        yield ""
        yield f"{len(views)} plans, {sum(view.bad for view in views)} with errors"


def _model(model: PlannedModel) -> str:
    if model.path is None:
        return f"{model.id}, by the script" + (f", with the cache {model.cache.host}" if model.cache else "")
    return f"{model.path} ({model.storage}, for {' and '.join(model.seen_by)} nodes)"


def _job(plan: Plan) -> str:
    asked = plan.scheduler
    limit = f"{asked.time_limit} minutes" if (asked.time_limit or "").isdigit() else asked.time_limit
    parts = {"partition": asked.partition, "account": asked.account, "at most": limit}
    held = asked.gpu_hours
    nodes = f"{asked.nodes} node{'' if asked.nodes == 1 else 's'}"
    cost = [f"{nodes} × that = {held:.1f} GPU-hours"] if held is not None and asked.nodes else []
    return ", ".join([plan.job_name, *(f"{name} {value}" for name, value in parts.items() if value), *cost])
