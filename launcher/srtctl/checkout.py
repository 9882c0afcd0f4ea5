"""srt-slurm at a pinned commit: cached per commit, shared by runs, verified, one work tree per run.

What is slow is done once per commit and set-up (the *base*: patches, a Python environment, the downloads of `make
setup`). A run gets a work tree of its own in well under a second: git borrows the mirror's objects, and what the
set-up made is hard-linked. Hard links and not symlinks, because srt-slurm mounts ``configs/`` into its containers,
where the cache does not exist; only a virtual environment, which never enters a container, is a symlink.

A base is built where it will stay, because a Python environment holds absolute paths, and published by a symlink that
is created last and never replaced. A killed build leaves a directory that nothing points to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.core.errors import SubmissionError
from launcher.core.process import CommandRunner, clean_environment, run
from launcher.core.publish import TEMPORARY_SUFFIX, fsync_directory, temporary_name, write_json
from launcher.srtctl.config import FILE_NAME, known_keys
from launcher.srtctl.mirror import LOCAL_TIMEOUT, Git, Mirror, saving_work
from launcher.srtctl.tree import Overlay as Overlay
from launcher.srtctl.tree import lay_over, share

FACTS = Path(".git/launcher.json")
"""In a base: what was learnt of it. In a run's work tree: what it was made of."""

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NOT_SHARED = frozenset({FILE_NAME, "outputs", "logs", "__pycache__"})


@dataclass(frozen=True)
class CommitPatch:
    """What a later commit changed in one file, as ``git show commit -- path | git apply``."""

    commit: str
    path: str


@dataclass(frozen=True)
class FilePatch:
    """A patch file, as `git apply` takes it."""

    file: Path


@dataclass(frozen=True)
class Pin:
    """Which srt-slurm: a repository (URL or path), the name people know the commit by, and the commit.

    ``sha`` may be short, when it is unique. Without one the ref's commit of this moment is taken, which is said.
    """

    repository: str
    ref: str
    sha: str | None = None
    patches: tuple[CommitPatch | FilePatch, ...] = ()


