"""Findings: what would fail, or measure something else than was asked, before a GPU is held.

In comes what was resolved for one plan (`check_plan`), or all rows, recipe files and runner files side by side
(`check_everything`); out come findings. A rule is a small function from what it looks at to what it finds. Rules are
pure, and a fact that only the checkout or the cluster can tell is never guessed. Open plan_rules.py, then report.py.

inputs says what a rule is and gathers what rules look at; recipe_rules, plan_rules, container_rules and whole_rules add
each rule to their list where it stands, by what they look at: a recipe, a plan of srtctl's, one of a job in a
container, everything. srtctl_schema knows what a recipe may say at which srt-slurm, schema_validation judges keys and
types by it, and cross_field_rules what a version demands beyond types: apart, since each follows another part of
srtctl's source. report has all rules, says what they found, and accepts that by a baseline, for the command line
alone.
"""
