"""What the agent does for the other side: bundles, commands, files brought back. A real agent at the end of pipes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import signal
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Generator, Iterator
from gzip import compress
from pathlib import Path
from typing import Any

import pytest

from launcher.cli.arguments import parser
from launcher.core.errors import ConfigError, LauncherError, RemoteError
from launcher.remote import bundle, fetching
from launcher.remote.agent import HostInfo, Tidied
from launcher.remote.by_openssh import OpenSSHPipe
from launcher.remote.messages import LONGEST, Lines
from launcher.remote.session import Session

TOKEN = "hf_" + os.urandom(16).hex()  # of this process alone: all processes are looked at


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("there")


@pytest.fixture(scope="module")
def session(there: Path) -> Iterator[Session]:
    argv = ["env", f"LAUNCHER_STATE={there}", f"HOME={there}", "WEB_SECRET=do-not-tell-it"]
    pipe = OpenSSHPipe([*argv, sys.executable, "-m", "launcher", "remote-agent"], "there")
    with Session(pipe, "there") as session:
        yield session


def finished(stream: Generator[Any, None, Any]) -> tuple[list[Any], Any]:
    events = []
    while True:
        try:
            events.append(next(stream))
        except StopIteration as end:
            return events, end.value


def asked(session: Session, *words: str, secrets: dict[str, str] | None = None) -> tuple[str, str, int]:
    stream = session.stream("ask", arguments=vars(parser().parse_args(words)), argv=[], secrets=secrets or {})
    events, code = finished(stream)
    unpacked = zlib.decompressobj().decompress(b"".join(e for e in events if isinstance(e, bytes))).decode()
    return unpacked, "".join(e["said"] for e in events if isinstance(e, dict)), code


def test_a_machine_describes_itself_without_its_secrets(session: Session, there: Path) -> None:
    seen = session.request("look", HostInfo)
    assert seen.state == str(there) and seen.environment["HOME"] == str(there)
    assert "do-not-tell-it" not in str(seen)


def test_requests_that_name_nothing_reach_their_methods_by_the_names_of_parameters(session: Session) -> None:
    """Parameters are part of the protocol: a renamed one would be refused as unexpected."""
    parts = {"digest": "0" * 64, "offset": 1, "data": "", "last": True}
    assert session.request("put", str, **parts) == "" and session.request("tidy", Tidied, directory="d", apply=False)
    with pytest.raises(LauncherError, match="no run"):
        finished(session.stream("follow", run="none", at=(0, 0)))
    with pytest.raises(LauncherError, match="no run or sweep none"):
        finished(session.stream("list", name="none"))
    assert finished(session.stream("send", place="runs/none", wanted=[])) == ([], None)


def test_a_command_gives_its_value_errors_and_code(session: Session, there: Path) -> None:
    out, said, code = asked(session, "status", "--json")
    assert (out.splitlines()[0], said, code) == ("value", "", 0)
    assert json.loads(out.splitlines()[1])["runs_directory"] == str(there / "runs")
    out, said, code = asked(session, "status", "nobody")
    assert "there is no run nobody" in said and code == 2 and not out


class TestBundles:
    def test_a_bundle_is_there_once_and_whole(self, session: Session, there: Path, tmp_path: Path) -> None:
        (tmp_path / "runners/deep").mkdir(parents=True)
        (tmp_path / "runners/deep/a.yaml").write_text("a")
        (tmp_path / "runners/.git").mkdir()
        (tmp_path / "runners/.git/config").write_text("[remote]")
        (tmp_path / "big").write_bytes(os.urandom(2 * bundle.PART))
        made = bundle.pack({"runners": tmp_path / "runners", "matrix/0.yaml": tmp_path / "big"})
        assert made == bundle.pack({"matrix/0.yaml": tmp_path / "big", "runners": tmp_path / "runners"})
        place = Path(bundle.send_bundle(session, made))
        assert (place / "runners/deep/a.yaml").read_text() == "a" and not (place / "runners/.git").exists()
        assert (place / "matrix/0.yaml").read_bytes() == (tmp_path / "big").read_bytes()
        assert place.stat().st_mode & 0o77 == 0 and [path.name for path in place.parent.iterdir()] == [made.digest]
        assert session.request("put", str, digest=made.digest) == str(place), "and is not asked for again"

    @pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "link", "a//b", "new\nline", "\x1b[2J"])
    def test_what_leaves_its_directory_is_refused_and_nothing_stays(self, there: Path, name: str) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            member = tarfile.TarInfo(name)
            if name == "link":
                member.type, member.linkname = tarfile.SYMTYPE, "/etc"
            tar.addfile(member)
        content = compress(packed.getvalue())
        digest = hashlib.sha256(content).hexdigest()
        directory = there / "refused"
        with pytest.raises(RemoteError, match=r"leaves its directory|no file"):
            bundle.receive_part(directory, digest, 0, base64.b64encode(content).decode(), True)
        assert not list((directory / "bundles").iterdir()) and not (there / "evil").exists()

    def test_a_bundle_that_arrives_changed_is_none(self, session: Session) -> None:
        with pytest.raises(LauncherError, match="arrived changed"):
            session.request("put", str, digest="0" * 64, offset=0, data="eA==", last=True)
        with pytest.raises(LauncherError, match="out of order"):
            session.request("put", str, digest="1" * 64, offset=5, data="eA==", last=True)
        with pytest.raises(LauncherError, match="SHA-256"):
            session.request("put", str, digest="../../x", offset=0, data="eA==", last=True)

    def test_too_much_is_not_sent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a").write_text("four")
        monkeypatch.setattr(bundle, "MOST", 3)
        with pytest.raises(ConfigError, match="would be sent"):
            bundle.pack({"a": tmp_path})

    def test_a_large_directory_is_not_walked_beyond_what_may_be_sent(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in "abc":
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").touch()
        visited: list[str] = []
        walk = os.walk

        def noted(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
            for directory, below, names in walk(top):
                visited.append(Path(directory).name)
                yield directory, below, names

        monkeypatch.setattr(os, "walk", noted)
        monkeypatch.setattr(bundle, "MOST_FILES", 1)
        with pytest.raises(ConfigError, match="would be sent"):
            bundle.pack({"a": tmp_path})
        assert visited == [tmp_path.name, "a", "b"]


class TestBringing:
    @pytest.fixture
    def run(self, there: Path) -> Path:
        run = there / "runs/r1"
        (run / "results").mkdir(parents=True, exist_ok=True)
        (run / "run.json").write_text("{}")
        (run / "driver.lock").touch()
        (run / "results/large.json").write_bytes(os.urandom(3 * fetching.PART + 5))
        (run / "results/empty").touch()
        (run / "results/link").unlink(missing_ok=True)
        (run / "results/link").symlink_to("/etc/passwd")
        return run

    def test_files_come_whole_and_what_was_cut_is_gone_on_with(
        self, session: Session, run: Path, tmp_path: Path
    ) -> None:
        place = tmp_path / "runs/r1"
        (place / "results").mkdir(parents=True)
        large = run / "results/large.json"
        fetching._part(place / "results/large.json").write_bytes(large.read_bytes()[: fetching.PART])
        told: list[int] = []
        assert fetching.fetch(session, "r1", tmp_path, lambda done, of: told.append(done)) == place
        assert told[0] > fetching.PART
        assert (place / "results/large.json").read_bytes() == large.read_bytes()
        names = sorted(path.name for path in place.rglob("*") if path.is_file())
        assert names == ["empty", "large.json", "run.json"]
        told.clear()
        fetching.fetch(session, "r1", tmp_path, lambda done, of: told.append(done))
        assert not told, "what is here is not fetched again"
        whole = large.read_bytes()
        (place / "results/large.json").write_bytes(b"x" * len(whole))
        (place / "run.json").write_text("[]")
        fetching._part(place / "results/empty").write_bytes(b"more than all of it")
        (place / "results/empty").unlink()
        fetching.fetch(session, "r1", tmp_path)
        assert (place / "results/large.json").read_bytes() == whole, "and what is here must be what is there"
        assert (place / "run.json").read_text() == "{}" and (place / "results/empty").read_bytes() == b""

    def test_a_run_that_is_not_there(self, session: Session, tmp_path: Path) -> None:
        for name in ("nobody", "../there", "."):
            with pytest.raises(LauncherError, match="there is no run or sweep"):
                fetching.fetch(session, name, tmp_path)


class Lying:
    """A stand-in for a session whose far side is hostile: it lists one file and sends what it likes."""

    def __init__(self, entry: list[Any], *parts: Any, place: str = "runs/r") -> None:
        self._streams = {"list": ([[entry]], place), "send": (list(parts), None)}

    def stream(self, method: str, **params: Any) -> Generator[Any, None, Any]:
        events, value = self._streams[method]
        yield from events
        return value


SUM = hashlib.sha256(b"four").hexdigest()


@pytest.mark.parametrize(
    ("far", "message"),
    [
        (Lying(["../x", 4], b"four", SUM), "leaves its directory"),
        (Lying(["/x", 4], b"four", SUM), "leaves its directory"),
        (Lying(["a\x1b[2J", 4], b"four", SUM), "leaves its directory"),
        (Lying(["x", 4], b"four", SUM, place="../elsewhere"), "another place"),
        (Lying(["x", 4], b"five", SUM), "arrived changed"),
        (Lying(["x", 4], b"four", {"no": "sum"}), "arrived changed"),
        (Lying(["x", 4], b"four"), "arrived changed"),
        (Lying(["x", 4], b"four and more", SUM), "than it announced"),
        (Lying(["x", 4], b"four", SUM, b"more"), "more than it announced"),
        (Lying(["x", 4], b"fo", SUM), "than it announced"),
        (Lying(["x", 4], {"no": "bytes"}), "than it announced"),
        (Lying(["x", -4]), "another way"),
        (Lying(["x", 1 << 60]), "do not fit"),
        (Lying(["x"]), "another way"),
        (Lying([b"x".hex(), "4"]), "another way"),
    ],
)
def test_a_far_side_that_lies_is_refused_and_leaves_nothing_whole(far: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match=message):
        fetching.fetch(far, "r", tmp_path / "to")
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    part = fetching._part(Path("x")).name
    assert names <= {"x", part} and ("x" not in names or b"more" in far._streams["send"][0])


@pytest.mark.parametrize("size", [0, -1, LONGEST + 1, "4", None, 1.5])
def test_a_body_is_bounded(size: Any) -> None:
    with pytest.raises(RemoteError, match="announced"):
        Lines("there").expect(size)


def test_bodies_stand_between_lines_however_they_are_cut() -> None:
    sent = b"header\n" + b"\n\x00body\n" + b"next\n"
    for step in range(1, len(sent)):
        lines, found = Lines("there"), []
        for at in range(0, len(sent), step):
            for piece in lines.add(sent[at : at + step]):
                found.append(piece)
                if piece == b"header":
                    lines.expect(7)
        assert found == [b"header", b"\n\x00body\n", b"next"]


def test_a_command_ends_with_the_connection_and_secrets_are_in_no_list(there: Path) -> None:
    (there / "runs").mkdir(exist_ok=True)
    argv = ["env", f"LAUNCHER_STATE={there}", sys.executable, "-m", "launcher", "remote-agent"]
    pipe = OpenSSHPipe(argv, "there")
    with Session(pipe, "there") as session:
        arguments = vars(parser().parse_args(["logs", "-f", "waiting"]))
        _a_waiting_run(there / "runs/waiting")
        stream = session.stream("ask", arguments=arguments, argv=[], secrets={"HF_TOKEN": TOKEN})
        threading.Thread(target=_to_its_end, args=(stream,), daemon=True).start()
        agent = pipe._child.pid
        child = _until(lambda: _children(agent))[0]
        _until(lambda: b"remote-command" in Path(f"/proc/{child}/cmdline").read_bytes())
        for process in Path("/proc").glob("[0-9]*"):
            try:
                assert TOKEN.encode() not in (process / "cmdline").read_bytes()
                assert TOKEN.encode() not in (process / "environ").read_bytes()
            except OSError:
                continue
        os.kill(agent, signal.SIGKILL)
        _until(lambda: not Path(f"/proc/{child}").exists() or b"Z" in Path(f"/proc/{child}/stat").read_bytes())


def _to_its_end(stream: Generator[Any, None, Any]) -> None:
    with contextlib.suppress(LauncherError):
        finished(stream)


def _a_waiting_run(directory: Path, **fields: Any) -> None:
    from launcher.run.fields import RunFields
    from launcher.run.record import RunRecord

    directory.mkdir()
    RunRecord(directory, RunFields(directory.name, "local")).update(created=1.0, **fields)


def _children(pid: int) -> list[int]:
    threads = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for one in threads for child in one]


def _until(true: Any, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


HOSTILE = """
import json, sys
token = json.loads(sys.stdin.buffer.readline())["token"]
out = sys.stdout.buffer
out.write(b"launcher-agent " + token.encode() + b' {"protocol": 1, "version": "\\\\u001b[2J9.9", "time": 1}\\n')
out.flush()
number = json.loads(sys.stdin.buffer.readline())["id"]
"""


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("while True: out.write(b'x' * 65536)", "a line of more than"),
        ("out.write(b'[1]\\n{'); out.flush(); sys.stdin.read()", "no message"),
        ("out.write(b'[' * 100000 + b'\\n'); out.flush(); sys.stdin.read()", "no message"),
        ("out.write(b'{\"id\": %d, \"body\": 999999999}\\n' % number); out.flush(); sys.stdin.read()", "is announced"),
        ("out.write(b'{\"id\": %d, \"error\": [1]}\\n' % number); out.flush(); sys.stdin.read()", "without words"),
        ("out.write(b'{\"id\": %d, \"error\": {\"message\": \"it is\", \"exit\": 0}}\\n' % number)", "it is"),
        ("out.write(b'{\"id\": 99, \"result\": 1}\\n'); out.flush(); sys.exit(0)", "connection has gone"),
        ("out.write(b'{\"id\": %d, \"result\": [1]}\\n' % number); out.flush(); sys.exit(0)", "another way than ours"),
        ("sys.exit(3)", "connection has gone"),
    ],
)  # fmt: skip
def test_a_hostile_far_side_ends_in_one_clear_error(then: str, message: str) -> None:
    pipe = OpenSSHPipe([sys.executable, "-c", HOSTILE + then], "there")
    with Session(pipe, "there") as session, pytest.raises(LauncherError, match=message) as raised:
        session.request("look", HostInfo)
    assert raised.value.exit_code in (1, 8) and str(raised.value).startswith("there: ")


def test_a_far_side_that_heeds_no_bound_is_left() -> None:
    """It sends without being allowed to, to somebody who is slow."""
    then = "line = b'{\"id\": %d, \"event\": \"' % number + b'x' * 60000 + b'\"}\\n'\nwhile True: out.write(line)"
    pipe = OpenSSHPipe([sys.executable, "-c", HOSTILE + then], "there")
    with Session(pipe, "there") as session:
        stream = session.stream("follow")
        next(stream)
        lost = _until(lambda: session._error)
        assert "more than the 4 MiB that it may send unasked" in str(lost)


def test_what_the_far_side_says_moves_no_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from launcher.cli import main, on

    def far(arguments: Any, name: str) -> int:
        raise LauncherError("a\x1b[2Jb", where=name, hint="c\x07d")

    monkeypatch.setattr(on, "run_on_node", far)
    assert main(["--on", "x", "status"]) == 1
    assert "\x1b" not in (said := capsys.readouterr().err) and "a\\x1b[2Jb" in said
