"""The plan as JSON, and back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.structs import replace as change

from launcher.core.errors import ConfigError
from launcher.plan.plan import Plan
from launcher.srtctl.planned import SrtctlJob
from tests.plans import with_job
from tests.run.runs import plan_on


def test_a_plan_is_read_back_as_it_was(tmp_path: Path) -> None:
    plan = plan_on("local", tmp_path)
    value = json.loads(json.dumps(plan.as_dict()))
    assert value["kind"] == "srtctl" and value["recipe"]["path"] == SrtctlJob.of(plan).recipe.path
    assert Plan.from_dict(value).as_dict() == value
    assert SrtctlJob.of(Plan.from_dict(value)) == SrtctlJob.of(plan)


def test_a_plan_of_before_there_were_kinds_is_srtctls(tmp_path: Path) -> None:
    value = plan_on("local", tmp_path).as_dict()
    del value["kind"]
    assert Plan.from_dict(value).kind == "srtctl"


def test_an_infinity_of_a_recipe_stays_one(tmp_path: Path) -> None:
    plan = plan_on("local", tmp_path)
    recipe = change(SrtctlJob.of(plan).recipe, document={"a": [math.inf, -math.inf], 1: "one"})
    value = json.loads(json.dumps(with_job(plan, recipe=recipe).as_dict()))
    assert SrtctlJob.of(Plan.from_dict(value)).recipe.document == {"a": [math.inf, -math.inf], "1": "one"}


@pytest.mark.parametrize("change", [{"schema": 2}, {"images": 3}, {"findings": [{}]}, {"findings": 1}])
def test_what_is_no_plan(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Plan.from_dict({**plan_on("local", tmp_path).as_dict(), **change})


def test_a_part_that_is_not_whole(tmp_path: Path) -> None:
    plan = plan_on("local", tmp_path)
    with pytest.raises(ConfigError, match="not a plan of kind srtctl"):
        SrtctlJob.of(replace(plan, details={"models": {}}))
