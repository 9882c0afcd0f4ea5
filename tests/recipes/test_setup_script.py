"""The container set-up script of the GB200 family: real files, real processes, a vLLM of a few lines."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[2] / "recipes" / "setup"
SCRIPT = "minimax-m3-gb200-vllm-fixes.sh"
PATCHER = "minimax_m3_gb200_vllm_fixes.py"

ALL_REDUCE = "distributed/device_communicators/flashinfer_all_reduce.py"
ATTENTION = "models/minimax_m3/nvidia/sparse_attention_msa.py"

SOURCES = {
    ALL_REDUCE: '''def make(factory, backend, comm_backend, group):
    """Make a workspace — of one kind or another."""
    try:
        workspace = factory(
            backend=backend,
            comm_backend=comm_backend,
            group=group,
        )
    finally:
        pass
    return workspace
''',
    ATTENTION: """class Attention:
    def forward(self, topk, nd, num_tokens):
        if num_tokens:
            prefill_topk = topk[:, nd:num_tokens, :]
            return prefill_topk
""",
}


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    """An installed package ``vllm``; importing it would fail, as it would without GPUs."""
    root = tmp_path / "site" / "vllm"
    for name, text in SOURCES.items():
        file = root / name
        file.parent.mkdir(parents=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(0o640)
    (root / "__init__.py").write_text("raise ImportError('no GPU')\n")
    return root


def run(vllm: Path | None, *arguments: str, directory: Path = SETUP) -> subprocess.CompletedProcess[str]:
    """Run the script as srtctl does: with bash, by its path, in some other working directory."""
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    if vllm is not None:
        environment["PYTHONPATH"] = str(vllm.parent)
    command = ["bash", str(directory / SCRIPT), *arguments]
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60)


def contents(vllm: Path) -> dict[str, bytes]:
    return {str(p.relative_to(vllm)): p.read_bytes() for p in sorted(vllm.rglob("*")) if p.is_file()}


def test_both_fixes_are_made(vllm: Path) -> None:
    done = run(vllm)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fixed:") == 2
    space: dict[str, object] = {}
    exec((vllm / ALL_REDUCE).read_text(encoding="utf-8"), space)
    make = space["make"]
    assert callable(make)
    assert make(dict, "mnnvl", 1, 2)["force_oneshot_support"] is True
    assert make(dict, "trtllm", 1, 2)["force_oneshot_support"] is False
    assert "topk[:, nd:num_tokens, :].contiguous()" in (vllm / ATTENTION).read_text()
    assert stat.S_IMODE((vllm / ALL_REDUCE).stat().st_mode) == 0o640
    assert set(contents(vllm)) == {"__init__.py", *SOURCES}


def test_a_second_run_changes_nothing(vllm: Path) -> None:
    assert run(vllm).returncode == 0
    before = contents(vllm)
    times = [(vllm / name).stat().st_mtime_ns for name in SOURCES]
    again = run(vllm)
    assert (again.returncode, again.stdout.count("has already:")) == (0, 2)
    assert contents(vllm) == before
    assert [(vllm / name).stat().st_mtime_ns for name in SOURCES] == times


def test_half_done_is_completed(vllm: Path) -> None:
    """As a run leaves it that was killed between its two renames."""
    assert run(vllm).returncode == 0
    (vllm / ATTENTION).write_text(SOURCES[ATTENTION])
    done = run(vllm)
    assert (done.returncode, done.stdout.count("fixed:"), done.stdout.count("has already:")) == (0, 1, 1)
    assert ".contiguous()" in (vllm / ATTENTION).read_text()


@pytest.mark.parametrize("name", list(SOURCES))
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("topk[:, nd:", "topk[nd:").replace("group=group", "group=None"), "missing"),
        (lambda text: text + text, "ambiguous: 2 unfixed and 0 fixed"),
        (lambda text: text.replace("        ", "\t"), "missing"),
        (lambda text: text + "def broken(:\n", "invalid syntax"),
    ],
)
def test_all_or_nothing(vllm: Path, name: str, damage: object, message: str) -> None:
    assert callable(damage)
    (vllm / name).write_text(damage(SOURCES[name]), encoding="utf-8")
    before = contents(vllm)
    done = run(vllm)
    assert done.returncode == 1
    assert message in done.stderr
    assert name in done.stderr
    assert contents(vllm) == before


def test_one_place_fixed_and_one_not_is_ambiguous(vllm: Path) -> None:
    assert run(vllm).returncode == 0
    fixed = (vllm / ATTENTION).read_text()
    (vllm / ATTENTION).write_text(fixed + SOURCES[ATTENTION])
    done = run(vllm)
    assert done.returncode == 1
    assert "1 unfixed and 1 fixed" in done.stderr


def test_every_problem_is_said_at_once(vllm: Path) -> None:
    (vllm / ATTENTION).unlink()
    (vllm / ALL_REDUCE).write_text("x = 1\n")
    done = run(vllm)
    assert done.returncode == 1
    assert ATTENTION in done.stderr
    assert ALL_REDUCE in done.stderr


def test_a_replacement_that_fails_is_taken_back(vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("patcher", SETUP / PATCHER)
    assert spec is not None and spec.loader is not None
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    patcher = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(patcher)
    before = contents(vllm)
    replace = Path.replace

    def fail_for_the_second(self: Path, target: Path) -> Path:
        if target.name == Path(ATTENTION).name:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_for_the_second)
    assert patcher.main(["--root", str(vllm)]) == 1
    assert contents(vllm) == before


def test_no_vllm_at_all(tmp_path: Path) -> None:
    done = run(tmp_path / "empty" / "vllm")
    assert done.returncode == 1
    assert "no vllm package" in done.stderr


def test_workers_of_one_node_at_once(vllm: Path) -> None:
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(vllm.parent)}
    command = ["bash", str(SETUP / SCRIPT)]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(6)]
    assert [process.wait(timeout=60) for process in running] == [0] * 6
    assert (vllm / ATTENTION).read_text().count(".contiguous()") == 1
    assert {p.name for p in vllm.rglob("*.py")} == {Path(n).name for n in [*SOURCES, "__init__.py"]}


def test_the_pair_works_from_any_directory_and_not_apart(vllm: Path, tmp_path: Path) -> None:
    """srtctl mounts the checkout's configs/ as /configs: what lies beside the script there is all that it has."""
    configs = tmp_path / "con figs"
    configs.mkdir()
    shutil.copy(SETUP / SCRIPT, configs)
    assert run(vllm, directory=configs).returncode != 0
    shutil.copy(SETUP / PATCHER, configs)
    assert run(vllm, directory=configs).returncode == 0


def test_the_patcher_needs_only_the_standard_library() -> None:
    command = [sys.executable, "-I", "-S", str(SETUP / PATCHER), "--help"]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
