"""Power of several nodes: the package that srt-slurm's collector writes (``manifest.json, samples.csv, windows/``).

The collector's verdict is not trusted: everything is recomputed from the files, and both verdicts must agree. Reasons,
sentences and record are those of InferenceX's utils/aggregate_power_multinode.py. This module reads files and writes
none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from launcher.core.lines import count_of
from launcher.core.reading import load_json, prepare_type
from launcher.result.power import METHOD, Window, add_new, energy, largest_gap, rounded, window_of
from launcher.result.power_windows import Checked, Device, Samples, check_windows, read_samples, select_window
from launcher.result.row_fields import Row, finite, shares

_MANIFEST = {
    "schema_version": 1,
    "producer": "srt-slurm.dcgm-power",
    "source_metric": "DCGM_FI_DEV_POWER_USAGE",
    "unit": "W",
    "power_scope": "gpu_device_board_as_reported_by_dcgm",
    "timestamp_source": "head_node_unix_clock",
    "status": "complete",
}
_FATAL = {
    "exporter_exited",
    "collector_exception",
    "collector_interrupted",
    "collector_join_timeout",
    "benchmark_child_reap_timeout",
}
_FATAL_IF_REQUIRED = {"exporter_startup_timeout", "exporter_launch_failed", "endpoint_resolution_failed"}


Whole = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Groups = dict[str, int | None]


class Worker(msgspec.Struct, frozen=True):
    """A worker on a GPU, with its role and its heterogeneous group."""

    worker_role: Literal["prefill", "decode", "agg"]
    worker_index: Whole
    worker_process: Whole
    het_group: Whole | None = None


class ExpectedDevice(msgspec.Struct, frozen=True):
    """A GPU that the package must have samples of."""

    hostname: Text
    gpu_index: Whole
    assignments: Annotated[tuple[Worker, ...], msgspec.Meta(min_length=1)]

    @property
    def key(self) -> Device:
        return self.hostname, self.gpu_index


class _ExpectedWindow(msgspec.Struct, frozen=True):
    benchmark_type: Text
    concurrency: Annotated[int, msgspec.Meta(ge=1)]


class _Manifest(msgspec.Struct, frozen=True):
    """The part of a manifest that states which samples and windows there must be."""

    expected_devices: tuple[ExpectedDevice, ...]
    expected_windows: tuple[_ExpectedWindow, ...]


Expected = Sequence[ExpectedDevice]


@dataclass(frozen=True)
class Package:
    """A package's ``directory``, and what it is checked against.

    ``results`` is the base of the windows' result paths, ``result`` the result's file. ``gpus`` are those of prefill
    and of decode. ``commit`` is the only commit of srt-slurm whose package is accepted.
    """

    directory: Path
    results: Path
    result: Path
    gpus: tuple[int, int]
    commit: str | None


def several_nodes(package: Package, raw: Mapping[str, Any]) -> tuple[Row, Row]:
    """The metrics of a package (none if it is invalid) and the record of the check. ``raw`` is the result."""
    window, invalid = window_of(raw)
    commits = {"producer_git_commit": None, "expected_producer_git_commit": package.commit}
    verdicts = {"stored_publication_valid": None, "recomputed_publication_valid": None}
    record: Row = {
        "schema_version": 1,
        "power_valid": False,
        "reasons": [],
        "failures": [],
        "telemetry_source": str(package.directory),
        "benchmark_window": None if window is None else asdict(window),
        "selected_window": None,
        "integration_method": METHOD,
        "producer": {**commits, "exporter_image_sha256": None, **verdicts},
        "expected_gpu_count": 0,
        "observed_gpu_count": 0,
        "per_gpu_role": {},
        "per_gpu_max_sample_gap_s": {},
        "per_gpu_energy_j": {},
        "metrics": {},
    }
    metrics = _check(record, package, raw, None if invalid else window)
    add_new(record["reasons"], *invalid)
    energies = record["per_gpu_energy_j"]
    record["per_gpu_energy_j"] = {gpu: value if math.isfinite(value) else None for gpu, value in energies.items()}
    if record["reasons"]:
        metrics = {}
    return metrics, record | {"power_valid": bool(metrics), "metrics": rounded(metrics)}


def _fail(record: Row, reason: str, failure: str) -> None:
    add_new(record["reasons"], reason)
    record["failures"].append(failure)


def _check(record: Row, package: Package, raw: Mapping[str, Any], window: Window | None) -> Row:
    """Check the package and add the results to the record; returns the metrics if the record has no reasons."""
    if (manifest := _manifest(record, package)) is None:
        return {}
    try:
        stated = {key: manifest.get(key) or [] for key in _Manifest.__struct_fields__}
        planned = msgspec.convert(stated, prepare_type(_Manifest))
    except msgspec.ValidationError as error:
        _fail(record, "manifest_malformed", f"manifest malformed: {error!r}")
        record["producer"]["recomputed_publication_valid"] = False
        return {}
    devices, keys = planned.expected_devices, [device.key for device in planned.expected_devices]
    windows = [(window.benchmark_type, window.concurrency) for window in planned.expected_windows]
    samples, rows, failures = read_samples(package.directory / "samples.csv")
    roles, groups, conflicts = _roles(devices)
    checked = check_windows(package.directory, package.results, windows, set(keys), samples)
    failures = [*_manifest_failures(manifest), *failures]
    failures += [f"{reason} (device identity/topology)" for reason in _device_reasons(devices, samples, conflicts)]
    failures += [] if windows else ["no expected measurement window"]
    for row in checked.validations:
        failures += [f"{r} (window {row['benchmark_type']}/{row['concurrency']})" for r in row["reason_codes"]]
    failures += [f"{r} ({error['path']})" for error in checked.errors for r in error["reason_codes"]]
    failures += _evidence_failures(manifest, samples, rows, checked)
    for label, unique in (("expected_devices", set(keys)), ("expected_windows", set(windows))):
        failures += [f"{label} contains duplicate keys"] if len(unique) != len(stated[label]) else []
    _compare_verdicts(record, failures)
    for failure in _topology_failures(devices, roles, groups, package.gpus):
        _fail(record, "topology_env_mismatch", failure)
    names = {key: f"{key[0]}/{of_gpu.uuids[0]}" for key, of_gpu in samples.items() if len(of_gpu.uuids) == 1}
    record |= {"expected_gpu_count": len(devices), "observed_gpu_count": len(samples)}
    record["per_gpu_role"] = {names.get(key, f"{key[0]}/{key[1]}"): roles[key] for key in sorted(roles)}
    selected, reason, failure = select_window(checked, raw, package.results, package.result.name, window)
    if selected is None:
        _fail(record, reason, failure)
        return {}
    record["selected_window"] = asdict(selected)
    if record["reasons"] or window is None:
        return {}
    by_role = {"prefill": 0.0, "decode": 0.0, "agg": 0.0}
    start, end = selected.start_time_unix, selected.end_time_unix
    for key in keys:
        joules = energy(samples[key].series, start, end)
        record["per_gpu_energy_j"][names[key]] = joules
        record["per_gpu_max_sample_gap_s"][names[key]] = largest_gap(samples[key].times, start, end)
        by_role[roles[key]] += joules
    metrics = _metrics(window, sum(record["per_gpu_energy_j"].values()), by_role, len(devices), package.gpus)
    if infinite := sorted(key for key, value in metrics.items() if not math.isfinite(value)):
        _fail(record, "non_finite_power_metric", f"non-finite: {', '.join(infinite)}")
    return metrics


def _compare_verdicts(record: Row, failures: list[str]) -> None:
    """Compare the collector's verdict with the recomputed one."""
    stored, recomputed = record["producer"]["stored_publication_valid"], not failures
    record["producer"]["recomputed_publication_valid"] = recomputed
    record["failures"] += failures
    if failures:
        add_new(record["reasons"], "package_recompute_invalid")
    if stored != recomputed:
        text = f"stored publication_valid={stored!r}, recomputed={recomputed!r}"
        _fail(record, "producer_verdict_mismatch", text)
    elif not stored:
        _fail(record, "package_recompute_invalid", "stored and recomputed both invalid")


