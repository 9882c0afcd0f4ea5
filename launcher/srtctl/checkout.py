"""Work trees of srt-slurm at a pinned commit: one per run, made quickly from a base that runs share.

The slow steps (patches, a Python environment, the downloads of `make setup`) run once per commit and set-up, and their
results are kept as a *base*. A run then gets its work tree in well under a second: the tree borrows the mirror's git
objects, and the files that the set-up made are hard-linked from the base.

A base is built in its final place, because a Python environment contains absolute paths. It is published by a symlink
that is created last and never replaced. A build that was killed leaves a directory to which no symlink points.
"""

from __future__ import annotations

import ast
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
from launcher.core.rights import make_directories, os_error_hint, path_for_own_use
from launcher.srtctl.mirror import Git, Mirror
from launcher.srtctl.planned import SRTSLURM, PlannedOverlay, SrtSlurm

FACTS = Path(".git/launcher.json")
"""In a base: a `_BaseFacts`. In a run's work tree: the parts that it was made from (`_is_tree_of`)."""

HELP_TIMEOUT = 120.0
"""Seconds for ``srtctl apply --help``: importing srtctl from a shared file system can take long."""

SCHEMA_FILE = Path("src/srtctl/core/schema.py")
"""Where a checkout of srt-slurm declares the keys of srtslurm.yaml: annotated fields of the class `ClusterConfig`."""

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


class _BaseFacts(msgspec.Struct, frozen=True):
    """Facts of a base: the untracked files that runs share, and what its own srtctl accepts (None without one)."""

    shared: list[str]
    options: list[str] | None
    cluster_keys: list[str]


class _Options(msgspec.Struct, frozen=True):
    """The options of the srtctl on PATH; ``program`` identifies its file: path, size, time, inode."""

    program: list[str | int | None]
    options: list[str]


