"""Every command in the documentation is run, and its output is what the page shows: each page is a shell's session.

What stands in sentences and tables is run where a session types the same verb with the same flags. `ELSEWHERE` names
the test that runs the others, `NOT_RUN` the few that are only parsed, each with the reason.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import CLUSTER, SlurmCluster
from tests.docs.commands import PARSER, ROOT, Command, commands, form, pages

SESSIONS = (
    ("docs/tutorial/laptop.md", "docs/guides/reports.md", "docs/guides/images.md", "docs/guides/checkpoints.md"),
    ("docs/guides/sweeps.md",),
    ("README.md", "docs/index.md"),
    ("docs/tutorial/one-machine.md",),
    ("docs/guides/new-cluster.md", "docs/guides/new-lane.md"),
)
"""Pages whose commands are run in one shell, since later ones speak of what earlier ones made."""

ELSEWHERE = {
    "pipx install .": "tests/test_release.py",
    "uv tool install .": "tests/test_release.py",
    "pip install": "tests/test_release.py",
    "version=": "tests/test_release.py",
    "python3 -m venv": "tests/test_release.py",
    '"$HOME/launcher': "tests/test_release.py",
    "ln -sfn": "tests/test_release.py",
    "python3 ../shared/cases/check.py": "tests/runner/test_fleet_agreement.py",
    "python3 ../shared/cases-single": "tests/container/test_agreement.py",
    "scripts/site": "tests/docs/test_site.py",
    "scripts/faults": "tests/faults/test_short.py",
    "scripts/cluster": "tests/scripts/test_cluster.py",
    "scripts/measure_logs": "tests/scripts/test_measure_logs.py",
    "scripts/result_fields": "tests/result/test_fields_page.py",
    "launcher version": "tests/test_release.py",
    "launcher ci": "tests/cli/test_workflow.py",
    "launcher cleanup --from-env": "tests/cli/test_workflow.py",
    "launcher results aggregate --from-env": "tests/cli/test_workflow.py",
    "launcher shadow": "tests/rehearsal/test_shadow.py",
    "launcher adopt": "tests/run/test_orphans_slurm.py",
    "launcher remote install": "tests/remote/test_install.py",
    "launcher remote list": "tests/cli/test_on.py",
    "launcher remote": "tests/docs/test_remote_page.py",
    "launcher --on NAME resume": "tests/cli/test_on_slurm.py",
    "launcher --on": "tests/docs/test_remote_page.py",
    "launcher runner new lab --no-node": "tests/doctor/test_live.py",
    "launcher runner new lab --partition": "tests/doctor/test_live.py",
    "launcher runner doctor gb200": "tests/doctor/test_live.py",
    "launcher runner doctor lab --no-node": "tests/doctor/test_live.py",
    "launcher runner show lab --for dsr1": "tests/container/test_resolve.py",
    "launcher model stage '/nvme/M'": "tests/model/test_nodes.py",
    "launcher model stage /nvme/models/M --from /lustre/models/M --partition": "tests/model/test_nodes.py",
    "launcher image import vllm/vllm-openai:v0.11.0 --runner b200-cw --on-node": "tests/image/test_node_slurm.py",
    "launcher image import --on-node": "tests/image/test_node_slurm.py",
}
"""Commands by how they begin, and the test that runs them."""

NOT_RUN = {
    "git ls-remote": "needs the network",
    "git clone": "needs the network",
    "pip wheel": "needs an index; tests/test_release.py packs its wheels of what is installed",
    "git rev-parse v1.0.45": "needs a clone of srt-slurm",
    "git show commit": "names what `patches` of a runner file does",
    "scripts/setup": "makes what the tests run in",
    "scripts/test": "runs the tests",
    "scripts/measure_": "takes minutes, and is there for its figures",
    "scripts/bench_staging": "takes minutes, and is there for its figures",
    "python -m scripts.measure_": "takes minutes, and is there for its figures",
    "launcher check --runner lab --workspace INFERENCEX": "needs a checkout of InferenceX",
    "launcher doctor locks /shared/squash --partition": "needs a directory that two hosts share",
}
"""Commands by how they begin, and why no test runs them: what is of `launcher` is parsed all the same."""

BLOCKS = """
import pathlib, re, textwrap

def block(page, begins):
    text = pathlib.Path("docs/guides", page).read_text()
    found = map(textwrap.dedent, re.findall(r"^ *```yaml\\n(.*?)```", text, re.DOTALL | re.MULTILINE))
    return next(block for block in found if block.startswith(begins)).rstrip()

file = pathlib.Path("runners/lab.yaml")
"""
EDITS = {
    ("new-cluster.md", "launcher runner show lab"): """
models, _, lanes = block("new-cluster.md", "models:").partition("lanes:")
text = file.read_text().replace("models: []", models.rstrip()).replace("lanes: []", "lanes:" + lanes)
file.write_text(text.replace("/tmp/lab", str(pathlib.Path.cwd())))
""",
    ("new-cluster.md", "launcher matrix"): """
pathlib.Path("mine.yaml").write_text(block("new-cluster.md", "minimaxm3-fp8-lab-vllm:"))
""",
    ("new-lane.md", "launcher runner show lab --for minimaxm3/fp8/dynamo-vllm/agentic"): """
lane = block("new-lane.md", "lanes:").partition("  - when: {framework: dynamo-vllm}")[0]
file.write_text(file.read_text().replace("lanes:\\n", lane))
""",
}
"""What a person does in an editor before a command: the guide's own block goes into the file that it speaks of."""


