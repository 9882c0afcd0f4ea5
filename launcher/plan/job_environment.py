"""The variables of the host that a job gets: those that programs need, and those that the plan passes by name.

A shell's ``UCX_TLS``, ``NCCL_…``, ``CUDA_VISIBLE_DEVICES`` or ``LD_LIBRARY_PATH`` would change what is measured, and
neither plan nor record would say so.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence

from launcher.benchmark.contracts import SECRETS
from launcher.core.errors import ConfigError

KEPT = (
    *("HOME", "PATH", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TZ", "SLURM_CONF", "MUNGE_*"),
    *("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"),
)
"""Variables of the host that every job gets, ``*`` for any ending: programs need them."""


def select_host_variables(
    host: Mapping[str, str], kept: Sequence[str], passes: Collection[str] | None
) -> dict[str, str]:
    """The part of the host's environment that a job gets. ``kept`` are names or globs; ``passes`` is the plan's list,
    None in plans of earlier versions, which listed nothing."""
    passed = SECRETS if passes is None else passes
    return {
        name: value
        for name, value in host.items()
        if name in passed or any(fnmatch.fnmatchcase(name, glob) for glob in kept)
    }


def variables_left_out(host: Mapping[str, str], job: Mapping[str, str]) -> list[str]:
    """The names of the host's environment that a job does not get."""
    return sorted(host.keys() - job.keys())


def require_passed_variables(passes: Collection[str] | None, host: Mapping[str, str]) -> None:
    """Raise ConfigError when a variable that the plan passes is not set here: no plan holds its value."""
    if missing := sorted(name for name in passes or () if not host.get(name)):
        names = ", ".join(missing)
        raise ConfigError(
            f"{names} {'is' if len(missing) == 1 else 'are'} not set, and the plan passes {names} to the job",
            where="environment",
            hint="a plan holds no values of these: set them here, or run the benchmark anew without them",
        )
