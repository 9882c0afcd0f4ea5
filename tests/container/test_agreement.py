"""Benchmarks of one node against what the bash launchers were seen to do, planned in this process: every recorded case,
every landing of every row, and every lane of the reference's appendix (reference/single-node.md)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from launcher.benchmark.benchmark import Benchmark
from launcher.benchmark.expand import Selection
from launcher.container.job_script import render
from launcher.container.planned import ContainerJob
from launcher.core.errors import ConfigError
from launcher.plan.plan import Plan
from launcher.project import Project
from tests.shared import SHARED, needs_shared

pytestmark = needs_shared

DISAGREEMENTS: dict[str, str] = {}
"""Case → why the plan is not what was recorded. None today: docs/differences.md says what else differs."""

AGREE = 167

LAUNCHERS = {
    "b200": "b200-dgxc",
    "b300": "b300-nv",
    "h100d": "h100-dgxc",
    "h200d": "h200-dgxc",
    "b200cw": "b200-cw",
    "h100cw": "h100-cw",
    "h200cw": "h200-cw",
    "b200nb": "b200-nb",
    "h200nb": "h200-nb",
    "mi300": "mi300x-amds",
    "mi325": "mi325x-amds",
    "mi355s": "mi355x-amds",
    "h100cr": "h100-cr",
    "mi325tw": "mi325x-tw",
    "rtx": "rtx6000pro-lat",
}
"""The reference's short names."""

OF_THE_APPENDIX = {name: "mi355s" if name == "mi355" else name for name in (*LAUNCHERS, "mi355")}
"""The appendix calls the one-node half of mi355x-amds otherwise than the table of landings."""

NO_SCRIPT = {
    ("h100-dgxc", "agentic/qwen3.5_fp8_h100.sh", "throughput"): 15,
    ("h100-dgxc", "agentic/qwen3.5_fp8_h100.sh", "evaluation"): 1,
}
"""(Runner, script that is not there, rows) → landings that are refused: upstream has the script with `_mtp` only."""

Environment = dict[str, str]


def shared() -> Path:
    assert SHARED is not None
    return SHARED


@cache
def judge() -> Any:
    """check_single.py, the judge of the recorded cases, as a module."""
    folder = str(shared() / "cases-single")
    sys.path.insert(0, folder)
    try:
        return import_module("check_single")
    finally:
        sys.path.remove(folder)


@cache
def cases() -> list[dict[str, Any]]:
    """The recorded cases of one node."""
    found = judge().load(shared() / "cases-single" / "cases.jsonl.gz")
    return [case for case in found if judge().kind_of(case) in ("container", "docker")]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which file names decide."""
    made: Path = judge().make_tree.make(tmp_path_factory.mktemp("agreement") / "InferenceX")
    return made


@pytest.fixture(scope="module")
def project(tree: Path) -> Project:
    return Project.open({}, workspace=str(tree))


@pytest.fixture(scope="module")
def planned(project: Project, tree: Path) -> Callable[[Environment], Plan]:
    """The plan of a job's environment; runner files and scripts are read once, not once a case."""

    def plan(environment: Environment) -> Plan:
        here = {name: str(value).replace("$WORKSPACE", str(tree)) for name, value in environment.items()}
        one = Project.open({**here, "HOME": "/root-of-nobody"}, workspace=str(tree))
        for part in ("fleet", "finder", "schemas", "_in_container"):
            one.__dict__[part] = getattr(project, part)
        return one.plan_from_environment()

    return plan


def compared(case: dict[str, Any], plan: dict[str, Any], tree: Path) -> list[str]:
    places = [(tree, "$WORKSPACE"), (tree.resolve(), "$WORKSPACE"), ("/root-of-nobody", "$HOME")]
    differences: list[str] = judge().compare(case, plan, places)
    return list(differences)


def as_printed(plan: Plan) -> dict[str, Any]:
    printed: dict[str, Any] = json.loads(json.dumps(plan.as_dict()))
    return printed


def test_every_recorded_case_agrees_but_those_with_a_reason(planned: Callable[[Environment], Plan], tree: Path) -> None:
    differ: dict[str, list[str]] = {}
    for case in cases():
        try:
            wrong = compared(case, as_printed(planned(case["environment"])), tree)
        except ConfigError as error:
            answer = judge().refused(case, error.exit_code, str(error))
            wrong = [f"refused: {error}"] if answer is None else answer
        if wrong:
            differ[case["name"]] = wrong
    assert differ.keys() == DISAGREEMENTS.keys(), differ
    assert len(cases()) - len(differ) == AGREE