class Checkouts:
    """Makes work trees of srt-slurm.

    ``environ`` is the environment of git and the set-up (this process's by default). ``setup_environment`` is added for
    the set-up; each different one has its own base. ``resolved`` caches the commits and notes of pinned lanes.
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

    def prepare(self, planned: SrtSlurm) -> Checkout:
        """Make the work tree ``planned.root``: the commit, its patches, the results of the set-up, the overlays.

        A tree that an earlier call made from the same parts is used again. Without a ``sha`` the ref's current commit
        is used, and a note says so. Raises CheckoutError.
        """
        try:
            return self._prepare(planned, Path(planned.root))
        except OSError as error:
            where = Path(error.filename or planned.root)
            message = f"the work tree cannot be made: {error.strerror or error}"
            raise CheckoutError(message, where=str(where), hint=os_error_hint(error, where)) from None

    def _prepare(self, planned: SrtSlurm, root: Path) -> Checkout:
        mirror = Mirror(Path(planned.cache), planned.repository, self._git, sleep=self._sleep)
        sha, notes = self._resolve(mirror, planned)
        patches = [mirror.patch_of(patch.commit, patch.path) for patch in planned.patches]
        base, facts = self._base(mirror, sha, patches, planned)
        parts = {"sha": sha, "base": base.name, "overlays": [[o.source, o.destination] for o in planned.overlays]}
        if not _is_tree_of(root, parts):
            make_directories(root.parent)
            with publishing_directory(root, whole=lambda there: _is_tree_of(there, parts)) as tree:
                mirror.work_tree(tree, sha, patches)
                for name in facts.shared:
                    _link(base / name, tree / name)
                exclude = tree / ".git/info/exclude"
                exclude.parent.mkdir(exist_ok=True)
                # These files are hidden from `git status`. No final slash: `.venv/` does not match a symlink.
                exclude.write_text("".join(f"/{name.rstrip('/')}\n" for name in facts.shared))
                for overlay in planned.overlays:
                    _copy_overlay(overlay, tree)
                write_json(tree / FACTS, parts)
        head = (root / ".git" / "HEAD").read_text().strip()  # a branch name if somebody changed the tree
        if head != sha:
            raise CheckoutError(f"HEAD is {head}; expected {sha}", where=str(root))
        if any(Path(o.destination).parts[:1] == ("src",) for o in planned.overlays):
            notes.append("an overlay changes src/: the job runs it, but srtctl on this machine runs the commit's own")
        options = self._options_of_program_on_path(base, root) if facts.options is None else facts.options
        return Checkout(
            root=root,
            sha=sha,
            options=frozenset(options),
            cluster_keys=frozenset(facts.cluster_keys),
            notes=(*notes, *mirror.notes),
        )

    def _resolve(self, mirror: Mirror, planned: SrtSlurm) -> tuple[str, list[str]]:
        """The commit to use, and notes for the user about the ref.

        A pinned commit is resolved once as long as its mirror exists, because a mirror never loses commits.
        """
        if planned.sha is None:
            tip = mirror.tip(planned.ref, fresh=True)
            if tip is None:
                raise CheckoutError(f"the repository has no branch or tag {planned.ref!r}", where=mirror.repository)
            return tip, [f"srt-slurm is not pinned: {planned.ref} is {tip} at this moment"]
        key = f"{mirror.path} {planned.sha} {planned.ref}"
        if key not in self._resolved or not mirror.path.is_dir():
            sha = mirror.commit(planned.sha)
            tip = mirror.tip(planned.ref)
            moved = tip is not None and tip != sha
            notes = [f"{planned.ref} has moved to {tip}; the pinned {sha} is used"] if moved else []
            self._resolved[key] = sha, notes
        sha, notes = self._resolved[key]
        return sha, list(notes)

    def _options_of_program_on_path(self, base: Path, root: Path) -> list[str]:
        """The options of the srtctl on PATH. The base keeps them until that program's file changes."""
        program = shutil.which("srtctl", path=self._environ.get("PATH"))
        status = Path(program).stat() if program is not None else None
        cache = base / ".git" / "launcher-options.json"
        identity = [program, status.st_size, status.st_mtime_ns, status.st_ino] if status is not None else []
        if (cached := read_json(cache, _Options)) is not None and cached.program == identity:
            return cached.options
        options = sorted(apply_options("srtctl", root, self._environ, self._run))
        with contextlib.suppress(OSError):  # then the next run asks the program again
            write_json(cache, {"program": identity, "options": options})
        return options

    def _base(self, mirror: Mirror, sha: str, patches: Sequence[str], planned: SrtSlurm) -> tuple[Path, _BaseFacts]:
        """The base of this commit and set-up, with its facts. A base that does not exist is built."""
        extra = sorted(self._setup_environment.items())
        identity = [planned.repository, sha, patches, planned.setup, extra, platform.machine()]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
        pointer = path_for_own_use(Path(planned.cache, "bases", f"{sha[:12]}-{digest}"))
        if base := _read_base(pointer):
            return base
        make_directories(pointer.parent)
        require_writable(pointer.parent)
        wait = float(planned.setup_timeout * max(1, len(planned.setup)))
        with mirror.lock(pointer, f"setting up srt-slurm {sha}", wait):
            if base := _read_base(pointer):
                return base
            pointer.unlink(missing_ok=True)  # its target is missing: somebody emptied the cache
            _remove_killed_builds(pointer)
            # Without the marks of a temporary file, since it stays; `_remove_killed_builds` adds them to match.
            tree = pointer.with_name(temporary_name(pointer).name.removeprefix(".").removesuffix(TEMPORARY_SUFFIX))
            try:
                mirror.work_tree(tree, sha, patches)
                self._set_up(tree, planned)
                write_json(tree / FACTS, msgspec.to_builtins(self._facts(tree)))
                with contextlib.suppress(FileExistsError):  # another process was first; its base is equal
                    pointer.symlink_to(tree.name)
                fsync(pointer.parent)
            finally:
                if not pointer.is_symlink() or pointer.readlink() != Path(tree.name):
                    shutil.rmtree(tree, ignore_errors=True)
        if (base := _read_base(pointer)) is None:
            raise CheckoutError("another user made the same base meanwhile", where=str(pointer), hint="run again")
        return base

    def _set_up(self, tree: Path, planned: SrtSlurm) -> None:
        (tree / SRTSLURM).write_text("{}\n")  # without one, srt-slurm's `make setup` asks questions and writes its own
        log = Path(planned.cache, "logs", f"{tree.name}.log")
        make_directories(log.parent)
        for argv in planned.setup:
            done = self._run(argv, timeout=planned.setup_timeout, cwd=tree, env=self._environ)
            command = " ".join(argv)
            with log.open("a", encoding="utf-8") as handle:
                handle.write(f"$ {command}\n{done.stdout}{done.stderr}[{done.returncode}, {done.seconds:.1f} s]\n")
            if not done.ok:
                problem = f"failed (exit {done.returncode})"
                if done.timed_out:
                    problem = f"did not end within {planned.setup_timeout:.0f} s"
                raise CheckoutError(
                    f"setting srt-slurm up: `{command}` {problem}:\n{done.tail(10)}",
                    where=str(log),
                    hint="the log has its whole output; the next run tries again from a fresh tree",
                )

    def _facts(self, tree: Path) -> _BaseFacts:
        untracked = self._git.text("ls-files", "--others", "--directory", "-z", cwd=tree).split("\0")
        own = tree / ".venv/bin/srtctl"
        return _BaseFacts(
            shared=[name for name in untracked if name and not _NOT_SHARED & set(Path(name).parts)],
            options=sorted(apply_options(str(own), tree, self._environ, self._run)) if own.exists() else None,
            cluster_keys=sorted(known_keys(tree)),
        )


