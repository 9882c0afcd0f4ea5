"""Whole checkpoints, each way in which one is not, and names that are near."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.core.errors import ModelError
from launcher.model.checkpoint import REHEARSAL_KEY, CheckpointReport, examine
from launcher.model.serving import matching_sibling, nearest_sibling, require_servable
from launcher.model.weights import LFS_POINTER
from tests.model.checkpoints import checkpoint, put, safetensors

SHARD = "model-00002-of-00003.safetensors"
POINTER = LFS_POINTER.decode() + ".github.com/spec/v1\noid sha256:4d7a\nsize 4976698704\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "models" / "MiniMax-M3")


def problems(path: Path) -> tuple[str, ...]:
    report = examine(path, precision="bf16")
    assert report.whole == (not report.problems)
    return report.problems


def test_a_whole_checkpoint(model: Path) -> None:
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert examine(model, precision="bf16") == CheckpointReport(
        path=model,
        whole=True,
        identity="match",
        identity_reason=None,
        quantisation="not quantised, bfloat16",
        bytes=size,
        shards=3,
    )
    assert require_servable(examine(model, precision="bf16")).whole


def test_a_single_file_needs_no_index(model: Path) -> None:
    for path in model.glob("model*"):
        path.unlink()
    safetensors(model / "model.safetensors", {"w": ("BF16", 4)})
    assert problems(model) == ()


def test_links_into_a_hub_cache_are_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for path in list(model.iterdir()):
        path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(tmp_path / "blobs" / path.name)
    assert problems(model) == ()
    (tmp_path / "blobs" / SHARD).unlink()
    assert problems(model) == (f"{SHARD} is a link to nothing",)


@pytest.mark.parametrize(
    "tokenizer",
    [{"tokenizer.model": "x"}, {"vocab.json": "{}", "merges.txt": "x"}, {"tiktoken.model": "x"}, {"q.tiktoken": "x"}],
)
def test_tokenizers_of_other_kinds(model: Path, tokenizer: dict[str, str]) -> None:
    (model / "tokenizer.json").unlink()
    for name, content in tokenizer.items():
        put(model, name, content)
    assert problems(model) == ()


def shorten(path: Path, by: int) -> None:
    os.truncate(path, path.stat().st_size - by)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda m: (m / "config.json").unlink(), "config.json is missing"),
        (lambda m: put(m, "config.json", '{"a": '), "config.json cannot be parsed"),
        (lambda m: put(m, "config.json", "[]"), "config.json cannot be parsed"),
        (lambda m: put(m, "config.json", ""), "config.json is empty"),
        (lambda m: put(m, "config.json", POINTER), "config.json is a Git-LFS pointer"),
        (lambda m: (m / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda m: put(m, "tokenizer.json", POINTER), "tokenizer.json is a Git-LFS pointer"),
        (lambda m: put(m, "tokenizer.json", '{"version": "1.0", "mod'), "tokenizer.json cannot be parsed"),
        (lambda m: [(m / "tokenizer.json").unlink(), put(m, "vocab.json", "{}")], "merges.txt is missing"),
        (lambda m: [(m / "tokenizer.json").unlink(), put(m, "tokenizer.model", "")], "tokenizer.model is empty"),
        (lambda m: (m / SHARD).unlink(), f"{SHARD} is missing"),
        (lambda m: put(m, SHARD, ""), f"{SHARD} is empty"),
        (lambda m: put(m, SHARD, POINTER), f"{SHARD} is a Git-LFS pointer"),
        (lambda m: shorten(m / SHARD, 1), f"{SHARD} is 1 byte too short"),
        (lambda m: shorten(m / SHARD, 100), f"{SHARD} is 100 bytes too short"),
        (lambda m: (m / SHARD).write_bytes(bytes(4096)), f"{SHARD} is not a safetensors file"),
        (lambda m: safetensors(m / SHARD, {"other": ("BF16", 4)}), f"{SHARD} lacks 2 tensors"),
        (lambda m: put(m, "model.safetensors.index.json", "{"), "model.safetensors.index.json cannot be parsed"),
        (lambda m: put(m, "model.safetensors.index.json", {"weight_map": {}}), "model.safetensors.index.json holds no"),
        (
            lambda m: put(m, "model.safetensors.index.json", {"weight_map": [1]}),
            "model.safetensors.index.json holds no",
        ),
        (lambda m: put(m, "model.safetensors.index.json", "{}"), "model.safetensors.index.json holds no weight_map"),
        (lambda m: (m / "model.safetensors.index.json").unlink(), "3 shards without model.safetensors.index.json"),
        (lambda m: [p.unlink() for p in m.glob("*.safetensors")], "a stub: the index names 3 shards and none"),
        (lambda m: [p.unlink() for p in m.glob("model*")], "a stub: metadata without any weights"),
    ],
)
def test_each_damage_is_named(model: Path, damage: Any, said: str) -> None:
    damage(model)
    problems_found = problems(model)
    assert len(problems_found) == 1 and problems_found[0].startswith(said), problems_found


def test_shards_missing_without_an_index_are_counted(model: Path) -> None:
    (model / "model.safetensors.index.json").unlink()
    (model / SHARD).unlink()
    assert "2 of 3 shards are here" in problems(model)


def test_a_single_numbered_shard_is_a_single_file(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", shards=1)
    (model / "model.safetensors.index.json").unlink()
    assert problems(model) == ()


def test_weights_of_another_kind_are_not_taken_for_a_stub(model: Path) -> None:
    for path in model.glob("model*"):
        path.unlink()
    put(model, "pytorch_model.bin", "x")
    assert problems(model) == ("no safetensors weights, only pytorch_model.bin and the like",)


def test_what_copies_leave_behind_is_a_doubt(model: Path) -> None:
    downloads = model / ".cache" / "huggingface" / "download"
    downloads.mkdir(parents=True)
    names = ["x.safetensors.incomplete", f".{SHARD}.login1.77.ab12cd34.part", f".{SHARD}.aB3dE9"]
    for name in names[1:]:
        put(model, name, "x")
    put(downloads, names[0], "x")
    report = examine(model, precision="bf16")
    assert report.whole
    assert len(report.doubts) == 3
    assert all(any(name in doubt for doubt in report.doubts) for name in names)


def test_a_shard_of_another_revision_is_a_doubt_and_a_damaged_one_a_problem(model: Path) -> None:
    safetensors(model / "model-00001-of-00163.safetensors", {"w": ("BF16", 4)})
    report = examine(model, precision="bf16")
    assert report.whole
    assert "model-00001-of-00163.safetensors is not in the index" in report.doubts[0]
    shorten(model / "model-00001-of-00163.safetensors", 1)
    assert len(problems(model)) == 1


def test_a_total_size_counts_tensors_or_files_and_is_otherwise_a_doubt(model: Path) -> None:
    index = json.loads((model / "model.safetensors.index.json").read_text())
    files = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    for total, doubts in ((index["metadata"]["total_size"], 0), (float(files), 0), (files + 1, 1), (None, 0), ("x", 0)):
        put(model, "model.safetensors.index.json", {**index, "metadata": {"total_size": total}})
        report = examine(model, precision="bf16")
        assert (report.whole, len(report.doubts)) == (True, doubts), total


def test_another_checkpoint_under_the_same_name(tmp_path: Path) -> None:
    requantised = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
    model = checkpoint(tmp_path / "DeepSeek-V4-Pro", requantised, dtype="U8")
    assert examine(model, precision="fp4").identity == "match"
    report = examine(model, precision="fp8")
    assert (report.whole, report.identity) == (True, "mismatch")
    with pytest.raises(ModelError, match=r"another checkpoint.*fp8 was asked for, and the weights are nvfp4") as raised:
        require_servable(report)
    assert raised.value.where == str(model)


def test_a_config_that_lies_about_the_weights(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", {"quantization_config": {"quant_algo": "NVFP4"}}, dtype="BF16")
    assert examine(model, precision="fp4").identity == "mismatch"


def test_an_unknown_identity_passes_and_is_said(model: Path) -> None:
    put(model, "config.json", {"quantization_config": {"quant_method": "exl9"}})
    report = require_servable(examine(model, precision="fp4"))
    assert report.identity == "unknown"
    assert report.identity_reason is not None
    assert report.as_dict()["identity"] == "unknown"


def test_modelopt_beside_the_config(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", dtype="U8")
    put(model, "hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}})
    assert examine(model, precision="fp4").identity == "match"
    put(model, "hf_quant_config.json", POINTER)
    assert problems(model) == ("hf_quant_config.json is a Git-LFS pointer, not the file itself",)


def test_many_problems_are_shown_in_part(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", shards=30)
    for path in list(model.glob("*.safetensors"))[:-1]:
        path.unlink()
    with pytest.raises(ModelError) as raised:
        require_servable(examine(model, precision="bf16"))
    assert raised.value.exit_code == 4
    assert "model-000" in str(raised.value) and "and 19 more" in str(raised.value)


def test_a_checkpoint_for_rehearsals_serves_nothing_else(model: Path) -> None:
    put(model, "config.json", {REHEARSAL_KEY: True, "torch_dtype": "bfloat16"})
    report = examine(model, precision="bf16")
    assert report.rehearsal
    assert require_servable(report, accept_stand_in=True) == report
    with pytest.raises(ModelError, match="rehearsals"):
        require_servable(report)


def test_a_directory_that_is_not_there(model: Path) -> None:
    report = examine(model.with_name("minimax-m3"), precision="fp4")
    assert (report.whole, report.identity, report.problems) == (False, "unknown", ("no such directory",))
    with pytest.raises(ModelError, match=r"no such directory\n  hint: there is .*/MiniMax-M3: is that the one"):
        require_servable(report)


def test_a_path_that_cannot_be_read(model: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert problems(tmp_path / "loop") == ("too many levels of symbolic links",)
    assert problems(model / "config.json") == ("not a directory",)


def test_a_cache_entry_is_told_from_a_checkpoint(tmp_path: Path) -> None:
    entry = tmp_path / "models--nvidia--MiniMax-M3-NVFP4"
    checkpoint(entry / "snapshots" / "0366e4e")
    assert "below snapshots/" in problems(entry)[0]
    assert problems(entry / "snapshots" / "0366e4e") == ()


@pytest.mark.parametrize(
    ("there", "asked", "near"),
    [
        (["DeepSeek-V4-Pro"], "deepseek-v4-pro", "DeepSeek-V4-Pro"),
        (["deepseek-v4-pro", "DeepSeek-V4-Pro-NVFP4"], "DeepSeek-V4-Pro", "deepseek-v4-pro"),
        (["MiniMax-M3-NVFP4"], "MiniMax-M3", "MiniMax-M3-NVFP4"),
        (["MiniMax-M3-MXFP8"], "MiniMax-M3-NVFP4", "MiniMax-M3-MXFP8"),
        (["Qwen3.5-397B-A17B-NVFP4"], "Qwen3.5-397B-A17B-NVFP4-V2", "Qwen3.5-397B-A17B-NVFP4"),
        (["dsr1-fp8"], "DSR1", "dsr1-fp8"),
        (["MiniMax-M2.5", "Kimi-K3"], "MiniMax-M3", None),
        (["MiniMax-M3", "minimax-m3"], "MiniMax-M3", None),
        ([], "MiniMax-M3", None),
    ],
)
def test_near_names(tmp_path: Path, there: list[str], asked: str, near: str | None) -> None:
    for name in there:
        (tmp_path / name).mkdir()
    put(tmp_path, "minimax-m3-fp8", "a file is no checkpoint")
    assert nearest_sibling(tmp_path / asked) == (None if near is None else tmp_path / near)


def test_a_near_name_where_nothing_can_be_read(tmp_path: Path) -> None:
    assert nearest_sibling(tmp_path / "nowhere" / "MiniMax-M3") is None


def test_a_wrong_one_names_the_right_one_beside_it(tmp_path: Path) -> None:
    """The layout of failures that have happened: a re-quantised copy, a lower-case sibling, a stub beside the whole."""
    base = checkpoint(tmp_path / "DeepSeek-V4-Pro")
    requantised = checkpoint(
        tmp_path / "DeepSeek-V4-Pro-NVFP4",
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
        dtype="U8",
    )
    with pytest.raises(ModelError, match="another checkpoint") as wrong:
        require_servable(examine(requantised, precision="bf16"), precision="bf16")
    assert wrong.value.hint == f"there is {base}: is that the one?"
    lower = tmp_path / "deepseek-v4-pro"
    lower.mkdir()
    put(lower, "config.json", {"model_type": "x"})
    with pytest.raises(ModelError, match="not whole") as stub:
        require_servable(examine(lower, precision="bf16"), precision="bf16")
    assert stub.value.hint == f"there is {base}: is that the one?"
    assert matching_sibling(lower, "fp4") == requantised
    assert matching_sibling(tmp_path / "other", "bf16") is None
