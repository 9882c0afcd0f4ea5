"""Login nodes as sites have them: codes, few sessions, slow shells, commands that are forced, disks that are full."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.cli import main, remote
from launcher.core.errors import LauncherError, RemoteError
from launcher.core.process import run
from launcher.remote import bundle
from launcher.remote.agent import HostInfo
from launcher.remote.by_paramiko import ParamikoOpener
from launcher.remote.destination import resolve
from launcher.remote.opener import Prompt
from launcher.remote.session import Session
from tests.remote.servers import SSHD, Server, Site, delayed, site, sshd


def nobody(text: str, *, echo: bool) -> str:
    raise RemoteError(f"nobody answers {text!r}")


def reached(server: Server, prompt: Prompt = nobody, name: str = "login") -> ParamikoOpener:
    where = resolve(name, ssh=server.command, run=run, home=server.directory)
    return ParamikoOpener(where, prompt, report=lambda text: None)


@pytest.fixture(scope="module")
def one_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that allows one session at once, and whose shell is slow and talks."""
    root = tmp_path_factory.mktemp("one")
    (root / "start-up").write_text("echo 'Welcome to the cluster'; echo 'quota: 1 %' >&2; sleep 0.7\n")
    with site(root, ("MaxSessions 1", f"SetEnv BASH_ENV={root}/start-up")) as running:
        yield running


def test_one_session_behind_a_slow_shell_that_talks_is_enough(one_session: Site) -> None:
    opener = reached(one_session.server)
    with Session(opener.open(one_session.agent), "login") as session:
        assert session.request("look", HostInfo).state == str(one_session.far)
        with pytest.raises(RemoteError, match="no session") as raised:
            opener.open("true")
        assert "MaxSessions" in str(raised.value)
        assert session.request("look", HostInfo).state, "and the session goes on"
    opener.close()


def test_ten_sessions_and_the_eleventh(tmp_path: Path) -> None:
    with sshd(tmp_path, ("MaxSessions 10",)) as server:
        opener = reached(server)
        pipes = [opener.open("cat") for _ in range(10)]
        with pytest.raises(RemoteError, match="no session"):
            opener.open("cat")
        pipes[0].send(b"still there\n")
        assert pipes[0].receive() == b"still there\n"
        opener.close()


def test_a_forced_command_is_told_with_what_it_says(tmp_path: Path) -> None:
    with sshd(tmp_path, ("ForceCommand echo 'This account may only run backups'",)) as server:
        opener = reached(server)
        with pytest.raises(RemoteError, match="This account may only run backups"):
            Session(opener.open("launcher remote-agent"), "login")
        opener.close()


def test_another_protocol_or_version_there(one_session: Site) -> None:
    opener = reached(one_session.server)
    script = (
        'read first; token=$(echo "$first" | sed "s/.*token\\":\\"//; s/\\".*//"); '
        'echo "launcher-agent $token {\\"protocol\\": 99, \\"version\\": \\"9.9\\"}"; cat'
    )
    with pytest.raises(RemoteError, match=r"launcher 9\.9 there speaks another protocol") as raised:
        Session(opener.open(f"sh -c '{script}'"), "login")
    assert raised.value.hint == "launcher remote install login"
    opener.close()


@pytest.fixture
def two_steps(tmp_path: Path) -> Iterator[Site]:
    """An sshd that wants a key, and then a code, twice, as PAM asks for it."""
    if os.geteuid():
        pytest.skip("PAM lets an sshd of another user than root in nowhere: needs root")
    # sshd takes its PAM service from its own name; this one is a service of its own.
    program = Path(shutil.copy(SSHD, tmp_path / f"sshd-of-a-test-{os.getpid()}"))
    check = tmp_path / "check"
    check.write_text('#!/bin/sh\nread -r code\n[ "$code" = 123456 ]\n')
    check.chmod(0o755)
    asked = f"auth required pam_exec.so quiet expose_authtok {check}"
    let_in = [f"{kind} required pam_permit.so" for kind in ("auth", "account", "session")]
    service = Path("/etc/pam.d") / program.name
    service.write_text("\n".join([asked, *let_in]) + "\n")
    methods = "AuthenticationMethods publickey,keyboard-interactive,keyboard-interactive"
    try:
        options = ("UsePAM yes", "KbdInteractiveAuthentication yes", methods, "LoginGraceTime 60")
        with site(tmp_path / "site", options, program=str(program)) as running:
            yield running
    finally:
        service.unlink()


def test_a_code_is_asked_for_once_a_connection_and_a_command(two_steps: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def answer(text: str, *, echo: bool) -> str:
        asked.append((text, echo))
        return "123456"

    opener = reached(two_steps.server, answer)
    assert [(text.split(": ")[1], echo) for text, echo in asked] == [("Password", False)] * 2
    for _ in range(5):
        pipe = opener.open("echo in")
        assert pipe.receive() == b"in\n"
        pipe.close()
    assert len(asked) == 2
    opener.close()
    with pytest.raises(RemoteError, match=r"not let in|no connection"):
        reached(two_steps.server, lambda text, *, echo: "654321")
    with pytest.raises(RemoteError, match="nobody answers"):
        reached(two_steps.server)
    for name, value in {**two_steps.variables, "LAUNCHER_SSH": "", "PATH": two_steps.server.path}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "_ask", answer)
    for words in (["--on", "local", "status"], ["remote", "doctor", "local"]):
        asked.clear()
        assert main(words) == 0 and len(asked) == 2


def test_a_disk_that_is_full_there_is_said_and_leaves_nothing(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/large").write_bytes(os.urandom(400_000))
    with site(tmp_path / "site", LAUNCHER_STATE=str(small_disk / "far")) as full:
        opener = reached(full.server)
        with Session(opener.open(full.agent), "login") as session:
            with pytest.raises(LauncherError, match="No space left"):
                bundle.send_bundle(session, bundle.pack({"runners": tmp_path / "files"}))
            assert not [path for path in small_disk.rglob("*") if path.is_file()]
        opener.close()
        for name, value in full.variables.items():
            monkeypatch.setenv(name, value)
        (small_disk / "filling").write_bytes(b"x" * 250_000)
        words = ("-k", "minimaxm3-fp8-gb200-dynamo-vllm", "--seq", "1k1k", "--topology", "1P1D DEP4/TP4")
        assert main(["--on", "local", "run", *words, "--runner", "local"]) != 0
        assert "No space left" in capsys.readouterr().err


def test_requests_do_not_wait_for_each_other(one_session: Site) -> None:
    """50 ms each way: twenty requests at once take as long as a few, and not twenty times that."""
    with delayed(one_session.server.port, 0.05) as port:
        one_session.server.configure("late", port=port)
        opener = reached(one_session.server, name="late")
        with Session(opener.open(one_session.agent), "late") as session:
            session.request("look", HostInfo)
            began = time.monotonic()
            streams = [session.stream("put", digest="0" * 64) for _ in range(20)]
            threads = [threading.Thread(target=lambda s=s: list(s)) for s in streams]  # type: ignore[misc]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert time.monotonic() - began < 20 * 0.1
        opener.close()
