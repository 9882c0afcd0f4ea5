from __future__ import annotations

from typing import Any

from launcher.benchmark.expand import mark_evaluations

FAMILY = {"model": "acme/M", "runner": "r", "framework": "vllm", "precision": "fp4"}
EIGHT = {"isl": 8192, "osl": 1024}


def single(conc: int, *, tp: int = 8, **more: Any) -> dict[str, Any]:
    return {**FAMILY, **EIGHT, "tp": tp, "spec-decoding": "none", "dp-attn": False, "conc": conc, **more}


def multi(conc: list[int], *, tp: int = 8, **more: Any) -> dict[str, Any]:
    return {**FAMILY, **EIGHT, "prefill": {"tp": tp}, "decode": {"tp": 8}, "conc": conc, "exp-name": "m", **more}


def agentic(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if k not in EIGHT} | {"scenario-type": "agentic-coding"}


def marked(entries: list[dict[str, Any]], *, include: bool = False) -> list[int]:
    mark_evaluations(entries, agentic=include)
    assert all("run-eval" in entry for entry in entries)
    return [i for i, entry in enumerate(entries) if entry["run-eval"]]


def test_single_node_marks_the_highest_and_the_median_of_every_parallelism() -> None:
    entries = [single(c, tp=tp) for tp in (4, 8) for c in (8, 16, 32, 64)]
    assert marked(entries) == [2, 3, 6, 7]  # of 16, 32, 64: 32 and 64
    assert "eval-conc" not in entries[2]


def test_attention_and_speculation_are_groups_of_their_own() -> None:
    entries = [single(16), single(32), single(16, **{"dp-attn": True}), single(16, **{"spec-decoding": "mtp"})]
    assert marked(entries) == [1, 2, 3]


def test_multi_node_marks_the_highest_concurrency_of_each_topology() -> None:
    entries = [multi([4, 64]), multi([16, 128]), multi([32], tp=4), multi([8], tp=2)]
    assert marked(entries) == [1, 2]
    assert (entries[1]["eval-conc"], entries[2]["eval-conc"]) == (128, 32)
    assert "eval-conc" not in entries[0]


def test_only_8k1k_is_evaluated() -> None:
    assert marked([single(64, isl=1024), multi([64], isl=1024)]) == []


def test_agentic_entries_are_marked_only_when_asked() -> None:
    def entries() -> list[dict[str, Any]]:
        return [agentic(e) for e in (single(4), single(8), multi([16]), multi([32]), multi([8], tp=4))]

    assert marked(entries()) == []
    rows = entries()
    assert marked(rows, include=True) == [1, 3]  # single-node knows no least concurrency
    assert rows[3]["eval-conc"] == 32
