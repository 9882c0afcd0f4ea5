"""The whole fleet against what the bash launchers were seen to do: every recorded case, and every row of the table of
live lanes (reference/launchers.md, appendix A), planned in this process."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from launcher.benchmark.benchmark import Benchmark
from launcher.benchmark.expand import Selection
from launcher.plan.plan import Plan
from launcher.project import Project
from launcher.runner.file import RunnerFile
from launcher.srtctl.planned import SrtctlJob
from tests.shared import SHARED, needs_shared

pytestmark = needs_shared

DISAGREEMENTS: dict[str, str] = {}
"""Case → why the plan is not what was recorded. None today: where a launcher is wrong, docs/differences.md says what
the plan does."""

AGREE = 65

LAUNCHERS = {
    "b200": "b200-dgxc",
    "nscale": "b200-nscale",
    "b300": "b300-nv",
    "gb200": "gb200-nv",
    "gb300": "gb300-nv",
    "h100d": "h100-dgxc",
    "h200d": "h200-dgxc",
}
"""The table's short names."""

NOT_BY_SRTCTL = {"llmd-vllm", "tilert"}
MISSING_RECIPE = 3
"""Points of gb300's agentic dsv4 whose recipe is nowhere: no launcher could be recorded, so the table lacks them."""


def shared() -> Path:
    assert SHARED is not None
    return SHARED


@cache
def project() -> Project:
    return Project.open({}, workspace=str(shared() / "inferencex"), srt_slurm=str(shared() / "srt-slurm"))


