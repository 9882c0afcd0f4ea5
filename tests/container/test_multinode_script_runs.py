"""Rendered scripts at work: every phase, its failures, and what each end leaves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.core.node_partner import CLOCK, answer_nodes
from tests.container.jobs import left, wait_for
from tests.container.multinode_nodes import ID, LANES, Cluster, a_row, llmd, role, tilert

THREE = {"settings": {"PREFILL_NODES": "2", "DECODE_NODES": "1"}}


OVER = threading.Event()
"""The login node leaves: its thread ends with the test."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    OVER.clear()
    yield Cluster(tmp_path)
    OVER.set()


def test_each_node_runs_its_container_with_what_the_record_needs(cluster: Cluster) -> None:
    cluster.server('env -0 >"$BENCHMARK_LOGS_DIR/env-$NODE_RANK"')
    said = cluster.run()
    assert "nodes: node0 node1" in said and "the job ends with exit code 0" in said
    for rank in (0, 1):
        lines = (cluster.logs / f"env-{rank}").read_text().split("\0")
        seen = dict(line.split("=", 1) for line in lines if "=" in line)
        assert seen["NODE_RANK"] == str(rank) and seen["NODE0_ADDR"] == "10.0.0.10"
        assert seen["IPADDRS"] == "10.0.0.10,10.0.0.11" and seen["SLURM_JOB_NODELIST"] == "node0,node1"
        assert seen["HF_TOKEN"] == "hf_secretsecretsecret" and seen["IMAGE"] == "repo/name:tag"
        assert seen["BENCH_MAX_CONCURRENCY"] == "4x8" and seen["DECODE_MTP_SIZE"] == "1"
    assert cluster.containers() == []


def test_no_secret_is_in_an_argv_or_a_file(cluster: Cluster) -> None:
    cluster.run()
    words = [word for name in ("srun", "docker") for call in cluster.calls(name) for word in call]
    assert words and not [word for word in words if "hf_secret" in word]
    told = [path for path in cluster.root.rglob("*") if path.is_file() and b"hf_secretsec" in path.read_bytes()]
    assert told == []


@pytest.mark.parametrize("sudo", [(0,), (0, 1)])
def test_docker_only_by_sudo(cluster: Cluster, sudo: tuple[int, ...]) -> None:
    """sudo keeps no variables, and may be needed on one node alone."""
    for node in sudo:
        (cluster.node(node) / "needs-sudo").touch()
    cluster.server('printf "%s" "$HF_TOKEN$NODE_RANK" >"$BENCHMARK_LOGS_DIR/seen-$NODE_RANK"')
    cluster.run()
    assert [(cluster.logs / f"seen-{rank}").read_text()[-2:] for rank in (0, 1)] == ["t0", "t1"]


# --- red before a container starts


def without_model(cluster: Cluster) -> None:
    (cluster.model / "config.json").unlink()


def without_directory(cluster: Cluster) -> None:
    cluster.model.rename(cluster.root / "elsewhere")


def bad_network(cluster: Cluster) -> None:
    check = cluster.workspace / "benchmarks/multi_node/amd_utils/helpers/rdma_check.sh"
    check.write_text('[ "$SLURMD_NODENAME" != node1 ] || { echo "[FAIL] PFC is not enabled"; exit 1; }\n')


def no_route(cluster: Cluster) -> None:
    (cluster.stand_ins / "no-route-node1").touch()


def busy_gpus(cluster: Cluster) -> None:
    lines = [f"GPU[{i}] : GPU Memory Allocated (VRAM%): {40 if i == 3 else 0}" for i in range(8)]
    (cluster.node(1) / "gpus").write_text("\n".join(lines) + "\n")


def seven_gpus(cluster: Cluster) -> None:
    lines = [f"GPU[{i}] : GPU Memory Allocated (VRAM%): 0" for i in range(7)]
    (cluster.node(1) / "gpus").write_text("\n".join(lines) + "\n")


def no_image(cluster: Cluster) -> None:
    (cluster.stand_ins / "pull-fails").touch()


