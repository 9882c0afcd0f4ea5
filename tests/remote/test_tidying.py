"""What is removed on a login node, and what a run or sweep that has not ended keeps, however old it is."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from launcher.cli import detached
from launcher.remote import tidying
from launcher.remote.agent import Tidied
from launcher.remote.commands import STARTED
from launcher.run.fields import RunFields
from launcher.run.record import RunRecord
from launcher.sweep.ledger import Ledger
from launcher.sweep.schema import Began, Left, Policy, Sweep


def bundle(state: Path, what: str, *, age: float = 2 * tidying.DAY) -> str:
    """A bundle that was asked for so many seconds ago; its name."""
    name = hashlib.sha256(what.encode()).hexdigest()
    (state / "bundles" / name / "workspace").mkdir(parents=True)
    os.utime(state / "bundles" / name, (then := time.time() - age, then))
    return name


def started(record: Path, name: str, version: str = "v") -> None:
    argv = [f"/home/u/.launcher/versions/{version}/python/bin/python", "--workspace", f"/x/bundles/{name}/workspace"]
    (record / STARTED).write_text(json.dumps({"argv": argv}))


def run(state: Path, name: str, how: str, **plans: str) -> Path:
    directory = state / "runs" / name
    directory.mkdir(parents=True)
    RunRecord(directory, RunFields(name, "local")).update(created=1.0, state=how)
    (directory / "plan.json").write_text(json.dumps({k: f"/x/bundles/{v}/recipes" for k, v in plans.items()}))
    return directory


def sweep(state: Path, name: str, *ends: str) -> Path:
    """A sweep with a driver for each of these ends; "" for one that was killed, or that goes on."""
    made = Sweep(id=name, created=1.0, launcher="", selection=(), policy=Policy(), jobs=())
    ledger = Ledger.create(state / "sweeps", made)
    for why in ends:
        ledger.append(Began(time=1.0, driver="pid 1", policy=Policy()))
        if why:
            ledger.append(Left(time=2.0, why=why, exit_code=0))
    return ledger.directory


def test_bundles_that_nobody_needs_go_after_a_day(tmp_path: Path) -> None:
    state, there = tmp_path / "state", tmp_path / "there"
    old, new = bundle(state, "old"), bundle(state, "new", age=60)
    (state / "bundles/.part").write_bytes(b"cut")
    os.utime(state / "bundles/.part", (1, 1))
    planned, resumed, ended = (bundle(state, what) for what in ("planned", "resumed", "ended"))
    started(run(state, "goes-on", "running", workspace=planned), resumed)
    started(run(state, "over", "failed", workspace=ended), ended)
    damaged = bundle(state, "damaged")
    (run(state, "damaged", "running", workspace=damaged) / "run.json").write_text("{")
    kept, over = [], []
    for number, ends in enumerate((("",), ("stopped",), ("drained",), ("finished", ""), ("SIGTERM",))):
        kept.append(bundle(state, f"sweep{number}"))
        started(sweep(state, f"s{number}", *ends), kept[-1])
    for number, ends in enumerate((("finished",), ("cancelled",), ("", "finished"))):
        over.append(bundle(state, f"over{number}"))
        started(sweep(state, f"o{number}", *ends), over[-1])
    unneeded = sorted([".part", old, ended, *over])
    for apply in (False, True):
        assert tidying.tidy(state, str(there), apply) == Tidied(apply, (), tuple(unneeded), (), (str(state),))
    left = {path.name for path in (state / "bundles").iterdir()}
    assert left == {new, planned, resumed, damaged, *kept}


def test_versions_that_a_run_needs_stay_beside_the_newest_two(tmp_path: Path) -> None:
    state, there = tmp_path / "state", tmp_path / "there/versions"
    for age, name in enumerate(("newest", "second", "of-a-run", "of-a-sweep", "of-an-ended", ".half")):
        (there / name).mkdir(parents=True)
        os.utime(there / name, (then := time.time() - 40 * tidying.DAY - age, then))
    there.chmod(0o700)
    started(run(state, "r", "running"), "b", "of-a-run")
    started(sweep(state, "s", ""), "b", "of-a-sweep")
    started(run(state, "e", "succeeded"), "b", "of-an-ended")
    found = tidying.tidy(state, str(there.parent), apply=True)
    assert set(found.versions) == {"of-an-ended", ".half"}
    assert set(found.kept) == {"newest", "second", "of-a-run", "of-a-sweep"}
    assert {path.name for path in there.iterdir()} == set(found.kept)


def test_what_runs_of_another_state_directory_need_stays(tmp_path: Path) -> None:
    state, other, gone = (tmp_path / name for name in ("state", "other", "gone"))
    needed, old = bundle(state, "needed"), bundle(state, "old")
    started(run(other, "r", "running"), needed)
    argv = json.loads((other / "runs/r" / STARTED).read_text())["argv"]
    for place, words in ((other, argv), (other, argv), (gone, argv), (state, argv), (tmp_path, ["launcher", "x"])):
        tidying.register_state(state, place, words)
    found = tidying.tidy(state, str(tmp_path / "there"), apply=True)
    assert (found.bundles, found.states) == ((old,), (str(state), str(other)))
    assert (state / "bundles" / needed).is_dir()
    RunRecord.load(other / "runs", "r").update(state="failed")
    assert tidying.tidy(state, str(tmp_path / "there")).bundles == (needed,)


def test_a_driver_in_another_state_directory_leaves_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_STATE", str(tmp_path / "state"))
    record = run(tmp_path / "other", "r", "running")
    sent = argparse.Namespace(workspace="/x/bundles/b/workspace")
    driver = detached.start_driver("r", ["schema"], record / "log", tmp_path / "other", sent)
    assert driver.child.wait(60) is not None and tidying.other_states(tmp_path / "state") == [tmp_path / "other"]


def test_what_cannot_be_read_of_a_run_that_goes_on_keeps_everything(tmp_path: Path) -> None:
    bundle(tmp_path, "old")
    (run(tmp_path, "r", "running") / STARTED).mkdir()
    with pytest.raises(OSError, match="directory"):
        tidying.tidy(tmp_path, str(tmp_path / "there"), apply=True)
    assert len(list((tmp_path / "bundles").iterdir())) == 1
