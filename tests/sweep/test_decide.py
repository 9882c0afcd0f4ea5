"""What begins next and what follows from an end, as tables: canary, fail fast, breaker, retries, exclusion, budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from launcher.benchmark.benchmark import Role
from launcher.runner.cluster_schema import Limits
from launcher.sweep.decide import Decisions, Start
from launcher.sweep.overview import event_text
from launcher.sweep.points import canaries, differences, ordered
from launcher.sweep.retry import allowed_retry, class_of, named_node, signature
from launcher.sweep.schema import (
    Began,
    Ended,
    Event,
    Excluded,
    Held,
    Job,
    Policy,
    Requested,
    Retried,
    Started,
    Sweep,
    Voided,
)
from launcher.sweep.state import Facts, PointState, State, exit_code, point_states
from tests.benchmarks import a_benchmark


def a_job(number: int, *concurrencies: int, runner: str = "gb200-nv", **changes: Any) -> Job:
    given = {"nodes": 2, "gpus": 8, "seconds": 3600.0, **{k: changes.pop(k) for k in ("nodes", "gpus") if k in changes}}
    benchmark = a_benchmark(prefill=Role(number, 4), concurrencies=concurrencies or (4,), **changes)
    key = f"j{number}" + (f"c{concurrencies[0]}" if concurrencies else "")
    return Job(key=key, runner=runner, kind="k", benchmark=benchmark, fingerprint={"image": benchmark.image}, **given)


class Sim:
    """A driver without effects: attempts end as a test says, and time passes only when it says so."""

    def __init__(self, *jobs: Job, limits: Mapping[str, Limits] = {}, **policy: Any) -> None:
        self.limits = limits
        sweep = Sweep(id="s", created=0.0, launcher="1", selection=(), policy=Policy(**policy), jobs=jobs)
        self.state, self.now, self.events, self.facts = State(sweep), 0.0, list[Event](), dict[str, Facts]()
        self.begin()

    def begin(self, **how: Any) -> None:
        """A driver begins, as after a kill of the one before."""
        self.take(Began(time=0.0, driver="d", policy=self.state.policy, **how))
        self.decisions = Decisions(self.state, {"gb200-nv": 18}, self.limits)
        found = {
            key: [(a, self.facts.get(a.run, Facts("none"))) for a in self.state.counted_attempts(key)]
            for key in self.state.jobs
        }
        for event in self.decisions.begin({key: made for key, made in found.items() if made}, self.now):
            self.take(event)

    def take(self, event: Event) -> None:
        self.events.append(event)
        self.state.apply(event)  # type: ignore[arg-type]

    def start(self) -> Start | None:
        """The next attempt begins, if one may."""
        if (start := self.decisions.next(self.now)) is not None:
            run = f"{start.job.key}-{len(self.state.attempts[start.job.key]) + 1}"
            cost = {"nodes": start.job.nodes or 1, "gpu_hours": start.job.gpu_hours or 0.0}
            self.take(
                Started(
                    time=0.0, job=start.job.key, run=run, concurrencies=start.concurrencies, why=start.why,
                    exclude=start.exclude, **cost,
                )
            )  # fmt: skip
            self.decisions.started(start.job.key)
        return start

    def starts(self) -> list[str]:
        """All that may begin now, by job and concurrencies."""
        found = []
        while (start := self.start()) is not None:
            found.append(f"{start.job.key}:{','.join(map(str, start.concurrencies))}")
        return found

    def end(self, key: str, layer: str = "", text: str = "", **facts: Any) -> list[Event]:
        """The job's attempt ends: well, or put down to a layer."""
        attempt = self.state.attempts[key][-1]
        ok = frozenset() if layer else frozenset(attempt.event.concurrencies)
        given = {"phase": "over", "state": "failed" if layer else "succeeded", "ok": ok, "layer": layer, "text": text}
        seen = Facts(**{**given, "word": "COMPLETED", "job": "7", "exit_code": 6 if layer else 0, **facts})
        self.facts[attempt.run] = seen
        events = self.decisions.after(attempt, seen, self.now)
        for event in events:
            self.take(event)
        return events

    def points(self) -> dict[str, str]:
        states = point_states(self.state, lambda run: self.facts.get(run, Facts("none")))
        return {f"{p.job}:{p.concurrency}": p.state for p in states}

    @property
    def exit_code(self) -> int:
        return exit_code(point_states(self.state, lambda run: self.facts.get(run, Facts("none"))))