def two_images(cluster: Cluster) -> None:
    (cluster.node(1) / "digest").write_text("other")


def no_docker(cluster: Cluster) -> None:
    (cluster.node(1) / "needs-sudo").touch()
    (cluster.stand_ins / "bin/sudo").write_text("#!/bin/sh\nexit 1\n")


def no_checkout(cluster: Cluster) -> None:
    (cluster.workspace / "benchmarks/multi_node/amd_utils/server.sh").unlink()


def attended(cluster: Cluster) -> threading.Thread:
    """The login node is there; it leaves once both nodes have looked."""
    cluster.own.mkdir(parents=True)
    thread = answer_nodes(cluster.own, 2, OVER.is_set)
    assert thread is not None
    return thread


def no_locks(cluster: Cluster) -> None:
    attended(cluster)
    program = cluster.stand_ins / "bin/flock"
    program.write_text('#!/bin/sh\n[ "$SLURMD_NODENAME" != node1 ] && exec /usr/bin/flock "$@" || exit 0\n')
    program.chmod(0o755)


def late_clock(cluster: Cluster) -> None:
    attended(cluster)
    (cluster.own / CLOCK).write_text(f"{int(time.time()) + 60} 0\n")


@pytest.mark.parametrize(
    ("break_it", "code", "said"),
    [
        (without_model, 4, "the checkpoint {model} on node"),
        (without_directory, 4, "the checkpoint is not on node"),
        (bad_network, 8, "the node node1: its RDMA is set up wrongly"),
        (no_route, 8, "the node node1: no route tells its address"),
        (busy_gpus, 8, "the node node1: the memory of its GPUs is in use: 0 0 0 40"),
        (seven_gpus, 8, "the node node1: it has 7 GPUs, and the job needs 8"),
        (no_image, 3, "image repo/name:tag: cannot be pulled, and is not on node"),
        (two_images, 3, "node0 has repo/name@sha256:abc, node1 repo/name@sha256:other"),
        (no_docker, 8, "the node node1: docker answers neither to"),
        (no_checkout, 8, "it does not see"),
        (no_locks, 8, "the node node1: a lock that it holds in {own} is, on the login node: not seen"),
        (late_clock, 8, "s off the login node's"),
    ],
)
def test_a_red_look_ends_the_job_before_an_engine_starts(
    cluster: Cluster, break_it: Callable[[Cluster], None], code: int, said: str
) -> None:
    plan = cluster.plan()
    plan.details["job"]["gpu_patience"] = 0
    break_it(cluster)
    assert said.format(model=cluster.model, own=cluster.own) in cluster.run(plan, code=code)
    assert not [call for call in cluster.calls("docker") if call[0] == "run"]


def test_the_login_node_leaves_once_the_nodes_have_looked(cluster: Cluster) -> None:
    thread = attended(cluster)
    cluster.run()
    thread.join(60)
    assert not thread.is_alive() and "locks=hold with the login node" in (cluster.own / "facts.txt").read_text()


# --- ends


@pytest.mark.parametrize("results", [False, True])
def test_a_container_that_fails_on_one_node_of_three(cluster: Cluster, results: bool) -> None:
    """Its exit code is the job's; those that are ended for it do not count, with results or without."""
    wrote = 'echo "{}" >"$BENCHMARK_LOGS_DIR/result.json"; ' if results else ""
    cluster.server(f"{wrote}case $NODE_RANK in 1) sleep 0.5; exit 7 ;; *) sleep 600 ;; esac")
    began = time.monotonic()
    said = cluster.run(cluster.plan(a_row(**THREE, prefill=role(workers=2))), code=7)
    assert "the container on node1 ended with 7" in said and time.monotonic() - began < 60
    assert cluster.containers() == [] and left(str(cluster.root)) == []
    assert (cluster.logs / "result.json").exists() == results


def test_the_worst_of_several_exit_codes_is_the_jobs(cluster: Cluster) -> None:
    cluster.server("case $NODE_RANK in 0) exit 3 ;; 1) exit 9 ;; esac")
    cluster.run(code=9)


