"""What a node is asked: each look, red and good, by the functions that every job's script has."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from launcher.core.node_clock import NAME, write_clock
from launcher.plan.preflight import functions

FRAME = """
say() { echo "say $*"; }; fact() { echo "fact $1=$2"; }
fail() { echo "red $1: ${*:2}"; exit "$1"; }
"""


def look(tmp_path: Path, call: str, **tools: str) -> tuple[int, str]:
    """The exit code and what is said of a look; ``tools`` are the vendor's programs by what they print."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in tools.items():
        (programs / name.replace("_", "-")).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name.replace("_", "-")).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:/usr/bin:/bin"}
    argv = ["bash", "-c", f"{FRAME}\n{functions()}\n{call}"]
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
    sent, offset = (tmp_path / NAME).read_text().split()
    assert abs(int(sent) - time.time()) < 60 and offset == "0"
    found = look(tmp_path, f"look_at_clock {int(sent) - ahead} {offset} {tmp_path}")
    assert found[0] == code and (code == 0 or "off the login node's" in found[1])


def test_a_clock_off_the_file_servers_shows_both_ways(tmp_path: Path) -> None:
    for offset in (-30, 30):  # the login node is so far from the file server, and this node is not
        code, said = look(tmp_path, f"look_at_clock {int(time.time())} {offset} {tmp_path}")
        assert code == 8 and f"its clock is {-offset} s off" in said
