"""Rules about what the srt-slurm that will run a recipe refuses: keys and values of the recipe, options of `apply`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from launcher.check.engine import Found, Rule, rule
from launcher.check.schema_validation import Verdicts
from launcher.check.srtctl_schema import Schema, Violation
from launcher.srtctl.planned import SrtctlResolved


@dataclass(frozen=True)
class Judged:
    """A plan of srtctl, and what the srt-slurm of its lane says to it."""

    plan: SrtctlResolved
    verdicts: Verdicts

    @cached_property
    def schema(self) -> Schema | None:
        """What recipes may say at the lane's srt-slurm, or None when that is not known."""
        lane = self.plan.rules.lane.rule
        return self.verdicts.schemas.get(lane.ref, lane.sha)

    @cached_property
    def violations(self) -> Sequence[Violation]:
        """What the lane's srt-slurm refuses in the recipe."""
        recipe, variant = self.plan.recipe.found, self.plan.recipe.variant
        if variant is None or self.schema is None or recipe is None:
            return ()
        said_in = (recipe.file.path, *recipe.section, variant.selector or "")
        return self.verdicts.of(self.schema, said_in, variant.document)


def _refused(rule: str) -> Callable[[Judged], Iterator[Found]]:
    def look(j: Judged) -> Iterator[Found]:
        for violation in j.violations:
            if violation.rule == rule:
                message = f"{j.plan.refs} refuses the recipe: {violation.message}"
                if rule == "unknown-field" and (there := j.verdicts.schemas.known_at(violation)):
                    message += f"; known at {there}"
                yield message, j.plan.place(*violation.keys)

    return look


unknown_field = Rule(
    "unknown-field", "error", "the recipe has a key that its srt-slurm does not know", _refused("unknown-field")
)
wrong_type = Rule("wrong-type", "error", "a value of the recipe is of the wrong kind", _refused("wrong-type"))
missing_field = Rule(
    "missing-field", "error", "the recipe lacks a key that its srt-slurm requires", _refused("missing-field")
)
value_refused = Rule(
    "value-refused", "error", "its srt-slurm does not accept a value of the recipe", _refused("value-refused")
)


@rule("option-unknown", "error", "the lane's srt-slurm has no such option")
def option_unknown(j: Judged) -> Iterator[Found]:
    if j.schema is None or not j.schema.options:
        return
    asked = {"--tags": True, "--setup-script": j.plan.setup is not None, "--no-preflight": not j.plan.preflight}
    for option, is_asked in asked.items():
        if is_asked and option not in j.schema.options:
            message = f"`srtctl apply` of {j.plan.refs} has no {option}, and ends with exit code 2"
            yield message, j.plan.rules.lane.place


@rule("preflight-blind", "error", "srtctl looks for the model where it cannot be seen")
def preflight_blind(j: Judged) -> Iterator[Found]:
    # Versions with the option look before they submit; of those without, none does for a plain recipe (517d3c37).
    looks = j.plan.preflight and j.schema is not None and "--no-preflight" in j.schema.options
    if not looks or not j.plan.job.models:
        return
    path = j.plan.plan.model.path
    storage = j.plan.file.storage_of(path)
    if storage is not None and "login" not in storage.seen_by:
        message = f"{j.plan.refs} looks for {path} before it submits, and only compute nodes see {storage.path}"
        yield message, j.plan.rules.lane.place


RULES: Sequence[Rule[Judged]] = (
    unknown_field,
    wrong_type,
    missing_field,
    value_refused,
    option_unknown,
    preflight_blind,
)
