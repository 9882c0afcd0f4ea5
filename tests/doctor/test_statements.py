"""What a runner file says at a key: lists, tables, defaults, and keys that are not there."""

from __future__ import annotations

import pytest

from launcher.core.yaml_source import Document
from launcher.doctor.facts import settings
from launcher.runner.file import RunnerFile
from tests.doctor.test_compare import TEXT


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("node.gpus", {"node.gpus": 4}),
        ("node.login-arch", {"node.login-arch": "x86_64"}),
        ("images.temporary", {}),
        ("images.rules.[].directory", {}),
        ("lanes.[].ref", {"lanes[0].ref": "v1.0.53"}),
        ("lanes.[].time-limit", {}),
        ("models.[].path", {"models[0].path": "/lustre/models/a", "models[1].path": "/raid/models/b"}),
        ("repositories.*", {"repositories.nvidia": "https://example.org/srt-slurm.git"}),
        ("srtslurm.use_segment_sbatch_directive", {"srtslurm.use_segment_sbatch_directive": True}),
        ("srtslurm.use_exclusive_sbatch_directive", {}),
        ("srtslurm.default_sbatch_directives.*", {}),
        ("srtslurm.network_interface.*", {}),
    ],
)
def test_what_a_file_says_at_a_key(pattern: str, found: dict[str, object]) -> None:
    file = RunnerFile(Document("x.yaml", TEXT))
    assert {one.dotted: one.value for one in settings(file, pattern)} == found


def test_a_default_stands_for_a_key_that_is_not_there() -> None:
    file = RunnerFile(Document("x.yaml", TEXT))
    (one,) = settings(file, "srtslurm.use_exclusive_sbatch_directive", default=False)
    assert (one.keys, one.value) == (("srtslurm", "use_exclusive_sbatch_directive"), False)


def test_the_table_of_a_value_is_beside_it() -> None:
    (ref,) = settings(RunnerFile(Document("x.yaml", TEXT)), "lanes.[].ref")
    assert (ref.table.repository, ref.table.ref) == ("nvidia", ref.value)
