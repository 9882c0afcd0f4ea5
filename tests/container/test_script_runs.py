"""Rendered scripts at work: every phase, its failures, and what each end leaves."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.container.job_functions import CARRIED, SET_CARRIED, functions
from launcher.container.job_script import render
from launcher.container.planned import ContainerJob
from launcher.container.results import unpack
from launcher.core.errors import ResultError
from launcher.core.node_partner import answer_nodes
from launcher.plan.plan import Plan, PlannedModel
from launcher.rehearsal.enroot_stand_in import FAULTS
from tests.container.jobs import ID, JobHost, left, wait_for
from tests.container.plans import RESULT, a_container, a_job, an_image, staging
from tests.model.checkpoints import checkpoint as small_checkpoint
from tests.model.checkpoints import safetensors

HERE = {"/workspace": "{workspace}"}


@pytest.fixture
def host(tmp_path: Path) -> JobHost:
    return JobHost(tmp_path)


def docker_job() -> ContainerJob:
    return a_job(allocation=None, container=a_container(engine="docker", image="org/image:tag", mounts=HERE))


def result_is_there(host: JobHost) -> bool:
    return (host.workspace / f"{RESULT}.json").exists()


@pytest.mark.parametrize("engine", ["pyxis", "docker"])
@pytest.mark.parametrize("code", [0, 9])
def test_the_exit_code_of_the_container_is_that_of_the_job(host: JobHost, engine: str, code: int) -> None:
    host.benchmark(f"echo measured; echo {{}} > $RESULT_FILENAME.json; exit {code}")
    said = host.run(host.plan(docker_job() if engine == "docker" else None), code=code)
    assert "measured" in said and f"the job ends with exit code {code}" in said
    assert result_is_there(host)


@pytest.mark.parametrize("engine", ["pyxis", "docker"])
def test_values_arrive_and_are_in_no_argv(host: JobHost, engine: str) -> None:
    secret, lines = "hf_secret,with 'all' \"kinds\"", '{\n  "a": "b, c"\n}'
    host.environment = {"HF_TOKEN": secret, "NOT_PASSED": "x"}
    job = docker_job() if engine == "docker" else a_job(container=a_container(mounts=HERE))
    plan = host.plan(
        ContainerJob(
            job.allocation,
            a_container(
                engine=engine,
                image="org/image:tag",
                mounts=HERE,
                passes=("HF_TOKEN", "METADATA", "UNSET", "RESULT_FILENAME"),
            ),
            job.script,
            {**job.environment, "METADATA": lines},
        )
    )
    host.benchmark('printf "%s|" "$HF_TOKEN" "$METADATA" "$PORT" "${UNSET-absent}" "${NOT_PASSED-absent}" > seen')
    host.run(plan)
    *seen, not_passed, _ = (host.workspace / "seen").read_text().split("|")
    assert seen == [secret, lines, "40077", "absent"]
    assert not_passed == ("absent" if engine == "docker" else "x"), "docker gets names alone"
    words = [word for call in host.stand_ins.calls("srun") + host.stand_ins.calls("docker") for word in call]
    assert words and not [word for word in words if "hf_secret" in word or "b, c" in word]
    assert "hf_secret" not in (host.root / "job.sh").read_text()


def test_what_the_image_sets_does_not_replace_what_the_workflow_set(host: JobHost) -> None:
    (host.stand_ins.root / "image-sets").write_text("export CONC=999 METADATA=theirs OF_THE_IMAGE=1\n")
    lines = '{\n  "a": "b, c"\n}'
    container = a_container(mounts=HERE, passes=("CONC", "METADATA"))
    job = a_job(container=container, environment={"CONC": "4", "METADATA": lines, "RESULT_FILENAME": RESULT})
    host.benchmark('printf "%s|" "$CONC" "$METADATA" "$OF_THE_IMAGE" "${LAUNCHER_ENVIRONMENT-absent}" > seen')
    host.run(host.plan(job))
    assert (host.workspace / "seen").read_text().split("|") == ["4", lines, "1", "absent", ""]


def test_values_arrive_in_a_container_that_starts_with_one_variable(tmp_path: Path) -> None:
    """As enroot's does: of an environment it is given names, and keeps one line of each value."""
    script, values = tmp_path / "b.sh", {"A": "a 'b' \"c\" $d `e` \\ ü", "B": "{\n  PATH=/x\n}\n", "C": ""}
    script.write_text('printf "%s|" "$A" "$B" "${C-absent}" "${D-absent}"\n')
    start = f'env -i PATH="$PATH" {CARRIED}="${CARRIED}" bash -c {shlex.quote(SET_CARRIED)} {script}'
    text = f'{functions("carry")}\ncarry A B C D\n[ "$(wc -l <<<"${CARRIED}")" = 1 ] || exit 1\n{start}'
    environment = {"PATH": os.environ["PATH"], **values}
    done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("|") == [*values.values(), "absent", ""]


