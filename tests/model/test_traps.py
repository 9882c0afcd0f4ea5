"""Checkpoints that only look right, and odd ones that are: what is said of each, and the exit code of `model check`.

Each trap is a directory that engines would load, or fail on after the job has its nodes. Each good one is of a form
that their readers take.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.core.errors import ConfigError, ModelError
from launcher.model.checkpoint import examine
from launcher.model.fingerprint import fingerprint_of_files
from launcher.model.manifest import MANIFEST_NAME
from launcher.model.serving import require_servable
from launcher.model.source import HubSource, pinned_files, source_of
from launcher.model.stage import adopt, stage
from launcher.model.weights import compare_precision, declared_quantisation
from tests.model.checkpoints import checkpoint, put, safetensors
from tests.model.hub_server import REPOSITORY, SHA, Hub, hub

SIZES = {"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32}
SHARD = "model-00002-of-00003.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4976698704\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "models" / "M", SIZES)


def change(model: Path, name: str = "config.json", **more: Any) -> None:
    """Change keys of a JSON file; sizes stay, where the values have the same length."""
    put(model, name, {**json.loads((model / name).read_text()), **more})


def hollow(path: Path, kept: int) -> None:
    """The same length, but only the first ``kept`` bytes of it written."""
    size, head = path.stat().st_size, path.read_bytes()[:kept]
    path.unlink()
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def a_shard_that_is_one_hole(model: Path) -> None:
    (model / SHARD).unlink()
    with (model / SHARD).open("wb") as file:
        file.truncate(1 << 20)


def a_shard_whose_weights_were_never_written(model: Path) -> None:
    safetensors(model / SHARD, {"layers.1.weight": ("BF16", 1 << 20), "layers.1.norm": ("BF16", 8)})
    hollow(model / SHARD, 4096)


def a_download_that_stopped_in_the_middle(model: Path) -> None:
    safetensors(model / SHARD, {"layers.1.weight": ("BF16", 1 << 20), "layers.1.norm": ("BF16", 8)})
    hollow(model / SHARD, 1 << 19)


def a_tokenizer_that_is_one_hole(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    with (model / "tokenizer.model").open("wb") as file:
        file.truncate(500_000)


def a_pointer_among_the_settings(model: Path) -> None:
    put(model, "generation_config.json", LFS)


def a_pointer_for_a_template(model: Path) -> None:
    put(model, "chat_template.jinja", LFS)


def an_annexed_vocabulary(model: Path) -> None:
    put(model, "spiece.model", "/annex/objects/SHA256E-s500--00.model\n")


def a_login_page(model: Path) -> None:
    put(model, "spiece.model", "<!DOCTYPE html><html>log in</html>")


def settings_cut_short(model: Path) -> None:
    put(model, "special_tokens_map.json", '{"eos_token": ')


def shards_of_a_hub_cache(model: Path) -> None:
    blobs = model.parent.parent / "blobs"
    blobs.mkdir()
    (model / SHARD).rename(blobs / "b2")
    (model / SHARD).symlink_to("../../blobs/b2")


def a_link_by_its_whole_path(model: Path) -> None:
    (model / "real").mkdir()
    (model / "tokenizer.json").rename(model / "real" / "t")
    (model / "tokenizer.json").symlink_to(model / "real" / "t")


def a_directory_linked_to_elsewhere(model: Path) -> None:
    (model.parent / "store").mkdir()
    (model / SHARD).rename(model.parent / "store" / "s")
    (model / "blobs").symlink_to("../store")
    (model / SHARD).symlink_to("blobs/s")


def staged_and_then_another_size(model: Path) -> None:
    adopt(model)
    change(model, hidden_size=5120)


def staged_and_then_another_architecture(model: Path) -> None:
    adopt(model)
    change(model, architectures=["QwenXForCausalLM"])


def staged_and_then_another_tensor(model: Path) -> None:
    adopt(model)
    (model / SHARD).write_bytes((model / SHARD).read_bytes().replace(b'"layers.1.norm"', b'"layers.1.mlpx"'))
    index = model / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("1.norm", "1.mlpx"))


def tensors_that_overlap(model: Path) -> None:
    header = {n: {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]} for n in ("layers.1.weight", "layers.1.norm")}
    text = json.dumps(header).encode()
    (model / SHARD).write_bytes(len(text).to_bytes(8, "little") + text + b"\1" * 8)


def an_index_that_leads_out(model: Path) -> None:
    (model / SHARD).rename(model.parent / SHARD)
    index = model / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(SHARD, f"../{SHARD}"))


def a_shape_below_zero(model: Path) -> None:
    header = {
        name: {"dtype": "BF16", "shape": [-2, -2], "data_offsets": [8 * i, 8 * i + 8]}
        for i, name in enumerate(("layers.1.weight", "layers.1.norm"))
    }
    text = json.dumps(header).encode()
    (model / SHARD).write_bytes(len(text).to_bytes(8, "little") + text + b"\1" * 16)


def a_shard_of_zeros(model: Path) -> None:
    """As a copy without holes leaves what was never written."""
    safetensors(model / SHARD, {"layers.1.weight": ("BF16", 9 << 20), "layers.1.norm": ("BF16", 8)})
    with (model / SHARD).open("r+b") as file:
        length = 8 + int.from_bytes(file.read(8), "little")
        file.seek(length)
        file.write(bytes((model / SHARD).stat().st_size - length))


def a_servers_error(model: Path) -> None:
    put(model, "tokenizer.json", {"error": "Repository not found", "statusCode": 404})


def of_int4_by_autoround(model: Path) -> None:
    change(model, quantization_config={"quant_method": "auto-round", "bits": 4, "data_type": "mx_fp"})


TRAPS: list[tuple[Callable[[Path], None], str]] = [
    (a_shard_that_is_one_hole, "one hole"),
    (a_shard_whose_weights_were_never_written, "were never written"),
    (a_download_that_stopped_in_the_middle, "were never written"),
    (a_tokenizer_that_is_one_hole, "tokenizer.model is one hole"),
    (a_pointer_among_the_settings, "generation_config.json is a Git-LFS pointer"),
    (a_pointer_for_a_template, "chat_template.jinja is a Git-LFS pointer"),
    (an_annexed_vocabulary, "spiece.model is a git-annex pointer"),
    (a_login_page, "spiece.model is an HTML page"),
    (settings_cut_short, "special_tokens_map.json cannot be parsed"),
    (shards_of_a_hub_cache, f"{SHARD} is a link that leads out of what the job mounts: ../../blobs/b2"),
    (a_link_by_its_whole_path, "tokenizer.json is a link that leads out of what the job mounts"),
    (a_directory_linked_to_elsewhere, f"{SHARD} is a link that leads out of what the job mounts"),
    (staged_and_then_another_size, "hidden_size is 5120, and 4096 by what was verified at"),
    (
        staged_and_then_another_architecture,
        "architecture is QwenXForCausalLM, and LlamaForCausalLM by what was verified",
    ),
    (staged_and_then_another_tensor, "the tensors have other names, types or shapes than by what was verified"),
    (tensors_that_overlap, "does not lie where, or is not as long as, it has to be"),
    (an_index_that_leads_out, "is missing"),
    (a_shape_below_zero, "does not lie where, or is not as long as, it has to be"),
    (a_shard_of_zeros, f"{SHARD} is hollow: zeros at all of 8 places"),
    (a_servers_error, "tokenizer.json is a server's error"),
    (of_int4_by_autoround, "bf16 was asked for, and the weights are mxfp4|every tensor is stored as BF16"),
]


@pytest.mark.parametrize(("trap", "words"), [pytest.param(*one, id=one[0].__name__) for one in TRAPS])
def test_what_only_looks_right_is_refused_with_its_cause(
    model: Path, trap: Callable[[Path], None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trap(model)
    assert main(["model", "check", "--precision", "bf16", str(model)]) == 4
    output = capsys.readouterr().out
    assert re.search(words, output), output
    with pytest.raises(ModelError, match=words) as caught:
        require_servable(examine(model, precision="bf16", mounted=()), precision="bf16")
    assert caught.value.exit_code == 4


def infinite(model: Path) -> None:
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text[:-1] + ', "time_step_limit": [0.0, Infinity], "x": NaN, "y": -Infinity}')


def a_tokenizer_of_an_odd_name(model: Path) -> None:
    (model / "tokenizer.json").rename(model / "sentencepiece.bpe.model")


def a_tokenizer_in_its_own_code(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    put(model, "tokenization_odd.py", "class Odd: pass")


def a_tokenizer_without_a_vocabulary(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    put(model, "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"})


def shards_in_a_directory(model: Path) -> None:
    (model / "weights").mkdir()
    (model / SHARD).rename(model / "weights" / SHARD)
    index = model / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(SHARD, f"weights/{SHARD}"))


def shards_named_from_here(model: Path) -> None:
    index = model / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(SHARD, f"./{SHARD}"))


def an_index_of_what_was_left_out(model: Path) -> None:
    weights = {"w": "consolidated-00001-of-00002.safetensors", "v": "consolidated-00002-of-00002.safetensors"}
    put(model, "consolidated.safetensors.index.json", {"weight_map": weights})


def links_within(model: Path) -> None:
    (model / "blobs").mkdir()
    (model / SHARD).rename(model / "blobs" / "b2")
    (model / "again").symlink_to("blobs")
    (model / SHARD).symlink_to("./again/../blobs/b2")


def pictures_left_as_pointers(model: Path) -> None:
    for name in ("figure.png", "README.md", "pytorch_model.bin", "report.pdf"):
        put(model, name, LFS)
    put(model, "__init__.py", "")


def a_new_dtype(model: Path) -> None:
    header = {n: {"dtype": "F9_E9", "shape": [3], "data_offsets": [8 * i, 8 * i + 8]} for i, n in enumerate("ab")}
    text = json.dumps(header).encode()
    (model / "extra.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\1" * 16)


def a_tensor_that_the_index_lacks(model: Path) -> None:
    index = json.loads((model / "model.safetensors.index.json").read_text())
    index["weight_map"].popitem()
    put(model, "model.safetensors.index.json", index)


def a_header_with_room(model: Path) -> None:
    """Padded by spaces, with metadata and a tensor of nothing, as newer writers do."""
    content = (model / SHARD).read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": {"format": "pt"}, **json.loads(content[8:length])}
    header["nothing"] = {"dtype": "BF16", "shape": [0, 4], "data_offsets": [0, 0]}
    text = json.dumps(header).encode() + b" " * 17
    (model / SHARD).write_bytes(len(text).to_bytes(8, "little") + text + content[length:])


def staged_and_untouched(model: Path) -> None:
    adopt(model)


GOOD = [
    (infinite, ""),
    (a_tokenizer_of_an_odd_name, "no tokenizer of a name that is known here; sentencepiece.bpe.model may be one"),
    (a_tokenizer_in_its_own_code, "tokenization_odd.py may be one"),
    (a_tokenizer_without_a_vocabulary, ""),
    (shards_in_a_directory, "vLLM reads only those beside the index"),
    (shards_named_from_here, "vLLM reads only those beside the index"),
    (an_index_of_what_was_left_out, "names 2 shards that are not here"),
    (links_within, ""),
    (pictures_left_as_pointers, ""),
    (a_new_dtype, "is not in the index"),
    (a_tensor_that_the_index_lacks, "has 1 tensor that the index does not name"),
    (a_header_with_room, "has 1 tensor that the index does not name, as nothing"),
    (staged_and_untouched, ""),
]


@pytest.mark.parametrize(("good", "doubt"), [pytest.param(*one, id=one[0].__name__) for one in GOOD])
def test_what_is_of_an_odd_form_passes(
    model: Path, good: Callable[[Path], None], doubt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good(model)
    assert main(["model", "check", "--precision", "bf16", str(model)]) == 0, capsys.readouterr().out
    output = capsys.readouterr().out
    assert "whole" in output and "the declared one" in output
    assert doubt in output
    assert doubt or "doubt" not in output


FORMS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("auto-round MXFP4", {"bits": 4, "data_type": "mx_fp"}, {"fp4": "match", "mxfp4": "match", "int4": "mismatch"}),
    ("auto-round NVFP4", {"bits": 4, "data_type": "nv_fp"}, {"fp4": "match", "nvfp4": "match", "int4": "mismatch"}),
    ("auto-round NVFP4 with a suffix", {"bits": 4, "data_type": "nv_fp4_with_static_gs"}, {"nvfp4": "match"}),
    ("auto-round MXFP8", {"bits": 8, "data_type": "mx_fp_rceil"}, {"fp8": "match", "int8": "mismatch"}),
    ("auto-round FP8", {"bits": 8, "data_type": "fp"}, {"fp8": "match", "int8": "mismatch"}),
    ("auto-round W4A16", {"bits": 4, "data_type": "int"}, {"int4": "match", "fp4": "mismatch"}),
    ("auto-round of an unknown kind", {"bits": 4, "data_type": "posit"}, {"int4": "unknown", "fp4": "unknown"}),
    (
        "auto-round with layers of their own",
        {"bits": 4, "data_type": "mx_fp", "extra_config": {"a": {"bits": 8}, "b": {"bits": 16}, "c": 7}},
        {"fp4": "match", "fp8": "unknown", "int4": "mismatch"},
    ),
    ("w4afp8", {"quant_method": "w4afp8"}, {"int4": "match", "fp8": "mismatch", "fp4": "mismatch"}),
    ("modelopt W4A8 NVFP4", {"quant_algo": "W4A8_NVFP4_FP8"}, {"nvfp4": "match", "fp8": "mismatch"}),
    ("modelopt W4A8 MXFP4", {"quant_algo": "W4A8_MXFP4_FP8"}, {"mxfp4": "match", "fp8": "mismatch"}),
    ("modelopt W8A8", {"quant_algo": "W8A8_SQ_PER_CHANNEL"}, {"int8": "match", "fp8": "mismatch"}),
    ("modelopt FP8 by block", {"quant_algo": "FP8_PB_WO"}, {"fp8": "match"}),
    (
        "modelopt mixed, by groups",
        {"quant_algo": "MIXED_PRECISION", "config_groups": {"g": {"weights": {"num_bits": 4, "type": "float"}}}},
        {"fp4": "match"},
    ),
    (
        "torchao int4",
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
        {"int4": "match"},
    ),
    ("torchao fp8", {"quant_method": "torchao", "quant_type": "Float8DynamicActivationFloat8Weight"}, {"fp8": "match"}),
    ("fp_quant", {"quant_method": "fp_quant", "forward_dtype": "nvfp4"}, {"nvfp4": "match", "fp8": "mismatch"}),
    ("petit", {"quant_method": "petit_nvfp4"}, {"nvfp4": "match"}),
    ("fbgemm", {"quant_method": "fbgemm_fp8"}, {"fp8": "match"}),
    ("six bits", {"quant_method": "deepspeedfp", "bits": 6}, {"fp8": "mismatch", "fp4": "mismatch"}),
    ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_4bit": True}, {"int4": "unknown", "bf16": "unknown"}),
]


@pytest.mark.parametrize(
    ("config", "asked", "answer"),
    [
        pytest.param(config, asked, answer, id=f"{name}: {asked}")
        for name, config, answers in FORMS
        for asked, answer in answers.items()
    ],
)
def test_forms_of_quantisation(config: dict[str, Any], asked: str, answer: str) -> None:
    assert compare_precision(asked, declared_quantisation({"quantization_config": config}), {})[0] == answer


def test_layers_of_a_mixed_one_may_stand_in_another_file(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", dtype="U8")
    put(model, "hf_quant_config.json", {"quantization": {"quant_algo": "MIXED_PRECISION"}})
    assert examine(model, precision="fp4").identity == "unknown"
    put(model, "quant_cfg.json", {"quantized_layers": {"a": {"quant_algo": "NVFP4"}, "b": {"quant_algo": "FP8"}}})
    assert examine(model, precision="fp4").identity == "match"


def test_links_are_judged_by_what_the_job_mounts(model: Path) -> None:
    shards_of_a_hub_cache(model)
    assert examine(model, precision="bf16").whole, "copies follow links"
    assert not examine(model, precision="bf16", mounted=(str(model),)).whole
    above = str(model.parent.parent)
    assert examine(model, precision="bf16", mounted=(above,)).whole
    assert not examine(model, precision="bf16", mounted=(f"{above}/mod",)).whole


def test_what_a_runner_file_declares_is_compared(model: Path) -> None:
    report = examine(model, precision="bf16")
    assert report.known_by == ()
    fingerprint = {"hidden_size": 4096, "quantisation": "bf16", "architecture": "LlamaForCausalLM"}
    right = report.compared_with(fingerprint, "x.yaml")
    assert (right.identity, right.known_by) == ("match", ("x.yaml",))
    wrong = report.compared_with({"hidden_size": 4096, "num_hidden_layers": 61, "n_routed_experts": 256}, "x.yaml")
    with pytest.raises(ModelError, match=r"layers is 32, and 61 by x\.yaml; n_routed_experts is not said, and"):
        require_servable(wrong)


@pytest.fixture
def server(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    source = checkpoint(model.parent / "hub", SIZES)
    with hub(source) as state:
        monkeypatch.setenv("HF_ENDPOINT", state.url)
        yield state


def test_the_hubs_config_at_a_pinned_commit_is_compared(server: Hub, model: Path) -> None:
    pinned = f"hf:{REPOSITORY}@{SHA}"
    known = fingerprint_of_files(pinned_files(pinned, ("config.json", "hf_quant_config.json")))
    assert examine(model, precision="bf16").compared_with(known, pinned).known_by == (pinned,)
    change(model, num_hidden_layers=61)
    assert "61, and 32 by hf:" in str(examine(model, precision="bf16").compared_with(known, pinned).identity_reason)


def test_what_was_staged_from_the_hub_is_known(server: Hub, tmp_path: Path) -> None:
    destination = tmp_path / "staged"
    done = stage(source_of(f"hf:{REPOSITORY}@{SHA}"), destination)
    assert done.manifest.fingerprint is not None and done.manifest.fingerprint["hidden_size"] == 4096
    assert len(examine(destination, precision="bf16").known_by) == 1
    before = json.loads((destination / MANIFEST_NAME).read_text())
    del before["fingerprint"]  # as earlier versions wrote it
    (destination / MANIFEST_NAME).write_text(json.dumps(before))
    report = examine(destination, precision="bf16")
    assert (report.whole, report.known_by) == (True, ())


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_mode_is_told_at_once(server: Hub, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=f"{name}=1 forbids it"):
        source_of(f"hf:{REPOSITORY}@{SHA}")
    assert server.requests == []


@pytest.mark.parametrize("endpoint", ["hub.example", "ftp://hub.example"])
def test_an_address_that_is_none_is_told_at_once(endpoint: str, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)

    with pytest.raises(ModelError, match="the hub cannot be asked"):
        HubSource(REPOSITORY, SHA)


def test_a_hole_is_not_seen_where_the_file_system_does_not_tell(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lseek(*arguments: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "lseek", lseek)
    assert examine(model, precision="bf16").whole
