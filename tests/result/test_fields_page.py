"""docs/reference/result-fields.md is made of the tables, and nothing in them is without use."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
from pathlib import Path
from types import ModuleType

from launcher.result.row_fields import tables

ROOT = Path(__file__).resolve().parents[2]


def generator() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("result_fields", str(ROOT / "scripts/result_fields"))
    spec = importlib.util.spec_from_loader("result_fields", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_tables() -> None:
    made = generator()
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run scripts/result_fields"
    assert {name for names in made._SECTIONS.values() for name in names} == set(tables())


def test_every_number_of_a_row_has_a_unit() -> None:
    for name, table in tables().items():
        for key, field in table.items():
            assert field.unit or not field.share, f"{name}: {key}"
            assert field.means or field.variable or field.share, f"{name}: {key}"
            assert not (field.share and field.variable), f"{name}: {key}"


def test_the_page_names_every_variable() -> None:
    text = (ROOT / "docs/reference/result-fields.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Z][A-Z_0-9]+)`", text))
    assert named >= {field.variable for table in tables().values() for field in table.values() if field.variable}
