#!/usr/bin/env python3
"""Give the vLLM of the MiniMax-M3 performance image two fixes that later images carry themselves.

1. FlashInfer's all-reduce workspace is created with one-shot support when it is the MNNVL one.
2. The prefill part of the sparse-attention top-k, a slice, is made contiguous before the kernels get it.

Run by minimax-m3-gb200-vllm-fixes.sh inside the container; needs nothing but Python. Every anchor of every file is
checked before the first byte is written: a vLLM that does not look as expected is left as it is, and the exit code
is 1. A vLLM that has both fixes already is a success. Several workers of one node may run this at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple


class Fix(NamedTuple):
    """In ``file`` (below the vllm package), the lines ``before`` become ``after``; ``before`` stands there once."""

    title: str
    file: str
    before: str
    after: str


FIXES = (
    Fix(
        "one-shot support in FlashInfer's MNNVL all-reduce workspace",
        "distributed/device_communicators/flashinfer_all_reduce.py",
        "            comm_backend=comm_backend,\n            group=group,\n",
        '            comm_backend=comm_backend,\n            force_oneshot_support=backend == "mnnvl",\n'
        "            group=group,\n",
    ),
    Fix(
        "contiguous prefill top-k of MiniMax-M3's sparse attention",
        "models/minimax_m3/nvidia/sparse_attention_msa.py",
        "            prefill_topk = topk[:, nd:num_tokens, :]\n",
        "            prefill_topk = topk[:, nd:num_tokens, :].contiguous()\n",
    ),
)


class CannotFix(Exception):
    """vLLM is not there, or does not look as the fixes expect."""


def package_root() -> Path:
    """The directory of the installed vllm package, found without importing it. Raises CannotFix."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        raise CannotFix(f"no vllm package for {sys.executable}")
    return Path(next(iter(found.submodule_search_locations)))


def fixed(source: str, fix: Fix) -> str | None:
    """The source with the fix, or None when it has the fix. Raises CannotFix for a missing or ambiguous anchor."""
    before, after = source.count(fix.before), source.count(fix.after)
    if (before, after) == (0, 1):
        return None
    if (before, after) != (1, 0):
        seen = "is missing" if before + after == 0 else f"is ambiguous: {before} unfixed and {after} fixed places"
        raise CannotFix(f"{fix.title}: the anchor {seen}")
    return source.replace(fix.before, fix.after)


def changes(root: Path) -> dict[Path, tuple[bytes, bytes]]:
    """What has to be written: file -> (content now, content wanted). Looks at everything, changes nothing."""
    wanted: dict[Path, tuple[bytes, bytes]] = {}
    problems = []
    for fix in FIXES:
        path = root / fix.file
        try:
            now = path.read_bytes()
            text = fixed(wanted.get(path, (now, now))[1].decode(), fix)
            if text is not None:
                compile(text, str(path), "exec")
                wanted[path] = (now, text.encode())
        except CannotFix as error:
            problems.append(f"{path}: {error}")
        except (OSError, SyntaxError, ValueError) as error:
            problems.append(f"{path}: {fix.title}: {error}")
    if problems:
        raise CannotFix("\n".join(problems))
    return wanted


def write(wanted: dict[Path, tuple[bytes, bytes]]) -> None:
    """Replace the files, each by one rename; when one cannot be, those already replaced get their content back."""
    ready: list[tuple[Path, Path]] = []
    done: list[Path] = []
    try:
        for path, (_, new) in wanted.items():
            ready.append((_written_beside(path, new), path))
        for temporary, path in ready:
            temporary.replace(path)
            done.append(path)
    except OSError as error:
        for path in done:
            with contextlib.suppress(OSError):
                _written_beside(path, wanted[path][0]).replace(path)
        raise CannotFix(f"{error}; nothing was changed") from error
    finally:
        for temporary, _ in ready:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def _written_beside(path: Path, content: bytes) -> Path:
    mode = stat.S_IMODE(path.stat().st_mode)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
    except OSError:
        Path(name).unlink()
        raise
    return Path(name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Patch the installed vLLM for MiniMax-M3 on GB200.")
    parser.add_argument("--root", type=Path, help="the vllm package's directory (default: the installed one)")
    options = parser.parse_args(arguments)
    try:
        root = options.root or package_root()
        wanted = changes(root)
        write(wanted)
    except CannotFix as error:
        print(f"vLLM was not changed:\n{error}", file=sys.stderr)
        return 1
    for fix in FIXES:
        print(f"{'fixed' if root / fix.file in wanted else 'has already'}: {fix.title}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