# --- the image of a node


def node_local(host: JobHost, **changes: object) -> Plan:
    return host.plan(images=(an_image(host.root, **changes),))


def test_an_image_is_imported_on_the_node_before_the_container(host: JobHost) -> None:
    directory = host.root / "tmp-enroot"
    plan = node_local(host, environment={"TMPDIR": str(directory), "ENROOT_TRANSFER_RETRIES": "3"})
    said = host.run(plan)
    image = an_image(host.root)
    assert "imported to" in said and Path(image.squash).is_file() and result_is_there(host)
    assert directory.stat().st_mode & 0o777 == 0o700
    imports, container = host.stand_ins.calls("srun")
    assert "--gres=none" in imports and "--ntasks=1" in imports
    assert container[-4::3] == ["bash", ContainerJob.of(plan).script.path]
    assert int(host.facts()["image_import_seconds"]) >= 0
    assert sorted(p.name for p in Path(image.squash).parent.iterdir()) == ["x.sqsh", "x.sqsh.lock"]


def test_a_whole_image_is_left_alone(host: JobHost) -> None:
    plan = node_local(host)
    host.run(plan)
    squash = Path(an_image(host.root).squash)
    before = squash.stat()
    host.environment = {FAULTS: "fail=404"}
    assert "is on this node" in host.run(plan)
    assert squash.stat().st_mtime_ns == before.st_mtime_ns and squash.stat().st_ino == before.st_ino
    assert host.facts()["image_import_seconds"] == "0"


def test_a_torn_image_is_replaced(host: JobHost) -> None:
    squash = Path(an_image(host.root).squash)
    squash.parent.mkdir()
    squash.write_bytes(bytes(5000))
    host.run(node_local(host))
    assert squash.read_bytes()[:4] == b"hsqs"


def test_what_a_killed_import_left_is_removed(host: JobHost) -> None:
    """Its part of the image, and enroot's temporaries, among which are directories that their owner may not write."""
    plan = node_local(host)
    name = re.search(r"\.launcher-import-\w+", render(plan, host.root))
    assert name is not None
    squash = host.root / "squash"
    closed = squash / f"{name[0]}-temp.1/layer/closed"
    closed.mkdir(parents=True)
    (closed / "file").touch()
    closed.chmod(0o500)
    (squash / f"{name[0]}.1").touch()
    (squash / ".launcher-import-of-another-temp.1").mkdir()
    host.run(plan)
    left_over = sorted(p.name for p in squash.iterdir())
    assert left_over == [".launcher-import-of-another-temp.1", "x.sqsh", "x.sqsh.lock"]


