"""Commands about a job of one node: its plan for people, its findings, its clean-up; and what is no such job."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from launcher.benchmark.environment import environment_of
from launcher.cli import main
from tests.container.planner import FIXED, a_row

RUNNER = """\
name: tiny
sku: h100
runners: [tiny]
labels: [tiny-label]
scheduler: {partition: p, account: a, time-limit: "3:00:00"}
node: {gpus: 8, arch: x86_64}
images: {directory: /shared/squash/of/the/cluster, lock-wait: 600, import-on: compute}
models:
  - {cache: /shared/hf-hub-cache}
lanes:
  - kind: container
    when: {nodes: single, framework: sglang}
    container:
      allocation: {exclusive: false}
      script: {names: ["{model}_{precision}_h100{spec}.sh"]}
"""

HOST = """\
name: host
sku: h100
runners: [host]
scheduler: {kind: local, time-limit: "8:20:00"}
node: {gpus: 8, arch: x86_64}
models:
  - {cache: /home/hf-hub-cache}
lanes:
  - kind: docker
    when: {nodes: single}
    container:
      engine: docker
      script: {names: ["{model}_{precision}_h100{spec}.sh"]}
"""

MATRIX = """\
dsr1-fp8-tiny-sglang:
  image: lmsysorg/sglang:v0.5.12-cu130
  model: deepseek-ai/DeepSeek-R1-0528
  model-prefix: dsr1
  runner: tiny-label
  precision: fp8
  framework: sglang
  multinode: false
  scenarios:
    fixed-seq-len:
    - isl: 1024
      osl: 1024
      search-space:
      - {tp: 4, conc-list: [4, 16]}
"""

OF_ANOTHER = ("GITHUB_", "RUNNER_", "CONC", "PREFILL_", "DECODE_", "TP", "IS_MULTINODE", "LAUNCHER_")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a script, a matrix and a runner file, and the environment of a job of one node."""
    for name, text in {
        f"{FIXED}/dsr1_fp8_h100.sh": "check_env_vars MODEL TP\n",
        "configs/t-master.yaml": MATRIX,
        "runners/tiny.yaml": RUNNER,
        "runners/host.yaml": HOST,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in os.environ:
        if name.startswith(OF_ANOTHER):
            monkeypatch.delenv(name)
    for name, value in {**environment_of(a_row()), "RUNNER_NAME": "tiny_03", "GITHUB_RUN_ID": "77"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LAUNCHER_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    return tmp_path


def in_terminal(columns: int, *argv: str) -> str:
    """What a command prints in a terminal of this width."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environ = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    environ.pop("COLUMNS", None)
    command = [sys.executable, "-m", "launcher", *argv]
    with subprocess.Popen(command, stdout=follower, stderr=follower, stdin=follower, env=environ) as process:
        os.close(follower)
        printed = b""
        try:
            while part := os.read(leader, 65536):
                printed += part
        except OSError:  # the other end is closed
            pass
        os.close(leader)
        assert process.wait(60) == 0, printed.decode()
    return printed.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [80, 140])
def test_a_plan_can_be_read_in_a_terminal(workspace: Path, columns: int) -> None:
    """Lines end before the terminal does, but for one word that is longer, which is never broken."""
    printed = in_terminal(columns, "plan", "--from-env")
    for line in printed.splitlines():
        assert len(line) <= columns or " " not in line[13:], line
    text = " ".join(printed.split())
    for words in (
        "dsr1 fp8 sglang 1024/1024 TP4 on tiny",
        "/shared/hf-hub-cache",
        "4 GPUs",
        "partition p",
        f"{FIXED}/dsr1_fp8_h100.sh",
        "180",
        "[port-shared]",
    ):
        assert words in text, printed
    assert "None" not in text


def test_a_plan_without_slurm_says_so(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_NAME", "host_0")
    assert main(["plan", "--from-env"]) == 0
    printed = capsys.readouterr().out
    assert "this host" in printed and "docker of lmsysorg/sglang" in printed and "None" not in printed


def test_findings_are_counted_over_rows(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--runner", "tiny", "--matrix", str(workspace / "configs/t-master.yaml")]) == 0
    done = capsys.readouterr()
    (line,) = [line for line in done.out.splitlines() if "port-shared" in line]
    assert line.endswith("(2 rows)")
    assert done.err.startswith("2 rows, 0 recipe files, 1 runner file: 0 errors, 1 warning")
    assert main(["check", "--from-env"]) == 0
    assert capsys.readouterr().err.startswith("1 row, ")


def test_a_row_without_a_script_is_an_error_of_check_and_of_plan(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / FIXED / "dsr1_fp8_h100.sh").rename(workspace / FIXED / "other.sh")
    assert main(["check", "--runner", "tiny", "--matrix", str(workspace / "configs/t-master.yaml")]) == 1
    assert f"there is no {FIXED}/dsr1_fp8_h100.sh" in capsys.readouterr().out
    for command in ("plan", "ci"):
        assert main([command, "--from-env"] if command == "plan" else [command]) == 2
        printed = capsys.readouterr()
        assert f"there is no {FIXED}/dsr1_fp8_h100.sh" in printed.out + printed.err


@pytest.mark.parametrize("command", [["plan", "--from-env"], ["ci"], ["cleanup", "--from-env"]])
def test_a_mixture_of_contracts_names_both_sides(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("CONC_LIST", "4 16")
    monkeypatch.setenv("PREFILL_TP", "8")
    assert main(command) == 2
    printed = capsys.readouterr()
    text = " ".join((printed.out + printed.err).split())
    assert "CONC_LIST, PREFILL_TP of a multi-node job and TP, EP_SIZE" in text and "of a single-node job" in text


def test_the_clean_up_step_finds_the_run_of_the_launch_step(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launch step exports RESULT_FILENAME; what is said by GITHUB_ENV, or nothing, gives the same run."""
    from launcher.project import Project

    ids = set()
    for name in (None, "dsr1_1k1k_fp8_sglang_tp4-pp1-dcp1-pcp1-ep1-dpafalse_disagg-false_spec-none_conc16_tiny_03"):
        if name is not None:
            monkeypatch.setenv("RESULT_FILENAME", name)
        ids.add(Project.open(os.environ).run_id_from_environment())
        ids.add(Project.open(os.environ).plan_from_environment().run_key)
    assert len(ids) == 1
    assert main(["cleanup", "--from-env"]) == 0
    assert f"run {ids.pop()} has no record: it never began" in capsys.readouterr().out
