"""The table of fields: complete, and without a name twice."""

from __future__ import annotations

import dataclasses

import pytest

from launcher.benchmark.benchmark import Benchmark, Role
from launcher.benchmark.fields import DECODE_FIELDS, FIELDS, PREFILL_FIELDS, SETTING_KEYS, Field

PUT_TOGETHER = {"prefill", "decode", "settings", "options", "multinode", "key", "source"}
"""What takes more than one variable or key, or none."""


@pytest.mark.parametrize(
    ("holder", "fields", "beside"),
    [(Benchmark, FIELDS, PUT_TOGETHER), (Role, PREFILL_FIELDS, set()), (Role, DECODE_FIELDS, set())],
    ids=["benchmark", "prefill", "decode"],
)
def test_every_attribute_has_one_row(holder: type, fields: tuple[Field, ...], beside: set[str]) -> None:
    attributes = [field.attribute for field in fields]
    assert len(attributes) == len(set(attributes))
    assert set(attributes) | beside == {field.name for field in dataclasses.fields(holder)}
    assert beside.isdisjoint(attributes)


def test_no_variable_and_no_key_stands_twice() -> None:
    variables = [field.variable for field in (*FIELDS, *PREFILL_FIELDS, *DECODE_FIELDS)]
    assert len(variables) == len(set(variables))
    assert SETTING_KEYS.isdisjoint(variables)
    keys = [field.key for field in FIELDS if field.key is not None]
    assert len(keys) == len(set(keys))


def test_attributes_without_a_default_are_required_of_a_job() -> None:
    """Else a missing variable would be a TypeError."""
    needed = {f.name for f in dataclasses.fields(Benchmark) if f.default is f.default_factory is dataclasses.MISSING}
    assert needed <= {field.attribute for field in FIELDS if field.required}
