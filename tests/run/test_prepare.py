"""Preparing a run: what child processes are given, which command imports an image, what is told of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from launcher.core.errors import Cancelled, ModelError, SubmissionError
from launcher.core.stop import Stop
from launcher.plan.plan import Plan
from launcher.run.kind import Prepared, Run, Tools
from launcher.run.prepare import prepare
from tests.commands import ScriptedCommands
from tests.model.checkpoints import checkpoint
from tests.model.hub_server import REPOSITORY, SHA, hub
from tests.run.runs import a_run, events, plan_on, services


def test_nothing_of_an_outer_job_reaches_the_submission() -> None:
    environ = {"SLURM_JOB_ID": "1", "SBATCH_QOS": "x", "VIRTUAL_ENV": "/v", "PATH": "/bin", "SLURM_CONF": "/c"}
    found = services(environ=environ, tools=Tools({"PATH": "/tools:/bin"})).environment
    assert found == {"PATH": "/tools:/bin", "SLURM_CONF": "/c"}


def test_a_compute_node_imports_what_its_login_node_cannot(tmp_path: Path) -> None:
    environ = {"https_proxy": "http://127.0.0.1:9"}  # no test asks a registry of the world
    runner = ScriptedCommands((1, "[ERROR] Invalid image reference: x"))
    plan = plan_on("gb300-nv", tmp_path, precision="fp8")
    image = plan.images[0]
    (tmp_path / "squash").mkdir()
    moved = {**plan.as_dict(), "findings": []}
    moved["images"][0]["squash"] = str(tmp_path / "squash" / Path(image.squash).name)
    moved["images"][0]["lock"] = str(tmp_path / "squash/lock")
    with pytest.raises(Exception, match="Invalid image reference"):
        prepare(a_run(tmp_path, Plan.from_dict(moved), services(run=runner, environ=environ), NoJobs()))  # type: ignore[arg-type]
    argv, env = next(pair for pair in zip(runner.calls, runner.environments, strict=True) if "import" in pair[0])
    assert env is not None
    assert "srun" in argv and "--partition=batch_1" in argv and "--nodes=1" in argv
    assert argv[argv.index("enroot") + 1] == "import"
    assert env["ENROOT_TEMP_PATH"] == "/tmp/launcher-enroot-r1/temp" and env["TMPDIR"] == env["ENROOT_TEMP_PATH"]


def model_facts(run: Run) -> Mapping[str, Any]:
    """What the record says of the model, of a run that gets no further."""
    with pytest.raises((Cancelled, SubmissionError)):
        prepare(run)
    return run.record.step("model").facts


class NoJobs:
    """A kind of job that nobody gets to submit."""

    name = "none"

    def is_complete(self, plan: Plan) -> bool:
        return True

    def prepare(self, run: Run) -> Prepared:
        raise SubmissionError("that is all")


def without_images(plan: Plan, **model: Any) -> Plan:
    return dataclasses.replace(plan, images=(), model=dataclasses.replace(plan.model, **model))


def stop_now() -> Stop:
    return Stop(lambda seconds: True)


def test_storage_that_the_login_node_does_not_see_is_a_stated_fact(tmp_path: Path) -> None:
    run = a_run(tmp_path, without_images(plan_on("b300-nv", tmp_path, precision="fp4")), kind=NoJobs())  # type: ignore[arg-type]
    facts = model_facts(run)
    assert facts["checked"] is False and "node-local storage" in facts["why"]
    assert any("not checked from here" in text for text in events(run.record))


def test_a_checkpoint_is_staged_where_its_rule_says_so(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "archive" / "M", {"quantization_config": {"quant_method": "fp8"}}, dtype="F8_E4M3")
    planned = plan_on("b200-dgxc", tmp_path, precision="fp8")

    def run_with(number: int, stop: Stop | None = None, **model: Any) -> Run:
        plan = dataclasses.replace(without_images(planned, **model), run_key=f"r{number}")
        return a_run(tmp_path, plan, services(stop=stop or Stop.never()), NoJobs())  # type: ignore[arg-type]

    path = str(tmp_path / "lustre" / "M")
    with pytest.raises(ModelError, match="is not there"):
        prepare(run_with(1, path=path))
    facts = model_facts(run_with(2, path=path, source=str(source)))
    assert facts["whole"] and facts["identity"] == "match"
    assert facts["staged"]["how"] == "staged"
    assert "staged" not in model_facts(run_with(3, path=path, source=str(source)))
    with pytest.raises(Cancelled):
        prepare(run_with(4, stop_now(), path=str(tmp_path / "x/M"), source=str(source)))


BF16 = {"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32}


def run_of_model(tmp_path: Path, config: dict[str, Any], **model: Any) -> Run:
    path = checkpoint(tmp_path / "lustre" / "M", config)
    planned = {"path": str(path), "precision": "bf16", "seen_by": ("login", "compute"), "pinned": None, **model}
    plan = without_images(plan_on("b200-dgxc", tmp_path, precision="fp8"), **planned)
    return a_run(tmp_path, plan, kind=NoJobs())  # type: ignore[arg-type]


def test_a_model_that_nobody_can_tell_is_a_warning(tmp_path: Path) -> None:
    run = run_of_model(tmp_path, BF16)
    assert model_facts(run)["known_by"] == ()
    assert any("is not known: no fingerprint is declared" in text for text in events(run.record))


def test_a_declared_fingerprint_is_compared(tmp_path: Path) -> None:
    run = run_of_model(tmp_path, BF16, fingerprint={"hidden_size": 4096, "quantisation": "bf16"})
    assert model_facts(run)["known_by"] == ("the runner file (b200-dgxc)",)
    wrong = run_of_model(tmp_path / "other", BF16, fingerprint={"num_hidden_layers": 61})
    with pytest.raises(ModelError, match=r"num_hidden_layers is 32, and 61 by the runner file \(b200-dgxc\)") as caught:
        prepare(wrong)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("layers", [32, 61])
def test_the_hubs_config_at_the_pinned_commit_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    pytest.importorskip("huggingface_hub")
    with hub(checkpoint(tmp_path / "hub", {**BF16, "num_hidden_layers": layers})) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        run = run_of_model(tmp_path, BF16, pinned=f"hf:{REPOSITORY}@{SHA}")
        if layers == 32:
            assert model_facts(run)["known_by"] == (f"hf:{REPOSITORY}@{SHA}",)
        else:
            with pytest.raises(ModelError, match="num_hidden_layers is 32, and 61 by hf:"):
                prepare(run)


def test_offline_the_hub_is_not_asked_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = run_of_model(tmp_path, BF16, pinned=f"hf:{REPOSITORY}@{SHA}")
    assert model_facts(run)["checked"] is True
    assert any("HF_HUB_OFFLINE=1 forbids it" in text for text in events(run.record))
