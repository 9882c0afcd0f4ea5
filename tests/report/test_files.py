"""The report's files: strict JSON by its schema, CSV, JUnit, Markdown; and the page as text."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

from launcher.cli import main
from launcher.report import files
from launcher.report.assemble import build_report
from launcher.report.chart import phases
from launcher.report.document import Attempt, Document, Entry, Run, as_json, schema
from launcher.report.gather import gather
from launcher.report.page import render_page
from tests.report.made import CONCURRENCIES, row, rows, write_rows, write_runs
from tests.report.test_sources import DIED, MISSING, REFUSED, change

HOSTILE = "=cmd|' /C calc'!A0 </script> | `x` [a](http://e) <b> ]]> \x00\x1b[31m \ufffe @user"


@pytest.fixture
def value(tmp_path: Path) -> Document:
    """Five runs: of the first one point is refused, the third died, the fourth's results are not there."""
    runs = write_runs(tmp_path, 5)
    change(tmp_path, runs[0], "summary", points={16: REFUSED})
    change(tmp_path, runs[2], "run", **DIED)
    (tmp_path / f"runs/{runs[2]}/summary.json").unlink()
    change(tmp_path, runs[3], "summary", points={16: {**MISSING, "reason": HOSTILE}})
    return build_report(gather([str(tmp_path)], tmp_path), title=f"a title {HOSTILE}", made="now")


def test_json_is_strict_and_by_its_schema(value: Document) -> None:
    read = json.loads(as_json(value), parse_constant=lambda text: pytest.fail(text))
    jsonschema.Draft202012Validator(json.loads(schema())).validate(read)
    assert read["schema_version"] == 1 and len(read["points"]) == 20
    entry = Entry(
        id="p1", state="ok", model="m", hardware="h", framework="f", precision="p", scenario="s", concurrency=1,
        metrics={"tput_per_gpu": float("nan")},
    )  # fmt: skip
    with pytest.raises(ValueError, match="JSON"):
        as_json(Document(title="", made="", points=(entry,)))


def test_csv(value: Document) -> None:
    read = list(csv.DictReader(io.StringIO(files.points_csv(value))))
    assert len(read) == 20
    for line, entry in zip(read, value.points, strict=True):
        assert (line["state"], int(line["concurrency"])) == (entry.state, entry.concurrency)
        if entry.metrics:
            assert float(line["tput_per_gpu"]) == entry.metrics["tput_per_gpu"]
            assert line["run_nodes"].startswith("node[") and "sha256:" in line["images"]
    hostile = [line["reason"] for line in read if "cmd" in line["reason"]]
    assert hostile and all(text.startswith("'=") and "\x1b" not in text for text in hostile)


def test_junit(value: Document) -> None:
    root = ElementTree.fromstring(files.junit(value))
    (suite,) = root
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped")} == {
        "tests": "20", "failures": "6", "skipped": "0",
    }  # fmt: skip
    types = [failure.get("type") for failure in root.iter("failure")]
    assert sorted(map(str, types)) == ["results", "results", "server", "server", "server", "server"]
    good = next(case for case in suite if case.find("failure") is None)
    metrics = {one.get("name"): one.get("value") for one in good.iter("property")}
    assert float(metrics["tput_per_gpu"] or 0) > 0


def test_a_retry_is_a_suite_of_its_own() -> None:
    attempts = (Attempt(state="missing", layer="node", reason="gone", run="a"), Attempt(state="ok", run="b"))
    entry = Entry(
        id="p1", state="ok", model="m", hardware="h", framework="f", precision="p", scenario="s", concurrency=1,
        attempts=attempts, metrics={"tput_per_gpu": 2.0},
    )  # fmt: skip
    made = Document(title="t", made="", points=(entry,), runs=(Run(id="a"), Run(id="b")))
    first, second = ElementTree.fromstring(files.junit(made))
    assert (first.get("failures"), second.get("name"), second.get("failures")) == ("1", "t, retry 1", "0")
    first_try = "<a href=#r1>a</a> <span class=missing>missing</span> node: gone"
    assert "2 attempts: missing gone; ok" in files.markdown(made)
    assert f"{first_try}; <a href=#r2>b</a> <span class=ok>ok</span>" in render_page(made)


