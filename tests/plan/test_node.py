"""What a node is asked: each look, red and good, by the functions that every job's script has."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launcher.core.node_partner import CLOCK, answering_nodes, write_clock
from launcher.plan.derive import local_locks
from launcher.plan.preflight import declare_local_locks, shell_functions
from launcher.runner.cluster_schema import Storage

FRAME = """
say() { echo "say $*"; }; fact() { echo "fact $1=$2"; }
fail() { echo "red $1: ${*:2}"; exit "$1"; }
"""


LOOK_LONG = "ask_login {0}; asked_at=${{asked_at:+$((SECONDS + 40))}}; hear_login {0}"
"""Both calls of a node; the answer of a login node that is slow is waited for, and where none comes `look` fails."""


def look(tmp_path: Path, call: str, **tools: str) -> tuple[int, str]:
    """The exit code and what is said of a look; ``tools`` are the vendor's programs by what they print."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in tools.items():
        (programs / name.replace("_", "-")).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name.replace("_", "-")).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:/usr/bin:/bin"}
    argv = ["bash", "-c", f"{FRAME}\n{shell_functions()}\n{call}"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def percent(*used: int) -> str:
    return "printf '%s\\n' " + " ".join(f"'{100 * one}, 10000'" for one in used)


@pytest.mark.parametrize(
    ("call", "tool", "code", "said"),
    [
        ("look_at_gpus 2 yes 0", percent(1, 2), 0, "fact gpus=2"),
        ("look_at_gpus 4 yes 0", percent(1, 2), 8, "it has 2 GPUs, and the job needs 4"),
        ("look_at_gpus 2 yes 0", percent(1, 30), 8, "the memory of its GPUs is in use: 1 30 percent"),
        ("look_at_gpus 2 no 0", percent(1, 30), 0, "fact gpus=2"),
        ("look_at_gpus 2 yes 0", "echo 'no driver'; exit 9", 8, "its GPUs do not answer: no driver"),
    ],
)
def test_gpus(tmp_path: Path, call: str, tool: str, code: int, said: str) -> None:
    found = look(tmp_path, call, nvidia_smi=tool)
    assert found[0] == code and said in found[1]


def test_without_a_tool_gpus_are_not_looked_at(tmp_path: Path) -> None:
    code, said = look(tmp_path, "command() { return 1; }; look_at_gpus 2 yes 0")
    assert code == 0 and "no tool tells of its GPUs" in said


def test_memory_that_an_earlier_job_gives_back_is_waited_for(tmp_path: Path) -> None:
    flag = shlex.quote(str(tmp_path / "asked"))
    tool = f"[ -e {flag} ] && {percent(1)} || {{ touch {flag}; {percent(90)}; }}"
    code, said = look(tmp_path, "sleep() { :; }; look_at_gpus 1 yes 60", nvidia_smi=tool)
    assert code == 0 and "fact gpus=1" in said


def test_directories(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert look(tmp_path, f"look_at_directories 0 {tmp_path}/new")[0] == 0
    code, said = look(tmp_path, f"look_at_directories 0 {tmp_path}/file/below")
    assert code == 8 and f"{tmp_path}/file/below cannot be written" in said
    code, said = look(tmp_path, f"look_at_directories 999999999999 {tmp_path}")
    assert code == 8 and "MiB left, and at least 999999999999 are needed" in said


@pytest.mark.parametrize(("ahead", "code"), [(0, 0), (4, 0), (-60, 8), (60, 0)])
def test_a_clock_that_is_behind(tmp_path: Path, ahead: int, code: int) -> None:
    """This file system stamps by this host's clock, so that one that is ahead does not show."""
    write_clock(tmp_path)
    sent, offset = (tmp_path / CLOCK).read_text().split()
    assert abs(int(sent) - time.time()) < 60 and offset == "0"
    (tmp_path / CLOCK).write_text(f"{int(sent) - ahead} {offset}\n")
    found = look(tmp_path, f"look_at_clock {tmp_path}")
    assert found[0] == code and (code == 0 or "off the login node's" in found[1])


def test_a_clock_off_the_file_servers_shows_both_ways(tmp_path: Path) -> None:
    for offset in (-30, 30):  # the login node is so far from the file server, and this node is not
        (tmp_path / CLOCK).write_text(f"{int(time.time())} {offset}\n")
        code, said = look(tmp_path, f"look_at_clock {tmp_path}")
        told = re.search(r"its clock is (-?\d+) s off", said)  # a second may begin between the two looks
        assert code == 8 and told and int(told[1]) + offset in (0, 1)


@pytest.mark.parametrize(
    ("tools", "code", "said"),
    [
        ({}, 0, "fact locks=hold with the login node"),
        ({"flock": "exit 0"}, 8, "a lock that it holds in {0} is, on the login node: not seen"),
        ({"flock": "exit 0"}, 8, "`locks: local` of its `storage`"),
        ({"flock": "exit 71"}, 8, "a lock in {0} cannot be had there (flock: 71)"),
        ({"flock": "exit 127"}, 0, "nobody on the login node says"),
    ],
)
def test_locks_hold_between_the_login_node_and_this_one(
    tmp_path: Path, tools: dict[str, str], code: int, said: str
) -> None:
    before = threading.enumerate()
    with answering_nodes(tmp_path) as place:
        assert place is not None
        found = look(tmp_path, LOOK_LONG.format(place), **tools)
        assert found[0] == code and said.format(place) in found[1]
    assert not place.exists() and [t for t in threading.enumerate() if t not in before] == []


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ({}, "hold with the login node, though the runner file says that they do not"),
        ({"flock": "exit 0"}, "are each host's own, as the runner file says: a lock that it holds in {0} is"),
        ({"flock": "exit 71"}, "are each host's own, as the runner file says: a lock in {0} cannot be had"),
    ],
)
def test_where_locks_are_known_to_be_local_they_are_told_and_not_judged(
    tmp_path: Path, tools: dict[str, str], said: str
) -> None:
    with answering_nodes(tmp_path) as place:
        assert place is not None
        calls = [*declare_local_locks(local=True), LOOK_LONG.format(place)]
        code, found = look(tmp_path, "; ".join(calls), **tools)
        assert code == 0 and f"fact locks={said.format(place)}" in found


