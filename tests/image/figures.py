"""Figures of docs/images.md: ``python -m tests.image.figures [hit|compressors|import] TREE [ROUNDS]``.

``import`` needs enroot, docker-registry and skopeo. CPU seconds are of all child processes; of rounds the best counts.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.image.inventory import adopt
from launcher.image.reference import Reference
from launcher.image.request import ImageRequest
from launcher.image.store import ImageStore
from launcher.runner.schema import Images
from tests.image.docker_registry import RealRegistry, real_registry
from tests.image.support import Scripted, never

OPTIONS = {"enroot's default": "-comp lzo -noD -exit-on-error", "ours": Images(directory="/").squash_options}
REFERENCE = "a/b:1"


def timed(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Wall and CPU seconds of a command that must succeed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(argv, env=environ, capture_output=True, text=True)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-2000:]
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def squash(tree: str, path: Path, options: str) -> tuple[float, float]:
    path.unlink(missing_ok=True)
    return timed(["mksquashfs", tree, str(path), "-noappend", "-no-progress", "-quiet", *options.split()])


def hit(place: Path, tree: str, rounds: int) -> None:
    """The decision that nothing has to be done, against what `unsquashfs -l` of the same file takes."""
    path = place / "x.sqsh"
    squash(tree, path, OPTIONS["ours"])
    uri = Reference.parse(REFERENCE).uri
    adopt(path, REFERENCE, uri)
    store, wanted = ImageStore(Scripted(never)), ImageRequest(REFERENCE, uri, path)
    ours = []
    for _ in range(200 * rounds):
        began = time.perf_counter()
        assert store.ensure(wanted).how == "hit"
        ours.append(time.perf_counter() - began)
    ours.sort()
    theirs = sorted(timed(["unsquashfs", "-l", str(path)])[0] for _ in range(10 * rounds))
    print(f"{path.stat().st_size / 1e6:.0f} MB")
    for what, seconds in (("hit decision", ours), ("unsquashfs -l", theirs)):
        print(f"{what}: median {seconds[len(seconds) // 2] * 1e3:.3f} ms, best {seconds[0] * 1e3:.3f} ms")


def compressors(place: Path, tree: str, rounds: int) -> None:
    """The same tree by enroot's default and by ours."""
    for title, options in OPTIONS.items():
        path = place / "x.sqsh"
        best = min((squash(tree, path, options) for _ in range(rounds)), key=lambda pair: pair[1])
        print(f"{title} ({options}): wall {best[0]:.1f} s, CPU {best[1]:.1f} s, {path.stat().st_size / 1e6:.0f} MB")


def overhead(place: Path, tree: str, rounds: int) -> None:
    """`launcher image import` against `enroot import`: same image, same registry, same options."""
    with real_registry(place / "registry", account=False) as served:
        push(served, tree)
        reference = f"{served.address}/{REFERENCE}"
        found: dict[str, list[tuple[float, float]]] = {"enroot import": [], "launcher image import": []}
        for n in range(2 * rounds):
            what = list(found)[n % 2]
            work = place / "work"
            shutil.rmtree(work, ignore_errors=True)
            for name in ("images", "temp", "cache", "data", "runtime"):
                (work / name).mkdir(parents=True)
            own = {f"ENROOT_{x.upper()}_PATH": str(work / x) for x in ("temp", "cache", "data", "runtime")}
            environ = {**os.environ, **served.environment, **own, "TMPDIR": str(work / "temp")}
            environ["ENROOT_SQUASH_OPTIONS"] = OPTIONS["ours"]
            if what == "enroot import":
                argv = ["enroot", "import", "-o", str(work / "images/x.sqsh"), Reference.parse(reference).uri]
            else:
                argv = [sys.executable, "-m", "launcher", "image", "import", reference]
                argv += ["--directory", str(work / "images"), "--state", str(place / "state")]
            found[what].append(timed(argv, environ))
        for what, pairs in found.items():
            print(f"{what}: wall {min(w for w, _ in pairs):.2f} s, CPU {min(c for _, c in pairs):.2f} s")


def push(served: RealRegistry, tree: str) -> None:
    """Push a tree as an image of one layer, in Docker's format: enroot's first question is answered with schema 1."""
    place = served.place / "layout"
    blobs = place / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    tar = served.place / "layer.tar"
    subprocess.run(["tar", "-C", "/", "-cf", str(tar), tree.lstrip("/")], check=True, stderr=subprocess.DEVNULL)

    def kept(path: Path) -> tuple[str, int]:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        name = digest.hexdigest()
        size = path.stat().st_size
        path.rename(blobs / name)
        return name, size

    packed = served.place / "layer.tar.gz"
    with tar.open("rb") as plain, gzip.open(packed, "wb", 1) as compressed:
        shutil.copyfileobj(plain, compressed, 1 << 20)
    layer, size = kept(packed)
    inner, _ = kept(tar)
    (blobs / inner).unlink()

    def blob(kind: str, value: object) -> dict[str, object]:
        data = json.dumps(value).encode()
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{name}", "size": len(data)}

    day = "2020-01-01T00:00:00Z"
    configuration = {
        "architecture": "amd64",
        "os": "linux",
        "created": day,
        "config": {"Cmd": ["sh"]},
        "history": [{"created": day, "created_by": "figures"}],
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{inner}"]},
    }
    layers = [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": f"sha256:{layer}", "size": size}]
    kind = "application/vnd.oci.image.manifest.v1+json"
    config = blob("application/vnd.oci.image.config.v1+json", configuration)
    entry = blob(kind, {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers})
    entry["annotations"] = {"org.opencontainers.image.ref.name": "x"}
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    destination = f"docker://{served.address}/{REFERENCE}"
    served.skopeo("copy", "--format", "v2s2", "--dest-tls-verify=false", f"oci:{place}:x", destination)
    shutil.rmtree(place)


def main(what: str, tree: str = "/usr/lib/x86_64-linux-gnu", rounds: str = "1") -> None:
    """Print one figure."""
    place = Path(tempfile.mkdtemp(prefix="launcher-figures-"))
    try:
        {"hit": hit, "compressors": compressors, "import": overhead}[what](place, tree, int(rounds))
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
