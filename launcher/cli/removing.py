"""What `image gc` and `model gc` found, and removed or would remove."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.core.leftovers import Leftover
from launcher.core.lines import Terminal, folded


@dataclass(frozen=True)
class Removal:
    """A thing that nobody needs, of so many bytes, and by what that is known; ``keep`` is why it stays."""

    path: str
    bytes: int
    why: str
    keep: str | None = None


@dataclass(frozen=True)
class Removals:
    """All of them; ``applied``: they are removed, otherwise they would be."""

    applied: bool
    items: tuple[Removal, ...] = ()
    notes: tuple[str, ...] = ()


def removals(found: Sequence[Leftover], *, applied: bool, notes: tuple[str, ...] = ()) -> Removals:
    return Removals(applied, tuple(Removal(str(one.path), one.size, one.why, one.keep) for one in found), notes)


def show_removals(value: Removals, terminal: Terminal) -> Iterator[str]:
    """A line for each thing that was removed, would be, or stays; and how much that is together."""
    for item in value.items:
        how = f"kept, {item.keep}" if item.keep else "removed" if value.applied else "would remove"
        yield from folded(f"{how}: {item.path} ({item.bytes / 1e6:.1f} MB): {item.why}", terminal.width, "  ")
    gone = [item.bytes for item in value.items if not item.keep]
    if not gone:
        yield "nothing to remove" + (f"; {len(value.items)} entries stay" if value.items else "")
        yield from value.notes
        return
    done = "freed" if value.applied else "this was a dry run, --apply removes them: it would free"
    yield f"{done} {sum(gone) / 1e9:.3f} GB in {len(gone)} of {len(value.items)} entries"
    yield from value.notes
