"""The real cluster of one machine: a file is drafted, loads and agrees; spoiled, it differs at the lines that were."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.runner.file import RunnerFile
from tests.conftest import SlurmCluster
from tests.doctor.test_import_proof import enroot_stand_in
from tests.model.checkpoints import checkpoint

pytestmark = pytest.mark.slurm


@pytest.fixture
def directory(slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with ``runners`` and ``shared``, and beside `batch` a hidden partition of an hour."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH_", "LAUNCHER_"))]:
        monkeypatch.delenv(name)
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LAUNCHER_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runners").mkdir()
    (tmp_path / "shared space").mkdir()
    scontrol("create", "PartitionName=short", "Nodes=node[01-02]", "MaxTime=1:00:00", "Hidden=YES")
    yield tmp_path
    scontrol("delete", "PartitionName=short")


def scontrol(*words: str) -> None:
    subprocess.run(["scontrol", *words], check=True, timeout=60, capture_output=True)


def write(directory: Path, *options: str) -> Path:
    assert main(["runner", "new", "mine", "--directory", str(directory / "shared space"), *options]) == 0
    return directory / "runners" / "mine.yaml"


def examine(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The doctor's exit code and its claims by key; of a key with several claims the last that does not agree."""
    capsys.readouterr()
    code = main(["runner", "doctor", "mine", "--json", *options])
    said = json.loads(capsys.readouterr().out)
    claims = sorted(said["claims"], key=lambda claim: claim["verdict"] != "agree")
    assert said["agree"] + said["differ"] + said["unknown"] == len(claims)
    return code, {claim["key"]: claim for claim in claims}


