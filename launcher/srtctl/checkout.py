"""srt-slurm at a pinned commit: cached per commit, shared by runs, verified, one work tree per run.

What is slow is done once per commit and set-up and kept as a *base*: patches, a Python environment, the downloads of
`make setup`. A run gets a work tree of its own in well under a second: git borrows the mirror's objects, and what the
set-up made is hard-linked from the base.

A base is built where it will stay, because a Python environment holds absolute paths, and published by a symlink that
is created last and never replaced. A build that was killed leaves a directory that no symlink leads to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.errors import CheckoutError
from launcher.core.process import CommandRunner, clean_environment, host_label, pid_exists, run
from launcher.core.publish import (
    TEMPORARY_SUFFIX,
    fsync,
    publishing_directory,
    require_writable,
    temporary_name,
    temporary_pattern,
    write_json,
)
from launcher.core.reading import read_json
from launcher.core.rights import make_directories, next_step, own_name
from launcher.srtctl.mirror import Git, Mirror
from launcher.srtctl.planned import SRTSLURM, PlannedOverlay, SrtSlurm
from launcher.srtctl.submit import apply_options, known_keys

FACTS = Path(".git/launcher.json")
"""In a base: what was learnt of it. In a run's work tree: what it was made of."""

_NOT_SHARED = frozenset({SRTSLURM, "outputs", "logs", "__pycache__"})


@dataclass(frozen=True)
class Checkout:
    """A run's own work tree, ready for `srtctl apply`.

    ``options`` are the long options of its srtctl's `apply` (the one in its ``.venv``, else the one on PATH),
    ``cluster_keys`` the keys of srtslurm.yaml that it knows. ``notes`` are for the user.
    """

    root: Path
    sha: str
    options: frozenset[str]
    cluster_keys: frozenset[str]
    notes: tuple[str, ...] = ()


class _Facts(msgspec.Struct, frozen=True):
    """What was learnt of a base: the untracked files that runs share, and what its srtctl knows, if it has one."""

    shared: list[str]
    options: list[str] | None
    cluster_keys: list[str]


class _Options(msgspec.Struct, frozen=True):
    """What a srtctl outside of trees takes, and which file it is: its path, size, time and inode."""

    program: list[str | int | None]
    options: list[str]


