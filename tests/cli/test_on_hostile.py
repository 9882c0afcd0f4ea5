"""Commands by `--on` whose far side lies: a stand-in for an agent, that answers each method as a test says."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import zlib
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from launcher import __version__
from launcher.cli import main, on, on_driving
from launcher.cli.common import open_project
from launcher.remote.by_openssh import OpenSSHPipe
from launcher.remote.session import Session

HOSTILE_AGENT = """
import base64, json, sys
answers, out = json.loads(sys.argv[1]), sys.stdout.buffer
token = json.loads(sys.stdin.readline())["token"]
greeting = {"protocol": 1, "version": sys.argv[2], "host": "h", "python": "", "time": 1}
out.write(f"launcher-agent {token} {json.dumps(greeting)}\\n".encode())
out.flush()
for line in sys.stdin:
    request = json.loads(line)
    if "method" in request:
        for event in answers[request["method"]]:
            if "body" in event:
                body = base64.b64decode(event["body"])
                out.write(json.dumps({"id": request["id"], "body": len(body)}).encode() + b"\\n" + body)
            else:
                out.write(json.dumps({"id": request["id"], **event}).encode() + b"\\n")
        out.flush()
"""


def body(content: bytes) -> dict[str, str]:
    return {"body": b64encode(content).decode()}


def out(text: str) -> dict[str, str]:
    return body(zlib.compress(text.encode()))


DONE = {"result": 0}
WHOLE = '{"runs_directory": "", "runs": []}'
END = {"state": "succeeded", "exit": 0, "error": None, "verdict": "", "summary": None, "directory": "\x1b[2J"}


POINTS = {"points": [{"state": "ok"}]}


@pytest.mark.parametrize(
    ("words", "answers", "message"),
    [
        (["status"], {"ask": [out('value\n{"runs": 1}\n'), DONE]}, "far: the answer has another type"),
        (
            ["status"],
            {"ask": [out("value\n" + "[" * 100_000 + "\n"), DONE]},
            "far: the answer has another type",
        ),
        (["status"], {"ask": [body(b"no zlib"), DONE]}, "far: the output of the command cannot be unpacked"),
        (["status"], {"ask": [out("x" * 70_000), DONE]}, "far: the command printed a line of more than"),
        (["status"], {"ask": [{"event": {"said": "x" * 70_000}}, DONE]}, "far: the command printed more than"),
        (["status"], {"ask": [{"event": {"said": "\x1b[2Jit is"}}, {"error": {"message": "\x1b[2Jno"}}]}, "no"),
        (["logs", "r"], {"ask": [{"error": 1}]}, "without words"),
        (["resume", "r"], {"follow": [{"event": {"events": 1}}]}, "in another way than ours"),
        (["resume", "r"], {"follow": [{"event": [1]}]}, "in another way than ours"),
        (["resume", "r"], {"follow": [{"result": {**END, "exit": "0"}}]}, "in another way than ours"),
        (
            ["resume", "r"],
            {"follow": [{"result": {**END, "summary": {"points": [{"state": "ok"}]}}}]},
            "cannot be used",
        ),
        (["resume", "r"], {"follow": [{"result": {**END, "error": {"exit": "x"}, "state": "\x1b[2J"}}]}, "an error"),
        (["run", "-k", "m*"], {"put": [{"result": 5}]}, "in another way than ours"),
        (["run", "-k", "m*"], {"put": [{"result": "/"}], "look": [{"result": {"environment": 1}}]}, "another way"),
    ],
)
def test_it_ends_in_one_clear_error(
    words: list[str],
    answers: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(on, "MAX_VALUE", 1 << 16)
    monkeypatch.setattr(on_driving, "resume", lambda remote: on_driving._follow(remote, "r", on.ReceivedSignals(print)))
    pipe = OpenSSHPipe([sys.executable, "-Ic", HOSTILE_AGENT, json.dumps(answers), __version__], "far")
    with Session(pipe, "far") as session:

        def connect(arguments: Any, name: str) -> Any:
            node = dataclasses.make_dataclass("Node", ["name", "project", "directory", "session"])
            project = open_project(arguments)
            return contextlib.nullcontext(node("far", project, tmp_path, lambda: contextlib.nullcontext(session)))

        monkeypatch.setattr(on, "connect", connect)
        code = main(["--on", "far", *words, "--state", str(tmp_path)])
    printed = capsys.readouterr()
    assert code not in (0, None) or "an error" in message
    assert (
        message in printed.out + printed.err
        and "\x1b" not in printed.out + printed.err
        and "Traceback" not in printed.err
    )
