"""How findings are said: once, in four formats, without those that a baseline accepts."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from launcher.check import report
from launcher.check.report import DAYS, RULES, Baseline, Roots, baseline_text, merged_findings
from launcher.core.errors import ConfigError
from launcher.core.finding import Finding, Severity
from launcher.core.yaml_source import Document, SourceLocation
from tests.check.workspaces import TODAY

RECIPE = Document("/ws/recipes/a b.yaml", "model:\n  path: x\nslurm: &s {time_limit: 1}\nagain: {slurm: *s}\n")
ROOTS = Roots([Path("/ws")])


def finding(
    rule: str = "precision",
    place: SourceLocation | str = "/ws/m.yaml:7",
    message: str = "m",
    severity: Severity = "warning",
) -> Finding:
    return Finding(rule, severity, message, place)


def entry(**fields: Any) -> dict[str, Any]:
    return {"rule": "precision", "place": "*", "reason": "known", "expires": "2027-01-31", **fields}


def baseline(*entries: dict[str, Any]) -> Baseline:
    return Baseline(Document("/ws/accepted.yaml", json.dumps({"accepted": list(entries)})))


def test_the_same_finding_of_several_rows_is_one() -> None:
    rows = [finding(place=SourceLocation(RECIPE, "model", "path")) for _ in range(3)]
    (found,) = merged_findings(rows, [finding(place=SourceLocation(RECIPE, "model", "path"))])
    assert found.rows == 3 and found.text == "m (3 rows)" and found.where == "/ws/recipes/a b.yaml:2"


def test_findings_that_differ_stay_apart_and_errors_come_first() -> None:
    found = merged_findings([finding(), finding(message="n"), finding(place="/ws/m.yaml:8"), finding(severity="error")])
    assert [one.severity for one in found] == ["error", "warning", "warning", "warning"]


def test_an_anchor_brings_two_keys_to_one_line() -> None:
    here, there = SourceLocation(RECIPE, "slurm", "time_limit"), SourceLocation(RECIPE, "again", "slurm", "time_limit")
    (found,) = merged_findings([finding(place=here), finding(place=there)])
    assert found.rows == 2


def test_annotations_are_escaped_and_relative_to_the_repository() -> None:
    found = [finding(place=SourceLocation(RECIPE, "model"), message="50% of\n::error::x")]
    assert list(report.github_annotations(found, ROOTS)) == [
        "::warning file=recipes/a b.yaml,line=1,title=precision::50%25 of%0A::error::x"
    ]
    note = finding(rule="outside", severity="note", place="--recipe")
    assert list(report.github_annotations([note], ROOTS)) == ["::notice title=outside::m"]
    comma = finding(place="/ws/a,b:c.yaml:3")
    assert "file=a%2Cb%3Ac.yaml,line=3" in next(report.github_annotations([comma], ROOTS))


def test_sarif_names_rules_levels_and_places() -> None:
    found = [
        finding(place=SourceLocation(RECIPE, "model")),
        finding(rule="outside", severity="note", place="nowhere"),
        finding(place="/elsewhere/ä.yaml:3"),
    ]
    log = json.loads(report.sarif_log(found, ROOTS))
    (run,) = log["runs"]
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-schema-2.1.0.json")
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["precision", "outside"]
    assert [(r["ruleId"], r["ruleIndex"], r["level"]) for r in run["results"]] == [
        ("precision", 0, "warning"),
        ("outside", 1, "note"),
        ("precision", 0, "warning"),
    ]
    first = run["results"][0]["locations"][0]["physicalLocation"]
    assert first == {"artifactLocation": {"uri": "recipes/a%20b.yaml"}, "region": {"startLine": 1}}
    assert "locations" not in run["results"][1]
    assert run["results"][2]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].startswith("file:///else")


def test_what_a_baseline_accepts_is_left_out() -> None:
    found = merged_findings([finding(), finding(rule="workers", place="/ws/m.yaml:9")])
    kept = baseline(entry(place="m.yaml")).apply(found, ROOTS, TODAY, whole=True)
    assert [one.rule for one in kept] == ["workers"]


@pytest.mark.parametrize("other", [{"rule": "workers"}, {"place": "other.yaml"}, {"message": "*else*"}])
def test_it_accepts_by_rule_place_and_message(other: dict[str, str]) -> None:
    kept = baseline(entry(**other)).apply(merged_findings([finding()]), ROOTS, TODAY, whole=False)
    assert [one.rule for one in kept] == ["precision"]


def test_an_entry_whose_day_has_passed_accepts_nothing_and_is_said() -> None:
    old = baseline(entry(expires=(TODAY - timedelta(days=1)).isoformat()))
    kept = old.apply(merged_findings([finding()]), ROOTS, TODAY, whole=True)
    assert [one.rule for one in kept] == ["precision", "baseline-expired"]
    assert kept[1].where == "/ws/accepted.yaml:1" and "known" in kept[1].message
    today = baseline(entry(expires=TODAY.isoformat()))
    assert today.apply(merged_findings([finding()]), ROOTS, TODAY, whole=True) == []


def test_an_entry_that_accepts_nothing_is_said_when_everything_was_checked() -> None:
    unused = baseline(entry(rule="workers"))
    assert [one.rule for one in unused.apply([], ROOTS, TODAY, whole=True)] == ["baseline-unused"]
    assert unused.apply([], ROOTS, TODAY, whole=False) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": "precisoin"}, "there is no rule 'precisoin'"),
        ({"expires": "soon"}, "date"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"reason": None}, "reason"),
    ],
)
def test_a_baseline_that_is_wrong(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        baseline(entry(**change))
    assert said in str(error.value) and str(error.value.where).startswith("/ws/accepted.yaml:")


def test_a_written_baseline_accepts_what_it_was_written_of() -> None:
    found = merged_findings([finding(), finding(place="/ws/[odd]*.yaml:1"), finding(rule="outside", severity="note")])
    text = baseline_text(found, ROOTS, TODAY)
    read = Baseline(Document("/ws/b.yaml", text))
    assert [e.place for e in read.accepted] == ["[[]odd][*].yaml", "m.yaml"]
    assert {e.expires for e in read.accepted} == {TODAY + timedelta(days=DAYS)}
    assert [one.rule for one in read.apply(found, ROOTS, TODAY, whole=True)] == ["outside"]


def test_every_rule_has_its_page_and_every_page_its_rule() -> None:
    pages = {path.stem: path.read_text() for path in (Path(__file__).parents[2] / "docs/rules").glob("*.md")}
    assert pages.keys() == RULES.keys()
    for id, text in pages.items():
        assert text.startswith(f"# {id}\n\n{RULES[id].severity}: {RULES[id].title}\n")
        parts = text.split("\n## ")[1:]
        assert [part.partition("\n")[0] for part in parts] == ["What goes wrong", "Example", "How to fix it"]
        assert all(len(part.partition("\n")[2].strip()) > 10 for part in parts), id
        assert max(map(len, text.splitlines())) <= 120


def test_every_finding_of_the_launcher_has_a_rule() -> None:
    """Rules that have no function in launcher/check: their ids stand in the source, and are registered."""
    root = Path(__file__).parents[2] / "launcher"
    import re

    said = {id for path in root.rglob("*.py") for id in re.findall(r'\bFinding\(\s*"([a-z-]+)"', path.read_text())}
    assert said <= RULES.keys(), said - RULES.keys()


def test_every_rule_is_tried() -> None:
    from tests.check import test_container_rules, test_plan_rules, test_whole_rules

    fires = (*test_plan_rules.FIRES, *test_whole_rules.FIRES, *test_container_rules.FIRES)
    tried = {case[0] for case in fires}
    elsewhere = {
        "recipe-unread",
        "selector-none",
        "selector-several",
        "name-too-long",
        "baseline-expired",
        "baseline-unused",
        "setting-unknown",
        "deprecated-name",  # tests/core/test_deprecated.py
    }
    assert tried | elsewhere == RULES.keys()


def test_a_date_is_read_as_one() -> None:
    (read,) = baseline(entry()).accepted
    assert read.expires == date(2027, 1, 31)
