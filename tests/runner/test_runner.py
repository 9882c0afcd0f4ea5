"""Runner files: which rule applies and where it stands; what is wrong with a file, by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.core.errors import ConfigError
from launcher.core.shipped import shipped
from launcher.core.yaml_source import Document
from launcher.runner.file import RunnerFile
from launcher.runner.fleet import Fleet
from tests.benchmarks import a_benchmark

MINIMAL = """\
name: tiny
sku: tiny
runners: [tiny]
labels: [tiny]
scheduler: {partition: p, account: a}
node: {gpus: 4}
storage:
  - {path: /, kind: local}
  - {path: /nvme, kind: node-local, seen-by: [compute]}
images: {directory: /squash}
checkout: {directory: /trees, cache: /cache}
repositories: {nvidia: "https://example.org/srt-slurm.git"}
models:
  - when: {prefix: minimaxm3, precision: fp8}
    path: /nvme/M3
    alias: m3
  - when: {prefix: "minimax*"}
    path: /other
    alias: other
lanes:
  - when: {scenario: agentic-coding}
    repository: nvidia
    ref: v1
  - repository: nvidia
    ref: v2
"""


def parse(text: str) -> RunnerFile:
    return RunnerFile(Document("tiny.yaml", text))


def test_the_first_rule_that_matches_wins_and_says_where_it_stands() -> None:
    file = parse(MINIMAL)
    exact = file.model(a_benchmark(model_prefix="minimaxm3", precision="fp8"))
    assert (exact.rule.alias, exact.where) == ("m3", "tiny.yaml:14")
    assert file.model(a_benchmark(model_prefix="minimaxm3", precision="fp4")).rule.alias == "other"
    assert file.lane(a_benchmark()).rule.ref == "v2"
    assert file.lane(a_benchmark(scenario="agentic-coding")).where == "tiny.yaml:21"


def test_a_lane_names_the_kind_of_job_that_serves_it() -> None:
    file = parse(MINIMAL.replace("    ref: v1\n", "    ref: v1\n    kind: script\n"))
    assert [lane.kind for lane in file.runner.lanes] == ["script", "srtctl"]


def test_no_match_lists_what_is_supported() -> None:
    with pytest.raises(ConfigError) as error:
        parse(MINIMAL).model(a_benchmark(model_prefix="dsr1"))
    assert "dsr1/fp8/dynamo-vllm" in error.value.message
    assert error.value.hint == "supported: minimaxm3/fp8/*; minimax*/*/*"
    assert error.value.where == "tiny.yaml:13"


def test_the_longest_prefix_tells_the_storage() -> None:
    file = parse(MINIMAL)
    assert file.storage_of("/nvme/M3").kind == "node-local"  # type: ignore[union-attr]
    assert file.storage_of("/nvme2/M3").kind == "local"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "line", "message", "hint"),
    [
        ("partition: p", "partiton: p", 5, "unknown key 'partiton'", "did you mean 'partition'?"),
        ("gpus: 4", "gpus: four", 6, "Expected `int`, got `str`", None),
        ("sku: tiny\n", "", 1, "key 'sku' is missing", None),
        ("kind: node-local", "kind: nvme", 9, "Invalid enum value 'nvme'", None),
        (
            "repository: nvidia\n    ref: v2",
            "repository: nvidea\n    ref: v2",
            24,
            "not in `repositories`",
            "did you mean",
        ),
        ("ref: v2", "ref: v2\n    sha: deadbeef", 26, "not a full commit id", None),
        ("path: /, kind", "path: x, kind", 8, "not absolute", None),
        ("prefix: minimaxm3,", "prefx: minimaxm3,", 14, "unknown key 'prefx'", "did you mean 'prefix'?"),
    ],
)
def test_what_is_wrong_has_a_line_and_the_nearest_key(
    old: str, new: str, line: int, message: str, hint: str | None
) -> None:
    assert old in MINIMAL
    with pytest.raises(ConfigError) as error:
        parse(MINIMAL.replace(old, new, 1))
    assert message in error.value.message
    assert error.value.where == f"tiny.yaml:{line}"
    assert (hint or "") in (error.value.hint or "")


def test_the_shipped_runners_are_valid_and_claim_each_prefix_once() -> None:
    fleet = Fleet([shipped("runners")])
    files = fleet.readable()
    clusters = {"gb200-nv", "gb300-nv", "b200-dgxc", "b200-nscale", "b300-nv", "h100-dgxc", "h200-dgxc"}
    clusters |= {"b200-cw", "b200-nb", "h100-cr", "h100-cw", "h200-cw", "h200-nb", "mi300x-amds", "mi325x-amds"}
    clusters |= {"mi325x-tw", "mi355x-amds", "rtx6000pro-lat"}
    assert clusters | {"local", "one-machine"} == {f.runner.name for f in files}
    prefixes = [p for f in files for p in f.runner.runners]
    assert len(prefixes) == len(set(prefixes))
    lanes = [(f.runner, lane) for f in files for lane in f.runner.lanes if lane.kind == "srtctl"]
    moving = {(runner.repositories[lane.repository], lane.ref) for runner, lane in lanes if not lane.sha}
    # A branch of a personal fork that could not be read: the only ref without a commit.
    assert moving == {("https://github.com/cquil11/srt-slurm-nv.git", "cam/sa-submission-q2-2026")}


def test_no_clusters_name_is_in_code() -> None:
    names = {f.runner.name for f in Fleet([shipped("runners")]).readable()} - {"local", "one-machine"}
    for path in (shipped("runners").parent / "launcher").rglob("*.py"):
        code = path.read_text()
        assert not [name for name in names if f'"{name}"' in code or f"'{name}'" in code], path


def test_a_fleet_finds_by_prefix_and_by_label() -> None:
    fleet = Fleet([shipped("runners")])
    assert fleet.for_runner_name("b200-dgxc-slurm_7").runner.name == "b200-dgxc"
    assert [file.runner.name for file in fleet.by_label["b200-multinode"]] == ["b200-dgxc"]
    assert [file.runner.name for file in fleet.by_label["h200"]] == ["h200-cw", "h200-dgxc", "h200-nb"]
    with pytest.raises(ConfigError) as error:
        fleet.for_runner_name("b300-nx_01")
    assert error.value.hint == "did you mean 'b300-nv'?"


def test_an_earlier_directory_hides_a_later_one(tmp_path: Path) -> None:
    (tmp_path / "local.yaml").write_text(MINIMAL.replace("name: tiny", "name: local"))
    fleet = Fleet([tmp_path, shipped("runners")])
    assert fleet.get("local").runner.sku == "tiny"


def test_a_file_under_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(MINIMAL)
    with pytest.raises(ConfigError, match="not the file's own"):
        Fleet([tmp_path]).get("other")
