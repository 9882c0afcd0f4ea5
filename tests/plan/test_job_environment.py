"""What of the host's environment reaches a job, and that a plan names secrets without holding them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.core.errors import ConfigError
from launcher.plan.derive import passed_variables
from launcher.plan.job_environment import KEPT, require_passed_variables, select_host_variables, variables_left_out
from launcher.plan.plan import Plan
from launcher.plan.refusing import require_no_secrets
from launcher.srtctl.kind import job_environment
from launcher.srtctl.planned import SrtctlJob
from tests.run.runs import plan_on

TOKEN = "hf_" + "a1B2c3D4" * 4

CHANGES_THE_MEASUREMENT = {
    "UCX_TLS": "tcp",
    "UCX_NET_DEVICES": "eth0",
    "NCCL_IB_DISABLE": "1",
    "CUDA_VISIBLE_DEVICES": "0",
    "VLLM_USE_V1": "0",
    "SGLANG_X": "1",
    "TRTLLM_X": "1",
    "LD_LIBRARY_PATH": "/opt",
    "LD_PRELOAD": "/x.so",
    "PYTHONPATH": "/x",
    "OMP_NUM_THREADS": "1",
    "DYNAMO_WHEEL_NAME": "x",
    "ENROOT_REMAP_ROOT": "y",
    "PYXIS_X": "1",
    "SLURM_JOB_ID": "1",
    "SBATCH_QOS": "x",
    "VIRTUAL_ENV": "/v",
    "GITHUB_TOKEN": "x",
}
NEEDED = {
    "HOME": "/h",
    "PATH": "/bin",
    "LC_TIME": "C",
    "SLURM_CONF": "/c",
    "MUNGE_SOCKET": "/m",
    "https_proxy": "p:1",
    "NO_PROXY": "x",
    "TMPDIR": "/t",
    "UV_CACHE_DIR": "/uv",
}


def test_a_job_of_srtctl_gets_what_the_plan_names_and_what_programs_need(tmp_path: Path) -> None:
    plan = plan_on("gb200-nv", tmp_path)
    job = SrtctlJob.of(plan)
    host = {**CHANGES_THE_MEASUREMENT, **NEEDED, "HF_TOKEN": "t", "MY_OWN": "1"}
    got = job_environment(job, ("HF_TOKEN", "MY_OWN"), host, {"PATH": "/tools:/bin"})
    assert got == {**NEEDED, "HF_TOKEN": "t", "MY_OWN": "1", **job.submit.environment, "PATH": "/tools:/bin"}
    assert variables_left_out(host, got) == sorted(CHANGES_THE_MEASUREMENT)


def test_a_plan_of_an_earlier_version_passes_the_workflows_secrets() -> None:
    assert select_host_variables({"HF_TOKEN": "t", "OTHER": "x", "HOME": "/h"}, KEPT, None) == {
        "HF_TOKEN": "t",
        "HOME": "/h",
    }
    assert select_host_variables({"HF_TOKEN": "t", "HOME": "/h"}, KEPT, ()) == {"HOME": "/h"}


def test_names_that_are_set_are_passed() -> None:
    host = {"HF_TOKEN": "t", "UCX_TLS": "rc", "EMPTY": ""}
    assert passed_variables(host, ["UCX_TLS", "EMPTY", "UNSET", "HF_TOKEN"]) == ("HF_TOKEN", "UCX_TLS")


def test_who_drives_the_run_has_what_the_plan_passes() -> None:
    require_passed_variables(None, {})
    require_passed_variables(("HF_TOKEN",), {"HF_TOKEN": "t"})
    with pytest.raises(ConfigError, match="HF_TOKEN, WANDB_API_KEY are not set") as caught:
        require_passed_variables(("WANDB_API_KEY", "HF_TOKEN", "HOME"), {"HOME": "/h"})
    assert caught.value.exit_code == 2


def _with(plan: Plan, *keys: str, value: object) -> Plan:
    details = dict(plan.as_details())
    at = details
    for key in keys[:-1]:
        at[key] = dict(at[key])
        at = at[key]
    at[keys[-1]] = value
    return replace(plan, details=details)


def test_a_plan_that_would_hold_a_secret_is_refused(tmp_path: Path) -> None:
    plan = plan_on("gb200-nv", tmp_path)
    require_no_secrets(plan)
    require_no_secrets(_with(plan, "submit", "environment", "OPENAI_API_KEY", value="EMPTY"))
    require_no_secrets(_with(plan, "submit", "environment", "OPENAI_API_KEY", value="$OPENAI_API_KEY"))
    for keys, value in (
        (("submit", "environment", "WANDB_API_KEY"), "0123456789abcdef"),
        (("submit", "environment", "ANYTHING"), TOKEN),
        (("submit", "argv"), ["srtctl", "apply", f"--tags={TOKEN}"]),
        (("srt_slurm", "repository"), "https://me:ghx_secretsecret@github.com/x/y"),
        (("recipe", "document"), {"backend": {"prefill_environment": {"MY_TOKEN": "abcdefghij"}}}),
        (("recipe", "document"), {"setup": [{"run": f"export HF_TOKEN={TOKEN}"}]}),
    ):
        with pytest.raises(ConfigError, match="would hold a secret") as caught:
            require_no_secrets(_with(plan, *keys, value=value))
        assert caught.value.exit_code == 2 and ".".join(keys) in caught.value.message
        assert TOKEN not in str(caught.value) and "secretsecret" not in str(caught.value)
    options = replace(plan.benchmark, options={"CHAT_TEMPLATE_KWARGS_ON": TOKEN})
    with pytest.raises(ConfigError, match=r"benchmark\.options\.CHAT_TEMPLATE_KWARGS_ON"):
        require_no_secrets(replace(plan, benchmark=options))