def test_which_storage_says_so_is_in_the_plan_only_where_one_does() -> None:
    shared, local = Storage(path="/a", kind="nfs"), Storage(path="/a/b", kind="nfs", locks="local")
    assert local_locks([shared]) == {} and local_locks([shared, local]) == {"/a": False, "/a/b": True}


def test_a_lock_of_the_login_node_that_is_not_seen_here(tmp_path: Path) -> None:
    """flock_stand_in: the node's own lock, its first, holds, and it gets every other one as well."""
    with answering_nodes(tmp_path) as place:
        assert place is not None
        first = f'[ ! -e {tmp_path}/first ] || exit 0; touch {tmp_path}/first; exec /usr/bin/flock "$@"'
        found = look(tmp_path, LOOK_LONG.format(place), flock=first)
    assert found[0] == 8 and f"does not see the lock that the login node holds in {place}" in found[1]


def test_several_nodes_ask_at_once_and_each_is_answered(tmp_path: Path) -> None:
    """One node's lock does not stand for another's."""
    with answering_nodes(tmp_path, 3) as place:
        calls = [f"SLURM_PROCID={rank}; {LOOK_LONG.format(place)}" for rank in range(3)]
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda call: look(tmp_path, call), calls))
    assert [code for code, _ in found] == [0, 0, 0] and all("hold with the login node" in said for _, said in found)


def test_without_a_launcher_locks_are_not_judged(tmp_path: Path) -> None:
    """Its files are there, and it was killed: the node goes on after a bound, which a test does not wait for."""
    (tmp_path / "locks").mkdir()
    for name in ("login", "node.0"):
        (tmp_path / "locks" / name).touch()
    code, said = look(tmp_path, f"ask_login {tmp_path}; asked_at=$((SECONDS - 8)); hear_login {tmp_path}")
    assert code == 0 and "nobody on the login node says whether locks hold" in said


# --- the checkpoint


def shard(path: Path, size: int = 4096, header: str | None = None, length: int | None = None) -> None:
    text = (header or f'{{"t":{{"dtype":"BF16","shape":[{size // 2}],"data_offsets":[0,{size}]}}}}').encode()
    path.write_bytes((length or len(text)).to_bytes(8, "little") + text + b"\1" * size)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "longer": (lambda m: shard(m / "model-00002.safetensors", length=99), "is not as long as its header says"),
    "a header of gigabytes": (lambda m: shard(m / "model-00002.safetensors", length=1 << 40), "is not as long"),
    "a page": (
        lambda m: (m / "tokenizer.json").write_text("<!DOCTYPE html>\n"),
        "tokenizer.json is a pointer or a page",
    ),
    "a link that leads out": (
        lambda m: (
            (m / "model-00001.safetensors").rename(m.parent / "away"),
            (m / "model-00001.safetensors").symlink_to(m.parent / "away"),
        ),
        "is a link that leads out",
    ),
}


@pytest.mark.parametrize("fault", ["none", *SPOILED])
def test_the_checkpoint_is_whole_and_the_declared_one(tmp_path: Path, fault: str) -> None:
    model = tmp_path / "a model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["Ours"]}')
    (model / "tokenizer.json").write_text("{}")
    weights = {f"t{number}": f"model-0000{number}.safetensors" for number in (1, 2, 3)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    for name in weights.values():
        shard(model / name)
    spoil, said = SPOILED.get(fault, (lambda _: None, "say checkpoint"))
    spoil(model)
    call = f"model={shlex.quote(str(model))} mounted=(); check_checkpoint; check_identity architecture Ours"
    found = look(tmp_path, call)
    assert found[0] == (0 if fault == "none" else 4) and said in found[1]
