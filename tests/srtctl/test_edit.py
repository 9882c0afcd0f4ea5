"""Edits of recipes; the recorded cases say what the launchers' `sed` made of real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.core.errors import ConfigError
from launcher.core.yaml_source import Document
from launcher.runner.schema import Edit
from launcher.srtctl.edit import apply_edits, with_comment
from launcher.srtctl.recipe import variants
from tests.shared import SHARED, needs_shared

BASED = """
base:
  health_check: {max_attempts: 360}
  backend: {prefill_environment: {A: "1"}, decode_environment: {}}
override_a:
  health_check: {max_attempts: 540}
override_b: {}
zip_override_c:
  health_check: {max_attempts: [1, 2]}
  benchmark: {concurrencies: [[4], [8]]}
"""


def edited(text: str, *edits: Edit) -> dict[str, Any]:
    return apply_edits(yaml.safe_load(text), edits)


class TestEdits:
    def test_set_makes_the_way(self) -> None:
        assert edited("{a: 1}", Edit(("x", "y"), "v")) == {"a": 1, "x": {"y": "v"}}
        assert edited("x: null", Edit(("x", "y"), "v")) == {"x": {"y": "v"}}

    def test_only_if_present(self) -> None:
        edit = Edit(("x", "y"), 2, only_if_present=True)
        assert edited("{x: {y: 1}}", edit) == {"x": {"y": 2}}
        assert edited("{x: {}}", edit) == {"x": {}}
        assert edited("{}", edit) == {}

    def test_remove(self) -> None:
        assert edited("{x: {y: 1, z: 2}}", Edit(("x", "y"), remove=True)) == {"x": {"z": 2}}
        assert edited("{}", Edit(("x", "y"), remove=True)) == {}

    def test_a_star_means_what_is_there(self) -> None:
        edit = Edit(("backend", "*_environment", "V"), "1")
        text = "backend: {type: vllm, prefill_environment: {A: b}, decode_environment: {}}"
        backend = {"type": "vllm", "prefill_environment": {"A": "b", "V": "1"}, "decode_environment": {"V": "1"}}
        assert edited(text, edit) == {"backend": backend}
        assert edited("backend: {type: vllm}", edit) == {"backend": {"type": "vllm"}}

    def test_beside_another_key(self) -> None:
        edit = Edit(("c", "*", "new"), 1, beside="old")
        assert edited("c: {p: {old: 0}, d: {}}", edit) == {"c": {"p": {"old": 0, "new": 1}, "d": {}}}

    def test_into_json(self) -> None:
        edit = Edit(("c", "*", "j"), {"b": 2}, into_json=True)
        assert edited("""c: {p: {j: '{"a": 1}'}, d: {}}""", edit) == {"c": {"p": {"j": '{"a":1,"b":2}'}, "d": {}}}
        with pytest.raises(ConfigError, match="JSON"):
            edited("c: {p: {j: text}}", edit)

    def test_a_value_in_the_way(self) -> None:
        with pytest.raises(ConfigError, match="not a mapping"):
            edited("x: 1", Edit(("x", "y"), 1))

    def test_required(self) -> None:
        with pytest.raises(ConfigError, match=r"x\.y"):
            edited("{}", Edit(("x", "y"), 1, only_if_present=True, required=True))

    def test_edits_come_in_order_and_on_a_copy(self) -> None:
        document = {"x": {"y": 1}}
        changed = apply_edits(document, [Edit(("x",), remove=True), Edit(("x", "z"), 2)])
        assert (changed, document) == ({"x": {"z": 2}}, {"x": {"y": 1}})

    def test_aliases_of_yaml_are_separate_places(self) -> None:
        document = yaml.safe_load("{p: &e {A: '1'}, d: *e}")
        assert apply_edits(document, [Edit(("p", "B"), "2")]) == {"p": {"A": "1", "B": "2"}, "d": {"A": "1"}}
        assert document["p"] == {"A": "1"}


class TestBaseForm:
    def test_reaches_every_variant(self) -> None:
        changed = edited(BASED, Edit(("health_check", "max_attempts"), 720))
        attempts = [v.document["health_check"]["max_attempts"] for v in variants(changed)]
        assert attempts == [720, 720, 720, 720]
        assert "health_check" not in changed["override_b"]

    def test_only_if_present_and_remove(self) -> None:
        changed = edited(BASED, Edit(("health_check", "max_attempts"), 720, only_if_present=True))
        assert changed["override_a"] == {"health_check": {"max_attempts": 720}}
        removed = edited(BASED, Edit(("health_check",), remove=True))
        assert all("health_check" not in v.document for v in variants(removed))

    def test_a_list_means_itself_in_a_zip_group_too(self) -> None:
        changed = edited(BASED, Edit(("benchmark", "concurrencies"), [1, 2, 3]))
        assert [v.document["benchmark"]["concurrencies"] for v in variants(changed)] == [[1, 2, 3]] * 4

    def test_a_zip_group_keeps_its_number_of_variants(self) -> None:
        text = "{base: {}, zip_override_c: {benchmark: {concurrencies: [[4], [8]]}}}"
        for value in (16, [16]):
            changed = edited(text, Edit(("benchmark", "concurrencies"), value))
            assert [v.document["benchmark"]["concurrencies"] for v in variants(changed)] == [value, value]

    def test_environments(self) -> None:
        changed = edited(BASED, Edit(("backend", "*_environment", "V"), "1"))
        assert changed["base"]["backend"] == {
            "prefill_environment": {"A": "1", "V": "1"},
            "decode_environment": {"V": "1"},
        }

    def test_can_be_left_alone_as_sed_did(self) -> None:
        assert edited(BASED, Edit(("health_check", "max_attempts"), 720, base_form=False)) == yaml.safe_load(BASED)


class TestComment:
    def test_plain_and_base_form(self) -> None:
        assert with_comment({"sbatch_directives": {"mem": "0"}}, "t-1")["sbatch_directives"] == {
            "mem": "0",
            "comment": "t-1",
        }
        changed = with_comment({"base": {}, "override_x": {"name": "x"}}, "t-1")
        assert variants(changed)[0].document["sbatch_directives"] == {"comment": "t-1"}
        assert "sbatch_directives" not in changed

    def test_the_recipes_own_comment_stays(self) -> None:
        document = {"sbatch_directives": {"comment": "reaper"}}
        assert with_comment(document, "t-1") == document

    @pytest.mark.parametrize("token", ["", "a b", "a'b", "a\nb", "a#b", "$x"])
    def test_a_token_that_sbatch_would_not_carry(self, token: str) -> None:
        with pytest.raises(ConfigError, match="comment"):
            with_comment({}, token)

    def test_directives_that_are_no_mapping(self) -> None:
        with pytest.raises(ConfigError, match="mapping"):
            with_comment({"sbatch_directives": ["a"]}, "t")


ATTEMPTS = Edit(("health_check", "max_attempts"), 720, only_if_present=True)
WHOLE_CHECK = Edit(("health_check",), {"max_attempts": 720, "interval_seconds": 10})
TIMEOUT = Edit(("backend", "sglang_config", "*", "dist-timeout"), 1800, beside="watchdog-timeout")
EXCLUDE = Edit(("sbatch_directives", "exclude"), "b300-018")


def synthetic(length: float) -> Edit:
    values = {"rejection_sample_method": "synthetic", "synthetic_acceptance_length": length}
    return Edit(("backend", "vllm_config", "*", "speculative-config"), values, into_json=True, required=True)


@needs_shared
@pytest.mark.parametrize(
    ("case", "edit"),
    [
        ("b200-dgxc-dynamo-vllm-dsv4-fp4-843c-0234", ATTEMPTS),
        ("b200-dgxc-dynamo-vllm-kimik3-fp4-agentic-843c-0576", ATTEMPTS),
        ("h100-dgxc-dynamo-sglang-dsr1-fp8-843c-0122", TIMEOUT),
        ("h200-dgxc-dynamo-sglang-dsv4-fp8-agentic-843c-0089", WHOLE_CHECK),
        ("h200-dgxc-dynamo-trt-dsr1-fp8-843c-0094", WHOLE_CHECK),
        ("b300-nv-dynamo-vllm-minimaxm3-fp4-91b7-0021", EXCLUDE),
        ("gb200-nv-dynamo-vllm-dsv4-fp4-843c-0248", synthetic(2.27)),
        ("gb300-nv-dynamo-vllm-kimik3-fp4-agentic-843c-0569", synthetic(3.36)),
    ],
)
def test_the_launchers_mutations_as_recorded(case: str, edit: Edit) -> None:
    assert SHARED is not None
    recorded = json.loads((SHARED / "cases" / f"{case}.json").read_text())
    path = recorded["environment"]["CONFIG_FILE"]
    inner = path.removeprefix("recipes/").removeprefix("benchmarks/multi_node/srt-slurm-recipes/")
    overlay = SHARED / "inferencex" / "benchmarks" / "multi_node" / "srt-slurm-recipes" / inner
    trees: list[Path] = [overlay, *(tree / path for tree in (SHARED / "srt-slurm").iterdir())]
    file = next(f for f in trees if f.is_file())
    original = Document.read(file, strict=False).mapping()
    changed = apply_edits(original, [edit])
    named = {"name": recorded["recipe"]["name"]}
    assert {**changed, **named} == recorded["recipe"]
    assert changed != original