@pytest.mark.parametrize("fault", ["fail=404", "fail=nospace", "fail=truncate", "fail=empty"])
def test_no_container_starts_when_the_import_fails(host: JobHost, fault: str) -> None:
    host.environment = {FAULTS: fault}
    said = host.run(node_local(host), code=3)
    assert "launcher: error: image" in said and not result_is_there(host)
    assert len(host.stand_ins.calls("srun")) == 1, "the import alone"
    assert [p.name for p in (host.root / "squash").iterdir()] == ["x.sqsh.lock"]


def test_no_container_starts_when_the_lock_is_not_had(host: JobHost) -> None:
    lock = Path(an_image(host.root).lock)
    lock.parent.mkdir()
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        said = host.run(node_local(host, lock_wait=1), code=3)
    assert "its lock" in said and "within 1 s" in said and not result_is_there(host)


# --- the checkpoint of a node


def checkpoint(host: JobHost, *seen_by: str) -> Plan:
    return host.plan(model=PlannedModel(str(host.root / "model"), "fp8", "node-local", seen_by or ("compute",)))


@pytest.mark.parametrize(
    ("remove", "lacks"),
    [
        ("model", "is not on"),
        ("model/config.json", "lacks 1 file: config.json"),
        ("model/b.safetensors", "lacks 1 file: b.safetensors"),
        (None, None),
    ],
)
def test_a_checkpoint_that_only_the_node_sees_is_looked_at_there(
    host: JobHost, remove: str | None, lacks: str | None
) -> None:
    model = host.root / "model"
    if remove != "model":
        model.mkdir()
        (model / "config.json").write_text("{}")
        index = '{"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "b.safetensors"}}'
        (model / "model.safetensors.index.json").write_text(index)
        for name in ("a", "b"):
            (model / f"{name}.safetensors").write_text("weights")
        if remove:
            (host.root / remove).unlink()
    said = host.run(checkpoint(host), code=0 if lacks is None else 4)
    assert (lacks or "whole, 2 weight files") in said
    assert result_is_there(host) == (lacks is None)


def test_a_checkpoint_that_the_login_node_sees_is_looked_at_again(host: JobHost) -> None:
    """It was whole there: the mount of this node differs, or it was changed while the job waited."""
    model = small_checkpoint(host.root / "model")
    plan = checkpoint(host, "login", "compute")
    assert "whole, 3 weight files" in host.run(plan) and not (host.own / "config.json").exists()
    _shorter(model)
    assert "is not as long as its header says" in host.run(plan, code=4)


@pytest.mark.parametrize(("attended", "local"), [(True, False), (True, True), (False, False)])
def test_locks_that_do_not_hold_with_the_login_node(host: JobHost, attended: bool, local: bool) -> None:
    """flock_stand_in: locks of this node are its own. Without a launcher on the login node that is not known."""
    (host.stand_ins.root / "bin/flock").write_text("#!/bin/sh\nexit 0\n")
    (host.stand_ins.root / "bin/flock").chmod(0o755)
    host.own.mkdir(parents=True)
    over = threading.Event()
    if attended:
        answer_nodes(host.own, 1, over.is_set)
    plan = replace(host.plan(), local_locks={"/": False, str(host.root): True} if local else {})
    red = attended and not local
    said = host.run(plan, code=8 if red else 0)
    over.set()
    assert ("launcher: error: the node" in said) == red and result_is_there(host) != red