def test_a_canary_goes_first_with_its_lowest_concurrency_and_the_others_follow_it() -> None:
    cheap = a_job(2, 4, 16, nodes=1, gpus=4)
    sim = Sim(a_job(1), cheap, a_job(3, image="other/image:1"), canary="auto")
    assert sorted(sim.starts()) == ["j2c4:4", "j3:4"], "one canary of each runner and image"
    sim.end("j2c4")
    assert sim.starts() == ["j1:4", "j2c4:16"], "the others, and its own other point"
    assert {a.event.why for made in sim.state.attempts.values() for a in made} == {"canary", "first"}


def test_a_failed_canary_keeps_its_runner_and_image_from_starting_and_others_go_on() -> None:
    sim = Sim(a_job(1), a_job(2), a_job(3, image="other/image:1"), a_job(4, image="other/image:1"), canary="auto")
    sim.starts()
    sim.end("j1", "server", "the servers did not become healthy in time")
    assert sim.starts() == []
    sim.end("j3")
    assert sim.starts() == ["j4:4"]
    sim.end("j4")
    for event in sim.decisions.left():
        sim.take(event)
    assert sim.points() == {"j1:4": "failed", "j2:4": "not started", "j3:4": "ok", "j4:4": "ok"}
    assert sim.exit_code == 6, "what was not started follows from the canary"


@pytest.mark.parametrize("layer", ["node", "scheduler"])
def test_a_canary_that_node_or_scheduler_failed_has_one_other_attempt(layer: str) -> None:
    sim = Sim(a_job(1), a_job(2), canary="auto", retries=9)
    sim.starts()
    (_, retried) = [e for e in sim.end("j1", layer, "its deadline was reached") if not isinstance(e, Excluded)]
    assert isinstance(retried, Retried) and sim.starts() == ["j1:4"]
    sim.end("j1")
    assert sim.starts() == ["j2:4"]


@pytest.mark.parametrize(
    ("said", "ends", "starts"),
    [
        ("1", [("server", "x")], []),
        ("2", [("server", "x")], ["j3:4"]),
        ("2", [("server", "x"), ("results", "y")], []),
        ("server", [("results", "y")], ["j3:4"]),
        ("server", [("server", "x")], []),
        (None, [("server", "x"), ("server", "y")], ["j3:4"]),
    ],
)
def test_fail_fast(said: str | None, ends: list[tuple[str, str]], starts: list[str]) -> None:
    sim = Sim(a_job(1), a_job(2), a_job(3), fail_fast=said)
    sim.start()
    sim.start()
    for number, (layer, text) in enumerate(ends, 1):
        sim.end(f"j{number}", layer, text)
    assert sim.starts() == starts
    assert ("fail fast" in sim.decisions.fail_fast_reason) is (not starts)


def test_the_breaker_holds_image_and_model_after_three_jobs_of_two_topologies() -> None:
    """wandb #5088: one bad machine burnt 470 of 500 runs."""
    same = [a_job(1, c) for c in (1, 2, 4, 8)]
    sim = Sim(*same, a_job(2), a_job(3), a_job(4, image="other/image:1"), order="given")
    sim.starts()
    said = "worker decode 0 on gb200-00{} failed at 2026-11-26 10:0{}: CUDA error 700 in /opt/x/{}.cu"
    for number, job in enumerate(same[:3]):
        assert not any(isinstance(e, Held) for e in sim.end(job.key, "server", said.format(number, number, number)))
    events = sim.end("j2", "server", said.format(9, 9, 9))
    assert [e.signature for e in events if isinstance(e, Held)], "three jobs and a second topology"
    held = sim.state.breaker(a_job(9))
    assert held is not None and sim.state.breaker(a_job(9, image="other/image:1")) is None
    sim.begin()
    assert sim.decisions.blocking_reason(sim.state.jobs["j3"]).startswith("breaker"), "it holds over a restart"
    sim.begin(anyway=True)
    assert sim.decisions.blocking_reason(sim.state.jobs["j3"]) == ""


NODES = "gb200-[001-002]"


