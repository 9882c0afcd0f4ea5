"""What versions of srt-slurm accept: the tables, a checkout's source, and the verdicts of marshmallow."""

from __future__ import annotations

import copy
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.check.cross_field_rules import table
from launcher.check.schema_validation import Schema, parse
from launcher.check.srtctl_schema import Schemas, read_checkout
from launcher.core.errors import ConfigError
from tests.benchmarks import a_recipe
from tests.check.workspaces import Q2, V50, put

SCHEMAS = Schemas()


def schema(ref: str) -> Schema:
    found = SCHEMAS.get(ref, None)
    assert found is not None
    return found


def verdict(ref: str, *changes: Any) -> set[tuple[str, str]]:
    """(rule, keys) of what a version refuses in `a_recipe` with changes."""
    recipe = copy.deepcopy(a_recipe())
    for change in changes:
        change(recipe)
    return {(c.rule, ".".join(map(str, c.keys))) for c in schema(ref).violations(recipe)}


def test_every_version_of_the_tables_takes_a_plain_recipe() -> None:
    assert len(SCHEMAS.versions) == 72
    assert {ref for ref in SCHEMAS.versions if verdict(ref)} == set()


def test_a_version_has_a_ref_a_sha_and_one_schema() -> None:
    assert SCHEMAS.name("anything", V50) == "v1.0.50" and SCHEMAS.sha("v1.0.50") == V50
    assert SCHEMAS.name("sa-submission-q2-2026", None) == SCHEMAS.name("x", Q2) == "sa-submission-q2-2026"
    assert SCHEMAS.name("main", None) == "v1.0.68"
    assert SCHEMAS.get("v1.0.50", "7" * 40) is None, "the sha decides, not the ref"
    assert SCHEMAS.get("nobody/knows", None) is None


@pytest.mark.parametrize(
    ("keys", "value", "refused", "accepted"),
    [
        (("dynamo", "wheel"), "1.2.0", "sa-submission-q2-2026", "v1.0.0"),
        (("dynamo", "request_plane"), "tcp", "v1.0.14", "v1.0.15"),
        (("dynamo", "event_plane"), "zmq", "v1.0.32", "v1.0.33"),
        (("identity",), {"frameworks": {"vllm": "1"}}, "aflowers/gb200-dsv4-recipes", "aflowers/vllm-gb200-v0.20.0"),
        (("backend", "dp_launch_mode"), "per_node", "v1.0.29", "v1.0.30"),
        (("benchmark", "warmup_req_rate"), 250, "v1.0.68", "sa-submission-q2-2026"),
        (("benchmark", "tokenizer_mode"), "x", "sa-submission-q2-2026", "aflowers/gb200-dsv4-recipes"),
        (("frontend", "orchestrator_placement"), "head", "v1.0.15", "v1.0.16"),
        (("telemetry", "provider"), "SCRAPER", "v1.0.59", "v1.0.46"),
    ],
)
def test_versions_differ_in_their_keys(keys: tuple[str, ...], value: Any, refused: str, accepted: str) -> None:
    assert verdict(refused, put(*keys, value=value)) == {("unknown-field", ".".join(keys))}
    assert verdict(accepted, put(*keys, value=value)) == set()


@pytest.mark.parametrize(
    ("keys", "good", "bad"),
    [
        (
            ("resources", "prefill_workers"),
            [1, "1", " 1 ", 1.0, 1.5, None],
            [True, "one", "1.5", [1], {}, date.today()],
        ),
        (("benchmark", "random_range_ratio"), [0.8, 1, "0.8", None], [False, "x", "nan", float("inf"), []]),
        (("frontend", "enable_multiple_frontends"), [False, "no", "Off", "FALSE", 0], ["maybe", 2, None, [], "nO"]),
        (("slurm", "time_limit"), ["4:00:00", None], [14400, 4.0, True, date.today(), []]),
        (("environment",), [{}, {"A": "1"}], [{"A": 1}, {"A": None}, {1: "a"}, [], "A=1", None]),
        (("extra_mount",), [["a:b"], [], None], ["a:b", [1], {"a": "b"}]),
        (("container_mounts",), [{"/a": "/b"}], [{"/a": 1}, None]),
        (("benchmark", "concurrencies"), ["4x8", [4, 8], ["4"], 4.5 and "4", None], [4, {"a": 1}, ["x"], [None]]),
        (("benchmark", "req_rate"), ["inf", 10, 1.5, None], [[], {}]),
        (("benchmark", "sweep"), [{"a": [1]}, {"mode": "grid", "parameters": {"a": [1]}}, None], [{"a": 1}, [], "x"]),
        (("backend", "kv_events_config"), [True, {"a": 1}, "yes", None], ["maybe", [], 3]),
        (("backend", "vllm_config", "decode"), [{"a": [{"b": None}]}, None], [[], "x", {1: "a"}]),
        (("backend", "type"), ["vllm"], ["vlm", None, 1]),
        (("backend",), [], [[], "vllm", None]),
        (("health_check",), [{}], [None, [], "x"]),
        (("output", "log_dir"), ["./x"], [1, None]),
    ],
)
def test_values_are_judged_as_marshmallow_does(keys: tuple[str, ...], good: list[Any], bad: list[Any]) -> None:
    """Seen with marshmallow 4.4 and srtctl's own schema at 17 versions, on 12,121 real and 25,500 mutated recipes."""
    for value in good:
        assert verdict("v1.0.50", put(*keys, value=value)) == set(), value
    for value in bad:
        assert verdict("v1.0.50", put(*keys, value=value)), value


