"""Finding the recipe that a benchmark names: in the workspace, in this repository, or in the pinned srt-slurm tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from launcher.core.errors import ConfigError
from launcher.core.yaml_source import Document
from launcher.srtctl.recipe import family_member, split_selector, variants

OVERLAY = "benchmarks/multi_node/srt-slurm-recipes"
"""Where InferenceX keeps the recipes that it lays over srt-slurm's own."""


@dataclass(frozen=True)
class FoundRecipe:
    """A recipe file, and what srtctl will see of it.

    ``path`` and ``selector`` are as the benchmark names them. ``document`` is what will lie under ``path`` in the
    checkout: the file itself, or, for a member of a family asked for by its old one-file name, that member alone.
    """

    path: str
    selector: str | None
    file: Document
    document: Mapping[str, Any]
    origin: str
    section: tuple[str, ...] = ()
    """Where a family's member stands in the family's file."""


class RecipeFinder:
    """Looks recipes up in some trees, and reads each file once.

    ``workspace`` is an InferenceX checkout, ``repository`` the directories that hold this project's ``recipes/…``
    files, ``trees`` directories of srt-slurm trees named by ref or sha (``--srt-slurm``), ``checkout`` the one tree
    that a run has checked out for itself, whatever its ref.
    """

    def __init__(
        self,
        workspace: Path | None = None,
        repository: Sequence[Path] = (),
        trees: Sequence[Path] = (),
        checkout: Path | None = None,
    ) -> None:
        self.workspace = workspace
        self.repository = tuple(repository)
        self.trees = tuple(trees)
        self.checkout = checkout
        self._files: dict[Path, Document | None] = {}

    def find(self, config_file: str, refs: Sequence[str] = ()) -> FoundRecipe | None:
        """The first recipe that ``config_file`` names, or None when no tree at hand holds it: see `all`."""
        return next(self.all(config_file, refs), None)

    def all(self, config_file: str, refs: Sequence[str] = ()) -> Iterator[FoundRecipe]:
        """Every recipe that ``config_file`` names: the workspace's, this repository's, the srt-slurm tree's.

        ``refs`` are the names (ref, sha) under which the lane's srt-slurm tree may lie. Raises ConfigError for a path
        that leaves the tree, and for a file that cannot be read.
        """
        path, selector = split_selector(config_file)
        refuse_escape(path)
        for locate, origin in self._places(refs):
            document = self._read(locate(path))
            if document is not None:
                yield FoundRecipe(path, selector, document, document.mapping(), origin)
            elif selector is None and (member := family_member(path)) is not None:
                family, override = member
                document = self._read(locate(family))
                if document is not None and override in document.mapping():
                    alone = variants(document.mapping(), override)[0].document
                    yield FoundRecipe(path, None, document, alone, f"{origin}, {family}:{override}", (override,))

    def tree_at_hand(self, refs: Sequence[str]) -> Path | None:
        """The lane's srt-slurm tree if one is here, so that "it is not there" can be told from "not known"."""
        if self.checkout is not None:
            return self.checkout
        return next((t / ref for t in self.trees for ref in refs if ref and (t / ref).is_dir()), None)

    @property
    def overlays(self) -> Path | None:
        """The workspace's recipes, which are laid over srt-slurm's; None when it has none."""
        found = self.workspace / OVERLAY if self.workspace is not None else None
        return found if found is not None and found.is_dir() else None

    @property
    def has_setup_scripts(self) -> bool:
        """Whether there is a workspace with set-up scripts of its own."""
        return self.workspace is not None and (self.workspace / OVERLAY / "configs").is_dir()

    def files(self) -> Iterator[tuple[Path, str | None]]:
        """Every recipe file of the trees at hand, with the ref of the srt-slurm tree that it belongs to, if it does."""
        places: list[tuple[Path, str | None]] = []
        if self.workspace is not None:
            places.append((self.workspace / OVERLAY, None))
        places += [(d / engine.name, None) for d in self.repository for engine in sorted(d.glob("*/"))]
        for tree in self.trees:
            places += [(ref / "recipes", ref.name) for ref in sorted(tree.glob("*/"))]
        for place, ref in places:
            yield from ((path, ref) for path in sorted(place.rglob("*.yaml")))

    def read(self, path: Path) -> Document | None:
        """A recipe file as it stands, read once; None when there is none. Raises ConfigError when it is not YAML."""
        return self._read(path)

    def setup_script(self, name: str) -> Path | None:
        """The directory of the workspace or of this repository that holds the set-up script ``name``, or None."""
        overlay = [self.workspace / OVERLAY / "configs"] if self.workspace is not None else []
        return next((d for d in [*overlay, *(r / "setup" for r in self.repository)] if (d / name).is_file()), None)

    def setup_in_tree(self, name: str, refs: Sequence[str]) -> bool:
        """Whether the lane's srt-slurm tree is here and has the set-up script ``name``, or holds recipes alone."""
        tree = self.tree_at_hand(refs)
        return tree is not None and ((tree / "configs" / name).is_file() or not (tree / "configs").is_dir())

    def _places(self, refs: Sequence[str]) -> Iterator[tuple[Callable[[str], Path], str]]:
        """Functions from a srt-slurm-relative path to where it would lie, in the order in which they count."""
        if self.workspace is not None:
            yield partial(_below, self.workspace / OVERLAY), "workspace overlay"
        for directory in self.repository:
            yield partial(_below, directory), "this repository"
        for tree in self.trees:
            for ref in refs:
                yield tree.joinpath(ref).joinpath, f"srt-slurm {ref}"
        if self.checkout is not None:
            yield self.checkout.joinpath, "checkout"

    def _read(self, path: Path) -> Document | None:
        if path not in self._files:
            self._files[path] = Document.read(path, strict=False) if path.is_file() else None
        return self._files[path]


def _below(directory: Path, path: str) -> Path:
    return directory / path.removeprefix("recipes/").removeprefix(f"{OVERLAY}/")


def refuse_escape(path: str) -> None:
    """Raise ConfigError for a path that is absolute, climbs out with ``..``, or is no YAML file's name."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not path or "\0" in path:
        raise ConfigError(
            f"recipe path {path!r} leaves the srt-slurm tree",
            where="CONFIG_FILE",
            hint="give it relative to the tree, as recipes/…/name.yaml[:selector]",
        )
    if parts.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"recipe path {path!r} is not a YAML file's", where="CONFIG_FILE", hint="recipes/…/name.yaml[:selector]"
        )


def variants_or_none(document: Mapping[str, Any], selector: str | None) -> tuple[list[Any], str | None]:
    """The variants that a selector gives, or none and the reason: a bad selector is a finding, not an exception."""
    try:
        return list(variants(document, selector)), None
    except ConfigError as error:
        return [], error.message
