"""What a runner file says of staging, and how it comes into the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.core.errors import ConfigError
from launcher.core.shipped import shipped
from launcher.plan.derive import AppliedRules, Context, planned_model
from launcher.runner.file import RunnerFile
from tests.benchmarks import a_benchmark


def runner_file(tmp_path: Path, rule: str, storage: str = "") -> RunnerFile:
    text = (shipped("runners") / "b200-dgxc.yaml").read_text()
    text = text.replace("{path: /lustre/fsw, kind: lustre}", f"{{path: /lustre/fsw, kind: lustre{storage}}}")
    text = text.replace("models:\n", f"models:\n  - {{path: /lustre/fsw/m, alias: m, {rule}}}\n")
    (tmp_path / "r.yaml").write_text(text)
    return RunnerFile.read(tmp_path / "r.yaml")


def planned(file: RunnerFile) -> object:
    benchmark = a_benchmark()
    context = Context(workspace="/w", runner_name="r_0", run_key="r1", today="20260101")
    model = planned_model(AppliedRules.of(benchmark, file), "/lustre/fsw/m", context)
    return model.source, model.striping


def test_only_a_rule_that_says_so_is_staged(tmp_path: Path) -> None:
    assert planned(runner_file(tmp_path, "source: /archive/m")) == (None, None)
    layouts = ", striping: [{count: 1}, {at-least: 1073741824, count: -1, size: 16M}]"
    file = runner_file(tmp_path, "source: 'hf:org/m@abc', stage: true", layouts)
    assert planned(file) == ("hf:org/m@abc", ((0, 1, "4M"), (1 << 30, -1, "16M")))


def test_staging_from_nowhere_is_an_error_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"r\.yaml:\d+: `stage: true` needs a `source`"):
        runner_file(tmp_path, "stage: true")
