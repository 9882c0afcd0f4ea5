"""Results that can be believed, and each way in which one cannot."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.result.document import UnusableResult
from launcher.result.validate import MeasuredPoint, ResultFileName, read_agentic_result, read_result
from tests.result.documents import agentic, fixed, make_expected, read_or_error, write
from tests.shared import SHARED, needs_shared

NAME = "sa-bench_isl_128_osl_128/results_concurrency_4_gpus_12_ctx_4_gen_8.json"
AGENTIC = make_expected(mode="agentic")


def read(tmp_path: Path, document: Any, name: str = NAME) -> MeasuredPoint | UnusableResult:
    return read_or_error(read_result, write(tmp_path / name, document), 4, make_expected(128, 128))


def reason(answer: MeasuredPoint | UnusableResult) -> str:
    assert isinstance(answer, UnusableResult), answer
    return str(answer)


def test_a_disaggregated_result(tmp_path: Path) -> None:
    point = read(tmp_path, fixed())
    assert point == MeasuredPoint(
        concurrency=4,
        completed=40,
        path=tmp_path / NAME,
        requests=40,
        gpus=12,
        prefill_gpus=4,
        decode_gpus=8,
        total_throughput=960.0,
        output_throughput=460.0,
        throughput_per_gpu=80.0,
        output_throughput_per_gpu=57.5,
        ttft_median_ms=84.0,
        ttft_p99_ms=124.0,
        tpot_median_ms=8.25,
        tpot_p99_ms=9.5,
        itl_median_ms=8.0,
        itl_p99_ms=12.0,
        e2el_median_ms=1100.0,
        e2el_p99_ms=1500.0,
        duration_s=10.0,
        ended=(tmp_path / NAME).stat().st_mtime,
    )
    measured = read(tmp_path, fixed(benchmark_start_time_unix=1000.0, benchmark_end_time_unix=1010.0))
    assert isinstance(measured, MeasuredPoint) and measured.ended == 1010.0


def test_an_aggregated_result_counts_all_gpus_for_both(tmp_path: Path) -> None:
    point = read(tmp_path, fixed(), "sa-bench_isl_128_osl_128/results_concurrency_4_gpus_8.json")
    assert isinstance(point, MeasuredPoint)
    assert (point.gpus, point.prefill_gpus, point.decode_gpus) == (8, None, None)
    assert (point.throughput_per_gpu, point.output_throughput_per_gpu) == (120.0, 57.5)


@needs_shared
@pytest.mark.parametrize(
    "directory", ["one-machine/samples/srtctl-disagg-job3", "srtctl-transcripts/lab/mocker-disagg.out"]
)
def test_results_of_real_jobs(directory: str) -> None:
    assert SHARED is not None
    found = sorted((SHARED / "reference" / directory).glob("logs/*/results_*.json"))
    assert len(found) == 2
    for path in found:
        name = ResultFileName.parse(path.name)
        assert name is not None
        document = json.loads(path.read_text())
        point = read_result(path, name.concurrency, make_expected())
        assert isinstance(point, MeasuredPoint)
        assert point.completed == document["completed"]
        assert point.throughput_per_gpu == document["total_token_throughput"] / name.gpus
        decode = name.split[1] if name.split else name.gpus
        assert point.output_throughput_per_gpu == document["output_throughput"] / decode


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ("[]", "not an object"),
        ("null", "not an object"),
        ("42", "not an object"),
        ("{", "truncated"),
        (json.dumps(fixed())[:-1], "truncated"),
        (json.dumps(fixed())[:200], "truncated"),
        (json.dumps(fixed()) + "x", "not JSON"),
        ("\0" * 64, "not JSON"),
        (json.dumps(fixed(median_ttft_ms=math.nan)), "median_ttft_ms is NaN"),
        (json.dumps(fixed(output_throughput=math.inf)), "output_throughput is Infinity"),
        (json.dumps(fixed(p99_itl_ms=-math.inf)), "p99_itl_ms is Infinity"),
        (json.dumps(fixed(ttfts=[0.1, math.nan])), "an element of a list is NaN"),
        (json.dumps(fixed()).replace("460.0", "1e999"), "out of range"),
        (json.dumps(fixed()).replace("460.0", "1" + "0" * 400), "output_throughput is not finite"),
        ('{"a":' + "[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_is_no_result(tmp_path: Path, text: str, said: str) -> None:
    assert said in reason(read(tmp_path, text))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_concurrency": None}, "max_concurrency is missing"),
        ({"model_id": None}, "model_id is missing"),
        ({"model_id": 7}, "model_id is not text"),
        ({"total_token_throughput": None}, "total_token_throughput is missing"),
        ({"output_throughput": None}, "output_throughput is missing"),
        ({"completed": None}, "completed is missing"),
        ({"completed": True}, "completed is True, not a number"),
        ({"output_throughput": "460"}, "output_throughput is '460', not a number"),
        ({"mean_ttft_ms": [1]}, "mean_ttft_ms is [1], not a number"),
        ({"completed": 0}, "no request was completed"),
        ({"completed": -1}, "no request was completed"),
        ({"completed": 0.5}, "no request was completed"),
        ({"total_output_tokens": 0}, "no output token was generated"),
        ({"output_throughput": 0.0}, "no output token was generated"),
        ({"median_tpot_ms": 0.0}, "median_tpot_ms is 0"),
        ({"std_tpot_ms": 0}, "std_tpot_ms is 0"),
        ({"max_concurrency": 8}, "max_concurrency is 8, expected 4"),
        ({"max_concurrency": 4.5}, "max_concurrency is 4.5"),
    ],
)
def test_a_document_that_is_no_result(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in reason(read(tmp_path, fixed(**changes)))


def test_a_key_of_value_null_that_process_result_would_convert(tmp_path: Path) -> None:
    assert "median_ttft_ms is None, not a number" in reason(read(tmp_path, {**fixed(), "median_ttft_ms": None}))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sa-bench_isl_128_osl_128/results_concurrency_8_gpus_12.json", "its name says concurrency 8"),
        ("sa-bench_isl_128_osl_128/results_concurrency_4.json", "its name is not"),
        ("sa-bench_isl_128_osl_128/results_concurrency_4_gpus_12_ctx_4.json", "its name is not"),
        ("sa-bench_isl_128_osl_128/results_concurrency_4_gpus_12.json.tmp", "its name is not"),
        ("sa-bench_isl_128_osl_128/results_concurrency_4_gpus_0.json", "no prefill GPU"),
        ("sa-bench_isl_128_osl_128/results_concurrency_4_gpus_8_ctx_0_gen_8.json", "no prefill GPU"),
        ("sa-bench_isl_8192_osl_1024/results_concurrency_4_gpus_12.json", "ISL/OSL 8192/1024, expected 128/128"),
    ],
)
def test_a_name_that_is_of_another_measurement(tmp_path: Path, name: str, said: str) -> None:
    assert said in reason(read(tmp_path, fixed(), name))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    assert "cannot be read" in reason(read_or_error(read_result, tmp_path / NAME, 4, make_expected()))


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"median_tpot_ms": -0.001}, NAME, "median_tpot_ms is negative"),
        ({"completed": 38}, NAME, "38 of 40 requests completed"),
    ],
)
def test_what_is_odd_is_a_doubt(tmp_path: Path, changes: dict[str, Any], name: str, said: str) -> None:
    point = read(tmp_path, fixed(**changes), name)
    assert isinstance(point, MeasuredPoint)
    assert any(said in doubt for doubt in point.doubts), point.doubts


def test_a_rehearsal_says_so(tmp_path: Path) -> None:
    point = read(tmp_path, fixed(rehearsal=True))
    assert isinstance(point, MeasuredPoint) and point.rehearsal


def test_an_agentic_result_in_milliseconds(tmp_path: Path) -> None:
    path = write(tmp_path / "RF_conc8.json", agentic())
    point = read_agentic_result(path, 8, AGENTIC)
    assert point == MeasuredPoint(
        concurrency=8,
        completed=100,
        path=path,
        requests=100,
        gpus=16,
        prefill_gpus=8,
        decode_gpus=8,
        total_throughput=16000.0,
        output_throughput=900.0,
        throughput_per_gpu=1000.0,
        output_throughput_per_gpu=56.25,
        ttft_median_ms=500.0,
        tpot_median_ms=20.0,
        itl_median_ms=19.0,
        e2el_median_ms=12000.0,
        duration_s=3600.0,
        ended=path.stat().st_mtime,
    )


def test_the_least_that_the_workflow_takes_of_an_agentic_result(tmp_path: Path) -> None:
    path = write(tmp_path / "RF_conc8.json", {"num_requests_successful": 1})
    point = read_agentic_result(path, 8, AGENTIC)
    assert isinstance(point, MeasuredPoint)
    assert (point.completed, point.total_throughput, point.ttft_median_ms) == (1, None, None)


def test_failed_requests_of_an_agentic_result_are_a_doubt(tmp_path: Path) -> None:
    path = write(tmp_path / "RF_conc8.json", agentic(request_accounting={"records_error_dropped": 7}))
    point = read_agentic_result(path, 8, AGENTIC)
    assert isinstance(point, MeasuredPoint)
    assert (point.requests, point.doubts) == (107, ("7 requests failed",))


@pytest.mark.parametrize(
    ("name", "document", "said"),
    [
        ("RF_conc8.json", agentic(num_requests_successful=0), "no request succeeded"),
        ("RF_conc8.json", agentic(num_requests_successful=0.5), "no request succeeded"),
        ("RF_conc8.json", agentic(num_requests_successful=None), "num_requests_successful is missing"),
        ("RF_conc8.json", agentic(conc=16), "conc is 16, expected 8"),
        ("RF_conc80.json", agentic(), "its name does not end in _conc8.json"),
        ("RF_conc8.json", "", "empty"),
        ("RF_conc8.json", agentic(num_prefill_gpu="x"), "num_prefill_gpu is 'x'"),
    ],
)
def test_an_agentic_result_that_is_none(tmp_path: Path, name: str, document: Any, said: str) -> None:
    assert said in reason(read_or_error(read_agentic_result, write(tmp_path / name, document), 8, AGENTIC))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_result_cut_anywhere_is_never_a_point(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = json.dumps(fixed())
    text = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert isinstance(read(tmp_path_factory.getbasetemp() / "cut", text), UnusableResult)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
CONTENT = st.binary(max_size=200) | st.one_of(
    JSON,
    st.dictionaries(st.sampled_from([*fixed(), "rehearsal"]), JSON, max_size=2).map(lambda odd: {**fixed(), **odd}),
    st.dictionaries(st.sampled_from([*agentic(4)]), JSON, max_size=2).map(lambda odd: {**agentic(4), **odd}),
).map(lambda value: json.dumps(value).encode())


@settings(max_examples=300, deadline=None)
@given(content=CONTENT)
def test_whatever_a_file_holds_there_is_an_answer(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.getbasetemp() / "any"
    path, other = write(directory / NAME, ""), write(directory / "RF_conc4.json", "")
    path.write_bytes(content)
    other.write_bytes(content)
    for answer in (
        read_or_error(read_result, path, 4, make_expected(128, 128)),
        read_or_error(read_agentic_result, other, 4, AGENTIC),
    ):
        if isinstance(answer, MeasuredPoint):
            assert answer.completed > 0
            assert all(math.isfinite(value) for value in vars(answer).values() if isinstance(value, float))


NUMBERS = st.integers(0, 10**6)


@given(
    st.builds(ResultFileName, NUMBERS, NUMBERS, st.none() | st.tuples(NUMBERS, NUMBERS)),
)
def test_a_file_name_is_read_as_sa_bench_writes_it(name: ResultFileName) -> None:
    text = f"results_concurrency_{name.concurrency}_gpus_{name.gpus}"
    if name.split is not None:
        text += f"_ctx_{name.split[0]}_gen_{name.split[1]}"
    assert ResultFileName.parse(f"{text}.json") == name
