"""`launcher check` as typed: what it looks at, its exit codes, its formats, its baseline."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest

from launcher.check.report import RULES
from launcher.cli import main
from launcher.cli.checking import CheckAnswer, FindingLine, show
from launcher.core.lines import Terminal
from tests.benchmarks import a_recipe
from tests.check.workspaces import CheckedWorkspace


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckedWorkspace:
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_WORKSPACE", "LAUNCHER_RUNNERS", "LAUNCHER_RECIPES"):
        monkeypatch.delenv(name, raising=False)
    return CheckedWorkspace(tmp_path / "ws")


def check(checked: CheckedWorkspace, *argv: str) -> int:
    places = ["--workspace", str(checked.root), "--state", str(checked.root / "state")]
    return main(["check", "--matrix", str(checked.root / "configs/t-master.yaml"), *places, *argv])


def spoil(checked: CheckedWorkspace) -> None:
    checked.recipe("r.yaml", {**a_recipe(), "bogus": 1})


def test_without_a_selection_everything_is_checked(
    checked: CheckedWorkspace, capsys: pytest.CaptureFixture[str]
) -> None:
    checked.recipe("unused.yaml", {**a_recipe(), "bogus": 1})
    assert check(checked, "--rule", "recipe-refused") == 0
    said = capsys.readouterr()
    assert said.out.startswith("recipe-refused warning ") and said.out.count("\n") == 1
    assert said.err.startswith("1 row, ") and "0 errors, 1 warning, 0 notes" in said.err


def test_a_selection_leaves_the_rest_alone(checked: CheckedWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(checked)
    checked.recipe("unused.yaml", {**a_recipe(), "bogus": 1})
    assert check(checked, "-k", "minimaxm3*") == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["unknown-field", "error"]]
    _, _, where, message = lines[0].split(" ", 3)
    path, _, line = where.rpartition(":")
    assert "bogus" in Path(path).read_text().splitlines()[int(line) - 1] and "bogus" in message


def test_rules_can_be_picked_and_decide_the_exit_code(
    checked: CheckedWorkspace, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(checked)
    assert check(checked, "-k", "minimaxm3*", "--rule", "workers", "precision") == 0
    assert capsys.readouterr().out == ""
    assert check(checked, "--rule", "worker") == 2
    assert "did you mean 'workers'?" in capsys.readouterr().err


def test_findings_of_one_rule_stand_together_worst_first_and_all_of_them_where_that_is_asked() -> None:
    places = [f"f.yaml:{number}" for number in range(1, 6)]
    found = [FindingLine("workers", "error", "bad", place) for place in places]
    found += [FindingLine("moving-ref", "warning", "moves", place) for place in places]
    found += [FindingLine("sha-unknown", "note", "unknown", "f.yaml:9")]
    lines = list(show(CheckAnswer(tuple(found)), Terminal()))
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["workers", "moving-ref", "sha-unknown"]
    assert len([line for line in lines if "bad" in line]) == 5, "no error is left out"
    assert "  and 2 more: --verbose shows all, --rule moving-ref these" in lines
    assert len(list(show(CheckAnswer(tuple(found), every=True), Terminal()))) == len(found)
    assert all(len(line) <= 40 for line in show(CheckAnswer(tuple(found)), Terminal(40)))


def test_github_takes_the_annotations_for_commands(
    checked: CheckedWorkspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(checked)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert check(checked, "-k", "minimaxm3*", "--format", "github") == 1
    assert capsys.readouterr().out.startswith("::error file=")


@pytest.mark.parametrize("how", ["json", "github", "sarif"])
def test_formats(checked: CheckedWorkspace, capsys: pytest.CaptureFixture[str], how: str) -> None:
    spoil(checked)
    assert check(checked, "-k", "minimaxm3*", "--format", how) == 1
    out = capsys.readouterr().out
    file = f"{checked.overlay}/r.yaml"
    if how == "json":
        assert [one["rule"] for one in json.loads(out)] == ["unknown-field"]
    elif how == "github":
        assert out.startswith(f"::error file={file},line=") and out.count("\n") == 1
    else:
        place = json.loads(out)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == file


def test_json_is_a_format_of_its_own_name(checked: CheckedWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(checked, "-k", "minimaxm3*", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_baseline_is_written_and_read_again(checked: CheckedWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(checked)
    file = checked.root / "accepted.yaml"
    assert check(checked, "-k", "minimaxm3*", "--write-baseline", str(file)) == 0
    assert "place: benchmarks/multi_node/" in file.read_text()
    assert check(checked, "-k", "minimaxm3*", "--baseline", str(file)) == 0
    assert capsys.readouterr().out == ""
    checked.recipe("r.yaml")
    assert check(checked, "--baseline", str(file), "--rule", "baseline-unused") == 0
    assert capsys.readouterr().out.startswith(f"baseline-unused warning {file}:2 ")


@pytest.mark.parametrize("file", ["none.yaml", "/no/such/directory/x.yaml"])
def test_a_baseline_that_is_not_there(checked: CheckedWorkspace, capsys: pytest.CaptureFixture[str], file: str) -> None:
    assert check(checked, "-k", "minimaxm3*", "--baseline", file) == 2
    assert "none.yaml" in (err := capsys.readouterr().err) or "x.yaml" in err


def test_a_baseline_that_cannot_be_written(checked: CheckedWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(checked, "-k", "minimaxm3*", "--write-baseline", "/no/such/directory/x.yaml") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_rule_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--explain", "unknown-field"]) == 0
    page = capsys.readouterr().out
    assert page == (Path(__file__).parents[2] / "docs/rules/unknown-field.md").read_text()
    assert main(["check", "--explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(RULES)
    assert main(["check", "--explain", "unknown-feld"]) == 2
    assert "did you mean 'unknown-field'?" in capsys.readouterr().err


def test_garbage_is_collected_again_after_a_check(checked: CheckedWorkspace) -> None:
    assert gc.isenabled()
    check(checked, "-k", "minimaxm3*")
    assert gc.isenabled()


def test_a_tree_tells_what_recipes_may_say(checked: CheckedWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    """A sha that the tables lack is judged by the checkout that --srt-slurm has of it."""
    spoil(checked)
    sha = "7" * 39 + "a"
    text = (checked.root / "runners/tiny.yaml").read_text()
    checked.write(
        "runners/tiny.yaml", text.replace("e4019633c9e2bc25f38c44b81edf52bb0504d937", sha).replace("v1.0.50", "mine")
    )
    assert check(checked, "-k", "minimaxm3*", "--rule", "unknown-field", "schema-unknown") == 0
    assert "schema-unknown note" in capsys.readouterr().out
    source = "@dataclass\nclass SrtConfig:\n    name: str\n"
    checked.write(f"trees/{sha}/src/srtctl/core/schema.py", source)
    assert (
        check(checked, "-k", "minimaxm3*", "--srt-slurm", str(checked.root / "trees"), "--rule", "unknown-field") == 1
    )
    assert "srt-slurm mine refuses the recipe: bogus is an unknown key" in capsys.readouterr().out


def test_a_mirror_tells_which_commits_there_are(checked: CheckedWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    import subprocess

    from launcher.srtctl.mirror import Git, Mirror

    url = "https://example.org/srt-slurm.git"
    cache = checked.root / "cache"
    mirror = Mirror(cache, url, Git()).path
    mirror.mkdir(parents=True)
    environ = {"GIT_CONFIG_GLOBAL": "/dev/null", "PATH": "/usr/bin:/bin", "HOME": str(checked.root)}
    subprocess.run(["git", "init", "-q", "--bare", str(mirror)], check=True, env=environ)
    tree = subprocess.run(
        ["git", "-C", str(mirror), "mktree"], input="", capture_output=True, text=True, check=True, env=environ
    ).stdout.strip()
    argv = ["git", "-C", str(mirror), "-c", "user.name=a", "-c", "user.email=a@b", "commit-tree", "-m", "x", tree]
    sha = subprocess.run(argv, capture_output=True, text=True, check=True, env=environ).stdout.strip()
    text = (checked.root / "runners/tiny.yaml").read_text().replace("cache: /cache", f"cache: {cache}")
    for pinned, expected in ((sha, ""), ("7" * 39 + "a", "sha-missing error")):
        changed = text.replace("e4019633c9e2bc25f38c44b81edf52bb0504d937", f"'{pinned}'").replace("v1.0.50", "mine")
        checked.write("runners/tiny.yaml", changed)
        check(checked, "-k", "minimaxm3*", "--rule", "sha-missing", "sha-unknown")
        out = capsys.readouterr().out
        assert out.startswith(expected) if expected else out == ""


def test_a_runner_alone_is_checked_with_the_rows_that_it_serves(
    checked: CheckedWorkspace, capsys: pytest.CaptureFixture[str]
) -> None:
    check(checked, "--runner", "tiny")
    assert "1 runner file" in (said := capsys.readouterr().err) and not said.startswith("0 rows")
    checked.write(
        "runners/tiny.yaml", (checked.root / "runners/tiny.yaml").read_text().replace("tiny-rack", "of-nobody")
    )
    check(checked, "--runner", "tiny")
    assert capsys.readouterr().err.startswith("0 rows, 0 recipe files, 1 runner file")
