from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.benchmark.expand import Selection, sequence_name
from launcher.benchmark.matrix import Matrix, load_matrix
from launcher.core.errors import ConfigError
from tests.benchmark.matrices import write


@pytest.fixture
def matrix(tmp_path: Path) -> Matrix:
    return load_matrix([write(tmp_path)])


@pytest.mark.parametrize(
    ("filters", "keys"),
    [
        ({}, {"m-fp4-gb200", "m-fp4-gb300-agentic", "m-fp8-h200"}),
        ({"keys": ["m-fp4-*"]}, {"m-fp4-gb200", "m-fp4-gb300-agentic"}),
        ({"keys": ["m-fp8-h200", "*agentic"]}, {"m-fp8-h200", "m-fp4-gb300-agentic"}),
        ({"runners": ["gb200", "h200"]}, {"m-fp4-gb200", "m-fp8-h200"}),
        ({"frameworks": ["vllm"]}, {"m-fp8-h200"}),
        ({"precisions": ["fp8"]}, {"m-fp8-h200"}),
        ({"model_prefixes": ["m"], "precisions": ["fp4"]}, {"m-fp4-gb200", "m-fp4-gb300-agentic"}),
        ({"sequences": ["8k1k"]}, {"m-fp4-gb200"}),
        ({"sequences": ["2048_512"]}, {"m-fp8-h200"}),
        ({"scenarios": ["agentic-coding"]}, {"m-fp4-gb300-agentic"}),
        ({"nodes": "single"}, {"m-fp8-h200"}),
        ({"nodes": "multi", "scenarios": ["fixed-seq-len"]}, {"m-fp4-gb200"}),
        ({"concurrencies": [64]}, {"m-fp4-gb200"}),
    ],
)
def test_filters(matrix: Matrix, filters: dict[str, Any], keys: set[str]) -> None:
    assert {entry.key for entry in matrix.entries(Selection(**filters))} == keys


def test_concurrencies_narrow_the_entries_that_have_them(matrix: Matrix) -> None:
    entries = matrix.entries(Selection(concurrencies=[4, 16, 8]))
    assert [(e.key, e.data["conc"]) for e in entries] == [
        ("m-fp4-gb200", [4, 16]),
        ("m-fp4-gb300-agentic", [8]),
        ("m-fp8-h200", 4),
        ("m-fp8-h200", 8),
        ("m-fp8-h200", 16),
    ]
    # The mark goes to the highest concurrency of what is left.
    assert entries[0].data["eval-conc"] == 16


@pytest.mark.parametrize(
    ("filters", "message", "hint"),
    [
        ({"keys": ["m-fp4-gb20"]}, "no key matches 'm-fp4-gb20'", "near keys: m-fp4-gb200"),
        ({"keys": ["m-fp8-*", "zz*"]}, "no key matches 'zz*'", "keys: m-fp4-gb200, m-fp4-gb300-agentic, m-fp8-h200"),
        ({"runners": ["gb20"]}, "runner gb20", "did you mean gb200?"),
        ({"keys": ["*gb200"], "precisions": ["bf16"]}, "precision bf16", "there are: fp4"),
        ({"sequences": ["1k8k"]}, "sequence 1k8k", "1k1k"),
        ({"concurrencies": [3, 5]}, "concurrency 3 or 5", "there are: 4, 7, 8, 16, 32, 48, 64"),
        ({"keys": ["*gb200"], "nodes": "single"}, "nodes single", "multi"),
        ({"runners": ["gb200"], "precisions": ["fp8"]}, "no entry has all", "near keys: m-fp4-gb200, m-fp8-h200"),
        ({"keys": ["m-fp8-*"], "evals": "only"}, "none of the 6 selected entries is marked", "8k1k"),
        ({"scenarios": ["agentic"]}, "scenario agentic", "did you mean agentic-coding?"),
    ],
)
def test_a_selection_that_leaves_nothing_says_what_comes_near(
    matrix: Matrix, filters: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        matrix.entries(Selection(**filters))
    assert message in caught.value.message
    assert caught.value.hint is not None and hint in caught.value.hint
    assert "matrix.yaml" in str(caught.value.where)


def test_files_without_entries_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="have no entry"):
        load_matrix([write(tmp_path, "{}\n")]).entries()


def test_sequence_names() -> None:
    assert [sequence_name(1024, 1024), sequence_name(8192, 1024), sequence_name(1024, 8192)] == [
        "1k1k",
        "8k1k",
        "1024_8192",
    ]
