"""What a report reads: records, sweeps, aggregates, artifact trees; and how each point stands."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.core.errors import ConfigError
from launcher.report.assemble import build_report
from launcher.report.document import Document, Entry
from launcher.report.gather import gather
from launcher.sweep.ledger import Ledger
from launcher.sweep.schema import Began, Event, Job, Policy, Reused, Skipped, Started, Sweep, Voided
from tests.report.made import CONCURRENCIES, row, rows, write_rows, write_runs


def report(state: Path, *names: str) -> Document:
    return build_report(gather(names or [str(state)], state), title="t", made="now")


def change(state: Path, run: str, kind: str, /, **changes: Any) -> None:
    """Change what a record says; ``points`` by concurrency."""
    path = state / f"runs/{run}/{kind}.json"
    value = json.loads(path.read_text())
    points = changes.pop("points", {})
    value |= changes
    for point in value.get("points", []) if points else []:
        if (point_fields := points.get(point["concurrency"])) is not None:
            point.clear()
            point.update(point_fields)
    path.write_text(json.dumps(value))


def test_a_good_run(tmp_path: Path) -> None:
    (name,) = write_runs(tmp_path, 1)
    for source in (name, str(tmp_path), str(tmp_path / "runs" / name)):
        found = report(tmp_path, source)
        assert found.counts == {"ok": 4} and found.problems == ()
        (run,) = found.runs
        assert (run.id, run.job, run.nodes) == (name, "4000", "node[01-03]")
        assert run.commit == "c0" * 20
        assert run.images[0].digest.startswith("sha256:") and len(run.srt_slurm) == 40
        assert [one[0] for one in run.measured] == list(CONCURRENCIES)
        assert all(run.started and run.started < begin < end <= (run.ended or 0) for _, begin, end in run.measured)
    first = found.points[0]
    summary = json.loads((tmp_path / f"runs/{name}/summary.json").read_text())["points"][0]
    assert first.metrics["tput_per_gpu"] == summary["throughput_per_gpu"]
    assert first.metrics["median_ttft"] == summary["ttft_median_ms"] / 1000
    assert first.metrics["median_intvty"] == 1000 / summary["tpot_median_ms"]


REFUSED = {"concurrency": 16, "state": "invalid", "reason": "max_concurrency is 8, expected 16"}
STALE = {"concurrency": 16, "state": "invalid", "reason": "it is older than this run: 99 s before the submission"}
MISSING = {"concurrency": 16, "state": "missing", "reason": "no result of it is there"}
KILLED = {"state": "failed", "verdict": {"layer": "scheduler", "text": "the time limit was reached"}}
DIED = {"state": "failed", "verdict": {"layer": "server", "text": "worker decode 0 was killed"}}


@pytest.mark.parametrize(
    ("points", "run", "expected"),
    [
        ({16: REFUSED}, {}, ("refused", "results", "max_concurrency is 8, expected 16")),
        ({16: REFUSED}, DIED, ("refused", "server", "max_concurrency is 8, expected 16")),
        ({16: STALE}, {}, ("stale", "results", STALE["reason"])),
        ({16: MISSING}, {}, ("missing", "results", "no result of it is there")),
        ({16: MISSING}, DIED, ("missing", "server", "worker decode 0 was killed")),
        ({16: {**MISSING, "state": "ok", "rehearsal": True}}, {}, ("rehearsal", "", None)),
        ({16: MISSING}, KILLED, ("missing", "scheduler", "the time limit was reached")),
    ],
)
def test_a_point_that_is_not_ok_says_why(
    tmp_path: Path, points: dict[int, Any], run: dict[str, Any], expected: tuple[str, str, str | None]
) -> None:
    (name,) = write_runs(tmp_path, 1)
    change(tmp_path, name, "summary", points=points)
    change(tmp_path, name, "run", **run)
    found = report(tmp_path)
    good = [point for point in found.points if point.concurrency != 16]
    (bad,) = [point for point in found.points if point.concurrency == 16]
    assert all(point.state == ("refused" if run is DIED else "ok") for point in good)
    assert run is not DIED or all("none of its results is believed" in point.reason for point in good)
    assert (bad.state, bad.layer) == expected[:2] and bad.reason == (expected[2] or bad.reason)
    assert bad.rule == {"refused": "result-asked", "stale": "result-stale"}.get(bad.state, "")
    assert bad.reason and not bad.frontier
    drawn = {one for panel in found.panels for curve in panel.curves for one in curve.points}
    assert bad.id not in drawn


def test_a_run_that_has_not_ended_or_left_no_summary(tmp_path: Path) -> None:
    new, dead = write_runs(tmp_path, 2)
    for name in (new, dead):
        (tmp_path / f"runs/{name}/summary.json").unlink()
    job = json.loads((tmp_path / f"runs/{new}/run.json").read_text())["job"]
    change(tmp_path, new, "run", state="running", verdict=None, job={**job, "over": False, "says": "RUNNING on node01"})
    change(tmp_path, dead, "run", state="failed", verdict={"layer": "image", "text": "no such tag"})
    by_run: dict[str, Entry] = {point.run: point for point in report(tmp_path).points}
    assert "not measured yet: job 4000 RUNNING on node01" in by_run[new].reason and by_run[new].layer == ""
    assert (by_run[dead].reason, by_run[dead].layer) == ("no such tag", "image")


def test_what_cannot_be_read_is_said_and_stops_nothing(tmp_path: Path) -> None:
    good, torn, planless, odd = write_runs(tmp_path, 4)
    (tmp_path / f"runs/{torn}/run.json").write_text('{"schema": 1, "id"')
    (tmp_path / f"runs/{planless}/plan.json").unlink()
    (tmp_path / f"runs/{odd}/summary.json").write_text('{"points": [{"concurrency": "many"}]}')
    found = report(tmp_path)
    assert sorted(problem.split(":")[0] for problem in found.problems) == sorted([f"run {torn}", f"run {planless}"])
    assert {point.run for point in found.points if point.state == "ok"} == {good}
    assert all("its summary cannot be read" in point.reason for point in found.points if point.run == odd)


@pytest.mark.parametrize("odd", ["abc", 10**400, None, [], {}, True, 0, "20"], ids=range(8))
def test_a_number_of_a_summary_that_is_none_stops_nothing(tmp_path: Path, odd: Any) -> None:
    _, spoilt = write_runs(tmp_path, 2)
    point_fields = {"concurrency": 16, "state": "ok", "tpot_median_ms": odd, "ttft_median_ms": odd}
    change(tmp_path, spoilt, "summary", points={16: point_fields})
    found = report(tmp_path)
    assert found.counts["ok"] == 8
    assert sum("median_intvty" in point.metrics for point in found.points) == 7


def test_a_list_of_thousands_of_jobs_is_read_in_one_go(tmp_path: Path) -> None:
    made = [row(concurrency=at + 1, recipe_fingerprint=f"{at % 4000:x}") for at in range(6000)]
    (tmp_path / "agg_bmk.json").write_text(json.dumps(made))
    began = time.process_time()
    found = gather([str(tmp_path)], tmp_path / "state")
    assert len(found.runs) == 4000 and len({run.id for run in found.runs.values()}) == 4000
    assert {point.run for point in found.points} == {*found.runs}
    assert time.process_time() - began < 20, "before, it took minutes"


def test_a_success_does_not_hide_the_failure_before_it(tmp_path: Path) -> None:
    first, second = write_runs(tmp_path, 2)
    for kind in ("plan", "summary"):  # the second run measures the same points again
        path = tmp_path / f"runs/{second}/{kind}.json"
        value = json.loads((tmp_path / f"runs/{first}/{kind}.json").read_text())
        path.write_text(json.dumps(value))
    change(tmp_path, first, "summary", points={c: {**MISSING, "concurrency": c} for c in CONCURRENCIES})
    change(tmp_path, first, "run", **DIED)
    found = report(tmp_path)
    assert found.counts == {"ok": 4}
    for point in found.points:
        assert point.run == second and [one.state for one in point.attempts] == ["missing", "ok"]
        assert point.attempts[0].reason == "worker decode 0 was killed" and point.attempts[0].run == first


def test_an_artifact_tree_with_what_the_workflow_collected_beside_it(tmp_path: Path) -> None:
    found = list(rows(20))
    write_rows(tmp_path, found)
    (tmp_path / "results_bmk").mkdir()
    (tmp_path / "results_bmk/agg_bmk.json").write_text(json.dumps([*found, [row(shape=(7, 4))]]))
    (tmp_path / "agg_torn.json").write_text('{"hw": ')
    (tmp_path / "agg_other.json").write_text('{"hw": "h100"}')
    (tmp_path / "meta_env.json").write_text('{"anything": 1}')
    (tmp_path / "bmk_nan").mkdir()
    (tmp_path / "bmk_nan/agg_nan.json").write_text(json.dumps(row(shape=(8, 4), p99_ttft=float("nan"))))
    (tmp_path / "bmk_zero").mkdir()
    (tmp_path / "bmk_zero/agg_zero.json").write_text(json.dumps(row(shape=(9, 4), tput_per_gpu=0)))
    value = report(tmp_path)
    assert value.counts == {"ok": 21, "refused": 2}
    reasons = {point.reason for point in value.points if point.state == "refused"}
    assert reasons == {"p99_ttft is nan", "tput_per_gpu is 0, and must be above 0"}
    assert len(value.problems) == 2 and all(p.startswith(("agg_torn", "agg_other")) for p in value.problems)


def job(state: Path, run: str) -> Job:
    from launcher.run.record import RunRecord

    plan = RunRecord.load(state / "runs", run).plan
    image = {"image": plan.images[0].reference}
    return Job(key=f"job-{run}", runner="local", kind="srtctl", benchmark=plan.benchmark, fingerprint=image)


def test_a_sweep_shows_all_that_it_wanted(tmp_path: Path) -> None:
    done, failed, earlier, never, other, strange = write_runs(tmp_path, 6)
    image = json.loads((tmp_path / f"runs/{other}/summary.json").read_text())["images"][0]
    change(tmp_path, other, "summary", images=[{**image, "digest": "sha256:another"}])
    change(tmp_path, failed, "run", **DIED)
    (tmp_path / f"runs/{failed}/summary.json").unlink()
    jobs = {run: job(tmp_path, run) for run in (done, failed, earlier, never, other)}
    policy = Policy()
    sweep = Sweep(
        id="weekend", created=time.time(), launcher="0", selection=(), policy=policy, jobs=tuple(jobs.values())
    )
    ledger = Ledger.create(tmp_path / "sweeps", sweep)
    lines: list[Event] = [
        Began(time=1.0, driver="me", policy=policy),
        Started(time=2.0, job=jobs[done].key, run=done, concurrencies=CONCURRENCIES),
        Started(time=2.0, job=jobs[failed].key, run="never-made", concurrencies=CONCURRENCIES),
        Voided(time=2.0, run="never-made", why="killed"),
        Started(time=3.0, job=jobs[failed].key, run=failed, concurrencies=CONCURRENCIES),
        Started(time=3.0, job=jobs[other].key, run=other, concurrencies=CONCURRENCIES),
        Reused(time=4.0, job=jobs[earlier].key, run=earlier, concurrencies=CONCURRENCIES[:2]),
        Started(time=4.5, job=jobs[never].key, run=f"../../elsewhere/{strange}", concurrencies=CONCURRENCIES),
        Reused(time=4.5, job=jobs[never].key, run="..", concurrencies=CONCURRENCIES),
        Skipped(time=5.0, job=jobs[never].key, why="the canary failed"),
    ]
    for line in lines:
        ledger.append(line)  # type: ignore[arg-type]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / strange).rename(tmp_path / "elsewhere" / strange)
    (tmp_path / "runs" / "x").mkdir()
    found = report(tmp_path, "weekend")
    assert [one.split(": line ")[0] for one in found.problems] == ["sweep weekend"] * 2
    assert all("is no run's id" in one for one in found.problems)
    assert found.counts == {"ok": 4, "reused": 2, "stale": 4, "missing": 10}
    by_reason: dict[str, int] = {}
    for point in found.points:
        by_reason[point.reason] = by_reason.get(point.reason, 0) + 1
    stale = next(reason for reason in by_reason if reason.startswith("image digest is sha256:another, not sha256:"))
    assert by_reason.pop(stale) == 4
    assert by_reason == {
        "": 4,
        "worker decode 0 was killed": 4,
        f"measured by run {earlier}": 2,
        "planned: no attempt yet": 2,
        "not started: the canary failed": 4,
    }
    assert {run.id for run in found.runs} == {done, failed, earlier, other} and strange not in str(found.runs)
    assert not any(point.frontier for point in found.points if point.state == "reused")


def test_a_name_that_stands_for_nothing(tmp_path: Path) -> None:
    (name,) = write_runs(tmp_path, 1)
    with pytest.raises(ConfigError, match="there is no run, sweep or directory") as raised:
        gather([name[:-1] + "x"], tmp_path)
    assert name in (raised.value.hint or "")
    assert gather(["."], tmp_path).sources == ["."]  # a directory, and no run of that name
