"""A claim of a runner file, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.core.yaml_source import Key
from launcher.runner.file import RunnerFile

Verdict = Literal["agree", "differ", "unknown"]


@dataclass(frozen=True)
class Claim:
    """``says`` is the file's word, ``found`` the cluster's; ``why`` says what is not known, ``hint`` how to mend it."""

    key: str
    where: str
    says: str
    verdict: Verdict
    found: str = ""
    why: str = ""
    hint: str = ""


class Claims:
    """Claims of one file, as they are judged."""

    def __init__(self, file: RunnerFile) -> None:
        self.file = file
        self.made: list[Claim] = []

    def agree(self, keys: Sequence[Key], says: object, found: str) -> None:
        self._add(keys, says, "agree", found=found)

    def differ(self, keys: Sequence[Key], says: object, found: str, hint: str) -> None:
        self._add(keys, says, "differ", found=found, hint=hint)

    def unknown(self, keys: Sequence[Key], says: object, why: object, hint: str = "") -> None:
        self._add(keys, says, "unknown", why=str(why), hint=hint)

    def sorted(self) -> list[Claim]:
        """In the order of the file's lines."""
        return sorted(self.made, key=lambda claim: int(claim.where.rpartition(":")[2]))

    def _add(
        self, keys: Sequence[Key], says: object, verdict: Verdict, found: str = "", why: str = "", hint: str = ""
    ) -> None:
        word = {True: "true", False: "false"}.get(says, str(says)) if isinstance(says, bool) else str(says)
        self.made.append(Claim(dotted(keys), self.file.where(*keys), word, verdict, found, why, hint))


def dotted(keys: Sequence[Key]) -> str:
    """Keys as a person writes them: ``models[2].path``."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text
