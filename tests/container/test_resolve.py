"""From a row of one node and a runner file to the plan of a job in a container: each rule on a file of a few lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.benchmark.benchmark import Benchmark, Component, Role
from launcher.benchmark.environment import benchmark_from_environment, environment_of
from launcher.container.planned import ContainerJob
from launcher.core.errors import ConfigError
from launcher.plan.plan import Plan
from tests.benchmarks import a_benchmark
from tests.container.planner import RowPlanner, a_row, an_agentic_row

LIMIT = 'time-limit: "3:00:00"'
MODELS = "  - {cache: /shared/hf-hub-cache}\n"


@pytest.fixture
def planner(tmp_path: Path) -> RowPlanner:
    made = RowPlanner(tmp_path)
    made.script("dsr1_fp8_h100.sh", folder="benchmarks/single_node/agentic")
    return made


def refused(planner: RowPlanner, **changes: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        planner.plan(**changes)
    assert caught.value.exit_code == 2
    return caught.value


def test_a_plan_has_the_keys_of_the_contract(planner: RowPlanner) -> None:
    """Reference/single-node.md §7, for a lane that says no more than it must."""
    plan = json.loads(json.dumps(planner.plan().as_dict()))
    root = str(planner.root)
    assert (plan["kind"], plan["runner"], plan["job_name"], plan["sku"]) == ("container", "tiny", "tiny_07", "h100")
    assert plan["allocation"] == {
        "partition": "p",
        "account": "a",
        "nodes": 1,
        "gpus": 4,
        "gpu_type": None,
        "cpus_per_task": None,
        "memory": None,
        "exclusive": True,
        "minutes": 180,
        "job_name": "tiny_07",
        "exclude": [],
    }
    (image,) = plan["images"]
    assert image["uri"] == "docker://registry-1.docker.io#lmsysorg/sglang:v0.5.12-cu130"
    assert (image["squash"], image["import_on"], image["shared"], image["lock_wait"]) == (
        "/shared/squash/lmsysorg_sglang_v0.5.12-cu130.sqsh",
        "login",
        True,
        600,
    )
    assert (plan["model"]["id"], plan["model"]["path"]) == ("deepseek-ai/DeepSeek-R1-0528", None)
    assert plan["model"]["cache"] == {"host": "/shared/hf-hub-cache", "at": "/mnt/hf_hub_cache/"}
    container = plan["container"]
    assert (container["engine"], container["image"]) == ("pyxis", image["squash"])
    assert (container["workdir"], container["environment"]) == ("/workspace", {"PORT": "8888"})
    assert container["mounts"] == {"/workspace": root, "/mnt/hf_hub_cache": "/shared/hf-hub-cache"}
    assert not any(container["options"].values())
    assert plan["script"]["path"] == "benchmarks/single_node/fixed_seq_len/dsr1_fp8_h100.sh"
    assert (plan["staging"], plan["results"]["directory"]) == (None, root)
    assert not {"srt_slurm", "srtslurm", "recipe", "models"} & plan.keys()


def test_a_plan_is_the_same_after_its_record_is_read(planner: RowPlanner) -> None:
    plan = planner.lane('staging: {back: [results, "*.json"]}').plan(run_eval=True)
    again = Plan.from_dict(json.loads(json.dumps(plan.as_dict())))
    assert again.as_dict() == plan.as_dict() and ContainerJob.of(again) == ContainerJob.of(plan)


def test_rows_that_no_lane_in_a_container_runs(planner: RowPlanner) -> None:
    planner.edit("    when: {nodes: single}\n", "")
    with pytest.raises(ConfigError, match="in no container of one node"):
        planner.plan_of(a_benchmark(runner="tiny-label"))
    assert "no rule in `models`" in refused(planner.edit("{cache:", "{when: {prefix: other}, cache:")).message
    planner.edit("  - kind: container\n", "  - kind: container\n    when: {framework: vllm}\n")
    error = refused(planner)
    assert "no rule in `lanes` for dsr1/fp8/sglang" in error.message and error.hint == "supported: */*/vllm"


PORTS: list[tuple[str, dict[str, str], str, str]] = [
    # what the lane says, the host's variables, RUNNER_NAME, PORT
    ("{}", {}, "tiny_07", "8888"),
    ("{base: 9000}", {}, "tiny_07", "9000"),
    ("{add: runner-digit}", {}, "tiny_07", "8895"),
    ("{add: runner-digit}", {}, "tiny_19", "8897"),
    ("{add: runner-digit}", {}, "tiny_a", "8888"),
    ("{add: runner-digit}", {}, "tiny_٨", "8888"),  # a digit for str.isdigit()
    ("{base: 40000, add: job-id}", {}, "tiny_07", "40000+$JOB%10000"),
    ("{variable: PORT}", {"PORT": "1234"}, "tiny_07", "1234"),
    ("{variable: PORT}", {"PORT": ""}, "tiny_07", "8888"),
    ("{}", {"PORT": "1234"}, "tiny_07", "8888"),  # a variable that the lane does not name
]


@pytest.mark.parametrize(("rule", "host", "runner_name", "port"), PORTS)
def test_ports(planner: RowPlanner, rule: str, host: dict[str, str], runner_name: str, port: str) -> None:
    planner.lane(f"port: {rule}")
    planner.host, planner.context = host, {"runner_name": runner_name}
    assert planner.job().container.environment["PORT"] == port


@pytest.mark.parametrize("text", ["0", "65536", "-1", "80a", "٨٠", "8888 ", "$JOB", "8888\n--privileged"])
def test_a_port_that_is_none_is_refused(planner: RowPlanner, text: str) -> None:
    planner.lane("port: {variable: PORT}").host = {"PORT": text}
    error = refused(planner)
    assert error.message == f"PORT is {text!r}; expected a port" and error.where == "environment"


MINUTES: list[tuple[str, dict[str, str], int | None]] = [
    ("{}", {}, 180),
    ('{time-limit: "8:00:00"}', {}, 480),
    ('{time-limit: "8:00:00", time-limit-variable: SALLOC_TIME_LIMIT}', {}, 480),
    ('{time-limit: "8:00:00", time-limit-variable: SALLOC_TIME_LIMIT}', {"SALLOC_TIME_LIMIT": ""}, 480),
    ("{time-limit-variable: SALLOC_TIME_LIMIT}", {"SALLOC_TIME_LIMIT": "90"}, 90),
    ("{time-limit-variable: SALLOC_TIME_LIMIT}", {"SALLOC_TIME_LIMIT": "1-2"}, 1560),
    ("{time-limit-variable: SALLOC_TIME_LIMIT}", {"SALLOC_TIME_LIMIT": "0:20"}, 1),
    ("{time-limit-variable: SALLOC_TIME_LIMIT}", {"SALLOC_TIME_LIMIT": "4:59"}, 5),
    ('{time-limit: "8:00:00"}', {"SALLOC_TIME_LIMIT": "90"}, 480),  # a variable that the lane does not name
]


@pytest.mark.parametrize(("rule", "host", "minutes"), MINUTES)
def test_limits(planner: RowPlanner, rule: str, host: dict[str, str], minutes: int | None) -> None:
    planner.lane(f"allocation: {rule}").host = host
    plan = planner.plan()
    allocation = ContainerJob.of(plan).allocation
    assert allocation is not None and allocation.minutes == minutes
    assert plan.scheduler.time_limit == str(minutes)


def test_an_adjustment_sets_the_limit_of_the_rows_that_it_is_for(planner: RowPlanner) -> None:
    planner.runner += 'adjust:\n  - {when: {scenario: agentic-coding}, time-limit: "5:00:00"}\n'
    fixed, agentic = planner.job().allocation, planner.job_of(an_agentic_row()).allocation
    assert fixed is not None and agentic is not None
    assert (fixed.minutes, agentic.minutes) == (180, 300)


@pytest.mark.parametrize("text", ["0", "0:00", "1h", "-5", "5 ", "480; rm -rf /", "1:2:3:4", "٩", "UNLIMITED"])
def test_a_limit_that_is_none_is_refused(planner: RowPlanner, text: str) -> None:
    """0 is Slurm's word for a job without a limit, which nobody means here."""
    planner.lane("allocation: {time-limit-variable: SALLOC_TIME_LIMIT}").host = {"SALLOC_TIME_LIMIT": text}
    error = refused(planner)
    assert error.message.startswith(f"SALLOC_TIME_LIMIT is {text!r}; expected one as Slurm writes it")
    assert error.where == "environment"
    planner.host = {}
    if text == "0":  # which the schema of runner files takes
        error = refused(planner.edit(LIMIT, 'time-limit: "0"'))
        assert error.message.startswith("the time limit is '0'") and (error.where or "").startswith("tiny.yaml:")


