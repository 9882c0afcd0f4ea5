"""(6) Truncations and flipped bytes of real squash files: what each level of check sees."""

from __future__ import annotations

import os
import shutil
import struct
from collections import Counter
from pathlib import Path

from launcher.core.errors import ImageError
from launcher.core.process import run
from launcher.image.inventory import adopt
from launcher.image.squash import Sidecar, check_lists, file_hash, inspect
from tests.faults.image import Count

COMPRESSORS = {
    "zstd": ("-comp", "zstd", "-Xcompression-level", "3", "-b", "1M"),
    "lzo -noD": ("-comp", "lzo", "-noD"),
    "gzip": ("-comp", "gzip"),
}
LEVELS = ("record", "superblock", "lists", "extraction", "hash")


def damage(place: Path, trials: int) -> list[Count]:
    """Truncations, and ``trials`` flipped bytes for each compressor, in equal numbers in each part of the file."""
    if not (shutil.which("mksquashfs") and shutil.which("unsquashfs")):
        return [Count("left out: squashfs-tools are not installed")]
    counts = []
    for title, options in COMPRESSORS.items():
        counts += _file(place / title.replace(" ", "-"), title, options, trials)
    return counts


def _file(place: Path, title: str, options: tuple[str, ...], trials: int) -> list[Count]:
    place.mkdir(parents=True)
    whole = _make(place, options)
    adopt(whole, "a/b:1", "docker://registry-1.docker.io#a/b:1")
    content, times = whole.read_bytes(), whole.stat()
    used, inodes = struct.unpack_from("<Q", content, 40)[0], struct.unpack_from("<Q", content, 64)[0]
    size = len(content)
    cuts = {0, 95, 96, size // 2, used - 4096, used - 1, used, size - 4096, size - 1}
    cases: dict[str, list[bytes]] = {"cut short": [content[:cut] for cut in sorted(cuts) if 0 <= cut < size]}
    regions = {
        "byte flipped in the superblock": (0, 96),
        "byte flipped in the data": (96, inodes),
        "byte flipped in the lists": (inodes, used),
        "byte flipped in the padding": (used, size),
    }
    for name, (start, end) in regions.items():
        number = min(end - start, max(1, trials // len(regions)))
        cases[name] = [_flipped(content, start + (end - start) * n // number) for n in range(number)]
    counts = []
    for name, damaged in cases.items():
        count = Count(f"{title}: {name}")
        caught: Counter[str] = Counter()
        for bad in damaged:
            whole.write_bytes(bad)
            os.utime(whole, ns=(times.st_atime_ns, times.st_mtime_ns))  # as decay does, not as a writer
            seen = _levels(whole, place, bad, content)
            caught.update(level for level in LEVELS if seen[level])
            count.trials += 1
            if not seen["hash"]:
                count.wrong.append(f"{name}: not seen by the hash")
        count.seen.update({f"seen by {level}": caught[level] for level in LEVELS})
        counts.append(count)
    whole.write_bytes(content)
    os.utime(whole, ns=(times.st_atime_ns, times.st_mtime_ns))
    control = _levels(whole, place, content, content)
    sound = Count(f"{title}: whole, as it was made")
    sound.add("passed by all", f"a whole file is refused: {control}" if any(control.values()) else None)
    return [*counts, sound]


def _make(place: Path, options: tuple[str, ...]) -> Path:
    tree = place / "tree"
    for n in range(40):
        (tree / f"d{n % 7}").mkdir(parents=True, exist_ok=True)
        (tree / f"d{n % 7}" / f"f{n}").write_bytes(os.urandom(n * 40) + b"some text that compresses " * n * 20)
    (tree / "large").write_bytes(os.urandom(300_000))
    path = place / "x.sqsh"
    done = run(["mksquashfs", str(tree), str(path), "-noappend", "-no-progress", "-quiet", *options], timeout=60)
    assert done.ok, str(done)
    return path


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x5A]) + content[at + 1 :]


def _levels(path: Path, place: Path, bad: bytes, content: bytes) -> dict[str, bool]:
    """Which levels see it: what is cheap first, and what follows even if an earlier one saw it."""
    note = Sidecar.read(path)
    assert note is not None and note.hash is not None
    try:
        block = inspect(path)
    except ImageError:
        block = None
    try:
        check_lists(path)
        damaged_lists = False
    except ImageError:
        damaged_lists = True
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    extracted = run(["unsquashfs", "-no-progress", "-d", str(out), str(path)], timeout=60)
    same = extracted.ok and run(["diff", "-r", str(place / "tree"), str(out)], timeout=60).ok
    return {
        "record": note.size != len(bad) if block is None else not note.fits(block),
        "superblock": block is None,
        "lists": damaged_lists,
        "extraction": not extracted.ok or (not same and bad == content),
        "hash": file_hash(path) != note.hash,
    }
