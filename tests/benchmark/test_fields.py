"""The table of fields: complete, and without a name twice."""

from __future__ import annotations

import dataclasses

import pytest

from launcher.benchmark.benchmark import Benchmark, Role
from launcher.benchmark.contracts import CALLER_OPTIONS, MULTI_NODE, SECRETS, SINGLE_NODE, Contract
from launcher.benchmark.fields import DECODE_FIELDS, FIELDS, PREFILL_FIELDS, Field

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


@pytest.mark.parametrize("contract", [MULTI_NODE, SINGLE_NODE], ids=["multi-node", "single-node"])
def test_no_variable_stands_twice(contract: Contract) -> None:
    variables = [field.variable for fields in (contract.fields, *contract.roles.values()) for field in fields]
    variables += [*contract.options, *contract.more_options, *contract.settings, *SECRETS]
    assert len(variables) == len(set(variables))
    assert {v for names in contract.not_set_with.values() for v in names} <= set(variables)


def test_the_contracts_differ_where_a_job_of_one_node_has_other_variables() -> None:
    assert {f.attribute for f in FIELDS} - {f.attribute for f in SINGLE_NODE.fields} == {"eval_concurrencies"}
    assert set(MULTI_NODE.marker_variables).isdisjoint(SINGLE_NODE.marker_variables)
    assert set(SINGLE_NODE.not_set_with) <= set(CALLER_OPTIONS)


def test_no_key_stands_twice() -> None:
    keys = [field.key for field in FIELDS if field.key is not None]
    assert len(keys) == len(set(keys))


def test_attributes_without_a_default_are_required_of_a_job() -> None:
    """Else a missing variable would be a TypeError."""
    needed = {f.name for f in dataclasses.fields(Benchmark) if f.default is f.default_factory is dataclasses.MISSING}
    assert needed <= {field.attribute for field in FIELDS if field.required}
