"""Templates of runner files: names are filled in, and nothing else happens to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.core.errors import ConfigError
from launcher.core.shipped import shipped
from launcher.core.yaml_source import Document
from launcher.runner.file import RunnerFile, check_template, fill_in


def test_names_are_filled_in_and_values_are_not_looked_into() -> None:
    values = {"squash": "/s/{name}", "name": "n"}
    assert fill_in("{squash}.lock {name}", values) == "/s/{name}.lock n"
    assert fill_in("{squash.__class__} {name!r:>999999999} {0}", values) == "{squash.__class__} {name!r:>999999999} {0}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{squash.__class__.__mro__}", "is nothing that is filled in here"),
        ("{squash:>99999999}", "is nothing that is filled in here"),
        ("{0}", "is nothing that is filled in here"),
        ("{}", "is nothing that is filled in here"),
        ("{sqash}", "{sqash} is nothing"),
        ("{squash", "is not closed"),
        ("squash}", "is not closed"),
    ],
)
def test_what_is_no_name_is_refused(template: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_template(template, ("squash",), "x.yaml:1")
    assert said in error.value.message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('lock: "{squash}.lock"', 'lock: "{squash.__class__}"'),
        ('job-name: "inferencex-{runner}"', 'job-name: "{runner.__init__}"'),
        ("[uv, venv, --python, /usr/bin/python3, --seed, .venv]", '["{arch.__class__}"]'),
        ("served: gpt-oss-120b}", 'served: "{model.__class__}"}'),
    ],
)
def test_a_runner_file_with_another_placeholder_is_refused_with_its_line(tmp_path: Path, old: str, new: str) -> None:
    text = (shipped("runners") / "gb200-nv.yaml").read_text()
    assert old in text
    changed = text.replace(old, new)
    with pytest.raises(ConfigError, match="nothing that is filled in here") as error:
        RunnerFile(Document("gb200-nv.yaml", changed))
    line = 1 + changed[: changed.index(new)].count("\n")
    assert error.value.where == f"gb200-nv.yaml:{line}"