@pytest.mark.parametrize(
    ("layer", "text", "facts", "times", "wait"),
    [
        ("configuration", "unknown field", {}, 0, 0),
        ("image", "docker.io: 429 Too Many Requests", {}, 3, 30),
        ("image", "connection reset by peer", {}, 3, 30),
        ("image", "the layer is truncated", {}, 3, 30),
        ("image", "503 from the registry", {}, 3, 30),
        ("image", "manifest not found (404)", {}, 0, 0),
        ("image", "401 unauthorized", {}, 0, 0),
        ("image", "it is of architecture amd64", {}, 0, 0),
        ("model", "Input/output error while copying", {}, 2, 60),
        ("model", "ESTALE", {}, 2, 60),
        ("model", "another checkpoint: sizes differ", {}, 0, 0),
        ("model", "no space left", {}, 0, 0),
        ("scheduler", "sbatch: error: Socket timed out on send/recv", {}, 3, 30),
        ("scheduler", "Invalid account or account/partition combination", {}, 0, 0),
        ("scheduler", "QOSMaxSubmitJobPerUserLimit", {}, 0, 0),
        ("scheduler", "another job took its place", {"word": "PREEMPTED"}, 3, 0),
        ("scheduler", "the time limit was reached", {"word": "TIMEOUT"}, 0, 0),
        ("node", "a node failed on gb200-001 (NODE_FAIL)", {"nodes": NODES, "word": "NODE_FAIL"}, 2, 0),
        ("node", "a node failed (NODE_FAIL)", {"nodes": NODES, "word": "NODE_FAIL"}, 1, 0),
        ("server", "ncclSystemError: no connection", {"nodes": NODES}, 1, 0),
        ("server", "CUDA out of memory", {"nodes": NODES}, 0, 0),
        ("benchmark", "12 % of the requests failed", {}, 0, 0),
        ("results", "concurrency 4: missing", {}, 0, 0),
        ("cancelled", "cancelled by a person", {}, 0, 0),
        ("launcher", "unexpected KeyError", {}, 0, 0),
    ],
)
def test_retry_classes(layer: str, text: str, facts: Mapping[str, Any], times: int, wait: float) -> None:
    seen = Facts("over", state="failed", layer=layer, text=text, **facts)
    given = [allowed_retry(seen, before, Policy()) for before in range(times + 1)]
    assert [one is not None for one in given] == [True] * times + [False]
    assert [one.wait for one in given if one is not None] == pytest.approx([wait * 2**n for n in range(times)], rel=0.2)


def test_a_time_limit_or_a_server_is_tried_once_more_only_when_asked() -> None:
    slow = Facts("over", layer="scheduler", text="the time limit was reached", word="TIMEOUT")
    died = Facts("over", layer="server", text="worker decode 0 failed")
    assert allowed_retry(slow, 0, Policy(retry_timeout=2.0)) and not allowed_retry(slow, 1, Policy(retry_timeout=2.0))
    assert allowed_retry(died, 0, Policy(confirm=True)) and not allowed_retry(died, 1, Policy(confirm=True))


def test_a_named_node_is_excluded_up_to_a_bound_and_nodes_that_nobody_names_are_avoided_once() -> None:
    sim = Sim(*[a_job(n) for n in range(1, 6)], retries=99)
    sim.starts()
    for number in range(1, 4):
        node = f"gb200-00{number}"
        text = f"a node failed on {node} (NODE_FAIL)"
        sim.end(f"j{number}", "node", text, nodes=f"{node},gb200-009", word="NODE_FAIL")
    assert sorted(sim.state.excluded) == ["gb200-001", "gb200-002"], "two nodes at most"
    again = [sim.start() for _ in range(3)]
    assert all(start is not None and {"gb200-001", "gb200-002"} <= set(start.exclude) for start in again)
    assert sum(start is not None and "gb200-003" in start.exclude for start in again) == 1, "avoided by its own job"
    sim.end("j4", "server", "NCCL WARN timeout", nodes=NODES)
    start = sim.start()
    assert start is not None and {"gb200-001", "gb200-002"} <= set(start.exclude) and start.why == "fabric"
    sim.end("j4", "server", "NCCL WARN timeout", nodes="gb200-[003-004]")
    assert sim.start() is None, "the second time it is put down to the server"


def test_further_attempts_have_a_budget_and_a_later_success_hides_none() -> None:
    """ReFrame #3139: no retries when half the sweep failed."""
    sim = Sim(*[a_job(n) for n in range(1, 6)])
    sim.starts()
    for number in range(1, 6):
        sim.end(f"j{number}", "image", f"connection reset by peer {'abcde'[number - 1]}")
    assert len(sim.state.granted) == 2 and sim.state.retries_left == 0
    sim.now = 100.0
    assert sorted(sim.starts()) == ["j1:4", "j2:4"]
    sim.end("j1")
    states = point_states(sim.state, lambda run: sim.facts.get(run, Facts("none")))
    assert states[0].state == "ok" and states[0].attempts == ("j1-1", "j1-2")