class Checkouts:
    """Makes work trees of srt-slurm.

    ``environ`` is what git and the set-up see (this process's by default), ``setup_environment`` what the set-up gets
    beside it: another set-up environment makes another base. ``resolved`` keeps what git said of pinned commits.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        setup_environment: Mapping[str, str] | None = None,
        run: CommandRunner = run,
        sleep: Callable[[float], None] = time.sleep,
        resolved: dict[str, tuple[str, list[str]]] | None = None,
    ) -> None:
        clean = clean_environment(os.environ if environ is None else environ)
        self._git = Git(run, clean)
        self._setup_environment = dict(setup_environment or {})
        self._environ = {**clean, **self._setup_environment}
        self._run = run
        self._sleep = sleep
        self._resolved = {} if resolved is None else resolved

    def prepare(self, wanted: SrtSlurm) -> Checkout:
        """The work tree ``wanted.root``: the commit, its patches, the results of the set-up, the overlays.

        A tree that an earlier call made of the same parts is taken as it is. Without a ``sha`` the ref's commit of this
        moment is taken, and a note says so. Raises CheckoutError.
        """
        try:
            return self._prepare(wanted, Path(wanted.root))
        except OSError as error:
            where = Path(error.filename or wanted.root)
            message = f"the work tree cannot be made: {error.strerror or error}"
            raise CheckoutError(message, where=str(where), hint=next_step(error, where)) from None

    def _prepare(self, wanted: SrtSlurm, root: Path) -> Checkout:
        mirror = Mirror(Path(wanted.cache), wanted.repository, self._git, sleep=self._sleep)
        sha, notes = self._resolve(mirror, wanted)
        patches = [mirror.change(patch.commit, patch.path) for patch in wanted.patches]
        base, facts = self._base(mirror, sha, patches, wanted)
        made_of = {"sha": sha, "base": base.name, "overlays": [[o.source, o.destination] for o in wanted.overlays]}
        if not _is_made_of(root, made_of):
            make_directories(root.parent)
            with publishing_directory(root, whole=lambda there: _is_made_of(there, made_of)) as tree:
                mirror.work_tree(tree, sha, patches)
                for name in facts.shared:
                    _share(base / name, tree / name)
                exclude = tree / ".git/info/exclude"
                exclude.parent.mkdir(exist_ok=True)
                # Hidden from `git status`. Without the final slash: `.venv/` does not match a symlink.
                exclude.write_text("".join(f"/{name.rstrip('/')}\n" for name in facts.shared))
                for overlay in wanted.overlays:
                    _lay_over(overlay, tree)
                write_json(tree / FACTS, made_of)
        head = (root / ".git" / "HEAD").read_text().strip()  # a branch's name where somebody made another tree of it
        if head != sha:
            raise CheckoutError(f"HEAD is {head}; expected {sha}", where=str(root))
        if any(Path(o.destination).parts[:1] == ("src",) for o in wanted.overlays):
            notes.append("an overlay changes src/: the job runs it, but srtctl on this machine runs the commit's own")
        options = self._options_by_path(base, root) if facts.options is None else facts.options
        return Checkout(
            root=root,
            sha=sha,
            options=frozenset(options),
            cluster_keys=frozenset(facts.cluster_keys),
            notes=(*notes, *mirror.notes),
        )

    def _resolve(self, mirror: Mirror, wanted: SrtSlurm) -> tuple[str, list[str]]:
        """The commit to take, and what the user should know about the ref: of a pinned commit asked once, as long as
        its mirror is there, which loses none."""
        if wanted.sha is None:
            tip = mirror.tip(wanted.ref, fresh=True)
            if tip is None:
                raise CheckoutError(f"the repository has no branch or tag {wanted.ref!r}", where=mirror.repository)
            return tip, [f"srt-slurm is not pinned: {wanted.ref} is {tip} at this moment"]
        asked = f"{mirror.path} {wanted.sha} {wanted.ref}"
        if asked not in self._resolved or not mirror.path.is_dir():
            sha = mirror.commit(wanted.sha)
            tip = mirror.tip(wanted.ref)
            moved = tip is not None and tip != sha
            notes = [f"{wanted.ref} has moved to {tip}; the pinned {sha} is used"] if moved else []
            self._resolved[asked] = sha, notes
        sha, notes = self._resolved[asked]
        return sha, list(notes)

    def _options_by_path(self, base: Path, root: Path) -> list[str]:
        """What the srtctl on PATH takes for this base, asked once for each file that it is."""
        program = shutil.which("srtctl", path=self._environ.get("PATH"))
        status = Path(program).stat() if program is not None else None
        known = base / ".git" / "launcher-options.json"
        identity = [program, status.st_size, status.st_mtime_ns, status.st_ino] if status is not None else []
        if (said := read_json(known, _Options)) is not None and said.program == identity:
            return said.options
        options = sorted(apply_options("srtctl", root, self._environ, self._run))
        with contextlib.suppress(OSError):  # the next run asks again
            write_json(known, {"program": identity, "options": options})
        return options

    def _base(self, mirror: Mirror, sha: str, patches: Sequence[str], wanted: SrtSlurm) -> tuple[Path, _Facts]:
        """The base of this commit and set-up, and what was learnt of it; it is built when there is none."""
        extra = sorted(self._setup_environment.items())
        identity = [wanted.repository, sha, patches, wanted.setup, extra, platform.machine()]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
        pointer = own_name(Path(wanted.cache, "bases", f"{sha[:12]}-{digest}"))
        if found := _read_base(pointer):
            return found
        make_directories(pointer.parent)
        require_writable(pointer.parent)
        what, wait = f"setting up srt-slurm {sha}", float(wanted.setup_timeout * max(1, len(wanted.setup)))
        with mirror.lock(pointer, what, wait):
            if found := _read_base(pointer):
                return found
            pointer.unlink(missing_ok=True)  # the directory that it led to is gone: somebody emptied the cache
            _remove_killed_builds(pointer)
            # Not a name of a temporary, since it stays; `_remove_killed_builds` knows it all the same.
            tree = pointer.with_name(temporary_name(pointer).name.removeprefix(".").removesuffix(TEMPORARY_SUFFIX))
            try:
                mirror.work_tree(tree, sha, patches)
                self._set_up(tree, wanted)
                write_json(tree / FACTS, msgspec.to_builtins(self._facts(tree)))
                with contextlib.suppress(FileExistsError):  # then another process was first, and its base is as good
                    pointer.symlink_to(tree.name)
                fsync(pointer.parent)
            finally:
                if not pointer.is_symlink() or pointer.readlink() != Path(tree.name):
                    shutil.rmtree(tree, ignore_errors=True)
        if (published := _read_base(pointer)) is None:
            raise CheckoutError("another user made the same base meanwhile", where=str(pointer), hint="run again")
        return published

    def _set_up(self, tree: Path, wanted: SrtSlurm) -> None:
        (tree / SRTSLURM).write_text("{}\n")  # without one, srt-slurm's `make setup` asks questions and writes its own
        log = Path(wanted.cache, "logs", f"{tree.name}.log")
        make_directories(log.parent)
        for argv in wanted.setup:
            done = self._run(argv, timeout=wanted.setup_timeout, cwd=tree, env=self._environ)
            command = " ".join(argv)
            with log.open("a", encoding="utf-8") as handle:
                handle.write(f"$ {command}\n{done.stdout}{done.stderr}[{done.returncode}, {done.seconds:.1f} s]\n")
            if not done.ok:
                limit = f"did not end within {wanted.setup_timeout:.0f} s"
                how = limit if done.timed_out else f"failed (exit {done.returncode})"
                raise CheckoutError(
                    f"setting srt-slurm up: `{command}` {how}:\n{done.tail(10)}",
                    where=str(log),
                    hint="the log has its whole output; the next run tries again from a fresh tree",
                )

    def _facts(self, tree: Path) -> _Facts:
        untracked = self._git.text("ls-files", "--others", "--directory", "-z", cwd=tree).split("\0")
        own = tree / ".venv/bin/srtctl"
        return _Facts(
            shared=[name for name in untracked if name and not _NOT_SHARED & set(Path(name).parts)],
            options=sorted(apply_options(str(own), tree, self._environ, self._run)) if own.exists() else None,
            cluster_keys=sorted(known_keys(tree)),
        )


def _read_base(pointer: Path) -> tuple[Path, _Facts] | None:
    """The published base, or None when there is none."""
    tree = pointer.resolve()
    facts = read_json(tree / FACTS, _Facts, 1 << 24)
    return None if facts is None else (tree, facts)


def _remove_killed_builds(pointer: Path) -> None:
    """Remove what killed builds of this host left; a build of another host might still be alive."""
    ours = temporary_pattern(re.escape(pointer.name), re.escape(host_label()))
    for entry in pointer.parent.iterdir():
        found = ours.fullmatch(f".{entry.name}{TEMPORARY_SUFFIX}")
        if found and not pid_exists(int(found["pid"])):
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
        raise CheckoutError(
            "there is a directory here already, and it is not this run's work tree", where=str(tree), hint="remove it"
        )
    return True


def _share(source: Path, target: Path) -> None:
    """Make ``source`` appear at ``target``: a virtual environment as a symlink, anything else as hard links.

    srt-slurm mounts ``configs/`` into its containers, where a symlink into the cache would lead nowhere; a virtual
    environment never enters a container. Files are copied where hard links are not possible (another file system, or
    too many links).
    """
    if (source / "pyvenv.cfg").is_file():
        target.symlink_to(source)
    elif source.is_dir() and not source.is_symlink():
        target.mkdir(exist_ok=True)
        for entry in source.iterdir():
            _share(entry, target / entry.name)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            os.link(source, target, follow_symlinks=False)
            return
        shutil.copy2(source, target, follow_symlinks=False)


def _lay_over(overlay: PlannedOverlay, root: Path) -> None:
    """Copy an overlay into the tree at ``root``, as ``cp -rT``: directories are merged, files and symlinks replaced.

    Nothing is written through a symlink or a hard link, because both may lead into a base that other runs share.
    """
    source = Path(overlay.source)
    if not source.exists():
        raise CheckoutError("the overlay's source does not exist", where=str(source), hint="is its path spelt right?")
    _copy_over(source.resolve() if source.is_dir() else source, root / overlay.destination, root.resolve())


def _copy_over(source: Path, target: Path, top: Path) -> None:
    is_directory = source.is_dir() and not source.is_symlink()
    directory = (target if is_directory else target.parent).resolve()
    if not directory.is_relative_to(top) or directory.is_relative_to(top / ".git"):
        raise CheckoutError(
            f"the overlay must not go to {directory}; expected a place in {top}, and not in its .git", where=str(source)
        )
    directory.mkdir(parents=True, exist_ok=True)
    if is_directory:
        for entry in source.iterdir():
            _copy_over(entry, target / entry.name, top)
    elif target.is_dir() and not target.is_symlink():
        raise CheckoutError(f"the overlay puts a file where the checkout has a directory: {target}", where=str(source))
    else:
        target.unlink(missing_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
