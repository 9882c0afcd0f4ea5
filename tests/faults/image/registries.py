"""(5) What a registry may answer: by a server of ours that spoils answers, and by Debian's docker-registry."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from launcher.core.errors import ImageError
from launcher.image.reference import PlannedImage, Reference
from launcher.image.registry import Registry
from launcher.image.squash import Sidecar
from tests.commands import real_commands
from tests.faults.image import Count
from tests.image.docker_registry import INSTALLED, real_registry
from tests.image.registries import fake_registry
from tests.image.support import Store, registry_for, request

Fault = tuple[int, dict[str, str]] | str
ONCE, FOR_EVER = 1, 99
CASES: list[tuple[str, Fault, int, str]] = [
    # what, the fault, how often, what must come of it
    ("401", (401, {}), FOR_EVER, "refused at once"),
    ("404", (404, {}), FOR_EVER, "refused at once"),
    ("429 with Retry-After: 3, once", (429, {"Retry-After": "3"}), ONCE, "waited 3 s, imported"),
    ("429 with Retry-After: 21600", (429, {"Retry-After": "21600"}), FOR_EVER, "refused at once"),
    ("429 for ever", (429, {}), FOR_EVER, "waited 7 s, refused"),
    ("503 once", (503, {}), ONCE, "waited 1 s, imported"),
    ("503 for ever", (503, {}), FOR_EVER, "waited 7 s, imported without"),
    ("cut at 50 % once", "cut", ONCE, "waited 1 s, imported"),
    ("cut at 50 % for ever", "cut", FOR_EVER, "waited 7 s, imported without"),
    ("wrong digest once", "wrong", ONCE, "waited 1 s, imported"),
    ("wrong digest for ever", "wrong", FOR_EVER, "waited 7 s, refused"),
]


def registries(place: Path) -> list[Count]:
    """Each fault at the index, at the manifest and at the hit; then the good path."""
    counts = [_spoiled(place, *case) for case in CASES]
    counts.append(_good(place / "real") if INSTALLED else Count("left out: docker-registry or skopeo is not installed"))
    return counts


def _spoiled(place: Path, what: str, fault: Fault, times: int, wanted: str) -> Count:
    count = Count(f"{what}: {wanted}")
    for position in range(2):  # the index, the platform's manifest
        shutil.rmtree(place / "spoiled", ignore_errors=True)
        with fake_registry() as served:
            served.add("a/b", "1", "amd64", "arm64")
            image = _image(place / "spoiled", served.address)
            if position:
                served.documents.pop("a/b/manifests/none", None)
                served.faults = ["", *[fault] * times]
            else:
                served.faults = [fault] * times
            how = _ensure(image, served.environment())
            count.add("as it should be", None if how == wanted else f"at answer {position}: {how}")
            if "imported" not in how:
                continue
            served.faults = [fault] * times
            again = _ensure(replace(image, moved_tag="refresh"), served.environment())
            count.add("hit all the same", None if again.endswith("hit") else f"with an image there: {again}")
    return count


def _ensure(image: PlannedImage, environ: dict[str, str]) -> str:
    """What came of it in words, with the waiting."""
    slept: list[float] = []
    runner = real_commands()
    registry = registry_for(environ, sleep=slept.append, timeout=5)
    try:
        record = Store(runner, registry=registry).ensure(image)
    except ImageError as error:
        if runner.calls or list(image.squash_path.parent.iterdir()):
            return f"refused after something was done: {error}"
        return f"waited {sum(slept):.0f} s, refused" if slept else "refused at once"
    without = " without" if record.how == "imported" and record.notes else ""
    return (f"waited {sum(slept):.0f} s, " if slept else "") + record.how + without


def _image(place: Path, address: str) -> PlannedImage:
    (place / "images").mkdir(parents=True)
    return request(place, reference=f"{address}/a/b:1", name="a_b_1.sqsh", architecture="x86_64")


def _good(place: Path) -> Count:
    """Debian's registry, with an account: what skopeo says of the same image."""
    count = Count("docker-registry with an account, against skopeo")
    with real_registry(place / "registry") as served:
        served.push("a/b:1", "amd64", "arm64")
        served.push("a/c:1", "arm64")
        image = _image(place, served.address)

        def asking(name: str, architecture: str, environ: dict[str, str] = served.environment) -> Registry:
            return Registry(Reference.parse(f"{served.address}/{name}"), environ, architecture)

        arm = asking("a/b:1", "aarch64")
        found = arm.manifest()
        count.add("index", None if found.index == served.digest("a/b:1") else f"{found} is not skopeo's")
        same = served.digest(f"a/b@{found.digest}") == found.digest
        count.add("manifest", None if same else f"{found.digest} is not skopeo's")
        fact, _ = arm.check_tag(image.squash_path, Sidecar("", "", "imported", 0, 0, 0, index=found.index))
        count.add("HEAD", fact or None)
        one = asking("a/c:1", "aarch64").manifest()
        count.add("one platform", None if (one.architecture, one.index) == ("arm64", None) else str(one))
        for name, environ, why in (
            ("a/c:1", served.environment, "the nodes need amd64"),
            ("a/none:1", served.environment, "404"),
            ("a/b:1", {**served.environment, "ENROOT_CONFIG_PATH": "/nonexistent"}, "401"),
        ):
            try:
                asking(name, "x86_64", environ).manifest()
                count.add(why, f"{name} was not refused")
            except ImageError as error:
                count.add(why, None if why in str(error) else str(error))
        registry = asking("a/b:1", "x86_64")
        amd = registry.manifest()
        served.push("a/b:1", "amd64", "arm64", content=b"another")
        known = Sidecar(image.reference, image.uri, "imported", 0, 0, 0, digest=amd.digest, index=amd.index)
        _, moved_to = registry.check_tag(image.squash_path, known)
        count.add("moved tag", None if moved_to else "a move was not seen")
    return count
