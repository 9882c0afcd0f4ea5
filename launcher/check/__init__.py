"""Findings: what would fail, or measure something else than was asked, before a GPU is held.

In comes what was resolved for one plan (`check_plan`), or all rows, recipe files and runner files side by side
(`check_everything`); out come findings. A rule is a small function from what it looks at to what it finds. Rules are
pure, and a fact that only the checkout or the cluster can tell is never guessed. Open registry.py first.
"""
