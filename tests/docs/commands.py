"""The commands of the documentation: what stands in its fenced blocks and in its inline code, and what it may mean.

A block marked ``console`` is a session: what stands behind ``$ `` is typed, and the lines below it are its output. In
a block marked ``sh`` each line is typed. A command ends with 0, or as its comment says (``# ends with 7``).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.cli.arguments import parser
from launcher.cli.parsers import LazyParser, texts
from scripts import reference_pages

ROOT = Path(__file__).resolve().parents[2]

BEGINS = re.compile(r"launcher (?:-|[a-z-]+(?![/.]))|scripts/\w|(?:git|pip|pipx|uv|eval) [-\w\"]|python3? [-\w]")
"""How a command begins: a program that a reader types, and not the name of a file or what a message says."""


@dataclass(frozen=True)
class Command:
    """A command: where it stands, what is typed, the exit code and the output that the page states. One of a
    ``session`` is typed with those before it; what stands in a sentence may have place-holders."""

    page: str
    line: int
    text: str
    session: bool = True
    code: int = 0
    sample: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"

    @property
    def words(self) -> list[str]:
        """What is given to `launcher`, for one that is its: without what a shell does before and after it."""
        text = re.split(r"\s(?:[|>&]|\|\||&&)\s?", self.text.strip("() "))[0]
        text = text.removeprefix('eval "$(').removesuffix(')"')
        words = shlex.split(text, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        return words[1:] if words[:1] == ["launcher"] else []


def pages() -> dict[str, str]:
    """The README and every page of docs/, those made of the code among them; examples of `--help` are a page too."""
    files = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    found = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}
    for name, lines in reference_pages.PAGES.items():
        found[f"docs/{name}"] = "\n".join(lines())
    examples = "\n".join(example for text in texts().values() for example in text.examples)
    found["docs/reference/commands.md"] = f"```sh examples\n{examples}\n```\n"
    return found


def commands(page: str, text: str) -> list[Command]:
    """The commands of a page, in order. Raises AssertionError for one in a block that does not say what it holds."""
    found: list[Command] = []
    prose: list[str] = []
    block: list[str] = []
    kind, began = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        fence = line.lstrip().startswith("```")
        prose.append("" if fence or began else line)
        if not fence:
            block.append(line)
        elif began:
            found += _of_block(page, kind, block, began + 1)
            began = 0
        else:
            kind, block, began = line.strip(" `"), [], number
    found += _of_prose(page, "\n".join(prose))
    return sorted(found, key=lambda command: command.line)


def _of_block(page: str, kind: str, block: Sequence[str], first: int) -> Iterator[Command]:
    if kind == "yaml":
        for number, line in enumerate(block, first):
            if text := re.search(r"(?:^\s*(?:run: )?(?:exec )?|# )(launcher [a-z][^#|;]*)", line):
                yield Command(page, number, text[1].strip(), session=False)
    elif kind == "console":
        yield from _of_session(page, block, first)
    elif kind.startswith("sh"):
        typed = [f"$ {line.strip()}" if line.strip() else "" for line in block]
        found = (one for one in _of_session(page, typed, first))
        yield from (replace(one, session="examples" not in kind) for one in found)
    else:
        unmarked = [line for line in block if BEGINS.match(line.strip())]
        assert unmarked == [], f"{page}:{first}: mark this block `console` or `sh`: {unmarked}"


def _of_session(page: str, block: Sequence[str], first: int) -> Iterator[Command]:
    typed: Command | None = None
    pending = ""
    for number, line in enumerate(block, first):
        text = line.strip()
        if pending or text.startswith("$ "):
            pending += text.removeprefix("$ ")
            if pending.endswith("\\"):
                pending = pending[:-1]
                continue
            if typed:
                yield typed
            told = re.search(r"\s+# ends with (\d+)(?::.*)?$", pending)
            pending = pending[: told.start()] if told else pending
            typed = Command(page, number, pending.strip(), code=int(told[1]) if told else 0)
            pending = ""
        elif typed and text:
            typed = replace(typed, sample=(*typed.sample, text))
    if typed:
        yield typed


def _of_prose(page: str, prose: str) -> Iterator[Command]:
    """Inline code, and what is indented as code without a fence."""
    indented = [line for line in prose.splitlines() if line.startswith("    ") and BEGINS.match(line.strip())]
    assert indented == [], f"{page}: give this a fence: {indented}"
    for code in re.finditer(r"`((?:[^`\n]|\n(?!\s*\n))+)`", prose):
        text = " ".join(code[1].split())
        if BEGINS.match(text):
            yield Command(page, prose.count("\n", 0, code.start()) + 1, text, session=False)


PARSER: LazyParser = parser()

Form = tuple[str, frozenset[str]]
"""The verb of a command (``sweep status``), and its flags."""


def form(words: Sequence[str]) -> Form:
    """The form of what is given to `launcher`. Raises AssertionError for a flag that its parser does not have."""
    at = PARSER
    verb, flags = [], set()
    for word in words:
        at.fill()
        word = word.strip("[]")
        if word in at.commands:
            at = at.commands[word]
            verb.append(word)
        elif word.startswith("-") and word != "-":
            flag = word.partition("=")[0]
            known = {name: action for action in at.all_flags for name in action.option_strings}
            assert flag in known, f"`launcher {' '.join(verb)}` has no flag {flag}"
            flags.add(known[flag].option_strings[-1])
    assert verb or flags, f"there is no command {words[:1]}"
    return " ".join(verb), frozenset(flags)