@pytest.mark.parametrize("key", ["name", "model", "resources"])
def test_what_every_version_requires(key: str) -> None:
    assert {ref for ref in SCHEMAS.versions if not verdict(ref, lambda r: r.pop(key))} == set()


DEMANDS = yaml.safe_load("""
- at: v1.0.50
  names: dynamo
  refuses: {dynamo: {hash: a, wheel: "1"}}
  takes: {dynamo: {hash: a, top_of_tree: false}}
- at: sa-submission-q2-2026
  names: dynamo
  refuses: {dynamo: {hash: a, top_of_tree: true}}
  takes: {dynamo: {hash: a}}
- at: v1.0.50
  names: dynamo.wheel
  refuses: {dynamo: {wheel: a/b.whl}}
  takes: {dynamo: {wheel: 1.2.0.dev1}}
- at: v1.0.50
  names: dynamo.cargo_patches
  refuses: {dynamo: {cargo_patches: [a = 1]}}
  takes: {dynamo: {cargo_patches: [a = 1], hash: a}}
- at: v1.0.50
  names: profiling
  refuses: {profiling: {type: nsys}}
  takes: {profiling: {type: nsys, prefill: {}, decode: {}}}
- at: v1.0.50
  names: backend.vllm_config.decode.profiler-config.x
  refuses:
    profiling: {type: nsys, prefill: {}, decode: {}}
    backend: {type: vllm, vllm_config: {decode: {profiler-config.x: 1}}}
  takes: {backend: {type: vllm, vllm_config: {decode: {profiler-config.x: 1}}}}
- at: v1.0.50
  names: profiling
  refuses: {profiling: {type: nsys-time}}
  takes: {profiling: {type: nsys-time, delay_secs: 1, duration_secs: 2}}
- at: v1.0.3
  names: profiling.type
  refuses: {profiling: {type: nsys-time, delay_secs: 1, duration_secs: 2}}
  takes: {profiling: {type: nsys-time, delay_secs: 1, duration_secs: 2}, backend: {type: trtllm}}
- at: v1.0.50
  names: profiling.type
  refuses: {profiling: {type: torch, prefill: {}, decode: {}}, backend: {type: trtllm}}
  takes: {profiling: {type: torch, prefill: {}, decode: {}}}
- at: v1.0.25
  names: telemetry
  refuses: {telemetry: {enabled: true, dcgm_exporter: {container_image: x, port: 1}}}
  takes:
    telemetry:
      {enabled: true, container_image: x, dcgm_exporter: &x {container_image: x, port: 1}, node_exporter: *x}
- at: v1.0.60
  names: telemetry
  refuses: {telemetry: {enabled: true}}
  takes: {telemetry: {enabled: true, dcgm_exporter: {container_image: x, port: 9400}}}
- at: v1.0.60
  names: telemetry.dcgm_exporter.port
  refuses: {telemetry: {enabled: true, dcgm_exporter: {container_image: x, port: 70000}}}
  takes: {telemetry: {enabled: false, dcgm_exporter: {container_image: x, port: 70000}}}
- at: v1.0.50
  names: telemetry.default_frequency
  refuses: {telemetry: {enabled: true, provider: dcgm-power, dcgm_exporter: *x}}
  takes: {telemetry: {enabled: true, provider: dcgm-power, dcgm_exporter: *x, default_frequency: 1}}
- at: v1.0.60
  names: telemetry.collector_join_timeout_seconds
  refuses: {telemetry: {enabled: true, dcgm_exporter: *x, collector_join_timeout_seconds: 10}}
  takes: {telemetry: {enabled: true, dcgm_exporter: *x, collector_join_timeout_seconds: 10.5}}
- at: v1.0.60
  names: telemetry.storage_subdir
  refuses: {telemetry: {enabled: true, dcgm_exporter: *x, storage_subdir: ../x}}
  takes: {telemetry: {enabled: true, dcgm_exporter: *x, storage_subdir: a/b}}
- at: v1.0.60
  names: benchmark.type
  refuses: {telemetry: {enabled: true, dcgm_exporter: *x}, benchmark: {type: custom, concurrencies: "4"}}
  takes: {benchmark: {type: custom, concurrencies: "4"}}
- at: v1.0.60
  names: observability.tachometer
  refuses: {observability: {tachometer: {enabled: true}}}
  takes: {observability: {enabled: true, tachometer: {enabled: true}}}
- at: v1.0.50
  names: backend.mooncake_kv_store
  refuses: {backend: {type: sglang, mooncake_kv_store: {}, sglang_config: {prefill: {}}}}
  takes:
    backend:
      {type: sglang, mooncake_kv_store: {}, sglang_config: {prefill: {disaggregation-transfer-backend: mooncake}}}
- at: v1.0.50
  names: backend.mooncake_kv_store
  refuses: {backend: {type: vllm, mooncake_kv_store: {}}}
  takes: {backend: {type: vllm, mooncake_kv_store: {}, vllm_config: {decode: {kv-transfer-config: MooncakeConnector}}}}
- at: v1.0.50
  names: resources.het_jobs
  refuses: {resources: &het {gpu_type: gb200, prefill_nodes: 1, decode_nodes: 1, het_jobs: true}}
  takes: {resources: *het, backend: {type: sglang}}
- at: v1.0.62
  names: frontend.orchestrator_placement
  refuses: {frontend: {dedicated_node: true, orchestrator_placement: first_decode}}
  takes: {frontend: {dedicated_node: true}}
- at: v1.0.50
  names: frontend.type
  refuses: {frontend: &serve {type: trtllm_serve, enable_multiple_frontends: false}}
  takes: {frontend: *serve, backend: {type: trtllm}}
- at: v1.0.50
  names: frontend.type
  refuses: {frontend: &direct {type: vllm, enable_multiple_frontends: false}}
  takes: {frontend: *direct, resources: {gpu_type: gb200, agg_nodes: 2, agg_workers: 1}}
- at: v1.0.45
  names: resources.agg_nodes
  refuses: {frontend: *direct, resources: {gpu_type: gb200, agg_nodes: 2, agg_workers: 1}}
  takes: {frontend: *direct, resources: {gpu_type: gb200, agg_nodes: 1, agg_workers: 2}}
- at: v1.0.68
  names: backend.vllm_config.decode.headless
  refuses: {backend: {type: vllm, vllm_config: {decode: &headless {data-parallel-size: 2, headless: true}}}}
  takes: {backend: {type: vllm, dp_launch_mode: per_gpu, vllm_config: {decode: *headless}}}
- at: v1.0.36
  names: backend.vllm_config.decode.headless
  refuses: {backend: {type: vllm, dp_launch_mode: per_node, vllm_config: {decode: *headless}}}
  takes: {backend: {type: vllm, vllm_config: {decode: *headless}}}
""")


