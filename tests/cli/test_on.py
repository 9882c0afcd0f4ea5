"""`--on NAME`: a real sshd, behind it this checkout with a state of its own and the rehearsal's runner."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main, on, on_driving
from launcher.cli.arguments import parser
from launcher.cli.remote import connect
from launcher.core.checkout_head import head_commit
from launcher.core.errors import RemoteError
from launcher.core.process import run as run_program
from launcher.remote import bundle, session
from launcher.remote.by_paramiko import ParamikoOpener
from launcher.remote.destination import resolve
from launcher.remote.session import Session
from launcher.result.summary_file import read_document
from launcher.run.record import RunRecord
from launcher.sweep.schema import Policy
from scripts.measure_sweeps.__main__ import rows
from scripts.measure_sweeps.emulation import make_sweep
from tests.remote.servers import Site
from tests.remote.servers import site as a_site
from tests.run.driving import ONE
from tests.run.test_rehearsed_containers import DOCKER, PYXIS

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_" + os.urandom(16).hex()  # of this process alone: all processes are looked at


def go_there(site: Site, patch: pytest.MonkeyPatch) -> None:
    """Make the commands of this process go there."""
    for name in [name for name in os.environ if name.startswith(("LAUNCHER_", "GITHUB_", "SLURM"))]:
        patch.delenv(name)
    for name, value in site.variables.items():
        patch.setenv(name, value)
    patch.chdir(site.root)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with a_site(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture(scope="module")
def one_connection(site: Site) -> Iterator[Any]:
    """What `on.connect` gives, over one connection and one agent: most tests are about neither."""
    with pytest.MonkeyPatch.context() as patch:
        go_there(site, patch)
        arguments = parser().parse_args(["status"])
        with connect(arguments, "local") as node, node.session() as session:
            shared = dataclasses.make_dataclass("Node", ["name", "project", "directory", "session"])
            once = shared("local", node.project, node.directory, lambda: contextlib.nullcontext(session))
            yield lambda arguments, name: contextlib.nullcontext(once)


@pytest.fixture(autouse=True)
def here(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    go_there(site, monkeypatch)


@pytest.fixture(scope="module")
def done(site: Site) -> str:
    """A run that was driven there, with what this one said of it; its id."""
    with pytest.MonkeyPatch.context() as patch:
        go_there(site, patch)
        patch.setenv("HF_TOKEN", TOKEN)
        seen = _Watched(site.root)
        assert main(["--on", "local", "run", *ONE, "--runner", "local", "--run-id", "r1"]) == 0
        assert TOKEN.encode() not in seen.ended()
    return "r1"


class _Watched:
    """Reads every process's command line until it is ended."""

    def __init__(self, root: Path) -> None:
        self._root, self._over, self._seen = root, threading.Event(), set[bytes]()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    self._seen.add((process / "cmdline").read_bytes())
                except OSError:
                    continue

    def ended(self) -> bytes:
        """All command lines that were seen, and all files of both sides."""
        self._over.set()
        self._thread.join()
        return b"\n".join([*self._seen, *(path.read_bytes() for path in self._root.rglob("*") if path.is_file())])


