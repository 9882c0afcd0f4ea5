"""Every command in the documentation is run: each page is a shell's session, from its first command to its last.

A command is a line after ``$ `` in a fenced block. It ends with 0, or as its comment says (``# ends with 7``).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.cli.arguments import parser
from tests.conftest import CLUSTER, SlurmCluster

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")) if path.is_file()
)
SESSIONS = (
    ("docs/tutorial/laptop.md", "docs/guides/reports.md", "docs/guides/images.md", "docs/guides/checkpoints.md"),
    ("docs/guides/sweeps.md",),
    ("docs/index.md",),
    ("docs/tutorial/one-machine.md",),
    ("docs/guides/new-cluster.md", "docs/guides/new-lane.md"),
)
"""Pages whose commands are run in one shell, since later ones speak of what earlier ones made."""

ELSEWHERE = {
    "scripts/setup": "tests run in what it makes",
    "git ls-remote": "needs the network",
    "launcher check --runner lab --workspace INFERENCEX": "needs a checkout of InferenceX",
    "launcher runner show lab --for dsr1": "tests/container/test_resolve.py",
}
"""Commands by how they begin that another test runs, or that need what is not here; and which, or what."""


RULES_OF_THE_GUIDE = """
import pathlib, re
file = pathlib.Path("runners/lab.yaml")
guide = pathlib.Path("docs/guides/new-cluster.md").read_text()
models, _, lanes = re.search(r"```yaml\\n(models:.*?)```", guide, re.DOTALL)[1].partition("lanes:")
text = file.read_text().replace("models: []", models, 1).replace("lanes: []", "lanes:" + lanes, 1)
file.write_text(re.sub("/tmp/lab", str(pathlib.Path.cwd()), text))
"""
EDITS = {"launcher runner new lab": f"python - <<'EOF'\n{RULES_OF_THE_GUIDE}\nEOF\n"}
"""What a person does in an editor after a command: it puts the guide's own block into the file."""


@dataclass(frozen=True)
class Command:
    """A command of a page: its line there, what is typed, and the exit code that the page states."""

    page: str
    line: int
    text: str
    code: int

    @property
    def elsewhere(self) -> str:
        return next((why for begins, why in ELSEWHERE.items() if self.text.startswith(begins)), "")


def commands(page: str) -> list[Command]:
    """The commands of a page, in order; a line that ends in a backslash goes on in the next one."""
    found, fence, pending = [], False, ""
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if text.startswith("```"):
            fence, pending = not fence, ""
        elif fence and (pending or text.startswith("$ ")):
            pending += text if pending else text[2:]
            if pending.endswith("\\"):
                pending = pending[:-1]
                continue
            told = re.search(r"\s+# ends with (\d+)(?::.*)?$", pending)
            found.append(
                Command(page, number, pending[: told.start()] if told else pending, int(told[1]) if told else 0)
            )
            pending = ""
    return found


ALL = [command for page in PAGES for command in commands(page)]


def test_every_command_is_run_here_or_in_a_named_test() -> None:
    run = {page for session in SESSIONS for page in session}
    left = [f"{c.page}:{c.line}: {c.text}" for c in ALL if c.page not in run and not c.elsewhere]
    print(f"{len(ALL)} commands, {sum(bool(c.elsewhere) for c in ALL)} of them by other tests")
    assert left == []
    assert [why for why in ELSEWHERE.values() if why.endswith(".py") and not (ROOT / why).is_file()] == []


def test_what_is_typed_after_launcher_is_understood() -> None:
    for command in ALL:
        words = shlex.split(command.text, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words[:1] == ["launcher"] and not set(words) & {"&", "|", ";", "--version"}:
            parser().parse_args(words[1:])


def sandbox(directory: Path, cluster: SlurmCluster | None) -> None:
    """What a person has after cloning and `scripts/setup`, with the cluster of all tests as that of scripts/cluster."""
    (directory / "scripts").mkdir()
    for name in ("launcher", "recipes", "docs", "pyproject.toml", "scripts/run", "scripts/one_machine_slurm"):
        (directory / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "runners", directory / "runners")
    (directory / ".venv").symlink_to(sys.prefix)
    programs = {"setup": "exit 0"}
    if cluster is not None:
        programs["cluster"] = f'[ "$1" != env ] || exec {sys.executable} {CLUSTER} "$1" --dir {cluster.directory}'
    for name, does in programs.items():
        (directory / "scripts" / name).write_text(f"#!/bin/sh\n{does}\n")
        (directory / "scripts" / name).chmod(0o755)


@pytest.mark.slurm
@pytest.mark.parametrize("pages", SESSIONS, ids=lambda pages: pages[0].rpartition("/")[2])
def test_a_page_can_be_typed(pages: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    typed = [command for page in pages for command in commands(page) if not command.elsewhere]
    real = pages[0].endswith(("one-machine.md", "new-cluster.md"))
    cluster: SlurmCluster | None = request.getfixturevalue("slurm_cluster") if real else None
    sandbox(tmp_path, cluster)
    script = "".join(
        f"{c.text.replace('/tmp/lab', str(tmp_path))}\ncode=$?; echo; echo '== {i}' $code\n"
        + next((edit for begins, edit in EDITS.items() if c.text.startswith(begins)), "")
        for i, c in enumerate(typed)
    )
    environment = {name: os.environ[name] for name in ("LANG", "LC_ALL", "CI") if name in os.environ}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LAUNCHER_STATE": f"{tmp_path}/state",
        "LAUNCHER_REHEARSAL_SECONDS": "0.05",
    }
    if "new-cluster" in pages[0]:
        assert cluster is not None
        environment |= {"SLURM_CONF": cluster.env["SLURM_CONF"], "LAUNCHER_RUNNERS": str(tmp_path / "runners")}
    done = subprocess.run(
        ["bash"],
        input=script,
        cwd=tmp_path,
        env={**environment, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    codes = {int(i): int(code) for i, code in re.findall(r"^== (\d+) (\d+)$", done.stdout, re.MULTILINE)}
    wrong = [f"{c.page}:{c.line}: {c.text}: {codes.get(i)}" for i, c in enumerate(typed) if codes.get(i) != c.code]
    assert wrong == [], done.stdout
