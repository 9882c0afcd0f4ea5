"""A tag that names another image by now, through whole runs: which file each policy has the job use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from launcher.core.shipped import shipped
from launcher.image.reference import refreshed_name
from launcher.image.squash import Sidecar
from tests.image.registries import FakeRegistry, fake_registry
from tests.run.driving import KEY, InProcessUser


@pytest.fixture
def served() -> Iterator[FakeRegistry]:
    with fake_registry() as registry:
        yield registry


class RegistryUser(InProcessUser):
    """A cluster whose images come from a registry on this machine."""

    def policy(self, policy: str) -> None:
        (self.root / "runners").mkdir(exist_ok=True)
        text = (shipped("runners") / "local.yaml").read_text()
        assert text.count("\nimages:\n") == 1
        changed = text.replace("\nimages:\n", f"\nimages:\n  moved-tag: {policy}\n")
        (self.root / "runners/local.yaml").write_text(changed)

    def once(self, run_id: str, image: str, code: int = 0) -> str:
        """One run of a row whose image is replaced."""
        matrix, recipe = "matrix.yaml", "vllm/minimax-m3-gb200-fp8/1k1k.yaml"
        theirs = yaml.safe_load((shipped("recipes") / matrix).read_text())[KEY]["image"]
        for name in (matrix, recipe):
            path = self.root / "recipes" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text((shipped("recipes") / name).read_text().replace(theirs, image))
        where = ("--runners", str(self.root / "runners"), "--recipes", str(self.root / "recipes"))
        return self.run(*where, "--matrix", str(self.matrix), "--conc", "4", "--verbose", run_id=run_id, code=code)

    @property
    def matrix(self) -> Path:
        return self.root / "recipes/matrix.yaml"

    def mapped(self, run_id: str) -> set[str]:
        """The squash files of the engine that the run's srtslurm.yaml names, which are the plan's."""
        plan = json.loads((self.state / "runs" / run_id / "plan.json").read_text())
        written = yaml.safe_load((Path(plan["srt_slurm"]["root"]) / "srtslurm.yaml").read_text())
        assert written["containers"] == plan["srtslurm"]["containers"]
        return {value for value in written["containers"].values() if "127.0.0.1" in value}


def test_keep_refresh_and_fail(tmp_path: Path, served: FakeRegistry) -> None:
    user = RegistryUser(tmp_path, extra={**served.environment(), "LAUNCHER_REHEARSAL_SECONDS": "0.01"})
    image = f"{served.address}/a/b:1"

    def importing() -> str:
        return user.launcher("image", "import", image, "--runner", "local", "--runners", str(user.root / "runners"))

    served.add("a/b", "1", "amd64")
    user.policy("keep")
    importing()
    (squash,) = (user.state / "squash").glob("*.sqsh")
    note = Sidecar.read(squash)
    assert note is not None
    old, content = note.digest, squash.read_bytes()
    new = served.add("a/b", "1", "amd64", layers=(7,))
    assert old != new
    both = f"{squash.name} is of {old}, and the tag names {new} now"

    assert f"{both}; it is kept" in importing()
    assert [p.name for p in (user.state / "squash").glob("*.sqsh")] == [squash.name]

    user.policy("fail")
    output = user.once("fails", image, code=3)
    assert both in output and "images.moved-tag" in output
    row = next(n for n, line in enumerate(user.matrix.read_text().splitlines(), 1) if line.startswith(f"{KEY}:"))
    assert f"{user.matrix}:{row + 1}: {squash.name}" in output, "the line that names the image"

    user.policy("refresh")
    output = user.once("refreshes", image)
    refreshed = refreshed_name(squash, new)
    assert both in output and "imported in" in output
    assert user.mapped("refreshes") == {str(refreshed)}
    assert squash.read_bytes() == content and Sidecar.read(squash) == note, (
        "the bash fleet's name, and jobs that map it"
    )
    served.asked.clear()
    assert "hit in" in importing()
    assert served.asked == ["HEAD /v2/a/b/manifests/1", "GET /v2/a/b/manifests/1", f"GET {served.asked[2][4:]}"]
    assert not list((user.state / "squash/.uses").glob("*/*")), "all of these runs are settled"
