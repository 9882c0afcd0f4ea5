"""Each rule about rows, recipe files and runner files side by side: a world that it is for, and one that it is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from launcher.check.inputs import CheckInput, Row
from launcher.check.plan_rules import check_plan
from launcher.check.report import check_everything
from launcher.check.srtctl_schema import Schemas
from launcher.plan.derive import AppliedRules, Resolved
from launcher.runner.file import RunnerFile
from launcher.srtctl.recipe import dump
from tests.benchmarks import IMAGE, a_recipe
from tests.check.workspaces import MATRIX, RUNNER, TODAY, V50, CheckedWorkspace, a_plan, put

MODEL = "  - {when: {prefix: minimaxm3, precision: fp8}, path: /lustre/A, alias: minimax-m3-mxfp8, also: [mm3]}\n"
KEY = "minimaxm3-fp8-gb200-dynamo-vllm"
UNKNOWN_SHA = "7" * 39 + "a"
RUNNERS_FILE = "labels: {tiny: [tiny_0]}\nhardware: {}\n"


@pytest.fixture
def checked(tmp_path: Path) -> CheckedWorkspace:
    return CheckedWorkspace(tmp_path)


def runner(old: str, new: str) -> Callable[[CheckedWorkspace], object]:
    assert old in RUNNER
    return lambda w: w.write("runners/tiny.yaml", RUNNER.replace(old, new))


def matrix(old: str, new: str) -> Callable[[CheckedWorkspace], object]:
    assert old in MATRIX
    return lambda w: w.write("configs/t-master.yaml", MATRIX.replace(old, new))


def another_key(name: str, **changes: str) -> Callable[[CheckedWorkspace], object]:
    """The matrix with a second key that differs from the first in some lines."""
    text = MATRIX.replace(KEY, name)
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    return lambda w: w.write("configs/t-master.yaml", MATRIX + text)


def family(**sections: Any) -> Callable[[CheckedWorkspace], object]:
    return lambda w: w.recipe("family.yaml", {"base": a_recipe(), **sections})


OF_V50 = "recipes/h200/1k1k/bs128-agg-tp.yaml"
SECOND_LANE = f"    sha: {V50}\n  - {{when: {{prefix: glm5}}, repository: nvidia, ref: v1.0.45, sha: {V50}}}\n"
FP4 = MODEL.replace("precision: fp8", "precision: fp4").replace(", also: [mm3]", "")
LONG = "conc-list: [4, 16]", "conc-list: [" + ", ".join(str(2**i) for i in range(1, 11)) + "]"
TWICE = dump({**a_recipe(), "slurm": {"time_limit": "1:00:00"}}) + "slurm:\n  time_limit: '2:00:00'\n"

SCRIPTED = """\
  - kind: amd-multinode
    when: {framework: sglang-disagg}
    multinode: {engine: docker, wrapper: scripts/w.sh, script: scripts/s.sh}
