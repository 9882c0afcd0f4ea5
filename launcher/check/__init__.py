"""Findings: what would fail, or measure something else than was asked, before a GPU is held.

A rule is a small function from what it looks at (a row with its plan, a recipe file, a runner file, or all of them) to
what it finds. Rules are pure, and a fact that only the checkout or the cluster can tell is never guessed.
"""

from launcher.check.engine import Subject, names_an_image
from launcher.check.registry import check

__all__ = ["Subject", "check", "names_an_image"]
