"""`launcher doctor locks`: whether locks hold in a directory, tried out."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from launcher.core.errors import ImageError
from launcher.image.probe import Probed, between_nodes, between_processes, file_system


def locks(arguments: argparse.Namespace) -> int:
    """Print what was found between two processes of this host, and between two nodes where there is Slurm."""
    directory = Path(arguments.directory).resolve()
    found = [between_processes(directory)]
    said: list[str] = []
    if not arguments.no_nodes:
        options = [f"--{name}={value}" for name in ("partition", "account") if (value := getattr(arguments, name))]
        if shutil.which("srun") is None:
            said.append("between nodes: not tried, there is no srun here")
        else:
            try:
                found.append(between_nodes(directory, options))
            except ImageError as error:
                said.append(f"between nodes: {error.message}")
    if arguments.json:
        value = {"directory": str(directory), "file_system": file_system(directory), "notes": said}
        print(json.dumps({**value, "probes": [asdict(probed) for probed in found]}, indent=2))
        return 0
    print(f"{directory}: {file_system(directory)}")
    for probed in found:
        _show(probed)
    for line in said:
        print(line)
    return 0


def _show(probed: Probed) -> None:
    beat = "its heartbeat was not seen" if probed.heartbeat is None else f"heartbeat seen after {probed.heartbeat:g} s"
    print(f"{probed.where}:")
    print(f"  flock       {probed.flock}")
    print(f"  lockf       {probed.lockf}")
    print(f"  owner file  {probed.owner_file}; {beat}")
    print(f"  clocks      differ by {probed.clocks:g} s")
    print(
        "  imports     one at a time"
        if probed.one_at_a_time
        else "  imports     may be done twice at once; what is published is whole all the same"
    )
