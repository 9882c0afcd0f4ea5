"""Which process is meant: alive, gone, or not to be told from here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.core import process
from launcher.core.process import ProcessIdentity, host_label
from launcher.core.publish import temporary_name

CONTAINER = "pid:[4026532999]"
MACHINE = "pid:[4026531836]"


def test_this_process_is_alive() -> None:
    assert ProcessIdentity.current().alive() is True
    assert ProcessIdentity.current() == ProcessIdentity.of(os.getpid())


def test_one_that_has_ended_is_not_reaped_or_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = ProcessIdentity.of(child.pid)
    assert process.alive() is True
    assert child.stdin is not None
    child.stdin.close()
    deadline = time.monotonic() + 30
    while process.alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.alive() is False, "ended and not reaped"
    child.wait()
    assert process.alive() is False, "gone"


@pytest.mark.parametrize(
    ("changes", "alive"),
    [
        ({"started": "1"}, False),  # the pid was given out again
        ({"pid": 0}, False),
        ({"host": "login-2"}, None),
        ({"pid_namespace": CONTAINER}, None),
        ({"pid_namespace": CONTAINER, "pid": 2**22 + 1}, None),
        ({"pid_namespace": ""}, True),  # as older launchers wrote it
        ({"boot": "an earlier one", "pid_namespace": MACHINE}, False),
        ({"boot": "an earlier one", "pid_namespace": ""}, False),
        ({"boot": "another machine's", "pid_namespace": CONTAINER}, None),
        ({"boot": ""}, None),
    ],
)
def test_what_a_record_proves(changes: dict[str, object], alive: bool | None) -> None:
    process = replace(ProcessIdentity.current(), **changes)  # type: ignore[arg-type]
    assert process.alive() is alive


def test_a_living_process_of_another_namespace_is_never_called_dead() -> None:
    """Two containers of one machine that share its host name, as those of GitHub runners do."""
    program = "from launcher.core.process import *; print(ProcessIdentity.current().pid_namespace); input()"
    command = ["unshare", "--fork", "--pid", "--mount-proc", sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdin is not None
        namespace = child.stdout.readline().strip()
        if not namespace:
            pytest.skip("no PID namespace can be made here")
        there = replace(ProcessIdentity.current(), pid=1, started="7", pid_namespace=namespace)
        assert there.alive() is None
        child.stdin.write("\n")


def test_processes_that_proc_hides_are_not_called_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_started", lambda pid: None)
    assert replace(ProcessIdentity.current(), started="7").alive() is None


def test_a_name_of_a_file_says_the_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_pid_namespace", lambda: MACHINE)
    outside = host_label()
    monkeypatch.setattr(process, "_pid_namespace", lambda: CONTAINER)
    assert host_label() == f"{outside}-4026532999"
    assert f".{host_label()}.{os.getpid()}." in temporary_name(tmp_path / "x").name
