"""The bytes that a GitHub runner reads."""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.errors import ConfigError, LauncherError
from launcher.core.github import OUTPUT_LIMIT, SUMMARY_LIMIT, GitHub, annotation


class Runner:
    """A runner's side: the files it gives to a step, and its log."""

    def __init__(self, directory: Path) -> None:
        self.output, self.summary, self.stream = directory / "output", directory / "summary", io.StringIO()
        self.environ = {
            "GITHUB_ACTIONS": "true",
            "GITHUB_OUTPUT": str(self.output),
            "GITHUB_STEP_SUMMARY": str(self.summary),
        }
        self.github = GitHub(self.environ, self.stream)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    def outputs(self) -> dict[str, str]:
        """Read the output file as the runner's file-command parser does."""
        found, lines = {}, self.output.read_bytes().decode().split("\n")
        while lines:
            line = lines.pop(0)
            equals, heredoc = line.find("="), line.find("<<")
            if heredoc >= 0 and (equals < 0 or heredoc < equals):
                name, delimiter = line.split("<<", 1)
                end = lines.index(delimiter)
                found[name], lines = "\n".join(lines[:end]), lines[end + 1 :]
            elif equals >= 0:
                found[line[:equals]] = line[equals + 1 :]
            else:
                assert line == "", f"the runner rejects {line!r}"
        return found


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


# Outputs


def test_outputs_of_one_line_and_of_several(runner: Runner) -> None:
    runner.github.output("job_id", "4711")
    runner.github.output("log", "one\ntwo=2\nEOF\nlast<<x")
    runner.github.output("odd", "a=b<<c")
    assert runner.outputs() == {"job_id": "4711", "log": "one\ntwo=2\nEOF\nlast<<x", "odd": "a=b<<c"}


