"""Templates of runner files: text with ``{name}`` in it, where each place names what may stand there.

They are filled in by name alone. `str.format` would look into values (``{squash.__class__}``), and pad to any width.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache

from launcher.core.errors import ConfigError, suggest

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")

IMAGE_LOCK = ("squash", "directory", "name")
JOB_NAME = ("runner",)
SETUP = ("arch",)
SERVED = ("model",)
TAGS = ("sku", "prefix", "precision", "isl", "osl", "date")
"""What may stand in `images.lock`, `scheduler.job-name`, `checkout.setup`, `served` of a model, and `tags`."""


def check_template(template: str, names: Collection[str], where: str) -> None:
    """Raise ConfigError for a brace in a template that is no ``{name}`` with one of these names."""
    for name in _PLACEHOLDER.findall(template):
        if name not in names:
            known = ", ".join(f"{{{each}}}" for each in names)
            raise ConfigError(
                f"{{{name}}} is nothing that is filled in here",
                where=where,
                hint=suggest(name, names, f"there is {known}"),
            )
    if set("{}") & set(_PLACEHOLDER.sub("", template)):
        raise ConfigError(f"a brace in {template!r} is not closed, or was not opened", where=where)


def fill_in(template: str, values: Mapping[str, object]) -> str:
    """The template with its names filled in; a name without a value stays as it is."""
    if "{" not in template:
        return template
    return "".join(str(values.get(part, f"{{{part}}}")) if i % 2 else part for i, part in enumerate(_parts(template)))


@lru_cache(maxsize=1024)  # thousands of rows fill in some dozen templates
def _parts(template: str) -> tuple[str, ...]:
    """Text and names in turn, a text first."""
    return tuple(_PLACEHOLDER.split(template))
