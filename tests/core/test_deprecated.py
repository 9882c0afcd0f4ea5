"""Old names of flags and of keys in runner files work, and say what to write: by tables of these tests alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import __version__
from launcher.cli import main
from launcher.core import deprecated
from launcher.core.deprecated import DeprecatedName, Renamed
from launcher.core.errors import ConfigError
from launcher.core.yaml_source import Document
from launcher.runner.file import RunnerFile
from tests.benchmarks import a_benchmark
from tests.check.workspaces import RUNNER, CheckedWorkspace

KEYS = (Renamed("lanes.*.tag", "ref", "0.3.0"), Renamed("images.place", "directory", "0.3.0"))
OLD = RUNNER.replace(" ref:", " tag:").replace("images: {directory:", "images: {place:")
CALLED = "tag is called ref now: write that, since launcher 0.3.0 knows tag no more"


def test_what_is_deprecated_works_for_another_minor_version() -> None:
    major, minor = map(int, __version__.split(".")[:2])
    for one in (*deprecated.FLAGS, *deprecated.RUNNER_KEYS):
        assert tuple(map(int, one.gone.split("."))) >= (major, minor + 1, 0), one.old


def test_a_key_by_its_old_name_means_the_same_at_the_same_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        RunnerFile(Document("tiny.yaml", OLD))
    now = RunnerFile(Document("tiny.yaml", RUNNER))
    monkeypatch.setattr(deprecated, "RUNNER_KEYS", KEYS)
    with pytest.warns(DeprecatedName) as told:
        file = RunnerFile(Document("tiny.yaml", OLD))
    assert (
        CALLED in str(told[0].message)
        and file.runner == now.runner
        and len(told) == OLD.count("tag:") + OLD.count("place:") == len(file.renamed)
    )
    assert file.lane(a_benchmark()).where == now.lane(a_benchmark()).where
    both = OLD.replace("images: {place:", "images: {directory: /x, place:")
    with pytest.raises(ConfigError, match="unknown key 'place'"):
        RunnerFile(Document("tiny.yaml", both))


def test_check_finds_it_and_standard_error_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deprecated, "RUNNER_KEYS", KEYS)
    world = CheckedWorkspace(tmp_path)
    world.write("runners/tiny.yaml", OLD)
    argv = ["check", "--runner", "tiny", "--runners", str(tmp_path / "runners"), "--workspace", str(tmp_path)]
    main([*argv, "--rule", "deprecated-name"])
    shown = capsys.readouterr()
    line = 1 + next(i for i, text in enumerate(OLD.splitlines()) if " tag:" in text)
    assert "deprecated-name warning" in shown.out and CALLED in shown.out
    assert shown.err.count(f"tiny.yaml:{line}: {CALLED}") == 1 and "launcher: deprecated: " in shown.err


def test_a_flag_by_its_old_name_is_the_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = Renamed("status --younger", "--since", "0.3.0"), Renamed("--records", "--state", "0.3.0")
    monkeypatch.setattr(deprecated, "FLAGS", names)
    for argv in (["status", "--younger=1h", "--records", "S"], ["--records", "S", "status", "--younger", "1h"]):
        assert main(argv) == 0
        said = capsys.readouterr().err
        assert said.count("launcher status: --younger is called --since now: write that") == 1
        assert said.count("--records is called --state now") == 1
    with pytest.raises(SystemExit):
        main(["logs", "--younger", "1h"])
    assert "has no flag --younger" in capsys.readouterr().err