@given(value=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\r")))
def test_any_value_comes_back_and_no_other_output_appears(value: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    runner = Runner(tmp_path_factory.mktemp("runner"))
    runner.github.output("value", value)
    assert runner.outputs() == {"value": value}


def test_the_delimiter_cannot_be_known_beforehand(runner: Runner) -> None:
    runner.github.output("a", "x\ny")
    runner.github.output("b", "x\ny")
    first, second = re.findall(r"<<(\S+)", runner.output.read_text())
    assert first != second


@pytest.mark.parametrize("name", ["", "a=b", "a\nb", "a<<b", "1a"])
def test_an_impossible_name_is_refused(runner: Runner, name: str) -> None:
    with pytest.raises(ConfigError):
        runner.github.output(name, "x")


def test_an_output_above_the_limit_is_refused(runner: Runner) -> None:
    with pytest.raises(ConfigError, match="larger"):
        runner.github.output("big", "x" * OUTPUT_LIMIT)
    assert not runner.output.exists()


def test_an_output_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    github = GitHub({"GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(tmp_path / "nowhere/output")}, io.StringIO())
    with pytest.raises(LauncherError, match="cannot be written"):
        github.output("a", "b")


# Step summary


def test_a_summary_is_appended(runner: Runner) -> None:
    runner.github.summary("# One")
    runner.github.summary("two\n")
    assert runner.summary.read_text() == "# One\ntwo\n"


def test_a_summary_above_the_limit_is_cut_at_a_line_and_says_so(runner: Runner) -> None:
    runner.summary.write_text("from another tool\n")
    lines = "".join(f"| row {number} – ü |\n" for number in range(100_000))
    runner.github.summary(lines)
    runner.github.summary("this comes too late\n" * 100)
    content = runner.summary.read_bytes()
    assert len(content) <= SUMMARY_LIMIT
    assert len(content) > SUMMARY_LIMIT - 200
    text = content.decode()
    kept, note = text.split("\n\n*Cut here")
    assert kept.endswith("|")
    left_out = int(re.search(r"(\d+) bytes are left out", note).group(1))  # type: ignore[union-attr]
    assert left_out == len(lines.encode()) - len(kept.removeprefix("from another tool\n").encode()) - 1


def test_a_single_huge_line_is_cut_whole(runner: Runner) -> None:
    runner.github.summary("x" * (SUMMARY_LIMIT + 1))
    assert "bytes are left out" in runner.summary.read_text()
    assert runner.summary.stat().st_size < 200


def test_a_summary_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    stream = io.StringIO()
    GitHub({"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path / "nowhere/s")}, stream).summary("# x")
    assert stream.getvalue().startswith("::warning::the step summary cannot be written")


def test_the_empty_summary_variable_of_the_single_node_workflow(tmp_path: Path) -> None:
    github = GitHub({"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": ""}, io.StringIO())
    github.summary("# x")


# Annotations


def test_an_annotation_is_escaped(runner: Runner) -> None:
    runner.github.error("100% wrong\r\n::set-output", file="a,b:c.yaml", line=7, title="what: now, 50%")
    assert runner.lines == [
        "::error file=a%2Cb%3Ac.yaml,line=7,title=what%3A now%2C 50%25::100%25 wrong%0D%0A::set-output",
    ]


def test_an_annotation_without_properties(runner: Runner) -> None:
    runner.github.warning("careful")
    assert runner.lines == ["::warning::careful"]
    assert annotation("notice", "by the way") == "::notice::by the way"


@given(st.text())
def test_escaping_leaves_no_line_and_no_separator(text: str) -> None:
    assert not set("\r\n") & set(annotation("error", text).removeprefix("::error::"))
    properties = annotation("error", "", file=text).removeprefix("::error file=").removesuffix("::")
    assert not set("\r\n:,") & set(properties)


@pytest.mark.parametrize(("count", "written"), [(1, 1), (9, 9), (10, 10), (11, 10), (500, 10)])
def test_at_most_ten_annotations_of_a_kind_and_none_is_lost(runner: Runner, count: int, written: int) -> None:
    with runner.github as github:
        for number in range(count):
            github.error(f"point {number} is missing", file="recipe.yaml", line=number)
    assert len(runner.lines) == written
    assert all(f"point {number} is missing" in runner.stream.getvalue() for number in range(count))
    if count == 10:
        assert runner.lines[-1] == "::error file=recipe.yaml,line=9::point 9 is missing"
    if count > 10:
        assert runner.lines[-1].startswith(
            f"::error title={count - 9} more::recipe.yaml:9: point 9 is missing%0Arecipe.yaml:10:"
        )


def test_each_kind_has_its_own_ten(runner: Runner) -> None:
    with runner.github as github:
        for number in range(20):
            github.error(f"e{number}")
            github.warning(f"w{number}")
    assert sum(line.startswith("::error") for line in runner.lines) == 10
    assert sum(line.startswith("::warning") for line in runner.lines) == 10


# Groups, masks, logs


def test_a_group_is_closed_when_its_block_fails(runner: Runner) -> None:
    with pytest.raises(ValueError), runner.github.group("images\nfirst"):
        raise ValueError
    assert runner.lines == ["::group::images%0Afirst", "::endgroup::"]


def test_secrets_are_masked_line_by_line(runner: Runner) -> None:
    runner.github.mask_secrets({"HF_TOKEN": "hf_0123456789", "SSH_KEY": "first-line\nsecond%line"})
    assert set(runner.lines) == {"::add-mask::hf_0123456789", "::add-mask::first-line", "::add-mask::second%25line"}


def obeyed(lines: list[str]) -> list[str]:
    """The commands that a runner would obey: it ignores all but the token between stop and resume."""
    token, found = None, []
    for line in lines:
        if token is not None:
            token = None if line == f"::{token}::" else token
        elif line.startswith("::stop-commands::"):
            token = line.removeprefix("::stop-commands::")
        elif line.startswith("::"):
            found.append(line)
    assert token is None, "the runner was left deaf"
    return found


def test_a_line_of_a_job_log_is_shown_and_never_obeyed(runner: Runner) -> None:
    with runner.github.job_log() as write:
        write("::set-output name=x::y\n")
        write("::stop-commands::mine")
        write("::mine::")
        write("ordinary")
    assert "::set-output name=x::y" in runner.lines
    assert obeyed(runner.lines) == []


def test_own_annotations_take_effect_within_a_job_log(runner: Runner) -> None:
    with runner.github.job_log() as write:
        write("::error::not ours")
        runner.github.error("ours")
        write("::error::not ours either")
    assert obeyed(runner.lines) == ["::error::ours"]


def test_the_runner_listens_again_when_the_log_fails(runner: Runner) -> None:
    with pytest.raises(KeyboardInterrupt), runner.github.job_log() as write:
        write("x")
        raise KeyboardInterrupt
    runner.github.error("heard")
    assert obeyed(runner.lines) == ["::error::heard"]


def test_threads_do_not_mix_within_a_line(runner: Runner) -> None:
    def talk(word: str) -> None:
        for _ in range(200):
            runner.github.warning(word)
            write(word)

    with runner.github.job_log() as write:
        threads = [threading.Thread(target=talk, args=(word * 20,)) for word in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {line for line in runner.lines if not line.startswith("::")} == {word * 20 for word in "abcd"}
    assert len(obeyed(runner.lines)) == 9


def test_outside_of_actions_nothing_is_written_but_the_log(tmp_path: Path) -> None:
    stream = io.StringIO()
    environ = {"GITHUB_OUTPUT": str(tmp_path / "o"), "GITHUB_STEP_SUMMARY": str(tmp_path / "s")}
    with GitHub(environ, stream) as github, github.group("x"), github.job_log() as write:
        github.output("a", "b")
        github.summary("# c")
        github.error("d")
        github.mask_secrets({"HF_TOKEN": "a-secret"})
        write("a line of the log")
    assert stream.getvalue() == "a line of the log\n"
    assert list(tmp_path.iterdir()) == []
