"""Is a checkpoint whole, and is it the one that was declared?

A directory that is there is not a checkpoint that is there: stubs of metadata, downloads that stopped, shards one byte
short and re-quantised copies under a near name have all been measured on (docs/design.md, "What it is").
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.errors import ModelError
from launcher.model.manifest import NAME, STAGING_NAME, WORK, Manifest
from launcher.model.quantisation import Identity, declared, identity
from launcher.model.safetensors import DamagedFile, Header, open_regular, read_header

REHEARSAL_KEY = "launcher_rehearsal"
"""The key of config.json that marks a checkpoint made for rehearsals: no weights worth measuring."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "tekken.json", "vocab.json", "vocab.txt")
_LEFTOVER = re.compile(r"\.(incomplete|part|partial|tmp|aria2)$|^\..+\.[A-Za-z0-9]{6}$")
_NUMBERED = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_SUFFIX = re.compile(r"[-_.](nvfp4|mxfp4|mxfp8|fp4|fp8|int4|int8|bf16|awq|gptq|v\d+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """What is known of a checkpoint.

    ``problems`` keep it from being whole; ``doubts`` do not, and are worth a look. ``identity`` compares the weights
    with the precision asked for, and ``identity_reason`` says why it is not a match. ``bytes`` counts the shards.
    """

    path: Path
    whole: bool
    identity: Identity
    identity_reason: str | None
    quantisation: str
    bytes: int
    shards: int
    problems: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    rehearsal: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For records and summaries."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def examine(path: Path, *, precision: str | None, unfinished: bool = False) -> Verdict:
    """Look at a checkpoint directory: one listing, a small read for each shard, a stat for each file of a manifest.

    ``precision`` is what the benchmark declares (``fp4 fp8 bf16 int4``). ``unfinished``: it is being staged by the
    caller, and may look so. Never raises for what lies there.
    """
    try:
        names = frozenset(entry.name for entry in path.iterdir())
    except OSError as error:
        reason = "no such directory" if isinstance(error, FileNotFoundError) else str(error.strerror).lower()
        return Verdict(path, False, "unknown", reason, "not known", 0, 0, (reason,))
    problems: list[str] = []
    doubts: list[str] = []
    if not unfinished:
        _check_manifest(path, names, problems, doubts)
    config = _mapping(path / "config.json", problems) if "config.json" in names else None
    if "config.json" not in names:
        hub = "; this is a cache entry, the checkpoint is below snapshots/" if "snapshots" in names else ""
        problems.append(f"config.json is missing{hub}")
    _check_tokenizer(path, names, problems)
    doubts += [f"{name} is left over from a copy" for name in sorted(_leftovers(path, names))]
    headers = _check_shards(path, names, problems, doubts)
    by_dtype: Counter[str] = Counter()
    for header in headers.values():
        by_dtype.update(header.bytes_by_dtype)
    beside = _mapping(path / "hf_quant_config.json", problems) if "hf_quant_config.json" in names else None
    found = declared(config or {}, beside)
    same, why = identity(precision, found, by_dtype)
    return Verdict(
        path=path,
        whole=not problems,
        identity=same,
        identity_reason=why,
        quantisation=found.text,
        bytes=sum(header.size for header in headers.values()),
        shards=len(headers),
        problems=tuple(problems),
        doubts=tuple(doubts),
        rehearsal=bool(config and config.get(REHEARSAL_KEY)),
    )


def require(verdict: Verdict, *, rehearsal: bool = False, precision: str | None = None) -> Verdict:
    """Give the verdict back when the checkpoint may be served; raise ModelError when it may not.

    Refused are checkpoints that are not whole, those that are certainly another one, and, unless ``rehearsal``, those
    made for rehearsals. An unknown identity passes and stays in the verdict as unknown: say it where it is shown. With
    ``precision`` the hint names a sibling only if that is whole and of this precision.
    """
    where = str(verdict.path)
    if not verdict.whole:
        shown = [
            *verdict.problems[:10],
            *([f"and {len(verdict.problems) - 10} more"] if len(verdict.problems) > 10 else []),
        ]
        near = right_sibling(verdict.path, precision)
        hint = (
            f"there is {near}: is that the one?" if near else "stage it again, or correct the path in the runner file"
        )
        raise ModelError("the checkpoint is not whole: " + "; ".join(shown), where=where, hint=hint)
    if verdict.identity == "mismatch":
        near = right_sibling(verdict.path, precision)
        raise ModelError(
            f"this is another checkpoint than the one declared: {verdict.identity_reason}",
            where=where,
            hint=f"there is {near}: is that the one?"
            if near
            else "correct the model's rule in the runner file, or the precision in the matrix",
        )
    if verdict.rehearsal and not rehearsal:
        raise ModelError("this checkpoint was made for rehearsals and holds no weights", where=where)
    return verdict


def nearest_sibling(path: Path) -> Path | None:
    """For a directory that is missing: the one beside it whose name differs only in case, or else only in its
    precision or version suffix (``-NVFP4``, ``-FP8``, ``-V2``). None when the directory is there, or nothing is near.

    A suffix names another checkpoint: this is a suggestion for a person, never a path to take.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(path.parent) if entry.is_dir())
    except OSError:
        return None
    if path.name in names:
        return None
    for plain in (str.casefold, _stem):
        if near := [name for name in names if plain(name) == plain(path.name)]:
            return path.with_name(near[0])
    return None