@pytest.mark.parametrize("case", DEMANDS, ids=lambda c: f"{c['names']}@{c['at']}")
def test_what_versions_demand_of_values_together(case: dict[str, Any]) -> None:
    assert ("value-refused", case["names"]) in verdict(case["at"], lambda r: r.update(case["refuses"]))
    assert verdict(case["at"], lambda r: r.update(case["takes"])) == set()


def test_every_demand_is_known_by_its_source_and_made_by_some_version() -> None:
    sources = set(table().sources)
    assert {name for row in table().demands for name in (*row.by, *row.not_by)} <= sources
    assert {name for ref in SCHEMAS.versions for name in schema(ref).demands} == sources


def test_the_same_recipe_is_taken_where_nothing_is_demanded() -> None:
    direct = {"type": "vllm", "enable_multiple_frontends": False}
    resources = {"gpu_type": "gb200", "agg_nodes": 2, "agg_workers": 1}
    change = put("frontend", value=direct), put("resources", value=resources)
    assert {ref for ref in ("v1.0.36", "v1.0.37", "v1.0.48", "v1.0.49") if verdict(ref, *change)} == {
        "v1.0.37",
        "v1.0.48",
    }


SOURCE = '''
from enum import Enum
from marshmallow_dataclass import dataclass
Mode = Literal["fast", "slow"]

class Colour(str, Enum):
    RED = "red"
    BLUE = "blue"

class Options(Enum):
    pass

@dataclass(frozen=True)
class Part:
    """A docstring that says: Cannot specify both."""
    size: int
    label: str | None = None
    note: str = None
    mode: Mode = "fast"
    colour: Colour = Colour.RED
    shade: Annotated[Colour, fields.Enum(Colour, by_value=True)] = Colour.RED
    extra: "Part | None" = None
    tags: list[str] = field(default_factory=list)
    needed: str = field()
    _hidden: int | None = field(default=None, metadata={"marshmallow_field": fields.Integer(data_key="shown")})
    _VALID_PLANES: ClassVar[tuple[str, ...]] = ("a", "b")
    plane: str = "a"
    Schema: ClassVar[type[Schema]] = Schema

    def helper(self): ...

@dataclass
class DynamoConfig:
    hash: str | None = None
    def __post_init__(self):
        """Cannot specify both (in a docstring)."""

@dataclass
class VLLMProtocol:
    type: Literal["vllm"] = "vllm"
    dp_launch_mode: Mode = "per_node"

@dataclass
class SrtConfig:
    part: Part
    backend: Annotated[BackendConfig, BackendConfigField()] = field(default_factory=Part)
    env: dict[str, str] = field(default_factory=dict)
    def _validate_het_jobs(self):
        raise ValidationError("no")
'''
COMMAND = 'p.add_argument("-f", "--file")\np.add_argument("--no-preflight", dest="x")\nprint("--not-an-option")\n'


