"""Rules about images: whether what the recipe runs is what the row publishes, and whether the cluster can run it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from launcher.check.engine import Found, Rule, rule
from launcher.core.errors import closest
from launcher.core.yaml_source import Place
from launcher.image.reference import names_an_image
from launcher.plan.derive import Resolved, is_image
from launcher.srtctl.facts import ContainerUse
from launcher.srtctl.planned import SrtctlResolved


def _unresolved(s: SrtctlResolved) -> Iterator[ContainerUse]:
    """Container strings of the recipe that would reach the cluster as they are."""
    for use in s.facts.container_aliases if s.facts is not None else ():
        if use.alias not in s.containers and not use.alias.startswith(("/", "./")):
            yield use


def _is_engine(use: ContainerUse) -> bool:
    return use.paths[0][0] == "model"


@rule("image-mismatch", "error", "the recipe runs another image than the row publishes")
def image_mismatch(s: SrtctlResolved) -> Iterator[Found]:
    for use in _unresolved(s):
        if _is_engine(use) and names_an_image(use.alias):
            message = f"the recipe runs {use.alias}, and the matrix publishes its numbers as {s.benchmark.image}"
            yield message, s.place(*use.paths[0])


@rule("image-replaced", "error", "another image is run than the row's")
def image_replaced(r: Resolved) -> Iterator[Found]:
    own, published = r.rules.image, r.rules.benchmark.image
    if own is not None and own.rule.image and not is_image(own.rule.image, published):
        yield f"{own.rule.image} is run, and the numbers are published as {published}'s", own.place


@rule("container-unresolved", "error", "a container name of the recipe is no image that the run stages")
def container_unresolved(s: SrtctlResolved) -> Iterator[Found]:
    for use in _unresolved(s):
        path = use.paths[0]
        if _is_engine(use) and names_an_image(use.alias):
            continue
        what = "container" if _is_engine(use) else ".".join(path)
        who = "this run" if _is_engine(use) else f"runner {s.file.runner.name}"
        near = closest(use.alias, s.containers)
        rest = f" (near: {near})" if near else "; every node would pull it by itself"
        yield f"{what} {use.alias!r} is not an image that {who} stages{rest}", s.place(*path)


@rule("image-spelling", "warning", "the recipe spells the row's image otherwise")
def image_spelling(s: SrtctlResolved) -> Iterator[Found]:
    for use in s.facts.container_aliases if s.facts is not None else ():
        name = use.alias
        if _is_engine(use) and name in s.containers and names_an_image(name) and name != s.benchmark.image:
            message = (
                f"the recipe spells the row's image {s.benchmark.image} as {name}: srtctl compares the names "
                f"letter by letter, so only this launcher finds the squash file"
            )
            yield message, s.place(*use.paths[0])


@rule("nginx-by-default", "warning", "several frontends, and no container for their nginx")
def nginx_by_default(s: SrtctlResolved) -> Iterator[Found]:
    if s.facts is not None and s.facts.nginx_by_default:
        message = "several frontends and no frontend.nginx_container: srtctl's default image has no alias here"
        yield message, s.place("frontend")


_VERSION = re.compile(r"(?<![0-9.])v?([0-9]+\.[0-9]+\.[0-9]+(?:[.-]?(?:post|rc|dev|a|b)\.?[0-9]+)?)(?![0-9.])")


@rule("alias-version", "warning", "a container alias names another version than the image that it stands for")
def alias_version(s: SrtctlResolved) -> Iterator[Found]:
    helpers = s.file.runner.images.helpers
    for use in s.facts.container_aliases if s.facts is not None else ():
        image = s.benchmark.image if _is_engine(use) else helpers.get(use.alias, "")
        said, tag = _VERSION.findall(use.alias), image.partition("@")[0].rpartition(":")[2]
        if use.alias not in s.containers or names_an_image(use.alias) or not said:
            continue
        # A tag without a version (`latest`, a digest alone) may be any; a nightly build is no release.
        has = _VERSION.findall(tag)
        if not set(said) & set(has) and (has or "nightly" in tag):
            yield f"container {use.alias!r} stands for {image} here", s.place(*use.paths[0])


_MAKES = {"arm64": "aarch64", "aarch64": "aarch64", "amd64": "x86_64", "x86_64": "x86_64", "x86-64": "x86_64"}
_MAKE = re.compile(r"(?<![a-z0-9])(arm64|aarch64|amd64|x86[_-]64)(?![a-z0-9])")


@rule("image-architecture", "error", "the image's tag names another make of processor than the nodes have")
def image_architecture(s: SrtctlResolved) -> Iterator[Found]:
    arch = s.file.runner.node.arch
    images: list[tuple[str, Place | str]] = [(s.benchmark.image, s.benchmark.source)]
    if s.facts is not None and s.facts.container and s.facts.container != s.benchmark.image:
        images.append((s.facts.container, s.place("model", "container")))
    for image, place in images:
        makes = {_MAKES[found] for found in _MAKE.findall(image.lower())}
        if arch is not None and makes and arch not in makes:
            message = f"{image} is built for {', '.join(sorted(makes))}, and {s.file.runner.name} has {arch} nodes"
            yield message, place


RULES: Sequence[Rule[SrtctlResolved]] = (
    image_mismatch,
    container_unresolved,
    image_spelling,
    alias_version,
    nginx_by_default,
    image_architecture,
)