def test_the_budget_reserves_what_a_job_can_cost_and_settles_with_what_it_did() -> None:
    sim = Sim(*[a_job(n) for n in range(1, 6)], max_gpu_hours=20.0)
    assert sim.starts() == ["j1:4", "j2:4"], "8 GPU-hours each"
    assert sim.state.reserved == 16.0
    sim.end("j1", started=0.0, ended=900.0)
    assert (sim.state.spent, sim.state.reserved) == (2.0, 8.0)
    assert sim.starts() == ["j3:4"]
    sim.end("j2", started=0.0, ended=3600.0)
    sim.end("j3", started=0.0, ended=3600.0)
    assert sim.starts() == [] and not sim.decisions.due(0.0)
    for event in sim.decisions.left():
        sim.take(event)
    assert list(sim.points().values()) == ["ok", "ok", "ok", "not started", "not started"]
    assert sim.exit_code == 7


def test_each_runner_has_a_budget_of_its_own() -> None:
    jobs = [a_job(n, runner=runner) for n in (1, 2) for runner in ("gb200-nv", "h100")]
    jobs = [msgspec.structs.replace(job, key=f"{job.key}-{job.runner[0]}") for job in jobs]
    sim = Sim(*jobs, order="given", limits={"gb200-nv": Limits(max_gpu_hours=8.0)})
    assert sim.starts() == ["j1-g:4", "j1-h:4", "j2-h:4"]
    assert "8.0 of 8 GPU-hours on gb200-nv are spent or reserved" in sim.decisions.blocking_reason(jobs[2])
    sim.end("j1-g", started=0.0, ended=0.0)
    assert sim.starts() == ["j2-g:4"], "settled by what it did use"


@pytest.mark.parametrize(
    ("points", "code"),
    [
        (["ok", "ok"], 0),
        (["ok", "failed 6", "failed 3"], 6),
        (["failed 3", "failed 6"], 3),
        (["ok", "missing"], 7),
        (["ok", "planned"], 7),
        (["failed 6", "not started drained"], 7),
        (["failed 6", "not started budget: 8 of 8"], 7),
        (["failed 6", "not started fail fast: x"], 6),
        (["failed 4", "not started canary failed: x"], 4),
        (["failed 6", "failed 6", "failed 6", "not started breaker: x"], 6),
        (["cancelled 130", "ok"], 130),
        (["unknown"], 7),
        (["not started fail fast: x"], 7),
    ],
)
def test_exit_codes(points: list[str], code: int) -> None:
    states = []
    for number, said in enumerate(points):
        word = next(word for word in ("not started", said.split()[0]) if said.startswith(word))
        rest = said.removeprefix(word).strip()
        failed = rest.isdigit()
        states.append(
            PointState(f"j{number}", 4, word, "" if failed else rest, exit_code=int(rest) if failed else 0)  # type: ignore[arg-type]
        )
    assert exit_code(states) == code


def test_a_good_run_whose_results_are_none_of_this_sweep_says_why() -> None:
    sim = Sim(a_job(1, 4, 16))
    sim.starts()
    (ended,) = sim.end("j1c4", ok=frozenset({4}), bad={16: "image digest is b, not a"})
    assert isinstance(ended, Ended) and (ended.state, ended.layer) == ("succeeded", "results")
    assert event_text(ended) == "j1c4: succeeded: results: image digest is b, not a"


def test_pause_drain_and_one_runner_alone() -> None:
    """wandb #1956: pause one machine, not all."""
    sim = Sim(a_job(1), a_job(2, runner="h100"))
    ask = {"time": 0.0, "by": "me"}
    sim.take(Requested(verb="pause", runner="h100", **ask))
    assert sim.starts() == ["j1:4"] and sim.decisions.due(0.0), "the driver stays"
    sim.take(Requested(verb="go-on", **ask))
    assert sim.starts() == ["j2:4"]
    sim.end("j2", "image", "connection reset by peer")
    sim.take(Requested(verb="drain", **ask))
    sim.now = 100.0
    assert sim.starts() == [] and not sim.decisions.due(sim.now)