@cache
def the_judge() -> Any:
    """check.py, the judge of the recorded cases, as a module."""
    spec = importlib.util.spec_from_file_location("recorded_cases", shared() / "cases" / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plan_of(environment: dict[str, str]) -> Plan:
    one = Project.open(environment, workspace=str(shared() / "inferencex"), srt_slurm=str(shared() / "srt-slurm"))
    for part in ("fleet", "finder", "schemas"):  # files are read once, not once a case
        one.__dict__[part] = getattr(project(), part)
    return one.plan_from_environment()


def test_every_recorded_case_agrees_but_those_with_a_reason() -> None:
    differ: dict[str, list[str]] = {}
    agree = 0
    for case in the_judge().load(shared() / "cases"):
        plan = plan_of({key: str(value) for key, value in case["environment"].items()})
        wrong = the_judge().compare(case, json.loads(json.dumps(plan.as_dict())))
        if wrong:
            differ[case["name"]] = wrong
        else:
            agree += 1
    assert differ.keys() == DISAGREEMENTS.keys(), differ
    assert agree == AGREE


def test_the_judge_would_see_a_difference() -> None:
    """One changed value in each part that it compares."""
    path = shared() / "cases" / "h200-dgxc-dynamo-trt-dsr1-fp8-843c-0094.json"
    case = json.loads(path.read_text())
    environment = {key: str(value) for key, value in case["environment"].items()}
    plan = json.loads(json.dumps(plan_of(environment).as_dict()))
    for keys, value in (
        (("srtslurm", "model_paths", "dsr1"), "/elsewhere"),
        (("srtslurm", "default_mounts"), {}),
        (("srt_slurm", "ref"), "main"),
        (("recipe", "document", "health_check"), None),
        (("submit", "environment", "SERVED_MODEL_NAME"), "other"),
    ):
        changed = json.loads(json.dumps(plan))
        holder = changed
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = value
        assert len(the_judge().compare(case, changed)) == 1, keys


Row = dict[str, str]


def table() -> list[Row]:
    """The rows of appendix A."""
    text = (shared() / "reference" / "launchers.md").read_text().partition("# Appendix A")[2]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    names = [
        "launcher",
        "framework",
        "prefix",
        "kind",
        "path",
        "alias",
        "srt-slurm",
        "overlay",
        "flags",
        "time",
        "points",
    ]
    return [
        dict(zip(names, (cell.strip().strip("`") for cell in line.strip("|").split("|")), strict=True))
        for line in lines[2:]
    ]


def described(plan: Plan, file: RunnerFile) -> dict[str, str]:
    """A plan in the words of the table."""
    b = plan.benchmark
    power = " POWER" if SrtctlJob.of(plan).power else ""
    argv = list(SrtctlJob.of(plan).submit.argv)
    kept = [a for a in argv[4:] if a == "--no-preflight"]
    if "--setup-script" in argv:
        kept += ["--setup-script", argv[argv.index("--setup-script") + 1]]
    overlays = [
        (o.source.partition("srt-slurm-recipes/")[2], o.destination)
        for o in SrtctlJob.of(plan).srt_slurm.overlays
        if o.source
    ]
    return {
        "launcher": next(short for short, name in LAUNCHERS.items() if name == plan.runner),
        "framework": b.framework,
        "prefix": f"{b.model_prefix}/{b.precision}",
        "kind": ("agentic" if b.agentic else "fixed") + power,
        "path": plan.model.path,
        "alias": file.model(b, power=SrtctlJob.of(plan).power).rule.alias,
        "srt-slurm": re.sub(r"https://github.com/(.*)\.git", r"\1", SrtctlJob.of(plan).srt_slurm.repository)
        + f" @ {SrtctlJob.of(plan).srt_slurm.ref}",
        "overlay": "; ".join(f"{source}→{destination}" for source, destination in overlays) or "—",
        "flags": " ".join(kept) or "—",
        "time": str(SrtctlJob.of(plan).srtslurm["default_time_limit"]),
    }


def expected(row: Row) -> dict[str, str]:
    """A row of the table, without what is the same by other words.

    h200 copies the one recipe of a job a second time, which is what `launcher` does with every recipe: no overlay.
    """
    words = {key: row[key] for key in row if key != "points"}
    words["srt-slurm"] = words["srt-slurm"].replace("`", "").replace("main(HEAD)", "main")
    words["path"] = words["path"].rstrip("/")
    if row["launcher"] == "h200d":
        first = [o for o in row["overlay"].split("; ") if not o.endswith("/")]
        directories = [o for o in first if not o.endswith(".yaml")]
        words["overlay"] = directories[0] if directories else first[0]
    return words


def rows_of_the_matrix() -> list[tuple[Benchmark, Plan]]:
    found = []
    masters = [str(p) for p in sorted((shared() / "inferencex" / "configs").glob("*-master.yaml"))]
    for entry in project().matrix(masters).entries(Selection(nodes="multi", evals="none")):
        b = entry.benchmark
        if b.framework not in NOT_BY_SRTCTL and not b.framework.endswith("-disagg"):
            found.append((b, project().plan_by_hand(b, None)))
    return found


def test_every_live_lane_is_as_the_table_has_it() -> None:
    """Model path, alias, srt-slurm, overlays, flags, time limit, and the number of points of each lane."""
    seen: Counter[tuple[tuple[str, str], ...]] = Counter()
    missing = 0
    for _, plan in rows_of_the_matrix():
        if any(f.rule == "recipe-missing" for f in plan.findings):
            missing += 1
            continue
        words = described(plan, project().fleet.get(plan.runner))
        seen[tuple(sorted({**words, "path": words["path"].rstrip("/")}.items()))] += 1
    wanted: Counter[tuple[tuple[str, str], ...]] = Counter()
    for row in table():
        wanted[tuple(sorted(expected(row).items()))] += int(row["points"])
    assert seen - wanted == Counter()
    assert wanted - seen == Counter()
    assert missing == MISSING_RECIPE


@pytest.mark.parametrize(
    "name", ["b200-dgxc", "b200-nscale", "b300-nv", "gb200-nv", "gb300-nv", "h100-dgxc", "h200-dgxc"]
)
def test_what_the_job_exports_is_what_the_table_says(name: str) -> None:
    """SERVED_MODEL_NAME changes what agentic clients ask for, so that it stands only where a launcher exported it."""
    rules = project().fleet.get(name).runner.models
    served = {rule.alias for rule in rules if rule.served}
    if name in ("b200-dgxc", "b200-nscale"):
        assert all(rule.served == "{model}" for rule in rules)
    else:
        assert (
            served
            == {
                "b300-nv": {"dsr1", "dsr1-fp8"},
                "gb200-nv": {"gpt-oss-120b", "dsr1", "dsr1-fp8", "nvidia/Kimi-K2.5-NVFP4", "nvidia/GLM-5-NVFP4"},
                "gb300-nv": {"dsr1", "dsr1-fp8", "nvidia/GLM-5-NVFP4", "nvidia/GLM-5.2-NVFP4"},
                "h100-dgxc": {"DeepSeek-R1-0528"},
                "h200-dgxc": {"DeepSeek-R1-0528"},
            }[name]
        )
