"""The directories that a runner file names: who must see and write each, compared with what hosts see. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from launcher.doctor.facts import Agree, ClusterFacts, Differ, DirectoryView, Fact, Host, Mount, Outcome, Side, Unknown
from launcher.doctor.statements import Statement, statements
from launcher.runner.file import RunnerFile
from launcher.runner.schema import Storage

Fill = Callable[[str], str]
"""A path of a runner file with its placeholders filled in."""

_BOTH: tuple[Side, ...] = ("login", "compute")


@dataclass(frozen=True)
class RequiredPath:
    """A directory that must be there, or candidates of which one must. ``says`` is what the file writes.

    ``seen`` are the sides that must see it, ``written`` those that must be able to write it. ``made`` says that the
    launcher makes it when it is missing; ``storage`` is what the file says of the file system below it.
    """

    says: str
    paths: tuple[str, ...]
    seen: tuple[Side, ...]
    written: tuple[Side, ...] = ()
    made: bool = False
    storage: Storage | None = None
    mounted: bool = False
    """Whether this is `storage` itself, so that its kind is compared."""


def required(
    file: RunnerFile, fill: Fill, *, models_are_made: bool = False
) -> Iterator[tuple[Statement, RequiredPath]]:
    """Every directory that the file names, with where it names it, in the file's order of tables.

    ``models_are_made`` says that runs make a checkpoint that is not there.
    """
    runner = file.runner
    for statement in statements(file, "storage.[]"):
        storage: Storage = statement.value
        yield statement, RequiredPath(storage.path, (storage.path,), storage.seen_by, storage=storage, mounted=True)
    importer: tuple[Side, ...] = (runner.images.import_on,)
    for pattern, seen, written in (
        # The login host looks at what a compute node imported, too: whether an image is there is decided there.
        ("images.directory", _BOTH, importer),
        ("images.temporary", importer, importer),
        ("images.rules.[].directory", _BOTH, importer),
        ("checkout.directory", _BOTH, _BOTH),
        ("checkout.cache", ("login",), ("login",)),
        ("workspace.shared", _BOTH, ("login",)),
    ):
        for statement in statements(file, pattern):
            path = fill(statement.value)
            storage_below = file.storage_of(path)
            yield statement, RequiredPath(statement.value, (path,), seen, written, made=True, storage=storage_below)
    for statement in statements(file, "models.[].path"):
        model, value = statement.table, statement.value
        candidates = [path for path in ([value] if isinstance(value, str) else value) if not path.startswith("hf:")]
        if candidates:
            # {model} is another directory for each benchmark: what is above it is what can be asked about.
            paths = tuple(fill(path.partition("{model}")[0]).rstrip("/") or "/" for path in candidates)
            made = (model.stage and model.source is not None) or models_are_made
            on = file.storage_of(paths[0])
            seen = on.seen_by if on is not None else _BOTH
            written = ("login",) if made and "login" in seen else ()
            yield statement, RequiredPath(" or ".join(candidates), paths, seen, written, made, on)


def compare_path(required: RequiredPath, facts: ClusterFacts) -> Outcome:
    """One directory: it agrees only when every side that must see and write it does."""
    good: list[str] = []
    unknown: list[str] = []
    problems: list[Differ] = []
    for side in required.seen:
        host = facts.side(side)
        candidate = _candidate(host, required.paths)
        if isinstance(host, Unknown) or isinstance(candidate, Unknown):
            unknown.append(f"{side}: {candidate}")
            continue
        path, seen = candidate
        problem = (
            _access(required, side, path, seen, facts.slurm.user)
            or _kind(required, seen)
            or _sharing(required, side, seen)
        )
        if problem is not None:
            problems.append(Differ(f"{side} ({host.name}): {problem.found}", problem.hint))
        else:
            good.append(f"{side} ({host.name}): {_description(path, seen)}")
    if (hidden := _hidden_side(required, facts)) is not None:
        problems.append(hidden)
    if problems:
        return Differ("; ".join(problem.found for problem in problems), problems[0].hint)
    if unknown:
        return Unknown("; ".join([*unknown, *good]))
    return Agree("; ".join(good))


def _candidate(host: Fact[Host], paths: Sequence[str]) -> Fact[tuple[str, DirectoryView]]:
    """The first path that is there, or where none is the first one with what is above it."""
    if isinstance(host, Unknown):
        return host
    known = [(path, seen) for path in paths if isinstance(seen := host.directory(path), DirectoryView)]
    if not known:
        return Unknown(str(host.directory(paths[0])))
    return next(((path, seen) for path, seen in known if seen.is_at(path)), known[0])


def _access(required: RequiredPath, side: Side, path: str, seen: DirectoryView, user: str) -> Differ | None:
    """Whether the directory is there, or can be made, and can be used as one side must use it."""
    if seen.refused.endswith("is not a directory"):
        return Differ(seen.refused, "name a directory")
    read_only = side in required.written and not seen.writable
    if seen.is_at(path):
        if not seen.readable:
            return Differ(f"{user} cannot list {path}", "chmod or chgrp it for the runner's user, or name another")
        if read_only:
            found = f"{user} cannot write {path}: {seen.refused}"
            return Differ(found, "give it to the runner's user, or name another")
        return None
    missing = f"{path} is not there; the nearest directory above it is {seen.at}"
    if not required.made:
        put = "mount" if required.mounted else "stage"
        return Differ(missing, f"correct the path, {put} what belongs there, or correct `seen-by` of its storage")
    if read_only:
        found = f"{missing}, where {user} cannot make it: {seen.refused}"
        return Differ(found, "have it made, and given to the runner's user")
    return None


def _kind(required: RequiredPath, seen: DirectoryView) -> Differ | None:
    """Whether a storage is of the kind that the file gives."""
    if not required.mounted or required.storage is None or isinstance(seen.mount, Unknown):
        return None
    kind, mount = required.storage.kind, seen.mount
    actual = "lustre" if mount.type == "lustre" else "nfs" if mount.network else "local or node-local"
    return None if kind in actual.split(" or ") else Differ(f"not {kind}: {mount}", f"kind: {actual}")


def _sharing(required: RequiredPath, side: Side, seen: DirectoryView) -> Differ | None:
    """Whether a node sees the same directory as the login host, where both must see it."""
    shared = len(required.seen) == 2 and (required.storage is None or required.storage.kind != "node-local")
    if side == "login" or not shared or (seen.shared is not False and seen.back is not False):
        return None
    found = f"what the login host writes into {seen.at} is not seen there: it is another {seen.at}"
    return Differ(found, "name a directory on a shared file system, or say `kind: node-local` of its storage")


def _hidden_side(required: RequiredPath, facts: ClusterFacts) -> Differ | None:
    """A side that sees a shared file system, and the file says that it does not."""
    if not required.mounted or required.storage is None or required.storage.kind not in ("lustre", "nfs"):
        return None
    for side in _BOTH:
        candidate = _candidate(facts.side(side), required.paths)
        if side in required.seen or isinstance(candidate, Unknown) or not candidate[1].is_at(candidate[0]):
            continue
        mount = candidate[1].mount
        if isinstance(mount, Mount) and mount.network:
            hint = "add the side to seen-by, or say which part of it is not shared"
            return Differ(f"{side} sees it too: {mount}", hint)
    return None


def _description(path: str, seen: DirectoryView) -> str:
    parts = [] if seen.is_at(path) else [f"will be made below {seen.at}"]
    if isinstance(seen.mount, Mount):
        parts.append(f"{seen.mount.type} from {seen.mount.source}")
    if seen.free is not None:
        parts.append(f"{seen.free / 1024**3:.0f} GiB free")
    parts += ["shared with the login host"] if seen.shared else []
    return ", ".join([*parts, "writable" if seen.writable else "read-only for us"])
