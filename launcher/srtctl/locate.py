"""Finding the recipe that a benchmark names: in the workspace, in this repository, or in the pinned srt-slurm tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from launcher.core.errors import ConfigError
from launcher.core.yaml_source import Document
from launcher.srtctl.facts import RecipeFacts, recipe_facts
from launcher.srtctl.recipe import Variant, family_member, split_selector, variants

OVERLAY = "benchmarks/multi_node/srt-slurm-recipes"
"""Where InferenceX keeps the recipes that it lays over srt-slurm's own."""


@dataclass(frozen=True)
class FoundRecipe:
    """A recipe file, and what srtctl will see of it.

    ``path`` and ``selector`` are as the benchmark names them. ``document`` is what will lie under ``path`` in the
    checkout: the file itself, or, for a family's member that was named by its own file (`recipe.family_member`), that
    member alone.
    """

    path: str
    selector: str | None
    file: Document
    document: Mapping[str, Any]
    origin: str
    section: tuple[str, ...] = ()
    """Where a family's member stands in the family's file."""

    @cached_property
    def variants(self) -> tuple[Sequence[Variant], str | None]:
        """The variants that the selector picks, or none and the reason: callers report a bad selector as a finding."""
        try:
            return variants(self.document, self.selector), None
        except ConfigError as error:
            return [], error.message

    @cached_property
    def facts(self) -> RecipeFacts | None:
        """The facts of the first variant; None when the selector picks none. Raises ConfigError: see `recipe_facts`."""
        found, _ = self.variants
        return recipe_facts(found[0].document) if found else None


class SetupScript(msgspec.Struct, frozen=True):
    """The set-up script of a lane's containers.

    ``directory`` is the one of the workspace or of this repository that holds it, or None. ``found`` says whether the
    run will have it; None when that cannot be told before the checkout.
    """

    name: str
    directory: str | None
    found: bool | None


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
        self.repository = tuple(repository)
        self.trees = tuple(trees)
        self.checkout = checkout
        self._overlay = workspace / OVERLAY if workspace is not None else None
        self._files: dict[Path, Document | None] = {}
        self._found: dict[tuple[Path, str, str | None], FoundRecipe] = {}

    def find(self, config_file: str, refs: Sequence[str] = ()) -> FoundRecipe | None:
        """The first recipe that ``config_file`` names, or None when no tree at hand holds it: see `all`."""
        return next(self.all(config_file, refs), None)

    def all(self, config_file: str, refs: Sequence[str] = ()) -> Iterator[FoundRecipe]:
        """Every recipe that ``config_file`` names: the workspace's, this repository's, the srt-slurm tree's.

        ``refs`` are the names (ref, sha) under which the lane's srt-slurm tree may lie. Raises ConfigError for a path
        that leaves the tree, and for a file that cannot be read.
        """
        path, selector = split_selector(config_file)
        parts, form = PurePosixPath(path), "recipes/…/name.yaml[:selector]"
        if parts.is_absolute() or ".." in parts.parts or not path or "\0" in path:
            raise ConfigError(
                f"recipe path {path!r} leaves the srt-slurm tree",
                where="CONFIG_FILE",
                hint=f"give it relative to the tree, as {form}",
            )
        if parts.suffix not in (".yaml", ".yml"):
            raise ConfigError(f"recipe path {path!r} does not name a YAML file", where="CONFIG_FILE", hint=form)
        # Without a family the same file is looked for a second time, and is as missing as at first.
        family, override = (family_member(path) if selector is None else None) or (path, "")
        places = zip(self._places(path, refs), self._places(family, refs), strict=True)
        for (file, origin), (family_file, _) in places:
            if (document := self.read(file)) is not None:
                known = self._found.get((file, path, selector))
                yield known or self._keep(file, FoundRecipe(path, selector, document, document.mapping(), origin))
            elif (document := self.read(family_file)) is not None and override in document.mapping():
                if (known := self._found.get((family_file, path, None))) is None:
                    alone = variants(document.mapping(), override)[0].document
                    found = FoundRecipe(path, None, document, alone, f"{origin}, {family}:{override}", (override,))
                    known = self._keep(family_file, found)
                yield known

    def _keep(self, file: Path, found: FoundRecipe) -> FoundRecipe:
        """Keep a recipe that was found, as rows of a sweep share it, and so its variants and facts are worked out once.

        `files` are read once, too. An origin belongs to its file: no two places have one file.
        """
        return self._found.setdefault((file, found.path, found.selector), found)

    def read(self, path: Path) -> Document | None:
        """A recipe file as it stands, read once; None when there is none. Raises ConfigError when it is not YAML."""
        if path not in self._files:
            self._files[path] = Document.read(path, strict=False) if path.is_file() else None
        return self._files[path]

    def files(self) -> Iterator[tuple[Path, str | None]]:
        """Every recipe file of the trees at hand, with the ref of the srt-slurm tree that it belongs to, if any."""
        places: list[tuple[Path, str | None]] = [] if self._overlay is None else [(self._overlay, None)]
        places += [(engine, None) for d in self.repository for engine in sorted(d.glob("*/"))]
        places += [(ref / "recipes", ref.name) for tree in self.trees for ref in sorted(tree.glob("*/"))]
        for place, ref in places:
            yield from ((path, ref) for path in sorted(place.rglob("*.yaml")))

    def tree_at_hand(self, refs: Sequence[str]) -> Path | None:
        """The lane's srt-slurm tree, or None: without it nobody knows what srt-slurm holds."""
        if self.checkout is not None:
            return self.checkout
        return next((t / ref for t in self.trees for ref in refs if ref and (t / ref).is_dir()), None)

    @property
    def overlays(self) -> Path | None:
        """The workspace's recipes, which are laid over srt-slurm's; None when it has none."""
        return self._overlay if self._overlay is not None and self._overlay.is_dir() else None

    def setup_script(self, name: str, refs: Sequence[str], listed: bool | None) -> SetupScript:
        """Where the set-up script ``name`` lies: in the workspace, in this repository, or in the lane's srt-slurm.

        ``listed`` says whether srt-slurm is known to have it; it counts when the lane's tree is not at hand.
        """
        overlay = [] if self._overlay is None else [self._overlay / "configs"]
        places = [*overlay, *(directory / "setup" for directory in self.repository)]
        if holding := next((place for place in places if (place / name).is_file()), None):
            return SetupScript(name, str(holding), True)
        if tree := self.tree_at_hand(refs):
            # A tree that was cut down to its recipes says nothing against it.
            return SetupScript(name, None, (tree / "configs" / name).is_file() or not (tree / "configs").is_dir())
        # What the workspace would add to srt-slurm's own is not known where there is no workspace.
        unknown = listed is False and not any(place.is_dir() for place in overlay)
        return SetupScript(name, None, None if unknown else listed)

    def _places(self, path: str, refs: Sequence[str]) -> Iterator[tuple[Path, str]]:
        """Where a file of srt-slurm's tree may lie, in the order in which the places count, and the place's name."""
        inner = path.removeprefix("recipes/").removeprefix(f"{OVERLAY}/")
        if self._overlay is not None:
            yield self._overlay / inner, "workspace overlay"
        for directory in self.repository:
            yield directory / inner, "this repository"
        for tree in self.trees:
            for ref in refs:
                yield tree / ref / path, f"srt-slurm {ref}"
        if self.checkout is not None:
            yield self.checkout / path, "checkout"
