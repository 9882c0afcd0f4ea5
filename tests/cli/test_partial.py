"""One bad row, key or file among others: it is named with the number of its like, the others are done, exit 2.

The same at every door: `plan`, `matrix`, `sweep`, `run`, `check`, `runner list`, `ci`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import sweeping
from launcher.plan.plan import Plan
from launcher.run.record import RunRecord
from launcher.sweep import driver
from launcher.sweep.ledger import Ledger
from tests.run.driving import InProcessUser, github_environment

HEAD = """\
{key}:
  image: vllm/vllm-openai:minimax-m3-perf-arm64-13.0.1-7a67223
  model: MiniMaxAI/MiniMax-M3-MXFP8
  model-prefix: {prefix}
  runner: {runner}
  precision: fp8
  framework: dynamo-vllm
  kv-p2p-transfer: nixl
  multinode: true
  disagg: true
  scenarios:
    fixed-seq-len:
    - isl: 1024
      osl: 1024
      search-space:
"""
RECIPE = "recipes/vllm/minimax-m3-gb200-fp8/1k1k.yaml:override_disagg-gb200-1p1d-dep4-tp4-marlin-2n"
ROW = """\
      - conc-list: [{conc}]
        prefill: {{num-worker: 1, tp: 4, ep: 4, dp-attn: true, additional-settings: ["CONFIG_FILE={recipe}"{more}]}}
        decode: {{num-worker: 1, tp: 4, ep: 1, dp-attn: false}}
