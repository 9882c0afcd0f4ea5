"""YAML input: the values, and the line of whatever is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.document import Document, Place, nearest
from launcher.errors import ConfigError

TEXT = """\
name: x
table:
  - {a: 1}
  - a: 2
    b: [1, 2]
"""


def test_lines_are_those_of_the_keys() -> None:
    document = Document("f.yaml", TEXT)
    assert document.where(("table",)) == "f.yaml:2"
    assert document.where(("table", 1, "b")) == "f.yaml:5"
    assert document.where(("table", 1, "missing")) == "f.yaml:4"
    assert str(Place(document, "nothing")) == "f.yaml:1"


def test_a_merged_key_is_found_where_it_is_said() -> None:
    document = Document("f.yaml", "base: &b\n  x: 1\nuser:\n  <<: *b\n  y: 2\n")
    assert document.data["user"] == {"x": 1, "y": 2}
    assert document.where(("user", "x")) == "f.yaml:2"


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [1, 2\nb: 3\n", 2), ("a: 1\na: 2\n", 2), ("a: 'x\n", 2), ("\tx: 1\n", 1)],
)
def test_what_is_not_yaml_is_an_error_with_its_line(text: str, line: int) -> None:
    with pytest.raises(ConfigError) as error:
        Document("f.yaml", text)
    assert error.value.where == f"f.yaml:{line}"


def test_recipes_of_others_may_repeat_a_key() -> None:
    assert Document("f.yaml", "a: 1\na: 2\n", strict=False).data == {"a": 2}


@pytest.mark.parametrize("text", ["", "- 1\n", "word\n"])
def test_a_document_that_must_be_a_mapping_and_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="a mapping is expected"):
        Document("f.yaml", text).mapping()


def test_a_file_that_is_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Document.read(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        Document.read(tmp_path / "binary.yaml")


def test_nearest() -> None:
    assert nearest("partiton", ["partition", "account"]) == "partition"
    assert nearest("zzz", ["partition"]) is None
