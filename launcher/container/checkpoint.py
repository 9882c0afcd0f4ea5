"""Checks the weights of a checkpoint on a node, from the files that the job kept of it, as `launcher.model` does.

In bash the job checks that the checkpoint is complete and that config.json names the declared model. Quantisation and
layout of the weights are checked here after the job, and results of a different checkpoint are refused.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from launcher.core.errors import ModelError, ResultError
from launcher.core.reading import open_regular, read_file
from launcher.model.fingerprint import CONFIGS, contradictions, fingerprint_of, read_configs
from launcher.model.weights import (
    HEADER_LIMIT,
    DamagedFile,
    Header,
    compare_precision,
    declared_quantisation,
    parse_header,
)
from launcher.plan.plan import PlannedModel

HEADERS = "headers.gz"
"""The headers of the checkpoint's safetensors files, in the job's own directory."""

LARGEST_CONFIG = 4 << 20
MOST_HEADERS = 512 << 20
"""Bytes of a configuration, and of all headers together."""


def refuse_another_checkpoint(model: PlannedModel, own: Path) -> None:
    """Raise ResultError when the files that the job kept in ``own`` show other weights than the plan's.

    A job keeps none if the login node has already checked the checkpoint.
    """
    files = {}
    for name in CONFIGS:
        try:
            files[name] = read_file(own / name, LARGEST_CONFIG)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ResultError(
                f"what the job kept of its checkpoint cannot be read: {error.strerror}", where=str(own / name)
            ) from None
    if CONFIGS[0] not in files:
        return
    try:
        config, beside = read_configs(files)
        headers = {str(number): header for number, header in enumerate(_read_headers(own / HEADERS))}
    except (ModelError, DamagedFile, OSError, EOFError, zlib.error) as error:
        raise ResultError(f"what the job kept of its checkpoint is damaged: {error}", where=str(own)) from None
    quantisation = declared_quantisation(config, beside)
    expected = {k: v for k, v in model.fingerprint.items() if k in ("quantisation", "weights")}
    problems = contradictions(expected, fingerprint_of(config, quantisation, headers), "the runner file")
    stored = sum((Counter(header.bytes_by_dtype) for header in headers.values()), Counter[str]())
    same, reason = compare_precision(model.precision, quantisation, stored)
    if same == "mismatch" and reason is not None:
        problems.append(reason)
    if problems:
        raise ResultError(
            f"the checkpoint {model.path} on the node is another one: {'; '.join(problems)}",
            where=str(own),
            hint="its results are not published; stage the right one (launcher model stage), or fix the declaration",
        )


def _read_headers(path: Path) -> Iterator[Header]:
    """The headers that a job kept, if any. Raises DamagedFile, OSError, EOFError, zlib.error."""
    if not path.exists():
        return
    with open_regular(path) as file, gzip.open(file) as stream:
        left = MOST_HEADERS
        while first := stream.read(8):
            length = int.from_bytes(first, "little")
            left -= length
            if length > HEADER_LIMIT or left < 0 or len(raw := stream.read(length)) != length:
                raise DamagedFile("a header is longer than one can be, or cut off")
            yield parse_header(raw)
