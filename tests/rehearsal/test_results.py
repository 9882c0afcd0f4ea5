from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.rehearsal.results import PREFILL_RATE, Topology, agentic_result, benchmark_result, eval_documents, solve
from launcher.result.validate import MeasuredPoint, read_agentic_result, read_result
from tests.result.documents import make_expected
from tests.shared import SHARED, needs_shared

TOPOLOGY = Topology(1, 4, 2, 4)
SAMPLE = "reference/one-machine/samples/srtctl-disagg-job3/logs/sa-bench_isl_128_osl_128"

_workers, _gpus = st.integers(1, 12), st.integers(1, 32)
_topologies = st.builds(Topology, _workers, _gpus, _workers, _gpus, st.booleans())


@given(_topologies, st.integers(1, 8192), st.integers(1, 130_000), st.integers(1, 20_000))
def test_the_means_obey_little_and_grow_as_they_should(t: Topology, users: int, isl: int, osl: int) -> None:
    few, more = (solve(t, users=n, input_tokens=isl, output_tokens=osl) for n in (users, 2 * users))
    assert few.throughput * few.e2el == pytest.approx(users, rel=1e-4)
    assert few.e2el == pytest.approx(few.ttft + (osl - 1) * few.tpot, rel=1e-9)
    assert more.throughput >= few.throughput * (1 - 1e-9) and more.ttft >= few.ttft * (1 - 1e-9)
    assert more.tpot >= few.tpot * (1 - 1e-9)


def test_throughput_saturates_at_the_slower_side() -> None:
    prefill_bound = Topology(1, 1, 8, 8)
    best = PREFILL_RATE / 8192
    assert solve(prefill_bound, users=4096, input_tokens=8192, output_tokens=16).throughput == pytest.approx(
        best, rel=0.01
    )
    decode_bound = Topology(8, 8, 1, 1)
    assert solve(decode_bound, users=8192, input_tokens=16, output_tokens=1024).throughput == pytest.approx(
        1 / (1024 * 0.0004), rel=0.01
    )


def test_one_user_waits_for_nobody() -> None:
    means = solve(Topology(2, 4, 1, 4), users=1, input_tokens=64_000, output_tokens=1)
    assert means.ttft == pytest.approx(64_000 / (4 * PREFILL_RATE) + 0.007 + 0.0001, rel=1e-6)


@needs_shared
def test_a_result_has_every_key_of_a_real_one_with_the_same_kinds_of_value() -> None:
    assert SHARED is not None
    real = json.loads((SHARED / SAMPLE / "results_concurrency_4_gpus_12_ctx_4_gen_8.json").read_text())
    made = benchmark_result(TOPOLOGY, 4, 128, 128, model="m")
    assert list(made)[: len(real)] == list(real)
    assert {k: type(v) for k, v in made.items() if k in real} == {k: type(v) for k, v in real.items()}
    assert made["rehearsal"] is True and "queueing network" in made["rehearsal_note"]
    assert made["completed"] == real["completed"] == 40


def test_results_are_the_same_each_time_and_grow_with_concurrency() -> None:
    def made(concurrency: int, seed: str = "a") -> dict[str, object]:
        document = benchmark_result(TOPOLOGY, concurrency, 1024, 1024, model="m", seed=seed)
        document.pop("date")
        return document

    assert made(8) == made(8) and made(8) != made(8, "b")
    rows = [made(n) for n in (1, 4, 16, 64, 256, 1024)]
    for key in ("output_throughput", "mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms"):
        values = [row[key] for row in rows]
        assert values == sorted(values), key  # type: ignore[type-var]


@pytest.mark.parametrize("concurrency", [1, 3, 512])
def test_the_launcher_takes_a_result_without_a_doubt(tmp_path: Path, concurrency: int) -> None:
    file = tmp_path / "sa-bench_isl_1024_osl_1024" / f"results_concurrency_{concurrency}_gpus_12_ctx_4_gen_8.json"
    file.parent.mkdir()
    file.write_text(json.dumps(benchmark_result(TOPOLOGY, concurrency, 1024, 1024, model="m")))
    point = read_result(file, concurrency, make_expected(1024, 1024))
    assert isinstance(point, MeasuredPoint), point
    assert point.rehearsal and point.doubts == ()
    assert point.ttft_median_ms and point.tpot_p99_ms and point.throughput_per_gpu > 0


def test_the_launcher_takes_an_agentic_result(tmp_path: Path) -> None:
    for topology, gpus in ((TOPOLOGY, 12), (Topology(1, 8, 1, 8, aggregated=True), 8)):
        file = tmp_path / "x_conc16.json"
        file.write_text(json.dumps(agentic_result(topology, 16, model="m")))
        point = read_agentic_result(file, 16, make_expected(mode="agentic"))
        assert isinstance(point, MeasuredPoint), point
        assert point.rehearsal and point.gpus == gpus and point.ttft_median_ms


def test_eval_files_of_one_and_of_several_concurrencies() -> None:
    environ = {"IS_MULTINODE": "true", "PREFILL_TP": "4", "PREFILL_DP_ATTN": "true", "MODEL_PREFIX": "dsr1"}
    documents = eval_documents(environ, [16], "m")
    (results,) = [name for name in documents if name.startswith("results_")]
    assert "lm_eval_version" in documents[results] and "_conc" not in results
    assert documents["meta_env.json"]["conc"] == 16 and "eval_concs" not in documents["meta_env.json"]
    assert documents["meta_env.json"]["prefill_tp"] == 4 and documents["meta_env.json"]["prefill_dp_attention"] is True
    several = eval_documents(environ, [16, 32], "m")
    assert sorted(n.rpartition("_")[2] for n in several if n.startswith("results_")) == ["conc16.json", "conc32.json"]
    assert several["meta_env.json"]["completed_eval_concs"] == [16, 32]
    assert all(document["rehearsal"] for document in several.values())
