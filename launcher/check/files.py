"""Rules about recipe files, whether a row runs them or not: their form, their variants, their keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.check.engine import Found, Rule, rule
from launcher.check.inputs import CheckInput, RecipeFile
from launcher.check.schema_validation import validate
from launcher.check.srtctl_schema import Schema, Violation
from launcher.core.errors import ConfigError
from launcher.core.yaml_source import Document, Place, reached
from launcher.srtctl.recipe import Variant, variants


@rule("recipe-invalid", "error", "a recipe file cannot be read")
def recipe_invalid(given: CheckInput) -> Iterator[Found]:
    for recipe in given.recipes:
        if recipe.broken is not None:
            yield recipe.broken.message, recipe.broken.where or str(recipe.path)


@rule("recipe-variants", "error", "a section of the recipe cannot be expanded")
def recipe_variants(given: CheckInput) -> Iterator[Found]:
    for recipe in given.recipes:
        if recipe.document is not None:
            for key, error in _expanded(recipe.document)[1]:
                yield error.message, Place(recipe.document, *key)


@rule("key-twice", "warning", "a key stands twice in one mapping")
def key_twice(given: CheckInput) -> Iterator[Found]:
    for recipe in given.recipes:
        document = recipe.document
        if document is None:
            continue
        for key, line in document.repeated:
            message = f"{key} stands twice in this mapping, and srtctl takes the second"
            if isinstance(document.data, dict) and "base" in document.data:
                # Variants are submitted through ruamel.yaml, which refuses such a file (`load_yaml_with_comments`).
                yield (
                    f"{key} stands twice in this mapping, and srtctl refuses the file",
                    f"{document.path}:{line}",
                    "error",
                )
            else:
                yield message, f"{document.path}:{line}"


@rule("recipe-refused", "warning", "no known srt-slurm accepts a recipe that no row runs")
def recipe_refused(given: CheckInput) -> Iterator[Found]:
    for recipe in given.recipes:
        document = recipe.document
        if document is None:
            continue
        for variant in _expanded(document)[0]:
            if variant.selector in recipe.used:
                continue
            schema, violations = _least(given, recipe, variant)
            for violation in violations:
                place = Place(document, *_keys(document, variant, violation))
                yield f"srt-slurm {schema.name} refuses the recipe: {violation.message}", place


def _least(given: CheckInput, recipe: RecipeFile, variant: Variant) -> tuple[Schema, list[Violation]]:
    """The newest schema version with the fewest violations, and those."""
    if recipe.schema is not None:
        return recipe.schema, validate(recipe.schema, variant.document)
    best: tuple[Schema, list[Violation]] | None = None
    for name in given.validator.schemas.versions:
        schema = given.validator.schemas.get(name, None)
        if schema is None:
            continue
        violations = validate(schema, variant.document)
        if best is None or len(violations) < len(best[1]):
            best = schema, violations
        if not violations:
            break
    assert best is not None
    return best


def _expanded(document: Document) -> tuple[list[Variant], list[tuple[tuple[str, ...], ConfigError]]]:
    """The variants of a recipe file, and the sections that cannot be expanded."""
    data = document.data
    if not isinstance(data, dict) or not isinstance(data.get("base", {}), dict):
        return [], [((), ConfigError("the recipe is not a mapping"))]
    if "base" not in data:
        return variants(data), []
    found: list[Variant] = []
    wrong: list[tuple[tuple[str, ...], ConfigError]] = []
    for key in data:
        if isinstance(key, str) and key.startswith(("override_", "zip_override_")):
            try:
                found += variants(data, key)
            except ConfigError as error:
                wrong.append(((key,), error))
    return found, wrong


def _keys(document: Document, variant: Variant, violation: Violation) -> tuple[str | int, ...]:
    """The longest part of a violation's keys that stands in the file; a missing key stands in none."""
    places = variant.places(violation.keys)
    return max(places, key=lambda keys: reached(document.data, keys))


WHOLE: Sequence[Rule[CheckInput]] = (recipe_invalid, recipe_variants, key_twice, recipe_refused)