def test_the_others_need_not_know_when_it_is_over(cluster: Cluster) -> None:
    plan = cluster.plan()
    plan.details["job"]["drain"] = 1
    cluster.server('[ "$NODE_RANK" = 0 ] || exec sleep 600')
    said = cluster.run(plan)
    assert "the benchmark is over, and containers that still run are ended: 1" in said
    assert cluster.containers() == [] and left(str(cluster.root)) == []


def test_a_server_that_the_script_leaves_behind_does_not_keep_the_container(cluster: Cluster) -> None:
    cluster.server("sleep 600 & echo served")
    assert "served" in cluster.run()
    assert left(str(cluster.root)) == []


def test_containers_of_others_are_left_alone(cluster: Cluster) -> None:
    """Also those of jobs and runs whose ids contain ours, or are contained in ours."""
    labels = ("other.77", "77-1-abc.770", "77-1-abc.7", "77-1-abcd.77", "x77-1-abc.77")
    foreign = [cluster.foreign(node, label) for node in (0, 1) for label in labels]
    cluster.run()
    assert all(place.is_dir() for place in foreign) and len(cluster.containers()) == len(foreign)


def test_what_a_requeued_job_left_is_ended(cluster: Cluster) -> None:
    ours = cluster.foreign(1)
    (ours / "label").write_text(f"launcher.job=77-1-abc.{ID}\n")
    (ours / "pid").write_text("999999\n")
    cluster.run()
    assert not ours.exists()


def test_a_node_that_is_lost_while_the_job_runs(cluster: Cluster) -> None:
    root = cluster.stand_ins
    cluster.server(f'[ "$NODE_RANK" = 1 ] || exec sleep 600\ntouch {root}/lost-node1; kill -9 $(<{root}/srun-node1)')
    said = cluster.run(code=137)
    assert "the container on node1 ended with 137" in said
    assert cluster.containers() == [] and left(str(cluster.root)) == []


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("mkdir {own}/.exit.1; exit 7", 7),  # nothing can be written any more, as on a full quota
        ("kill -9 $(ps -o ppid= -p $(<{root}/srun-node1)); exec sleep 600", 137),
    ],
)
def test_a_step_that_leaves_no_exit_code_does_not_keep_the_job(cluster: Cluster, fault: str, code: int) -> None:
    fault = fault.format(own=cluster.own, root=cluster.stand_ins)
    cluster.server(f'[ "$NODE_RANK" = 1 ] || exec sleep 600\n{fault}')
    said = cluster.run(code=code)
    assert f"the container on node1 ended with {code}" in said
    assert cluster.containers() == [] and left(str(cluster.root)) == []


def test_each_nodes_logs_are_brought_and_leave_no_trace_on_it(cluster: Cluster) -> None:
    cluster.server('echo "of $NODE_RANK"; echo x >/run_logs/slurm_job-$SLURM_JOB_ID/decode_$NODE_RANK.log')
    script = cluster.workspace / "benchmarks/multi_node/amd_utils/server.sh"
    script.write_text(script.read_text().replace("/run_logs", '"$HOME_OF_NODE"'))
    text = (cluster.stand_ins / "bin/docker").read_text()
    (cluster.stand_ins / "bin/docker").write_text(text.replace("env -i PATH", 'env -i HOME_OF_NODE="$HOME" PATH'))
    cluster.run()
    brought = cluster.logs / "logs" / f"slurm_job-{ID}"
    assert sorted(p.name for p in brought.iterdir()) == [
        "decode_0.log",
        "decode_1.log",
        "server_node0.log",
        "server_node1.log",
    ]
    assert not list((cluster.stand_ins / "nodes").glob("*/slurm_job-*"))


