"""A real sshd, reached by paramiko and by ssh: host keys, ways of letting in, jumps, and connections that go away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.core.errors import ConfigError, RemoteError
from launcher.core.process import run
from launcher.remote.agent import HostInfo
from launcher.remote.by_openssh import OpenSSHOpener
from launcher.remote.by_paramiko import ParamikoOpener
from launcher.remote.destination import Destination, resolve
from launcher.remote.opener import Opener, Prompt
from launcher.remote.session import Session
from tests.remote.servers import Server, make_key, sshd

AGENT = f"env PYTHONPATH={Path(__file__).parents[2]} {sys.executable} -m launcher remote-agent"
Open = Callable[[Destination], Opener]


def nobody(text: str, *, echo: bool) -> str:
    raise RemoteError(f"nobody answers {text!r}")


def destination(server: Server, name: str = "login") -> Destination:
    return resolve(name, ssh=server.command, run=run, home=server.directory)


def by_paramiko(where: Destination, prompt: Prompt = nobody, **more: bool) -> ParamikoOpener:
    return ParamikoOpener(where, prompt, report=print, **more)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sshd(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(params=["paramiko", "openssh"])
def opener(request: pytest.FixtureRequest, server: Server) -> Iterator[Opener]:
    where = destination(server)
    found: Opener = by_paramiko(where) if request.param == "paramiko" else OpenSSHOpener(where)
    yield found
    found.close()


def test_both_ways_carry_the_same_session(opener: Opener) -> None:
    with Session(opener.open(AGENT), "login") as session:
        assert session.greeting.version
        assert session.greeting.python == sys.version.split()[0]
        assert session.request("look", HostInfo).version == session.greeting.version
        with pytest.raises(Exception, match="no method 'none'"):
            session.request("none", str)


def test_a_command_that_is_not_there_is_an_installation_that_is_missing(opener: Opener) -> None:
    with pytest.raises(RemoteError, match="not installed there") as raised:
        Session(opener.open("/nonexistent/launcher remote-agent"), "login")
    assert raised.value.hint == "launcher remote install login"


def test_what_a_login_shell_prints_is_skipped_up_to_a_bound(opener: Opener) -> None:
    banner = f"{sys.executable} -c 'print(\"motd \" * 200, flush=True)'"
    with Session(opener.open(f"{banner}; {AGENT}"), "login") as session:
        assert session.request("look", HostInfo).state
    with pytest.raises(RemoteError, match=r"before us|bytes"):
        Session(opener.open(f"yes | head -c 3000000; {AGENT}"), "login")


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("launcher-agent wrong {}", "another token"),
        ("launcher-agent", "no launcher answered"),
        ("nothing", "no launcher answered"),
    ],
)
def test_a_far_side_that_is_no_agent_is_refused(opener: Opener, says: str, message: str) -> None:
    with pytest.raises(RemoteError, match=message):
        Session(opener.open(f"echo '{says}'"), "login")


def test_a_connection_that_is_cut_is_noticed_and_says_what_goes_on(server: Server) -> None:
    opener = by_paramiko(destination(server))
    with Session(opener.open(AGENT), "login") as session:
        began = time.monotonic()
        for child in server.children():
            os.kill(child, signal.SIGKILL)
        with pytest.raises(RemoteError, match="gone") as raised:
            while time.monotonic() - began < 60:
                session.request("look", HostInfo)
        assert raised.value.hint == "what was started there goes on" or "connection" in raised.value.message
    opener.close()


class TestHostKeys:
    def test_an_unknown_one_is_refused_with_what_to_do(self, server: Server) -> None:
        server.know("# nobody")
        try:
            with pytest.raises(RemoteError, match="not known: ssh-ed25519 SHA256:") as raised:
                by_paramiko(destination(server))
            assert "--accept-new" in str(raised.value) and f"[127.0.0.1]:{server.port} ssh-ed25519" in str(raised.value)
            by_paramiko(destination(server), accept_new=True).close()
            by_paramiko(destination(server)).close()
        finally:
            server.know()

    @pytest.mark.parametrize("accept_new", [False, True])
    def test_a_changed_one_is_refused_always(self, server: Server, tmp_path: Path, accept_new: bool) -> None:
        other = make_key(tmp_path / "other").with_suffix(".pub").read_text()
        server.know(f"[127.0.0.1]:{server.port} {other.strip()}")
        try:
            with pytest.raises(RemoteError, match="another one than the known one"):
                by_paramiko(destination(server), accept_new=accept_new)
            assert other.split()[1] in server.known.read_text()
        finally:
            server.know()


class TestLettingIn:
    def test_an_account_that_is_not_let_in_says_why(self, server: Server, tmp_path: Path) -> None:
        key = make_key(tmp_path / "stranger")
        server.configure("stranger", key)
        with pytest.raises(RemoteError, match=r"not let in.*is not accepted"):
            by_paramiko(destination(server, "stranger"))

    def test_no_more_than_five_keys_are_tried(self, server: Server, tmp_path: Path) -> None:
        keys = "".join(f"  IdentityFile {make_key(tmp_path / str(number))}\n" for number in range(7))
        with server.config.open("a") as config:
            config.write(f"Host many\n  HostName 127.0.0.1\n  Port {server.port}\n{keys}  IdentitiesOnly yes\n")
            config.write(f"  IdentityAgent none\n  UserKnownHostsFile {server.known}\n")
        with pytest.raises(RemoteError, match=r"more than 5 keys; name one"):
            by_paramiko(destination(server, "many"))

    def test_a_key_with_a_passphrase_asks_once(self, server: Server, tmp_path: Path) -> None:
        asked: list[str] = []

        def answer(text: str, *, echo: bool) -> str:
            asked.append(text)
            assert not echo
            return "open sesame"

        key = tmp_path / "locked"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "open sesame", "-f", str(key)], check=True, timeout=30
        )
        with (server.directory / "authorized_keys").open("a") as keys:
            keys.write(key.with_suffix(".pub").read_text())
        server.configure("locked", key)
        by_paramiko(destination(server, "locked"), answer).close()
        assert asked == [f"passphrase of {key}: "]

    def test_a_certificate_beside_the_key_is_shown(self, tmp_path: Path) -> None:
        authority = make_key(tmp_path / "authority")
        options = (f"TrustedUserCAKeys {authority}.pub", "AuthorizedKeysFile none")
        with sshd(tmp_path / "server", options) as server:
            argv = ["ssh-keygen", "-q", "-s", str(authority), "-I", "me", "-n", "root,me", f"{server.user_key}.pub"]
            argv[-2] = subprocess.run(["id", "-un"], capture_output=True, text=True, timeout=20).stdout.strip()
            with pytest.raises(RemoteError, match="not let in"):
                by_paramiko(destination(server))
            subprocess.run(argv, check=True, timeout=30)
            by_paramiko(destination(server)).close()


def test_a_jump_checks_both_keys_and_lets_in_at_both(server: Server, tmp_path: Path) -> None:
    with sshd(tmp_path / "behind") as behind:
        with server.config.open("a") as config:
            config.write(
                f"Host behind\n HostName 127.0.0.1\n Port {behind.port}\n IdentityFile {behind.user_key}\n"
                f" IdentitiesOnly yes\n UserKnownHostsFile {behind.known}\n ProxyJump login\n"
            )
        where = destination(server, "behind")
        assert [hop.port for hop in where.hops] == [server.port, behind.port]
        opener = by_paramiko(where)
        with Session(opener.open(AGENT), "behind") as session:
            assert session.request("look", HostInfo).state
        opener.close()
        behind.know("# nobody")
        with pytest.raises(RemoteError, match="not known"):
            by_paramiko(destination(server, "behind"))


class TestConfiguration:
    def test_include_and_match_mean_what_ssh_says(self, server: Server, tmp_path: Path) -> None:
        more = tmp_path / "more"
        more.write_text("Host included\n HostName 127.0.0.2\n Port 2022\n User someone\n")
        with server.config.open("a") as config:
            config.write(f"Match all\n  Include {more}\n")
        hop = destination(server, "included").hops[-1]
        assert (hop.host, hop.port, hop.user) == ("127.0.0.2", 2022, "someone")

    @pytest.mark.parametrize("name", ["-oProxyCommand=touch /tmp/x", "a b", "", "host:99999999", "a;b\nc"])
    def test_a_name_is_never_an_option_or_a_shells_word(self, server: Server, name: str) -> None:
        with pytest.raises(ConfigError):
            destination(server, name)

    def test_loops_and_commands_are_refused(self, server: Server) -> None:
        with server.config.open("a") as config:
            config.write("Host round\n ProxyJump about\nHost about\n ProxyJump round\n")
            config.write("Host command\n ProxyCommand nc %h %p\n")
        with pytest.raises(ConfigError, match="jumps over itself"):
            destination(server, "round")
        with pytest.raises(ConfigError, match="ProxyCommand") as raised:
            destination(server, "command")
        assert "--ssh ssh" in str(raised.value)


def test_an_address_where_nobody_listens_is_an_error_of_one_line(server: Server) -> None:
    with server.config.open("a") as config:
        config.write("Host closed\n HostName 127.0.0.1\n Port 1\n")
    with pytest.raises(RemoteError, match="cannot be reached"):
        by_paramiko(destination(server, "closed"))
