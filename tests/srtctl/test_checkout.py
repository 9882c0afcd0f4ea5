"""The checkout against real git: a small repository stands in for srt-slurm, its set-up is a real command."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from launcher.core.errors import SubmissionError
from launcher.core.process import Completed, host_label, run
from launcher.runner.schema import Patch
from launcher.srtctl.checkout import Checkout, Checkouts
from launcher.srtctl.planned import PlannedOverlay, SrtSlurm

SCHEMA = "class ClusterConfig:\n    default_account: str\n    containers: dict[str, str]\n"
HELP = "usage: srtctl apply [-h] -f CONFIG [--json]\n  --tags TAGS  Comma-separated --not-an-option"

SETUP = (
    (
        "sh",
        "-euc",
        f"""echo $$ > "$COUNT.pid"; echo once >> "$COUNT"; test -f srtslurm.yaml; mkdir -p .venv/bin bin logs/x
        printf 'home=x\\n' > .venv/pyvenv.cfg
        printf '#!/bin/sh\\ncat <<E\\n{HELP}\\nE\\n' > .venv/bin/srtctl; chmod +x .venv/bin/srtctl
        echo binary > bin/uv; echo binary > configs/nats-server; sleep "${{NAP:-0}}"; eval "${{EXTRA:-}}" """,
    ),
)

DATES = {"GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z"}


def git(*words: str, cwd: Path, input: str | None = None) -> str:
    argv = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main", *words]
    done = subprocess.run(argv, cwd=cwd, env={**os.environ, **DATES}, input=input, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit(repository: Path, files: Mapping[str, str]) -> str:
    for name, text in files.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(text)
    git("add", "-A", cwd=repository)
    git("commit", "-q", "-m", "x", cwd=repository)
    return git("rev-parse", "HEAD", cwd=repository)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    repository = tmp_path / "origin"
    repository.mkdir()
    git("init", "-q", cwd=repository)
    (repository / "configs").mkdir()
    (repository / "link-out").symlink_to("/tmp")
    files = {
        "src/srtctl/core/schema.py": SCHEMA,
        "recipes/a.yaml": "name: a\n",
        "configs/kept.json": "{}\n",
        ".gitignore": "bin/\n.venv/\nsrtslurm.yaml\nconfigs/nats-server\n",
    }
    commit(repository, files)
    return repository


def head(repository: Path) -> str:
    return git("rev-parse", "HEAD", cwd=repository)


class Origin:
    """A cache, an origin, and how often the set-up ran."""

    def __init__(self, tmp_path: Path, origin: Path) -> None:
        self.tmp, self.origin = tmp_path, origin
        self.count = tmp_path / "count"
        self.environ = {**os.environ, "COUNT": str(self.count), "GIT_DIR": "/nowhere", "GIT_INDEX_FILE": "/nowhere"}
        self.slept: list[float] = []

    def wanted(self, into: str, **changes: Any) -> SrtSlurm:
        """The origin's head with `SETUP`, to be checked out at ``into``."""
        wanted = SrtSlurm(
            repository=str(self.origin),
            ref="main",
            sha=head(self.origin),
            overlays=(),
            patches=(),
            setup=SETUP,
            setup_timeout=1800,
            root=str(self.tmp / into),
            cache=str(self.tmp / "cache"),
        )
        return replace(wanted, **changes)

    def prepare(self, into: str, setup_environment: Mapping[str, str] | None = None, **changes: Any) -> Checkout:
        checkouts = Checkouts(environ=self.environ, setup_environment=setup_environment, sleep=self.slept.append)
        return checkouts.prepare(self.wanted(into, **changes))

    def setups(self) -> int:
        return len(self.count.read_text().splitlines()) if self.count.exists() else 0

    def bases(self) -> list[str]:
        return sorted(p.name for p in (self.tmp / "cache/bases").iterdir() if p.is_dir() and not p.is_symlink())


