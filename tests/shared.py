"""Where the recorded cases, real matrices and recipes lie, when they lie beside the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_beside = Path(os.environ.get("LAUNCHER_SHARED") or Path(__file__).resolve().parents[2] / "shared")

SHARED: Path | None = _beside.resolve() if (_beside / "cases").is_dir() else None

needs_shared = pytest.mark.skipif(SHARED is None, reason="shared material is not beside the project (LAUNCHER_SHARED)")