@dataclass(frozen=True)
class Checkout:
    """A run's own work tree, ready for `srtctl apply`.

    ``srtctl`` is the program of its Python environment, None when the one on PATH is meant. ``options`` are the long
    options of its `apply`, ``cluster_keys`` the keys of srtslurm.yaml that it knows. ``notes`` are for the user.
    """

    root: Path
    sha: str
    srtctl: Path | None
    options: frozenset[str]
    cluster_keys: frozenset[str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Base:
    tree: Path
    shared: tuple[str, ...]
    srtctl: str | None
    options: tuple[str, ...] | None
    cluster_keys: tuple[str, ...]


def apply_options(argv0: str, *, cwd: Path, environment: Mapping[str, str], runner: CommandRunner = run) -> set[str]:
    """The long options that ``argv0 apply`` takes, from its help.

    No version number tells (srt-slurm has said 0.3.0 since long): sa-submission-q2-2026 lacks ``--json`` and
    ``--no-preflight``, aflowers/vllm-gb200-v0.20.0 only the latter. Raises SubmissionError when srtctl does not start.
    """
    done = runner([argv0, "apply", "--help"], timeout=LOCAL_TIMEOUT, cwd=cwd, env={**environment, "COLUMNS": "200"})
    if not done.ok:
        raise SubmissionError(
            f"srtctl does not start: {done}", where=str(cwd), hint="does the runner's set-up install it?"
        )
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", _ANSI.sub("", done.stdout)))


class Checkouts:
    """Makes work trees of srt-slurm below ``cache`` and wherever runs want them.

    ``environ`` is what git and the set-up see besides their own settings (this process's by default).
    """

    def __init__(
        self,
        cache: Path,
        *,
        run: CommandRunner = run,
        environ: Mapping[str, str] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.cache = cache
        self._run = run
        self._sleep = sleep
        self._environ = clean_environment(os.environ if environ is None else environ)
        self._git = Git(run, self._environ)

    def prepare(
        self,
        pin: Pin,
        *,
        into: Path,
        setup: Sequence[Sequence[str]] = (),
        setup_environment: Mapping[str, str] | None = None,
        setup_timeout: float = 1800.0,
        overlays: Sequence[Overlay] = (),
    ) -> Checkout:
        """A work tree of ``pin`` at ``into``, with the results of ``setup`` and the overlays, in that order.

        ``setup`` are argv lists, run in the tree once per commit, patches, ``setup`` and ``setup_environment`` (what
        the set-up needs beyond this process's environment); ``setup_timeout`` is seconds for each. A tree that an
        earlier call made at ``into`` for the same pin is taken as it is. Raises SubmissionError.
        """
        mirror = Mirror(self.cache, pin.repository, self._git, sleep=self._sleep)
        sha, notes = _resolve(mirror, pin)
        patches = [_patch_text(mirror, patch) for patch in pin.patches]
        extra = dict(setup_environment or {})
        base = self._base(mirror, pin, sha, patches, [list(argv) for argv in setup], extra, setup_timeout)
        made_of = {
            "sha": sha,
            "base": base.tree.name,
            "overlays": [[str(o.source), o.destination] for o in overlays],
        }
        if not _is_made_of(into, made_of):
            self._make_tree(mirror, base, sha, patches, into, overlays, made_of)
        head = self._git.text("rev-parse", "HEAD", cwd=into).strip()
        if head != sha:
            raise SubmissionError(f"HEAD is {head}, and {sha} was asked for", where=str(into))
        if any(Path(o.destination).parts[:1] == ("src",) for o in overlays):
            notes.append("an overlay changes src/: the job runs it, srtctl on this machine runs the commit's own")
        options = base.options or tuple(
            apply_options("srtctl", cwd=into, environment=self._with(extra), runner=self._run)
        )
        return Checkout(
            root=into,
            sha=sha,
            srtctl=into / base.srtctl if base.srtctl else None,
            options=frozenset(options),
            cluster_keys=frozenset(base.cluster_keys),
            notes=(*notes, *mirror.notes),
        )

    def _with(self, extra: Mapping[str, str]) -> dict[str, str]:
        return {**self._environ, **extra}

    def _base(
        self,
        mirror: Mirror,
        pin: Pin,
        sha: str,
        patches: Sequence[str],
        setup: list[list[str]],
        extra: dict[str, str],
        timeout: float,
    ) -> _Base:
        identity = [pin.repository, sha, patches, setup, sorted(extra.items()), platform.machine()]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
        pointer = self.cache / "bases" / f"{sha[:12]}-{digest}"
        if found := _read_base(pointer):
            return found
        pointer.parent.mkdir(parents=True, exist_ok=True)
        what, wait = f"setting up srt-slurm {sha}", timeout * max(1, len(setup))
        with saving_work(pointer.with_suffix(".lock"), what=what, wait=wait, notes=mirror.notes):
            if found := _read_base(pointer):
                return found
            pointer.unlink(missing_ok=True)  # it led nowhere: somebody emptied the cache
            _remove_leftovers(pointer)
            with _building(pointer) as tree:
                mirror.work_tree(tree, sha)
                self._apply(patches, tree)
                self._set_up(tree, setup, extra, timeout)
                facts = self._facts(tree, extra)
                write_json(tree / FACTS, facts)
                with contextlib.suppress(FileExistsError):  # then another process was first
                    pointer.symlink_to(tree.name)
                fsync_directory(pointer.parent)
        published = _read_base(pointer)
        assert published is not None
        return published

    def _set_up(self, tree: Path, setup: Sequence[Sequence[str]], extra: Mapping[str, str], timeout: float) -> None:
        (tree / FILE_NAME).write_text("{}\n")  # without one, srt-slurm's `make setup` asks questions and writes its own
        log = self.cache / "logs" / f"{tree.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        for argv in setup:
            done = self._run(argv, timeout=timeout, cwd=tree, env=self._with(extra))
            with log.open("a", encoding="utf-8") as handle:
                handle.write(
                    f"$ {' '.join(argv)}\n{done.stdout}{done.stderr}[{done.returncode}, {done.seconds:.1f} s]\n"
                )
            if not done.ok:
                how = f"did not end within {timeout:.0f} s" if done.timed_out else f"failed (exit {done.returncode})"
                raise SubmissionError(
                    f"setting srt-slurm up: `{' '.join(argv)}` {how}:\n{done.tail(10)}",
                    where=str(log),
                    hint="the next run tries again from a fresh tree; the log has everything it said",
                )

    def _facts(self, tree: Path, extra: Mapping[str, str]) -> dict[str, Any]:
        untracked = self._git.text("ls-files", "--others", "--directory", "-z", cwd=tree).split("\0")
        shared = [name for name in untracked if name and not _NOT_SHARED & set(Path(name).parts)]
        own = next((name for name in (".venv/bin/srtctl",) if (tree / name).exists()), None)
        options = (
            apply_options(str(tree / own), cwd=tree, environment=self._with(extra), runner=self._run) if own else None
        )
        return {
            "shared": shared,
            "srtctl": own,
            "options": sorted(options) if options is not None else None,
            "cluster_keys": sorted(known_keys(tree)),
        }

    def _make_tree(
        self,
        mirror: Mirror,
        base: _Base,
        sha: str,
        patches: Sequence[str],
        into: Path,
        overlays: Sequence[Overlay],
        made_of: Mapping[str, Any],
    ) -> None:
        into.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(into)
        try:
            mirror.work_tree(temporary, sha)
            self._apply(patches, temporary)
            for name in base.shared:
                share(base.tree / name, temporary / name)
            exclude = temporary / ".git/info/exclude"
            exclude.parent.mkdir(exist_ok=True)
            exclude.write_text("".join(f"/{name.rstrip('/')}\n" for name in base.shared))  # `.venv/` matches no symlink
            for overlay in overlays:
                lay_over(overlay, temporary)
            write_json(temporary / FACTS, made_of)
            temporary.rename(into)
        except OSError as error:
            raise SubmissionError(f"the work tree cannot be made: {error}", where=str(into)) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        fsync_directory(into.parent)

    def _apply(self, patches: Sequence[str], tree: Path) -> None:
        for text in patches:
            self._git.text("apply", "--whitespace=nowarn", "-", cwd=tree, input=text)


def _resolve(mirror: Mirror, pin: Pin) -> tuple[str, list[str]]:
    """The full sha, and what the user should know about the ref."""
    if pin.sha is None:
        tip = mirror.tip(pin.ref, fresh=True)
        if tip is None:
            raise SubmissionError(f"the repository has no branch or tag {pin.ref!r}", where=mirror.repository)
        return tip, [f"srt-slurm is not pinned: {pin.ref} is {tip} at this moment"]
    sha = mirror.commit(pin.sha)
    tip = mirror.tip(pin.ref)
    moved = tip is not None and tip != sha
    return sha, [f"{pin.ref} has moved to {tip}; the pinned {sha} is used"] if moved else []


def _patch_text(mirror: Mirror, patch: CommitPatch | FilePatch) -> str:
    if isinstance(patch, CommitPatch):
        return mirror.change(patch.commit, patch.path)
    try:
        return patch.file.read_text(encoding="utf-8")
    except OSError as error:
        raise SubmissionError(f"the patch cannot be read: {error.strerror}", where=str(patch.file)) from None


def _read_base(pointer: Path) -> _Base | None:
    """The published base, or None when there is none."""
    try:
        tree = pointer.resolve(strict=True)
        facts = json.loads((tree / FACTS).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    options = facts["options"]
    return _Base(
        tree=tree,
        shared=tuple(facts["shared"]),
        srtctl=facts["srtctl"],
        options=None if options is None else tuple(options),
        cluster_keys=tuple(facts["cluster_keys"]),
    )


@contextlib.contextmanager
def _building(pointer: Path) -> Iterator[Path]:
    """A new directory name for a base; what is there is removed again unless ``pointer`` ends up leading to it."""
    name = temporary_name(pointer).name.removeprefix(".").removesuffix(TEMPORARY_SUFFIX)
    tree = pointer.with_name(name)
    try:
        yield tree
    finally:
        if not pointer.is_symlink() or pointer.readlink() != Path(name):
            shutil.rmtree(tree, ignore_errors=True)


def _remove_leftovers(pointer: Path) -> None:
    """Remove what killed builds of this host left; a build of another host might still be alive."""
    ours = re.compile(rf"{re.escape(pointer.name)}\.{re.escape(socket.gethostname()[:32])}\.(\d+)\.[0-9a-f]{{8}}")
    for entry in pointer.parent.iterdir():
        if (found := ours.fullmatch(entry.name)) and not Path(f"/proc/{found[1]}").exists():
            shutil.rmtree(entry, ignore_errors=True)


def _is_made_of(tree: Path, parts: Mapping[str, Any]) -> bool:
    """Whether an earlier call made ``tree`` of the same parts; False when it does not exist yet."""
    if not os.path.lexists(tree):
        return False
    try:
        found = json.loads((tree / FACTS).read_text())
    except (OSError, json.JSONDecodeError):
        found = None
    if found != parts:
        raise SubmissionError(
            "there is a directory here already, and it is not this run's work tree", where=str(tree), hint="remove it"
        )
    return True
