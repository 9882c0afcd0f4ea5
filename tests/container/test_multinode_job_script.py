"""Rendered scripts of the real lanes are sound bash, whatever stands in a plan."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from launcher.container.multinode_job_script import render
from launcher.core.errors import ConfigError
from launcher.plan.plan import Plan
from tests.container.multinode_nodes import Cluster, a_row, agentic, llmd, tilert

ROWS = {
    "sglang-disagg": ("mi355x-amds", a_row()),
    "atom-disagg": ("mi355x-amds", a_row(framework="atom-disagg")),
    "agentic": ("mi355x-amds", agentic(settings={"CLIENT_IMAGE": "client/image:tag"})),
    "llm-d": ("gb200-nv", llmd()),
    "tilert": ("b200-dgxc", tilert()),
}


def plan_of(tmp_path: Path, name: str) -> Plan:
    runner, row = ROWS[name]
    return Cluster(tmp_path, runner).plan(row)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("checker", [["bash", "-n"], ["shellcheck"]], ids=lambda argv: argv[0])
def test_nobody_has_anything_to_say_of_it(tmp_path: Path, name: str, checker: list[str]) -> None:
    if shutil.which(checker[0]) is None:
        pytest.skip(f"{checker[0]} is not installed")
    script = tmp_path / "job.sh"
    script.write_text(render(plan_of(tmp_path / "x", name), tmp_path / "a 'run'", str(tmp_path / "work space")))
    done = subprocess.run([*checker, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hostile_values_stay_values(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "x", "agentic")
    awkward = "a'b\" $(touch /tmp/never) `id` \\ \n#SBATCH --exclusive"
    plan.details["job"]["containers"][0]["environment"]["DRY_RUN"] = awkward
    plan.details["files"]["settings"]["HICACHE_RATIO"] = awkward
    text = render(plan, tmp_path / "runs", str(tmp_path))
    head = text.partition("\nsay()")[0] + '\nprintf %s "$DRY_RUN"\n'
    done = subprocess.run(
        ["bash", "-c", head], env={"SLURM_JOB_ID": "7", "HOME": "/h"}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == awkward


def test_a_name_that_stands_for_no_node_is_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "x", "llm-d")
    plan.details["job"]["at_run_time"]["DECODE_LEADER_IP"] = "address 9"
    with pytest.raises(ConfigError, match="DECODE_LEADER_IP is 'address 9'"):
        render(plan, tmp_path, str(tmp_path))