def test_a_limit_of_null_leaves_it_to_the_partition(planner: RowPlanner) -> None:
    plan = planner.edit(LIMIT, "time-limit: null").plan()
    allocation = ContainerJob.of(plan).allocation
    assert allocation is not None and allocation.minutes is None
    assert plan.scheduler.time_limit is None


def test_what_the_lane_asks_of_slurm(planner: RowPlanner) -> None:
    planner.lane('allocation: {gpu-type: h100, cpus-per-task: 128, memory: "0", exclusive: false}')
    planner.edit("account: a,", "account: a, partition-variable: P, account-variable: A, job-name: 'x-{runner}',")
    planner.host = {"P": "other", "A": ""}
    allocation = planner.job(prefill=Role(1, 2, pp=2, pcp=2, dcp=2, ep=2)).allocation
    assert allocation is not None
    assert (allocation.gpu_type, allocation.cpus_per_task, allocation.memory) == ("h100", 128, "0")
    assert (allocation.gpus, allocation.exclusive, allocation.job_name) == (8, False, "x-tiny_07")
    assert (allocation.partition, allocation.account) == ("other", "a")


def test_excluded_nodes(planner: RowPlanner) -> None:
    planner.runner += (
        "exclude-nodes:\n  - {node: bad-1, reason: broken}\n"
        "  - {node: bad-2, reason: broken, variable: SALLOC_EXCLUDE, when: {framework: sglang}}\n"
        "  - {node: bad-3, reason: broken, variable: SALLOC_EXCLUDE, when: {framework: sglang}}\n"
    )

    def excluded(host: dict[str, str], **row: Any) -> tuple[str, ...]:
        planner.host = host
        allocation = planner.job(**row).allocation
        assert allocation is not None
        return allocation.exclude

    planner.script("dsr1_fp8_h100.sh")
    assert excluded({}) == ("bad-1", "bad-2", "bad-3")
    assert excluded({}, framework="vllm") == ("bad-1",)
    assert excluded({"SALLOC_EXCLUDE": "n-5,n-6"}) == ("bad-1", "n-5", "n-6")
    assert excluded({"SALLOC_EXCLUDE": ""}) == ("bad-1",)


