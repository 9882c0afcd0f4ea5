"""Rendered scripts are readable, sound bash, and say nothing that is secret."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from launcher.container.engines import commands
from launcher.container.job_script import render
from launcher.container.planned import ContainerJob, ContainerOptions
from launcher.core.errors import ConfigError
from launcher.core.shell_words import quote_glob, quote_number, quote_word
from launcher.plan.plan import ModelCache, Plan, PlannedModel
from tests.container.plans import a_container, a_job, a_plan, an_allocation, an_image, staging

needs_shellcheck = pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")

AWKWARD = 'a\'b "c" $d `e` \\ f\ng,h'


def plans(root: Path) -> dict[str, Plan]:
    """One of each form that a script can have."""
    options = ContainerOptions(home=True, remap_root=True, writable=True, entrypoint=True, mpi="none", name="n")
    here = PlannedModel("/raid/m", "fp8", "node-local", ("compute",), cache=ModelCache("/raid/hf", "/mnt/hf"))
    enroot = an_image(root, environment={"TMPDIR": f"{root}/tmp-$UID", "ENROOT_TRANSFER_RETRIES": "3"})
    docker = ContainerOptions(flags=("--ipc=host", "--gpus=4", "--rm", "--name=theirs", "--entrypoint=/bin/sh"))
    return {
        "plain": a_plan(root),
        "everything": a_plan(
            root,
            a_job(
                allocation=an_allocation(cpus_per_task=8),
                container=a_container(options=options, environment={"PORT": "8888", "AWKWARD": AWKWARD}),
                staging=staging(root),
            ),
            images=(enroot,),
            model=here,
        ),
        "bare import": a_plan(root, images=(an_image(root),)),
        "enroot": a_plan(root, a_job(container=a_container(engine="enroot", options=options))),
        "docker": a_plan(root, a_job(container=a_container(engine="docker", image="a.io#b/c:t", options=docker))),
        "podman": a_plan(root, a_job(allocation=None, container=a_container(engine="podman", image="b/c@sha256:0"))),
    }


NAMES = ("plain", "everything", "bare import", "enroot", "docker", "podman")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_bash(tmp_path: Path, name: str) -> None:
    script = tmp_path / "job.sh"
    script.write_text(render(plans(tmp_path)[name], tmp_path / "a 'run'"))
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@needs_shellcheck
@pytest.mark.parametrize("name", NAMES)
def test_shellcheck_has_nothing_to_say(tmp_path: Path, name: str) -> None:
    script = tmp_path / "job.sh"
    script.write_text(render(plans(tmp_path)[name], tmp_path / "a run"))
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "")


def test_words_arrive_as_they_are() -> None:
    text = f"{AWKWARD}|$JOB|${{JOB}}x|$JOBS|$HOME/y"
    done = subprocess.run(
        ["bash", "-c", f"printf %s {quote_word(text)}"],
        env={"SLURM_JOB_ID": "7", "HOME": "/h"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == f"{AWKWARD}|7|7x|$JOBS|/h/y"


def test_a_port_is_a_sum() -> None:
    assert quote_number("8888") == "8888"
    assert quote_number("40000+$JOB%10000") == '"$((40000+SLURM_JOB_ID%10000))"'
    assert quote_number("1;rm -rf /") == "'1;rm -rf /'"
    assert quote_glob("a b/*.json") == "'a b/'*.json"


def test_a_variable_has_a_name_of_a_variable(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, a_job(container=a_container(environment={"A;touch x": "1"})))
    with pytest.raises(ConfigError, match="cannot be the name of an environment variable"):
        render(plan, tmp_path)


def test_options_of_pyxis(tmp_path: Path) -> None:
    plain, everything = (render(plans(tmp_path)[name], tmp_path) for name in ("plain", "everything"))
    for text in ("--no-container-mount-home", "--no-container-entrypoint", "--container-image=/images/x.sqsh"):
        assert text in plain
    assert "remap-root" not in plain and "writable" not in plain and "--mpi" not in plain
    for text in ("--container-mount-home", "--container-entrypoint", "--container-remap-root", "--mpi=none"):
        assert text in everything
    assert "--container-writable" in everything and "--container-name=n" in everything
    assert "--cpus-per-task=8" in everything, "since 22.05 a step does not take over the job's"
    assert f"--container-mounts={tmp_path}:/workspace,/raid/hf-hub-cache:/mnt/hf_hub_cache,/models:/models:ro" in plain


def test_docker_gets_names_and_is_found_by_our_label(tmp_path: Path) -> None:
    job = ContainerJob.of(plans(tmp_path)["docker"])
    words = [text for line in commands(job, "r1", "/w").run for text in line]
    assert words[words.index("HF_TOKEN") - 1] == "--env" and not [w for w in words if w.startswith("--env=")]
    assert "--name=launcher-r1-$JOB" in words and {"--label=launcher.job=r1.$JOB", "--label=launcher.user=$UID"} <= set(
        words
    )
    assert "--name=theirs" not in words and words.count("--rm") == 1 and "--ipc=host" in words
    assert "a.io/b/c:t" in render(plans(tmp_path)["docker"], tmp_path), "docker refuses the #"
