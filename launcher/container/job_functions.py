"""The functions of a job's script (job_functions.sh), and how a container's bash is given its variables."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path


@cache
def _parts() -> dict[str, str]:
    text = Path(__file__).with_name("job_functions.sh").read_text()
    _, *parts = re.split(r"^# --- (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))


def functions(part: str) -> str:
    """The functions of one part of the file, in bash."""
    return _parts()[part]


CARRIED = "LAUNCHER_ENVIRONMENT"
"""The variable that brings others into the container, as commands that set them."""

SET_CARRIED = f'eval "${CARRIED}"; unset {CARRIED}; exec bash "$0"'
"""What ``bash -c`` in the container is given before the script: it sets the variables, and becomes the script."""

SET_CARRIED_AT_LOGIN = f'eval "${CARRIED}"; unset {CARRIED}; exec bash -lc \'exec bash "$0"\' "$0"'
"""The same where the script runs in a login shell."""

READ_CARRIED = 'eval "$(cat)"; exec bash -lc "$0" </dev/null'
"""The same where the commands come by standard input, and the script is a command of a login shell."""
