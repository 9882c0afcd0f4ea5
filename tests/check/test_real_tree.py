"""`launcher check` on the matrices and recipes of InferenceX as they were on 2026-08-22, and what it costs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from launcher.benchmark.environment import result_filename
from launcher.benchmark.expand import Selection
from launcher.check.plan_rules import longest_result_name
from launcher.project import Project
from tests.container.test_agreement import judge
from tests.shared import SHARED, needs_shared

pytestmark = needs_shared

# Findings of the tree by rule, and how many rows they are true of; those that hang on runner files are in the second
# table, which changes with them.
OF_THE_TREE = {
    "alias-by-accident": (33, 33),
    "concurrency": (14, 14),
    "concurrency-extra": (2, 2),
    "container-unresolved": (37, 37),
    "disaggregation": (1, 2),
    "gpus-counted": (3, 11),
    "image-mismatch": (1, 2),
    "image-spelling": (54, 54),
    "key-twice": (8, 0),
    "model-from-hub": (1, 3),
    "name-duplicate": (16, 0),
    "nginx-by-default": (113, 137),
    "precision": (6, 6),
    "recipe-missing": (3, 3),
    "recipe-unread": (31, 31),
    "unknown-field": (4, 18),
    "time-budget": (30, 40),
    "workers": (3, 35),
    "workflow-name-too-long": (9, 0),
}
"""Rule → (findings, rows). Of reference/launchers.md §4.1: 18 rows that v1.0.53 refuses, 16 of other concurrencies."""


COUNTED = """
import cProfile, pstats, sys
from launcher.cli import main

profile = cProfile.Profile(builtins=False)
code = profile.runcall(main, sys.argv[1:])
print(pstats.Stats(profile).total_calls, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def checked() -> tuple[list[dict[str, object]], int]:
    """The findings in the workspace and its srt-slurm trees, and how many Python functions were called for them."""
    assert SHARED is not None
    return counted("--workspace", str(SHARED / "inferencex"), "--srt-slurm", str(SHARED / "srt-slurm"))


def counted(*places: str) -> tuple[list[dict[str, object]], int]:
    """The findings of a check in a process of its own, and how many Python functions it called."""
    argv = [sys.executable, "-c", COUNTED, "check", "--json", *places]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1, done.stderr
    return json.loads(done.stdout), int(done.stderr.splitlines()[-1])


def test_every_defect_of_the_tree_is_found_and_nothing_else(checked: tuple[list[dict[str, object]], int]) -> None:
    found = [one for one in checked[0] if str(one["where"]).startswith(f"{SHARED}/")]
    counts = Counter(str(one["rule"]) for one in found)
    rows = Counter[str]()
    for one in found:
        rows[str(one["rule"])] += int(str(one["rows"]))
    hang_on_runner_files = {"audit-name-too-long", "outside"}
    assert {r: (counts[r], rows[r]) for r in sorted(counts) if r not in hang_on_runner_files} == OF_THE_TREE


def test_every_place_is_a_line_of_a_file(checked: tuple[list[dict[str, object]], int]) -> None:
    for one in checked[0]:
        path, _, line = str(one["where"]).rpartition(":")
        assert 1 <= int(line) <= len(Path(path).read_text().splitlines()), one


def test_what_is_unknown_is_said_once_for_each_version(checked: tuple[list[dict[str, object]], int]) -> None:
    unknown = [str(one["message"]) for one in checked[0] if one["rule"] == "schema-unknown"]
    assert len(unknown) == len({m.partition(" at ")[2] for m in unknown}) == 3


def test_names_that_are_too_long_are_those_of_the_reference() -> None:
    """R11 of reference/launchers.md: 2 raw results, 11 aggregates and 153 audits of 384 points of both master files.

    Of these 0, 2 and 21 are AMD's, whose launcher calls its files otherwise, and which this one does not run.
    """
    assert SHARED is not None
    project = Project.open({}, workspace=str(SHARED / "inferencex"), srt_slurm=str(SHARED / "srt-slurm"))
    masters = sorted((SHARED / "inferencex" / "configs").glob("*-master.yaml"))
    matrix = project.matrix([str(path) for path in masters])
    assert matrix.labels is not None
    ours, theirs = [0, 0, 0], [0, 0, 0]
    entries = [e for e in matrix.entries(Selection(nodes="multi", evals="none")) if not e.benchmark.agentic]
    for entry in entries:
        b = dataclasses.replace(entry.benchmark, recipe_fingerprint="f" * 64)
        stem = result_filename(b, max(matrix.labels.labels.get(b.runner, [b.runner]), key=len))
        assert b.prefill is not None and b.decode is not None
        gpus = [role.workers * role.gpus_per_worker for role in (b.prefill, b.decode)]
        amd = f"_concurrency_{max(b.concurrencies)}_req_rate_inf_gpus_{sum(gpus)}_ctx_{gpus[0]}_gen_{gpus[1]}.json"
        is_amd = Path(entry.place.document.path).name == "amd-master.yaml"
        longest = len(stem + amd if is_amd else longest_result_name(b, stem))
        for i, before in enumerate(("", "agg_", "power_validation_")):
            (theirs if is_amd else ours)[i] += longest + len(before) > 255
    assert (len(entries), ours, theirs) == (384, [2, 9, 132], [0, 2, 21])


def test_everything_costs_a_second_and_a_half(checked: tuple[list[dict[str, object]], int]) -> None:
    """Counted in calls of Python functions, since no load of the machine changes their number.

    2.2 million calls were 1.05 s of CPU on an idle machine of two cores (Python 3.11), so 3 million are 1.5 s.
    """
    assert checked[1] < 3_000_000


def test_all_rows_on_all_runners_cost_no_more_than_they_do(tmp_path: Path) -> None:
    """Those of one node too: 2,234 rows took 2.74 million calls before they were planned more quickly, 2.46 since."""
    assert counted("--workspace", str(judge().make_tree.make(tmp_path / "InferenceX")))[1] < 2_600_000
