"""Findings: what would fail, or measure something else than was asked, before a GPU is held.

In comes what was resolved for one plan (`check_plan`), or all rows, recipe files and runner files side by side
(`check_everything`); out come findings. A rule is a small function from what it looks at to what it finds. Rules are
pure, and a fact that only the checkout or the cluster can tell is never guessed. Open registry.py first.

Only registry.py imports the rules, which stand in one module for each subject: recipe, image, topology, schema, fleet,
files, result_name_rules. What a recipe may say at which srt-slurm is known to srtctl_schema (the tables), schema_reader
(a checkout's source, read as syntax), schema_validation (keys and types) and cross_field_rules (demands beyond types):
four modules, since each follows another part of srtctl's source. baseline and report serve the command line alone.
"""