def test_a_workdir_of_its_own_for_images_with_files_below_workspace(planner: RowPlanner) -> None:
    planner.runner += 'adjust:\n  - {when: {image: "*deepseek-v4-hopper*"}, workdir: /ix}\n'
    ours = planner.job()
    assert (ours.container.workdir, "RESULT_DIR" in ours.container.environment) == ("/workspace", False)
    job = planner.job(image="lmsysorg/sglang:deepseek-v4-hopper")
    assert job.container.workdir == "/ix" and "/workspace" not in job.container.mounts
    assert job.container.mounts["/ix"] == str(planner.root)
    # The workflow's RESULT_DIR names /workspace, where nothing is mounted then.
    assert (job.environment["RESULT_DIR"], job.container.environment["RESULT_DIR"]) == (
        "/workspace/results",
        "/ix/results",
    )


def model_rule(planner: RowPlanner, rule: str, variables: str = "[MODEL, MODEL_PATH]") -> RowPlanner:
    return planner.edit(MODELS, f"  - {rule}\n").lane(f"model-variables: {variables}")


def test_a_table_of_paths_whose_entry_takes_the_models_place(planner: RowPlanner) -> None:
    """As on b200-dgxc: scripts are given a directory where they expect the id."""
    plan = model_rule(planner, "{when: {prefix: dsr1}, path: /shared/models/R1}").plan()
    job = ContainerJob.of(plan)
    assert (plan.model.id, plan.model.path, plan.model.cache) == (
        "deepseek-ai/DeepSeek-R1-0528",
        "/shared/models/R1",
        None,
    )
    assert job.container.environment["MODEL"] == job.container.environment["MODEL_PATH"] == "/shared/models/R1"
    assert job.container.mounts["/shared/models/R1"] == "/shared/models/R1"
    assert job.environment["MODEL"] == "deepseek-ai/DeepSeek-R1-0528"