def checkout(root: Path, source: str = SOURCE) -> Path:
    for name, text in (("core/schema.py", source), ("backends/vllm.py", "X = 1\n"), ("cli/submit.py", COMMAND)):
        path = root / "src/srtctl" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_checkouts_schema_is_read_out_of_its_source(tmp_path: Path) -> None:
    found = read_checkout(checkout(tmp_path))
    assert found.classes["Part"] == {
        "size": "int!",
        "label": "str?",
        "note": "str?",
        "mode": "=fast,slow",
        "colour": "=RED,BLUE",
        "shade": "=red,blue",
        "extra": "@Part?",
        "tags": "list[str]",
        "needed": "str!",
        "shown": "int?",
        "plane": "=a,b",
    }
    assert found.classes["SrtConfig"] == {"part": "@Part!", "backend": "backend", "env": "dict[str,str]"}
    assert found.demands == {"het", "vllm-per-node"}, "a docstring demands nothing"
    assert found.options == {"--file", "--no-preflight"}


def test_a_version_that_the_tables_lack_is_judged_by_its_tree(tmp_path: Path) -> None:
    checkout(tmp_path / "mine")
    schemas = Schemas((tmp_path,))
    found = schemas.get("mine", "7" * 40)
    assert found is not None and schemas.get("mine", "7" * 40) is found
    assert [c.rule for c in found.violations({"part": {"size": 1, "needed": "x", "plane": "c"}})] == ["value-refused"]
    assert schemas.get("other", None) is None


@pytest.mark.parametrize("source", ["def", "x = 1\n"])
def test_a_tree_whose_schema_is_not_what_it_was(tmp_path: Path, source: str) -> None:
    with pytest.raises(ConfigError, match="schema"):
        read_checkout(checkout(tmp_path, source))
    (tmp_path / "src/srtctl/core/schema.py").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_checkout(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("int?", "a whole number"),
        ("list[int]|str?", "a list of whole numbers or text"),
        ("dict[str,str]", "a mapping to text"),
        ("dict[str,any?]?", "a mapping"),
        ("=a,b,c", "a, b or c"),
        ("@Part", "a mapping"),
    ],
)
def test_a_type_is_said_as_a_person_would(text: str, said: str) -> None:
    assert str(parse(text)) == said


@pytest.mark.parametrize(
    ("ref", "sha", "path", "has"),
    [
        ("v1.0.50", None, "configs/install-torchao.sh", True),
        ("v1.0.36", None, "recipes/vllm/deepseek-v4/agentic/disagg-gb300-1p6d-dep4-tp4-agentic.yaml", False),
        ("any name", SCHEMAS.sha("v1.0.25"), "recipes/h200/1k1k/bs128-agg-tp.yaml", True),
        ("main", None, "recipes/none.yaml", None),  # it is followed, and may have it by now
        ("main", SCHEMAS.sha("main"), "recipes/none.yaml", False),
        ("mine", "7" * 40, "configs/install-torchao.sh", None),
    ],
)
def test_which_files_a_version_has(ref: str, sha: str | None, path: str, has: bool | None) -> None:
    assert SCHEMAS.has_file(ref, sha, path) is has
