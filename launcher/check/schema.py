"""Rules about the recipe's keys and values: what the srt-slurm that will run it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from launcher.check.engine import Found, Rule, Subject, rule
from launcher.check.schema_validation import Verdict


def _complaints(verdict: Verdict) -> Callable[[Subject], Iterator[Found]]:
    def look(s: Subject) -> Iterator[Found]:
        for complaint in s.complaints:
            if complaint.rule == verdict:
                message = f"{s.refs} refuses the recipe: {complaint.message}"
                if verdict == "unknown-field" and (there := s.verdicts.schemas.known_at(*complaint.key)):
                    message += f"; known at {there}"
                yield message, s.place(*complaint.keys)

    return look


unknown_field = Rule(
    "unknown-field", "error", "the recipe has a key that its srt-slurm does not know", _complaints("unknown-field")
)
wrong_type = Rule("wrong-type", "error", "a value of the recipe is of the wrong kind", _complaints("wrong-type"))
missing_field = Rule(
    "missing-field", "error", "the recipe lacks a key that its srt-slurm requires", _complaints("missing-field")
)
value_refused = Rule(
    "value-refused", "error", "its srt-slurm does not accept a value of the recipe", _complaints("value-refused")
)


@rule("option-unknown", "error", "the lane's srt-slurm has no such option")
def option_unknown(s: Subject) -> Iterator[Found]:
    if s.schema is None or not s.schema.options:
        return
    asked = {"--tags": True, "--setup-script": bool(s.setup_script), "--no-preflight": not s.preflight}
    for option, is_asked in asked.items():
        if is_asked and option not in s.schema.options:
            yield f"`srtctl apply` of {s.refs} has no {option}, and ends with exit code 2", s.lane.place


RULES: tuple[Rule[Subject], ...] = (unknown_field, wrong_type, missing_field, value_refused, option_unknown)
