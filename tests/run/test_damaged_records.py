"""Records that others wrote, or that a disk tore: listed as what they are, and their jobs are ended all the same."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.core.errors import ConfigError
from launcher.core.process import ProcessIdentity
from launcher.run import finish
from launcher.run.image_usage import images_in_use
from launcher.run.kind import Run
from launcher.run.listing import UnreadableRecord, records
from launcher.run.orphans import end_run, end_unreadable, find_orphans, orphans_of_job_name
from launcher.run.record import RecordedJob, RunRecord
from launcher.slurm.client import JobKey
from tests.faults.records import COMMANDS, run_trials
from tests.run.driving import ONE, InProcessUser, LauncherUser
from tests.run.runs import RUNNING, ScriptedScheduler, a_run, plan_on, services, srtctl_kind

GONE = replace(ProcessIdentity.current(), pid=2**22 + 1)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs that were left: ``good``, and ``bad``, which tests damage."""
    directory = tmp_path / "runs"
    for name in ("bad", "good"):
        record = RunRecord.create(directory, plan_on("local", tmp_path, run_key=name))
        record.update(state="running", job=RecordedJob("7", 1.0, "/x", "/x/l"), owner=GONE)
        record.release()
    return directory


def changed(**values: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


DAMAGE = {
    "torn": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(b"\0" * 4096),
    "no UTF-8": lambda path: path.write_bytes(path.read_bytes().replace(b"local", b"\xff\xfe")),
    "a list": lambda path: path.write_text("[]"),
    "too deep": lambda path: path.write_text("[" * 100_000),
    "a number of 5,000 digits": lambda path: path.write_text('{"schema": ' + "9" * 5000 + "}"),
    "of another schema": changed(schema=2),
    "of another run": changed(id="good"),
    "steps as text": changed(stages="x"),
    "a step as text": changed(stages={"submit": "x"}),
    "a job as text": changed(job="7"),
    "a job without an id": changed(job={"output": "/x"}),
    "a job's id that is none": changed(job={"id": "7; rm"}),
    "a path with a NUL": changed(job={"id": "7", "log": "/x\0"}),
    "a time that is none": changed(created=float("inf")),
    "a time after all times": changed(stages={"submit": {"state": "done", "at": 1e18}}),
    "an owner without a host": changed(owner={"pid": 1}),
    "gone": lambda path: path.unlink(),
    "a directory": replaced(Path.mkdir),
    "a pipe": replaced(os.mkfifo),
    "a link to itself": replaced(lambda path: path.symlink_to(path)),
    "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_cannot_be_read_is_listed_as_such(runs: Path, damage: Callable[[Path], None]) -> None:
    damage(runs / "bad/run.json")
    unreadable: list[UnreadableRecord] = []
    assert [record.id for record in records(runs, unreadable)] == ["good"]
    (bad,) = unreadable
    assert bad.id == "bad" and "the run's record cannot be read" in bad.error.message
    assert bad.driven is False
    with pytest.raises(ConfigError, match="the run's record cannot be read"):
        RunRecord.load(runs, "bad")
    user = InProcessUser(runs.parent, extra={"LAUNCHER_STATE": str(runs.parent)})
    said = user.launcher("status")
    assert "bad" in said and "unreadable" in said and "1 record cannot be read" in said and "good" in said
    states = {one["id"]: one["state"] for one in json.loads(user.launcher("status", "--json"))}
    assert states == {"good": "running", "bad": "unreadable"}
    assert images_in_use(runs) == {RunRecord.load(runs, "good").plan.images[0].squash: ["good", "bad"]}


@pytest.mark.parametrize("damage", [{"recipe": 5}, {"srt_slurm": None}], ids=repr)
def test_a_damaged_plan_keeps_no_end_from_being_written(runs: Path, damage: dict[str, object]) -> None:
    changed(**damage)(runs / "bad/plan.json")
    record = RunRecord.load(runs, "bad")
    record.update(results="workspace")
    end_run(Run(record, record.plan, srtctl_kind(), services(ScriptedScheduler())), "x", list[str]().append)
    assert RunRecord.load(runs, "bad").fields.state == "cancelled"


def test_a_plan_with_half_a_character_cannot_be_read(runs: Path) -> None:
    """No file, program or terminal takes one; what stands for a byte of a name is whole."""
    changed(recipe="\udcff")(runs / "bad/plan.json")
    assert RunRecord.load(runs, "bad").plan.details["recipe"] == "\udcff"
    changed(recipe="\ud800")(runs / "bad/plan.json")
    with pytest.raises(ConfigError, match="no readable plan"):
        RunRecord.load(runs, "bad").plan  # noqa: B018


@pytest.mark.parametrize("images", ["x", 7.0, [1], ["x"], [{"reference": 7}], {}], ids=repr)
def test_images_of_a_record_that_are_none(tmp_path: Path, images: object) -> None:
    run = a_run(tmp_path, given=services(ScriptedScheduler()))
    run.record.set_step("images", "done", images=images)
    outcome = finish.end_early(run, ConfigError("x"))
    assert outcome.state == "failed" and RunRecord.load(tmp_path / "runs", "r1").fields.state == "failed"


@pytest.mark.parametrize("made", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_lock_that_is_no_file_is_nobodys(runs: Path, made: Callable[[Path], object]) -> None:
    """/dev/zero is one for the whole machine: whoever locks it would drive everybody's runs."""
    lock = runs / "bad/driver.lock"
    lock.unlink()
    made(lock)
    with Path("/dev/zero").open() as everybodys:
        fcntl.flock(everybodys, fcntl.LOCK_EX)
        record = RunRecord.load(runs, "bad")
        with pytest.raises(OSError, match=r"no file|directory|symbolic"):
            record.acquire()
        scheduler = ScriptedScheduler()
        scheduler.states["7"] = RUNNING
        end_run(Run(record, record.plan, srtctl_kind(), services(scheduler)), "launcher cleanup", list[str]().append)
        assert scheduler.cancelled == ["7"]
        assert UnreadableRecord(runs / "bad", ConfigError("x")).driven is False


def test_a_record_whose_plan_is_gone_too_protects_every_image(runs: Path, tmp_path: Path) -> None:
    (runs / "bad/run.json").write_text("{")
    (runs / "bad/plan.json").unlink()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.sqsh").write_bytes(b"")
    assert images_in_use(runs, [tmp_path / "images"])[f"{tmp_path}/images/a.sqsh"] == ["bad"]


def test_the_job_of_an_unreadable_record_is_looked_for_by_its_token(runs: Path) -> None:
    (runs / "bad/run.json").write_text("{")
    scheduler, said = ScriptedScheduler(), list[str]()
    scheduler.jobs, scheduler.states["9"] = [JobKey("9", 1.0, "bad")], RUNNING
    unreadable: list[UnreadableRecord] = []
    left, elsewhere = find_orphans(runs, unreadable)
    assert ([record.id for record in left], elsewhere) == (["good"], [])
    end_unreadable(unreadable[0], [scheduler], said.append)
    assert scheduler.cancelled == ["9"]
    assert "job 9: CANCELLED" in said[0] and "can be removed" in said[-1]


def test_whoever_drives_a_run_is_found_although_its_record_cannot_be_read(runs: Path) -> None:
    lost = UnreadableRecord(runs / "bad", ConfigError("x"))
    path = runs / "bad/run.json"
    text = path.read_text()
    path.write_text(text[:-20])
    assert lost.driven is False, "its owner is dead"
    path.write_text(text.replace(json.dumps(GONE.host), '"elsewhere"')[:-20])
    assert lost.driven is None, "its owner is on another host"
    path.write_text("{")
    record = RunRecord(runs / "bad", RunRecord.load(runs, "good").fields)
    with (
        record.submitting(),
        subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(runs / "bad/driver.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other,
    ):
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert lost.driven is True
        other.kill()
    assert lost.driven is False


_HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""


def test_a_job_that_the_record_has_lost_is_looked_for(runs: Path, tmp_path: Path) -> None:
    """A record that says that its run was submitted, and has no job, is not a run without one."""
    for state, stages in (("running", {}), ("cancelled", {"submit": {"state": "done"}})):
        changed(job=None, state=state, stages=stages)(runs / "good/run.json")
        record = RunRecord.load(runs, "good")
        assert record.fields.submission_in_doubt and not record.fields.settled and record.abandoned


@pytest.mark.parametrize(
    "line", ['{"text": "no time"}', '{"time": "x", "kind": "job", "text": "y"}', "7", "[" * 9999, "\xff"]
)
def test_a_torn_event_of_an_abandoned_run_stops_nobody(tmp_path: Path, line: str) -> None:
    scheduler = ScriptedScheduler()
    run = a_run(tmp_path, given=services(scheduler))
    run.record.update(state="running", job=RecordedJob("7", 1.0, "/x", "/x/l"), owner=GONE)
    scheduler.states["7"] = RUNNING
    with (run.record.directory / "events.jsonl").open("ab") as file:
        file.write(line.encode("latin-1") + b"\n" + b'{"time": 1e999, "kind": "job", "text": ""}\n')
    end_run(run, "the next launcher", lambda text: None)
    assert scheduler.cancelled == ["7"] and run.record.fields.settled


def test_the_next_job_of_a_github_runner_knows_what_may_be_its_own(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("77-1-0123456789ab", "78-1-0123456789ab", "by-hand"):
        RunRecord.create(runs, plan_on("local", tmp_path, run_key=name))
        (runs / name / "run.json").write_text("{")
    (runs / "78-1-0123456789ab/plan.json").write_text("{")
    unreadable: list[UnreadableRecord] = []
    assert orphans_of_job_name(runs, "local_0", unreadable) == ([], [])
    assert [(one.id, one.job_name) for one in unreadable] == [
        ("77-1-0123456789ab", "local_0"),
        ("78-1-0123456789ab", None),
    ]
    unreadable = []
    orphans_of_job_name(runs, "another_0", unreadable)
    assert [one.id for one in unreadable] == ["78-1-0123456789ab"]


def test_what_is_no_run_is_none(tmp_path: Path) -> None:
    (tmp_path / "runs/empty").mkdir(parents=True)
    (tmp_path / "runs/.made.part").mkdir()
    (tmp_path / "runs/file").write_text("")
    unreadable: list[UnreadableRecord] = []
    assert records(tmp_path / "runs", unreadable) == [] and unreadable == []


def _no_byte_more() -> None:
    """Every write to a file fails from here on, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_a_full_disk_keeps_no_job_from_being_ended(tmp_path: Path) -> None:
    scheduler = ScriptedScheduler()
    run = a_run(tmp_path, given=services(scheduler))
    run.record.update(state="running", job=RecordedJob("7", 1.0, "/x", "/x/l"), owner=GONE)
    run.record.release()
    scheduler.states["7"] = RUNNING
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _no_byte_more()
            said = list[str]()
            try:
                end_run(run, "cleanup", said.append)
            except Exception as error:  # noqa: BLE001
                said.append(f"{type(error).__name__}: {error}")
            os.write(writer, json.dumps([scheduler.cancelled, said]).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        cancelled, said = json.load(pipe)
    assert cancelled == ["7"]
    assert "its job is ended all the same" in said[0] and said[-1].startswith("LauncherError: ")
    assert "make room" in said[-1]


@pytest.mark.parametrize("command", [("sweep", "-k", "minimaxm3-fp8-gb200-*", "--runner", "local"), ("cleanup",)])
def test_a_full_state_disk_is_said(runs: Path, command: tuple[str, ...]) -> None:
    user = LauncherUser(runs.parent, extra={"LAUNCHER_STATE": str(runs.parent)})
    done = subprocess.run(
        [sys.executable, "-m", "launcher", *command],
        cwd=user.workspace,
        env=user.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=_no_byte_more,
    )
    said = done.stdout + done.stderr
    assert done.returncode not in (0, None) and "Traceback" not in said
    assert "File too large" in said, "how the kernel says it here"


def test_output_that_cannot_hold_a_letter_ends_nothing(tmp_path: Path) -> None:
    """A terminal of another encoding: the lines of a run's beginning have an ellipsis."""
    user = LauncherUser(tmp_path)
    with user.start(
        *("run", *ONE, "--conc", "4", "--runner", "local", "--run-id", "r"), PYTHONIOENCODING="ascii"
    ) as process:
        said, _ = process.communicate(timeout=120)
    assert "job 1 submitted" in said, "the job itself may need the letters"
    assert "unexpected UnicodeEncodeError" not in said and process.returncode in (0, 6)


def test_names_that_are_not_utf8_are_recorded(tmp_path: Path) -> None:
    record = a_run(tmp_path).record
    record.event("note", "file \udcff")
    record.set_step("images", "done", path="\udcff")
    assert [event["text"] for event in record.events()] == ["file \udcff"]
    assert RunRecord.load(tmp_path / "runs", record.id).step("images").facts == {"path": "\udcff"}


def test_status_of_5000_records_is_cheap(tmp_path: Path) -> None:
    """CPU seconds and memory of the whole process; the least of three, since others use the machine too."""
    written = list((Path(__file__).parent / "records").glob("*/run.json"))
    for number in range(5000):
        source = written[number % len(written)]
        directory = tmp_path / f"runs/r{number:05}"
        directory.mkdir(parents=True)
        (directory / "run.json").write_text(
            source.read_text().replace(f'"id": "{source.parent.name}"', f'"id": "{directory.name}"')
        )
    code = (
        "import resource, sys; from launcher.cli import main; main(['status']); "
        "used = resource.getrusage(resource.RUSAGE_SELF); "
        # Not ru_maxrss: it begins with the memory of whoever started the process.
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM:')); "
        "print(used.ru_utime + used.ru_stime, int(peak.split()[1]) / 1024, file=sys.stderr)"
    )
    seconds, megabytes = [], []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "LAUNCHER_STATE": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        )
        assert len(done.stdout.splitlines()) == 5001
        cpu, memory = map(float, done.stderr.split())
        seconds.append(cpu)
        megabytes.append(memory)
    assert min(seconds) <= 1.0 and max(megabytes) <= 60
    shutil.rmtree(tmp_path / "runs")


def test_damaged_records_short() -> None:
    """The short form of `scripts/faults records`."""
    assert len(COMMANDS) >= 10
    assert run_trials(12, seed=3) == []
