"""Which images runs use, by their records."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from launcher.core.shipped import shipped
from launcher.plan.plan import Plan
from launcher.run.image_usage import images_in_use
from launcher.run.record import RunRecord
from launcher.runner import Fleet
from launcher.srtctl.locate import RecipeFinder
from launcher.srtctl.resolve import plan_benchmark
from tests.benchmarks import a_benchmark
from tests.image.test_import_policy import context


def a_plan(root: Path, key: str) -> Plan:
    return plan_benchmark(a_benchmark(), Fleet([shipped("runners")]).get("local"), RecipeFinder(), context(root, key))


def test_an_image_is_in_use_until_its_run_has_ended(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first, second = (RunRecord.create(runs, a_plan(tmp_path, key)) for key in ("r1", "r2"))
    squash = first.plan.images[0].squash
    assert images_in_use(runs) == {squash: ["r1", "r2"]}
    first.update(state="succeeded")
    second.set_stage("images", "done", images=[{"squash": squash}, {"squash": "/squash/refreshed.sqsh"}])
    assert images_in_use(runs) == {squash: ["r2"], "/squash/refreshed.sqsh": ["r2"]}
    second.update(state="failed")
    assert images_in_use(runs) == {}


def test_a_refreshed_image_is_what_the_plan_says_everywhere(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, "r1")
    old, new = plan.images[0].squash, "/squash/x@0123456789ab.sqsh"
    plan = dataclasses.replace(
        plan,
        srtslurm={"containers": {"dynamo-vllm": old, "nginx-sqsh": "/n"}},
        recipe=dataclasses.replace(plan.recipe, document={"model": {"container": old}, "list": [old, 1]}),
    )
    used = plan.with_squash({old: new})
    assert used.images[0].squash == new
    assert used.srtslurm == {"containers": {"dynamo-vllm": new, "nginx-sqsh": "/n"}}
    assert used.recipe.document == {"model": {"container": new}, "list": [new, 1]}
    assert Plan.from_dict(used.as_dict()).as_dict() == used.as_dict()