@pytest.fixture
def srt_slurm(tmp_path: Path, origin: Path) -> Origin:
    return Origin(tmp_path, origin)


def test_a_run_gets_its_own_tree_with_what_the_set_up_made(srt_slurm: Origin) -> None:
    made = srt_slurm.prepare("run1")
    assert made.sha == head(srt_slurm.origin) == git("rev-parse", "HEAD", cwd=made.root)
    assert (made.root / ".venv/bin/srtctl").exists()
    assert {"--json", "--tags"} <= made.options and "--no-preflight" not in made.options
    assert made.cluster_keys == {"default_account", "containers"}
    assert made.notes == ()
    assert (made.root / "bin/uv").read_text() == "binary\n" and (made.root / "configs/kept.json").exists()
    assert not (made.root / "configs/nats-server").is_symlink(), "containers see configs/, and not the cache"
    assert not (made.root / "srtslurm.yaml").exists() and not (made.root / "logs").exists()
    assert git("status", "--porcelain", cwd=made.root) == ""


def test_the_second_run_costs_little_and_shares_nothing_that_it_may_change(srt_slurm: Origin) -> None:
    first = srt_slurm.prepare("run1")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    second = srt_slurm.prepare("run2")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime < 1.0, "seconds of CPU"
    assert srt_slurm.setups() == 1
    assert (first.root / "bin/uv").samefile(second.root / "bin/uv")
    (first.root / "recipes/a.yaml").write_text("changed")
    assert (second.root / "recipes/a.yaml").read_text() == "name: a\n"


def test_a_pinned_commit_that_is_there_needs_no_network(srt_slurm: Origin) -> None:
    sha = head(srt_slurm.origin)
    srt_slurm.prepare("run1")
    later = srt_slurm.wanted("run2")
    srt_slurm.origin.rename(srt_slurm.tmp / "gone")
    assert Checkouts(environ=srt_slurm.environ).prepare(later).sha == sha


def test_another_set_up_or_commit_is_another_base(srt_slurm: Origin) -> None:
    srt_slurm.prepare("run1")
    srt_slurm.prepare("run2", setup_environment={"EXTRA": "echo y > bin/y"})
    assert (srt_slurm.tmp / "run2/bin/y").exists() and not (srt_slurm.tmp / "run1/bin/y").exists()
    newer = commit(srt_slurm.origin, {"recipes/b.yaml": "name: b\n"})
    made = srt_slurm.prepare("run3", sha=newer)
    assert (made.root / "recipes/b.yaml").exists()
    assert srt_slurm.setups() == 3


def test_a_moved_ref_is_said_and_not_followed(srt_slurm: Origin) -> None:
    old = head(srt_slurm.origin)
    new = commit(srt_slurm.origin, {"recipes/b.yaml": "name: b\n"})
    made = srt_slurm.prepare("run1", sha=old)
    assert made.sha == old
    assert made.notes == (f"main has moved to {new}; the pinned {old} is used",)


def test_an_unpinned_ref_is_taken_as_it_is_now_and_said(srt_slurm: Origin) -> None:
    srt_slurm.prepare("run1", sha=None)
    new = commit(srt_slurm.origin, {"recipes/b.yaml": "name: b\n"})
    made = srt_slurm.prepare("run2", sha=None)
    assert made.sha == new and "not pinned" in made.notes[0]
    with pytest.raises(SubmissionError, match="no branch or tag 'nope'"):
        srt_slurm.prepare("run3", ref="nope", sha=None)


def test_a_commit_that_the_repository_lacks(srt_slurm: Origin) -> None:
    with pytest.raises(SubmissionError, match="has no commit 0123456789") as caught:
        srt_slurm.prepare("run1", sha="0123456789" * 4)
    assert "force-pushed" in (caught.value.hint or "")
    with pytest.raises(SubmissionError, match="not a commit's full sha"):
        srt_slurm.prepare("run1", sha="v1.0.38")
    assert not (srt_slurm.tmp / "run1").exists()


