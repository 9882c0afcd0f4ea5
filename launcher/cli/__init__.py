"""The command line: arguments in, text out; the decisions and effects are elsewhere.

Only argparse is imported here, so that ``launcher --help`` answers at once; a command's own module is imported when
that command runs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from launcher.cli.arguments import parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code (docs/design.md, "Errors")."""
    arguments = parser().parse_args(argv)
    module, _, function = arguments.command.partition(":")
    try:
        from launcher.core.errors import LauncherError

        command = getattr(importlib.import_module(f"launcher.cli.{module}"), function)
        try:
            return int(command(arguments) or 0)
        except LauncherError as error:
            from launcher.cli.report_error import complain

            return complain(error, arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `launcher plan | head`: the reader has gone, which is no error of ours; keep Python from saying so at exit.
        sys.stderr.close()
        return 141
