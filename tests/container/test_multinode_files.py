"""What a job of several nodes left, and what containers may have done to it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.container.multinode_kind import OURS, MultinodeKind, own_directory
from launcher.container.multinode_planned import MultinodeJob
from launcher.container.multinode_resolve import MultinodePlanner
from launcher.container.multinode_results import Gathered
from launcher.result.contradictions import Window
from tests.container.multinode_nodes import ID, Cluster, a_row


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
    mark(cluster.logs / OURS)
    plan = cluster.plan()
    assert kind().own_directories(plan) == [own_directory(plan), *([cluster.logs] if ours else [])]


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
    gathered = Gathered(plan, cluster.workspace, cluster.own, ID, Window(int(now) - 60, now + 60))
    gathered.gather()
    (found,) = cluster.own.rglob("results_concurrency_4_*.json")
    assert found.read_text() == '{"half'
    (cluster.workspace / name).write_text('{"half": 1}')
    gathered.gather()
    gathered.gather()
    assert found.read_text() == '{"half": 1}'