def test_a_new_file_loads_passes_check_and_agrees(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(directory)
    told = capsys.readouterr().out
    text = path.read_text()
    for number, line in enumerate(text.splitlines(), 1):
        assert ("TODO" in line) == (f"mine.yaml:{number}:" in told)
    runner = RunnerFile.read(path).runner
    assert (runner.scheduler.partition, runner.scheduler.account, runner.node.gpus) == ("batch", "benchmark", 4)
    assert (runner.node.count, runner.node.arch, runner.tools) == (18, os.uname().machine, "rehearsal")
    assert runner.srtslurm["use_segment_sbatch_directive"] is False

    main(["check", "--json"])
    found = json.loads(capsys.readouterr().out)
    ours = [f for f in (found["findings"] if isinstance(found, dict) else found) if "mine.yaml" in str(f)]
    assert [f for f in ours if f["severity"] == "error"] == []

    main(["runner", "doctor", "mine", "--json"])
    claims_made = json.loads(capsys.readouterr().out)["claims"]
    found = {c["says"]: c["found"] for c in claims_made if c["key"] in ("images.lock", "node")}
    assert "holds" in found["holds between two processes"]
    assert found["holds with a node"] == "looked at as jobs do: locks hold with the login node"
    assert re.fullmatch("looked at as jobs do: clock offset -?[01]", found["a clock within 5 s of this host's"])

    code, claims = examine(capsys)
    assert code == 0
    unsure = {key for key, claim in claims.items() if claim["verdict"] != "agree"}
    assert unsure <= {"tools", "repositories.nvidia", "repositories.rehearsal"}  # no network, no repository yet
    assert {key for key in claims if "directory" in key or "cache" in key} >= {"images.directory", "checkout.cache"}
    assert [p.name for p in directory.rglob(".launcher*")] == []

    before = path.read_bytes()
    assert main(["runner", "new", "mine"]) == 2
    assert path.read_bytes() == before


def test_a_checkpoint_that_is_not_whole_on_the_node(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its directory is there, which was all that was looked at."""
    path, model = write(directory, "--no-node"), checkpoint(directory / "model")
    text = path.read_text()
    path.write_text(text.replace("models: []", f"models:\n  - {{path: {model}, alias: x}}"))
    assert examine(capsys)[1]["models[0].path"]["verdict"] == "agree"
    (model / "config.json").unlink()
    code, claims = examine(capsys)
    assert code == 2 and "lacks 1 file: config.json" in claims["models[0].path"]["found"]


def test_the_hidden_partition_and_its_limit(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = RunnerFile.read(write(directory, "--partition", "short", "--no-node")).runner
    assert (runner.scheduler.partition, runner.scheduler.time_limit, runner.node.count) == ("short", "1:00:00", 2)
    code, claims = examine(capsys, "--no-node")
    assert code == 0
    assert claims["scheduler.time-limit"]["verdict"] == "agree"
    assert "--no-node" in claims["images.directory"]["why"]
    assert main(["runner", "new", "other", "--partition", "shrot"]) == 2
    assert "did you mean 'short'" in capsys.readouterr().err


def test_enroot_on_the_path_makes_a_file_for_real_runs(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for enroot imports, and says a version."""
    (program,) = enroot_stand_in(directory)
    enroot = Path(program)
    importer = enroot.rename(enroot.with_name("importer"))
    enroot.write_text(f'#!/bin/sh\n[ "$1" != version ] || {{ echo 4.1.2; exit; }}\nexec {importer} "$@"\n')
    enroot.chmod(0o755)
    monkeypatch.setenv("PATH", f"{enroot.parent}:{os.environ['PATH']}")
    assert RunnerFile.read(write(directory)).runner.tools == "system"
    code, claims = examine(capsys)
    assert (code, claims["images.import-on"]["verdict"]) == (0, "agree")
    assert claims["images.import-on"]["found"].startswith("a tiny image was imported in ")


def spoil(path: Path, *changes: tuple[str, str]) -> dict[str, str]:
    """Change lines of the file; what each became → its ``file:line``."""
    text = path.read_text()
    for right, wrong in changes:
        assert len(re.findall(right, text, re.MULTILINE)) == 1, right
        text = re.sub(right, wrong.replace("\\", r"\\"), text, flags=re.MULTILINE)
    path.write_text(text)
    lines = text.splitlines()
    return {
        wrong: f"{path}:{1 + next(i for i, line in enumerate(lines) if wrong.splitlines()[0] in line)}"
        for _, wrong in changes
    }


def test_a_file_spoiled_in_a_dozen_ways_differs_at_each_line(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(directory)
    (directory / "file").touch()
    other = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    spoiled = {
        "scheduler.partition": ("partition: batch.*", "partition: short"),
        "scheduler.time-limit": ("time-limit: .*", 'time-limit: "4:00:01"'),
        "node.gpus": ("gpus: 4.*", "gpus: 8"),
        "node.arch": (f"arch: {os.uname().machine}.*", f"arch: {other}"),
        "node.count": ("count: 18.*", "count: 17"),
        "storage[0]": ("  - {path: /, kind: local}.*", "  - {path: /, kind: lustre}"),
        "images.directory": ("directory: .*shared space\"", f"directory: {directory}/file/squash"),
        "images.import-partition": ("import-on: login.*", "import-on: login\n  import-partition: cpu"),
        "checkout.directory": ("directory: .*srt-slurm\"", "directory: /proc/launcher/srt-slurm"),
        "models[0].path": (r"^models: \[\]", "models:\n  - {path: /none/such, alias: x}"),
        "srtslurm.use_segment_sbatch_directive": ("use_segment.*: false.*", "use_segment_sbatch_directive: true"),
        "srtslurm.default_sbatch_directives.qos": (r"\Z", "  default_sbatch_directives: {qos: nope}\n"),
        "exclude-nodes[0].node": (r"^lanes: \[\]", "lanes: []\nexclude-nodes:\n  - {node: 'node[01-99]', reason: x}"),
    }  # fmt: skip
    at = spoil(path, *spoiled.values(), ("^tools: rehearsal.*", "tools: system"))
    code, claims = examine(capsys)
    assert code == 2
    for key, (_, wrong) in spoiled.items():
        if key == "scheduler.partition":
            continue  # it is there: the limit and the count of the other one are what differs
        first, _, number = at[wrong].rpartition(":")
        where = f"{first}:{int(number) + wrong.count(chr(10)) - wrong.endswith(chr(10))}"
        assert (claims[key]["verdict"], claims[key]["where"]) == ("differ", where), key
        assert claims[key]["hint"], key
    assert claims["images.import-on"]["verdict"] == "differ"  # no enroot, and no rehearsal
    assert claims["srtslurm.use_gpus_per_node_directive"]["verdict"] == "agree"


@pytest.mark.parametrize(
    ("right", "wrong", "key", "word"),
    [
        ("partition: batch.*", "partition: bacth", "scheduler.partition", "did you mean 'batch'"),
        ("account: benchmark.*", "account: nobodys", "scheduler.account", "benchmark"),
    ],
)
def test_what_no_job_can_be_tried_with_leaves_the_rest_unknown(
    directory: Path, capsys: pytest.CaptureFixture[str], right: str, wrong: str, key: str, word: str
) -> None:
    path = write(directory, "--no-node")
    at = spoil(path, (right, wrong))
    code, claims = examine(capsys)
    assert code == 2
    assert (claims[key]["verdict"], claims[key]["where"]) == ("differ", at[wrong])
    assert word in claims[key]["hint"]
    assert claims["scheduler"]["verdict"] == "differ"
    assert claims["images.directory"]["verdict"] == "unknown"
    assert "no job was started" in claims["images.directory"]["why"]


def test_the_lines_for_a_person(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(directory, "--no-node")
    spoil(path, ("gpus: 4.*", "gpus: 8"))
    capsys.readouterr()
    assert main(["runner", "doctor", "mine", "--no-node"]) == 2
    said = capsys.readouterr()
    assert re.search(r"^agree    scheduler\.partition batch +runners/mine\.yaml:\d+$", said.out, re.MULTILINE)
    assert re.search(r"^differ   node\.gpus 8 +runners/mine\.yaml:\d+\n +found: GRES: 4 on 18 nodes\n +fix: gpus: 4$",
                     said.out, re.MULTILINE)  # fmt: skip
    assert re.search(r"\d+ agree, \d+ differ, \d+ unknown", said.err)


def test_a_draft_on_standard_output_writes_nothing(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runner", "new", "x1", "--no-node", "--output", "-", "--partition", "batch*"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# yaml-language-server:")
    assert "TODO squash files lie where compute nodes see them" in text
    assert list((directory / "runners").iterdir()) == []
    for name in ("Not_A_Name", "-x", "a/b"):
        assert main(["runner", "new", "--no-node", "--", name]) == 2