def test_a_patch_is_named_by_its_full_sha(srt_slurm: Origin) -> None:
    """What is short now is ambiguous one day, or a branch's name."""
    short = head(srt_slurm.origin)[:12]
    with pytest.raises(SubmissionError, match=f"'{short}' is not a commit's full sha"):
        srt_slurm.prepare("run1", patches=(Patch(commit=short, path="recipes/a.yaml"),))


def test_patches_are_applied_and_the_head_stays(srt_slurm: Origin) -> None:
    sha = head(srt_slurm.origin)
    later = commit(srt_slurm.origin, {"recipes/a.yaml": "name: patched\n", "recipes/other.yaml": "x: 1\n"})
    again = commit(srt_slurm.origin, {"configs/kept.json": "{1}\n"})
    patches = (Patch(commit=later, path="recipes/a.yaml"), Patch(commit=again, path="configs/kept.json"))
    made = srt_slurm.prepare("run1", sha=sha, patches=patches)
    assert made.sha == sha
    assert (made.root / "recipes/a.yaml").read_text() == "name: patched\n"
    assert (made.root / "configs/kept.json").read_text() == "{1}\n"
    assert not (made.root / "recipes/other.yaml").exists()
    with pytest.raises(SubmissionError, match="git apply failed"):
        srt_slurm.prepare("run2", sha=later, patches=patches)
    with pytest.raises(SubmissionError, match="does not change"):
        srt_slurm.prepare("run3", sha=sha, patches=(Patch(commit=later, path="nope"),))


def test_overlays_are_merged_and_do_not_reach_the_base(srt_slurm: Origin) -> None:
    source = srt_slurm.tmp / "overlay"
    (source / "deep").mkdir(parents=True)
    (source / "a.yaml").write_text("name: overlaid\n")
    (source / "deep/new.yaml").write_text("name: new\n")
    (source / "nats-server").write_text("other\n")
    overlays = (
        PlannedOverlay(str(source), "recipes"),
        PlannedOverlay(f"{source}/nats-server", "configs/nats-server"),
        PlannedOverlay(str(source), "src/x"),
    )
    made = srt_slurm.prepare("run1", overlays=overlays)
    assert (made.root / "recipes/a.yaml").read_text() == "name: overlaid\n"
    assert (made.root / "recipes/deep/new.yaml").exists()
    assert (made.root / "configs/nats-server").read_text() == "other\n"
    assert any("src/" in note for note in made.notes)
    other = srt_slurm.prepare("run2")
    assert (other.root / "configs/nats-server").read_text() == "binary\n"
    assert srt_slurm.setups() == 1


@pytest.mark.parametrize(
    "destination", ["../out", "/tmp/out", "link-out/x", "recipes/../../out", ".venv/bin", ".git", "src/../.git"]
)
def test_an_overlay_cannot_leave_the_tree(srt_slurm: Origin, destination: str) -> None:
    source = srt_slurm.tmp / "overlay"
    source.mkdir()
    (source / "f").write_text("x")
    for overlay in (PlannedOverlay(str(source), destination), PlannedOverlay(f"{source}/f", f"{destination}/f")):
        with pytest.raises(SubmissionError, match="must not go to"):
            srt_slurm.prepare("run1", overlays=(overlay,))
    assert not (srt_slurm.tmp / "run1").exists() and not (srt_slurm.tmp / "out").exists()
    assert not list(srt_slurm.tmp.glob(".run1*")), "a failed tree leaves nothing behind"


def test_an_overlay_that_is_missing_or_does_not_fit(srt_slurm: Origin) -> None:
    with pytest.raises(SubmissionError, match="source does not exist"):
        srt_slurm.prepare("run1", overlays=(PlannedOverlay(f"{srt_slurm.tmp}/nope", "recipes"),))
    (srt_slurm.tmp / "recipes").write_text("a file")
    with pytest.raises(SubmissionError, match="puts a file where"):
        srt_slurm.prepare("run1", overlays=(PlannedOverlay(f"{srt_slurm.tmp}/recipes", "recipes"),))