def _metrics(window: Window, total: float, by_role: Mapping[str, float], devices: int, gpus: tuple[int, int]) -> Row:
    quantities = window.quantities(total, devices)
    metrics = shares("power", quantities)
    for role, count in zip(("prefill", "decode"), gpus, strict=True):
        if count > 0:
            metrics |= shares(f"power_{role}", {**quantities, f"{role}_energy": by_role[role], f"{role}_gpus": count})
    return metrics


def _manifest(record: Row, package: Package) -> Row | None:
    """The manifest, None if it is unusable; the record gets what it states about its producer."""
    path = package.directory / "manifest.json"
    if not package.directory.is_dir():
        _fail(record, "power_artifacts_missing", f"power dir missing: {package.directory}")
        return None
    if not path.is_file():
        _fail(record, "manifest_missing", f"manifest missing: {path}")
        return None
    try:
        manifest = load_json(path)
    except (OSError, ValueError) as error:
        _fail(record, "manifest_malformed", f"manifest unreadable: {error}")
        return None
    if not isinstance(manifest, dict):
        _fail(record, "manifest_malformed", "manifest is not an object")
        return None
    stored, commit, exporter = (manifest.get(k) for k in ("publication_valid", "producer_git_commit", "dcgm_exporter"))
    sha = exporter.get("container_image_sha256") if isinstance(exporter, dict) else None
    commit = commit if isinstance(commit, str) else None
    record["producer"] |= {
        "producer_git_commit": commit,
        "exporter_image_sha256": sha if isinstance(sha, str) else None,
        "stored_publication_valid": stored if isinstance(stored, bool) else None,
    }
    if not package.commit:
        _fail(record, "producer_pin_missing", "no expected producer SHA configured")
    elif commit != package.commit:
        text = f"producer_git_commit {commit!r} != expected {package.commit!r}"
        _fail(record, "producer_commit_mismatch", text)
    return manifest


