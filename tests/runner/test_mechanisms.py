"""What a runner file can say beside a path and a ref, each on a file of a few lines."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.benchmark.benchmark import AGENTIC
from launcher.plan.plan import Plan
from launcher.runner.file import applies
from launcher.runner.schema import When
from launcher.srtctl.kind import stamp_power
from launcher.srtctl.planned import SrtctlJob
from tests.benchmarks import IMAGE, a_benchmark, a_recipe
from tests.srtctl.test_resolve import RUNNER, RecipePlanner

Edited = Callable[[str, str], RecipePlanner]


@pytest.fixture
def edited(tmp_path: Path) -> Edited:
    """A planner whose runner file has one text replaced."""

    def edit(old: str, new: str) -> RecipePlanner:
        assert RUNNER.count(old) == 1, old
        planner = RecipePlanner(tmp_path)
        planner.runner = RUNNER.replace(old, new)
        return planner

    return edit


def line_of(planner: RecipePlanner, text: str) -> str:
    lines = [i for i, line in enumerate(planner.runner.splitlines(), 1) if text in line]
    assert len(lines) == 1
    return f"tiny.yaml:{lines[0]}"


def finding(plan: Plan, rule: str) -> tuple[str, str, str]:
    (found,) = [f for f in plan.findings if f.rule == rule]
    return found.severity, found.message, found.where


@pytest.mark.parametrize(
    ("pattern", "matching"),
    [
        ("!dynamo-trt", {"dynamo-vllm", "vllm"}),
        (["dynamo-*", "!dynamo-trt"], {"dynamo-vllm"}),
        (["!dynamo-trt", "!vllm"], {"dynamo-vllm"}),
        (["dynamo-trt", "vllm"], {"dynamo-trt", "vllm"}),
        ("!*", set()),
    ],
)
def test_a_glob_behind_an_exclamation_mark_excludes(pattern: str | list[str], matching: set[str]) -> None:
    frameworks = ("dynamo-trt", "dynamo-vllm", "vllm")
    assert {f for f in frameworks if applies(When(framework=pattern), a_benchmark(framework=f))} == matching


IMAGES = "images: {directory: /squash,"


def test_an_image_that_lies_elsewhere_and_is_named_otherwise(edited: Edited) -> None:
    first, second = (
        "{when: {framework: dynamo-trt}, directory: /t}",
        "{when: {precision: fp8}, directory: /m, name: plus}",
    )
    planner = edited(IMAGES, f"{IMAGES} rules: [{first}, {second}],")
    recipe = a_recipe()
    recipe["frontend"]["nginx_container"] = "nginx-sqsh"
    planner.write("r.yaml", recipe)
    plan = planner.plan()
    assert [i.squash for i in plan.images] == ["/m/vllm+vllm-openai+tag.sqsh", "/squash/nginx_1.27.4.sqsh"]
    assert [i.lock for i in plan.images] == ["/m/.locks/vllm+vllm-openai+tag.lock", "/squash/.locks/nginx_1.27.4.lock"]
    assert SrtctlJob.of(plan).srtslurm["containers"] == {
        i: p.squash for i, p in zip((IMAGE, "nginx-sqsh"), plan.images, strict=True)
    }
    assert "image-replaced" not in {f.rule for f in plan.findings}


@pytest.mark.parametrize(("image", "another"), [("vllm/vllm-openai:other", True), (f"docker.io/{IMAGE}", False)])
def test_an_image_that_takes_the_place_of_the_rows_is_an_error(edited: Edited, image: str, another: bool) -> None:
    planner = edited(IMAGES, f'{IMAGES} rules: [{{image: "{image}"}}],')
    plan = planner.plan()
    assert plan.images[0].reference == image
    assert SrtctlJob.of(plan).srtslurm["containers"] == {IMAGE: plan.images[0].squash}
    assert ("image-replaced" in {f.rule for f in plan.findings}) is another
    if another:
        severity, message, where = finding(plan, "image-replaced")
        assert severity == "error" and image in message and IMAGE in message
        assert where == line_of(planner, "rules:")


def test_enroot_gets_the_clusters_settings(edited: Edited) -> None:
    planner = edited(IMAGES, f'{IMAGES} environment: {{ENROOT_CACHE_PATH: "{{home}}/.cache/enroot"}},')
    planner.context["host"] = {"HOME": "/home/me"}
    assert planner.plan().images[0].environment["ENROOT_CACHE_PATH"] == "/home/me/.cache/enroot"


PATHS = "path: [/lustre/A, /lustre/B]"


def test_the_hub_is_taken_when_no_candidate_is_there(edited: Edited) -> None:
    planner = edited(PATHS, f'{PATHS}\n    otherwise: "hf:org/name"')
    plan = planner.plan()
    assert (plan.model.path, plan.model.storage) == ("hf:org/name", "hub")
    assert SrtctlJob.of(plan).models == {"minimax-m3-mxfp8": "hf:org/name"}
    severity, message, where = finding(plan, "model-otherwise")
    assert severity == "warning" and "hf:org/name" in message
    assert where == line_of(planner, "- when: {prefix: minimaxm3}")
    planner.context["is_directory"] = lambda path, holding: path == "/lustre/B"
    plan = planner.plan()
    assert plan.model.path == "/lustre/B" and "model-otherwise" not in {f.rule for f in plan.findings}


@pytest.mark.parametrize("severity", ["warning", "error"])
def test_what_is_known_to_be_wrong_is_said_where_it_applies(edited: Edited, severity: str) -> None:
    planner = edited("    ref: v1\n", f"    ref: v1\n    known: {{message: it leaks, severity: {severity}}}\n")
    assert finding(planner.plan(), "known-problem") == (severity, "it leaks", "tiny.yaml:23")
    planner.write("r.yaml", {**a_recipe(), "telemetry": {"provider": "dcgm-power", "enabled": True}})
    assert "known-problem" not in {f.rule for f in planner.plan().findings}  # another lane


def test_only_those_that_need_it_get_a_copy_of_the_workspace(edited: Edited) -> None:
    only = "only: [{prefix: other}, {prefix: minimaxm3, framework: dynamo-vllm}]"
    planner = edited("workspace: {shared: /lustre/runs}", f"workspace: {{shared: /lustre/runs, {only}}}")
    assert planner.plan().workspace.shared == "/lustre/runs/infmax-workspace-77-1-abc"
    plan = planner.plan(framework="dynamo-sglang")
    assert plan.workspace.shared is None
    assert SrtctlJob.of(plan).submit.environment["INFMAX_WORKSPACE"] == str(planner.root)


def test_a_lane_may_follow_a_branch_and_lay_one_file_over(edited: Edited) -> None:
    planner = edited(
        "overlays: [{source: vllm/x}]", "overlays: [{source: vllm/x/one.yaml}, {source: a, destination: b/c}]"
    )
    planner.runner = planner.runner.replace(f'    sha: "{"2" * 40}"\n', "")
    plan = planner.plan()
    assert SrtctlJob.of(plan).srt_slurm.sha is None and SrtctlJob.of(plan).srt_slurm.ref == "v1"
    overlays = [
        (o.source.partition("srt-slurm-recipes/")[2], o.destination) for o in SrtctlJob.of(plan).srt_slurm.overlays
    ]
    assert overlays == [("vllm/x/one.yaml", "recipes/vllm/x/one.yaml"), ("a", "b/c")]


def test_adjustments_name_tags_and_the_later_one_wins(edited: Edited) -> None:
    planner = edited(
        "    mounts: {/host: /inside}\n",
        '    tags: "{sku},agentic"\n    preflight: true\n    srtslurm: {a: 1, b: 2}\n'
        "  - {when: {scenario: agentic-coding}, srtslurm: {b: 3}}\n",
    )
    argv = SrtctlJob.of(planner.plan(scenario=AGENTIC, isl=None, osl=None)).submit.argv
    assert argv[argv.index("--tags") + 1] == "tiny,agentic"
    assert "--no-preflight" not in argv and "--no-preflight" in SrtctlJob.of(planner.plan()).submit.argv
    plan = planner.plan(scenario=AGENTIC, isl=None, osl=None)
    assert (SrtctlJob.of(plan).srtslurm["a"], SrtctlJob.of(plan).srtslurm["b"]) == (1, 3)


def test_an_agentic_job_without_lengths_is_tagged_with_a_bare_x(edited: Edited) -> None:
    argv = SrtctlJob.of(edited(PATHS, PATHS).plan(scenario=AGENTIC, isl=None, osl=None)).submit.argv
    assert argv[argv.index("--tags") + 1] == "tiny,minimaxm3,fp8,x,infmax-20260102"


def test_power_telemetry_brings_its_exporter_and_its_stamps(edited: Edited, tmp_path: Path) -> None:
    planner = edited('{nginx-sqsh: "nginx:1.27.4"}', '{dcgm-exporter: "nvcr.io/nvidia/k8s/dcgm-exporter:4"}')
    planner.runner = planner.runner.replace("/squash", str(tmp_path))
    telemetry = {
        "provider": "dcgm-power",
        "enabled": True,
        "dcgm_exporter": {"container_image": "dcgm-exporter"},
    }
    planner.write("r.yaml", {**a_recipe(), "telemetry": telemetry})
    plan = planner.plan()
    assert SrtctlJob.of(plan).power and SrtctlJob.of(plan).srt_slurm.ref == "powered"
    exporter = plan.images[1]
    assert (exporter.role, exporter.uri) == ("telemetry", "docker://nvcr.io#nvidia/k8s/dcgm-exporter:4")
    assert SrtctlJob.of(plan).srtslurm["containers"]["dcgm-exporter"] == exporter.squash

    Path(exporter.squash).write_bytes(b"squash")
    stamp_power(plan, "c" * 40, tmp_path)
    digest = hashlib.sha256(b"squash").hexdigest()
    assert (tmp_path / "exporter-image.sha256").read_text() == f"{digest}  {exporter.squash}\n"
    assert (tmp_path / "power-producer-sha.txt").read_text() == "c" * 40 + "\n"


def test_a_run_without_power_telemetry_leaves_no_stamps(edited: Edited, tmp_path: Path) -> None:
    plan = edited(PATHS, PATHS).plan()
    before = sorted(tmp_path.iterdir())
    stamp_power(plan, "c" * 40, tmp_path)
    assert not SrtctlJob.of(plan).power and sorted(tmp_path.iterdir()) == before