def apply_options(program: str, tree: Path, environment: Mapping[str, str], run: CommandRunner = run) -> set[str]:
    """The long options that ``program apply`` takes, from its help; ``tree`` is its work tree.

    The version number does not show them (many versions of srt-slurm are 0.3.0): sa-submission-q2-2026 lacks
    ``--json`` and ``--no-preflight``, aflowers/vllm-gb200-v0.20.0 only the latter. Raises CheckoutError when srtctl
    does not start.
    """
    done = run([program, "apply", "--help"], timeout=HELP_TIMEOUT, cwd=tree, env={**environment, "COLUMNS": "200"})
    if not done.ok:
        raise CheckoutError(
            f"srtctl does not start: {done}", where=str(tree), hint="does the runner's set-up install it?"
        )
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)))


def known_keys(checkout: Path) -> frozenset[str]:
    """The keys of srtslurm.yaml that this checkout's srtctl knows, from its source, which is parsed and not imported.

    Raises CheckoutError when the tree does not declare them, because then it is not srt-slurm.
    """
    schema = checkout / SCHEMA_FILE
    try:
        tree = ast.parse(schema.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise CheckoutError(f"cannot read which keys srtctl knows: {error}", where=str(schema)) from None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "ClusterConfig":
            return frozenset(
                field.target.id
                for field in node.body
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and not ast.unparse(field.annotation).startswith("ClassVar")
            )
    raise CheckoutError("declares no class ClusterConfig: is this a checkout of srt-slurm?", where=str(schema))


def _read_base(pointer: Path) -> tuple[Path, _BaseFacts] | None:
    """The published base, or None when there is none."""
    tree = pointer.resolve()
    facts = read_json(tree / FACTS, _BaseFacts, 1 << 24)
    return None if facts is None else (tree, facts)


def _remove_killed_builds(pointer: Path) -> None:
    """Remove the directories of killed builds of this host; a build on another host may still be alive."""
    build_name = temporary_pattern(re.escape(pointer.name), re.escape(host_label()))
    for entry in pointer.parent.iterdir():
        match = build_name.fullmatch(f".{entry.name}{TEMPORARY_SUFFIX}")
        if match and not pid_exists(int(match["pid"])):
            shutil.rmtree(entry, ignore_errors=True)


def _is_tree_of(tree: Path, parts: Mapping[str, Any]) -> bool:
    """Whether ``tree`` exists and was made from these parts. Raises CheckoutError when something else is there."""
    if not os.path.lexists(tree):
        return False
    try:
        recorded = json.loads((tree / FACTS).read_text())
    except (OSError, json.JSONDecodeError):
        recorded = None
    if recorded != parts:
        raise CheckoutError(
            "there is a directory here already, and it is not this run's work tree", where=str(tree), hint="remove it"
        )
    return True


def _link(source: Path, target: Path) -> None:
    """Make ``source`` appear at ``target``: a virtual environment as a symlink, anything else as hard links.

    srt-slurm mounts ``configs/`` into its containers, where a symlink into the cache would have no target. A virtual
    environment never enters a container. Files are copied where hard links are impossible (another file system, or too
    many links).
    """
    if (source / "pyvenv.cfg").is_file():
        target.symlink_to(source)
    elif source.is_dir() and not source.is_symlink():
        target.mkdir(exist_ok=True)
        for entry in source.iterdir():
            _link(entry, target / entry.name)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            os.link(source, target, follow_symlinks=False)
            return
        shutil.copy2(source, target, follow_symlinks=False)


def _copy_overlay(overlay: PlannedOverlay, root: Path) -> None:
    """Copy an overlay into the tree at ``root``, as ``cp -rT``: directories are merged, files and symlinks replaced.

    Nothing is written through a symlink or a hard link, because it could change a base that other runs share.
    """
    source = Path(overlay.source)
    if not source.exists():
        raise CheckoutError("the overlay's source does not exist", where=str(source), hint="is its path spelt right?")
    _copy_into_tree(source.resolve() if source.is_dir() else source, root / overlay.destination, root.resolve())


def _copy_into_tree(source: Path, target: Path, top: Path) -> None:
    is_directory = source.is_dir() and not source.is_symlink()
    directory = (target if is_directory else target.parent).resolve()
    if not directory.is_relative_to(top) or directory.is_relative_to(top / ".git"):
        raise CheckoutError(
            f"the overlay must not go to {directory}; expected a place in {top}, and not in its .git", where=str(source)
        )
    directory.mkdir(parents=True, exist_ok=True)
    if is_directory:
        for entry in source.iterdir():
            _copy_into_tree(entry, target / entry.name, top)
    elif target.is_dir() and not target.is_symlink():
        raise CheckoutError(f"the overlay puts a file where the checkout has a directory: {target}", where=str(source))
    else:
        target.unlink(missing_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
