"""What the weights of a checkpoint on a node are, by what the job kept of it: judged as `launcher.model` judges others.

A job looks in bash whether the checkpoint is whole, and whether config.json names the declared model. Quantisation and
the layout of the weights are judged here, once the job is over: its results are believed only if they are right.
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
    """Raise ResultError when the job in ``own`` kept what shows that its weights are others than the plan's.

    A job that had no such look, as where the login node sees the checkpoint, kept nothing.
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
        headers = {str(number): header for number, header in enumerate(_headers(own / HEADERS))}
    except (ModelError, DamagedFile, OSError, EOFError, zlib.error) as error:
        raise ResultError(f"what the job kept of its checkpoint is damaged: {error}", where=str(own)) from None
    found = declared_quantisation(config, beside)
    said = fingerprint_of(config, found, headers)
    wrong = contradictions(
        {k: v for k, v in model.fingerprint.items() if k in ("quantisation", "weights")}, said, "the runner file"
    )
    stored = sum((Counter(header.bytes_by_dtype) for header in headers.values()), Counter[str]())
    same, why = compare_precision(model.precision, found, stored)
    if same == "mismatch" and why is not None:
        wrong.append(why)
    if wrong:
        raise ResultError(
            f"the checkpoint {model.path} on the node is another one: {'; '.join(wrong)}",
            where=str(own),
            hint="its results are not published; stage the right one (launcher model stage), or mend the declaration",
        )


def _headers(path: Path) -> Iterator[Header]:
    """The headers that a job kept; none where it kept none. Raises DamagedFile, OSError, EOFError, zlib.error."""
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
