"""The recipe families of this repository, against recorded documents, the overlay's recipes and their own matrix."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from launcher.benchmark.expand import Selection
from launcher.benchmark.matrix import load_matrix
from launcher.container.planned import ContainerJob, MultinodeJob
from launcher.core.yaml_source import Document
from launcher.project import Project
from launcher.srtctl.facts import RecipeFacts, recipe_facts
from launcher.srtctl.recipe import Variant, dump, family_member, split_selector, variants
from tests.shared import SHARED, needs_shared

ROOT = Path(__file__).resolve().parents[2]
MATRIX = ROOT / "recipes" / "matrix.yaml"
FAMILIES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "recipes" / "vllm").rglob("*.yaml"))
GB200, B200 = "recipes/vllm/minimax-m3-gb200-fp8", "recipes/vllm/minimax-m3/b200-fp4"
GB300, B300 = "recipes/vllm/minimax-m3-gb300-fp8", "recipes/vllm/minimax-m3/b300"

PERFORMANCE = "vllm/vllm-openai:minimax-m3-perf-arm64-13.0.1-7a67223"


@cache
def family(path: str) -> dict[str, Variant]:
    document = Document.read(ROOT / path).mapping()
    return {str(v.selector): v for v in variants(document, where=path)}


def answered(path: str) -> dict[str, Any]:
    """The document for a path of the one-file-per-variant kind."""
    assert not (ROOT / path).exists()
    member = family_member(path)
    assert member is not None
    return dict(family(member[0])[member[1]].document)


def strip(document: dict[str, Any]) -> dict[str, Any]:
    """Without what a launcher names as it likes (as the recorded cases are compared)."""
    kept = copy.deepcopy(document)
    kept.pop("name", None)
    directives = kept.get("sbatch_directives")
    if directives is not None:
        directives.pop("comment", None)
        directives.pop("job-name", None)
        if not directives:
            kept.pop("sbatch_directives")
    return kept


def differences(a: dict[str, Any], b: dict[str, Any], at: str = "") -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**a, **b}:
        x, y = a.get(key, "absent"), b.get(key, "absent")
        if isinstance(x, dict) and isinstance(y, dict):
            found |= differences(x, y, f"{at}{key}.")
        elif x != y:
            found[f"{at}{key}"] = (x, y)
    return found


@needs_shared
class TestAgainstRecords:
    @pytest.mark.parametrize(
        "case",
        [
            "gb200-nv-dynamo-vllm-minimaxm3-fp8-91b7-0037",
            "gb200-nv-dynamo-vllm-minimaxm3-fp8-91b7-0039",
            "gb200-nv-dynamo-vllm-minimaxm3-fp8-91b7-0041",
            "b200-dgxc-dynamo-vllm-minimaxm3-fp4-91b7-0000",
            "b200-dgxc-dynamo-vllm-minimaxm3-fp4-91b7-0003",
            "b300-nv-dynamo-vllm-minimaxm3-fp4-91b7-0014",
            "gb300-nv-dynamo-vllm-minimaxm3-fp8-91b7-0028",
            "gb300-nv-dynamo-vllm-minimaxm3-fp8-91b7-0032",
        ],
    )
    def test_the_document_that_a_launcher_submitted(self, case: str) -> None:
        assert SHARED is not None
        recorded = json.loads((SHARED / "cases" / f"{case}.json").read_text())
        has = answered(recorded["environment"]["CONFIG_FILE"])
        theirs = strip(recorded["recipe"])
        if theirs.get("sbatch_directives") == {"exclude": "b300-018"}:  # the runner file's matter
            theirs.pop("sbatch_directives")
        assert strip(has) == theirs
        assert recipe_facts(has).container == recorded["environment"]["IMAGE"]

    @pytest.mark.parametrize(
        ("directory", "later"),
        [
            (f"{GB300}/8k1k", {"model.container", "dynamo.version"}),
            (f"{B300}-fp4/8k1k", {"model.container", "backend.vllm_config.decode.attention-config"}),
            (f"{B300}-fp8/8k1k", {"model.container", "dynamo.version"}),
        ],
    )
    def test_the_overlays_recipes_are_these_on_a_later_image(self, directory: str, later: set[str]) -> None:
        assert SHARED is not None
        overlay = SHARED / "inferencex/benchmarks/multi_node/srt-slurm-recipes" / directory.removeprefix("recipes/")
        compared = 0
        for selector, variant in family(f"{directory}.yaml").items():
            file = overlay / f"{selector.removeprefix('override_')}.yaml"
            if file.is_file():
                theirs = strip(Document.read(file, strict=False).mapping())
                assert set(differences(strip(dict(variant.document)), theirs)) == later, file
                compared += 1
        assert compared >= 7

    @pytest.mark.parametrize("directory", [f"{GB200}/1k1k", f"{GB200}/8k1k", f"{B200}/8k1k"])
    def test_the_overlays_recipes(self, directory: str) -> None:
        """Equal, but for what a later image brought to recipes whose records (above) are older."""
        assert SHARED is not None
        overlay = SHARED / "inferencex" / "benchmarks" / "multi_node" / "srt-slurm-recipes"
        files = sorted((overlay / directory.removeprefix("recipes/")).glob("*.yaml"))
        assert len(files) in (5, 6)
        for file in files:
            theirs = strip(Document.read(file, strict=False).mapping())
            keys = set(differences(strip(answered(f"{directory}/{file.name}")), theirs))
            if directory.startswith(B200):  # a later nightly, with a decode backend of its own
                assert keys == {"model.container", "backend.vllm_config.decode.attention-config"}, file
            elif file.name in ("1p2d-dep4-tep4-8k1k.yaml", "1p2d-dep4-tep8-8k1k.yaml"):  # the nightly, with its dynamo
                assert keys == {"model.container", "dynamo.version"}, file
            else:
                assert not keys, file


# What the change that brought the ladder measured: decode workers by kind, and concurrencies.
LADDER = {
    f"{GB200}/1k1k.yaml": {
        "1p1d-dep4-tep8-3n": (4, 16, 64, 128, 4096),
        "1p1d-dep4-tp4-marlin-2n": (1, 4, 8, 16),
        "1p2d-dep4-dep4-3n": (2048,),
        "2p1d-dep4-dep8-4n": (512, 4096),
        "2p1d-dep4-tep8-4n": (32,),
        "2p2d-dep4-tep8-6n": (16,),
        "3p2d-dep4-tep8-7n": (4,),
    },
    f"{GB200}/8k1k.yaml": {
        "1p1d-dep4-tp4-marlin-2n": (1, 4, 8, 16),
        "1p2d-dep4-dep8-5n": (128,),
        "2p2d-dep4-dep8-6n": (256, 512),
        "2p2d-dep4-tep8-6n": (16,),
        "3p2d-dep4-dep8-7n": (512,),
        "3p2d-dep4-tep8-7n": (32,),
        "4p2d-dep4-dep8-8n": (4096,),
        "5p2d-dep4-tep8-9n": (4, 64),
    },
}

PARALLEL = (
    {f"tp{n}": (n, 1, False) for n in (1, 4, 8)}
    | {f"tep{n}": (n, n, False) for n in (4, 8)}
    | {f"dep{n}": (n, n, True) for n in (2, 4, 8, 16)}
)


class TestNames:
    """A name tells the topology: 2p1d-dep4-tep8-4n is two prefill workers of DEP4, one of TEP8, on four nodes."""

    @pytest.mark.parametrize("path", FAMILIES)
    def test_name_and_content_agree(self, path: str) -> None:
        for selector, variant in family(path).items():
            has = recipe_facts(variant.document)
            parts = selector.removeprefix("override_").removeprefix("disagg-gb200-").split("-")
            assert has.prefill is not None and has.decode is not None
            assert parts[0] == f"{has.prefill.workers}p{has.decode.workers}d", selector
            for kind, side in ((parts[1], has.prefill), (parts[2], has.decode)):
                role = side.as_role()
                assert role is not None
                assert (role.tp, role.ep, role.dp_attention) == PARALLEL[kind], selector
                assert side.gpus_per_worker == role.tp, selector
                assert side.max_model_len == (has.isl or 0) + (has.osl or 0) + 256, selector
            if parts[-1].endswith("n"):
                assert f"{has.nodes}n" == parts[-1], selector
            assert f"{(has.isl or 0) // 1024}k1k" == Path(path).stem

    @pytest.mark.parametrize("path", LADDER)
    def test_the_whole_ladder_is_there(self, path: str) -> None:
        for name, concurrencies in LADDER[path].items():
            document = family(path)[f"override_disagg-gb200-{name}"].document
            has = recipe_facts(document)
            assert has.concurrencies == concurrencies, name
            assert (has.container, has.model_path, has.time_limit) == (PERFORMANCE, "minimax-m3-mxfp8", "8:00:00")
            health = document["health_check"]
            assert health["max_attempts"] * health["interval_seconds"] == 7200
            assert document["dynamo"] == {"install": True, "wheel": "1.2.0.dev20260526"}
            for side in ("prefill_environment", "decode_environment"):
                assert document["backend"][side]["UCX_MEMTYPE_CACHE"] == "n"
                assert document["backend"][side]["VLLM_FLASHINFER_ALLREDUCE_BACKEND"] == "mnnvl"
            decode = document["backend"]["vllm_config"]["decode"]
            expected = {
                "dep4": (512, 2048),
                "dep8": (512, 2048),
                "tep8": (4096, 8192) if has.isl == 1024 else (1024, 4096),
            }.get(name.split("-")[2])
            if expected is not None:
                assert (decode["max-num-seqs"], decode["max-cudagraph-capture-size"]) == expected, name

    def test_the_dep8_recipe_of_b200(self) -> None:
        document = answered(f"{B200}/8k1k/2p1d-dep2-dep8-8k1k.yaml")
        has = recipe_facts(document)
        assert has.container == "vllm/vllm-openai:nightly-69715823df89b11ee684b84066390cbb9092d5c1"
        assert (has.model_path, has.concurrencies, has.nodes) == ("nvidia/MiniMax-M3-NVFP4", (2048,), 2)
        assert document["dynamo"]["version"] == "1.3.0.dev20260614"
        for side in ("prefill", "decode"):
            assert document["backend"][f"{side}_environment"]["UCX_TLS"] == "cuda_copy,rc"
        decode = document["backend"]["vllm_config"]["decode"]
        assert (decode["max-num-seqs"], decode["max-num-batched-tokens"]) == (1024, 16384)
        assert decode["max-cudagraph-capture-size"] == 4096


class TestFiles:
    @pytest.mark.parametrize("path", FAMILIES)
    def test_no_scalar_has_an_anchor(self, path: str) -> None:
        """srtctl writes a variant with ruamel, which repeats a scalar's anchor; PyYAML then refuses the copy."""
        for line in (ROOT / path).read_text().splitlines():
            if "&" in line and not line.lstrip().startswith("#"):
                assert line.rstrip().endswith("}") or line.split("&")[1].replace("-", "").isalnum(), line

    @pytest.mark.parametrize("path", FAMILIES)
    def test_numbers_of_strings_are_strings(self, path: str) -> None:
        """srtctl's schema refuses a number in a map of strings."""
        for selector, variant in family(path).items():
            document, backend = variant.document, variant.document["backend"]
            maps = [document.get("sbatch_directives", {}), document.get("srun_options", {})]
            maps += [backend["prefill_environment"], backend["decode_environment"]]
            assert all(isinstance(value, str) for one in maps for value in one.values()), selector

    @pytest.mark.parametrize("path", FAMILIES)
    def test_written_out_they_mean_the_same(self, path: str, tmp_path: Path) -> None:
        data = Document.read(ROOT / path).mapping()
        (tmp_path / "copy.yaml").write_text(dump(data))
        assert Document.read(tmp_path / "copy.yaml").mapping() == data