def _pointer(model: Path) -> None:
    (model / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def _shorter(model: Path) -> None:
    shard = model / "model-00002-of-00003.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)


def _hollow(model: Path) -> None:
    shard = safetensors(model / "model-00002-of-00003.safetensors", {"w": ("BF16", 1 << 20)})
    size, head = shard.stat().st_size, shard.read_bytes()[:4096]
    shard.unlink()
    shard.write_bytes(head)
    os.truncate(shard, size)


def _out(model: Path) -> None:
    (model / "config.json").rename(model.parent / "elsewhere.json")
    (model / "config.json").symlink_to("../elsewhere.json")


def _half(model: Path) -> None:
    (model / ".staging").mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_pointer, "tokenizer.json is a pointer"),
        (_shorter, "model-00002-of-00003.safetensors is not as long as its header says"),
        (_hollow, "model-00002-of-00003.safetensors is hollow"),
        (_out, "config.json is a link that leads out of what the job mounts"),
        (_half, "is half staged"),
        (lambda model: (model / "again.json").symlink_to("config.json"), "whole, 3 weight files"),
        (lambda model: None, "whole, 3 weight files"),
    ],
)
def test_on_the_node_the_same_is_no_checkpoint(host: JobHost, damage: Callable[[Path], None], said: str) -> None:
    if damage is _hollow and not tells_of_holes(host.root):
        said = "whole, 3 weight files"  # on such a file system nothing is known of holes
    damage(small_checkpoint(host.root / "model"))
    assert said in host.run(checkpoint(host), code=0 if said.startswith("whole") else 4)


TEXT_MODEL = {"architectures": ["DeepseekV3ForCausalLM"], "text_config": {"hidden_size": 7168, "vocab_size": 129280}}


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({}, "checkpoint_identity=not known: the runner file declares no fingerprint"),
        ({"architecture": "DeepseekV3ForCausalLM", "hidden_size": 7168}, "as the runner file declares it"),
        ({"model_type": "llama", "quantisation": "fp8", "weights": "0" * 64}, "as the runner file declares it"),
        ({"architecture": "Qwen3ForCausalLM"}, "architecture is DeepseekV3ForCausalLM and Qwen3ForCausalLM by"),
        ({"hidden_size": 716}, "hidden_size is 7168 and 716 by the runner file"),
        ({"num_hidden_layers": 61}, "num_hidden_layers is not said and 61 by the runner file"),
    ],
)
def test_a_checkpoint_on_the_node_is_the_declared_one(
    host: JobHost, declared: dict[str, str | int | float], said: str
) -> None:
    small_checkpoint(host.root / "model", TEXT_MODEL)
    plan = checkpoint(host)
    plan = replace(plan, model=replace(plan.model, fingerprint=declared))
    good = "declare" in said
    text = host.run(plan, code=0 if good else 4)
    facts = "".join(path.read_text() for path in host.root.rglob("facts.txt"))
    assert said in (facts if good else text)