"""


def family(*rows: str, key: str = "good", prefix: str = "minimaxm3", runner: str = "local") -> str:
    return HEAD.format(key=key, prefix=prefix, runner=runner) + "".join(rows)


def row(conc: object, more: str = "") -> str:
    return ROW.format(conc=conc, recipe=RECIPE, more=f", {more}" if more else "")


BAD_ROWS = {
    "an unknown setting": row(4, '"SLURM_PARTITON=x"'),
    "a number as text": row('"4"'),
    "an unknown key": row(4).replace("num-worker", "num-wroker", 1),
    "a row that is text": "      - text\n",
    "sizes that do not fit": row(4).replace("tp: 4, ep: 4", "tp: 4, dcp-size: 3, ep: 4"),
}


@pytest.fixture
def user(tmp_path: Path) -> InProcessUser:
    return InProcessUser(tmp_path)


def write(user: InProcessUser, text: str) -> tuple[str, str]:
    path = user.workspace / "m.yaml"
    path.write_text(text)
    return "--matrix", str(path)


@pytest.mark.parametrize("bad", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_leaves_the_rows_beside_it(user: InProcessUser, bad: str) -> None:
    matrix = write(user, family(row(4), bad, row(16)) + family(row(8), key="other"))
    line = 1 + family(row(4)).count("\n")
    for command in (("plan", "-k", "*"), ("matrix",)):
        printed = user.launcher(*command, *matrix, code=2)
        assert "1 of 4 that were selected cannot be done" in printed
        assert any(f"m.yaml:{number}: " in printed for number in range(line, line + 4)), printed
    printed = user.launcher("check", *matrix, "--runner", "local", code=1)
    assert printed.count("matrix-invalid error") == 1 and "3 rows" in printed
    assert "2 plans" not in user.launcher("plan", "-k", "other", *matrix), "what is not selected is not judged"


def test_the_lines_of_rows_behind_a_bad_one_are_their_own(user: InProcessUser) -> None:
    text = family(row(4), BAD_ROWS["a row that is text"], row(16).replace("num-worker", "x", 1), row(64))
    matrix = write(user, text)
    printed = user.launcher("matrix", *matrix, code=2)
    assert "2 of 4 that were selected" in printed
    assert f"m.yaml:{1 + text[: text.index('- text')].count(chr(10))}: " in printed
    assert f"m.yaml:{1 + text[: text.index('{x: 1')].count(chr(10))}: unknown key 'x'" in printed


BAD_KEYS = {
    "no image": family(row(4), key="bad").replace("image", "imgae"),
    "a pattern as key": family(row(4), key="'b*'"),
    "no mapping": "bad: text\n",
    "an image twice": family(row(4), key="bad").replace("  precision", "  image: x\n  precision"),
    "no row that is right": family(BAD_ROWS["a row that is text"], key="bad"),
}


@pytest.mark.parametrize("bad", BAD_KEYS.values(), ids=BAD_KEYS)
def test_a_bad_key_leaves_the_keys_beside_it(user: InProcessUser, bad: str) -> None:
    matrix = write(user, bad + family(row(4), row(16)))
    assert "1 of 3 that were selected cannot be done" in user.launcher("plan", "-k", "*", *matrix, code=2)
    assert "2 plans" in user.launcher("plan", "-k", "good", *matrix)
    if bad.startswith("bad"):
        assert "configuration" in user.launcher("plan", "-k", "bad", *matrix, code=2)


def test_a_matrix_file_that_is_no_yaml_leaves_the_others(user: InProcessUser) -> None:
    (user.workspace / "b.yaml").write_text("a: [1\nb: 2\n")
    matrix = (*write(user, family(row(4), row(16))), str(user.workspace / "b.yaml"))
    assert "1 of 3 that were selected cannot be done" in user.launcher("plan", "-k", "*", *matrix, code=2)
    assert "2 plans" in user.launcher("plan", "-k", "good", *matrix)
    (user.workspace / "configs").mkdir()
    (user.workspace / "configs/runners.yaml").write_text("labels: x\n")
    assert "2 plans" in user.launcher("plan", "-k", "good", *matrix), "no row of these needs it"


def test_a_row_that_no_runner_serves_and_one_without_a_lane(user: InProcessUser) -> None:
    matrix = write(
        user,
        family(row(4), row(16))
        + family(row(4), key="nowhere", runner="mars")
        + family(row(4), row(8), key="no-lane", prefix="unheard"),
    )
    printed = user.launcher("plan", "-k", "*", *matrix, code=2)
    assert "3 of 5 that were selected cannot be done" in printed and "2 plans" in printed
    assert "no runner file serves the label 'mars'" in printed and printed.count("has no rule in `models`") == 2
    plans = json.loads(user.launcher("plan", "-k", "*", *matrix, "--json", code=2).partition("\nlauncher: ")[0])
    assert [plan["results"]["concurrencies"] for plan in plans] == [[4], [16]]
    assert "no runner file serves" in user.launcher("run", "-k", "nowhere", *matrix, code=2)


class Driven:
    """Stands for driving a sweep; remembers what it would measure."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.concurrencies: list[int] = []
        monkeypatch.setattr(sweeping, "drive", self)

    def __call__(self, project: Any, ledger: Ledger, *rest: Any) -> int:
        self.concurrencies += [job.concurrencies[0] for job in ledger.sweep.jobs]
        return 0


