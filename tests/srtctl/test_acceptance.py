"""Synthetic acceptance: what a row's settings do to a recipe, and when they are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.core.errors import ConfigError
from launcher.srtctl.edit import acceptance_edits, apply_edits
from tests.benchmarks import a_benchmark

ON = {"SYNTHETIC_ACCEPTANCE": "true", "SYNTHETIC_ACCEPTANCE_LENGTH": "2.49"}


def vllm(**roles: Any) -> dict[str, Any]:
    return {"backend": {"type": "vllm", "vllm_config": roles}}


def injected(document: dict[str, Any], framework: str = "dynamo-vllm", **changes: Any) -> dict[str, Any]:
    benchmark = a_benchmark(framework=framework, **{"settings": ON, **changes})
    return apply_edits(document, acceptance_edits(benchmark, document))


def test_every_speculative_configuration_of_vllm_is_told() -> None:
    spec = '{"method":"mtp","num_speculative_tokens":2}'
    document = vllm(
        prefill={"block-size": 1}, decode={"speculative-config": spec}, aggregated={"speculative_config": spec}
    )
    wanted = spec[:-1] + ',"rejection_sample_method":"synthetic","synthetic_acceptance_length":2.49}'
    roles = injected(document)["backend"]["vllm_config"]
    assert roles["decode"] == {"speculative-config": wanted}  # InferenceX writes it the same, to the letter
    assert roles["aggregated"] == {"speculative_config": wanted}
    assert roles["prefill"] == {"block-size": 1}


def test_a_whole_length_is_a_number_with_a_point() -> None:
    """As InferenceX's float(…) gives it; the engine is told a mean."""
    settings = {**ON, "SYNTHETIC_ACCEPTANCE_LENGTH": "3"}
    decode = injected(vllm(decode={"speculative-config": "{}"}), settings=settings)["backend"]["vllm_config"]["decode"]
    assert json.loads(decode["speculative-config"])["synthetic_acceptance_length"] == 3.0
    assert "3.0" in decode["speculative-config"]


def test_sglangs_workers_get_it_as_variables() -> None:
    document = {"backend": {"prefill_environment": {"A": "1"}, "decode_environment": {}, "sglang_config": {"x": {}}}}
    backend = injected(document, "dynamo-sglang")["backend"]
    simulated = {
        "SGLANG_SIMULATE_ACC_LEN": "2.49",
        "SGLANG_SIMULATE_ACC_METHOD": "match-expected",
        "SGLANG_SIMULATE_ACC_TOKEN_MODE": "real-draft-token",
    }
    assert backend["prefill_environment"] == {"A": "1", **simulated}
    assert backend["decode_environment"] == simulated
    assert backend["sglang_config"] == {"x": {}}


def test_a_family_gets_it_in_its_base_and_where_variants_say_it_anew() -> None:
    spec = '{"method":"mtp"}'
    document = {
        "base": vllm(decode={"speculative-config": spec}),
        "override_a": vllm(decode={"speculative-config": spec}),
    }
    done = injected(document)
    for section in ("base", "override_a"):
        assert "synthetic" in done[section]["backend"]["vllm_config"]["decode"]["speculative-config"]


@pytest.mark.parametrize(
    "changes",
    [{"settings": {}}, {"settings": {**ON, "SYNTHETIC_ACCEPTANCE": "False"}}, {"eval_only": True}],
    ids=["not asked", "asked not to", "an evaluation"],
)
def test_without_the_wish_or_for_an_evaluation_nothing_changes(changes: dict[str, Any]) -> None:
    document = vllm(decode={"speculative-config": "{}"})
    assert injected(document, **changes) == document


@pytest.mark.parametrize(
    ("document", "framework", "settings", "message"),
    [
        (vllm(decode={"block-size": 1}), "dynamo-vllm", ON, "nothing at backend.vllm_config"),
        (vllm(decode={"speculative-config": "off"}), "dynamo-vllm", ON, "not a JSON object"),
        ({"backend": {}}, "dynamo-sglang", ON, "nothing at backend.*_environment"),
        ({"backend": {"decode_environment": {"SGLANG_SIMULATE_ACC_LEN": "2"}}}, "dynamo-sglang", ON, "sets SGLANG_"),
        (vllm(), "dynamo-trt", ON, "does not work with framework dynamo-trt"),
        (vllm(), "dynamo-vllm", {"SYNTHETIC_ACCEPTANCE": "yes"}, "'yes'"),
        (vllm(), "dynamo-vllm", {"SYNTHETIC_ACCEPTANCE": "true"}, "LENGTH is not set"),
        (vllm(), "dynamo-vllm", {**ON, "SYNTHETIC_ACCEPTANCE_LENGTH": "two"}, "'two'"),
        (vllm(), "dynamo-vllm", {**ON, "SYNTHETIC_ACCEPTANCE_LENGTH": "nan"}, "'nan'"),
        (vllm(), "dynamo-vllm", {**ON, "SYNTHETIC_ACCEPTANCE_LENGTH": "-1"}, "'-1'"),
    ],
)
def test_a_wish_that_cannot_be_met_is_an_error(
    document: dict[str, Any], framework: str, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        injected(document, framework, settings=settings)
    assert message in error.value.message