def _manifest_failures(manifest: Mapping[str, Any]) -> list[str]:
    """The manifest's own values that are not as they must be."""
    failures = [f"{k} is {manifest.get(k)!r}, expected {v!r}" for k, v in _MANIFEST.items() if manifest.get(k) != v]
    if not finite(manifest.get("started_at_unix")):
        failures.append("started_at_unix is not a finite number")
    if not finite(manifest.get("stopped_at_unix")):
        failures.append("stopped_at_unix is not finite in a terminal manifest")
    for key in ("sample_interval_seconds", "request_timeout_seconds"):
        value: Any = manifest.get(key)
        if not finite(value) or value <= 0:
            failures.append(f"{key} is not finite and positive")
    for key in ("scrape_count", "sample_row_count"):
        if not _is_whole(manifest.get(key), 0):
            failures.append(f"{key} is not a non-negative integer")
    required, reasons = manifest.get("required"), manifest.get("reason_codes")
    if not isinstance(required, bool):
        failures.append(f"required is {required!r}, expected a boolean")
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        failures.append("reason_codes is not a list of strings")
    elif fatal := sorted(set(reasons) & (_FATAL | (_FATAL_IF_REQUIRED if required is True else set()))):
        failures.append(f"complete manifest carries lifecycle-failure reasons: {', '.join(fatal)}")
    exporter = manifest.get("dcgm_exporter")
    if not isinstance(exporter, dict):
        failures.append("dcgm_exporter is not an object")
    elif not exporter.get("container_image_resolved"):
        failures.append("dcgm_exporter.container_image_resolved is empty")
    return failures


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _roles(devices: Expected) -> tuple[dict[Device, str], Groups | None, list[str]]:
    """The role of each GPU ({} on a conflict), the group of each host (None on a conflict), the codes of conflicts."""
    roles: dict[Device, str] = {}
    groups: dict[str, int | None] = {}
    role_conflict = group_conflict = False
    for device in devices:
        own_roles = {worker.worker_role for worker in device.assignments}
        own_groups = {worker.het_group for worker in device.assignments}
        first = device.assignments[0]
        role_conflict |= len(own_roles) != 1
        group_conflict |= len(own_groups) != 1 or groups.setdefault(device.hostname, first.het_group) not in own_groups
        roles[device.key] = first.worker_role
    reasons = ["conflicting_worker_roles"] if role_conflict else []
    reasons += ["conflicting_het_groups"] if group_conflict else []
    return {} if role_conflict else roles, None if group_conflict else groups, reasons