def edit(command: Command) -> str:
    """What is done before a command is typed."""
    page = command.page.rpartition("/")[2]
    code = next((code for (on, begins), code in EDITS.items() if on == page and command.text.startswith(begins)), "")
    return f"python - <<'EOF'\n{BLOCKS}{code}\nEOF\n" if code else ""


ALL = [command for page, text in pages().items() for command in commands(page, text)]


def elsewhere(command: Command) -> str:
    """The test that runs a command which is not typed here, or why none does."""
    return next((why for begins, why in (ELSEWHERE | NOT_RUN).items() if command.text.startswith(begins)), "")


def typed(session: Sequence[str]) -> list[Command]:
    """What is typed in a session; the same command is typed once for pages that begin with the same one."""
    found = {c.text if c.text == "scripts/run" else str(c): c for page in session for c in ALL if c.page == page}
    return [c for c in found.values() if c.session and not elsewhere(c)]


TYPED = [command for session in SESSIONS for command in typed(session)]
TEXTS = {command.text for command in TYPED}
FORMS = [form(command.words) for command in TYPED if command.words]


def is_run(command: Command) -> bool:
    """Whether a test runs a command: itself, or one with its verb and its flags (test_mentions.py runs one of each)."""
    why = elsewhere(command)
    mentioned = not why and not command.session and bool(command.words)
    return command.text in TEXTS or why.endswith(".py") or mentioned


RUN = sum(map(is_run, ALL))


@pytest.mark.parametrize("count", [f"{RUN}-of-{len(ALL)}"])
def test_every_command_is_run_or_has_a_reason(count: str) -> None:
    assert [str(command) for command in ALL if not is_run(command) and not elsewhere(command)] == [], count
    assert [test for test in ELSEWHERE.values() if not (ROOT / test).is_file()] == []
    used = {begins for begins in ELSEWHERE | NOT_RUN if any(c.text.startswith(begins) for c in ALL)}
    assert (ELSEWHERE | NOT_RUN).keys() - used == set(), "nothing begins so any more"


def test_what_is_typed_after_launcher_is_understood() -> None:
    for command in ALL:
        words = command.words
        if not words or words == ["--version"]:
            continue
        form(words)  # its flags are there
        with contextlib.nullcontext() if command.session else contextlib.suppress(SystemExit):
            assert PARSER.parse_args(words)


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


MASKS = (
    (r"\x1b\[[0-9;]*m", ""),
    (r"\b[0-9]{4}-[0-9]{6}(?:-[0-9a-z-]+)?|\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?\b", "TIME"),
    (r"\b(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{6,}\b", "ID"),
    (r"\bjob \d+\b", "job 0"),
    (r"\bafter \d+ s\b", "after 0 s"),
    (r"\d+\.\d+", "0.0"),
    (r"\s+", " "),
)
"""What is another one each time: colours, times, ids, numbers of jobs, what was measured, the width of columns."""


def masked(lines: Sequence[str]) -> list[str]:
    found = []
    for line in lines:
        for pattern, word in MASKS:
            line = re.sub(pattern, word, line)
        if line.strip() and not re.search(
            r", for \d+ s$|^ *[\d.]+s  waiting: ", line
        ):  # said of what takes long, on a busy machine
            found.append(line.strip())
    return found


def stale(sample: Sequence[str], shown: str) -> str:
    """What a page shows beside what was printed, where they differ. ``…`` stands for the rest of a word or line, and
    on a line of its own for any lines."""
    wanted, found = masked(sample), masked(shown.splitlines())
    whole = "".join(
        "(?:.*\n)*?" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + "\n" for line in wanted
    )
    if not wanted or re.fullmatch(whole, "".join(f"{line}\n" for line in found)):
        return ""
    return "\n".join(difflib.unified_diff(wanted, found, "page", "printed", n=1, lineterm=""))


@pytest.mark.slurm
@pytest.mark.parametrize("pages", SESSIONS, ids=lambda pages: pages[0].rpartition("/")[2])
def test_a_page_can_be_typed_and_shows_what_is_printed(
    pages: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    lines = typed(pages)
    real = pages[0].endswith(("one-machine.md", "new-cluster.md"))
    cluster: SlurmCluster | None = request.getfixturevalue("slurm_cluster") if real else None
    sandbox(tmp_path, cluster)
    script = "".join(
        f"{edit(c)}{c.text.replace('/tmp/lab', str(tmp_path))}\ncode=$?; echo; echo '== {i}' $code\n"
        for i, c in enumerate(lines)
    )
    environment = {name: os.environ[name] for name in ("LANG", "LC_ALL", "CI") if name in os.environ}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LAUNCHER_STATE": f"{tmp_path}/state",
        "LAUNCHER_REHEARSAL_SECONDS": "0.05",
    }
    if "new-cluster" in pages[0]:
        assert cluster is not None
        environment["https_proxy"] = "http://127.0.0.1:9"  # the page's reader has no network either
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
    parts = re.split(r"^== \d+ (\d+)$", done.stdout, flags=re.MULTILINE)
    others, codes = parts[::2], list(map(int, parts[1::2]))
    assert len(codes) == len(lines), done.stdout
    wrong = [f"{c}: {code}" for c, code in zip(lines, codes, strict=True) if code != c.code]
    assert wrong == [], done.stdout
    here = {str(tmp_path): "/tmp/lab", str(ROOT): "/tmp/lab", platform.node(): "vm"}
    for path, word in here.items():
        others = [text.replace(path, word) for text in others]
    differ = [f"{c}\n{diff}" for c, text in zip(lines, others, strict=False) if (diff := stale(c.sample, text))]
    assert differ == [], "\n\n".join(differ)