def test_a_tree_that_is_there_already(srt_slurm: Origin) -> None:
    into = srt_slurm.tmp / "run1"
    srt_slurm.prepare("run1")
    (into / "recipes/a.yaml").write_text("edited by this run")
    srt_slurm.prepare("run1")
    assert (into / "recipes/a.yaml").read_text() == "edited by this run"
    with pytest.raises(SubmissionError, match="not this run's work tree"):
        srt_slurm.prepare("run1", overlays=(PlannedOverlay(str(srt_slurm.origin), "x"),))
    foreign = srt_slurm.tmp / "foreign"
    foreign.mkdir()
    with pytest.raises(SubmissionError, match="not this run's work tree"):
        srt_slurm.prepare("foreign")
    git("checkout", "-q", "-f", "--orphan", "elsewhere", cwd=into)
    git("commit", "-q", "--allow-empty", "-m", "y", cwd=into)
    with pytest.raises(SubmissionError, match="HEAD is"):
        srt_slurm.prepare("run1")


def test_a_failing_set_up_names_the_command_and_publishes_nothing(srt_slurm: Origin) -> None:
    setup = (("sh", "-c", "echo first"), ("sh", "-c", "echo no network >&2; test -e $FLAG"))
    flag = srt_slurm.tmp / "flag"
    environment = {"FLAG": str(flag), "PATH": os.environ["PATH"]}
    with pytest.raises(SubmissionError, match=r"test -e \$FLAG` failed \(exit 1\):\nno network") as caught:
        srt_slurm.prepare("run1", setup_environment=environment, setup=setup)
    assert (caught.value.layer, caught.value.exit_code) == ("checkout", 5)
    assert "first" in Path(caught.value.where or "").read_text()
    assert srt_slurm.bases() == []
    with pytest.raises(SubmissionError, match=r"did not end within 0 s"):
        srt_slurm.prepare("run1", setup=(("sleep", "9"),), setup_timeout=0.1)
    with pytest.raises(SubmissionError, match=r"failed \(exit 127\)"):
        srt_slurm.prepare("run1", setup=(("no-such-program",),))


def test_a_repository_that_cannot_be_cloned(srt_slurm: Origin) -> None:
    with pytest.raises(SubmissionError, match="git clone failed") as caught:
        srt_slurm.prepare("run1", repository=f"{srt_slurm.tmp}/nope", sha="0" * 40)
    assert caught.value.where == str(srt_slurm.tmp / "nope")
    assert srt_slurm.slept == [], "a repository that does not exist is not asked again"
    assert [p.name for p in (srt_slurm.tmp / "cache/mirrors").iterdir()] == []


def test_credentials_in_an_address_are_not_printed(srt_slurm: Origin) -> None:
    def deaf(argv: Sequence[str], **kwargs: object) -> Completed:
        return Completed(tuple(argv), 128, "", f"fatal: repository '{argv[-2]}' not found", 0.1)

    checkouts = Checkouts(run=deaf, environ=srt_slurm.environ)
    wanted = srt_slurm.wanted("run1", repository="https://me:s3cret@example.invalid/x.git", sha="0" * 40)
    with pytest.raises(SubmissionError) as caught:
        checkouts.prepare(wanted)
    assert "s3cret" not in str(caught.value) and "https://example.invalid/x.git" in str(caught.value)


def test_a_network_that_fails_twice_is_asked_again(srt_slurm: Origin) -> None:
    failures = ["Could not resolve host: github.com", "The requested URL returned error: 502"]

    def flaky(argv: Sequence[str], **kwargs: object) -> Completed:
        if "clone" in argv and failures:
            return Completed(tuple(argv), 128, "", f"fatal: unable to access: {failures.pop()}", 0.1)
        return run(argv, **kwargs)  # type: ignore[arg-type]

    checkouts = Checkouts(run=flaky, environ=srt_slurm.environ, sleep=srt_slurm.slept.append)
    made = checkouts.prepare(srt_slurm.wanted("run1"))
    assert made.sha == head(srt_slurm.origin)
    assert len(srt_slurm.slept) == 2 and all(s >= 1 for s in srt_slurm.slept)


