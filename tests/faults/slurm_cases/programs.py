"""Programs that stand before Slurm's on PATH: they count, fail on request, and hand on to the real ones."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

QUERIES = ("squeue", "sacct", "scontrol")

_QUERY = """\
#!/bin/sh
here={here} name={name} real={real}
printf '%s %s %s\\n' "$(date +%s.%N)" "$name" "$*" >> "$here/calls"
rate=0
[ -r "$here/$name.rate" ] && read -r rate < "$here/$name.rate"
if [ "$rate" -gt 0 ]; then
  set -- "$(od -An -N4 -tu4 /dev/urandom)" "$@"
  roll=$(($1)); shift
  if [ $((roll % 1000)) -lt "$rate" ]; then
    printf '%s failed %s\\n' "$(date +%s.%N)" "$name" >> "$here/calls"
    case $((roll / 1000 % 6)) in
      0) echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1 ;;
      1) echo "$name: error: Problem talking to the database: Connection refused" >&2; exit 1 ;;
      2) exit 1 ;;
      3) exit 0 ;;
      4) exec sleep 4 ;;
      5) "$real" "$@" | head -c 60; exit 0 ;;
    esac
  fi
fi
exec "$real" "$@"
"""

_SBATCH = """\
#!/bin/sh
here={here} real={real}
printf '%s sbatch %s\\n' "$(date +%s.%N)" "$*" >> "$here/calls"
case "${{LAB_SBATCH:-}}" in
  lost) "$real" "$@" >/dev/null 2>&1
        echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1 ;;
  banner) echo "*** Maintenance on Tuesday, 12 nodes ***"; "$real" "$@"; echo "Welcome to the cluster"; exit 0 ;;
  cluster) id=$("$real" --parsable "$@") || exit 1; echo "$id;fake" ;;
  nothing) "$real" "$@" >/dev/null ;;
  shim) "$real" "$@" >/dev/null; kill -9 $PPID; exit 1 ;;
  everybody) "$real" "$@" >/dev/null
        srtctl=$(ps -o ppid= -p $PPID); launcher=$(ps -o ppid= -p $srtctl)
        kill -9 $launcher $srtctl $PPID; exit 1 ;;
  *) out=$("$real" "$@"); code=$?
     printf '%s accepted %s\\n' "$(date +%s.%N)" "$out" >> "$here/calls"
     printf '%s\\n' "$out"; exit $code ;;
esac
"""


@dataclass(frozen=True)
class Call:
    """One start of a program: when (epoch seconds), which, with what; ``accepted`` is what an sbatch printed,
    and ``failed`` says that the program called just before did so by our doing."""

    time: float
    name: str
    arguments: str


class Programs:
    """The directory of the programs; `failing` switches faults on for a while."""

    def __init__(self, directory: Path, environ: Mapping[str, str]) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        (directory / "calls").touch()
        for name in (*QUERIES, "scancel", "sbatch"):
            real = shutil.which(name, path=environ["PATH"])
            if real is None:
                raise RuntimeError(f"{name} was not found")
            text = _SBATCH if name == "sbatch" else _QUERY
            program = directory / name
            program.write_text(text.format(here=shlex.quote(str(directory)), name=name, real=shlex.quote(real)))
            program.chmod(0o755)

    @contextmanager
    def failing(self, per_mille: int, *names: str) -> Iterator[None]:
        """So many of a thousand calls fail: with an error, without a word, empty with exit 0, by hanging, or torn."""
        rates = [self.directory / f"{name}.rate" for name in names or QUERIES]
        for rate in rates:
            rate.write_text(f"{per_mille}\n")
        try:
            yield
        finally:
            for rate in rates:
                rate.unlink()

    def calls(self, since: float = 0.0) -> list[Call]:
        """Every start of a program since then."""
        found = []
        for line in (self.directory / "calls").read_text(errors="replace").splitlines():
            when, _, rest = line.partition(" ")
            name, _, arguments = rest.partition(" ")
            if name in (*QUERIES, "scancel", "sbatch", "accepted", "failed") and float(when) >= since:
                found.append(Call(float(when), name, arguments))
        return found
