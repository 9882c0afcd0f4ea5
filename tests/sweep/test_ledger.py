"""The files of a sweep: whole or absent, never changed, and read whatever a kill or a full disk left of them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.core.errors import ConfigError, LauncherError
from launcher.sweep.ledger import Ledger, names
from launcher.sweep.schema import Began, Job, Left, Policy, Requested, Skipped, Started, Sweep
from tests.benchmarks import a_benchmark


def a_job(key: str = "one", **changes: object) -> Job:
    given: dict[str, Any] = {"runner": "local", "kind": "srtctl", "fingerprint": {"recipe": "abc"}, **changes}
    return Job(key=key, benchmark=a_benchmark(), **given)


def a_sweep(name: str = "s", *jobs: Job) -> Sweep:
    jobs = jobs or (a_job(),)
    return Sweep(id=name, created=1.0, launcher="1", selection=("-k", "x"), policy=Policy(), jobs=jobs)


def test_a_sweep_comes_back_as_it_was_made(tmp_path: Path) -> None:
    made = Ledger.create(tmp_path, a_sweep("m3", a_job("a", nodes=2, gpus=8, seconds=3600.0), a_job("b")))
    assert Ledger.load(tmp_path, "m3").sweep == made.sweep
    assert made.sweep.jobs[0].gpu_hours == 8.0
    assert names(tmp_path) == ["m3"]
    assert (tmp_path / "m3" / "sweep.json").stat().st_mode & 0o077 == 0


def test_a_name_is_given_once_and_an_unknown_one_names_its_neighbour(tmp_path: Path) -> None:
    Ledger.create(tmp_path, a_sweep("m3-weekend"))
    with pytest.raises(ConfigError, match="there is a sweep m3-weekend already"):
        Ledger.create(tmp_path, a_sweep("m3-weekend", a_job("other")))
    assert Ledger.load(tmp_path, "m3-weekend").sweep.jobs[0].key == "one"
    with pytest.raises(ConfigError, match="no sweep m3-weekand") as caught:
        Ledger.load(tmp_path, "m3-weekand")
    assert caught.value.hint == "did you mean m3-weekend?"
    for wrong in ("../x", "", "a b", "x" * 61, ".hidden"):
        with pytest.raises(ConfigError, match="cannot be a sweep's name"):
            Ledger.load(tmp_path, wrong)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"schema": 0}', "expected schema 1, and it is 0"),
        (b'{"schema": 2, "id": "s"}', "expected schema 1, and it is 2"),
        (b"{}", "expected schema 1, and it is null"),
        (b'{"schema": 1, "id": "s"}', "missing required field"),
        (b"[1]", "Expected `object`"),
        (b"\xff{", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_another_versions_or_a_torn_sweep_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    ledger = Ledger.create(tmp_path, a_sweep())
    (ledger.directory / "sweep.json").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        Ledger.load(tmp_path, "s")


def test_events_are_read_in_order_and_what_is_torn_is_passed_over(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, a_sweep())
    assert ledger.events() == []
    written = [
        Began(time=1.0, driver="me", policy=Policy(max_jobs=2)),
        Started(time=2.0, job="one", run="s-one-1", concurrencies=(1, 4), gpu_hours=1.5),
        Skipped(time=1.5, job="one", why="canary failed"),
    ]
    for event in written:
        ledger.append(event)
    path = ledger.directory / "events.jsonl"
    with path.open("ab") as file:
        file.write(b'{"event":"start","time":3.0,"job":"on')
    assert ledger.events() == written, "order is by line, not by time"
    assert ledger.unread[0].startswith("line 4 of events.jsonl is passed over")
    ledger.append(Left(time=4.0, why="finished", exit_code=0))
    with path.open("ab") as file:
        file.write(b'{"event":"of a later version","time":5}\n\xff\xfe\n[]\n')
    assert ledger.events() == [*written, Left(time=4.0, why="finished", exit_code=0)]
    assert len(ledger.unread) == 4


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.create(tmp_path, a_sweep())
    ledger.append(Skipped(time=1.0, job="one", why="x"))
    write = os.write

    def half(handle: int, content: bytes) -> int:
        return write(handle, content[: len(content) // 2])

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name, instead in (("write", half), ("fsync", full)):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, instead)
            with pytest.raises(LauncherError, match="No space left"):
                ledger.append(Skipped(time=2.0, job="one", why="y"))
    ledger.append(Skipped(time=3.0, job="one", why="z"))
    assert [event.why for event in ledger.events() if isinstance(event, Skipped)] == ["x", "z"]
    assert not ledger.unread


def test_one_drives_and_another_is_told_who(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, a_sweep())
    assert ledger.driver() is None
    with ledger.lock() as mine:
        assert mine.acquired
        owner = ledger.driver()
        assert owner is not None and owner.pid == os.getpid()
        with ledger.lock() as other:
            assert not other.acquired and "drives sweep s" in str(other.owner)
    assert ledger.driver() is None


def test_requests_wait_for_the_driver_in_order(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, a_sweep())
    for verb in ("pause", "drain"):
        ledger.add_request(Requested(time=1.0, verb=verb, by="me"))  # type: ignore[arg-type]
    (ledger.directory / "requests" / "x.json").write_bytes(msgspec.json.encode({"event": "end"}))
    found = [request for _, request in ledger.requests()]
    assert [r.verb if isinstance(r, Requested) else None for r in found] == ["pause", "drain", None]