def test_an_srtctl_that_does_not_start_is_found_at_once(srt_slurm: Origin) -> None:
    broken = {"EXTRA": "printf '#!/bin/sh\\necho no module named rich >&2; exit 1\\n' > .venv/bin/srtctl"}
    with pytest.raises(SubmissionError, match=r"does not start: (?s:.*)no module named rich"):
        srt_slurm.prepare("run1", setup_environment=broken)
    assert srt_slurm.bases() == []


def test_srtctl_from_path_is_asked_where_the_tree_has_none(srt_slurm: Origin) -> None:
    tools = srt_slurm.tmp / "tools"
    tools.mkdir()
    (tools / "srtctl").write_text("#!/bin/sh\necho ' --from-path'\n")
    (tools / "srtctl").chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    made = srt_slurm.prepare("run1", setup_environment=path, setup=())
    assert made.options == {"--from-path"}


def _prepare(srt_slurm: Origin, into: str, nap: float) -> None:
    Checkouts(environ={**srt_slurm.environ, "NAP": str(nap)}).prepare(srt_slurm.wanted(into))


def test_two_processes_do_the_work_once(srt_slurm: Origin) -> None:
    other = {"EXTRA": "true"}  # another base, made first so that nobody waits for the mirror
    srt_slurm.prepare("run", setup_environment=other)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_prepare, args=(srt_slurm, f"run{i}", 0.5)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert srt_slurm.setups() == 2 and len(srt_slurm.bases()) == 2
    assert all((srt_slurm.tmp / f"run{i}/bin/uv").exists() for i in range(3))


def test_a_killed_build_is_never_taken_and_goes_away(srt_slurm: Origin) -> None:
    process = multiprocessing.get_context("fork").Process(target=_prepare, args=(srt_slurm, "run1", 60))
    process.start()
    deadline = time.monotonic() + 60
    while srt_slurm.setups() == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    os.killpg(
        int(srt_slurm.count.with_suffix(".pid").read_text()), signal.SIGKILL
    )  # its set-up, alone in the world now
    (half,) = srt_slurm.bases()
    assert not (srt_slurm.tmp / "run1").exists()
    made = srt_slurm.prepare("run1")
    assert (made.root / "bin/uv").exists() and srt_slurm.setups() == 2
    assert len(srt_slurm.bases()) == 1 and half not in srt_slurm.bases()
    assert any("broke the lock" in note for note in made.notes)


def test_a_cache_that_was_emptied_by_hand_is_filled_again(srt_slurm: Origin) -> None:
    srt_slurm.prepare("run1")
    shutil.rmtree(srt_slurm.tmp / "cache/bases" / srt_slurm.bases()[0])
    srt_slurm.prepare("run2")
    assert srt_slurm.setups() == 2


def test_a_build_of_another_host_or_pid_namespace_may_still_be_alive(srt_slurm: Origin) -> None:
    srt_slurm.prepare("run1")
    bases, (made,) = srt_slurm.tmp / "cache/bases", srt_slurm.bases()
    name, _, end = made.rpartition(f".{host_label()}.")
    ended = subprocess.Popen(["true"])
    ended.wait()
    for host in (host_label(), "elsewhere", f"{host_label()}-4026539999"):
        (bases / f"{name}.{host}.{ended.pid}.{end.rpartition('.')[2]}").mkdir()
    shutil.rmtree(bases / made)
    srt_slurm.prepare("run2")
    left = [base for base in srt_slurm.bases() if f".{ended.pid}." in base]
    assert [base.removeprefix(f"{name}.").partition(f".{ended.pid}.")[0] for base in left] == sorted(
        ["elsewhere", f"{host_label()}-4026539999"]
    )
