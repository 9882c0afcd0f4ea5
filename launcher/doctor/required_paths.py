"""The directories that a runner file names: who has to see and to write each, and what was found. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from launcher.doctor.facts import Agree, Differ, Fact, Host, Mount, Outcome, Seen, Side, Site, Unknown
from launcher.doctor.statements import Statement, statements
from launcher.runner.file import RunnerFile
from launcher.runner.schema import Storage

Fill = Callable[[str], str]
"""A path of a runner file with its placeholders filled in."""

_BOTH: tuple[Side, ...] = ("login", "compute")


@dataclass(frozen=True)
class Need:
    """A directory, or candidates of which one must be there. ``says`` is what the file writes.

    ``seen`` and ``written`` are the sides that must see it, and be able to write it; ``made`` says that the launcher
    makes it when it is not there; ``storage`` is what the file says of the file system below it.
    """

    says: str
    paths: tuple[str, ...]
    seen: tuple[Side, ...]
    written: tuple[Side, ...] = ()
    made: bool = False
    storage: Storage | None = None
    mounted: bool = False
    """Whether this is `storage` itself, so that its kind is compared."""


def needs(file: RunnerFile, fill: Fill, *, models_are_made: bool = False) -> Iterator[tuple[Statement, Need]]:
    """Every directory that the file names, with where it names it, in the file's order of tables.

    ``models_are_made`` says that runs make a checkpoint that is not there.
    """
    runner = file.runner
    for stated in statements(file, "storage.[]"):
        storage: Storage = stated.value
        yield stated, Need(storage.path, (storage.path,), storage.seen_by, storage=storage, mounted=True)
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
        for stated in statements(file, pattern):
            path = fill(stated.value)
            yield stated, Need(stated.value, (path,), seen, written, made=True, storage=file.storage_of(path))
    for stated in statements(file, "models.[].path"):
        model, written_paths = stated.table, [stated.value] if isinstance(stated.value, str) else stated.value
        candidates = [path for path in written_paths if not path.startswith("hf:")]
        if candidates:
            # {model} is another directory for each benchmark: what is above it is what can be asked about.
            paths = tuple(fill(path.partition("{model}")[0]).rstrip("/") or "/" for path in candidates)
            made = (model.stage and model.source is not None) or models_are_made
            on = file.storage_of(paths[0])
            seen = on.seen_by if on is not None else _BOTH
            written = ("login",) if made and "login" in seen else ()
            yield stated, Need(" or ".join(candidates), paths, seen, written, made, on)


def compare_path(need: Need, site: Site) -> Outcome:
    """One directory: it agrees only when every side that must see and write it does."""
    good: list[str] = []
    bad: list[str] = []
    open_: list[str] = []
    hint = ""
    for side in need.seen:
        host = site.side(side)
        found = _on(host, need.paths)
        if isinstance(host, Unknown) or isinstance(found, Unknown):
            open_.append(f"{side}: {found}")
            continue
        path, seen = found
        wrong, how = _wrong(need, side, path, seen, site.cluster.user)
        if wrong:
            bad.append(f"{side} ({host.name}): {wrong}")
            hint = hint or how
        else:
            good.append(f"{side} ({host.name}): {_found(path, seen)}")
    if need.mounted and (extra := _seen_by_more(need, site)):
        bad.append(extra)
        hint = hint or "add the side to seen-by, or say which part of it is not shared"
    if bad:
        return Differ("; ".join(bad), hint)
    if open_:
        return Unknown("; ".join([*open_, *good]))
    return Agree("; ".join(good))


def _on(host: Fact[Host], paths: Sequence[str]) -> Fact[tuple[str, Seen]]:
    """The first candidate that is there, else the first one with what is above it."""
    if isinstance(host, Unknown):
        return host
    seen = [(path, host.directory(path)) for path in paths]
    known = [(path, s) for path, s in seen if isinstance(s, Seen)]
    if not known:
        return Unknown(str(seen[0][1]))
    return next((pair for pair in known if pair[1].is_at(pair[0])), known[0])


def _wrong(need: Need, side: Side, path: str, seen: Seen, user: str) -> tuple[str, str]:
    """What is wrong with a directory on one side, and how to mend it; empty when nothing is."""
    if seen.refused.endswith("is not a directory"):
        return seen.refused, "name a directory"
    if not seen.is_at(path):
        missing = f"{path} is not there; the nearest directory above it is {seen.at}"
        if not need.made:
            there = "mount" if need.mounted else "stage"
            return missing, f"correct the path, {there} what belongs there, or correct `seen-by` of its storage"
        if side in need.written and not seen.writable:
            return (
                f"{missing}, where {user} cannot make it: {seen.refused}",
                "have it made, and given to the runner's user",
            )
    elif not seen.readable:
        return f"{user} cannot list {path}", "chmod or chgrp it for the runner's user, or name another"
    elif side in need.written and not seen.writable:
        return f"{user} cannot write {path}: {seen.refused}", "give it to the runner's user, or name another"
    if (other := _other_kind(need, seen))[0]:
        return other
    shared = len(need.seen) == 2 and (need.storage is None or need.storage.kind != "node-local")
    if side == "compute" and shared and (seen.shared is False or seen.back is False):
        hint = "name a directory on a shared file system, or say `kind: node-local` of its storage"
        return f"what the login host writes into {seen.at} is not seen there: it is another {seen.at}", hint
    return "", ""


def _other_kind(need: Need, seen: Seen) -> tuple[str, str]:
    if not need.mounted or need.storage is None or isinstance(seen.mount, Unknown):
        return "", ""
    kind, mount = need.storage.kind, seen.mount
    fits = {
        "lustre": mount.type == "lustre",
        "nfs": mount.network and mount.type != "lustre",
        "node-local": not mount.network,
        "local": not mount.network,
    }[kind]
    actual = "lustre" if mount.type == "lustre" else "nfs" if mount.network else "local or node-local"
    return ("", "") if fits else (f"not {kind}: {mount}", f"kind: {actual}")


def _seen_by_more(need: Need, site: Site) -> str:
    """That a side sees a shared file system which the file says it does not."""
    if need.storage is None or need.storage.kind not in ("lustre", "nfs"):
        return ""
    path = need.paths[0]
    for side in _BOTH:
        found = _on(site.side(side), [path])
        if side in need.seen or isinstance(found, Unknown) or not found[1].is_at(path):
            continue
        if isinstance(found[1].mount, Mount) and found[1].mount.network:
            return f"{side} sees it too: {found[1].mount}"
    return ""


def _found(path: str, seen: Seen) -> str:
    parts = [] if seen.is_at(path) else [f"will be made below {seen.at}"]
    if isinstance(seen.mount, Mount):
        parts.append(f"{seen.mount.type} from {seen.mount.source}")
    if seen.free is not None:
        parts.append(f"{seen.free / 1024**3:.0f} GiB free")
    parts += ["shared with the login host"] if seen.shared else []
    return ", ".join([*parts, "writable" if seen.writable else "read-only for us"])
