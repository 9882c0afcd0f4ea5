"""Plans with something changed, for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from launcher.plan.plan import Plan
from launcher.srtctl.planned import SrtctlJob


def with_job(plan: Plan, **changes: Any) -> Plan:
    """The plan with changes of its srtctl part."""
    return dataclasses.replace(plan, details=msgspec.structs.replace(SrtctlJob.of(plan), **changes).as_details())
