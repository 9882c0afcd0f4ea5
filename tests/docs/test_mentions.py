"""Commands of sentences, tables and help whose verb and flags no page's session types are run here, in one process."""

from __future__ import annotations

import html
import importlib.machinery
import importlib.util
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.core.shipped import shipped
from tests.docs.commands import ROOT, Command, Form, form
from tests.docs.test_commands import ALL, FORMS, elsewhere, masked
from tests.run.driving import KEY, LauncherUser, github_environment

_LOADER = importlib.machinery.SourceFileLoader("pictures", str(ROOT / "scripts/pictures"))
_SPEC = importlib.util.spec_from_loader("pictures", _LOADER)
assert _SPEC is not None
PICTURES = importlib.util.module_from_spec(_SPEC)
_LOADER.exec_module(PICTURES)

WORDS = {
    "RUN": "first", "TOPIC": "new-cluster", "COMMAND": "status", "RULE": "time-budget", "REF": "nginx:1.27.4",
    "FILE": "squash/one.sqsh", "vllm.sqsh": "squash/two.sqsh", "DIR": "state", "my-runners/": "runners",
    "/shared/squash": "squash", "/lustre/models": "models", "gb200-nv": "local", "B": "first", "A": "m3",
}  # fmt: skip
"""Place-holders and names of other people's places, and what they are here."""

ONE = f"-k {KEY} --seq 1k1k --topology '1P1D*/TP4' --runner local"
RECIPE = "recipes/vllm/minimax-m3-gb200-fp8/1k1k.yaml:override_disagg-gb200-1p1d-dep4-tp4-marlin-2n"
OTHERWISE = {
    "launcher results aggregate DIR": "results aggregate first -o out",
    "launcher matrix --json --multi-node …": "matrix --json --multi-node",
    "launcher report B --against A": "report first --against m3 --fail-on tput_per_gpu:-5%",
    "launcher plan --recipe": f"plan --recipe {RECIPE} --runner local --model ID --model-prefix minimaxm3",
    "launcher run -k dsr1-fp8-h200-sglang": f"run {ONE} --conc 4 --workspace . --no-logs",
    "launcher sweep plan -k 'minimaxm3*' --runner gb200-nv --json": f"sweep plan -k {KEY} --runner gb200-nv --json",
    "launcher sweep -k": f"sweep {ONE} --conc 4 16 --max-jobs 2 --name other",
    "launcher sweep start -k 'minimaxm3*' --name m3 --max-nodes": f"sweep start {ONE} --conc 4 --name m4 "
    "--max-nodes 36 --max-gpu-hours 400 --canary auto",
    "launcher sweep start -k 'minimaxm3*' --name m3 --detach": f"sweep start {ONE} --conc 4 --name m5 --detach",
}
"""Commands by how they begin that are typed in another way here: what they speak of takes minutes, or is not here."""

ENDS = {
    "launcher report B --against A": 2,  # rehearsals are not comparable
    "launcher collect --from-env": 2,  # this job has no run yet
}
"""Commands by how they begin that end otherwise than with 0."""


def left() -> list[Command]:
    """One command for each form that nothing else runs, in the order of the documentation; what removes comes last."""
    found: dict[Form, Command] = {}
    for command in ALL:
        if command.words and not command.session and not elsewhere(command):
            verb, flags = asked = form(command.words)
            if verb and not any(verb == other and flags <= given for other, given in FORMS):
                found.setdefault(asked, command)
    kept = [one for one in found if not any(one[0] == other and one[1] < flags for other, flags in found)]
    return [found[one] for one in sorted(kept, key=lambda one: "--apply" in one[1])]


LEFT = left()


def argv(command: Command) -> list[str]:
    """What is typed here."""
    other = next((typed for begins, typed in OTHERWISE.items() if command.text.startswith(begins)), None)
    return shlex.split(other) if other else [WORDS.get(word, word) for word in command.words]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LauncherUser]:
    """Where this process is meanwhile: a place with a run, a sweep, images, checkpoints and runner files."""
    user = LauncherUser(tmp_path_factory.mktemp("place"), extra={"LAUNCHER_REHEARSAL_SECONDS": "0.01"})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(user.root)
        for name in os.environ.keys() - user.environment().keys():
            patch.delenv(name)
        for name, value in user.environment().items():
            patch.setenv(name, value)
        assert main(["run", *shlex.split(ONE), "--conc", "4", "--run-id", "first"]) == 0
        assert main(["sweep", "start", *PICTURES.ROWS, "--conc", "4", "16", "--name", "m3", "--yes"]) == 0
        shutil.copytree(shipped("runners"), user.root / "runners")
        (user.root / "squash").mkdir()
        for name in ("one.sqsh", "two.sqsh"):
            shutil.copy(next((user.state / "squash").glob("*.sqsh")), user.root / "squash" / name)
        (user.root / "models").symlink_to(user.state / "models")
        yield user


def shown_by(svg: str) -> str:
    """The text of a terminal's picture."""
    lines: dict[float, dict[float, str]] = {}
    for x, y, text in re.findall(r'<text class="[a-z]+-r[0-9]+" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', svg):
        lines.setdefault(float(y), {})[float(x)] = html.unescape(text).replace("\xa0", " ")
    return "\n".join("".join(line[x] for x in sorted(line)) for _, line in sorted(lines.items()))


def letters(text: str) -> str:
    """A text without numbers, ids, colours, and how its lines are broken."""
    text = re.sub(r"\b[0-9a-f]{6,}\b", "", text.replace("evening", "m3"))
    return re.sub(r"[\W\d]", "", "".join(masked(text.splitlines())))


@pytest.mark.parametrize("name", PICTURES.TERMINALS)
def test_a_picture_shows_what_is_printed(name: str, place: LauncherUser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it does not, `scripts/pictures` makes it anew."""
    monkeypatch.delenv("LAUNCHER_REHEARSAL_SECONDS")  # a plan names it
    typed = shlex.join(PICTURES.TERMINALS[name])
    svg = (ROOT / f"docs/pictures/{name}.svg").read_text(encoding="utf-8")
    words, columns = shlex.split(typed.replace("evening", "m3")), PICTURES.COLUMNS[name]
    with tempfile.TemporaryDirectory() as short:  # a plan's lines are folded by the length of its paths
        printed = PICTURES.launcher(Path(short, "state") if name == "plan" else place.state, *words, columns=columns)
    assert letters(shown_by(svg)) == letters(f"$ launcher {typed}\n{printed}")


def test_every_form_of_a_command_is_run(place: LauncherUser, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for command in LEFT:
        with pytest.MonkeyPatch.context() as job:
            if "--from-env" in command.words:
                for name, value in github_environment(place).items():
                    job.setenv(name, value)
            try:
                code = main(argv(command))
            except SystemExit as ended:
                code = int(str(ended.code))
        said = "".join(capsys.readouterr())
        if code != next((other for begins, other in ENDS.items() if command.text.startswith(begins)), 0):
            wrong.append(f"{command}: {argv(command)} ends with {code}\n{said[-300:]}")
    assert wrong == [], "\n".join(wrong)
