"""Twenty secrets in the environment of a `ci` run whose job prints them all: none is in any byte that stays.

Searched are the state, the workspace, what GitHub's runner is left, all that was printed, and the process list.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from launcher.benchmark import contracts
from tests.run.driving import LauncherUser, github_environment

BODY = "a1B2c3D4e5F6g7H8"
BY_NAME = {  # 12 that only the name of their variable tells
    "HF_TOKEN": "plain-text-of-a-token",
    "REGISTRY_PASSWORD": "correct horse/battery",
    "SLACK_WEBHOOK_URL": "https://hooks.example.com/services/not-known-by-shape",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "CLUSTER_AUTH": "somebody:something",
    "MY_PAT": "personal%access token",
    "DB_CREDENTIALS": 'quoted "credentials" \\ here',
    "MODAL_TOKEN_SECRET": "as-modal-has-it-1",
    "SERVICE_CREDS_JSON": json.dumps({"auth": base64.b64encode(b"robot:in-base64-only").decode()}),
    "SIGNING_KEY": f"-----BEGIN RSA PRIVATE KEY-----\n{BODY * 4}\n{BODY[::-1] * 4}\n-----END RSA PRIVATE KEY-----\n",
    "SESSION_COOKIE": "sessionid-4711-0815",
}
BY_SHAPE = {  # eight that no name tells
    "NOTE_1": "hf_" + BODY * 2,
    "NOTE_2": "ghp_" + (BODY * 3)[:36],
    "NOTE_3": "glpat-" + BODY + "abcd",
    "NOTE_4": "xoxb-" + "12345678901-" + BODY,
    "NOTE_5": "AKIA" + "ABCDEFGH12345678",
    "NOTE_6": "dckr_pat_" + BODY + "wxyz",
    "NOTE_7": "nvapi-" + BODY * 4,
    "NOTE_8": "https://robot:a-password-in-a-url@registry.example.com/v2",
}
SECRETS = {**BY_NAME, **BY_SHAPE}


def spellings(secret: str) -> list[bytes]:
    """What of a secret must be nowhere: itself, its lines, as URLs and JSON spell it, what its base64 holds."""
    parts = [secret, *(line for line in secret.splitlines() if len(line) > 20 and "-----" not in line)]
    if "@" in secret:
        parts = ["a-password-in-a-url"]
    if secret.startswith("{"):
        parts = [json.loads(secret)["auth"], "in-base64-only"]
    return [text.encode() for part in parts for text in {part, quote(part, safe=""), json.dumps(part)[1:-1]}]


def contents(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a directory, and what is packed in it."""
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        yield str(path), str(path).encode() + data
        if data[:2] == b"\x1f\x8b":
            yield f"{path} unpacked", gzip.decompress(data)
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                for member in tar.getmembers():
                    file = tar.extractfile(member) if member.isfile() else None
                    yield f"{path}:{member.name}", member.name.encode() + (file.read() if file else b"")


class ProcessList(threading.Thread):
    """What `ps` shows of the processes that a user's run starts, looked at every few milliseconds."""

    def __init__(self, user: LauncherUser) -> None:
        super().__init__(daemon=True)
        self.mark = os.fsencode(user.root)
        self.over = threading.Event()
        self.commands: set[bytes] = set()
        self.job: dict[str, bytes] = {}
        """The environment of each process of the job, by its variables."""

    def run(self) -> None:
        while not self.over.wait(0.01):
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    environment = (entry / "environ").read_bytes()
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if self.mark in environment or self.mark in command:
                    self.commands.add(command)
                    if b"/state/jobs/" in command:
                        self.job |= {os.fsdecode(line).partition("=")[0]: line for line in environment.split(b"\0")}


def print_secrets(user: LauncherUser, over: threading.Event) -> None:
    """As soon as the job has a log: write the secrets into it and into a file beside it, as a careless job does."""
    while not over.wait(0.02):
        for log in user.state.glob("srt-slurm/*/outputs/*/logs/sweep_*.log"):
            lines = [f"{name}={value}\n{{{json.dumps(value)}}}\n" for name, value in SECRETS.items()]
            lines += [f"?{name}={quote(value, safe='')}\n" for name, value in BY_NAME.items()]
            for path in (log, log.with_name("node01_decode_w0.out")):
                with path.open("a") as file:
                    file.write("".join(lines))
            return


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[LauncherUser, str, ProcessList]:
    """A user whose `ci` run has ended; what it printed; its processes."""
    user = LauncherUser(tmp_path_factory.mktemp("user"), extra={"LAUNCHER_REHEARSAL_SECONDS": "1.5"})
    environment = {**github_environment(user), **SECRETS, "GITHUB_ENV": str(user.root / "env")}
    over, processes = threading.Event(), ProcessList(user)
    threading.Thread(target=print_secrets, args=(user, over), daemon=True).start()
    processes.start()
    try:
        said = user.launcher("ci", timeout=300, **environment)
        said += user.launcher("status", **environment) + user.launcher("logs", user.run_ids()[0], **environment)
    finally:
        over.set()
        processes.over.set()
        processes.join()
    return user, said, processes


def found_in(data: Mapping[str, bytes]) -> list[tuple[str, str]]:
    forms = {name: spellings(value) for name, value in SECRETS.items()}
    return [
        (where, name) for where, held in data.items() for name, texts in forms.items() if any(t in held for t in texts)
    ]


def test_no_file_holds_a_secret(ended: tuple[LauncherUser, str, ProcessList]) -> None:
    user, _, _ = ended
    data = dict(contents(user.root))
    assert any("multinode_server_logs" in where for where in data) and len(data) > 20
    logs = b"".join(held for where, held in data.items() if "node01_decode_w0.out" in where)
    assert b"SESSION_COOKIE=***" in logs.replace(b"*" * len(SECRETS["SESSION_COOKIE"]), b"***"), "the job printed them"
    assert found_in(data) == []


def test_nothing_printed_holds_a_secret(ended: tuple[LauncherUser, str, ProcessList]) -> None:
    _, said, _ = ended
    # The masks themselves are for GitHub's runner, which shows none of them.
    lines = [line for line in said.splitlines() if not line.startswith("::add-mask::")]
    assert "SESSION_COOKIE=***" in said, "the job printed them"
    assert found_in({"printed": "\n".join(lines).encode()}) == []


def test_no_command_line_holds_a_secret_and_the_job_has_only_those_that_are_passed(
    ended: tuple[LauncherUser, str, ProcessList],
) -> None:
    _, _, processes = ended
    assert len(processes.commands) > 5 and "PATH" in processes.job
    assert found_in({repr(command): command for command in processes.commands}) == []
    passed = {"HF_TOKEN", "MODAL_TOKEN_SECRET"}  # which the workflow has for its jobs
    assert passed < set(contracts.SECRETS) and {name for _, name in found_in(processes.job)} == passed
