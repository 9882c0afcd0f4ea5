from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.rehearsal.queueing import PREFILL_RATE, Topology, solve

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
