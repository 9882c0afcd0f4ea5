"""Figures of docs/images.md: ``python -m scripts.measurements.images hit|compressors|import [TREE [ROUNDS]]``.

``import`` alternates a bare `enroot import`, the same followed by fsync of its file, and `launcher image import`; it
needs docker-registry and skopeo, and enroot on PATH: without it the rehearsal's stand-in is used, and that is said.
What each spends beside its own `enroot import` is the steadier figure: mksquashfs varies by 10 % from one to the next.
CPU seconds (user and system) are of all child processes; medians of the rounds.
"""

from __future__ import annotations

import argparse
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
from statistics import median

from launcher.image.inventory import adopt
from launcher.image.reference import Reference
from launcher.rehearsal.tools import environment as environment_of_stand_ins
from launcher.runner.schema import Images
from tests.commands import ScriptedCommands
from tests.image.docker_registry import RealRegistry, real_registry
from tests.image.support import image_store, request

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
    (place / "images").mkdir()
    store, wanted = image_store(ScriptedCommands()), request(place, reference=REFERENCE)
    path = wanted.squash_path
    squash(tree, path, OPTIONS["ours"])
    adopt(path, REFERENCE, wanted.uri)
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
    found: dict[str, list[tuple[float, float]]] = {title: [] for title in OPTIONS}
    sizes = {}
    for _ in range(rounds):
        for title, options in OPTIONS.items():
            path = place / "x.sqsh"
            found[title].append(squash(tree, path, options))
            sizes[title] = path.stat().st_size
    for title, pairs in found.items():
        print(f"{title} ({OPTIONS[title]}): {middle(pairs)}, {sizes[title] / 1e6:.0f} MB")


def middle(pairs: Sequence[tuple[float, float]]) -> str:
    """Medians of wall and CPU seconds."""
    walls, processor = zip(*pairs, strict=True)
    return f"wall {median(walls):.2f} s, CPU {median(processor):.2f} s"


_TIMED = """#!/bin/bash
if [ "$1" != import ]; then exec {enroot} "$@"; fi
TIMEFORMAT='%R %U %S'
{{ time {enroot} "$@" 2>&3; }} 3>&2 2>>{times}
"""


def shim(place: Path, path: str) -> tuple[str, Path]:
    """A PATH with an enroot that writes down what each import took, and that file."""
    directory, times = place / "shim", place / "times"
    directory.mkdir()
    text = _TIMED.format(enroot=shutil.which("enroot", path=path), times=times)
    (directory / "enroot").write_text(text)
    (directory / "enroot").chmod(0o755)
    return f"{directory}{os.pathsep}{path}", times


def beside(pair: tuple[float, float], times: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a trial without those of the import in it, which was the last."""
    wall, user, system = map(float, times.read_text().splitlines()[-1].split())
    return pair[0] - wall, pair[1] - user - system


BARE, SYNCED, OURS = "enroot import", "enroot import && sync FILE", "launcher image import"


def overhead(place: Path, tree: str, rounds: int) -> None:
    """`launcher image import` against `enroot import`: same image, same registry, same options."""
    environ = dict(os.environ)
    if shutil.which("enroot") is None:
        print("enroot is not on PATH: its stand-in, which compresses nothing, so that shares say nothing")
        environ["PATH"] = environment_of_stand_ins(place, "slurm", environ)["PATH"]
    environ["PATH"], times = shim(place, environ["PATH"])
    with real_registry(place / "registry", account=False) as served:
        push(served, tree)
        reference = f"{served.address}/{REFERENCE}"
        found: dict[str, list[tuple[float, float]]] = {BARE: [], SYNCED: [], OURS: []}
        extra: dict[str, list[tuple[float, float]]] = {BARE: [], SYNCED: [], OURS: []}
        for n in range(rounds):
            order = list(found) if n % 2 else list(reversed(found))
            for what in order:
                work = place / "work"
                shutil.rmtree(work, ignore_errors=True)
                for name in ("images", "temp", "cache", "data", "runtime"):
                    (work / name).mkdir(parents=True)
                own = {f"ENROOT_{x.upper()}_PATH": str(work / x) for x in ("temp", "cache", "data", "runtime")}
                given = {**environ, **served.environment, **own, "TMPDIR": str(work / "temp")}
                given |= {"ENROOT_SQUASH_OPTIONS": OPTIONS["ours"], "ENROOT_TRANSFER_RETRIES": "3"}
                squashed, uri = str(work / "images/x.sqsh"), Reference.parse(reference).uri
                argv = ["enroot", "import", "-o", squashed, uri]
                if what == SYNCED:
                    argv = ["sh", "-c", '"$@" && sync "$0"', squashed, *argv]
                elif what == OURS:
                    argv = [sys.executable, "-m", "launcher", "image", "import", reference]
                    argv += ["--directory", str(work / "images"), "--state", str(place / "state")]
                os.sync()
                found[what].append(timed(argv, given))
                extra[what].append(beside(found[what][-1], times))
                print(f"  {what}: {middle(found[what][-1:])}; beside enroot {middle(extra[what][-1:])}", flush=True)
        for what, pairs in found.items():
            print(f"{what}: {middle(pairs)}; beside enroot {middle(extra[what])}")
        part = [median(x[i] for x in extra[OURS]) / median(x[i] for x in found[BARE]) for i in (0, 1)]
        print(f"{OURS}, beside its enroot, of `{BARE}`: wall {part[0]:.1%}, CPU {part[1]:.1%}")
        for what in (BARE, SYNCED):
            share = [median(x[i] for x in found[OURS]) / median(x[i] for x in found[what]) - 1 for i in (0, 1)]
            print(f"over `{what}`: wall {share[0]:+.1%}, CPU {share[1]:+.1%}")


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


def main() -> None:
    """Print one figure."""
    figures = {"hit": hit, "compressors": compressors, "import": overhead}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=figures)
    parser.add_argument("tree", nargs="?", default="/usr/lib/x86_64-linux-gnu")
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    asked = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="launcher-figures-"))
    try:
        figures[asked.figure](place, asked.tree, asked.rounds)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