def test_a_sweep_runs_what_can_be_run_and_names_all_others(
    user: InProcessUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven = Driven(monkeypatch)
    matrix = write(
        user,
        family(row(4), BAD_ROWS["an unknown setting"], row(16), row(32).replace("tp: 4, ep: 4", "tp: 2, ep: 2"))
        + family(row(8), row(2), key="no-lane", prefix="unheard"),
    )
    printed = user.launcher("sweep", "-k", "*", *matrix, code=2)
    assert driven.concurrencies == [4, 16]
    assert "4 of 6 that were selected cannot be done" in printed
    assert printed.count("has no rule in `models`") == 2 and "SLURM_PARTITON" in printed and "would fail" in printed
    driven.concurrencies.clear()
    printed = user.launcher("sweep", "-k", "no-lane", *matrix, code=2)
    assert driven.concurrencies == [] and "2 of 2 that were selected" in printed


def test_rows_of_another_scheduler_are_named_and_left_out(user: InProcessUser, monkeypatch: pytest.MonkeyPatch) -> None:
    driven = Driven(monkeypatch)
    matrix = write(user, family(row(4)) + family(row(16), row(8), key="other", runner="gb200"))
    printed = user.launcher("sweep", "-k", "*", *matrix)
    assert driven.concurrencies == [4]
    assert "runner gb200-nv: 2 jobs are left out" in printed and "its jobs need the scheduler slurm" in printed


BAD_RUNNERS = {
    "a day that is none": ("expires: 2026-13-45", "no timestamp"),
    "a word as day": ("expires: soon", "not a date"),
}


@pytest.mark.parametrize("day,printed", BAD_RUNNERS.values(), ids=BAD_RUNNERS)
def test_a_bad_runner_file_stops_its_own_cluster_alone(user: InProcessUser, day: str, printed: str) -> None:
    (user.workspace / "runners").mkdir()
    text = (Path(__file__).parents[2] / "runners/gb300-nv.yaml").read_text()
    (user.workspace / "runners/gb300-nv.yaml").write_text(f"{text}\nexclude-nodes: [{{node: n, reason: x, {day}}}]\n")
    if "exclude-nodes:" in text:
        lines = text.replace("\nexclude-nodes:", f"\nexclude-nodes:\n  - {{node: n, reason: x, {day}}}", 1)
        (user.workspace / "runners/gb300-nv.yaml").write_text(lines)
    listed = user.launcher("runner", "list", code=2)
    assert printed in listed and "gb200-nv" in listed and "runner files cannot be read" in listed
    matrix = write(user, family(row(4), row(16)) + family(row(4), key="other", runner="gb300-nv"))
    assert "2 plans" in user.launcher("plan", "-k", "good", *matrix)
    planned = user.launcher("plan", "-k", "*", *matrix, code=2)
    assert "1 of 3 that were selected" in planned and printed in planned and "2 plans" in planned
    assert "0 errors" in user.launcher("check", "-k", "good", *matrix)
    assert printed in user.launcher("plan", "-k", "other", *matrix, code=2)
    environment = github_environment(user)
    assert json.loads(user.launcher("plan", "--from-env", "--json", **environment))["runner"] == "local"
    wrong = user.launcher("plan", "--from-env", code=2, **{**environment, "RUNNER_NAME": "gb300-nv_0"})
    assert printed in wrong


def test_a_record_that_cannot_be_made_stops_no_other_run(user: InProcessUser, monkeypatch: pytest.MonkeyPatch) -> None:
    make = RunRecord.create
    monkeypatch.setattr(driver, "ASK_AGAIN", 0.1)

    def create(runs: Path, plan: Plan, **fields: Any) -> RunRecord:
        if plan.benchmark.concurrencies == (4,):
            raise OSError(28, "No space left on device")
        return make(runs, plan, **fields)

    monkeypatch.setattr(RunRecord, "create", create)
    matrix = write(user, family(row(4), row(16)))
    printed = user.launcher("sweep", "-k", "*", *matrix, code=7)
    assert "No space left on device" in printed and "1/2 ok" in printed and "1 not started" in printed


def test_ci_says_what_looks_like_a_setting_and_is_none(user: InProcessUser) -> None:
    slips = {"SLURM_PARTITON": "x", "PREFILL_NODE": "2", "DECODE_UNHEARD_OF": "1", "SLURM_JOB_PARTITION": "gpu"}
    plan = json.loads(user.launcher("plan", "--from-env", "--json", **github_environment(user), **slips))
    printed = [finding["message"] for finding in plan["findings"] if finding["rule"] == "setting-unknown"]
    assert printed == [
        "DECODE_UNHEARD_OF is no known setting, and is passed over",
        "PREFILL_NODE is no known setting, and is passed over: did you mean PREFILL_NODES?",
        "SLURM_PARTITON is no known setting, and is passed over: did you mean SLURM_PARTITION?",
    ]
    assert "setting-unknown" in user.launcher("check", "--from-env", **github_environment(user), **slips)