def test_a_path_beside_the_id(planner: RowPlanner) -> None:
    """As on b300-nv: whole trees are mounted, and MODEL stays the id."""
    model_rule(planner, '{path: "/scratch/models/{model}"}', "[MODEL_PATH]")
    planner.runner += "adjust:\n  - mounts: {/scratch/models: /scratch/models}\n"
    job = planner.job()
    assert job.container.environment["MODEL_PATH"] == "/scratch/models/DeepSeek-R1-0528"
    assert "MODEL" not in job.container.environment
    assert job.container.mounts.keys() == {"/workspace", "/scratch/models"}  # the checkpoint is below what is mounted


def test_a_tree_that_is_mounted_elsewhere_does_not_show_the_checkpoint(planner: RowPlanner) -> None:
    model_rule(planner, "{path: /shared/models/R1}")
    planner.runner += "adjust:\n  - mounts: {/shared/models: /elsewhere}\n"
    assert planner.job().container.mounts["/shared/models/R1"] == "/shared/models/R1"


def test_candidates_and_the_hosts_own_directory(planner: RowPlanner) -> None:
    model_rule(planner, "{path: [/shared/A, /shared/B], otherwise: /shared/C, variable: MODEL_PATH}")
    assert planner.plan().model.path == "/shared/C"
    planner.context = {"is_directory": lambda path, holding: path == "/shared/B"}
    assert planner.plan().model.path == "/shared/B"
    planner.host = {"MODEL_PATH": "/shared/mine"}
    assert planner.job().container.mounts["/shared/mine"] == "/shared/mine"


def test_a_cache_of_the_node_is_seen_where_the_workflow_says(planner: RowPlanner) -> None:
    planner.edit("hf-hub-cache}", "hf-hub-cache, variable: HF_HUB_CACHE_MOUNT}")
    planner.host = {"HF_HUB_CACHE_MOUNT": "/mine", "HF_HUB_CACHE": "/the/hosts/own"}
    job = planner.job(options={"HF_HUB_CACHE": "/cache"})
    assert job.container.mounts["/cache"] == "/mine"
    assert job.environment["HF_HUB_CACHE"] == "/cache"


@pytest.mark.parametrize("text", ["relative", "/a,/etc:/etc", "/a:/etc", "/a\n", "/a\0", ""])
@pytest.mark.parametrize("rule", ["{cache: /c, variable: V}", "{path: /p, variable: V}"])
def test_a_directory_that_cannot_be_mounted_is_refused(planner: RowPlanner, rule: str, text: str) -> None:
    """A comma or a colon would be read as another mount, and a path that is relative is one of docker's volumes."""
    model_rule(planner, rule).host = {"V": text}
    if not text:  # as if it were not set
        planner.plan()
        return
    error = refused(planner)
    assert repr(text) in error.message and "mounted" in error.message


