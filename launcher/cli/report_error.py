"""Saying an error: what, where, what next; as an annotation too where GitHub reads along."""

from __future__ import annotations

import argparse
import os
import sys

from launcher.core.errors import LauncherError
from launcher.core.redact import redact


def complain(error: LauncherError, arguments: argparse.Namespace) -> int:
    """Print the error to stderr and return its exit code."""
    text = redact(str(error), os.environ)
    print(f"launcher: {error.layer}: {text}", file=sys.stderr)
    if os.environ.get("GITHUB_ACTIONS") == "true" and not getattr(arguments, "annotated", False):
        from launcher.core.github import GitHub

        with GitHub(os.environ, sys.stdout) as github:
            github.error(redact(error.message, os.environ), title=f"launcher: {error.layer}")
    return error.exit_code