def test_what_a_later_driver_starts() -> None:
    """ray #16891, #30584; wandb #2980, #3513: missing is computed, failed needs --retry-failed, stopped is not done."""
    sim = Sim(*[a_job(n, 4, 16) for n in range(1, 8)], order="given", retries=0)
    sim.starts()
    keys = list(sim.state.jobs)
    sim.end(keys[0])
    sim.end(keys[1], "server", "OOM")
    sim.end(keys[2], "results", "concurrency 16: missing", ok=frozenset({4}))
    sim.end(keys[3], "cancelled", "stopped", state="cancelled")
    sim.end(keys[4], "configuration", "bad")
    sim.take(Voided(time=0.0, run=f"{keys[5]}-1", why="it has no record"))
    sim.begin()
    wanted = [f"{keys[2]}:16", f"{keys[3]}:4,16", f"{keys[5]}:4,16"]
    assert sim.starts() == wanted
    sim.begin(retry_failed=True)
    assert sim.starts() == [f"{keys[1]}:4,16", f"{keys[4]}:4,16"], "and those that are under way are not begun again"


def test_a_granted_attempt_is_made_once_also_after_a_kill() -> None:
    sim = Sim(a_job(1), retries=5)
    sim.starts()
    sim.end("j1", "image", "connection reset by peer")
    sim.begin()
    assert sim.starts() == [], "it waits its time"
    sim.now = 100.0
    assert sim.starts() == ["j1:4"]
    sim.begin()
    assert sim.starts() == []


def test_events_read_again_give_the_same_state() -> None:
    sim = Sim(*[a_job(n) for n in range(1, 4)], retries=5, max_gpu_hours=100.0)
    sim.starts()
    sim.end("j1", "node", "a node failed on gb200-001 (NODE_FAIL)", nodes="gb200-001", started=0.0, ended=60.0)
    sim.end("j2", started=0.0, ended=60.0)
    lines = [msgspec.json.decode(msgspec.json.encode(event), type=type(event)) for event in sim.events]
    again = State(sim.state.sweep, lines)  # type: ignore[arg-type]
    assert again.__dict__ == sim.state.__dict__


def test_orders() -> None:
    jobs = [a_job(n, c) for n in (1, 2) for c in (1, 2, 4, 8, 16)]
    spread = [job.key for job in ordered(jobs, "spread")]
    assert spread[:4] == ["j1c1", "j2c1", "j1c16", "j2c16"] and spread[4:6] == ["j1c4", "j2c4"]
    assert sorted(spread) == sorted(job.key for job in jobs)
    assert [job.key for job in ordered(jobs, "given")] == [job.key for job in jobs]
    short, long = a_job(1), msgspec.structs.replace(a_job(2), seconds=60.0)
    assert [j.key for j in ordered([short, long], "short-first")] == ["j2", "j1"]
    assert [j.key for j in ordered([short, long], "long-first")] == ["j1", "j2"]
    assert ordered([a_job(1), a_job(2, precision="fp4")], "score")[0].key == "j2"
    assert set(canaries([*jobs, a_job(9, 1, nodes=1)], "auto")) == {"j9c1"}
    assert canaries(jobs, "off") == {} and set(canaries(jobs, "j2c4")) == {"j2c4"}


def test_fingerprints_differ_in_what_both_know() -> None:
    assert differences({"recipe": "a", "image digest": ""}, {"recipe": "a", "image digest": "x"}) == []
    assert differences({"recipe": "a"}, {"recipe": "b"}) == ["recipe is b, not a"]


def test_signatures_leave_out_what_differs_from_job_to_job() -> None:
    one = signature("server", "worker 3 on gb200-001 failed at 2026-11-26 10:00:01; /a/b/c.out: error 0x7f00 in 12 s")
    two = signature("server", "worker 5 on gb200-017 failed at 2026-11-27 11:10:09; /a/x/d.out: error 0x1100 in 9 s")
    assert one == two != signature("server", "out of memory") != signature("node", "out of memory")


def test_named_nodes() -> None:
    seen = Facts("over", layer="node", nodes="gb200-[001-003]", text="Xid 79 on gb200-002, at 10:00")
    assert named_node(seen) == "gb200-002"
    assert named_node(replace(seen, text="gb200-001 and gb200-002")) == ""
    assert named_node(replace(seen, nodes="solo", text="it died")) == "solo"
    assert class_of(replace(seen, layer="benchmark")) is None
