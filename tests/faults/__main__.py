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
    # A shell's background job ignores SIGINT, and so would every launcher that we start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return int(importlib.import_module(f"tests.faults.{argv[0]}").main(argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
