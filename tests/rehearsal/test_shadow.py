"""A bash launcher runs where it can do nothing, and what it would do is told beside the plan."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launcher.benchmark.environment import environment_of
from launcher.cli import main
from tests.container.planner import a_row

LAUNCHER = r"""
touch "$GITHUB_WORKSPACE/made" /touched-by-shadow
SQUASH=/mnt/vast/gharunner/squash/$(sed 's/[\/:@#]/_/g' <<<"$IMAGE").sqsh
JOB_ID=$(salloc --partition=%s --gres=gpu:h100:$TP --time=180 --no-shell --job-name="$RUNNER_NAME" 2>&1 |
  grep -o '[0-9]*$')
srun --jobid=$JOB_ID bash -c "unsquashfs -l $SQUASH || enroot import -o $SQUASH docker://$IMAGE"
export PORT=8888
srun --jobid=$JOB_ID --container-image=$SQUASH \
  --container-mounts=$GITHUB_WORKSPACE:/workspace/,/mnt/vast/gharunner/hf-hub-cache:%s --container-mount-home \
  --container-workdir=/workspace/ --no-container-entrypoint --export=ALL \
  bash benchmarks/single_node/fixed_seq_len/m_fp8_h100.sh
curl -s http://127.0.0.1:9 && scancel $JOB_ID
"""

needs_namespaces = pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, check=False).returncode != 0,
    reason="no mount namespaces here",
)


def shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> int:
    workspace = tmp_path / "InferenceX"
    script = workspace / "benchmarks/single_node/fixed_seq_len/m_fp8_h100.sh"
    script.parent.mkdir(parents=True)
    script.write_text("check_env_vars MODEL TP\n")
    (workspace / "runners").mkdir()
    if text is not None:
        (workspace / "runners/launch_h100-cw.sh").write_text(text)
    row = a_row(runner="h100", exp_name="m_1k1k", precision="fp8", framework="sglang")
    for name, value in environment_of(row).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RUNNER_NAME", "h100-cw_0")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(workspace))
    return main(["shadow"])


@needs_namespaces
def test_what_agrees_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = shadow(tmp_path, monkeypatch, LAUNCHER % ("h100", "$HF_HUB_CACHE"))
    output = capsys.readouterr().out
    assert "shadow: agree: launch_h100-cw.sh starts 1 container" in output and code == 0
    assert not (tmp_path / "InferenceX/made").exists() and not Path("/touched-by-shadow").exists()


@needs_namespaces
def test_what_differs_is_said_with_both_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = shadow(tmp_path, monkeypatch, LAUNCHER % ("h100-long", "/elsewhere"))
    output = capsys.readouterr().out
    assert "differs: allocation.partition: 'h100', bash 'h100-long'" in output and code == 1
    assert "differs: mount /elsewhere: None, bash /mnt/vast/gharunner/hf-hub-cache" in output


def test_without_a_namespace_there_is_the_plan_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = tmp_path / "bin/unshare"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2; exit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:/usr/bin:/bin")
    assert shadow(tmp_path, monkeypatch, "true") == 0
    assert "shadow: the plan alone" in capsys.readouterr().out


def test_a_checkout_without_the_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shadow(tmp_path, monkeypatch, None) == 2
