"""`launcher matrix`: the entries of matrix files, as InferenceX's generator gives them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from tests.shared import SHARED, needs_shared

MASTER = """\
a-fp8:
  {image: i, model: m, model-prefix: a, runner: h200, precision: fp8, framework: sglang, multinode: false, scenarios:
    {fixed-seq-len: [{isl: 8192, osl: 1024, search-space: [{tp: 8, conc-start: 4, conc-end: 16}]}]}}
b-fp4:
  {image: i, model: m, model-prefix: b, runner: gb200, precision: fp4, framework: dynamo-vllm, multinode: true,
   disagg: true, kv-p2p-transfer: nixl, scenarios:
    {fixed-seq-len: [{isl: 1024, osl: 1024, search-space: [{conc-list: [1, 64],
      prefill: {num-worker: 1, tp: 4, ep: 4, dp-attn: true}, decode: {num-worker: 1, tp: 8, ep: 1, dp-attn: false}}]}]}}
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "one-master.yaml").write_text(MASTER)
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["matrix", "--json", *arguments]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("flags", "concurrencies"),
    [
        ([], [4, 8, 16, [1, 64]]),
        (["--key", "b-*"], [[1, 64]]),
        (["--runner", "h200"], [4, 8, 16]),
        (["--framework", "dynamo-vllm"], [[1, 64]]),
        (["--precision", "fp8"], [4, 8, 16]),
        (["--model-prefix", "b"], [[1, 64]]),
        (["--seq", "8k1k"], [4, 8, 16]),
        (["--scenario", "fixed-seq-len"], [4, 8, 16, [1, 64]]),
        (["--conc", "16", "64"], [16, [64]]),
        (["--single-node"], [4, 8, 16]),
        (["--multi-node"], [[1, 64]]),
        (["--evals"], [16]),
    ],
)
def test_each_option_selects(
    workspace: Path, capsys: pytest.CaptureFixture[str], flags: list[str], concurrencies: list[Any]
) -> None:
    assert [e["conc"] for e in listed(capsys, "--workspace", str(workspace), *flags)] == concurrencies


def test_evaluations_are_marked_unless_told_otherwise(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def marked(*flags: str) -> list[bool]:
        return [e["run-eval"] for e in listed(capsys, "--workspace", str(workspace), *flags)]

    assert (marked(), marked("--no-evals")) == ([False, False, True, False], [False] * 4)


def test_a_workspace_without_masters_leaves_this_repositorys_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {e["model-prefix"] for e in listed(capsys, "--workspace", str(tmp_path))} == {"minimaxm3"}


def test_a_named_file_comes_in_the_place_of_the_masters(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = workspace / "other.yaml"
    other.write_text(MASTER.replace("a-fp8", "c-fp8"))
    assert main(["matrix", "--workspace", str(workspace), "--matrix", str(other)]) == 0
    printed = capsys.readouterr().out
    assert "c-fp8" in printed and "a-fp8" not in printed and printed.endswith("4 entries of 2 keys\n")


def test_a_selection_of_nothing_names_what_comes_near(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["matrix", "--workspace", str(workspace), "--framework", "dynamo-vlm"]) == 2
    assert "did you mean dynamo-vllm?" in capsys.readouterr().err


UPSTREAM = {
    (): (1820, "ccf807743af170d81e248b6e2f39435d5b0508b15985a23f75357e5e1f9c3774"),
    ("--evals",): (645, "bac48bc5e56c5c250cb09dcf30a701bcc7021487bbdfd64356edd1bea8aece27"),
}
"""What `generate_sweep_configs.py full-sweep` of InferenceX 843c6254f printed, without and with ``--evals-only``: how
many entries, and the SHA-256 of them as sorted lines of JSON with sorted keys."""


@needs_shared
@pytest.mark.parametrize("flags", UPSTREAM)
def test_the_real_masters_expand_to_what_upstreams_generator_printed(
    flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert SHARED is not None
    found = listed(capsys, "--workspace", str(SHARED / "inferencex"), *flags)
    lines = sorted(json.dumps(entry, sort_keys=True) for entry in found)
    assert (len(found), hashlib.sha256("\n".join(lines).encode()).hexdigest()) == UPSTREAM[flags]


def test_the_guides_aggregated_row_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/guides/new-cluster.md").read_text()
    row = page.partition("## Your own row and recipe")[2].partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "mine.yaml").write_text(row)
    assert main(["matrix", "--matrix", str(tmp_path / "mine.yaml"), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["disagg"], entry["prefill"]["num-worker"], entry["decode"]["num-worker"]) == (False, 2, 0)