def test_markdown_has_units_and_bounds(value: Document) -> None:
    text = files.markdown(value)
    assert "throughput per GPU, tok/s/GPU" in text and "**14** ok" in text and "worker decode 0 was killed" in text
    assert "\x1b" not in text and "](http" not in text and "<b>" not in text
    assert "REHEARSAL" not in text
    many = Document(title="t", made="", points=value.points * 400)
    bounded = files.markdown(many)
    assert len(bounded.encode()) <= 1 << 20 and bounded.rstrip().endswith("more lines are left out here.")


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda path: write_rows(path / "tree", list(rows(100))), 60_000),
        (lambda path: write_runs(path / "tree", 25, CONCURRENCIES), 60_000),
        (lambda path: write_runs(path / "tree", 100, [64]), 60_000),
        (lambda path: write_rows(path / "tree", list(rows(2000))), 1_000_000),
    ],
)
def test_the_page_is_small_and_loads_nothing(tmp_path: Path, make: Callable[[Path], None], most: int) -> None:
    make(tmp_path)
    text = render_page(build_report(gather([str(tmp_path / "tree")], tmp_path), title="t", made="now"))
    assert len(text.encode()) <= most
    assert re.findall(r"(?:src|href)\s*=\s*[\"']?(?!#)[^\s>]*|url\(|@import|https?://", text) == []
    policy = re.search(r'http-equiv=Content-Security-Policy content="([^"]*)"', text)
    hashes = []
    for kind in ("style", "script"):
        (inside,) = re.findall(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        hashes.append(base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode())
    expected = f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    assert policy and policy[1] == expected
    assert " style=" not in text.partition("<body>")[2].partition("<script>")[0]


def test_the_page_says_what_is_not_ok_above_the_pictures(value: Document) -> None:
    text = render_page(value)
    above = text.partition("<h2>Frontiers")[0]
    for part in ("max_concurrency is 8, expected 16", "worker decode 0 was killed", "14</b> ok", ">server<"):
        assert part in above
    assert "</script> |" not in text and "\x1b" not in text
    assert "throughput per GPU, tok/s/GPU (more is better ↑)" in text
    assert "median interactivity, tok/s/user (more is better →)" in text


def test_the_command_writes_all_of_it_and_prints_one_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (name, *_) = write_runs(tmp_path / "state", 3)

    def report(*arguments: str, code: int = 0) -> str:
        assert main(["report", *arguments, "--state", str(tmp_path / "state")]) == code
        return capsys.readouterr().out

    printed = report(name, "-o", str(tmp_path / "out"))
    assert "4 points: 4 ok" in printed and str(tmp_path / "out/report.html") in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.html", "report.json", "points.csv", "junit.xml", "report.md"}
    assert json.loads(report(str(tmp_path / "state"), "--json"))["counts"] == {"ok": 12}
    assert report("--schema") == schema().decode()
    report("nothing-here", code=2)
    report(code=2)


def test_the_time_line_has_each_job_with_what_it_waited_and_measured(tmp_path: Path) -> None:
    write_runs(tmp_path, 3)
    found = build_report(gather([str(tmp_path)], tmp_path), title="t", made="now")
    for run in found.runs:
        parts = list(phases(run))
        assert all(first[2] <= second[1] for first, second in pairwise(parts))
        assert run.started and run.submitted and run.ended
        assert ("queue", run.submitted, run.started) in parts
        assert [(begin, end) for name, begin, end in parts if name == "measure"] == [one[1:] for one in run.measured]
        assert parts[-1] == ("rest", run.measured[-1][2], run.ended)
    text = render_page(found)
    picture = text.partition('<svg class=time viewBox="0 0 1000')[2].partition("</svg>")[0]
    assert [f"{run.job} {run.nodes}" for run in found.runs] == re.findall(
        r"<a href=#r\d+><text y=\d+>([^<]*)<", picture
    )
    odd = Run(id="odd", created=5.0, submitted=3.0, started=9.0, ended=8.0, measured=((4, 1.0, 99.0), (8, 7.0, 6.0)))
    assert list(phases(odd)) == [("queue", 3.0, 9.0)] and not list(phases(Run(id="new")))


@pytest.mark.parametrize(
    "changes",
    [
        {"median_intvty": -5.0},
        {"median_intvty": 1e308, "tput_per_gpu": 1e308},
        {"median_intvty": 5e-324},
        {"median_intvty": "fast", "conc": 10**30},
        {"infmax_model_prefix": "half \ud800 pair", "image": "\udfff"},
        {"isl": -1, "osl": 0, "prefill_tp": -8},
    ],
)
def test_odd_rows_spoil_no_file(tmp_path: Path, changes: dict[str, object]) -> None:
    made = [*rows(3), row(shape=(9, 4), **changes)]
    write_rows(tmp_path / "tree", made)
    value = build_report(gather([str(tmp_path / "tree")], tmp_path), title="t", made="now")
    files.write_report(value, tmp_path / "out")
    assert len(json.loads((tmp_path / "out/report.json").read_bytes())["points"]) == 4
    assert (tmp_path / "out/report.html").read_text(encoding="utf-8").count("<tr id=p") == 4
    ElementTree.parse(tmp_path / "out/junit.xml")
