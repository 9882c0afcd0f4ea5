"""Every command that shows something, where its output goes somewhere unusual: no traceback, no hang, nothing wild."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from launcher.cli import main
from launcher.run.record import RecordedJob, RunRecord
from tests.model.checkpoints import checkpoint
from tests.report.made import write_runs

KEY = ("-k", "minimaxm3-fp8-gb200-dynamo-vllm", "--seq", "1k1k", "--conc", "4")

COMMANDS = {
    **{text: tuple(text.split()) for text in ("status", "status RUN", "status RUN OTHER nothing", "results RUN OTHER")},
    **{text: tuple(text.split()) for text in ("logs RUN", "logs RUN OTHER", "cancel nothing", "collect nothing")},
    **{text: tuple(text.split()) for text in ("report RUN --format text", "cleanup nothing", "sweep list", "schema")},
    **{text: tuple(text.split()) for text in ("runner list", "runner show gb200-nv", "check --explain", "version")},
    "runner show --for": ("runner", "show", "gb200-nv", "--for", "dsv4/fp4/dynamo-sglang"),
    "plan": ("plan", *KEY),
    "matrix": ("matrix", *KEY[:2]),
    "image list": ("image", "list", "--directory", "IMAGES"),
    "image gc": ("image", "gc", "--directory", "IMAGES"),
    "model list": ("model", "list", "MODELS"),
    "model check": ("model", "check", "MODELS/M"),
    "doctor locks": ("doctor", "locks", "IMAGES", "--no-nodes"),
    "help": ("--help",),
}
"""Commands of a user who has two runs, a directory of images and one of checkpoints."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("place")
    first, second = write_runs(root, 2)
    log = root / "log"
    log.write_text("tok/s → 146.25 ×2\n" * 2000)
    for run in (first, second):
        RunRecord.load(root / "runs", run).update(job=RecordedJob("4242", log=str(log)))
    (root / "images").mkdir()
    (root / "images" / "ä→×.sqsh").write_bytes(b"hsqs")
    checkpoint(root / "models" / "M")
    paths = {"IMAGES": root / "images", "MODELS": root / "models", "MODELS/M": root / "models/M", "STATE": root}
    return {"RUN": first, "OTHER": second, **{name: str(path) for name, path in paths.items()}}


def run(words: tuple[str, ...], place: dict[str, str], stream: Any) -> tuple[int | str | None, str]:
    """Run a command whose standard output is this stream; its exit code, and what it says on standard error."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(printed):
        patch.setattr(sys, "stdout", stream)
        patch.setenv("LAUNCHER_STATE", place["STATE"])
        patch.setenv("COLUMNS", "80")
        try:
            code: int | str | None = main([place.get(word, word) for word in words])
        except SystemExit as end:
            code = end.code
    return code, printed.getvalue()


@contextlib.contextmanager
def terminal() -> Iterator[tuple[Any, bytearray]]:
    """A terminal's stream, and what it is sent, which a thread reads."""
    ours, theirs = pty.openpty()
    sent = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(ours, 1 << 16):
                sent.extend(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        yield stream, sent
    reader.join(60)
    os.close(ours)


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_any_encoding_and_a_dumb_terminal(
    place: dict[str, str], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii", write_through=True)
    code, printed = run(words, place, stream)
    assert code in (0, 2) and "Traceback" not in printed
    plain = written.getvalue().decode("ascii")
    assert "\\u2192" not in plain, "our own signs have plain forms"
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal() as (shown, sent):
        assert run(words, place, shown)[0] == code
    assert b"\x1b" not in sent


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_reader_that_has_gone_and_a_terminal_that_was_closed(place: dict[str, str], words: tuple[str, ...]) -> None:
    for reading, writing in (os.pipe(), pty.openpty()):
        os.close(reading)
        with os.fdopen(writing, "w", buffering=1 << 10) as stream:
            code, printed = run(words, place, stream)
            with contextlib.suppress(OSError):
                stream.flush()
        assert code in (0, 2, 141) and "Traceback" not in printed
        assert code != 0 or "logs" not in words, "what writes much, learns of it"


FULL = "| head -1", ">&-", "2>&-", ">&- 2>&-", "</dev/null", ">/dev/full"


@pytest.mark.parametrize("how", FULL)
def test_whole_processes_leave_no_traceback(place: dict[str, str], how: str) -> None:
    command = f"{sys.executable} -m launcher logs {place['RUN']} --state {place['STATE']} {how}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_our_signs_have_plain_forms_and_others_are_escaped(place: dict[str, str]) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="latin-1", write_through=True)
    assert run(("runner", "show", "gb200-nv", "--for", "dsv4/fp4/dynamo-sglang"), place, stream)[0] == 0
    assert " -> recipes/sglang/deepseek-v4" in written.getvalue().decode("latin-1")


def test_lines_of_a_log_reach_a_terminal_whole(place: dict[str, str]) -> None:
    with terminal() as (stream, sent):
        assert run(("logs", "RUN"), place, stream)[0] == 0
    assert sent.decode().count("tok/s → 146.25 ×2") == 2000