def _device_reasons(devices: Expected, samples: Mapping[Device, Samples], conflicts: Sequence[str]) -> list[str]:
    expected, observed = {device.key for device in devices}, set(samples)
    reasons = ["expected_device_missing"] if not expected or expected - observed else []
    reasons += ["unexpected_device"] if observed - expected else []
    uuids = [uuid for of_gpu in samples.values() for uuid in of_gpu.uuids]
    if any(len(of_gpu.uuids) != 1 for of_gpu in samples.values()) or len(set(uuids)) != len(uuids):
        reasons.append("gpu_uuid_changed")
    return [*reasons, *conflicts]


def _topology_failures(
    devices: Expected, roles: Mapping[Device, str], groups: Groups | None, gpus: tuple[int, int]
) -> list[str]:
    """Roles and heterogeneous groups that differ from the job's."""
    expected = {role: n for role, n in zip(("prefill", "decode"), gpus, strict=True) if n > 0}
    if not expected or not roles:
        return [] if expected else ["PREFILL_GPUS/DECODE_GPUS are both zero"]
    counts = Counter(roles.values())
    failures = [] if set(counts) == set(expected) else [f"expected roles {sorted(expected)}, found {sorted(counts)}"]
    failures += [f"expected {n} {r} GPUs, found {counts[r]}" for r, n in sorted(expected.items()) if counts[r] != n]
    if groups is None:
        return [*failures, "conflicting_het_groups (topology)"]
    groups_of_role: dict[str, set[int | None]] = {}
    for device in devices:
        groups_of_role.setdefault(roles[device.key], set()).add(groups[device.hostname])
    used = []
    for role, own_groups in sorted(groups_of_role.items()):
        group = next(iter(own_groups))
        if len(own_groups) != 1:
            failures.append(f"role {role} spans het groups {sorted(own_groups, key=str)}, expected exactly one")
        elif group is not None:
            used.append(group)
        elif any(other is not None for other in groups.values()):
            failures.append(f"role {role} has het group None while other devices report real het groups")
    return [*failures, "roles share a het group"] if len(set(used)) != len(used) else failures


def _evidence_failures(
    manifest: Mapping[str, Any], samples: Mapping[Device, Samples], rows: Sequence[tuple[int, Device]], checked: Checked
) -> list[str]:
    """The manifest's counts and checks that differ from those computed from the files."""
    failures = []
    if (stored := manifest.get("sample_row_count")) != len(rows):
        failures.append(f"sample_row_count is {stored!r}, disk has {count_of(len(rows), 'row')}")
    scrapes, least = manifest.get("scrape_count"), max((scrape for scrape, _ in rows), default=-1) + 1
    if rows and not _is_whole(scrapes, least):
        failures.append(f"scrape_count is {scrapes!r}, disk needs at least {least}")
    if not samples:
        failures.append("observed_devices is empty")
    keys = ("hostname", "gpu_index", "gpu_uuids", "first_sample_time_unix", "last_sample_time_unix")
    observed = [
        dict(zip(keys, (*device, of_gpu.uuids, of_gpu.times[0], of_gpu.times[-1]), strict=True))
        for device, of_gpu in samples.items()
    ]
    for key, computed, source in (
        ("observed_devices", observed, "the devices derived from samples.csv"),
        ("window_validations", checked.validations, "the recomputed window audit"),
        ("artifact_errors", checked.errors, "the recomputed artifact scan"),
    ):
        if manifest.get(key) != computed:
            failures.append(f"{key} does not match {source}")
    return failures
