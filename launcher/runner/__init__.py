"""A cluster as its GitHub runners see it."""

from launcher.runner.file import Applied, RunnerFile, applies, describe_when
from launcher.runner.fleet import Fleet
from launcher.runner.schema import Runner

__all__ = ["Applied", "Fleet", "Runner", "RunnerFile", "applies", "describe_when"]