SECRET_NAMES = (
    *("HF_TOKEN", "MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "GITHUB_TOKEN", "ACTIONS_RUNTIME_TOKEN", "NGC_API_KEY"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "DOCKER_PASSWORD", "PGPASSWORD"),
    *("HUGGING_FACE_HUB_TOKEN", "CI_JOB_TOKEN", "SSH_PRIVATE_KEY", "MY_SECRET", "REGISTRY_AUTH", "VAULT_TOKEN"),
    *("GPU_MEM_UTIL", "NOT_NAMED_ANYWHERE"),
)


@pytest.mark.parametrize("engine", ["pyxis", "enroot", "docker", "podman"])
def test_no_secret_has_its_value_in_a_plan(planner: RowPlanner, engine: str) -> None:
    """Twenty of them in the host's environment, five of which the container is passed by name."""
    planner.host = {name: f"s3cr3t-{i}-value,\n'$(id)'" for i, name in enumerate(SECRET_NAMES)}
    planner.runner += "pass-environment: [MY_SECRET, GPU_MEM_UTIL, NOT_SET]\n"
    plan = planner.lane(f"engine: {engine}").plan()
    assert len(SECRET_NAMES) == 20
    assert "s3cr3t" not in json.dumps(plan.as_dict()) and "s3cr3t" not in repr(plan)
    passes = ContainerJob.of(plan).container.passes
    assert set(SECRET_NAMES) & set(passes) == {
        *("HF_TOKEN", "MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "MY_SECRET", "GPU_MEM_UTIL")
    }


def test_a_container_is_passed_the_workflows_variables_and_no_others(planner: RowPlanner) -> None:
    planner.host = {"PATH": "/bin", "LD_PRELOAD": "/x.so", "HOME": "/root", "TUNED": "1", "NOT_SET": ""}
    planner.runner += "pass-environment: [TUNED, NOT_SET, NEITHER]\n"
    job = planner.job()
    beside = {"RUNNER_NAME", "RESULT_FILENAME", "RESULT_FILENAME_BASE", "GPU_COUNT", "GITHUB_WORKSPACE"}
    assert set(job.environment) == {*environment_of(a_row()), *beside}
    assert set(job.container.passes) == {*job.environment, "TUNED"}
    assert (job.environment["RUNNER_NAME"], job.environment["GPU_COUNT"]) == ("tiny_07", "4")


def test_the_hosts_value_wins_where_the_runner_file_lets_it(planner: RowPlanner) -> None:
    planner.runner += (
        'adjust:\n  - exports: {NCCL_IB_DISABLE: "1", OWN: "$HOME/x-$UID-$JOB"}\npass-environment: [NCCL_IB_DISABLE]\n'
    )
    planner.host = {"HOME": "/home/me"}
    container = planner.job().container
    assert container.environment == {"PORT": "8888", "NCCL_IB_DISABLE": "1", "OWN": "/home/me/x-$UID-$JOB"}
    planner.host = {"NCCL_IB_DISABLE": "0"}
    container = planner.job().container
    assert "NCCL_IB_DISABLE" in container.passes
    assert container.environment == {"PORT": "8888", "OWN": "$HOME/x-$UID-$JOB"}


def test_later_adjustments_win_and_gpus_are_counted(planner: RowPlanner) -> None:
    planner.runner += 'adjust:\n  - exports: {A: "1", CUDA_VISIBLE_DEVICES: "{gpu-list}"}\n  - exports: {A: "2"}\n'
    environment = planner.job(prefill=Role(1, 2)).container.environment
    assert (environment["A"], environment["CUDA_VISIBLE_DEVICES"]) == ("2", "0,1")


def test_values_with_newlines_and_commas_arrive_as_they_are(planner: RowPlanner) -> None:
    backend, router = Component("lm,cache x=y", "0.3"), Component("ro'u\"te$r", "1,2")
    row = an_agentic_row(kv_offloading="dram", kv_offload_backend=backend, router=router, total_cpu_dram_gb=100)
    plan = planner.plan_of(row)
    environment = ContainerJob.of(Plan.from_dict(json.loads(json.dumps(plan.as_dict())))).environment
    assert json.loads(environment["KV_OFFLOAD_BACKEND_METADATA"]) == {"name": "lm,cache x=y", "version": "0.3"}
    assert environment["KV_OFFLOAD_BACKEND_METADATA"].count("\n") == 3  # pretty-printed, as the workflow has it
    assert benchmark_from_environment(environment).router == router


REFERENCES = [
    # the row's image, as docker is given it, as pyxis pulls it, as enroot imports it
    ("vllm/vllm-openai:v1", "vllm/vllm-openai:v1", "registry-1.docker.io#vllm/vllm-openai:v1"),
    ("docker.io/vllm/vllm-openai:v1", "vllm/vllm-openai:v1", "registry-1.docker.io#vllm/vllm-openai:v1"),
    ("nvcr.io#nvidia/trt/release:1.3", "nvcr.io/nvidia/trt/release:1.3", "nvcr.io#nvidia/trt/release:1.3"),
    ("nvcr.io/nvidia/trt/release:1.3", "nvcr.io/nvidia/trt/release:1.3", "nvcr.io#nvidia/trt/release:1.3"),
    (
        f"acme/x:tag@sha256:{'a' * 64}",
        f"acme/x@sha256:{'a' * 64}",
        f"registry-1.docker.io#acme/x:sha256:{'a' * 64}",
    ),
    (f"ghcr.io#acme/x@sha256:{'b' * 64}", f"ghcr.io/acme/x@sha256:{'b' * 64}", f"ghcr.io#acme/x:sha256:{'b' * 64}"),
    ("localhost:5000/x:t", "localhost:5000/x:t", "localhost:5000#x:t"),
]


@pytest.mark.parametrize(("image", "docker", "uri"), REFERENCES)
def test_images_as_each_engine_reads_them(planner: RowPlanner, image: str, docker: str, uri: str) -> None:
    assert planner.plan(image=image).images[0].uri == f"docker://{uri}"
    plan = planner.lane("pull: true").plan(image=image)
    assert (plan.images, ContainerJob.of(plan).container.image) == ((), uri)
    planner.runner = planner.runner.replace("pull: true", "engine: docker")
    plan = planner.plan(image=image)
    assert (plan.images, ContainerJob.of(plan).container.image) == ((), docker)


def test_an_image_on_each_nodes_own_disk_is_imported_there(planner: RowPlanner) -> None:
    image = planner.edit("lock-wait: 600", "lock-wait: 600, shared: false").plan().images[0]
    assert (image.import_on, image.shared) == ("compute", False)


def test_docker_on_the_runners_own_host(planner: RowPlanner) -> None:
    planner.edit("kind: container", "kind: docker").lane('flags: ["--gpus={gpus}", "--format={other}"]')
    planner.edit(f"{{partition: p, account: a, {LIMIT}}}", '{kind: local, time-limit: "8:20:00"}')
    plan = planner.lane("engine: docker").plan()
    job = ContainerJob.of(plan)
    assert (plan.kind, job.allocation, plan.scheduler.kind) == ("docker", None, "local")
    assert plan.scheduler.time_limit == "500"  # which the embedded scheduler keeps
    assert job.container.options.flags == ("--gpus=4", "--format={other}")


def test_a_copy_of_the_checkout(planner: RowPlanner) -> None:
    job = planner.lane('staging: {exclude: [big], back: [results, "*.json"]}').job()
    assert job.staging is not None
    assert (job.staging.to, job.staging.exclude) == ("/tmp/inferencex-$JOB", (".git", "big"))
    assert job.staging.back == ("results", "*.json")
    assert job.container.mounts["/workspace"] == "/tmp/inferencex-$JOB"
    assert job.environment["GITHUB_WORKSPACE"] == str(planner.root)


def test_what_a_job_has_to_leave(planner: RowPlanner) -> None:
    fixed = planner.plan(result_filename="R").results
    assert (fixed.required, fixed.eval, fixed.mode) == (("R.json",), (), "fixed")
    both = planner.plan(result_filename="R", run_eval=True).results
    assert both.required == ("R.json",) and "results*.json" in both.eval
    only = planner.plan(result_filename="R", run_eval=True, eval_only=True).results
    assert (only.required, only.mode) == (("results*.json",), "eval")
    profiled = planner.plan(result_filename="R", options={"PROFILE": "1"}).results
    assert profiled.required == ("R.json", "profile_R.trace.json.gz")
    agentic = planner.plan_of(an_agentic_row(result_filename="R")).results
    assert (agentic.required, agentic.mode) == (("R.json",), "agentic")
    assert "gpu_metrics.csv" in agentic.metrics and "results/**" in agentic.logs


def test_a_job_that_profiles_finds_its_script_without_being_told_where(planner: RowPlanner) -> None:
    """profile.yml sets no SCENARIO_SUBDIR, and most bash launchers then look one directory too high."""
    environ = {name: value for name, value in environment_of(a_row()).items() if name != "SCENARIO_SUBDIR"}
    benchmark = benchmark_from_environment({**environ, "PROFILE": "1", "RUNNER_TYPE": "", "RESULT_FILENAME": "R"})
    plan = planner.plan_of(benchmark)
    job = ContainerJob.of(plan)
    assert job.script.path == "benchmarks/single_node/fixed_seq_len/dsr1_fp8_h100.sh"
    assert (job.environment["SCENARIO_SUBDIR"], job.environment["PROFILE"]) == ("fixed_seq_len/", "1")
    assert plan.results.required == ("R.json", "profile_R.trace.json.gz")


def acceptance_lengths(**changes: str) -> Benchmark:
    """What speedbench-al.yml starts: a script of its choice, and no point."""
    left_out = ("RUNNER_TYPE", "CONC", "ISL", "OSL", "SCENARIO_SUBDIR", "RESULT_FILENAME")
    environ = {name: value for name, value in environment_of(a_row()).items() if name not in left_out}
    named = {"BENCH_SCRIPT_OVERRIDE": "own/al.sh", "OUT_YAML": "/workspace/speedbench-reference-al.yaml"}
    return benchmark_from_environment({**environ, **named, **changes})


def test_a_job_that_collects_acceptance_lengths_has_to_leave_its_own_file(planner: RowPlanner) -> None:
    planner.edit('h100{spec}.sh"]}', 'h100{spec}.sh"], variable: BENCH_SCRIPT_OVERRIDE}').script("al.sh", folder="own")
    planner.host = {"BENCH_SCRIPT_OVERRIDE": "own/al.sh"}
    plan = planner.plan_of(acceptance_lengths())
    assert plan.results.required == ("speedbench-reference-al.yaml",)
    assert plan.results.concurrencies == () and ContainerJob.of(plan).script.path == "own/al.sh"
    for out in ("/elsewhere/x.yaml", "/workspace", "/workspace/../x.yaml", "x.yaml"):
        with pytest.raises(ConfigError, match=r"OUT_YAML is .* would be lost"):
            planner.plan_of(acceptance_lengths(OUT_YAML=out))


def test_the_results_are_named_as_the_workflow_names_them(planner: RowPlanner) -> None:
    ours = planner.job().environment
    assert ours["RESULT_FILENAME"] == ours["RESULT_FILENAME_BASE"]
    assert ours["RESULT_FILENAME"].endswith("_conc16_tiny_07")
    planner.host = {"RESULT_FILENAME_BASE": "BASE"}
    theirs = planner.job(result_filename="BASE_recipe-1").environment
    assert (theirs["RESULT_FILENAME"], theirs["RESULT_FILENAME_BASE"]) == ("BASE_recipe-1", "BASE")


def test_the_lane_of_the_page_about_new_clusters_is_one(planner: RowPlanner) -> None:
    guide = Path(__file__).parents[2] / "docs/guides/new-lane.md"
    page = guide.read_text().partition("## Add a lane in a container")[2]
    example = page.partition("```yaml\n")[2].partition("```")[0]
    head = ("name", "sku", "runners", "labels", "scheduler", "node")
    planner.runner = "\n".join(line for line in planner.runner.splitlines() if line.startswith(head)) + "\n" + example
    planner.script("dsr1_fp8_h200.sh")
    job = planner.job()
    assert job.script.path.endswith("/dsr1_fp8_h200.sh") and job.container.options.remap_root
    assert job.allocation is not None
    assert (job.allocation.minutes, job.allocation.cpus_per_task, job.allocation.exclusive) == (180, 64, False)
    assert "$JOB" in job.container.environment["PORT"] and "/aiperf_mmap_cache" in job.container.mounts
