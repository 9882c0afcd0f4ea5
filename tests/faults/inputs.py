"""Broken input: `scripts/faults inputs [--files N] [--environments N] [--seed N]`.

Runner files, matrices and recipes are damaged as people, editors and disks damage them, and so is the environment of a
GitHub job; then a command reads them. Each time:

* the command ends by itself, with an exit code of its own and no traceback, within SECONDS;
* its process stays below MEGABYTES;
* it starts no program, opens no connection, and writes nothing but below its state directory.

Every trial follows from its number and the seed: ``--only N`` does one again, and shows what it said.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.cli import main as launcher
from launcher.core.shipped import shipped
from tests.run.driving import LauncherUser, github_environment

SECONDS, MEGABYTES = 60.0, 500
RECIPES = "benchmarks/multi_node/srt-slurm-recipes"

NASTY = (
    *(
        "9" * 5000,
        "2026-13-45",
        "0000-00-00",
        "[" * 500 + "]" * 500,
        ".inf",
        ".nan",
        "-1",
        "0",
        "1e400",
        "0x" + "f" * 400,
    ),
    *(
        "null",
        "~",
        "true",
        "''",
        "[]",
        "{}",
        "[[]]",
        "{a: {}}",
        "!!binary x",
        "!!float x",
        "!!python/name:os.system",
        "*x",
    ),
    *("&x [*x]", "<<: 1", '"\\0"', '"\\e[2J"', '"a\\nb"', "{squash.__class__.__mro__}", "{0}", "{", "$(touch /tmp/x)"),
    *(
        "../../../etc/passwd",
        "/dev/zero",
        "x" * 100_000,
        "1:2:3:4",
        "2001-12-14t21:59:43.10-99:99",
        "? x",
        "- - - x",
        "=",
    ),
    *("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "é", "\u2028", "'", '"', "%", "@", "`", "\t"),
)


class Hang(BaseException):
    """A trial took too long."""


@dataclass
class Place:
    """Where trials happen: a user's directory with a workspace, and what was seen that should not have been."""

    user: LauncherUser
    environment: Mapping[str, str]
    seen: list[str]

    @property
    def workspace(self) -> Path:
        return self.user.workspace


def damaged(text: str, chance: random.Random) -> bytes:
    """A text with one to three pieces of damage."""
    for _ in range(chance.randint(1, 3)):
        lines = text.split("\n")
        i, j = chance.randrange(len(lines)), chance.randrange(len(lines))
        nasty = chance.choice(NASTY)
        kind = chance.randrange(10)
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines.insert(j, lines[i])
        elif kind == 2:
            lines[i], lines[j] = lines[j], lines[i]
        elif kind == 3:
            lines[i] = " " * chance.randint(0, 6) + lines[i].lstrip()
        elif kind == 4:
            lines[i:] = [lines[i][: chance.randrange(len(lines[i]) + 1)]]
        elif kind in (5, 6) and ":" in lines[i]:
            lines[i] = f"{lines[i].partition(':')[0]}: {nasty}"
        elif kind == 7:
            words = lines[i].split(" ")
            words[chance.randrange(len(words))] = nasty
            lines[i] = " ".join(words)
        elif kind == 8:
            lines.insert(i, f"{' ' * chance.randint(0, 4)}{chance.choice(('x', '- x', 'name', '<<'))}: {nasty}")
        else:
            at = chance.randrange(len(lines[i]) + 1)
            lines[i] = lines[i][:at] + chr(chance.choice((0, 7, 9, 27, 35, 45, 58, 91, 123, 0x2028))) + lines[i][at:]
        text = "\n".join(lines)
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    if content and chance.random() < 0.2:
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


def originals() -> dict[str, list[Path]]:
    """The files that are damaged, by kind."""
    recipes = [path for path in sorted(shipped("recipes").rglob("*.yaml")) if path.name != "matrix.yaml"]
    return {
        "runner": sorted(shipped("runners").glob("*.yaml")),
        "matrix": [shipped("recipes") / "matrix.yaml"],
        "recipe": [path for path in recipes if path.stat().st_size < 200_000],
    }


def file_trial(place: Place, chance: random.Random) -> tuple[str, ...]:
    """Write a damaged file, and give the command that reads it."""
    kind, paths = chance.choice(list(originals().items()))
    path = chance.choice(paths)
    content = damaged(path.read_text(encoding="utf-8"), chance)
    if kind == "runner":
        target = place.workspace / "runners" / path.name
        name = path.stem
        commands: list[tuple[str, ...]] = [
            ("runner", "list"),
            ("runner", "show", name),
            ("plan", "-k", "minimaxm3-fp8-*", "--runner", name, "--json"),
            ("plan", "-k", "*", "--seq", "1k1k"),
            ("check", "-k", "minimaxm3-*", "--runner", name),
        ]
    elif kind == "matrix":
        target = place.workspace / "damaged.yaml"
        named = ("--matrix", str(target))
        commands = [
            ("matrix", *named, "--json"),
            ("plan", *named, "-k", "*", "--runner", "local", "--json"),
            ("plan", *named, "-k", "*"),
            ("check", *named, "--runner", "gb200-nv"),
        ]
    else:
        target = place.workspace / RECIPES / path.relative_to(shipped("recipes"))
        said = f"recipes/{path.relative_to(shipped('recipes'))}"
        more = ("--model", "a/b", "--model-prefix", "minimaxm3", "--runner", "local", "--precision", "fp8")
        commands = [
            ("plan", "--recipe", said, *more, "--conc", "4"),
            ("plan", "-k", "*", "--runner", "local"),
            ("check", "-k", "minimaxm3-*"),
        ]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return chance.choice(commands)


