"""Facts of recipes: each form of each value, and the real matrices as a second opinion on the parallelism."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.benchmark.benchmark import Role
from launcher.core.errors import ConfigError
from launcher.core.yaml_source import Document
from launcher.srtctl.facts import RecipeFacts, recipe_facts
from launcher.srtctl.recipe import split_selector, variants
from tests.shared import SHARED, needs_shared

OVERLAY = Path("benchmarks/multi_node/srt-slurm-recipes")


def of(text: str) -> RecipeFacts:
    return recipe_facts(yaml.safe_load(text))


def engine(kind: str, role: str, flags: str, workers: int = 1) -> Role | None:
    side = of(
        f"resources: {{{role}_workers: {workers}}}\nbackend: {{type: {kind}, {kind}_config: {{{role}: {flags}}}}}"
    ).roles[role]
    return side.as_role()


class TestParallelism:
    @pytest.mark.parametrize(
        ("kind", "flags", "tp", "ep", "dp_attention"),
        [
            ("vllm", "{tensor-parallel-size: 1, data-parallel-size: 8, enable-expert-parallel: true}", 8, 8, True),
            ("vllm", "{tensor-parallel-size: 8, enable-expert-parallel: true}", 8, 8, False),
            ("vllm", "{tensor-parallel-size: 4, enable-expert-parallel: false}", 4, 1, False),
            ("vllm", "{tensor_parallel_size: 4}", 4, 1, False),
            ("sglang", "{tp-size: 8, dp-size: 8, ep-size: 8, enable-dp-attention: true}", 8, 8, True),
            ("sglang", "{tensor-parallel-size: 8, expert-parallel-size: 1, data-parallel-size: 1}", 8, 1, False),
            (
                "trtllm",
                "{tensor_parallel_size: 16, moe_expert_parallel_size: 16, enable_attention_dp: true}",
                16,
                16,
                True,
            ),
            (
                "trtllm",
                "{tensor_parallel_size: 8, moe_expert_parallel_size: 1, enable_attention_dp: false}",
                8,
                1,
                False,
            ),
        ],
    )
    def test_in_the_words_of_a_matrix(self, kind: str, flags: str, tp: int, ep: int, dp_attention: bool) -> None:
        assert engine(kind, "decode", flags, 3) == Role(3, tp, ep, dp_attention)

    @pytest.mark.parametrize(
        ("kind", "flags"),
        [
            ("vllm", "{tensor-parallel-size: 8, data-parallel-size: 4, enable-expert-parallel: true}"),
            ("vllm", "{data-parallel-size: 4}"),
            ("sglang", "{tp-size: 4, dp-size: 2}"),
        ],
    )
    def test_what_a_matrix_has_no_one_word_for_is_not_guessed(self, kind: str, flags: str) -> None:
        assert engine(kind, "decode", flags) is None

    def test_flags_are_kept_as_given(self) -> None:
        flags = "{tensor-parallel-size: 2, data-parallel-size: 4, enable-expert-parallel: true}"
        text = f"backend: {{type: vllm, vllm_config: {{prefill: {flags}}}}}"
        side = of(text).prefill
        assert side is not None
        assert (side.tp, side.dp, side.ep, side.pp, side.dp_attention) == (2, 4, 8, None, True)

    def test_pipeline_and_context_parallelism(self) -> None:
        role = engine(
            "vllm", "decode", "{tensor-parallel-size: 8, pipeline-parallel-size: 2, decode-context-parallel-size: 8}"
        )
        assert role == Role(1, 8, pp=2, dcp=8)
        assert engine("sglang", "prefill", "{tp-size: 8, attn-cp-size: 8}") == Role(1, 1, pcp=8)

    @pytest.mark.parametrize(
        ("kind", "flag"),
        [("vllm", "max-model-len"), ("vllm", "max_model_len"), ("sglang", "context-length"), ("trtllm", "max_seq_len")],
    )
    def test_length_limit_of_each_engine(self, kind: str, flag: str) -> None:
        side = of(f"backend: {{type: {kind}, {kind}_config: {{aggregated: {{{flag}: 9472}}}}}}").aggregated
        assert side is not None
        assert side.max_model_len == 9472


class TestBenchmark:
    @pytest.mark.parametrize(
        ("said", "expected"),
        [
            ('"4x8x16"', (4, 8, 16)),
            ("4", (4,)),
            ("[4, 8]", (4, 8)),
            ('"4"', (4,)),
            ('["4", 8]', (4, 8)),
            ("null", None),
        ],
    )
    def test_concurrencies(self, said: str, expected: tuple[int, ...] | None) -> None:
        assert of(f"benchmark: {{concurrencies: {said}}}").concurrencies == expected

    @pytest.mark.parametrize("said", ['"4,8"', '"4x"', "[]", "[0]", "true", "{a: 1}", "4.5"])
    def test_concurrencies_that_srtctl_could_not_read(self, said: str) -> None:
        with pytest.raises(ConfigError, match="concurrencies"):
            of(f"benchmark: {{concurrencies: {said}}}")


class TestNodes:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("resources: {prefill_nodes: 3, decode_nodes: 4}", 7),
            ("resources: {prefill_nodes: 3}", 3),
            ("resources: {agg_nodes: 2, agg_workers: 1}", 2),
            ("resources: {gpus_per_node: 4}", None),
            ("resources: {prefill_nodes: 1, decode_nodes: 1}\ninfra: {etcd_nats_dedicated_node: true}", 3),
            ("resources: {agg_nodes: 2}\ninfra: {etcd_nats_dedicated_node: true}\nfrontend: {dedicated_node: true}", 3),
            (
                "resources: {agg_nodes: 2}\ninfra: {etcd_nats_dedicated_node: true}\nfrontend: {dedicated_node: true}\n"
                "benchmark: {colocate_with_frontend: false}",
                4,
            ),
        ],
    )
    def test_as_srtctl_counts(self, text: str, expected: int | None) -> None:
        assert of(text).nodes == expected

    @pytest.mark.parametrize(("gpus", "across", "expected"), [(4, False, 1), (8, False, 2), (8, True, 2), (7, True, 2)])
    def test_workers_packed_on_shared_nodes(self, gpus: int, across: bool, expected: int) -> None:
        text = f"""
        resources: {{gpus_per_node: 8, prefill_nodes: 1, prefill_workers: 1, gpus_per_prefill: 2,
          decode_nodes: 1, decode_workers: 1, gpus_per_decode: {gpus}}}
        backend: {{type: vllm, allow_prefill_decode_colocation: true,
          allow_prefill_decode_colocation_across_nodes: {str(across).lower()}}}
        """
        assert of(text).nodes == expected

    @pytest.mark.parametrize(
        ("resources", "expected"),
        [
            ("gpus_per_node: 4, decode_nodes: 4, decode_workers: 2, gpus_per_decode: 6", 6),
            ("gpus_per_node: 4, decode_nodes: 4, decode_workers: 2", 8),
            ("gpus_per_node: 8, prefill_nodes: 2, prefill_workers: 1, decode_nodes: 0, decode_workers: 2", 16),
            ("decode_nodes: 4, decode_workers: 2", None),
        ],
    )
    def test_gpus_of_a_worker(self, resources: str, expected: int | None) -> None:
        side = of(f"resources: {{{resources}}}").decode
        assert side is not None
        assert side.gpus_per_worker == expected


class TestContainers:
    def test_every_place_that_srtctl_resolves_in_order_once(self) -> None:
        found = of("""
        model: {container: engine}
        frontend: {nginx_container: nginx}
        benchmark: {container_image: engine}
        telemetry: {dcgm_exporter: {container_image: dcgm}}
        observability: {tachometer: {dcgm_exporter: {container_image: dcgm}, node_exporter: {container_image: node}}}
        """)
        assert [use.alias for use in found.container_aliases] == ["engine", "nginx", "dcgm", "node"]
        assert found.container_aliases[0].paths == (("model", "container"), ("benchmark", "container_image"))
        assert found.container == "engine"

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("resources: {agg_nodes: 2}", True),
            ("resources: {agg_nodes: 1}", False),
            ("frontend: {enable_multiple_frontends: false}\nresources: {agg_nodes: 2}", False),
            ("frontend: {nginx_container: nginx}\nresources: {agg_nodes: 2}", False),
        ],
    )
    def test_nginx_that_nobody_named(self, text: str, expected: bool) -> None:
        assert of(text).nginx_by_default is expected


class TestRest:
    def test_nothing_said_is_nothing_known(self) -> None:
        found = of("{}")
        assert found.engine == "sglang"  # the schema's default
        assert found.roles == {}
        unknown = {name for name in RecipeFacts.__struct_fields__ if getattr(found, name) is None}
        assert {"model_path", "container", "concurrencies", "nodes", "time_limit"} <= unknown

    def test_odd_types_are_not_taken_for_values(self) -> None:
        found = of("model: text\nresources: [1]\nslurm: {time_limit: 4:00:00}\nbenchmark: {isl: true, osl: 1k}")
        assert (found.model_path, found.nodes, found.time_limit, found.isl, found.osl) == (None, None, None, None, None)

    def test_served_name_only_when_the_roles_agree(self) -> None:
        roles = "{{prefill: {{served-model-name: a}}, decode: {{served-model-name: {}}}}}"
        both = f"backend: {{{{type: vllm, vllm_config: {roles}}}}}"
        assert of(both.format("a")).served_model_name == "a"
        assert of(both.format("b")).served_model_name is None


@needs_shared
class TestRealRecipes:
    def test_all_recipes_within_a_fraction_of_a_second(self) -> None:
        assert SHARED is not None
        files = [*(SHARED / "inferencex" / "benchmarks").rglob("*.yaml"), *(SHARED / "srt-slurm").rglob("*.yaml")]
        documents = [v.document for f in files for v in variants(Document.read(f, strict=False).mapping())]
        began = time.process_time()
        found = [recipe_facts(document) for document in documents]
        assert time.process_time() - began < 0.3
        assert all(f.model_path and f.container and f.precision and f.nodes and f.roles for f in found)
        assert sum(f.concurrencies is None for f in found) == sum(f.benchmark_type == "custom" for f in found)

    def test_the_matrix_says_the_same_parallelism(self) -> None:
        """Rows of the real matrix against their recipes: 400 and more agree, and each kind of exception is known."""
        assert SHARED is not None
        matrix = Document.read(SHARED / "inferencex" / "configs" / "nvidia-master.yaml").mapping()
        agreed, different = 0, set()
        for key, entry in matrix.items():
            for row, config_file in _rows(entry):
                found = _recipe(SHARED, config_file)
                if found is None:
                    continue
                aggregated = not entry["disagg"] and found.aggregated is not None
                sides = (
                    [("prefill", found.aggregated)]
                    if aggregated
                    else [("prefill", found.prefill), ("decode", found.decode)]
                )
                for name, side in sides:
                    has = side.as_role() if side is not None else None
                    if has is None:
                        continue
                    agreed += has == _role(row[name])
                    if has != _role(row[name]):
                        different.add(key)
        assert agreed > 700
        # These write a DEP8 worker as its engine's tp 1, or leave the recipe's context parallelism out.
        assert different == {
            "dsv4-fp4-b200-dynamo-vllm-mtp",
            "kimik2.6-fp4-b200-dynamo-vllm",
            "kimik3-fp4-b200-dynamo-vllm-agentic-dspark",
            "minimaxm3-fp4-gb300-dynamo-vllm-agentic-mtp-disagg",
        }


def _rows(entry: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    rows = []
    for scenario in entry["scenarios"].values() if entry.get("multinode") else ():
        for row in (row for point in scenario for row in point["search-space"]):
            for said in row["prefill"].get("additional-settings", []):
                name, _, value = said.partition("=")
                if name == "CONFIG_FILE":
                    rows.append((row, value))
    return rows


def _recipe(shared: Path, config_file: str) -> RecipeFacts | None:
    path, selector = split_selector(config_file)
    inner = path.removeprefix("recipes/").removeprefix(f"{OVERLAY}/")
    trees = [shared / "inferencex" / OVERLAY / inner, *(t / path for t in (shared / "srt-slurm").iterdir())]
    file = next((f for f in trees if f.is_file()), None)
    return recipe_facts(variants(Document.read(file, strict=False).mapping(), selector)[0].document) if file else None


def _role(row: dict[str, Any]) -> Role:
    more = (row.get("pp", 1), row.get("dcp-size", 1), row.get("pcp-size", 1))
    return Role(row["num-worker"], row["tp"], row["ep"], row["dp-attn"], *more)