def right_sibling(path: Path, precision: str | None) -> Path | None:
    """The checkpoint beside a wrong one that would be right: of a name that differs in case or suffix only, whole, and
    by its own files of the ``precision`` asked for. Like `nearest_sibling` a suggestion."""
    try:
        entries = [entry.name for entry in os.scandir(path.parent) if entry.is_dir() and entry.name != path.name]
    except OSError:
        return None
    near = [name for name in entries if _stem(name) == _stem(path.name)]
    for name in sorted(near, key=lambda name: (name.casefold() != path.name.casefold(), name)):
        verdict = examine(path.with_name(name), precision=precision)
        if verdict.whole and verdict.identity != "mismatch":
            return verdict.path
    return None


def _stem(name: str) -> str:
    while found := _SUFFIX.search(name):
        name = name[: found.start()]
    return name.casefold()


def _check_manifest(path: Path, names: frozenset[str], problems: list[str], doubts: list[str]) -> None:
    """Compare with `.complete.json` by names and sizes; a directory whose staging never ended is no checkpoint."""
    if STAGING_NAME.fullmatch(path.name) or (WORK in names and NAME not in names):
        problems.append("half staged: its staging has not ended, or was killed")
        return
    try:
        manifest = Manifest.read(path)
    except ModelError as error:
        problems.append(f"{NAME}: {error.message}")
        return
    if manifest is not None:
        problems += manifest.differences(path)
        doubts += [f"{name} came after the checkpoint was staged" for name in manifest.extra(path)]


def _mapping(path: Path, problems: list[str]) -> Mapping[str, Any] | None:
    """A JSON object, or None after noting what is wrong with the file."""
    try:
        descriptor, _ = open_regular(path)
        with os.fdopen(descriptor, "rb") as file:
            return msgspec.json.decode(file.read(), type=dict[str, Any])
    except DamagedFile as damage:
        problems.append(f"{path.name} is {damage}")
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problems.append(f"{path.name} cannot be parsed: {error}")
    return None


def _check_tokenizer(path: Path, names: frozenset[str], problems: list[str]) -> None:
    found = [name for name in _TOKENIZERS if name in names] + [name for name in names if name.endswith(".tiktoken")]
    if found == ["vocab.json"] and "merges.txt" not in names:
        problems.append("merges.txt is missing beside vocab.json")
    if not found:
        problems.append("no tokenizer (tokenizer.json, tokenizer.model, vocab.json with merges.txt)")
    for name in found:
        if name.endswith(".json"):
            _mapping(path / name, problems)
            continue
        try:
            os.close(open_regular(path / name)[0])
        except DamagedFile as damage:
            problems.append(f"{name} is {damage}")