ROWS = [
    (key, entry, point, row)
    for key, entry in Document.read(MATRIX).mapping().items()
    if entry["multinode"] and entry["runner"] != "local"
    for point in entry["scenarios"]["fixed-seq-len"]
    for row in point["search-space"]
]


class TestMatrix:
    @staticmethod
    def config_file(row: Mapping[str, Any]) -> str:
        (setting,) = row["prefill"]["additional-settings"]
        assert setting.startswith("CONFIG_FILE=")
        return str(setting.removeprefix("CONFIG_FILE="))

    def test_every_variant_stands_in_it_once(self) -> None:
        named = sorted(self.config_file(row) for *_, row in ROWS)
        assert named == sorted(f"{path}:{selector}" for path in FAMILIES for selector in family(path))

    def test_the_families_have_their_keys_and_runners(self) -> None:
        entries = Document.read(MATRIX).mapping()
        assert entries["minimaxm3-fp8-gb200-dynamo-vllm"]["runner"] == "gb200"
        assert entries["minimaxm3-fp4-b200-dynamo-vllm"]["runner"] == "b200-multinode"
        assert entries["minimaxm3-fp8-gb300-dynamo-vllm"]["runner"] == "gb300-nv"
        assert {entries[f"minimaxm3-{p}-b300-dynamo-vllm"]["runner"] for p in ("fp4", "fp8")} == {"b300"}

    def test_every_row_says_what_its_recipe_does(self) -> None:
        for key, entry, point, row in ROWS:
            path, selector = split_selector(self.config_file(row))
            assert selector is not None
            document = family(path)[selector].document
            has = recipe_facts(document)
            where = f"{key}: {selector}"
            assert (point["isl"], point["osl"]) == (has.isl, has.osl), where
            assert tuple(row["conc-list"]) == has.concurrencies, where
            for name, side in (("prefill", has.prefill), ("decode", has.decode)):
                role = side.as_role() if side is not None else None
                assert role is not None, where
                asked = row[name]
                words = (asked["num-worker"], asked["tp"], asked["ep"], asked["dp-attn"])
                assert words == (role.workers, role.tp, role.ep, role.dp_attention), where
            assert entry["image"] == has.container, where
            assert entry["precision"] == has.precision, where
            assert entry["disagg"] and entry["framework"] == f"dynamo-{has.engine}", where
            assert entry["router"]["version"] == self.dynamo(document), where
            assert entry["model"].endswith("NVFP4" if has.precision == "fp4" else "MXFP8"), where

    @staticmethod
    def dynamo(document: Any) -> str:
        return str(document["dynamo"].get("wheel") or document["dynamo"]["version"])

    def test_it_is_a_master_file(self) -> None:
        selected = load_matrix([MATRIX]).entries(Selection(nodes="multi"))
        entries = [entry for entry in selected if entry.benchmark.runner != "local"]
        assert len(entries) == len(ROWS)
        for entry in entries:
            limits = {side.max_model_len for side in self.facts_of(entry.data).roles.values()}
            assert limits == {entry.data["max-model-len"]}

    def facts_of(self, data: Mapping[str, Any]) -> RecipeFacts:
        path, selector = split_selector(self.config_file(data))
        return recipe_facts(family(path)[str(selector)].document)


