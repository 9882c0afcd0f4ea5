"""What a job of several nodes left, and what containers may have done to it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.container.multinode_kind import OWNER_FILE, MultinodeKind
from launcher.container.multinode_resolve import MultinodePlanner
from launcher.container.multinode_results import NodeFiles
from launcher.container.planned import MultinodeJob
from launcher.result.contradictions import Window
from tests.container.multinode_nodes import ID, LANES, Cluster, a_row
from tests.result.documents import age


def kind() -> MultinodeKind:
    return MultinodeKind(MultinodePlanner("me").plan)


def big(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


@pytest.mark.parametrize(
    ("mark", "ours"),
    [
        (lambda path: path.write_text("77-1-abc\n"), True),
        (lambda path: path.write_text("78-1-abc\n"), False),
        (lambda path: None, False),
        (os.mkfifo, False),
        (big, False),
        (lambda path: path.write_bytes(b"\xff"), False),
    ],
)
def test_whose_a_directory_of_logs_is(tmp_path: Path, mark: Callable[[Path], object], ours: bool) -> None:
    cluster = Cluster(tmp_path)
    cluster.logs.mkdir()
    mark(cluster.logs / OWNER_FILE)
    plan = cluster.plan()
    assert kind().own_directories(plan) == [kind().own_directory(plan), *([cluster.logs] if ours else [])]


def test_a_script_that_is_no_file_has_no_fingerprint(tmp_path: Path) -> None:
    plan = Cluster(tmp_path).plan()
    script = Path(plan.workspace.path, MultinodeJob.of(plan).script.path)
    assert len(kind().fingerprint(plan)["script"]) == 12
    script.unlink()
    os.mkfifo(script)
    assert kind().fingerprint(plan) == {"script": ""}


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_the_file_system_shows_late_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refused(*_: object) -> None:
        raise OSError("hard links are not permitted")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refused)
    cluster, name = Cluster(tmp_path), "concurrency_4_req_rate_inf_gpus_16_ctx_8_gen_8.json"
    plan, now = cluster.plan(a_row(isl=1024, osl=1024)), time.time()
    (cluster.workspace / name).write_text('{"half')
    gathered = NodeFiles(plan, cluster.workspace, cluster.own, ID, Window(int(now) - 60, now + 60))
    gathered.gather()
    (found,) = cluster.own.rglob("results_concurrency_4_*.json")
    assert found.read_text() == '{"half'
    (cluster.workspace / name).write_text('{"half": 1}')
    gathered.gather()
    gathered.gather()
    assert found.read_text() == '{"half": 1}'


@pytest.mark.parametrize("kind", LANES)
def test_nothing_of_another_job_is_taken(tmp_path: Path, kind: str) -> None:
    """Of an earlier job by the time, of one beside it by its id, which may contain ours."""
    lane, row, _ = LANES[kind]
    cluster, now = Cluster(tmp_path, lane), time.time()
    plan, amd = cluster.plan(row(isl=1024, osl=1024)), kind == "amd-multinode"
    theirs, mine = cluster.logs / "logs/slurm_job-770", cluster.logs / f"logs/slurm_job-{ID}"
    split = "gpus_16_ctx_8_gen_8.json"
    name = f"concurrency_4_req_rate_inf_{split}" if amd else f"{plan.results.filename}_c4_{split}"
    other = f"concurrency_8_req_rate_inf_{split}" if amd else f"another_c8_{split}"
    for path in (
        *(cluster.logs / f"slurm_job-{job}.{end}" for job in ("7", ID, "770", "177") for end in ("out", "err")),
        *(theirs / part for part in (other, "server_node0.log")),
        *(mine / part for part in ([name] if amd else []) + ["server_node0.log"]),
        *([cluster.workspace / name, cluster.workspace / other] if not amd else []),
        cluster.logs / "stale.log",
        cluster.workspace / "server_old.log",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"of {path.relative_to(tmp_path)}")
    for stale in (cluster.logs / "stale.log", cluster.workspace / "server_old.log"):
        age(stale, 3600)
    gathered = NodeFiles(plan, cluster.workspace, cluster.own, ID, Window(int(now) - 60, now + 60))
    gathered.gather()
    found = {path.relative_to(gathered.logs).as_posix(): path.read_text() for path in gathered.logs.rglob("*.*")}
    assert set(gathered.names.values()) == {f"{plan.results.filename}_{name}" if amd else name}
    assert found["benchmark_job.log"] == f"of checkout/benchmark_logs/slurm_job-{ID}.out"
    said = " ".join(found.values())
    assert (
        "stale" not in said and "old" not in said and "770" not in said and "job-7." not in said and "177" not in said
    )
    assert theirs.is_dir() and (cluster.logs / "slurm_job-770.out").exists()
