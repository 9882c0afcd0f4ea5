"""Completion for bash, zsh and fish. The shells' scripts ask `launcher complete-words` at each tab, which answers out
of the parsers, the records and the runner files; where a file is wanted it answers nothing, and the shell does."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from pathlib import Path

from launcher.cli.arguments import parser
from launcher.cli.parsers import LazyParser

SCRIPTS = {
    shell: Path(__file__).with_suffix(f".{shell}").read_text(encoding="utf-8") for shell in ("bash", "zsh", "fish")
}

MOST = 500
"""Words that a shell is given at most."""


def script(arguments: argparse.Namespace) -> int:
    """Print a shell's script."""
    print(SCRIPTS[arguments.shell], end="")
    return 0


def complete(arguments: argparse.Namespace) -> int:
    """Print what the last of the words may be: a line each, a word and after a tab what it is."""
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    for word, what in sorted(candidates(parser(), words or [""]))[:MOST]:
        print(f"{word}\t{what}")
    return 0


def candidates(top: LazyParser, words: list[str]) -> list[tuple[str, str]]:
    """What the last of the words (those behind ``launcher``) may be, each with what it is."""
    parser, flag, left, places = top, None, 0, 0
    state = runners = None
    parser.fill()
    for word in words[:-1]:
        flags = {name: action for action in parser.all_flags for name in action.option_strings}
        if word in flags:
            flag = flags[word]
            left = {0: 0, "+": -1, "*": -1}.get(flag.nargs if flag.nargs is not None else 1, 1)
        elif left:
            left -= 1
            state = word if flag is not None and flag.dest == "state" else state
            runners = word if flag is not None and flag.dest == "runners" else runners
        elif word in parser.commands:
            parser, places = parser.commands[word], 0
            parser.fill()
        else:
            places += 1
    last = words[-1]
    if last.startswith("-"):
        found = [(name, a.help or "") for a in parser.all_flags for name in a.option_strings if name.startswith("--")]
    elif left and flag is not None:
        found = _values(flag, state, runners)
    else:
        found = list(parser.listed.items())
        rest = [a for a in parser.positionals if not isinstance(a, argparse._SubParsersAction)][places:]
        everyone = [a for a in parser.positionals if a.nargs in ("*", "+")]
        for action in (rest or everyone)[:1]:
            found += _values(action, state, runners, parser.prog)
    shown = {word: "" if what == argparse.SUPPRESS else what for word, what in found}
    return [(word, what.replace("%%", "%")) for word, what in shown.items() if word.startswith(last)]


def _values(
    action: argparse.Action, state: str | None, runners: str | None, program: str = ""
) -> list[tuple[str, str]]:
    """What a flag or a positional argument may be: by its choices, else by what stands for its value in help."""
    if action.choices:
        return [(str(choice), "") for choice in action.choices]
    names = set(re.split(r"[^A-Z]+", str(action.metavar)))
    found: list[tuple[str, str]] = []
    if "RUN" in names:
        found += [(name, "run") for name in _newest(_state(state) / "runs")]
    if "SWEEP" in names:
        found += [(name, "sweep") for name in _newest(_state(state) / "sweeps")]
    if action.dest in ("runner", "of_runner") or program.startswith(("launcher runner", "launcher remote")):
        found += [(name, "runner") for name in _runner_names(runners)]
    if "RULE" in names:
        from launcher.core.shipped import shipped

        found += [(path.stem, "rule") for path in shipped("docs/rules").glob("*.md")]
    return found


def _state(given: str | None) -> Path:
    from launcher.core.state import state_directory

    return state_directory(os.environ, given)


def _newest(directory: Path) -> list[str]:
    """The names in a directory, the latest first."""
    try:
        entries = [(entry.stat().st_mtime, entry.name) for entry in os.scandir(directory) if entry.is_dir()]
    except OSError:
        return []
    return [name for _, name in sorted(entries, reverse=True)[:MOST] if name.isprintable() and " " not in name]


def _runner_names(given: str | None) -> Iterable[str]:
    from launcher.core.shipped import shipped

    places = [shipped("runners"), *([Path(given)] if given else [])]
    return {path.stem for place in places for path in place.glob("*.yaml")}