def case_of(launcher: str) -> dict[str, Any]:
    return next(case for case in cases() if case["name"].startswith(launcher) and case["variant"] == "base")


CHANGES: list[tuple[str, tuple[str | int, ...], Any]] = [
    ("b200-dgxc/", ("kind",), "docker"),
    ("b200-dgxc/", ("allocation",), None),
    ("b200-dgxc/", ("allocation", "partition"), "gpu-1"),
    ("b200-dgxc/", ("allocation", "minutes"), 240),
    ("b200-dgxc/", ("allocation", "exclusive"), False),
    ("b200-dgxc/", ("allocation", "exclude"), ["node-1"]),
    ("b200-cw/", ("allocation", "gpu_type"), None),
    ("b200-dgxc/", ("images", 0, "uri"), "docker://elsewhere#acme/image:tag"),
    ("b200-dgxc/", ("images", 0, "lock_wait"), 7),
    ("b200-cw/", ("images", 0, "shared"), True),
    ("b200-dgxc/", ("model", "path"), "/elsewhere"),
    ("h200-cw/", ("model", "cache"), None),
    ("b200-dgxc/", ("container", "image"), "/elsewhere.sqsh"),
    ("b200-dgxc/", ("container", "workdir"), "/ix"),
    ("b200-dgxc/", ("container", "mounts", "/etc"), "/etc"),
    ("b200-dgxc/", ("container", "options", "home"), True),
    ("b200-dgxc/", ("container", "environment", "PORT"), "1"),
    ("b200-dgxc/", ("container", "environment", "VLLM_CACHE_ROOT"), "/x"),
    ("rtx6000pro-lat/", ("container", "options", "flags"), ["--privileged"]),
    ("rtx6000pro-lat/", ("container", "passes"), ["MODEL"]),
    ("b200-dgxc/", ("script", "path"), "benchmarks/single_node/fixed_seq_len/x.sh"),
    ("b200-dgxc/", ("script", "lacks"), ["TP"]),
    ("mi300x-amds/", ("staging",), None),
    ("mi300x-amds/", ("staging", "back"), ["*.json"]),
    ("b200-dgxc/", ("staging",), {"to": "/tmp/x-$JOB", "exclude": [".git"], "back": []}),
    ("b200-dgxc/", ("results", "required"), ["*.json"]),
    ("b200-dgxc/", ("results", "metrics"), []),
    ("b200-dgxc/", ("sku",), "SECRET-HF-TOKEN"),
]
"""Launcher, keys of a plan of it, a value that is not what was recorded."""


@pytest.mark.parametrize(
    ("launcher", "keys", "value"), CHANGES, ids=[f"{c[0]}{'.'.join(map(str, c[1]))}" for c in CHANGES]
)
def test_the_judge_would_see_a_difference(
    planned: Callable[[Environment], Plan], tree: Path, launcher: str, keys: tuple[str | int, ...], value: Any
) -> None:
    case = case_of(launcher)
    plan = as_printed(planned(case["environment"]))
    assert compared(case, plan, tree) == []
    holder: Any = plan
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = value
    assert compared(case, plan, tree)


@dataclass(frozen=True)
class Landing:
    """A row on a cluster that its label can land on; ``plan`` is None where it is refused."""

    benchmark: Benchmark
    runner: str
    plan: Plan | None
    refusal: str = ""

    @property
    def lane(self) -> tuple[str, str, str, str, str]:
        """Cluster, framework, model and precision, speculation, scenario, in the reference's words."""
        b = self.benchmark
        spec = "mtp" if b.spec_decoding == "mtp" else "plain"
        return self.runner, b.framework, f"{b.model_prefix}/{b.precision}", spec, "agentic" if b.agentic else "fixed"


@pytest.fixture(scope="module")
def landings(project: Project, tree: Path) -> list[Landing]:
    """Every row of one node of both master files, throughput and evaluation, on every cluster that serves its label."""
    return [*_landings(project, tree, "none"), *_landings(project, tree, "only")]


