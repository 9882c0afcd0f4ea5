"""Rules about what the srt-slurm that will run a recipe refuses: keys and values of the recipe, options of `apply`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from launcher.check.engine import Found, Rule, rule
from launcher.check.schema_validation import RecipeValidator
from launcher.check.srtctl_schema import Schema, Violation
from launcher.srtctl.planned import SrtctlResolved


@dataclass(frozen=True)
class VersionCheck:
    """A plan of srtctl, and what the srt-slurm of its lane says to it."""

    plan: SrtctlResolved
    validator: RecipeValidator

    @cached_property
    def schema(self) -> Schema | None:
        """What recipes may say at the lane's srt-slurm, or None when that is not known."""
        lane = self.plan.rules.lane.rule
        return self.validator.schemas.get(lane.ref, lane.sha)

    @cached_property
    def violations(self) -> Sequence[Violation]:
        """What the lane's srt-slurm refuses in the recipe."""
        recipe, variant = self.plan.recipe.found, self.plan.recipe.variant
        if variant is None or self.schema is None or recipe is None:
            return ()
        said_in = (recipe.file.path, *recipe.section, variant.selector or "")
        return self.validator.violations(self.schema, said_in, variant.document)


def _refused(rule: str) -> Callable[[VersionCheck], Iterator[Found]]:
    def look(check: VersionCheck) -> Iterator[Found]:
        for violation in check.violations:
            if violation.rule == rule:
                message = f"{check.plan.refs} refuses the recipe: {violation.message}"
                if rule == "unknown-field" and (there := check.validator.schemas.known_at(violation)):
                    message += f"; known at {there}"
                yield message, check.plan.place(*violation.keys)

    return look


REFUSALS: Sequence[Rule[VersionCheck]] = tuple(
    Rule(id, "error", title, _refused(id))
    for id, title in (
        ("unknown-field", "the recipe has a key that its srt-slurm does not know"),
        ("wrong-type", "a value of the recipe is of the wrong kind"),
        ("missing-field", "the recipe lacks a key that its srt-slurm requires"),
        ("value-refused", "its srt-slurm does not accept a value of the recipe"),
    )
)


@rule("option-unknown", "error", "the lane's srt-slurm has no such option")
def option_unknown(check: VersionCheck) -> Iterator[Found]:
    if check.schema is None or not check.schema.options:
        return
    asked = {"--tags": True, "--setup-script": check.plan.setup is not None, "--no-preflight": not check.plan.preflight}
    for option, is_asked in asked.items():
        if is_asked and option not in check.schema.options:
            message = f"`srtctl apply` of {check.plan.refs} has no {option}, and ends with exit code 2"
            yield message, check.plan.rules.lane.place


@rule("preflight-blind", "error", "srtctl looks for the model where it cannot be seen")
def preflight_blind(check: VersionCheck) -> Iterator[Found]:
    # Versions with the option look before they submit; of those without, none does for a plain recipe (517d3c37).
    looks = check.plan.preflight and check.schema is not None and "--no-preflight" in check.schema.options
    if not looks or not check.plan.job.models:
        return
    path = check.plan.plan.model.path
    storage = check.plan.file.storage_of(path)
    if storage is not None and "login" not in storage.seen_by:
        message = f"{check.plan.refs} looks for {path} before it submits, and only compute nodes see {storage.path}"
        yield message, check.plan.rules.lane.place


RULES: Sequence[Rule[VersionCheck]] = (*REFUSALS, option_unknown, preflight_blind)
