"""Launchers as processes, on a cluster for faults: what they left is read from disk and asked of Slurm itself."""

from __future__ import annotations

import json
import secrets
import threading
from pathlib import Path
from typing import Any

from launcher.core.shipped import shipped
from tests.faults.slurm_cases.fault_cluster import FaultCluster, alive
from tests.run.driving import ONE, LauncherUser

RUN = (*ONE, "--runner", "one-machine", "--conc", "4")


class ClusterUser(LauncherUser):
    """A user of the cluster for faults, with its programs on PATH."""

    fault_cluster: FaultCluster
    preparing: threading.Lock

    @classmethod
    def at(cls, fault_cluster: FaultCluster, name: str = "user") -> ClusterUser:
        root = fault_cluster.directory / name
        root.mkdir(exist_ok=True)
        extra = {k: v for k, v in fault_cluster.environ.items() if k.startswith("SLURM") or k == "PATH"}
        runners = root / "runners"
        runners.mkdir(exist_ok=True)
        text = (shipped("runners") / "one-machine.yaml").read_text()
        text = text.replace("scheduler:\n", f"scheduler:\n  backend: {fault_cluster.backend}\n", 1)
        # Our sbatch is told by it what to do; a job gets no variable that is not named.
        (runners / "one-machine.yaml").write_text(f"{text}\npass-environment: [LAB_SBATCH]\n")
        extra |= {"LAUNCHER_REHEARSAL_SECONDS": "0.1", "LAUNCHER_RUNNERS": str(runners)}
        user = cls(root, runner="one-machine", extra=extra)
        user.fault_cluster = fault_cluster
        user.preparing = fault_cluster.preparing[name]
        return user

    def prepared(self) -> ClusterUser:
        """After one run, which has made images, model and checkout, as they are on a cluster that is in use."""
        with self.preparing:
            if not (self.state / "squash").is_dir():
                run_id = self.new_id()
                self.run("--conc", "4", run_id=run_id)
        return self

    @staticmethod
    def new_id() -> str:
        return f"f-{secrets.token_hex(5)}"

    def has_record(self, run_id: str) -> bool:
        return (self.state / "runs" / run_id / "run.json").is_file()

    def results(self, run_id: str) -> list[tuple[Any, ...]]:
        """What a run measured, without what differs between two runs."""
        points = self.summary(run_id)["points"]
        return [(p["concurrency"], p["state"]) for p in points]

    def one_good_job(self, run_id: str) -> list[str]:
        """What is wrong with a run that has to have had one job, and its results."""
        complaints = []
        jobs = self.fault_cluster.jobs_of(run_id)
        if len(jobs) != 1:
            complaints.append(f"{run_id} has {len(jobs)} jobs: {jobs}")
        record = self.record(run_id)
        if record["state"] != "succeeded":
            complaints.append(f"{run_id} is {record['state']}: {json.dumps(record.get('error'))}")
        elif self.results(run_id) != [(4, "ok")]:
            complaints.append(f"{run_id}: {self.results(run_id)}")
        else:
            found = [path.name for path in Path(self.state, "runs", run_id, "results").glob("*_conc4_*.json")]
            made = ("agg_", "power_validation_")  # of the result, by the launcher
            if len([name for name in found if not name.startswith(made)]) != 1:
                complaints.append(f"{run_id}: not one result: {found}")
        return complaints

    def alive(self, run_id: str) -> list[str]:
        """Jobs of a run that have not ended."""
        return alive(self.fault_cluster.jobs_of(run_id))