def tells_of_holes(path: Path) -> bool:
    """Whether the script believes what the file system of a directory says of a file's blocks."""
    said = subprocess.run(["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=True)
    return said.stdout.strip() in ("ext2/ext3", "xfs", "lustre")


# --- the copy of the checkout


def staged(host: JobHost) -> Plan:
    """A job on a copy; the checkout is packed, as the launcher does."""
    runs = host.root / "runs"
    runs.mkdir()
    (host.root / "node").mkdir()
    with tarfile.open(runs / "checkout.tar.gz", "w:gz") as tar:
        tar.add(host.workspace, arcname=".")
    return host.plan(a_job(container=a_container(mounts=HERE), staging=staging(host.root)))


def test_a_job_on_a_copy_brings_its_results_back(host: JobHost) -> None:
    host.benchmark(
        "mkdir -p results/deep; echo {} > $RESULT_FILENAME.json; echo x > 'results/deep/a b'; echo log > server.log\n"
        "echo lost > not-brought-back.txt; mkdir -p closed/deep; touch closed/deep/x; chmod -R a-w closed"
    )
    plan = staged(host)
    host.run(plan)
    assert not result_is_there(host) and list((host.root / "node").iterdir()) == []
    assert unpack(host.own / "back.tar.gz", host.workspace) == []
    assert result_is_there(host) and (host.workspace / "results/deep/a b").read_text() == "x\n"
    assert (host.workspace / "server.log").exists() and not (host.workspace / "not-brought-back.txt").exists()


def test_a_copy_of_somebody_else_is_left_alone(host: JobHost) -> None:
    plan = staged(host)
    theirs = host.root / f"node/inferencex-{ID}"
    theirs.mkdir()
    (theirs / "precious").touch()
    assert "no copy of the checkout can be made" in host.run(plan, code=5)
    assert (theirs / "precious").exists()


def test_a_cut_checkout_starts_nothing_and_leaves_nothing(host: JobHost) -> None:
    plan = staged(host)
    archive = host.root / "runs/checkout.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-20])
    assert "cannot be unpacked" in host.run(plan, code=5)
    assert list((host.root / "node").iterdir()) == [] and host.stand_ins.calls("srun") == []


def test_a_full_disk_of_the_node(host: JobHost) -> None:
    """tar_stand_in: a node whose disk is full when the copy is made."""
    plan = staged(host)
    tar = host.stand_ins.root / "bin/tar"
    tar.write_text("#!/bin/sh\necho 'tar: x: Cannot write: No space left on device' >&2\nexit 2\n")
    tar.chmod(0o755)
    said = host.run(plan, code=5)
    assert "No space left on device" in said and "cannot be unpacked" in said
    assert list((host.root / "node").iterdir()) == []


@pytest.mark.parametrize(
    ("size", "code", "said"), [(300_000, 5, "cannot be unpacked to"), (1000, 1, "No space left on device")]
)
def test_the_disk_of_the_node_is_full(host: JobHost, small_disk: Path, size: int, code: int, said: str) -> None:
    """By the checkout itself, or by what the benchmark writes: the copy goes, and what there was comes back."""
    (host.workspace / "weights.bin").write_bytes(os.urandom(size))
    host.benchmark("echo {} > $RESULT_FILENAME.json; head -c 1000000 /dev/zero > server.log")
    plan = staged(host)
    (host.root / "node").rmdir()
    (host.root / "node").symlink_to(small_disk)
    assert said in host.run(plan, code=code)
    assert list(small_disk.iterdir()) == []
    if code == 1:
        unpack(host.own / "back.tar.gz", host.workspace)
        assert result_is_there(host)


def test_results_that_cannot_be_brought_back_fail_the_job(host: JobHost) -> None:
    host.benchmark(f"echo {{}} > RESULT.json; rm -rf {host.own!s}; touch {host.own!s}".replace("'", ""))
    plan = staged(host)
    assert "results cannot be brought back" in host.run(plan, code=5)
    assert list((host.root / "node").iterdir()) == []


def test_a_cut_archive_of_results_destroys_nothing(host: JobHost, tmp_path: Path) -> None:
    host.run(staged(host))
    archive = host.own / "back.tar.gz"
    (host.workspace / f"{RESULT}.json").write_text("yesterday's")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(ResultError, match="nothing of it was taken"):
        unpack(archive, host.workspace)
    assert (host.workspace / f"{RESULT}.json").read_text() == "yesterday's"


def test_an_archive_of_results_reaches_nothing_outside_the_workspace(host: JobHost) -> None:
    (host.workspace / "link").symlink_to(host.root)
    with tarfile.open(host.root / "evil.tar.gz", "w:gz") as tar:
        for name in ("../out.json", "link/out.json", "/out.json", "good.json"):
            tar.addfile(tarfile.TarInfo(name))
        tar.add(host.workspace / "link", arcname="a link")
    assert len(unpack(host.root / "evil.tar.gz", host.workspace)) == 4
    assert (host.workspace / "good.json").exists() and not (host.root / "out.json").exists()


# --- docker


def test_a_tag_is_resolved_once_and_run_by_digest(host: JobHost) -> None:
    host.run(host.plan(docker_job()))
    assert (host.stand_ins.root / "ran").read_text() == "docker.io/org/image@sha256:abc"
    assert host.facts()["image"] == "docker.io/org/image@sha256:abc"


def test_an_image_that_cannot_be_pulled(host: JobHost) -> None:
    (host.stand_ins.root / "pull-fails").touch()
    said = host.run(host.plan(docker_job()), code=3)
    assert "cannot be pulled, and is not on" in said and not result_is_there(host)
    (host.stand_ins.root / "images/known").touch()
    (host.stand_ins.root / "no-digest").touch()
    assert "the one that is on" in host.run(host.plan(docker_job()))
    assert (host.stand_ins.root / "ran").read_text() == "sha256:id", "an image of no registry runs by its id"


def test_a_container_of_somebody_else_is_left_alone(host: JobHost) -> None:
    theirs = host.stand_ins.root / "containers/theirs"
    theirs.mkdir(parents=True)
    (theirs / "name").write_text(f"launcher-r1-{ID}\n")
    (theirs / "label").write_text(f"launcher.job=r1.{ID}\nlauncher.user={os.getuid() + 1}\n")
    assert "Conflict" in host.run(host.plan(docker_job()), code=125)
    assert (theirs / "name").exists()
    assert [call[0] for call in host.stand_ins.calls("docker")].count("rm") == 0


# --- signals

SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("phase", ["import", "lock", "pull", "unpack", "pyxis", "docker", "copy", "back"])
def test_a_signal_ends_the_job_and_leaves_nothing_of_it(
    host: JobHost, phase: str, number: signal.Signals, code: int
) -> None:
    running = host.root / "running"
    host.benchmark(f"echo part > server.log; touch '{running}'; sleep 600 & wait")
    host.environment = {"MARKER": str(host.root)}
    plan, begun = host.plan(), running.exists
    lock = None
    if phase == "import":
        host.environment[FAULTS] = "slow=600"
        plan, begun = node_local(host), lambda: list((host.root / "squash").glob(".launcher-import-*"))
    elif phase == "lock":
        plan, held = node_local(host, lock_wait=600), Path(an_image(host.root).lock)
        held.parent.mkdir()
        lock = held.open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        begun = lambda: any("flock" in text[:10] for text in left(str(host.root)))  # noqa: E731
    elif phase == "pull":
        (host.stand_ins.root / "pull-hangs").touch()
        plan, begun = host.plan(docker_job()), lambda: host.stand_ins.calls("docker")
    elif phase == "docker":
        plan = host.plan(docker_job())
    elif phase in ("unpack", "copy", "back"):
        plan = staged(host)
    if phase in ("unpack", "back"):
        host.benchmark("echo {} > $RESULT_FILENAME.json")
        option, held = ("-xzf", "exec sleep 600") if phase == "unpack" else ("-czf", "sleep 1")
        tar = host.stand_ins.root / "bin/tar"
        slow = f'[ "$1" != {option} ] || {{ touch {shlex.quote(str(running))}; {held}; }}'
        tar.write_text(f'#!/bin/sh\n{slow}\nexec {shutil.which("tar")} "$@"\n')
        tar.chmod(0o755)
    with host.start(plan) as process:
        wait_for(begun)
        os.kill(process.pid, number)
        said, _ = process.communicate(timeout=60)
    if lock is not None:
        lock.close()
    assert process.returncode == code, said
    wait_for(lambda: not left(str(host.root)), 30)
    assert host.stand_ins.containers() == [] if (host.stand_ins.root / "containers").exists() else True
    assert not list(host.root.glob("squash/*.sqsh")) and not list(host.root.glob("squash/.launcher*"))
    if phase in ("unpack", "copy", "back"):
        assert list((host.root / "node").iterdir()) == []
        assert (host.own / "back.tar.gz").exists() == (phase != "unpack"), "logs come back"


def test_a_benchmark_that_heeds_no_signal_is_ended(host: JobHost) -> None:
    running = host.root / "running"
    host.benchmark(f"trap '' TERM; touch '{running}'; while :; do sleep 0.1; done")
    with host.start(host.plan(docker_job())) as process:
        wait_for(running.exists)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert host.stand_ins.containers() == [] and time.monotonic() - began < 30
