"""The rehearsal's checkpoint: whole, of the precision asked for, and refused for anything real."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launcher.core.errors import ModelError
from launcher.model.checkpoint import examine
from launcher.model.serving import require_servable
from launcher.rehearsal.stand_ins import ensure_model
from tests.model.checkpoints import checkpoint


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp4", "int4"])
def test_it_is_whole_and_the_one_asked_for(tmp_path: Path, precision: str) -> None:
    report = examine(ensure_model(tmp_path / "models" / "tiny", precision), precision=precision)
    assert (report.problems, report.doubts, report.identity, report.shards) == ((), (), "match", 2)
    assert report.bytes < 10_000
    assert require_servable(report, accept_stand_in=True).rehearsal
    with pytest.raises(ModelError, match="rehearsals"):
        require_servable(report)
    assert names(tmp_path / "models") == ["tiny"]


def test_one_that_is_there_is_used(tmp_path: Path) -> None:
    ensure_model(tmp_path / "tiny", "fp8")
    inode = (tmp_path / "tiny").stat().st_ino
    ensure_model(tmp_path / "tiny", "fp8")
    assert (tmp_path / "tiny").stat().st_ino == inode


def test_a_real_checkpoint_is_never_touched(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "MiniMax-M3")
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    with pytest.raises(ModelError, match="cannot be put here"):
        ensure_model(model, "bf16")
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert names(tmp_path) == ["MiniMax-M3"]


def test_a_precision_that_there_is_none_of(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"fp3.*bf16, fp8, fp4, int4"):
        ensure_model(tmp_path / "tiny", "fp3")


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="cannot be put here"):
        ensure_model(tmp_path / "file" / "tiny", "bf16")


def test_several_at_once_make_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = [pool.submit(ensure_model, tmp_path / "tiny", "fp4") for _ in range(8)]
    assert {each.result() for each in made} == {tmp_path / "tiny"}
    require_servable(examine(tmp_path / "tiny", precision="fp4"), accept_stand_in=True)
    assert names(tmp_path) == ["tiny"]
