"""A small srt-slurm tree with everything that the recorded recipes ask for, and sbatches that answer as recorded."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.shared import SHARED

PLAIN = "recipes/vllm/minimax-m3-gb200-fp8/1k1k/1p1d-dep4-tep8-1k1k.yaml"
OVERRIDE = "recipes/sglang/glm5.2/gb200-fp4/agentic/glm5.2-agentx.yaml"
SQUASH = "vllm_vllm-openai_minimax-m3-perf-arm64-13.0.1-7a67223.sqsh"

SBATCH = {
    "stub": "echo Submitted batch job 4242",
    "stub-inc": 'n=$(cat "$0.n" 2>/dev/null || echo ${FIRST:-5000}); n=$((n+1)); echo $n > "$0.n"; '
    "echo Submitted batch job $n",
    "stub-fail": "echo 'sbatch: error: invalid partition specified: batch' >&2; "
    "echo 'sbatch: error: Batch job submission failed: Invalid partition name specified' >&2; exit 1",
    "stub-2nd": 'if [ -e "$0.n" ]; then echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; fi; '
    'touch "$0.n"; echo Submitted batch job 61',
    "stub-cluster": "echo Submitted batch job 4242 on cluster foo",
    "stub-empty": "true",
    "stub-warn": "echo sbatch: warning: something; echo Submitted batch job 4243",
}


class RecordedMachine:
    """Stands for the machine of the transcripts: its ``/srv`` is ``root`` here."""

    def __init__(self, root: Path) -> None:
        assert SHARED is not None
        self.root = root
        self.tree = root / "srt-slurm"
        used = SHARED / "reference/srtctl-transcripts/recipes-used"
        shutil.copytree(used, root / "wk/rec")
        for file in (root / "wk/rec").rglob("*.y*ml"):
            file.chmod(0o644)
            file.write_text(self.here(file.read_text()))
        for name in ("configs/nats-server", "configs/etcd", "bin/uv", "bin/tachometer-scraper"):
            self._file(self.tree / name)
        for name in (PLAIN, OVERRIDE):
            overlay = SHARED / "inferencex/benchmarks/multi_node/srt-slurm-recipes" / name.removeprefix("recipes/")
            self._file(self.tree / name).write_text(overlay.read_text())
        shutil.copy(root / "wk/rec/srtslurm.yaml", self.tree / "srtslurm.yaml")
        for model in ("MiniMax-M3-MXFP8", "DeepSeek-R1"):
            (root / "wk/models" / model).mkdir(parents=True)
        self._file(root / "wk/containers" / SQUASH)
        self._file(root / "wk/afile")
        (root / "wk/emptydir").mkdir()
        (root / "wk/v").mkdir()
        shutil.copy(root / "wk/rec/baseonly.yaml", root / "wk/v/baseonly.yaml")
        for name, body in SBATCH.items():
            program = self._file(root / "wk" / name / "sbatch")
            program.write_text(f"#!/bin/sh\n{body}\n")
            program.chmod(0o755)

    @staticmethod
    def _file(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    def here(self, text: str) -> str:
        """Recorded text with this machine's paths."""
        return text.replace("/srv/", f"{self.root}/")

    def path(self, stub: str | None) -> str:
        """PATH with one of the recorded sbatches; without any when None."""
        usual = "/usr/bin:/bin"
        return f"{self.root}/wk/{stub}:{usual}" if stub else str(self.root / "nowhere")


def environment(extra: dict[str, str]) -> dict[str, str]:
    """A process environment without what would change the rehearsal's output."""
    gone = ("SRTSLURM_CONFIG", "RUNNER_NAME", "COLUMNS", "FORCE_COLOR", "NO_COLOR", "LAUNCHER_LOCAL_JOBS")
    return {k: v for k, v in os.environ.items() if k not in gone and not k.startswith("LAUNCHER_REH")} | extra
