"""How benchmarks are called among people."""

from __future__ import annotations

import pytest

from launcher.benchmark.benchmark import Role
from tests.benchmarks import a_benchmark


@pytest.mark.parametrize(
    ("role", "text"),
    [
        (Role(1, 4, ep=4, dp_attention=True), "DEP4"),
        (Role(1, 8, ep=8), "TEP8"),
        (Role(1, 4), "TP4"),
        (Role(1, 4, dp_attention=True), "DP4"),
        (Role(1, 1, ep=8, dp_attention=True), "DP1-EP8"),
        (Role(1, 8, pp=2, dcp=4, pcp=2), "TP8-PP2-DCP4-PCP2"),
    ],
)
def test_parallelism(role: Role, text: str) -> None:
    assert str(role) == text


def test_topologies() -> None:
    assert a_benchmark().topology == "1P1D DEP4/TP4"
    assert a_benchmark(decode=Role(0, 8), prefill=Role(2, 8)).topology == "2xTP8"
    assert a_benchmark(decode=None, prefill=Role(1, 8)).topology == "TP8"
    assert a_benchmark(prefill=None).topology == "-"


def test_an_eval_row_can_have_a_recipe_of_its_own() -> None:
    settings = {"CONFIG_FILE": "recipes/a.yaml", "EVAL_CONFIG_FILE": "recipes/b.yaml"}
    assert a_benchmark(settings=settings).config_file == "recipes/a.yaml"
    assert a_benchmark(settings=settings, eval_only=True).config_file == "recipes/b.yaml"


def test_gpus_are_those_of_all_workers() -> None:
    assert a_benchmark(prefill=Role(2, 4, pp=2), decode=Role(3, 8, dcp=4)).gpus == 16 + 24
    assert a_benchmark(multinode=False, prefill=Role(1, 2, ep=8, dcp=2, pp=2, pcp=3), decode=None).gpus == 12
