"""`scripts/faults AREA [options]`: an area is a module beside this one with ``main(argv) -> int``."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Run one area; 2 for one that does not exist."""
    areas = sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py") if not p.stem.startswith("test_"))
    if not argv or argv[0] not in areas:
        print(f"usage: scripts/faults {{{','.join(areas)}}} [options]", file=sys.stderr)
        return 2
    # A shell's background job ignores SIGINT, one of nohup SIGHUP, and so would every launcher that is started here:
    # what a handler takes is not inherited.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    return int(importlib.import_module(f"tests.faults.{argv[0]}").main(argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
