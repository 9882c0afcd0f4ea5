"""Findings: what would fail, or measure something else than was requested, before a GPU is held.

In comes what was resolved for one plan (`check_plan`), or all rows, recipe files and runner files
(`check_everything`); out come findings. A rule is a small pure function that reports problems of its subject; a fact
that only the checkout or the cluster can tell is never guessed. Open plan_rules.py, then report.py.

inputs defines a rule and gathers what rules check. recipe_rules, plan_rules, container_rules and whole_rules each hold
a list of rules, by subject: a recipe, a plan of srtctl's, a plan of a job in a container, everything. srtctl_schema
knows what a recipe may contain at which srt-slurm version, schema_validation checks keys and types by it, and
cross_field_rules what a version demands beyond types; they are apart because each follows another part of srtctl's
source. report has all rules, merges their findings, and applies a baseline, for the command line alone.
"""