def hold(cluster: Cluster, phase: str) -> Callable[[], bool]:
    """Have jobs stand still in a phase; whether one of two nodes does."""
    root, marks = cluster.root, f'touch "{cluster.root}/{phase}-$SLURMD_NODENAME"'
    program = cluster.stand_ins / "bin" / {"looking": "stat", "ending": "cp"}.get(phase, "none")
    if phase == "looking":  # at the checkpoint
        program.write_text(
            f'#!/bin/sh\n[ -z "$SLURMD_NODENAME" ] || {{ {marks}; exec sleep 600; }}\nexec /usr/bin/stat "$@"\n'
        )
    elif phase == "ending":  # the logs of nodes are brought
        program.write_text(f'#!/bin/sh\n{marks}; sleep 2; exec /usr/bin/cp "$@"\n')
    elif phase == "pulling":
        (cluster.stand_ins / "pull-hangs").touch()
        root = cluster.stand_ins
    cluster.server(f"{marks}; sleep 600" if phase == "running" else "exit 7" if phase == "ending" else "sleep 600")
    if program.exists():
        program.chmod(0o755)
    return lambda: len(list(root.glob(f"{phase}-*"))) == 2


CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


@pytest.mark.parametrize(
    ("kind", "phase", "number"),
    [
        *(("amd-multinode", phase, number) for phase in ("looking", "running") for number in CODES),
        ("amd-multinode", "pulling", signal.SIGTERM),
        ("amd-multinode", "pulling", signal.SIGHUP),
        ("amd-multinode", "ending", signal.SIGTERM),
        ("amd-multinode", "ending", signal.SIGINT),
        ("llm-d", "looking", signal.SIGINT),
        ("llm-d", "running", signal.SIGTERM),
        ("llm-d", "running", signal.SIGHUP),
        ("tilert", "looking", signal.SIGTERM),
        ("tilert", "running", signal.SIGINT),
    ],
)
def test_a_signal_in_every_phase_leaves_nothing(tmp_path: Path, kind: str, phase: str, number: int) -> None:
    lane, row, _ = LANES[kind]
    cluster = Cluster(tmp_path, lane)
    plan = cluster.plan(row() if kind != "llm-d" else llmd(settings={"DECODE_NODES": "1"}))
    stands = hold(cluster, phase)
    if phase != "running":
        cluster.environment["SLURMD_NODENAME"] = ""
    foreign = cluster.foreign(0)
    with cluster.start(plan) as process:
        wait_for(stands)
        began = time.monotonic()
        # Slurm's TERM reaches the steps as well; what comes to the script alone is handed on.
        os.kill(process.pid, number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == CODES[signal.Signals(number)], said
    assert time.monotonic() - began < 30
    assert cluster.containers() == ["theirs"] and foreign.is_dir()
    assert left(str(cluster.root)) == []


# --- containers of pyxis


def test_llmd_ends_with_its_coordinator(tmp_path: Path) -> None:
    """The first decode node measures; the servers of the other nodes run until they are ended, which is no failure."""
    cluster = Cluster(tmp_path, "gb200-nv")
    cluster.server(
        'env >"$BENCHMARK_LOGS_DIR/env-$NODE_RANK"\n'
        '[ "$NODE_RANK" = 1 ] || exec sleep 600\nsleep 600 &\ntouch "$BENCHMARK_LOGS_DIR/.bench_done.$SLURM_JOB_ID"'
    )
    said = cluster.run(cluster.plan(llmd()))
    assert "the container on node1 ended with 0" in said and "containers that still run are ended: 2" in said
    seen = dict(line.split("=", 1) for line in (cluster.logs / "env-2").read_text().splitlines() if "=" in line)
    assert seen["ALL_IPS"] == "10.0.0.10,10.0.0.11,10.0.0.12" and seen["DECODE_LEADER_IP"] == "10.0.0.11"
    assert seen["PREFILL_LEADER_IP"] == "10.0.0.10" and seen["DECODE_DP_SIZE"] == "8" and seen["PREFILL_DP_SIZE"] == "4"
    assert {path.name for path in (cluster.own / "logs").glob("node_*")} == {f"node_{i}_node{i}.log" for i in range(3)}
    assert left(str(cluster.root)) == []


def test_llmds_coordinator_decides(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "gb200-nv")
    cluster.server('[ "$NODE_RANK" = 1 ] || exec sleep 600\nexit 5')
    cluster.run(cluster.plan(llmd()), code=5)
    assert left(str(cluster.root)) == []


def test_tilert_has_a_role_and_an_image_a_node(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "b200-dgxc")
    cluster.server(f'echo "$TILERT_ROLE $DECODE_HOST $PREFILL_HOST $MODEL_PATH" >"{tmp_path}/seen-$TILERT_ROLE"')
    said = cluster.run(cluster.plan(tilert()))
    for side in ("decode", "prefill"):
        assert (tmp_path / f"seen-{side}").read_text() == f"{side} node0 node1 {cluster.model}\n"
    assert "IMAGE" in said and f"{tmp_path}/images/other_image_tag.sqsh" in said
    assert (cluster.own / "logs/prefill_1_node1.log").is_file() and (cluster.own / "logs/decode_0_node0.log").is_file()


@pytest.mark.parametrize("results", [False, True])
def test_a_container_of_llmd_that_fails_on_one_node_of_three(tmp_path: Path, results: bool) -> None:
    """A server, not the coordinator's: the job ends with its code, whatever was measured before."""
    cluster = Cluster(tmp_path, "gb200-nv")
    wrote = 'echo "{}" >"$BENCHMARK_LOGS_DIR/result.json"; ' if results else ""
    cluster.server(f'{wrote}[ "$NODE_RANK" = 2 ] || exec sleep 600\nexit 9')
    said = cluster.run(cluster.plan(llmd()), code=9)
    assert "the container on node2 ended with 9" in said and left(str(cluster.root)) == []
    assert (cluster.logs / "result.json").exists() == results


@pytest.mark.parametrize("kind", ["llm-d", "tilert"])
@pytest.mark.parametrize("fault", ["model", "lost"])
def test_a_node_without_the_model_and_one_that_is_lost(tmp_path: Path, kind: str, fault: str) -> None:
    lane, row, _ = LANES[kind]
    cluster = Cluster(tmp_path, lane)
    plan, root = cluster.plan(row()), cluster.stand_ins
    if fault == "model":
        (cluster.model / "config.json").unlink()
        assert f"the checkpoint {cluster.model} on node" in cluster.run(plan, code=4)
        assert not [call for call in cluster.calls("srun") if any("container-image" in word for word in call)]
    else:
        cluster.server(
            f'[ "$SLURMD_NODENAME" = node1 ] || exec sleep 600\ntouch {root}/lost-node1; kill -9 $(<{root}/srun-node1)'
        )
        assert "the container on node1 ended with 137" in cluster.run(plan, code=137)
    assert left(str(cluster.root)) == []


@pytest.mark.parametrize(("failing", "code"), [("decode", 4), ("prefill", 6)])
def test_either_role_of_tilert_fails_the_job(tmp_path: Path, failing: str, code: int) -> None:
    """The bash launcher looked at the prefill side alone."""
    cluster = Cluster(tmp_path, "b200-dgxc")
    cluster.server(f'[ "$TILERT_ROLE" != {failing} ] || exit {code}\nsleep 600')
    cluster.run(cluster.plan(tilert()), code=code)
    assert left(str(cluster.root)) == []


@pytest.mark.parametrize("fault", ["cut", "other", "gone"])
def test_a_squash_file_that_a_node_cannot_use(tmp_path: Path, fault: str) -> None:
    cluster = Cluster(tmp_path, "b200-dgxc")
    plan = cluster.plan(tilert())
    cluster.environment["BASH_ENV"] = str(tmp_path / "break")
    image = plan.images[0].squash
    (tmp_path / "break").write_text(
        {"cut": f"truncate -s 60 '{image}'", "other": f"echo html >'{image}'", "gone": f"rm -f '{image}'"}[fault] + "\n"
    )
    assert f"launcher: error: image {image}: " in cluster.run(plan, code=3)
