"""Lustre striping: a file's layout is fixed when it is created, so it is set before the first byte is written.

A checkpoint of few large shards with one stripe each is read at the speed of one storage target. The defaults follow
common advice of sites (Lustre wiki, NERSC): small files on one target, files from 1 GiB on four, from 8 GiB on eight.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.core.process import CommandRunner, run
from launcher.model.copy import CreateFile

TIMEOUT = 60.0


@dataclass(frozen=True)
class Stripe:
    """Files of at least ``at_least`` bytes lie on ``count`` targets (-1: all), ``size`` on each in turn."""

    at_least: int
    count: int
    size: str = "4M"


DEFAULT = (Stripe(0, 1), Stripe(1 << 30, 4), Stripe(8 << 30, 8))


def striping(
    policy: Sequence[Stripe] = DEFAULT,
    *,
    log: Callable[[str], None] = lambda text: None,
    run: CommandRunner = run,
) -> Callable[[Path], CreateFile | None]:
    """What `launcher.model.stage.stage` takes as ``stripe``.

    The staging directory gets the layout of the smallest files as its default; a larger file is created by
    `lfs setstripe` before it is opened. Without `lfs` nothing is done. Where `lfs` refuses (the directory is not on
    Lustre) that is said once.
    """
    ordered = sorted(policy, key=lambda stripe: stripe.at_least)

    def begin(directory: Path) -> CreateFile | None:
        default = ordered[0] if ordered and ordered[0].at_least <= 0 else None
        if not ordered or shutil.which("lfs") is None or not (default is None or _set(default, directory)):
            return None

        def create(path: Path, size: int) -> None:
            fitting = [stripe for stripe in ordered if size >= stripe.at_least]
            if fitting and fitting[-1] != default:
                _set(fitting[-1], path)

        return create

    def _set(stripe: Stripe, path: Path) -> bool:
        done = run(["lfs", "setstripe", "-c", str(stripe.count), "-S", stripe.size, str(path)], timeout=TIMEOUT)
        if not done.ok:
            log(f"{path}: not striped: {done.tail(1) or done}")
        return done.ok

    return begin
