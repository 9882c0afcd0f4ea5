from __future__ import annotations

import msgspec
import pytest

from launcher.benchmark.expand import dram_budget
from launcher.benchmark.matrix_schema import Hardware, MultiAgenticRow, SingleAgenticRow

NODE = Hardware(available_cpu_dram_mib=2_000_000, gpus_per_node=8)
BACKEND = {"name": "mooncake"}
WHOLE = int(2_000_000 * 2**20 * 0.8 / 1e9)


def single(tp: int, pp: int = 1) -> SingleAgenticRow:
    row = {"tp": tp, "pp": pp, "conc-list": [1], "kv-offloading": "dram", "kv-offload-backend": BACKEND}
    return msgspec.convert(row, SingleAgenticRow)


def multi(tp: int, pp: int = 1) -> MultiAgenticRow:
    role = {"num-worker": 1, "tp": tp, "pp": pp, "ep": 1, "dp-attn": False}
    decode = {"num-worker": 1, "tp": 1, "ep": 1, "dp-attn": False}
    row = {"prefill": role, "decode": decode, "conc-list": [1]}
    return msgspec.convert(row, MultiAgenticRow)


def test_the_budget_is_the_share_of_the_gpus_in_use() -> None:
    assert dram_budget(single(8), 0.8, NODE) == WHOLE == 1677
    assert dram_budget(single(2), 0.8, NODE) == 419
    assert dram_budget(single(2, pp=2), 0.8, NODE) == 838
    assert dram_budget(multi(4), 0.8, NODE) == 838


def test_a_worker_over_several_nodes_has_whole_nodes() -> None:
    assert dram_budget(multi(8, pp=2), 0.8, NODE) == WHOLE


def test_no_node_is_credited_with_more_than_three_terabytes() -> None:
    assert dram_budget(single(8), 1.0, Hardware(available_cpu_dram_mib=9_000_000, gpus_per_node=8)) == 2_999


@pytest.mark.parametrize("row", [single(16), multi(3), multi(12), multi(6, pp=2)])
def test_a_topology_that_does_not_tile_the_nodes_is_refused(row: SingleAgenticRow | MultiAgenticRow) -> None:
    with pytest.raises(ValueError, match="GPUs do not"):
        dram_budget(row, 0.8, NODE)