"""

# rule, severity, a text of the line that is named, what is done to the world, how it is checked
FIRES: list[tuple[str, str, str, Callable[[CheckedWorkspace], object], dict[str, Any]]] = [
    ("recipe-invalid", "error", "b: 3", lambda w: w.write(f"{w.overlay}/bad.yaml", "a: [1, 2\nb: 3\n"), {}),
    ("recipe-variants", "error", "zip_override_a", family(zip_override_a={"x": [1, 2], "y": [1, 2, 3]}), {}),
    ("key-twice", "warning", "slurm:", lambda w: w.write(f"{w.overlay}/twice.yaml", TWICE), {}),
    ("recipe-refused", "warning", "bogus", lambda w: w.recipe("unused.yaml", {**a_recipe(), "bogus": 1}), {}),
    ("recipe-refused", "warning", "bogus", family(override_a={"bogus": 1}), {}),
    ("runner-missing", "error", "conc-list", matrix("runner: tiny-rack", "runner: tiny-rock"), {}),
    ("runner-invalid", "error", "skuu", runner("sku: gb200", "skuu: gb200"), {}),
    ("matrix-invalid", "error", "modl-prefix", matrix("model-prefix: minimaxm3", "modl-prefix: minimaxm3"), {}),
    ("unsupported", "error", "conc-list", matrix("model-prefix: minimaxm3", "model-prefix: other"), {}),
    ("moving-ref", "warning", "repository", runner(f"    sha: {V50}\n", ""), {}),
    ("sha-other", "error", "sha", runner(f"    sha: {V50}\n", SECOND_LANE), {}),
    ("sha-missing", "error", "sha", runner(V50, UNKNOWN_SHA), {"has_commit": lambda url, sha: False}),
    (
        "overlay-missing",
        "error",
        "vllm/typo",
        runner(f"    sha: {V50}\n", f"    sha: {V50}\n    overlays: [{{source: vllm}}, {{source: vllm/typo}}]\n"),
        {},
    ),
    ("sha-unknown", "note", "sha:", runner(V50, UNKNOWN_SHA), {}),
    ("schema-unknown", "note", "repository", runner(V50, UNKNOWN_SHA), {}),
    (
        "exclusion-expired",
        "warning",
        "expires",
        runner("lanes:", "exclude-nodes: [{node: n1, reason: x, expires: '2026-08-21'}]\nlanes:"),
        {},
    ),
    ("model-shared", "error", "fp4", runner(MODEL, MODEL + FP4), {}),
    ("rule-unreachable", "warning", "mm4", runner(MODEL, MODEL + MODEL.replace("mm3", "mm4")), {}),
    (
        "model-split",
        "warning",
        "/lustre/B",
        lambda w: (
            another_key("other", a=("framework: dynamo-vllm", "framework: dynamo-trt"))(w),
            runner(MODEL, MODEL.replace("when: {", "when: {framework: dynamo-trt, ").replace("/A", "/B") + MODEL)(w),
        ),
        {},
    ),
    (
        "outside",
        "note",
        "conc-list",
        lambda w: (
            matrix("framework: dynamo-vllm", "framework: sglang-disagg")(w),
            runner("lanes:\n", f"lanes:\n{SCRIPTED}")(w),
        ),
        {},
    ),
    ("workflow-name-too-long", "error", "conc-list", matrix(*LONG), {}),
    (
        "audit-name-too-long",
        "warning",
        "conc-list",
        matrix("conc-list: [4, 16]", "conc-list: [4, 8, 16, 32, 64, 128, 256]"),
        {},
    ),
    ("name-duplicate", "warning", "conc-list", another_key("other", a=(IMAGE, "vllm/vllm-openai:other")), {}),
    ("row-twice", "warning", "conc-list", another_key("other"), {}),
    ("label-unknown", "warning", "conc-list", lambda w: w.write("configs/runners.yaml", RUNNERS_FILE), {}),
    (
        "setting-ignored",
        "warning",
        "conc-list",
        matrix('"CONFIG_FILE=recipes/vllm/r.yaml"', '"CONFIG_FILE=recipes/vllm/r.yaml", TIME_LIMIT=08:00:00'),
        {},
    ),
    (
        "recipe-missing",
        "error",
        "conc-list",
        lambda w: (
            matrix("vllm/r.yaml", "vllm/gone.yaml")(w),
            w.write(f"trees/{V50}/recipes/x.yaml", dump(a_recipe())),
        ),
        {"trees": "trees"},
    ),
    ("recipe-missing", "error", "conc-list", matrix("vllm/r.yaml", "vllm/gone.yaml"), {}),
    (
        "setup-script",
        "error",
        "repository",
        lambda w: (
            runner(f"sha: {V50}\n", f"sha: {V50}\n    setup-script: none.sh\n")(w),
            w.write(f"{w.overlay}/../configs/another.sh", ""),
        ),
        {},
    ),
    ("recipe-unread", "warning", "conc-list", matrix("recipes/vllm/r.yaml", OF_V50), {}),
    # its family is there, and may have it
    ("recipe-unread", "warning", "conc-list", matrix("vllm/r.yaml", f"{OF_V50[8:-5]}/member.yaml"), {}),
    (
        "recipe-unread",
        "warning",
        "conc-list",
        lambda w: (matrix("vllm/r.yaml", "vllm/gone.yaml")(w), runner(f"v1.0.50\n    sha: {V50}", "main")(w)),
        {},
    ),
    (
        "recipe-elsewhere",
        "warning",
        "name:",
        lambda w: (
            w.recipe("r.yaml", {**a_recipe(), "model": {**a_recipe()["model"], "container": "a/b:later"}}),
            w.write("own/vllm/r.yaml", dump(a_recipe())),
        ),
        {"recipes": "own"},
    ),
]


@pytest.mark.parametrize(("rule", "severity", "key", "spoil", "how"), FIRES)
def test_it_is_found_with_its_line(
    checked: CheckedWorkspace,
    rule: str,
    severity: str,
    key: str,
    spoil: Callable[[CheckedWorkspace], object],
    how: dict[str, Any],
) -> None:
    spoil(checked)
    found = [one for one in checked.check(**how) if one.rule == rule]
    assert len(found) == 1, [(one.rule, one.where, one.message) for one in found]
    path, _, line = found[0].where.rpartition(":")
    assert found[0].severity == severity
    assert key in Path(path).read_text().splitlines()[int(line) - 1], found[0].where


LEAVES: dict[str, tuple[Callable[[CheckedWorkspace], object], dict[str, Any]]] = {
    "nothing is changed": (lambda w: None, {}),
    "an unused recipe that an old version took": (
        lambda w: w.recipe("old.yaml", {**a_recipe(), "benchmark": {**a_recipe()["benchmark"], "tokenizer_mode": "x"}}),
        {},
    ),
    "a recipe of a tree, judged as that tree": (
        lambda w: w.write("trees/v1.0.0/recipes/a.yaml", dump({**a_recipe(), "telemetry": {"provider": "SCRAPER"}})),
        {"trees": "trees"},
    ),
    "variants that no row runs, and are right": (family(override_a={"name": "a"}, override_b={"name": "b"}), {}),
    "a commit that a mirror has": (
        runner(f"v1.0.50\n    sha: {V50}", f"mine\n    sha: {UNKNOWN_SHA}"),
        {"has_commit": lambda url, sha: True, "but": {"schema-unknown"}},
    ),
    "a node whose day has not come": (
        runner("lanes:", "exclude-nodes: [{node: a, reason: x, expires: '2026-08-22'}, {node: b, reason: y}]\nlanes:"),
        {},
    ),
    "a directory for each model": (
        runner(MODEL, MODEL.replace("/lustre/A", "'/lustre/{model}'") + FP4.replace("/lustre/A", "'/lustre/{model}'")),
        {},
    ),
    "a wider rule behind a narrow one": (
        runner(MODEL, MODEL + "  - {when: {prefix: [minimaxm3, 'glm*']}, path: /lustre/B, alias: b}\n"),
        {},
    ),
    "rows that differ in a setting the name has": (
        another_key("other", a=("dp-attn: false", "dp-attn: true")),
        {"but": {"parallelism"}},
    ),
    "a branch that moved since its sha": (runner("ref: v1.0.50", "ref: main"), {}),
}


@pytest.mark.parametrize("what", LEAVES)
def test_what_is_right_is_no_finding(checked: CheckedWorkspace, what: str) -> None:
    spoil, how = LEAVES[what]
    expected = how.get("but", set())
    spoil(checked)
    found = checked.check(**{k: v for k, v in how.items() if k != "but"})
    assert {one.rule for one in found} <= expected, [(one.rule, one.where, one.message) for one in found]


def test_a_finding_of_several_rows_is_said_once_and_counted(checked: CheckedWorkspace) -> None:
    another_key("other", a=("conc-list: [4, 16]", "conc-list: [4]"))(checked)
    checked.recipe("r.yaml", {**a_recipe(), "bogus": 1})
    (found,) = [one for one in checked.check() if one.rule == "unknown-field"]
    assert found.rows == 2 and found.text.endswith("(2 rows)")


def test_evaluations_with_one_name_are_an_error(checked: CheckedWorkspace) -> None:
    text = MATRIX.replace("isl: 1024", "isl: 8192").replace("conc-list: [4, 16]", "conc-list: [16]")
    checked.write("configs/t-master.yaml", text + text.replace(KEY, "other").replace(IMAGE, "vllm/vllm-openai:other"))
    found = [one for one in checked.check() if one.rule == "name-duplicate"]
    assert [one.severity for one in found] == ["error", "warning"]


def test_a_label_that_several_clusters_serve_is_checked_on_each(checked: CheckedWorkspace) -> None:
    checked.write("runners/other.yaml", RUNNER.replace("name: tiny", "name: other").replace("gpus: 4", "gpus: 2"))
    (found,) = [one for one in checked.check() if one.rule == "gpus-per-node"]
    assert "other has 2" in found.message


def test_an_unreadable_runner_file_does_not_hide_the_others(checked: CheckedWorkspace) -> None:
    checked.write("runners/bad.yaml", "name: bad\n")
    assert checked.rules() == {"runner-invalid"}


def test_a_recipe_that_no_one_can_read_is_said_once(checked: CheckedWorkspace) -> None:
    another_key("other", a=("conc-list: [4, 16]", "conc-list: [4]"))(checked)
    checked.write(f"{checked.overlay}/r.yaml", "a: [1, 2\nb: 3\n")
    assert [one.rule for one in checked.check()] == ["recipe-invalid"]


def test_a_recipe_that_cannot_be_planned_is_said_at_its_rows(checked: CheckedWorkspace) -> None:
    checked.recipe("r.yaml", {**a_recipe(), "benchmark": {**a_recipe()["benchmark"], "concurrencies": "4xmany"}})
    (found,) = checked.check()
    assert found.rule == "unsupported" and "4xmany" in found.message


def test_a_row_whose_result_can_have_no_name_is_said_once(checked: CheckedWorkspace) -> None:
    checked.write("configs/t-master.yaml", MATRIX.replace("model-prefix: minimaxm3", "model-prefix: mini/maxm3"))
    runner("prefix: minimaxm3", "prefix: mini/maxm3")(checked)
    (found,) = checked.check()
    assert found.rule == "unsupported" and "not usable as a file name" in found.message


def test_a_cluster_without_runners_of_its_own_is_checked_too(checked: CheckedWorkspace) -> None:
    runner("runners: [tiny]\n", "")(checked)
    assert checked.check() == []


def test_a_day_that_is_none(checked: CheckedWorkspace) -> None:
    runner("lanes:", "exclude-nodes: [{node: n1, reason: x, expires: soon}]\nlanes:")(checked)
    (found,) = [one for one in checked.check() if one.rule == "runner-invalid"]
    assert found.severity == "error" and "'soon' is not a date" in found.message


def test_twice_in_a_recipe_of_variants_is_an_error(checked: CheckedWorkspace) -> None:
    checked.write(f"{checked.overlay}/family.yaml", dump({"base": a_recipe()}) + "override_a:\n  name: a\n  name: b\n")
    (found,) = checked.check()
    assert (found.rule, found.severity) == ("key-twice", "error")


def test_a_repository_that_a_run_makes_for_itself_is_not_said_to_be_unknown(checked: CheckedWorkspace) -> None:
    text = RUNNER.replace(V50, UNKNOWN_SHA)
    checked.write("runners/tiny.yaml", text)
    assert "sha-unknown" in checked.rules()
    checked.write("runners/tiny.yaml", text.replace("https://example.org/srt-slurm.git", "{state}/srt-slurm"))
    assert "sha-unknown" not in checked.rules()


def test_power_makes_a_lost_audit_an_error(checked: CheckedWorkspace) -> None:
    matrix("conc-list: [4, 16]", "conc-list: [4, 8, 16, 32, 64, 128, 256]")(checked)
    checked.recipe("r.yaml", {**a_recipe(), "telemetry": {"provider": "dcgm-power", "enabled": True}})
    (found,) = [one for one in checked.check() if one.rule == "audit-name-too-long"]
    assert found.severity == "error"


def test_the_row_is_named_where_the_recipe_is_not(checked: CheckedWorkspace) -> None:
    matrix(IMAGE, f"{IMAGE}-amd64")(checked)
    checked.recipe("r.yaml", {**a_recipe(), "model": {**a_recipe()["model"], "container": f"{IMAGE}-amd64"}})
    (found,) = [one for one in checked.check(today=date(2026, 1, 1)) if one.rule == "image-architecture"]
    assert found.where.startswith(f"{checked.root}/configs/t-master.yaml:")


def test_a_plan_of_another_kind_is_judged_by_the_rules_of_every_kind(tmp_path: Path) -> None:
    known = RUNNER.replace("alias: minimax", "known: {message: look}, alias: minimax")
    spoilt = a_plan(tmp_path, put("bogus", value=1), runner=known)
    assert {f.rule for f in spoilt.findings} == {"unknown-field", "known-problem"}
    plan = dataclasses.replace(spoilt, kind="script", details={}, findings=())
    file = RunnerFile.read(tmp_path / "runners/tiny.yaml")
    resolved = Resolved(plan, AppliedRules.of(plan.benchmark, file))
    findings = check_plan(resolved, Schemas())
    assert {f.rule for f in findings} == {"known-problem"}
    row = Row(plan.benchmark, "m.yaml:7", file, dataclasses.replace(plan, findings=findings))
    found = check_everything(CheckInput([row], files=[file], today=TODAY))
    assert {f.rule for f in found} == {"known-problem"}