def environment_trial(environment: Mapping[str, str], chance: random.Random) -> tuple[dict[str, str], tuple[str, ...]]:
    """A damaged environment of a GitHub job, and the command that reads it."""
    changed = dict(environment)
    names = sorted(set(environment) - {"PATH", "HOME", "LAUNCHER_STATE"})
    for _ in range(chance.randint(1, 4)):
        name = chance.choice(names)
        kind = chance.randrange(5)
        if kind == 0:
            changed.pop(name, None)
        elif kind == 1:
            changed[name] = ""
        elif kind == 2:
            changed[name] = chance.choice(NASTY).replace("\0", "")
        elif kind == 3:
            changed[name] = environment[chance.choice(names)]
        else:
            text = list(changed.get(name, "")) or ["x"]
            text[chance.randrange(len(text))] = chance.choice("\n\t/.$*?[]{}'\"\\ é\udcff0-")
            changed[name] = "".join(text)
    return changed, chance.choice((("plan", "--from-env", "--json"), ("plan", "--from-env"), ("check", "--from-env")))


@contextlib.contextmanager
def place_for_trials() -> Iterator[Place]:
    """A user's directory, and a hook that sees every program, connection and file that is written."""
    with tempfile.TemporaryDirectory() as name:
        user = LauncherUser(Path(name))
        place = Place(user, {**user.environment(), **github_environment(user)}, [])
        inside = (name, "/dev/null")

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"):
                place.seen.append(f"{event} {arguments!r:.200}")
                return
            changing = event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.chmod")
            writing = event == "open" and isinstance(arguments[1], str) and bool(set("wax+") & set(arguments[1]))
            if (changing or writing) and not str(arguments[0]).startswith(inside):
                place.seen.append(f"{event} {arguments!r:.200}")

        sys.addaudithook(hook)
        before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the interpreter's own files are no trial's
        try:
            yield place
        finally:
            sys.dont_write_bytecode = before


def attempt(arguments: Sequence[str], environment: Mapping[str, str], place: Place) -> tuple[str, str]:
    """Run one command in this process; what is wrong with how it ended ("" for nothing), and what it said."""
    out = io.StringIO()
    before, place.seen[:] = dict(os.environ), []
    wrong = ""

    def too_long(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, too_long)
    began = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    there = Path.cwd()
    try:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(place.workspace)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = launcher(arguments)
        if code not in (0, 1, 2):
            wrong = f"exit {code}"
    except SystemExit as error:
        wrong = "" if error.code in (0, 2) else f"exit {error.code}"
    except Hang:
        wrong = f"not ended after {time.monotonic() - began:.0f} s"
    except BaseException:  # noqa: BLE001  # whatever it is, a person would have seen it as a traceback
        wrong = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.environ.clear()
        os.environ.update(before)
        os.chdir(there)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if used > MEGABYTES:
        wrong = wrong or f"{used} MB"
    if place.seen:
        wrong = wrong or f"did what it should not: {place.seen[:3]}"
    return wrong, out.getvalue()


def trial(kind: str, number: int, seed: int, place: Place) -> tuple[str, str, tuple[str, ...]]:
    """One trial by its number: what was wrong, what was said, the command."""
    chance = random.Random(f"{seed} {kind} {number}")
    if kind == "file":
        for leftover in (*(place.workspace / "runners").glob("*"), *(place.workspace / RECIPES).rglob("*.yaml")):
            leftover.unlink()
        arguments = file_trial(place, chance)
        environment: Mapping[str, str] = place.user.environment()
    else:
        environment, arguments = environment_trial(place.environment, chance)
    return *attempt(arguments, environment, place), arguments


def run_trials(kind: str, numbers: Sequence[int], seed: int) -> list[str]:
    """What was wrong, a text for each trial that went wrong."""
    found = []
    with place_for_trials() as place:
        for number in numbers:
            wrong, _, arguments = trial(kind, number, seed, place)
            if wrong:
                found.append(f"{kind} {number} (seed {seed}): launcher {' '.join(arguments)}\n{wrong}")
    return found


def _share(given: tuple[str, list[int], int]) -> list[str]:
    return run_trials(*given)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/faults inputs")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--environments", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs=2, metavar=("KIND", "N"), help="file or environment, and the trial's number")
    arguments = parser.parse_args(argv)
    if arguments.only:
        with place_for_trials() as place:
            wrong, said, command = trial(arguments.only[0], int(arguments.only[1]), arguments.seed, place)
            print(f"launcher {' '.join(command)}\n{said}\n{wrong or 'as it should be'}")
        return bool(wrong)
    shares = []
    for kind, count in (("file", arguments.files), ("environment", arguments.environments)):
        for first in range(0, count, 250):
            shares.append((kind, list(range(first, min(first + 250, count))), arguments.seed))
    found: list[str] = []
    # Each share has a process of its own: memory is measured by process.
    with multiprocessing.get_context("fork").Pool(arguments.processes, maxtasksperchild=1) as pool:
        for done, texts in enumerate(pool.imap_unordered(_share, shares, chunksize=1), 1):
            found += texts
            for text in texts:
                print(text)
            print(f"{done} of {len(shares)} shares, {len(found)} wrong", flush=True)
    print(f"{arguments.files} files and {arguments.environments} environments: {len(found)} wrong")
    return bool(found)
