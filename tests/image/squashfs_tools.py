"""Real squash files, by squashfs-tools, for the tests that need them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

needs_squashfs_tools = pytest.mark.skipif(
    not (shutil.which("mksquashfs") and shutil.which("unsquashfs")), reason="squashfs-tools are not installed"
)


def mksquashfs(path: Path, *options: str, size: int = 300_000) -> Path:
    """A real squash file with ``size`` bytes in it that do not compress."""
    tree = path.with_name(f"{path.name}.tree")
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "rc").write_text("# enroot-provenance: docker://x\n")
    (tree / "data").write_bytes(os.urandom(size))
    subprocess.run(
        ["mksquashfs", str(tree), str(path), "-noappend", "-no-progress", "-quiet", *options],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    return path
