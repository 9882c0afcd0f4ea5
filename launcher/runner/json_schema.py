"""The JSON Schema of runner files, for editors: made of the types of this room and the sentences under their fields.

`launcher runner schema` prints it; ``runners/runner.schema.json`` is that output, and a test holds them together.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from launcher.runner import cluster_schema, container_schema
from launcher.runner import schema as types

FILE = "runner.schema.json"
"""The schema's file, beside the runner files."""

MODELINE = f"# yaml-language-server: $schema={FILE}"
"""First line of a runner file, which tells an editor where the schema is (relative to the file)."""

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def text() -> str:
    """The schema as the file holds it."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def json_schema() -> dict[str, Any]:
    """The schema of a runner file (draft 2020-12), each key with its description and its default."""
    generated = msgspec.json.schema(types.Runner)
    described: dict[str, dict[str, str]] = {}
    for module in (container_schema, cluster_schema, types):
        described |= _described(ast.parse(Path(inspect.getfile(module)).read_text(encoding="utf-8")))
    for name, definition in generated["$defs"].items():
        definition["description"] = _plain(definition["description"])
        for key, schema in definition["properties"].items():
            # Without empty defaults: an editor should not propose to write `null` or all keys of a rule.
            if schema.get("default", ...) in (None, [], {}) or isinstance(schema.get("default"), dict):
                del schema["default"]
            if sentence := described[name].get(key):
                schema["description"] = sentence
    # No `$ref` at the top: an editor that knows draft 7 only would ignore what stands beside it.
    root = generated["$defs"].pop(types.Runner.__name__)
    return {"$schema": _DRAFT, **root, "title": "launcher runner file", "$defs": generated["$defs"]}


def _described(module: ast.Module) -> dict[str, dict[str, str]]:
    """Class → key as a file spells it → the docstring of the field, its own or that of its base."""
    described: dict[str, dict[str, str]] = {}
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            described[node.name] = {}
            for base in node.bases:
                described[node.name] |= described.get(base.id, {}) if isinstance(base, ast.Name) else {}
            described[node.name] |= _fields(node)
    return described


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            yield field.target.id.replace("_", "-"), _plain(str(below.value.value))


def _plain(docstring: str) -> str:
    """A docstring as an editor shows it: a paragraph is one line, and code stands in single backticks."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(" ".join(p.split()) for p in paragraphs).replace("``", "`")
