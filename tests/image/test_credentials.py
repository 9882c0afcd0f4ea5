"""Accounts: a registry that answers Basic, and which line is to change when one is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from launcher.core.errors import ImageError
from launcher.core.process import Completed
from launcher.image.enroot import credentials, diagnose, with_account_hint
from launcher.image.reference import Fault, Reference
from launcher.image.registry import Registry, Unreachable
from tests.image.docker_registry import INSTALLED, real_registry
from tests.image.support import ENROOT, Store, registry_for, request


def environ(tmp_path: Path, *lines: str) -> dict[str, str]:
    (tmp_path / ".credentials").write_text("".join(f"{line}\n" for line in lines))
    return {"ENROOT_CONFIG_PATH": str(tmp_path)}


def account_line(registry: str, given: dict[str, str], realm: str = "") -> str:
    """What a refusal by the registry says of its account."""
    before, _, said = with_account_hint(Fault("401", "x"), Reference(registry, "a/b"), given, realm).hint.partition(
        ", or "
    )
    assert before == "x"
    return said


def test_the_line_to_change_is_named(tmp_path: Path) -> None:
    environment = environ(
        tmp_path, "# ours", "", "machine nvcr.io login $oauthtoken password x", "machine a.b login me password y"
    )
    account = credentials("nvcr.io", environment)
    assert account is not None and account.place == f"{tmp_path}/.credentials:3"
    assert (
        account_line("nvcr.io", environment)
        == f"the line of machine nvcr.io, login $oauthtoken in {tmp_path}/.credentials:3"
    )
    assert (
        account_line("x.y:5000", environment, "a.b")
        == f"the line of machine a.b, login me in {tmp_path}/.credentials:4"
    )
    missing = account_line("x.y:5000", environment)
    assert missing == f"add the line `machine x.y login … password …` to {tmp_path}/.credentials, which has none for it"
    assert "machine auth.docker.io login" in account_line("docker.io", environment)


@pytest.mark.parametrize(
    ("stderr", "says", "may_pass"),
    [
        ("[INFO] Authenticating with user: me\n[INFO] Using credentials from file: /x\n", "401 or 404", False),
        ("srun: error: Node failure on node01\nsrun: Job step aborted: Waiting", "its node failed", True),
        ("slurmstepd: error: *** STEP 1.0 ON n CANCELLED AT 2026 DUE TO TIME LIMIT ***", "time limit", False),
        ("srun: Job has been cancelled\nsrun: error: Unable to allocate resources: x", "did not start in time", False),
        ("srun: error: Unable to allocate resources: Invalid account", "Slurm gives it no job", False),
        ("srun: error: Unable to allocate resources: Socket timed out on send/recv", "does not answer", True),
        ("slurmstepd-n: error: *** STEP 9.0 ON n CANCELLED AT 2026-11-21T22:26:55 ***", "was cancelled", False),
    ],
)  # fmt: skip
def test_what_enroot_and_srun_leave_unsaid_is_understood(stderr: str, says: str, may_pass: bool) -> None:
    fault = diagnose(Completed(("srun",), 1, "", stderr, 1.0))
    assert says in fault.what and fault.may_pass is may_pass


@pytest.mark.skipif(not INSTALLED, reason="docker-registry or skopeo is not installed")
def test_a_registry_with_basic_accounts(tmp_path: Path) -> None:
    """Debian's registry with htpasswd; and enroot itself where it is installed."""
    real = shutil.which("enroot") is not None
    (tmp_path / "images").mkdir()
    with real_registry(tmp_path / "registry") as served:
        served.push("a/b:1", "amd64", kind="v2s2")
        environment = {**os.environ, **served.environment}
        reference = f"{served.address}/a/b:1"
        wanted = request(
            tmp_path,
            reference=reference,
            name="x.sqsh",
            environment=served.environment,
            architecture="x86_64",
            where="matrix.yaml:7",
        )
        store = Store(registry=registry_for(environment), command=("enroot",) if real else ENROOT)
        record = store.ensure(wanted)
        assert (record.how, record.sidecar.digest) == ("imported", served.digest("a/b:1"))

        with pytest.raises(Unreachable, match="does not speak TLS") as told:
            Registry(Reference.parse(reference), {**environment, "ENROOT_ALLOW_HTTP": "no"}, "x86_64").manifest()
        assert "ENROOT_ALLOW_HTTP=y" in (told.value.hint or "")

        credentials_file = served.place / "enroot/.credentials"
        credentials_file.write_text("# of this test\nmachine 127.0.0.1 login me password wrong\n")
        with pytest.raises(ImageError, match="401, the registry wants credentials") as caught:
            Registry(Reference.parse(reference), environment, "x86_64").manifest()
        line = f"the line of machine 127.0.0.1, login me in {credentials_file}:2"
        assert caught.value.hint == f"correct the image, or {line}"
        if real:  # without our own question before
            (tmp_path / "images/x.sqsh").unlink()
            with pytest.raises(ImageError, match="401 or 404") as caught:
                Store(command=("enroot",)).ensure(wanted)
            assert line in (caught.value.hint or "")
