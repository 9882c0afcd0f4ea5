"""Text of a plan as words of a bash script. The plan's placeholders become variables, everything else is quoted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from launcher.core.errors import ConfigError

_PLACEHOLDER = re.compile(r"\$(?:\{(JOB|SLURM_JOB_ID|UID|HOME)\}|(JOB|SLURM_JOB_ID|UID|HOME)\b)")
_SUM = re.compile(r"(?:\d+|\$JOB)(?:[+*%-](?:\d+|\$JOB))*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def quote_word(text: str) -> str:
    """One word of a script: ``$JOB`` (the job's id), ``$UID`` and ``$HOME`` are filled in on the node."""
    if not re.search(r"[$`]", text):
        return shlex.quote(text)
    parts, at = [], 0
    for found in _PLACEHOLDER.finditer(text):
        parts.append(_in_double_quotes(text[at : found.start()]))
        name = found[1] or found[2]
        follows = text[found.end() : found.end() + 1]
        name = "SLURM_JOB_ID" if name == "JOB" else name
        parts.append(f"${{{name}}}" if re.match(r"\w", follows) else f"${name}")
        at = found.end()
    return f'"{"".join(parts)}{_in_double_quotes(text[at:])}"'


def quote_number(text: str) -> str:
    """A sum of numbers and ``$JOB`` as bash computes it (``40000+$JOB%10000``); any other text as a word."""
    if not text.isdigit() and _SUM.fullmatch(text):
        return f'"$(({text.replace("$JOB", "SLURM_JOB_ID")}))"'
    return quote_word(text)


def quote_glob(text: str) -> str:
    """A glob as bash expands it: its wildcards stand as they are, everything else is quoted."""
    parts = re.split(r"(\*+|\?)", text)
    return "".join(part if part[:1] in ("*", "?") else shlex.quote(part) for part in parts if part)


def command_lines(lines: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """A command whose words stand on ``lines``, to be read by a person."""
    return f" \\\n{indent}".join(" ".join(map(quote_word, line)) for line in lines if line)


def variable_name(name: str) -> str:
    """The name itself, if a shell can have a variable of that name. Raises ConfigError."""
    if not _VARIABLE.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be the name of an environment variable")
    return name


def _in_double_quotes(text: str) -> str:
    return re.sub(r'([\\"$`])', r"\\\1", text)
