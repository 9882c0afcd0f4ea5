"""A look from one node before a job is submitted: what is red, by layer, and how long an answer holds."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from launcher.core.errors import ImageError, LauncherError, ModelError, NodeError
from launcher.core.process import Completed
from launcher.plan.plan import Plan
from launcher.run.verdict import verdict
from launcher.srtctl.short_job import KEPT, check_from_node
from tests.container.plans import a_plan, an_image
from tests.model.checkpoints import checkpoint


class Node:
    """srun_stand_in: this host is the node."""

    def __init__(self, answers: bool = True, flock: str = "") -> None:
        self.calls: list[list[str]] = []
        self.answers, self.flock = answers, flock

    def __call__(self, argv: Sequence[str], *, timeout: float, env: Mapping[str, str], **more: object) -> Completed:
        self.calls.append(list(argv))
        if not self.answers:
            return Completed(tuple(argv), 1, "", "srun: error: Unable to allocate resources", 0.0)
        at = list(argv).index("bash")
        words = ["bash", "-c", f"{self.flock}\n{argv[at + 2]}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        return Completed(tuple(argv), done.returncode, done.stdout, done.stderr, 0.0)


def plan_of(root: Path) -> Plan:
    checkpoint(root / "model")
    image = dataclasses.replace(an_image(root), shared=True)
    Path(image.squash).parent.mkdir(parents=True, exist_ok=True)
    Path(image.squash).write_bytes(b"hsqs" + bytes(36) + (96).to_bytes(8, "little") + bytes(48))
    plan = a_plan(root, images=(image,))
    return dataclasses.replace(plan, model=dataclasses.replace(plan.model, path=str(root / "model")))


def test_a_good_answer_is_used_again_for_a_while(tmp_path: Path) -> None:
    plan, node, state = plan_of(tmp_path), Node(), tmp_path / "state"
    assert "looked at images and checkpoint" in check_from_node(plan, state, node, {})
    assert "minutes ago" in check_from_node(plan, state, node, {}) and len(node.calls) == 1
    assert state.stat().st_mode & 0o777 == 0o700
    assert "ask_login" in node.calls[0][-1] and not list(tmp_path.rglob("*launcher-look*")), "the login node was there"
    later = next(state.iterdir()).stat().st_mtime + KEPT + 1
    check_from_node(plan, state, node, {}, now=later)
    assert len(node.calls) == 2 and "--gres=none" in node.calls[0]


def test_an_answer_that_cannot_be_read_is_asked_again(tmp_path: Path) -> None:
    plan, node, state = plan_of(tmp_path), Node(), tmp_path / "state"
    check_from_node(plan, state, node, {})
    (answer,) = state.iterdir()
    for number, spoil in enumerate((lambda: answer.write_bytes(b"\xff"), lambda: os.truncate(answer, 1 << 42)), 2):
        spoil()
        assert "looked at images and checkpoint" in check_from_node(plan, state, node, {})
        assert len(node.calls) == number


@pytest.mark.parametrize(("gone", "error"), [("model/config.json", ModelError), ("image", ImageError)])
def test_what_is_red_is_put_down_to_its_layer_and_asked_again(
    tmp_path: Path, gone: str, error: type[LauncherError]
) -> None:
    plan, node = plan_of(tmp_path), Node()
    (Path(plan.images[0].squash) if gone == "image" else tmp_path / gone).unlink()
    for _ in range(2):
        with pytest.raises(error, match=str(tmp_path)) as raised:
            check_from_node(plan, tmp_path / "state", node, {})
    assert verdict(raised.value).layer == error.layer and len(node.calls) == 2


def test_locks_that_a_node_has_for_itself_are_a_fault_of_the_node(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=r"a lock that it holds in .* not seen") as raised:
        check_from_node(plan_of(tmp_path), tmp_path / "state", Node(flock="flock() { :; }"), {})
    assert verdict(raised.value).layer == "node"


def test_a_partition_without_a_free_node_keeps_nothing_from_running(tmp_path: Path) -> None:
    said = check_from_node(plan_of(tmp_path), tmp_path / "state", Node(answers=False), {})
    assert "no node looked" in said and not (tmp_path / "state").exists()
