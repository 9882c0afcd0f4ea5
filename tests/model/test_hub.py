"""A Hugging Face repository as a source, from a server that behaves as the hub does on its bad days."""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from launcher.core.errors import ModelError
from launcher.core.stop import Stop
from launcher.model.destination import staging_directories
from launcher.model.manifest import Manifest
from launcher.model.source import MAX_ATTEMPTS, HubSource
from launcher.model.stage import stage
from tests.model.checkpoints import checkpoint
from tests.model.hub_server import REPOSITORY, SHA, Hub, hub
from tests.model.test_stage import content, dead

pytest.importorskip("huggingface_hub")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub(checkpoint(tmp_path / "remote")) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield running


class Naps:
    def __init__(self) -> None:
        self.taken: list[float] = []

    def __call__(self, seconds: float) -> bool:
        self.taken.append(seconds)
        return False


def test_a_repository_at_a_commit(server: Hub, tmp_path: Path) -> None:
    done = stage(HubSource(REPOSITORY, SHA), tmp_path / "M")
    assert content(tmp_path / "M") == content(server.directory)
    assert (done.manifest.source, done.manifest.revision) == (f"hf:{REPOSITORY}", SHA)
    shards = [entry for entry in done.manifest.files if entry.path.endswith(".safetensors")]
    assert all(entry.sha256 for entry in shards)
    before = len(server.requests)
    assert stage(HubSource(REPOSITORY, SHA), tmp_path / "M").how == "there"
    assert len(server.requests) == before + 1  # the listing


def test_a_branch_is_pinned(server: Hub, tmp_path: Path) -> None:
    assert HubSource(REPOSITORY, "main").revision == SHA
    with pytest.raises(ModelError, match="@v9: the hub does not have it"):
        HubSource(REPOSITORY, "v9")


def test_large_files_come_by_ranges(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.model.copy.PART_SIZE", 64)
    stage(HubSource(REPOSITORY, SHA), tmp_path / "M")
    assert content(tmp_path / "M") == content(server.directory)
    assert {"bytes=0-63", "bytes=64-127"} <= {said for _, said in server.requests}


def test_429_is_waited_for_as_long_as_it_says(server: Hub, tmp_path: Path) -> None:
    naps = Naps()
    server.answers = [(429, {"Retry-After": "7"})]
    source = HubSource(REPOSITORY, SHA, stop=Stop(naps))
    server.answers = [
        (429, {"Retry-After": formatdate(usegmt=True)}),
        (429, {"RateLimit": '"resolvers";r=0;t=55'}),
        (503, {}),
    ]
    stage(source, tmp_path / "M", workers=1)
    assert naps.taken[0] == 7
    assert naps.taken[1] < 1
    assert naps.taken[2] == 55
    assert len(naps.taken) == 4
    assert content(tmp_path / "M") == content(server.directory)


def test_a_hub_that_stays_busy_is_given_up(server: Hub) -> None:
    server.answers = [(503, {})] * 100
    naps = Naps()
    with pytest.raises(ModelError, match=f"gave up after {MAX_ATTEMPTS} requests: HTTP 503"):
        HubSource(REPOSITORY, SHA, stop=Stop(naps))
    assert len(naps.taken) == MAX_ATTEMPTS - 1
    server.answers = [(429, {"Retry-After": "86400"})]
    with pytest.raises(ModelError, match="asks for 86400 s"):
        HubSource(REPOSITORY, SHA, stop=Stop(naps))


def test_cut_connections_go_on_where_they_ended(server: Hub, tmp_path: Path) -> None:
    server.cut = 3
    naps = Naps()
    stage(HubSource(REPOSITORY, SHA, stop=Stop(naps)), tmp_path / "M", workers=1)
    assert content(tmp_path / "M") == content(server.directory)
    assert len(naps.taken) == 3
    assert any(said and not said.startswith("bytes=0-") for _, said in server.requests)


def test_what_the_hub_states_of_the_content_is_checked(server: Hub, tmp_path: Path) -> None:
    server.wrong_sha256 = True
    with pytest.raises(ModelError, match=r"sha256 is .*, and .* was stated"):
        stage(HubSource(REPOSITORY, SHA), tmp_path / "M")
    assert not (tmp_path / "M").exists()
    server.wrong_sha256 = False
    dead(*staging_directories(tmp_path / "M"))
    assert stage(HubSource(REPOSITORY, SHA), tmp_path / "M").how == "staged"


def test_the_token_is_the_environments(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server.token = "hf_secret"
    with pytest.raises(ModelError, match="refuses") as refused:
        HubSource(REPOSITORY, SHA)
    assert "HF_TOKEN" in str(refused.value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    stage(HubSource(REPOSITORY, SHA), tmp_path / "M")
    manifest = Manifest.read(tmp_path / "M")
    assert manifest is not None
    assert "hf_secret" not in (tmp_path / "M" / ".complete.json").read_text()


def test_a_copy_of_a_staged_checkpoint_keeps_its_revision(server: Hub, tmp_path: Path) -> None:
    from launcher.model.source import DirectorySource

    stage(HubSource(REPOSITORY, SHA), tmp_path / "M")
    done = stage(DirectorySource(tmp_path / "M"), tmp_path / "node" / "M")
    assert done.manifest.revision == SHA
    assert stage(HubSource(REPOSITORY, SHA), tmp_path / "node" / "M").how == "there"
