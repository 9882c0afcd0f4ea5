"""What a job keeps of a checkpoint on its node shows which weights it measured."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import pytest

from launcher.container.checkpoint import HEADERS, refuse_another_checkpoint
from launcher.core.errors import ResultError
from launcher.model.checkpoint import examine
from tests.container.jobs import JobHost
from tests.container.test_script_runs import checkpoint as on_the_node
from tests.model.checkpoints import checkpoint as make

MODELOPT = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
FP8 = {"quantization_config": {"quant_method": "fp8"}}


@pytest.fixture
def host(tmp_path: Path) -> JobHost:
    return JobHost(tmp_path)


def layout_of(model: Path) -> str:
    """The hash of the weights' layout, as the login node finds it."""
    found = examine(model, precision=None).fingerprint
    return str(found["weights"])


@pytest.mark.parametrize(
    ("config", "dtype", "precision", "declared", "wrong"),
    [
        (FP8, "F8_E4M3", "fp8", {"quantisation": "fp8"}, None),
        (FP8, "F8_E4M3", "fp8", {"quantisation": "nvfp4"}, "quantisation is fp8, and nvfp4 by the runner file"),
        (FP8, "F8_E4M3", "fp4", {}, "fp4 was asked for, and the weights are fp8"),
        (MODELOPT, "U8", "fp4", {"quantisation": "nvfp4"}, None),
        (FP8, "F8_E4M3", "fp8", {"weights": "right"}, None),
        (FP8, "F8_E4M3", "fp8", {"weights": "0" * 64}, "the tensors have other names, types or shapes than by the"),
        (FP8, "BF16", "fp8", {"weights": "right"}, "config.json says fp8, yet every tensor is stored as BF16"),
        ({}, "BF16", "nonsense", {}, None),
    ],
)
def test_a_checkpoint_on_the_node_is_judged_as_on_the_login_node(
    host: JobHost, config: dict[str, object], dtype: str, precision: str, declared: dict[str, str], wrong: str | None
) -> None:
    model = make(host.root / "model", config, dtype=dtype)
    if declared.get("weights") == "right":
        declared = {"weights": layout_of(model)}
    plan = on_the_node(host)
    planned = dataclasses.replace(plan.model, precision=precision, fingerprint=declared)
    host.run(dataclasses.replace(plan, model=planned))
    assert (host.own / HEADERS).exists() == ("weights" in declared)
    if wrong is None:
        refuse_another_checkpoint(planned, host.own)
    else:
        with pytest.raises(ResultError) as caught:
            refuse_another_checkpoint(planned, host.own)
        assert wrong in caught.value.message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        (HEADERS, b"no gzip"),
        (HEADERS, gzip.compress(b"\xff" * 8, mtime=0)),
        (HEADERS, gzip.compress((5).to_bytes(8, "little") + b"{", mtime=0)),
        (HEADERS, gzip.compress((2).to_bytes(8, "little") + b"[]", mtime=0)),
        (HEADERS, gzip.compress(b"x" * 1000, mtime=0)[:20]),
    ],
)
def test_what_was_kept_is_damaged(host: JobHost, name: str, content: bytes) -> None:
    make(host.root / "model", FP8)
    plan = on_the_node(host)
    host.run(plan)
    (host.own / name).write_bytes(content)
    with pytest.raises(ResultError, match="is damaged"):
        refuse_another_checkpoint(plan.model, host.own)


def test_a_job_that_had_no_look_is_believed(host: JobHost) -> None:
    refuse_another_checkpoint(on_the_node(host).model, host.root / "nowhere")
