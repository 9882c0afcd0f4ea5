"""srtslurm.yaml: written so that srtctl cannot misread it, and never with a key that srtctl does not know.

srtctl validates the file as a whole. When one key is unknown or one value has the wrong type, it logs a warning, drops
the *whole* file and submits without any default or alias (`load_cluster_config` in srt-slurm's
``src/srtctl/core/config.py``, the same from sa-submission-q2-2026 to v1.0.68). So the keys are read from the checkout
before the file is written, and the warning is looked for afterwards.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from launcher.core import publish
from launcher.core.errors import ConfigError, SubmissionError, suggest
from launcher.srtctl import recipe

FILE_NAME = "srtslurm.yaml"

SCHEMA_FILE = Path("src/srtctl/core/schema.py")
"""Where a checkout of srt-slurm declares the keys, as annotated fields of the class `ClusterConfig`."""

STRING_MAPS = ("model_paths", "containers", "default_mounts", "default_sbatch_directives", "cloud")
"""Keys whose values are maps of strings: marshmallow refuses a number there ("Not a valid string")."""

_DROPPED = (
    re.compile(r"Failed to load or validate srtslurm\.yaml: (?P<why>.*)"),
    re.compile(r"(?P<why>SRTSLURM_CONFIG set but file not found: .*)"),
)


def dump_srtslurm(document: Mapping[str, Any]) -> str:
    """The document as YAML text, keys in the given order.

    Raises ConfigError for a value that srtctl would refuse (a number in a map of strings) or that YAML cannot hold.
    """
    for key in STRING_MAPS:
        entries = document.get(key)
        if entries is None:
            continue
        if not isinstance(entries, Mapping):
            raise ConfigError(f"{key}: expected a map of strings, not a {type(entries).__name__}", where=FILE_NAME)
        for name, value in entries.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise ConfigError(f"{key}: expected strings, not {name!r} and {value!r}", where=FILE_NAME)
    try:
        return recipe.dump(document)
    except ConfigError as error:
        raise ConfigError(error.message, where=FILE_NAME) from error


def known_keys(checkout: Path) -> frozenset[str]:
    """The keys of srtslurm.yaml that this checkout's srtctl knows, from its source, which is parsed and not imported.

    Raises SubmissionError when the tree has no such declaration, because it is not srt-slurm then.
    """
    schema = checkout / SCHEMA_FILE
    try:
        tree = ast.parse(schema.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise SubmissionError(f"cannot read which keys srtctl knows: {error}", where=str(schema)) from None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "ClusterConfig":
            return frozenset(
                field.target.id
                for field in node.body
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and not ast.unparse(field.annotation).startswith("ClassVar")
            )
    raise SubmissionError("declares no class ClusterConfig: is this a checkout of srt-slurm?", where=str(schema))


def refuse_unknown(document: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ConfigError when the document has a key that the pinned srtctl does not know."""
    unknown = [key for key in document if key not in known]
    if not unknown:
        return
    raise ConfigError(
        f"the pinned srt-slurm does not know {', '.join(map(repr, unknown))}; it would drop the whole file",
        where=FILE_NAME,
        hint=suggest(unknown[0], known, f"it knows {', '.join(sorted(known))}"),
    )


def write_srtslurm(path: Path, document: Mapping[str, Any], known: Collection[str]) -> None:
    """Write ``document`` atomically, after `refuse_unknown`. Raises ConfigError, and OSError of the file system."""
    refuse_unknown(document, known)
    publish.write_text(path, dump_srtslurm(document))


def dropped_warning(text: str) -> str | None:
    """Why srtctl dropped its srtslurm.yaml, from what it printed; None when it did not.

    srtctl goes on without the file, submits and exits with 0.
    """
    for pattern in _DROPPED:
        if found := pattern.search(text):
            return found["why"].strip()
    return None