def _landings(project: Project, tree: Path, evals: Any) -> Iterator[Landing]:
    matrix = project.matrix([str(tree / "configs" / f"{name}-master.yaml") for name in ("nvidia", "amd")])
    for entry in matrix.entries(Selection(nodes="single", evals=evals)):
        for file in project.fleet.readable():
            if entry.benchmark.runner in file.runner.labels and file.runner.name in LAUNCHERS.values():
                try:
                    plan = project.plan_by_hand(entry.benchmark, file.runner.name)
                    yield Landing(entry.benchmark, file.runner.name, plan)
                except ConfigError as error:
                    yield Landing(entry.benchmark, file.runner.name, None, str(error))


def table(after: str, columns: int) -> list[list[str]]:
    """The rows of the first table behind a heading of the reference, without its head."""
    text = (shared() / "reference" / "single-node.md").read_text().partition(after)[2]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert lines is not None
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[0].splitlines()[2:]]
    assert {len(row) for row in rows} == {columns}
    return rows


def test_every_landing_is_counted_as_the_table_has_it(landings: list[Landing]) -> None:
    """Rows by cluster, label, framework and scenario; evaluations; lanes (reference §0)."""
    seen: dict[str, Any] = {}
    for short, runner in LAUNCHERS.items():
        rows = [one for one in landings if one.runner == runner]
        throughput = [one for one in rows if not one.benchmark.eval_only]
        seen[short] = (
            Counter(one.benchmark.runner for one in throughput),
            Counter(f"{one.lane[1]} {one.lane[4]}" for one in throughput),
            len(rows) - len(throughput),
            len({one.lane for one in rows}),
        )
    wanted: dict[str, Any] = {}
    for name, kind, labels, throughput_cell, evals, lanes in table("# 0. Reach", 6):
        short = name.partition(" ")[0]
        if short not in LAUNCHERS or "link" in name or "llm-d" in kind:
            continue
        total, _, parts = throughput_cell.partition(": ")
        by_scenario = Counter({part.rpartition(" ")[0]: int(part.rpartition(" ")[2]) for part in parts.split(", ")})
        assert by_scenario.total() == int(total)
        by_label = Counter({label: int(number) for label, number in re.findall(r"`([^`]+)` (\d+)", labels)})
        wanted[short] = (by_label, by_scenario, int(evals), int(lanes))
    assert seen == wanted


def test_what_is_refused_is_refused_for_lack_of_its_script(landings: list[Landing]) -> None:
    by_script: Counter[tuple[str, str, str]] = Counter()
    for one in landings:
        if one.plan is None:
            found = re.search(r"there is no benchmarks/single_node/(\S+\.sh)", one.refusal)
            assert found is not None, one.refusal
            by_script[one.runner, found[1], "evaluation" if one.benchmark.eval_only else "throughput"] += 1
    assert by_script == NO_SCRIPT


def test_the_readme_says_how_many_rows_are_served(landings: list[Landing]) -> None:
    """A row counts once, wherever it may land: as a container's where some cluster runs it so."""
    by_row: dict[int, list[Landing]] = defaultdict(list)
    for one in landings:
        if one.runner != "h100-cr":  # no runner of its label is of this host
            by_row[id(one.benchmark)].append(one)
    counts: Counter[tuple[str, bool]] = Counter()
    for rows in by_row.values():
        kinds = {row.plan.kind if row.plan is not None else "refused" for row in rows}
        assert len(kinds) == 1
        counts[kinds.pop(), rows[0].benchmark.eval_only] += 1
    readme = (Path(__file__).parents[2] / "docs/reference/served.md").read_text()
    told = {
        (kind.strip("`"), evaluations): int(number.replace(",", ""))
        for kind, *numbers in re.findall(r"^\| (`\w+`|refused) \|.*\| ([\d,]+) \+ (\d+) \|$", readme, re.MULTILINE)
        for evaluations, number in zip((False, True), numbers, strict=True)
    }
    assert {key: number for key, number in told.items() if key[0] not in ("srtctl", "tilert")} == counts


def form(script: str) -> str:
    """A script without its comments, numbers, places and values: what shellcheck looks at is the same for the same."""
    lines: list[str] = []
    for line in script.splitlines():
        if not line.lstrip().startswith("#") and lines[-1:] != [line := _form_of_line(line)]:
            lines.append(line)
    return "\n".join(lines)