def _leftovers(path: Path, names: frozenset[str]) -> list[str]:
    """Names that downloads and copies leave: huggingface_hub's ``*.incomplete``, our own and rsync's temporaries."""
    below = [str(file.relative_to(path)) for file in (path / ".cache" / "huggingface").glob("**/*.incomplete")]
    return below + [name for name in names if _LEFTOVER.search(name)]


def _check_shards(path: Path, names: frozenset[str], problems: list[str], doubts: list[str]) -> dict[str, Header]:
    """Read every shard's header; note what is missing or damaged. Returns the headers of those that are sound."""
    present = {name for name in names if name.endswith(".safetensors")}
    wanted: dict[str, set[str]] = {}
    totals: list[Any] = []
    indexed = False
    for index in sorted(name for name in names if name.endswith(".safetensors.index.json")):
        indexed = True
        if (said := _mapping(path / index, problems)) is None:
            continue
        weights, metadata = said.get("weight_map"), said.get("metadata")
        if not isinstance(weights, dict) or not weights:
            problems.append(f"{index} holds no weight_map")
            continue
        for tensor, shard in weights.items():
            wanted.setdefault(str(shard), set()).add(tensor)
        totals.append(metadata.get("total_size") if isinstance(metadata, dict) else None)
    if not indexed:
        _check_unindexed(names, present, problems)
    if wanted and not wanted.keys() & present:
        problems.append(f"a stub: the index names {len(wanted)} shards and none of them is here")
    else:
        problems += [f"{shard} is missing" for shard in sorted(wanted.keys() - present)]
    headers: dict[str, Header] = {}
    for shard in sorted(present):
        try:
            headers[shard] = read_header(path / shard)
        except DamagedFile as damage:
            problems.append(f"{shard} is {damage}")
            continue
        if absent := wanted.get(shard, set()) - headers[shard].tensors:
            problems.append(f"{shard} lacks {len(absent)} tensors that the index places there, as {min(absent)}")
        if wanted and shard not in wanted:
            doubts.append(f"{shard} is not in the index; engines that load every shard will read it")
    if wanted and wanted.keys() <= headers.keys():
        doubts += _total_doubts(totals, [headers[name] for name in wanted])
    return headers


def _check_unindexed(names: frozenset[str], present: set[str], problems: list[str]) -> None:
    if not present:
        other = sorted(name for name in names if name.endswith((".bin", ".gguf", ".pt", ".pth")))
        problems.append(
            f"no safetensors weights, only {other[0]} and the like" if other else "a stub: metadata without any weights"
        )
    numbered = [found for name in sorted(present) if (found := _NUMBERED.fullmatch(name))]
    total = int(numbered[0][3]) if numbered else len(present)
    if max(total, len(present)) > 1:
        problems.append(f"{len(present)} shards without model.safetensors.index.json")
    if len(numbered) < total and numbered:
        problems.append(f"{len(numbered)} of {total} shards are here")


def _total_doubts(totals: list[Any], headers: list[Header]) -> list[str]:
    """Whether the index's ``total_size`` agrees, which is said and never decisive: publishers do not agree on it.

    transformers counts the tensors' bytes, nvidia/DeepSeek-R1-NVFP4 (its generate_metadata.py) whole files.
    """
    tensors = sum(sum(header.bytes_by_dtype.values()) for header in headers)
    files = sum(header.size for header in headers)
    stated = [total for total in totals if isinstance(total, int | float)]
    if not stated or len(stated) < len(totals) or sum(stated) in (tensors, files):
        return []
    return [f"the index says {sum(stated):.0f} bytes in all, the shards hold {tensors}"]
