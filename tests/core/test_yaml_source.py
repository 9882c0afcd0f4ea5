"""YAML input: the values, and the line of whatever is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from launcher.core.errors import ConfigError
from launcher.core.shipped import shipped
from launcher.core.yaml_source import Document, SourceLocation

TEXT = """\
name: x
table:
  - {a: 1}
  - a: 2
    b: [1, 2]
"""


def test_lines_are_those_of_the_keys() -> None:
    document = Document("f.yaml", TEXT)
    assert document.location(("table",)) == "f.yaml:2"
    assert document.location(("table", 1, "b")) == "f.yaml:5"
    assert document.location(("table", 1, "missing")) == "f.yaml:4"
    assert str(SourceLocation(document, "nothing")) == "f.yaml:1"


def test_a_merged_key_is_found_where_it_is_said() -> None:
    document = Document("f.yaml", "base: &b\n  x: 1\nuser:\n  <<: *b\n  y: 2\n")
    assert document.data["user"] == {"x": 1, "y": 2}
    assert document.location(("user", "x")) == "f.yaml:2"


def test_the_line_of_a_key_is_that_of_the_one_that_counts() -> None:
    text = "base: &b {x: 1, z: {w: 1}}\nuser:\n  <<: *b\n  y: 2\n  x: 3\nsame: *b\n"
    document = Document("f.yaml", text)
    assert document.location(("user", "x")) == "f.yaml:5"
    assert document.location(("user", "z", "w")) == "f.yaml:1"
    assert document.location(("same", "z", "w")) == "f.yaml:1"
    twice = Document("f.yaml", "a: {x: 1}\nb: 2\na:\n  y: 1\n", strict=False)
    assert twice.data == {"a": {"y": 1}, "b": 2}
    assert (twice.location(("a", "y")), twice.location(("b",)), twice.repeated) == ("f.yaml:4", "f.yaml:2", [("a", 3)])


def test_keys_that_are_no_text_have_lines_too() -> None:
    document = Document("f.yaml", "a:\n- 1:\n    b: 2\n- - [3,\n     4]\n")
    assert document.location(("a", 0, 1, "b")) == document.location(("a", 0, "1", "b")) == "f.yaml:3"
    assert document.location(("a", 1, 0, 1)) == "f.yaml:5"
    assert document.location(("a", 1, 0, 2)) == "f.yaml:4"


def test_lines_are_those_of_the_parsers_own_nodes() -> None:
    """Every place of the shipped runner files, by what PyYAML says of it."""
    for path in shipped("runners").glob("*.yaml"):
        document = Document.read(path)
        keys = list(every_place(yaml.compose(document.text), ()))
        assert len(keys) > 20
        for place, line in keys:
            assert document.location(place) == f"{path}:{line + 1}", place


def every_place(node: yaml.Node, at: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "<<":  # the keys of another mapping, which stand there
                continue
            yield (*at, key.value), key.start_mark.line
            yield from every_place(value, (*at, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*at, i), value.start_mark.line
            yield from every_place(value, (*at, i))


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
    with pytest.raises(ConfigError, match="expected a mapping"):
        Document("f.yaml", text).mapping()


def test_a_file_that_is_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Document.read(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        Document.read(tmp_path / "binary.yaml")
