"""Recipes as srtctl reads them. What `TestAsSrtctl` expects are srtctl's own answers, recorded with the real thing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.errors import ConfigError
from launcher.core.yaml_source import Document
from launcher.srtctl.recipe import Variant, dump, family_member, split_selector, variants
from tests.shared import SHARED, needs_shared

BASED: dict[str, Any] = yaml.safe_load("""
base:
  name: demo
  backend: {type: sglang, connector: null, sglang_config: {prefill: {tp-size: 4, gone: 1}, decode: {tp-size: 4}}}
  resources: {decode_nodes: 1}
  benchmark: {concurrencies: [4, 8]}
override_highconc:
  benchmark: {concurrencies: [64]}
override_named:
  name: my-own-name
  slurm: {time_limit: "02:00:00"}
  backend: {sglang_config: {prefill: {gone: null}}}
zip_override_tp:
  resources: {decode_nodes: [1, 2, 4]}
  benchmark: {concurrencies: [[4], [8, 16], [32]]}
  backend: {sglang_config: {decode: {tp-size: [4, 8, 16], mem-fraction-static: [0.8]}}}
""")


def one(document: dict[str, Any], selector: str | None) -> Variant:
    (found,) = variants(document, selector)
    return found


class TestSelector:
    @pytest.mark.parametrize(
        ("argument", "expected"),
        [
            ("a/b.yaml", ("a/b.yaml", None)),
            ("a/b.yaml:base", ("a/b.yaml", "base")),
            ("a/b.yaml:override_x-1.y", ("a/b.yaml", "override_x-1.y")),
            ("b.yaml:zip_override_x[12]", ("b.yaml", "zip_override_x[12]")),
            ("b.yaml:*mtp*", ("b.yaml", "*mtp*")),
            ("a:b.yaml:override_x", ("a:b.yaml", "override_x")),
        ],
    )
    def test_splits_as_srtctl_does(self, argument: str, expected: tuple[str, str | None]) -> None:
        assert split_selector(argument) == expected

    @pytest.mark.parametrize("argument", ["a:b.yaml", "a.yaml:foo", "a.yaml:", ":base", "a.yaml:zip_override_x[n]"])
    def test_refuses_what_srtctl_refuses(self, argument: str) -> None:
        with pytest.raises(ConfigError):
            split_selector(argument)


class TestVariants:
    def test_all_without_the_base_sorted_overrides_first(self) -> None:
        found = variants(BASED)
        assert [v.suffix for v in found] == ["highconc", "named", "tp_0", "tp_1", "tp_2"]
        assert [v.document["name"] for v in found] == [
            "demo_highconc",
            "my-own-name",
            "demo_tp_0",
            "demo_tp_1",
            "demo_tp_2",
        ]

    def test_null_deletes_and_a_list_replaces(self) -> None:
        named = one(BASED, "override_named").document
        assert named["backend"]["sglang_config"]["prefill"] == {"tp-size": 4}
        assert one(BASED, "override_highconc").document["benchmark"] == {"concurrencies": [64]}

    def test_a_null_of_the_base_stays(self) -> None:
        assert one(BASED, "override_highconc").document["backend"]["connector"] is None

    def test_zip_slices_and_broadcasts(self) -> None:
        second = one(BASED, "zip_override_tp[1]")
        assert second.document["backend"]["sglang_config"]["decode"] == {"tp-size": 8, "mem-fraction-static": 0.8}
        assert second.document["benchmark"] == {"concurrencies": [8, 16]}
        assert (second.selector, second.suffix) == ("zip_override_tp[1]", "tp_1")

    def test_a_group_and_globs(self) -> None:
        assert [v.suffix for v in variants(BASED, "zip_override_tp")] == ["tp_0", "tp_1", "tp_2"]
        assert [v.suffix for v in variants(BASED, "*named")] == ["named"]
        assert one(BASED, "base").document == BASED["base"]

    @pytest.mark.parametrize("selector", ["override_nope", "zip_override_nope", "zip_override_nope[0]", "*nope*"])
    def test_nothing_picked_lists_what_there_is(self, selector: str) -> None:
        with pytest.raises(ConfigError, match=r"override_highconc, override_named, zip_override_tp\[i\]"):
            variants(BASED, selector, where="r.yaml")

    def test_a_misspelt_selector_gets_the_nearest_one(self) -> None:
        with pytest.raises(ConfigError, match="override_highconc'"):
            variants(BASED, "override_hihgconc")

    def test_index_out_of_range(self) -> None:
        with pytest.raises(ConfigError, match="3 variants, 0 to 2"):
            variants(BASED, "zip_override_tp[3]")

    @pytest.mark.parametrize(
        ("section", "message"),
        [({"a": 1}, "no list"), ({"a": []}, "empty list"), ({"a": [1, 2], "b": {"c": [1, 2, 3]}}, r"\[2, 3\]")],
    )
    def test_a_group_that_cannot_be_zipped(self, section: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            variants({"base": {}, "zip_override_x": section})

    def test_a_plain_recipe_is_one_variant_and_takes_no_selector(self) -> None:
        assert one({"name": "x"}, None).document == {"name": "x"}
        with pytest.raises(ConfigError, match="plain recipe"):
            variants({"name": "x"}, "override_x")

    def test_two_variants_of_one_name_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="override_tp_0"):
            variants({**BASED, "override_tp_0": {"name": "other"}}, "zip_override_tp[0]")

    def test_an_override_that_is_no_mapping(self) -> None:
        with pytest.raises(ConfigError, match="override_x"):
            variants({"base": {}, "override_x": None}, "override_x")

    def test_places_name_the_override_first(self) -> None:
        assert one(BASED, "override_named").places(("name",)) == (("override_named", "name"), ("base", "name"))
        assert one({"name": "x"}, None).places(("name",)) == (("name",),)

    def test_resolving_leaves_the_file_alone(self) -> None:
        before = yaml.safe_dump(BASED)
        one(BASED, "override_named").document["backend"]["sglang_config"]["prefill"]["tp-size"] = 99
        assert yaml.safe_dump(BASED) == before


@needs_shared
class TestAsSrtctl:
    def test_the_recorded_resolution(self) -> None:
        assert SHARED is not None
        folder = SHARED / "reference" / "srtctl-transcripts"
        said = (folder / "resolve-override-stdout-one.txt").read_text()
        recorded = yaml.safe_load(said.partition("bytes) ---\n")[2].partition("# --- stderr")[0])
        document = Document.read(folder / "recipes-used" / "ov.yaml").mapping()
        assert one(document, "zip_override_tp[1]").document == recorded

    def test_every_recipe_at_hand_resolves(self) -> None:
        assert SHARED is not None
        files = [*(SHARED / "inferencex" / "benchmarks").rglob("*.yaml"), *(SHARED / "srt-slurm").rglob("*.yaml")]
        found = [v for f in files for v in variants(Document.read(f, strict=False).mapping(), where=str(f))]
        assert (len(files), len(found)) == (639, 676)


class TestFamily:
    def test_the_rule(self) -> None:
        path = "recipes/vllm/minimax-m3-gb200-fp8/8k1k/3p2d-dep4-dep8-8k1k.yaml"
        family = "recipes/vllm/minimax-m3-gb200-fp8/8k1k.yaml"
        assert family_member(path) == (family, "override_3p2d-dep4-dep8-8k1k")

    def test_dots_in_names_stay(self) -> None:
        assert family_member("glm5.2/a.b.yml") == ("glm5.2.yml", "override_a.b")

    def test_no_directory_no_family(self) -> None:
        assert family_member("x.yaml") is None


# What may not stand bare, by the specifications: YAML 1.1 (bool, int with base 60, float, null, merge, value, and
# timestamp) and YAML 1.2's core schema.
_NOT_BARE = re.compile(
    r"""(?ix) y|yes|n|no|true|false|on|off | ~|null| | <<|=
    | [-+]?0b[01_]+ | [-+]?0o?[0-7_]+ | [-+]?[0-9][0-9_]* | [-+]?0x[0-9a-f_]+
    | [-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?
    | [-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)(e[-+]?[0-9]+)? | [-+]?\.inf | \.nan
    | [0-9]{4}-[0-9][0-9]?-[0-9][0-9]?([Tt \t].*)?"""
)

TRICKY = [
    *["4:00:00", "08:00", "1x4", "4x8x16", "on", "off", "y", "N", "No", "yes", "true", "~", "null", "", "=", "<<"],
    *["1e3", "1E5", "0o14", "0x1f", "0b1", "1_000", "012", "+1", "-1", ".5", "1.", ".inf", "inf", "NaN", "2026-01-01"],
    *[
        "a: b",
        "a #b",
        "#a",
        "- a",
        "'a'",
        '"a"',
        "*a",
        "&a",
        "!a",
        "%a",
        "@a",
        "`a`",
        "{a}",
        "[a]",
        "a\nb",
        "a\tb",
        " a",
    ],
    *["ü", "\u2028", "\x85", "\x07", "\ufeff", "😀", "0", "-", "?", ":", "mnnvl", "cuda_copy,rc", '{"a": 1}'],
]


class TestDump:
    @pytest.mark.parametrize("text", TRICKY)
    def test_a_tricky_string_comes_back_and_is_quoted_when_it_must_be(self, text: str) -> None:
        self.holds(text)

    @settings(max_examples=300, deadline=None)
    @given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12))
    def test_any_string_comes_back(self, text: str) -> None:
        self.holds(text)

    @settings(max_examples=300, deadline=None)
    @given(st.from_regex(_NOT_BARE, fullmatch=True))
    def test_what_looks_like_something_else_is_quoted(self, text: str) -> None:
        self.holds(text)

    def holds(self, text: str) -> None:
        written = dump({"value": text, "list": [text], "map": {text: text}})
        assert yaml.safe_load(written) == {"value": text, "list": [text], "map": {text: text}}
        for node in _scalars(yaml.compose(written)):
            assert node.style is not None or not _NOT_BARE.fullmatch(node.value), written

    def test_other_values_keep_their_type_and_keys_their_order(self) -> None:
        document = {"z": 1, "a": [True, None, 0.9, 1e-5], "m": {"x": {}, "b": []}}
        written = dump(document)
        assert yaml.safe_load(written) == document
        assert list(yaml.safe_load(written)) == ["z", "a", "m"]

    def test_shared_parts_are_written_out(self) -> None:
        shared = {"a": "b"}
        assert "&" not in dump({"one": shared, "two": shared})

    def test_what_yaml_cannot_say(self) -> None:
        with pytest.raises(ConfigError):
            dump({"path": Path("x")})

    @needs_shared
    def test_every_recipe_at_hand_comes_back(self) -> None:
        assert SHARED is not None
        for file in sorted((SHARED / "srt-slurm").rglob("*.yaml"))[::4]:
            data = Document.read(file, strict=False).data
            assert yaml.safe_load(dump(data)) == data, file


def _scalars(node: yaml.Node | None) -> list[yaml.ScalarNode]:
    if isinstance(node, yaml.MappingNode):
        return [s for pair in node.value for part in pair for s in _scalars(part)]
    if isinstance(node, yaml.SequenceNode):
        return [s for part in node.value for s in _scalars(part)]
    assert isinstance(node, yaml.ScalarNode)
    return [node]
