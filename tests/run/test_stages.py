"""What stages give to child processes, and which command imports an image."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from launcher.run.stages import Effects

from launcher.core.errors import Cancelled, ModelError
from launcher.core.process import Completed
from launcher.core.shipped import shipped
from launcher.plan.derive import Context
from launcher.plan.plan import Plan
from launcher.project import plan_benchmark
from launcher.run import stages
from launcher.runner import Fleet
from launcher.slurm.client import Scheduler
from launcher.srtctl.locate import RecipeFinder
from tests.benchmarks import a_benchmark
from tests.model.checkpoints import checkpoint


class Nobody:
    """A scheduler that must not be asked."""

    name = "nobody"

    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)


def effects(**changes: object) -> Effects:
    scheduler: Scheduler = Nobody()  # type: ignore[assignment]
    return Effects(**{"scheduler": scheduler, "environ": {}, **changes})  # type: ignore[arg-type]


def plan_on(runner: str, root: Path, **changes: object) -> Plan:
    context = Context(workspace=str(root), runner_name=f"{runner}_0", run_key="r1", today="20260101", state=str(root))
    return plan_benchmark(a_benchmark(**changes), Fleet([shipped("runners")]).get(runner), RecipeFinder(), context)


def test_nothing_of_an_outer_job_reaches_the_submission() -> None:
    environ = {"SLURM_JOB_ID": "1", "SBATCH_QOS": "x", "VIRTUAL_ENV": "/v", "PATH": "/bin", "SLURM_CONF": "/c"}
    found = effects(environ=environ, tools={"PATH": "/tools:/bin"}).environment
    assert found == {"PATH": "/tools:/bin", "SLURM_CONF": "/c"}


def test_a_compute_node_imports_what_its_login_node_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no test asks a registry of the world
    seen: list[tuple[list[str], dict[str, str]]] = []

    def runner(argv, *, timeout, cwd=None, env=None, input=None):  # type: ignore[no-untyped-def]
        seen.append((list(argv), dict(env or {})))
        return Completed(tuple(argv), 1, "", "[ERROR] Invalid image reference: x", 0.0)

    plan = plan_on("gb300-nv", tmp_path, precision="fp8")
    image = plan.images[0]
    (tmp_path / "squash").mkdir()
    moved = {**plan.as_dict(), "findings": []}
    moved["images"][0]["squash"] = str(tmp_path / "squash" / Path(image.squash).name)
    moved["images"][0]["lock"] = str(tmp_path / "squash/lock")
    with pytest.raises(Exception, match="Invalid image reference"):
        stages.images(Plan.from_dict(moved), effects(run=runner))
    argv, env = next((a, e) for a, e in seen if "import" in a)
    assert "srun" in argv and "--partition=batch_1" in argv and "--nodes=1" in argv
    assert argv[argv.index("enroot") + 1] == "import"
    assert env["ENROOT_TEMP_PATH"] == "/tmp/launcher-enroot-r1/temp" and env["TMPDIR"] == env["ENROOT_TEMP_PATH"]


def test_storage_that_the_login_node_does_not_see_is_a_stated_fact(tmp_path: Path) -> None:
    said: list[str] = []
    kept = stages.model(plan_on("b300-nv", tmp_path, precision="fp4"), effects(say=said.append))
    assert kept["checked"] is False and "node-local storage" in kept["why"]
    assert "not checked from here" in said[0]


def test_a_checkpoint_is_staged_where_its_rule_says_so(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "archive" / "M", {"quantization_config": {"quant_method": "fp8"}}, dtype="F8_E4M3")
    planned = plan_on("b200-dgxc", tmp_path, precision="fp8")
    at = dataclasses.replace(planned.model, path=str(tmp_path / "lustre" / "M"))
    with pytest.raises(ModelError, match="is not there"):
        stages.model(dataclasses.replace(planned, model=at), effects())
    staging = dataclasses.replace(planned, model=dataclasses.replace(at, source=str(source)))
    said: list[str] = []
    kept = stages.model(staging, effects(say=said.append))
    assert kept["whole"] and kept["identity"] == "match"
    assert kept["staged"]["how"] == "staged"
    assert "staged" not in stages.model(staging, effects())
    with pytest.raises(Cancelled):
        moved = dataclasses.replace(staging, model=dataclasses.replace(staging.model, path=str(tmp_path / "x/M")))
        stages.model(moved, effects(stopping=lambda: True))


def test_waiting_ends_when_somebody_asks_to_stop() -> None:
    began = time.monotonic()
    with pytest.raises(Cancelled):
        effects(stopping=lambda: time.monotonic() - began > 0.3).sleep(60)
    assert time.monotonic() - began < 5
