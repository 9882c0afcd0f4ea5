"""Finds the recipe that a benchmark names: in the workspace, in this repository, or in the pinned srt-slurm tree."""

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
"""InferenceX's directory of recipes that are copied over srt-slurm's own."""


@dataclass(frozen=True)
class FoundRecipe:
    """A recipe file, and the document that srtctl will read.

    ``path`` and ``selector`` are as the benchmark names them. ``document`` will be written to ``path`` in the checkout:
    it is the content of ``file``, or only one member of a family that was named by a file of its own
    (`recipe.family_member`).
    """

    path: str
    selector: str | None
    file: Document
    document: Mapping[str, Any]
    origin: str
    section: tuple[str, ...] = ()
    """The path of a family's member in the family's file."""

    @cached_property
    def variants(self) -> tuple[Sequence[Variant], str | None]:
        """The variants that the selector picks; or none, and the reason, which callers report as a finding."""
        try:
            return variants(self.document, self.selector), None
        except ConfigError as error:
            return [], error.message

    @cached_property
    def facts(self) -> RecipeFacts | None:
        """The facts of the first variant; None when the selector picks none. Raises ConfigError: see `recipe_facts`."""
        picked, _ = self.variants
        return recipe_facts(picked[0].document) if picked else None


class SetupScript(msgspec.Struct, frozen=True):
    """The set-up script of a lane's containers.

    ``directory`` is the directory of the workspace or of this repository that has it, or None. ``found`` says whether
    the run will have it; None when that is unknown before the checkout.
    """

    name: str
    directory: str | None
    found: bool | None


class RecipeFinder:
    """Looks recipes up in several trees, and reads each file once.

    ``workspace`` is an InferenceX checkout, ``repository`` the directories of this project's ``recipes/…`` files,
    ``trees`` directories of srt-slurm trees named by ref or sha (``--srt-slurm``), ``checkout`` the tree that a run has
    checked out for itself, whatever its ref.
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
        self._recipes: dict[tuple[Path, str, str | None], FoundRecipe] = {}

    def find(self, config_file: str, refs: Sequence[str] = ()) -> FoundRecipe | None:
        """The first recipe that ``config_file`` names, or None when no known tree has it: see `find_all`."""
        return next(self.find_all(config_file, refs), None)

    def find_all(self, config_file: str, refs: Sequence[str] = ()) -> Iterator[FoundRecipe]:
        """Every recipe that ``config_file`` names: the workspace's, this repository's, the srt-slurm tree's.

        ``refs`` are the names (ref, sha) that the lane's srt-slurm tree may have. Raises ConfigError for a path outside
        the tree, and for a file that cannot be read.
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
        # Without a family the same file is looked up a second time, and is still missing.
        family, override = (family_member(path) if selector is None else None) or (path, "")
        candidates = zip(self._candidates(path, refs), self._candidates(family, refs), strict=True)
        # Rows of a sweep share a recipe object, so that its variants and facts are computed once.
        for (file, origin), (family_file, _) in candidates:
            if (document := self.read(file)) is not None:
                key = file, path, selector
                if key not in self._recipes:
                    self._recipes[key] = FoundRecipe(path, selector, document, document.mapping(), origin)
                yield self._recipes[key]
            elif (document := self.read(family_file)) is not None and override in document.mapping():
                key = family_file, path, None
                if key not in self._recipes:
                    member = variants(document.mapping(), override)[0].document
                    origin = f"{origin}, {family}:{override}"
                    self._recipes[key] = FoundRecipe(path, None, document, member, origin, (override,))
                yield self._recipes[key]

    def read(self, path: Path) -> Document | None:
        """The document of a recipe file, read once; None for a missing one. Raises ConfigError when it is not YAML."""
        if path not in self._files:
            self._files[path] = Document.read(path, strict=False) if path.is_file() else None
        return self._files[path]

    def files(self) -> Iterator[tuple[Path, str | None]]:
        """Every recipe file of the known trees, with the ref of its srt-slurm tree, if it is from one."""
        directories: list[tuple[Path, str | None]] = [] if self._overlay is None else [(self._overlay, None)]
        directories += [(engine, None) for d in self.repository for engine in sorted(d.glob("*/"))]
        directories += [(ref / "recipes", ref.name) for tree in self.trees for ref in sorted(tree.glob("*/"))]
        for directory, ref in directories:
            yield from ((path, ref) for path in sorted(directory.rglob("*.yaml")))

    def tree_at_hand(self, refs: Sequence[str]) -> Path | None:
        """The lane's srt-slurm tree, or None when it is not available."""
        if self.checkout is not None:
            return self.checkout
        return next((t / ref for t in self.trees for ref in refs if ref and (t / ref).is_dir()), None)

    @property
    def overlays(self) -> Path | None:
        """The directory of the workspace's recipes; None when it has none."""
        return self._overlay if self._overlay is not None and self._overlay.is_dir() else None

    def setup_script(self, name: str, refs: Sequence[str], listed: bool | None) -> SetupScript:
        """Look the set-up script ``name`` up in the workspace, in this repository, and in the lane's srt-slurm.

        ``listed`` says whether srt-slurm is known to have it; it is used when the lane's tree is not available.
        """
        overlay = [] if self._overlay is None else [self._overlay / "configs"]
        directories = [*overlay, *(directory / "setup" for directory in self.repository)]
        if directory := next((d for d in directories if (d / name).is_file()), None):
            return SetupScript(name, str(directory), True)
        if tree := self.tree_at_hand(refs):
            # A tree that was reduced to its recipes has no configs; then the script may exist.
            return SetupScript(name, None, (tree / "configs" / name).is_file() or not (tree / "configs").is_dir())
        # Without a workspace it is unknown which scripts it would add to srt-slurm's own.
        unknown = listed is False and not any(directory.is_dir() for directory in overlay)
        return SetupScript(name, None, None if unknown else listed)

    def _candidates(self, path: str, refs: Sequence[str]) -> Iterator[tuple[Path, str]]:
        """The files that may be ``path`` of srt-slurm's tree, the first one that exists wins; each with its origin."""
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
