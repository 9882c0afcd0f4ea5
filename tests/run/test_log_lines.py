"""Lines of logs, in every engine's form: what they say, at which level, and when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from launcher.run.log_lines import clean, parse, tail

WRITTEN = datetime(2026, 11, 21, 12, tzinfo=timezone.utc).timestamp()
AT = datetime(2026, 11, 21, 10, 0, 5, tzinfo=timezone.utc).timestamp()


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("line", "level", "body"),
    [
        ("2026-11-21 10:00:05 [ERROR] bad", "error", "bad"),
        (
            "\x1b[2m2026-11-21T10:00:05.301796Z\x1b[0m \x1b[33m WARN\x1b[0m \x1b[2mdynamo\x1b[0m: bad",
            "warn",
            "dynamo: bad",
        ),
        ("[2m2026-11-21T10:00:05.3Z[0m [31mERROR[0m [2mdynamo[0m: bad", "error", "dynamo: bad"),
        ("2026-11-21T11:00:05+01:00 ERROR bad", "error", "bad"),
        ("(EngineCore_0 pid=572) ERROR 11-21 10:00:05 [core.py:700] bad", "error", "bad"),
        ("(RayWorkerWrapper pid=572, ip=10.0.0.1) INFO 11-21 10:00:05 [a.py:1] bad", "info", "bad"),
        ("[2026-11-21 10:00:05 DP0 TP1] bad", "", "bad"),
        ("[2026-11-21 10:00:05] INFO:     127.0.0.1:1 - bad", "info", "127.0.0.1:1 - bad"),
        ("[11/21/2026-10:00:05] [TRT-LLM] [RANK 3] [E] bad", "error", "bad"),
        ("[11/21/2026-10:00:05] [TRT-LLM] [W] bad", "warn", "bad"),
        ("[28] 2026/11/21 10:00:05.099615 [FTL] bad", "fatal", "bad"),
        ("2026-11-21 10:00:05.125241 C | etcdmain: bad", "fatal", "etcdmain: bad"),
        ("E1121 10:00:05.123456   572 file.cc:12] bad", "error", "bad"),
        ("[rank0]:[W1121 10:00:05.123456789 ProcessGroupNCCL.cpp:616] bad", "warn", "bad"),
        ("2026-11-21 10:00:05.123 | CRITICAL | module:func:12 - bad", "fatal", "module:func:12 - bad"),
        ("2026-11-21 10:00:05,123 - vllm.x - WARNING - bad", "warn", "bad"),
        ("2026/11/21 10:00:05 [crit] bad", "fatal", "bad"),
        ("10:00:05.123456 ERROR bad", "error", "bad"),
        ("0: 2026-11-21 10:00:05 ERROR bad", "error", "bad"),
        ("decode-1  | 2026-11-21 10:00:05 ERROR bad", "error", "bad"),
    ],
)
def test_a_line_with_a_stamp(line: str, level: str, body: str) -> None:
    found = parse(clean(line), WRITTEN)
    assert (found.level, found.body) == (level, body)
    assert found.at is not None and AT <= found.at < AT + 1


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("ERROR at the end", "error", "ERROR at the end"),
        ("INFO:     Shutting down", "info", "INFO:     Shutting down"),
        ("ValueError: INFO is no level", "", "ValueError: INFO is no level"),
        ("(EngineCore_0 pid=572) Traceback (most recent call last):", "", "Traceback (most recent call last):"),
        ("slurmstepd-n1: error: bad", "error", "slurmstepd-n1: error: bad"),
        ("10%\r50%\rdone\x08 \x1b]0;title\x07now\u202e", "", "done now"),
        ("99/99/2026-10:00:05 nonsense", "", "99/99/2026-10:00:05 nonsense"),
    ],
)
def test_a_line_without_one(line: str, level: str, text: str) -> None:
    found = parse(clean(line), WRITTEN)
    assert (found.level, found.text) == (level, text)


def test_a_stamp_within_a_sentence_stays_and_counts() -> None:
    line = "slurmstepd: error: *** JOB 7 ON node01 CANCELLED AT 2026-11-21T10:00:05 DUE TO TIME LIMIT ***"
    found = parse(line, WRITTEN)
    assert (found.text, found.at) == (line, AT)


def test_a_stamp_without_a_year_is_of_the_year_before_the_file_was_written() -> None:
    written = datetime(2027, 1, 1, 0, 10, tzinfo=timezone.utc).timestamp()
    found = parse("ERROR 12-31 23:59:50 [core.py:700] bad", written)
    assert found.at == datetime(2026, 12, 31, 23, 59, 50, tzinfo=timezone.utc).timestamp()
    assert parse("23:59:50 ERROR bad", written).at == found.at


def test_no_bytes_make_a_line_raise(tmp_path: Path) -> None:
    import random

    rng = random.Random(7)
    alphabet = b'0123456789-:/T Z[]().,EFWIpid=\x1b\r\n\xff\xe2\x80\xae error Killed {"ts":'
    path = tmp_path / "x.out"
    for _ in range(50):
        path.write_bytes(bytes(rng.choice(alphabet) for _ in range(4000)))
        for line in tail(path):
            parse(line, WRITTEN)