@cache
def _form_of_line(line: str) -> str:
    if re.match(r"\s*(export )?[A-Z_]+=", line):
        line = re.sub(r"^(\s*(?:export )?)[A-Za-z_]+=.*$", r"\1A", line)
    line = re.sub(r"(--[a-z-]+[= ])[^\s\\]+", r"\1V", line)
    return re.sub(r"(?<=[=\s'\"])[\w./:@#+-]*[/.:][\w./:@#+-]*", "P", re.sub(r"[0-9]+", "9", line))


def test_every_script_that_the_rows_render_is_sound(landings: list[Landing], tmp_path: Path) -> None:
    """All of them by `bash -n`; by shellcheck one of each form that they have."""
    scripts = {render(one.plan, Path("/state/runs/x")) for one in landings if one.plan is not None}
    forms = {form(script): script for script in sorted(scripts)}
    assert len(scripts) > 1000 and 5 < len(forms) < 60
    for number, script in enumerate(sorted(scripts)):
        (tmp_path / f"{number}.sh").write_text(script)
    each = 'for script; do bash -n "$script" || exit; done'
    files = [str(tmp_path / f"{number}.sh") for number in range(len(scripts))]
    checked = subprocess.run(["bash", "-c", each, "-", *files], capture_output=True, text=True, timeout=600)
    assert (checked.returncode, checked.stderr) == (0, "")
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    for number, script in enumerate(forms.values()):
        (tmp_path / f"form-{number}.sh").write_text(script)
        argv = ["shellcheck", str(tmp_path / f"form-{number}.sh")]
        checked = subprocess.run(argv, capture_output=True, text=True, timeout=300)
        assert (checked.returncode, checked.stdout) == (0, "")


@dataclass
class Lane:
    """What is planned for the rows of a lane, or what the appendix says of it."""

    throughput: int = 0
    evaluations: int = 0
    script: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    gpus: frozenset[str] = frozenset()
    model: frozenset[str] = frozenset()
    minutes: frozenset[str] = frozenset()


def planned_lanes(landings: list[Landing]) -> dict[tuple[str, ...], Lane]:
    found: dict[tuple[str, ...], Lane] = defaultdict(Lane)
    for one in landings:
        if one.plan is None:
            continue
        job, model, lane = ContainerJob.of(one.plan), one.plan.model, found[one.lane]
        if one.benchmark.eval_only:
            lane.evaluations += 1
        else:
            lane.throughput += 1
            lane.gpus |= {str(one.benchmark.gpus)}
            lane.images |= {one.benchmark.image}
        lane.script |= {job.script.path.removeprefix("benchmarks/single_node/")}
        lane.model |= {model.path or f"cache {model.cache.host if model.cache else None}"}
        lane.minutes |= {str(job.allocation.minutes or "–") if job.allocation else "–"}
    return found


def lanes_of_the_appendix() -> dict[tuple[str, ...], Lane]:
    found: dict[tuple[str, ...], Lane] = {}
    for name, rows, script, images, gpus, model, minutes in table("# Appendix", 7):
        launcher, framework, prefix, spec, scenario = name.split(" · ")
        if script == "multi_node":
            continue
        throughput, _, evals = rows.partition(" (+")
        found[LAUNCHERS[OF_THE_APPENDIX[launcher]], framework, prefix, spec, scenario] = Lane(
            throughput=int(throughput),
            evaluations=int(evals.rstrip(")") or 0),
            script=frozenset({script}),
            images=frozenset(images.split(", ")),
            gpus=frozenset(gpus.split(",")),
            model=frozenset({model}),
            minutes=frozenset({minutes}),
        )
    return found


def test_every_lane_of_the_appendix_is_planned_as_it_has_it(landings: list[Landing]) -> None:
    """Rows, script, images, GPUs, the checkpoint or the cache, and the limit."""
    seen, wanted = planned_lanes(landings), lanes_of_the_appendix()
    assert len(wanted) == 56
    for name, lane in wanted.items():
        assert {shortened(image, lane.images) for image in seen[name].images} == lane.images, name
        seen[name].images = lane.images
        assert seen[name] == lane, name


def shortened(image: str, as_told: frozenset[str]) -> str:
    """An image as the appendix writes it, which ends long ones with an ellipsis."""
    return next((told for told in as_told if told.endswith("…") and image.startswith(told[:-1])), image)