def test_a_run_there_is_shown_here_and_its_secrets_are_nowhere(
    done: str, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (site.far / "runs" / done / "results").is_dir() and not (site.root / "near/runs").exists()
    assert '"HF_TOKEN"' in (site.far / "runs" / done / "plan.json").read_text()
    assert main(["--on", "local", "resume", done]) == 0
    assert f"run {done} has succeeded already" in capsys.readouterr().err
    assert main(["--on", "local", "resume", done, "--json", "--detach"]) == 0
    assert main(["--on", "local", "logs", "nobody"]) == 2
    assert "-m launcher --on local status lists" in capsys.readouterr().err, "printed commands can be pasted here"


SAME = [
    ("status",),
    ("status", "r1"),
    ("status", "r1", "--json"),
    ("status", "nobody"),
    ("logs", "r1"),
    ("results", "r1"),
    ("cancel", "nobody"),
    ("sweep", "list"),
    ("sweep", "pause", "m"),
    ("image", "list", "--runner", "local"),
]


@pytest.mark.parametrize("words", SAME, ids=" ".join)
def test_output_and_code_are_those_of_the_command_typed_there(
    done: str,
    site: Site,
    words: tuple[str, ...],
    one_connection: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(on, "connect", one_connection)
    code = main([*words, "--state", str(site.far)])
    remote = capsys.readouterr()
    assert main([*words, "--on", "local"]) == code
    here = capsys.readouterr()
    typed = f"{sys.executable} -m launcher"  # a command that is printed can be pasted where it is printed
    printed = [text.replace(f"{typed} --state {site.far}", typed) for text in (remote.out, remote.err)]
    assert [text.replace(f"{typed} --on local", typed) for text in (here.out, here.err)] == printed


def test_a_status_of_a_thousand_points_is_one_question_and_a_small_answer(
    site: Site, one_connection: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(tmp_path, "thousand", rows(1000, 200), Policy())
    asked, came = list[str](), list[int]()
    send, take = Session._send, Session._handle

    def sends(self: Session, message: Any) -> None:
        asked.extend(filter(None, [message.get("method")]))
        send(self, message)

    def takes(self: Session, message: Any, size: int) -> None:
        came.append(size)
        take(self, message, size)

    monkeypatch.setattr(Session, "_send", sends)
    monkeypatch.setattr(Session, "_handle", takes)
    monkeypatch.setattr(on, "connect", one_connection)
    assert main(["--on", "local", "sweep", "status", "thousand", "--state", str(tmp_path / "state")]) == 0
    assert capsys.readouterr().out.count("no attempt yet") == 200
    assert asked == ["ask"] and sum(came) < 64_000


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (("ci",), "is not done on a login node"),
        (("report", "r1"), "-m launcher remote get NAME"),
        (("cancel", "--from-env"), "--from-env is about a job of GitHub"),
        (("results", "aggregate", "."), "-m launcher remote get NAME"),
        (("version",), "about this machine"),
        (("remote", "list"), "about this machine"),
    ],
)
def test_what_makes_no_sense_there_is_said(
    words: tuple[str, ...], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--on", "local"]) == 2
    assert printed in capsys.readouterr().err


def test_launcher_on_in_the_environment(
    done: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAUNCHER_ON", "local")
    assert main(["status", done, "--json"]) == 0 and f'"id": "{done}"' in capsys.readouterr().out
    assert main(["version"]) == 0
    assert main(["status", "--on", "", done]) == 2, "an empty name is this machine"


def test_a_plan_that_differs_there_is_refused_with_what_differs(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = on_driving._plan_text
    monkeypatch.setattr(on_driving, "_plan_text", lambda plan, place: real(plan, place).replace('"fp8"', '"fp4"'))
    assert main(["--on", "local", "run", *ONE, "--runner", "local", "--run-id", "differs"]) == 2
    printed = capsys.readouterr().err
    assert "the plan there differs from the plan here" in printed and '-  "precision": "fp4"' in printed
    assert not (site.far / "runs/differs").exists()


def test_what_is_sent_holds_trees_scripts_and_the_commit(tmp_path: Path) -> None:
    for name in (
        "space/configs/a",
        "space/benchmarks/run.sh",
        "space/utils/serve.py",
        "space/other",
        "trees/v1/recipe",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "space/.git").mkdir()
    (tmp_path / "space/.git/HEAD").write_text("ref: refs/heads/main")
    (tmp_path / "space/.git/packed-refs").write_text(f"{'5' * 40} refs/heads/main")
    words = ["check", "--workspace", str(tmp_path / "space"), "--srt-slurm", str(tmp_path / "trees")]
    packed = bundle.pack(on.local_files(parser().parse_args(words), tmp_path / "space"))
    remote = bundle.unpack_bundle(tmp_path / "there", packed)
    assert head_commit(remote / "workspace") == "5" * 40
    found = {path.relative_to(remote).as_posix() for path in remote.rglob("*") if path.is_file()}
    scripts = {f"workspace/{name}" for name in ("configs/a", "benchmarks/run.sh", "utils/serve.py", ".git/HEAD")}
    assert found - {name for name in found if name.startswith("runners/")} == {*scripts, "srt_slurm/v1/recipe"}


def test_a_sweep_there_is_watched_brought_here_and_reported(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "start", *ONE, "--conc", "4", "--runner", "local", "--name", "m", "--on", "local"]) == 0
    printed = capsys.readouterr().out
    assert "sweep m  1/1 ok" in printed and printed.count("ok           1/1") == 1
    assert main(["remote", "get", "local", "m", "-o", str(site.root / "brought")]) == 0
    capsys.readouterr()
    assert main(["report", "m", "--state", str(site.root / "brought"), "--json"]) == 0
    assert "tput_per_gpu" in capsys.readouterr().out


@pytest.mark.parametrize("key", [PYXIS, DOCKER])
def test_a_row_of_one_node_with_a_workspace_comes_out_as_the_same_run_typed_there(
    key: str, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plan, results and verdict are those of the run that the login node's own user starts, but for times and places;
    the script that ran is the workspace's, and not the shipped one."""
    space, direct = site.root / f"space-{key}", site.root / f"direct-{key}"
    shutil.copytree(ROOT / "recipes/benchmarks", space / "benchmarks")
    for script in (space / "benchmarks/single_node").rglob("*.sh"):
        script.write_text(script.read_text().replace("\n", "\necho of the workspace\n", 1))
    local = (site.root / "runners/local.yaml").read_text()
    own = 'workspace: {own: "{state}/workspaces"}\n'
    assert own in local
    (site.root / "runners/plain.yaml").write_text(local.replace(own, "").replace("name: local", "name: plain"))
    monkeypatch.setenv("LAUNCHER_REHEARSAL_SECONDS", "0.01")
    words = ["run", "-k", key, "--runner", "plain", "--run-id", key, "--workspace", str(space)]
    assert main([*words, "--on", "plain"]) == 0
    assert "succeeded" in capsys.readouterr().out
    assert main([*words, "--state", str(direct)]) == 0
    (sent,) = {place.parent for place in site.far.glob("bundles/*/workspace/benchmarks")}
    here = [(space, "SPACE"), (site.root / "runners", "RUNNERS"), (direct, "STATE")]
    remote = [(sent, "SPACE"), (sent.parent / "runners", "RUNNERS"), (site.far, "STATE")]
    found = _told(site.far / "runs" / key, remote)
    assert found == _told(direct / "runs" / key, here)
    assert "conc16" in found["files"] and ("ok", 4) in found["points"] and found["own"]
    assert {place.name for place in sent.iterdir()} - {".launcher"} == {"benchmarks"}, "what was sent is as it was"


def _told(run: Path, places: list[tuple[Path, str]]) -> dict[str, Any]:
    """What a run says but for times and places: its files, plan, script, how it ended, its points."""
    plan = json.dumps(json.loads((run / "plan.json").read_text()), sort_keys=True, indent=1)
    for path, name in places:
        plan = plan.replace(str(path), name)
    fields = RunRecord.load(run.parent, run.name).fields
    files = sorted(path.relative_to(run).as_posix() for path in (run / "results").rglob("*") if path.is_file())
    points = [(point["state"], point["gpus"]) for point in read_document(run)["points"]]
    ended, own = (fields.state, str(fields.verdict)), "of the workspace" in (run / "evidence/job.log").read_text()
    return {"plan": plan.splitlines(), "files": " ".join(files), "points": points, "ended": ended, "own": own}


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("step", ["send_files", "ask"])
def test_a_signal_before_anything_is_started_there_says_so(
    step: str,
    number: signal.Signals,
    code: int,
    one_connection: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(on, "connect", one_connection)
    monkeypatch.setattr(on.RemoteCommand, step, lambda remote, **changes: signal.raise_signal(number))
    assert main(["--on", "local", "run", *ONE, "--runner", "local", "--run-id", "never"]) == code
    assert capsys.readouterr().err == f"launcher: cancelled: stopped by {number.name}: nothing was started on local\n"


def test_an_interrupt_while_a_driver_starts_there_cancels_what_it_drives(
    done: str,
    site: Site,
    one_connection: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def start(remote: on.RemoteCommand) -> int:
        signal.raise_signal(signal.SIGINT)
        return real(remote)

    real = on_driving._start_driver
    monkeypatch.setattr(on_driving, "_start_driver", start)
    monkeypatch.setattr(on, "connect", one_connection)
    monkeypatch.setenv("LAUNCHER_REHEARSAL_FAULTS", "hang")
    assert main(["--on", "local", "run", *ONE, "--runner", "local", "--run-id", "early", "--detach"]) == 130
    assert "".join(capsys.readouterr()).count("cancelling early on local") == 1
    assert RunRecord.load(site.far / "runs", "early").fields.state == "cancelled"


@pytest.mark.parametrize(
    ("numbers", "code"),
    [((signal.SIGINT,) * 2, 130), ((signal.SIGTERM, signal.SIGINT), 143), ((signal.SIGHUP,), 129)],
)
def test_a_second_signal_and_a_terminal_that_is_closed_leave_the_run_to_itself(
    numbers: tuple[signal.Signals, ...],
    code: int,
    one_connection: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def follow(remote: on.RemoteCommand, run: str, signals: on.ReceivedSignals) -> int:
        for number in numbers:
            signal.raise_signal(number)
        return 0

    monkeypatch.setattr(on, "connect", one_connection)
    monkeypatch.setattr(on.RemoteCommand, "ask", lambda remote, **changes: _Nothing())
    for name, stand_in in (
        ("_compare_plans", lambda remote: []),
        ("_start_driver", lambda remote: 0),
        ("_follow", follow),
    ):
        monkeypatch.setattr(on_driving, name, stand_in)
    assert main(["--on", "local", "run", *ONE, "--runner", "local", "--run-id", "alone"]) == code
    printed = capsys.readouterr().err
    assert f"stopped by {numbers[0].name}: alone goes on on local" in printed and "--on local resume alone" in printed


class _Nothing:
    def value(self, command: object) -> None:
        return None


def test_cut_and_stopped_at_random_a_run_is_followed_without_a_gap(
    done: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten connections are killed or stopped, and that of `one_connection`; events and log come once each."""
    monkeypatch.setenv("LAUNCHER_REHEARSAL_SECONDS", "1")
    assert main(["--on", "local", "run", *ONE, "--runner", "local", "--run-id", "cut", "--detach"]) == 0
    assert RunRecord.load(site.far / "runs", "cut").driven_by_another, "whoever cancels it now is heard"
    monkeypatch.setattr(session, "SILENCE", 1.0)
    monkeypatch.setattr(session, "BEAT", 0.2)
    where = resolve("login", ssh=site.server.command, run=run_program, home=site.root)
    chance = random.Random(16)
    news, end, cuts = list[Any](), None, 0
    while end is None or cuts < 10:  # on a slow machine it ends before
        opener = ParamikoOpener(where, _nobody, report=print)
        children, signals = site.server.children(), (signal.SIGKILL, signal.SIGSTOP)
        cut = threading.Timer(chance.random() * 0.4, _end, [children, *chance.choices(signals, (4, 1))])
        try:
            with Session(opener.open(site.agent), "login") as speaking:
                if cuts < 10:
                    cut.start()
                    cuts += 1
                at = news[-1]["at"] if news else (0, 0)
                end = _to_its_end(speaking.stream("follow", run="cut", at=at), news)
        except RemoteError:
            pass
        finally:
            cut.cancel()
            _end(children, signal.SIGKILL)
            opener.close()
    assert cuts == 10 and end["state"] == "succeeded"
    record = RunRecord.load(site.far / "runs", "cut")
    events = [event for part in news for event in part["events"]]
    assert events == list(record.events()) and sum(event["text"].endswith("submitted") for event in events) == 1
    (kept,) = (record.directory / "results").rglob("sweep_*.log")
    assert [line for part in news for line in part["log"]] == kept.read_text().splitlines()


def _nobody(text: str, *, echo: bool) -> str:
    raise AssertionError(text)


def _end(children: list[int], number: int) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)


def _to_its_end(stream: Generator[Any, None, Any], news: list[Any]) -> Any:
    while True:
        try:
            news.append(next(stream))
        except StopIteration as end:
            return end.value


def test_an_interrupt_here_cancels_the_run_there(done: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C in a terminal: it comes to the whole group, thus to ssh too."""
    argv = [sys.executable, "-m", "launcher", "--on", "local", "run", *ONE, "--runner", "local", "--run-id", "stopped"]
    monkeypatch.setenv("LAUNCHER_REHEARSAL_FAULTS", "hang")
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            if "RUNNING" in line and "RUNNING" not in printed:
                os.killpg(process.pid, signal.SIGINT)
            printed += line
        assert process.wait(60) == 130, printed
    assert printed.count("cancelling stopped on local") == 1
    assert RunRecord.load(site.far / "runs", "stopped").fields.state == "cancelled"
