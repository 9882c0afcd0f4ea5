"""The store and a registry together: what is asked when, and what the answers lead to."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.core.errors import ImageError
from launcher.image import store
from launcher.image.reference import PlannedImage, Reference, refreshed_name
from launcher.image.squash import Sidecar, file_hash
from tests.commands import ScriptedCommands, real_commands
from tests.image.registries import FakeRegistry, fake_registry
from tests.image.support import Store, registry_for, request, small_image


@pytest.fixture
def served() -> Iterator[FakeRegistry]:
    with fake_registry() as registry:
        yield registry


@pytest.fixture
def wanted(served: FakeRegistry, tmp_path: Path) -> PlannedImage:
    (tmp_path / "images").mkdir()
    return request(
        tmp_path, reference=f"{served.address}/a/b:1", name="a_b_1.sqsh", architecture="x86_64", where="matrix.yaml:7"
    )


class AskingStore:
    """A store that asks the served registry, and whose processes are counted."""

    def __init__(self, served: FakeRegistry, runner: ScriptedCommands | None = None) -> None:
        self.runner = runner or real_commands()
        registry = registry_for(served.environment(), sleep=lambda seconds: None, timeout=2)
        self.ensure = Store(self.runner, registry=registry).ensure

    @property
    def imported(self) -> list[str]:
        return [argv[-1] for argv in self.runner.calls if "import" in argv]


def test_an_image_is_imported_by_the_digest_that_the_registry_told(served: FakeRegistry, wanted: PlannedImage) -> None:
    index = served.add("a/b", "1", "amd64", "arm64")
    store = AskingStore(served)
    record = store.ensure(wanted)
    assert (record.how, record.sidecar.index, record.notes) == ("imported", index, ())
    assert store.imported == [f"docker://{served.address}#a/b:{record.sidecar.digest}"]
    assert record.sidecar.digest not in (None, index)
    note = Sidecar.read(wanted.squash_path)
    assert note is not None
    assert (note.digest, note.architecture, note.uri) == (record.sidecar.digest, "amd64", wanted.uri)
    assert note.hash == file_hash(wanted.squash_path)


def test_a_hit_costs_one_question(served: FakeRegistry, wanted: PlannedImage) -> None:
    served.add("a/b", "1", "amd64")
    AskingStore(served).ensure(wanted)
    for policy in ("keep", "refresh", "fail"):
        served.asked.clear()
        record = AskingStore(served, ScriptedCommands()).ensure(replace(wanted, moved_tag=policy))
        assert (record.how, record.notes) == ("hit", ())
        assert served.asked == ["HEAD /v2/a/b/manifests/1"]


def test_a_kept_image_does_not_wait_for_its_registry(
    served: FakeRegistry, wanted: PlannedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "TAG_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        reference = f"127.0.0.1:{silent.getsockname()[1]}/a/b:1"
        small_image(wanted.squash_path)
        image = replace(wanted, reference=reference, uri=Reference.parse(reference).uri)
        began = time.monotonic()
        record = AskingStore(served, ScriptedCommands()).ensure(image)
        assert 0.2 <= time.monotonic() - began < 10
        assert record.notes == ("the registry did not say within 0.2 s what the tag names now",)


@pytest.mark.parametrize(
    ("architecture", "says"), [("aarch64", "is for amd64, and the nodes need arm64"), ("x86_64", "404")]
)
def test_what_cannot_be_had_is_an_error_before_any_process(
    served: FakeRegistry, wanted: PlannedImage, architecture: str, says: str
) -> None:
    if says != "404":
        served.add("a/b", "1", "amd64")
    with pytest.raises(ImageError, match=says) as caught:
        AskingStore(served, ScriptedCommands()).ensure(replace(wanted, architecture=architecture))
    assert (caught.value.where, caught.value.exit_code) == ("matrix.yaml:7", 3)
    assert list(wanted.squash_path.parent.iterdir()) == []


def test_an_unreachable_registry_is_a_fact(served: FakeRegistry, wanted: PlannedImage) -> None:
    served.faults = [(503, {})] * 99
    store = AskingStore(served)
    record = store.ensure(wanted)
    assert record.how == "imported", "enroot may have another way there"
    assert record.notes[0].startswith("not looked up before the import: 127.0.0.1:")
    assert store.imported == [wanted.uri]
    again = AskingStore(served, ScriptedCommands()).ensure(replace(wanted, moved_tag="fail"))
    assert again.how == "hit"
    assert again.notes[0].startswith("whether the tag names another image now is not known")


def test_an_image_that_cannot_fit_is_refused_before_any_process(served: FakeRegistry, wanted: PlannedImage) -> None:
    served.add("a/b", "1", "amd64", layers=(2**50,))
    with pytest.raises(ImageError, match=r"an image of 1048576.0 GiB compressed needs 2621440.0 GiB"):
        AskingStore(served, ScriptedCommands()).ensure(wanted)


def moved(served: FakeRegistry, wanted: PlannedImage) -> tuple[str | None, bytes]:
    served.add("a/b", "1", "amd64", "arm64")
    before = AskingStore(served).ensure(wanted)
    served.add("a/b", "1", "amd64", "arm64", layers=(7,))
    return before.sidecar.digest, wanted.squash_path.read_bytes()


def test_a_tag_that_moved_is_refreshed_under_a_new_name(served: FakeRegistry, wanted: PlannedImage) -> None:
    old, content = moved(served, wanted)
    store = AskingStore(served)
    record = store.ensure(replace(wanted, moved_tag="refresh"))
    assert record.how == "imported"
    assert record.squash == refreshed_name(wanted.squash_path, record.sidecar.digest or "")
    assert record.notes == (f"a_b_1.sqsh is of {old}, and the tag names {record.sidecar.digest} now",)
    assert wanted.squash_path.read_bytes() == content, "a running job may map it"
    assert AskingStore(served, ScriptedCommands()).ensure(wanted).squash == wanted.squash_path
    again = AskingStore(served, ScriptedCommands()).ensure(replace(wanted, moved_tag="refresh"))
    assert (again.how, again.squash) == ("hit", record.squash)


def test_a_tag_that_moved_fails_where_the_runner_wants_it(served: FakeRegistry, wanted: PlannedImage) -> None:
    old, _ = moved(served, wanted)
    with pytest.raises(ImageError, match=f"is of {old}, and the tag names sha256") as caught:
        AskingStore(served, ScriptedCommands()).ensure(replace(wanted, moved_tag="fail"))
    assert "images.moved-tag" in (caught.value.hint or "")


def test_an_index_that_changed_for_other_platforms_is_no_move(served: FakeRegistry, wanted: PlannedImage) -> None:
    served.add("a/b", "1", "amd64")
    before = AskingStore(served).ensure(wanted)
    kind, content = served.documents["a/b/manifests/1"]
    digest = before.sidecar.digest
    index = json.dumps({"manifests": [{"digest": digest, "platform": {"architecture": "amd64"}}]}).encode()
    served.documents["a/b/manifests/1"] = ("application/vnd.oci.image.index.v1+json", index)
    served.documents[f"a/b/manifests/{digest}"] = (kind, content)
    assert AskingStore(served, ScriptedCommands()).ensure(replace(wanted, moved_tag="fail")).notes == ()


def test_of_a_file_that_bash_made_no_digest_is_known(served: FakeRegistry, wanted: PlannedImage) -> None:
    named = served.add("a/b", "1", "amd64")
    small_image(wanted.squash_path)
    record = AskingStore(served, ScriptedCommands()).ensure(replace(wanted, moved_tag="refresh"))
    assert record.how == "adopted"
    assert record.notes == (f"the digest of a_b_1.sqsh was never recorded; the tag names {named} now",)


def test_a_refreshed_name_does_not_grow() -> None:
    first = refreshed_name(Path("/x/a_1.sqsh"), "sha256:" + "ab" * 32)
    assert first == Path("/x/a_1@abababababab.sqsh")
    assert refreshed_name(first, "sha256:" + "cd" * 32) == Path("/x/a_1@cdcdcdcdcdcd.sqsh")
