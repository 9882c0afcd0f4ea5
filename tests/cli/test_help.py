"""Help, the manual page and completion: of the parsers; held against commands.txt and the shells."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.cli.arguments import parser
from launcher.cli.helping import SCRIPTS, candidates, every_command, manual

COMMANDS = list(every_command(parser()))


def _name(command: argparse.ArgumentParser) -> str:
    return command.prog.partition(" ")[2]


def test_every_command_has_a_sentence_two_examples_and_a_description_of_each_flag() -> None:
    for command in COMMANDS[1:]:
        assert command.text.sentence.endswith((".", "?")), command.prog
        assert len(command.text.examples) == 2, command.prog
    lacking = [f"{c.prog} {a.dest}" for c in COMMANDS for a in (*c.positionals, *c.flags) if not (a.help or c.commands)]
    assert lacking == []


@pytest.mark.parametrize("example", [e for command in COMMANDS for e in command.text.examples])
def test_an_example_is_a_command_line(example: str) -> None:
    if example.startswith("eval "):
        example = example.removeprefix('eval "$(').removesuffix(')"')
    words = shlex.split(example.partition(" | ")[0].partition(" > ")[0])
    assert words[0] == "launcher"
    assert parser().parse_args(words[1:]).command


def test_help_fits_80_columns_and_says_where_things_are_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in COMMANDS:
        shown = command.format_help()
        assert max(map(len, shown.splitlines())) <= 80, command.prog
        assert ("--workspace DIR" in shown) == (command.prog == "launcher"), command.prog
        assert not command.commands or all(f"\n  {verb} " in shown for verb in command.listed), command.prog


def test_flags_of_all_commands_stand_before_the_command_or_after_it() -> None:
    before = parser().parse_args(["--state", "S", "-q", "sweep", "--color", "never", "status", "m3"])
    after = parser().parse_args(["sweep", "status", "m3", "--state", "S", "-q", "--color", "never"])
    assert before == after and (after.state, after.quiet, after.color, after.verbose) == ("S", True, "never", None)


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("statsu", "launcher has no command 'statsu'\n  hint: did you mean status?"),
        ("sweep stat m3", "launcher sweep has no command 'stat'\n  hint: did you mean start?"),
        ("status --jsn", "launcher status has no flag --jsn\n  hint: did you mean --json?"),
        ("status --js", "launcher status has no flag --js\n  hint: did you mean --json?"),
        ("--stat=x status", "launcher has no flag --stat\n  hint: did you mean --state?"),
        ("run --runer=gb200-nv", "launcher run has no flag --runer\n  hint: did you mean --runner?"),
        (
            "check --format sarf",
            "--format is one of text, json, github, sarif, not 'sarf'\n  hint: did you mean sarif?",
        ),
        ("sweep --max-jobs 2 start", "--max-jobs stands before 'start', and belongs behind it"),
        ("logs", "RUN\n  hint: launcher logs --help tells what there is"),
    ],
)
def test_what_was_meant_is_said(line: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2 and printed in capsys.readouterr().err


def test_launcher_alone_says_what_to_do_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().out
    assert "launcher plan -k KEY" in shown and max(map(len, shown.splitlines())) <= 80


def test_version_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["executable"] == sys.executable


def test_colours_are_had_and_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.setenv(name, "")
    for how, coloured in (("always", True), ("never", False), ("auto", False)):
        assert main(["--color", how, "runner", "list"]) == 0
        assert ("\x1b[1m" in capsys.readouterr().out) == coloured, how
        monkeypatch.setenv("NO_COLOR", "")
        monkeypatch.setenv("FORCE_COLOR", "")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    for name in ("runs/m3-1", "runs/m4-1", "sweeps/m3"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("statu", ["status"]),
        ("sweep st", ["start", "status", "stop"]),
        ("status --js", ["--json"]),
        ("status --state S --js", ["--json"]),
        ("--state S status m3", ["m3-1"]),
        ("cancel --state S m3-1 m", ["m3-1", "m4-1"]),
        ("--state S sweep pause m", ["m3"]),
        ("results --state S ", ["m3", "m3-1", "m4-1"]),
        ("run --runner gb", ["gb200-nv", "gb300-nv"]),
        ("runner show gb", ["gb200-nv", "gb300-nv"]),
        ("check -k a b --format s", ["sarif"]),
        ("check --explain alias-u", ["alias-unregistered"]),
        ("run --workspace ", []),
        ("remote-a", []),
    ],
)
def test_what_a_word_may_be(line: str, found: list[str], state: Path) -> None:
    words = [str(state) if word == "S" else word for word in line.split(" ")]
    assert sorted(word for word, _ in candidates(parser(), words)) == found


SHELLS = {
    "bash": ["bash", "--norc", "-c", 'eval "$S"; COMP_WORDS=(launcher status --js); COMP_CWORD=2; _launcher; '
             'echo "${COMPREPLY[@]}"'],
    "zsh": ["zsh", "-f", "-c", 'compdef() {}; _describe() { print -l -- "${(@P)2}" }; eval "$S"; '
            "words=(launcher status --js); CURRENT=3; _launcher"],
    "fish": ["fish", "--no-config", "-c", 'echo "$S" | source; complete -C "launcher status --js"'],
}  # fmt: skip


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if shutil.which(shell)])
def test_a_shell_completes(shell: str, tmp_path: Path) -> None:
    program = tmp_path / "launcher"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m launcher "$@"\n')
    program.chmod(0o755)
    environment = {"S": SCRIPTS[shell], "PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    answer = subprocess.run(SHELLS[shell], env=environment, capture_output=True, text=True, timeout=60)
    assert answer.stdout.startswith("--json"), answer


def test_the_manual_page_has_every_command_and_no_request_of_its_own() -> None:
    page = manual(parser())
    macros = {line.split(" ")[0] for line in page.splitlines() if line.startswith((".", "'"))}
    assert macros <= {".TH", ".SH", ".B", ".PP", ".TP", ".nf", ".fi"}
    for command in COMMANDS[1:]:
        assert f".SH {_name(command).upper()}".replace("-", "\\-") in page
    assert "tput_per_gpu:\\-5%" in page and "%%" not in page


@pytest.mark.parametrize("man", [found] if (found := shutil.which("man")) else [])
def test_man_shows_it_without_a_warning(man: str, tmp_path: Path) -> None:
    (tmp_path / "launcher.1").write_text(manual(parser()))
    argv = [man, "--warnings=all", "-E", "UTF-8", "-l", str(tmp_path / "launcher.1")]
    answer = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    )
    assert answer.returncode == 0 and answer.stderr == "" and "SWEEP GO-ON" in answer.stdout


def test_the_pages_of_the_documentation_are_topics(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    listed = capsys.readouterr().out
    assert "guides/new-cluster" in listed and "rules/" not in listed
    docs = Path(__file__).parents[2] / "docs"
    for topic, page in (
        ("new-cluster", "guides/new-cluster.md"),
        ("design", "design.md"),
        ("sha-other", "rules/sha-other.md"),
    ):
        assert main(["help", topic]) == 0
        assert capsys.readouterr().out == (docs / page).read_text(encoding="utf-8")
    assert main(["help", "sweps"]) == 2
    assert "did you mean 'sweeps'?" in capsys.readouterr().err