def test_rows_of_two_nodes_of_this_machine_have_every_kind(tmp_path: Path) -> None:
    project = Project.open({"HOME": str(tmp_path)}, workspace=str(tmp_path), state=str(tmp_path / "state"))
    entries = load_matrix([MATRIX]).entries(Selection(keys=["minimaxm3-fp8-nodes-*"], evals="none"))
    plans = [project.plan_by_hand(entry.benchmark, None) for entry in entries]
    assert [plan.kind for plan in plans] == ["amd-multinode", "llm-d", "tilert"] and not any(p.errors for p in plans)
    for job in map(MultinodeJob.of, plans):
        assert job.own_workspace is not None and (ROOT / "recipes" / job.script.path).is_file()
        assert job.job.nodes == 2 and len(job.script.asks) > 8


def test_every_row_of_one_node_has_its_script_and_needs_no_other_workspace(tmp_path: Path) -> None:
    project = Project.open({"HOME": str(tmp_path)}, workspace=str(tmp_path), state=str(tmp_path / "state"))
    entries = load_matrix([MATRIX]).entries(Selection(nodes="single", evals="none"))
    jobs = [ContainerJob.of(project.plan_by_hand(entry.benchmark, None)) for entry in entries]
    assert len({job.script.path for job in jobs}) == len(jobs) == 2
    for job in jobs:
        assert (ROOT / "recipes" / job.script.path).is_file() and len(job.script.asks) > 5
        assert job.own_workspace is not None and job.own_workspace.path.startswith(f"{tmp_path}/state/workspaces/")
        assert job.container.mounts["/workspace"] == job.own_workspace.path
