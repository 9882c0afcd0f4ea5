"""Is a checkpoint whole, and is it the one that was declared?

A directory at the right path proves nothing. Benchmarks have been run on stubs of metadata, interrupted downloads,
shards one byte short, and re-quantised copies under a similar name (docs/design.md, "What it is").
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from launcher.core.errors import ModelError
from launcher.core.lines import count_of
from launcher.core.rights import owner_and_mode
from launcher.model.fingerprint import Fingerprint, contradictions, fingerprint_of
from launcher.model.manifest import MANIFEST_NAME, STAGING_NAME, WORK_DIRECTORY, Manifest
from launcher.model.weights import (
    DamagedFile,
    Header,
    Identity,
    compare_precision,
    declared_quantisation,
    open_regular,
    read_header,
    why_unreadable,
)

REHEARSAL_KEY = "launcher_rehearsal"
"""The key of config.json that marks a stand-in for rehearsals: its weights are not worth measuring."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "tekken.json", "vocab.json", "vocab.txt")
_TOKENIZER_LIKE = re.compile(r"tokeni[sz]|vocab|spiece|sentencepiece|bpe|\.spm$|\.model$", re.IGNORECASE)
_NO_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Tokenizers of transformers that read bytes or code points, so they need no file."""

_SETTINGS = re.compile(
    r"(generation|tokenizer|preprocessor|processor|video_preprocessor|quantize|quant|adapter)_config\.json"
    r"|special_tokens_map\.json|added_tokens\.json|chat_template\.json|quant_cfg\.json"
)
"""Files of settings that engines parse if they exist."""

_READ_BY_ENGINES = re.compile(r"(?!\.)[^/]+\.(json|model|txt|jinja|py|tiktoken|vocab|spm)")
"""Files at the top that engines may read: none of them may be a pointer, an error page or a hole."""

_ERROR_KEYS = frozenset({"error", "errors", "detail", "message", "status", "statusCode", "code"})
"""Keys of the JSON errors that hubs and stores send in place of a file."""

_INDEX = "model.safetensors.index.json"
_LEFTOVER_NAME = re.compile(r"\.(incomplete|part|partial|tmp|aria2)$|^\..+\.[A-Za-z0-9]{6}$")
_NUMBERED_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")

_MAX_LINKS = 40
"""The most links in a row that Linux follows."""


@dataclass(frozen=True)
class CheckpointReport:
    """What is known of a checkpoint.

    With ``problems`` it is not whole; ``doubts`` do not count, but are worth a look. ``identity`` compares the weights
    with the requested precision, and architecture and sizes with every known fingerprint; ``identity_reason`` says why
    it is not a match. ``known_by`` are the fingerprints that agree: without one it is unknown which model this is.
    ``fingerprint`` is what the files state. ``bytes`` is the size of all shards together. ``rehearsal`` marks a
    stand-in for rehearsals (`REHEARSAL_KEY`).
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
    known_by: tuple[str, ...] = ()
    fingerprint: Fingerprint = dataclasses.field(default_factory=dict, compare=False)

    def compared_with(self, wanted: Fingerprint, source: str) -> CheckpointReport:
        """The report after a comparison with the fingerprint ``wanted``; ``source`` says where that comes from."""
        if not wanted or not self.fingerprint:
            return self
        if differences := contradictions(wanted, self.fingerprint, source):
            return dataclasses.replace(self, identity="mismatch", identity_reason="; ".join(differences))
        return dataclasses.replace(self, known_by=(*self.known_by, source))

    def as_dict(self) -> dict[str, Any]:
        """For records and summaries."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def examine(
    path: Path, *, precision: str | None, unfinished: bool = False, mounted: tuple[str, ...] | None = None
) -> CheckpointReport:
    """Examine a checkpoint directory: one listing, a small read for each shard, a stat for each file of a manifest.

    ``precision`` is what the benchmark declares (``fp4 fp8 bf16 int4``). ``unfinished``: the caller is still staging
    it. ``mounted`` are the directories that the job sees under the same paths, empty if it sees the checkpoint alone:
    links that lead elsewhere are problems then; with None they are followed. The content never makes it raise.
    """
    try:
        names = frozenset(entry.name for entry in path.iterdir())
    except OSError as error:
        problem = "no such directory" if isinstance(error, FileNotFoundError) else why_unreadable(path, error)
        return CheckpointReport(path, False, "unknown", problem, "not known", 0, 0, (problem,))
    examination = _Examination(path, names)
    if not unfinished:
        examination.check_manifest()
    config = examination.read_config() or {}
    examination.check_tokenizer()
    examination.check_files()
    examination.find_leftovers()
    headers = examination.check_shards()
    if mounted is not None:
        examination.check_links(mounted)
    by_dtype = sum((Counter(header.bytes_by_dtype) for header in headers.values()), Counter[str]())
    quantisation = declared_quantisation(config, examination.read_modelopt())
    identity, reason = compare_precision(precision, quantisation, by_dtype)
    report = CheckpointReport(
        path=path,
        whole=not examination.problems,
        identity=identity,
        identity_reason=reason,
        quantisation=quantisation.text,
        bytes=sum(header.size for header in headers.values()),
        shards=len(headers),
        problems=tuple(examination.problems),
        doubts=tuple(examination.doubts),
        rehearsal=bool(config.get(REHEARSAL_KEY)),
        fingerprint=fingerprint_of(config, quantisation, headers) if config else {},
    )
    manifest = examination.manifest
    if manifest is None or not manifest.fingerprint or not report.whole:
        return report
    return report.compared_with(manifest.fingerprint, f"what was verified at {manifest.created or 'its staging'}")


class _Examination:
    """The checks of one directory, and their results: ``problems`` and ``doubts``, in the order of the checks."""

    def __init__(self, path: Path, names: frozenset[str]) -> None:
        self.path, self.names = path, names
        self.problems: list[str] = []
        self.doubts: list[str] = []
        self.manifest: Manifest | None = None

    def check_manifest(self) -> None:
        """Compare with `.complete.json` by names and sizes; a half-staged directory is no checkpoint."""
        if STAGING_NAME.fullmatch(self.path.name) or (WORK_DIRECTORY in self.names and MANIFEST_NAME not in self.names):
            self.problems.append("half staged: its staging has not ended, or was killed")
            return
        manifest = self.path / MANIFEST_NAME
        if MANIFEST_NAME in self.names and not os.access(manifest, os.R_OK):
            self.doubts.append(
                f"{MANIFEST_NAME} cannot be read, and nothing is compared with it: {owner_and_mode(manifest)}"
            )
            return
        with self.collect_problems(MANIFEST_NAME):
            self.manifest = Manifest.read(self.path)
        if self.manifest is not None:
            self.problems += self.manifest.differences(self.path)
            self.doubts += [f"{name} came after the checkpoint was staged" for name in self.manifest.extra(self.path)]

    def read_config(self) -> Mapping[str, Any] | None:
        if "config.json" in self.names:
            return self.read_object("config.json")
        hub = "; this is a cache entry, the checkpoint is below snapshots/" if "snapshots" in self.names else ""
        self.problems.append(f"config.json is missing{hub}")
        return None

    def read_modelopt(self) -> Mapping[str, Any] | None:
        """modelopt's `hf_quant_config.json`; for mixed precision `quant_cfg.json` may list the layers."""
        if "hf_quant_config.json" not in self.names:
            return None
        config, has_layers = self.read_object("hf_quant_config.json") or {}, "quant_cfg.json" in self.names
        layers = (self.read_object("quant_cfg.json") or {}).get("quantized_layers") if has_layers else None
        quantisation = config.get("quantization")
        if isinstance(layers, dict) and isinstance(quantisation, dict) and "quantized_layers" not in quantisation:
            return {**config, "quantization": {**quantisation, "quantized_layers": layers}}
        return config

    def read_object(self, name: str) -> Mapping[str, Any] | None:
        """A JSON object as Python's json reads it (with NaN and Infinity, as engines do), or None after adding what is
        wrong with the file to the problems."""
        with self.collect_problems(name), open_regular(self.path / name) as (descriptor, size):
            raw = os.pread(descriptor, size, 0)
            content: Any = None
            try:
                content = msgspec.json.decode(raw, type=dict[str, Any])
            except msgspec.DecodeError:  # when both refuse it, this error is raised, since it has the position
                with contextlib.suppress(ValueError):
                    content = json.loads(raw.decode())
                if not isinstance(content, dict):
                    raise
            if content and content.keys() <= _ERROR_KEYS:
                raise DamagedFile("a server's error, not the file itself")
            return dict(content)
        return None

    @contextlib.contextmanager
    def collect_problems(self, name: str) -> Iterator[None]:
        """Turn an error about a file within the block into a problem."""
        problem = ""
        try:
            yield
        except DamagedFile as damage:
            problem = f"{name} is {damage}"
        except ModelError as error:
            problem = f"{name}: {error.message}"
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            problem = f"{name} cannot be parsed: {error}"
        if problem and problem not in self.problems:  # several checks may read the same file
            self.problems.append(problem)

    def check_tokenizer(self) -> None:
        tokenizers = [name for name in _TOKENIZERS if name in self.names]
        tokenizers += [name for name in self.names if name.endswith(".tiktoken")]
        if tokenizers == ["vocab.json"] and "merges.txt" not in self.names:
            self.problems.append("merges.txt is missing beside vocab.json")
        for name in tokenizers:
            if name.endswith(".json"):
                self.read_object(name)
        if tokenizers:
            return
        settings = self.read_object("tokenizer_config.json") or {} if "tokenizer_config.json" in self.names else {}
        other = sorted(n for n in self.names if _TOKENIZER_LIKE.search(n) and n != "tokenizer_config.json")
        if other:
            self.doubts.append(f"no tokenizer of a name that is known here; {other[0]} may be one")
        elif settings.get("tokenizer_class") not in _NO_VOCABULARY:
            self.problems.append("no tokenizer (tokenizer.json, tokenizer.model, vocab.json with merges.txt)")

    def check_files(self) -> None:
        """Check that files which engines read are no pointers to the real ones, and that settings can be parsed."""
        for name in sorted(name for name in self.names if _READ_BY_ENGINES.fullmatch(name)):
            if _SETTINGS.fullmatch(name):
                self.read_object(name)
            elif name not in ("config.json", _INDEX) and not self._is_allowed_empty(name):
                with self.collect_problems(name), open_regular(self.path / name):
                    pass

    def _is_allowed_empty(self, name: str) -> bool:
        """Whether it is empty and of a kind that may be empty, like `__init__.py`."""
        with contextlib.suppress(OSError):
            is_plain = name.endswith((".py", ".txt", ".jinja")) and name not in (*_TOKENIZERS, "merges.txt")
            return is_plain and (self.path / name).stat().st_size == 0
        return False

    def check_links(self, mounted: tuple[str, ...]) -> None:
        """Check that all links lead to places that the job sees."""
        links = {name: target for name in sorted(self.names) if (target := _link_leading_out(self.path, name, mounted))}
        for name in list(links)[:3]:
            self.problems.append(f"{name} is a link that leads out of what the job mounts: {links[name]}")
        if len(links) > 3:
            more = count_of(len(links) - 3, "more link leads", "more links lead")
            self.problems.append(f"{more} out of what the job mounts")

    def find_leftovers(self) -> None:
        """Add leftovers of downloads and copies to the doubts: ``*.incomplete`` of huggingface_hub, temporaries."""
        downloads = (self.path / ".cache" / "huggingface").glob("**/*.incomplete")
        leftovers = [str(file.relative_to(self.path)) for file in downloads]
        leftovers += [name for name in self.names if _LEFTOVER_NAME.search(name)]
        self.doubts += [f"{name} is left over from a copy" for name in sorted(leftovers)]

    def check_shards(self) -> dict[str, Header]:
        """Check that every shard is present and intact. Returns the headers of the intact ones, by name."""
        present = {name for name in self.names if name.endswith(".safetensors")}
        wanted, totals = self._read_indexes(present)
        nested = (name for name in wanted if "/" in name and not name.startswith(("../", "/")))
        present |= {name for name in nested if (self.path / name).exists()}
        if wanted and not wanted.keys() & present:
            self.problems.append(f"a stub: the index names {count_of(len(wanted), 'shard')} and none of them is here")
        else:
            self.problems += [f"{shard} is missing" for shard in sorted(wanted.keys() - present)]
        headers: dict[str, Header] = {}
        for shard in sorted(present):
            with self.collect_problems(shard):
                headers[shard] = read_header(self.path / shard)
                if missing := wanted.get(shard, set()) - headers[shard].tensors:
                    tensors = f"{count_of(len(missing), 'tensor')} that the index places there, as {min(missing)}"
                    self.problems.append(f"{shard} lacks {tensors}")
                elif shard in wanted and (extra := headers[shard].tensors - wanted[shard]):
                    tensors = f"{count_of(len(extra), 'tensor')} that the index does not name, as {min(extra)}"
                    self.doubts.append(f"{shard} has {tensors}: transformers passes them over")
                if wanted and shard not in wanted:
                    self.doubts.append(f"{shard} is not in the index; engines that load every shard will read it")
        if wanted and wanted.keys() <= headers.keys():
            self._check_total(totals, [headers[name] for name in wanted])
        return headers

    def _read_indexes(self, present: set[str]) -> tuple[dict[str, set[str]], list[Any]]:
        """Tensors by shard as the indexes place them, and each index's ``total_size`` (None without one).

        A further index beside that of transformers belongs to a second copy of the weights, which may be missing.
        """
        wanted: dict[str, set[str]] = {}
        totals: list[Any] = []
        indexes = sorted((name for name in self.names if name.endswith(".safetensors.index.json")), key=_INDEX.__ne__)
        for index in indexes:
            if (content := self.read_object(index)) is None:
                continue
            weights, metadata = content.get("weight_map"), content.get("metadata")
            if not isinstance(weights, dict) or not weights:
                self.problems.append(f"{index} holds no weight_map")
                continue
            placed: dict[str, set[str]] = {}
            for tensor, shard in weights.items():
                placed.setdefault(self._shard_path(index, str(shard)), set()).add(tensor)
            if index != indexes[0] and indexes[0] == _INDEX and (absent := placed.keys() - present):
                number = count_of(len(absent), "shard that is", "shards that are")
                self.doubts.append(f"{index} names {number} not here; {_INDEX} is what engines read")
                continue
            for name, tensors in placed.items():
                wanted.setdefault(name, set()).update(tensors)
            totals.append(metadata.get("total_size") if isinstance(metadata, dict) else None)
        if not indexes:
            self._check_unindexed(present)
        return wanted, totals

    def _shard_path(self, index: str, name: str) -> str:
        """The path of a shard below the checkpoint. transformers accepts any; vLLM only names beside the index."""
        doubt = f"{index} names shards by paths: vLLM reads only those beside the index"
        if "/" in name and doubt not in self.doubts:
            self.doubts.append(doubt)
        path = posixpath.normpath(name)
        return name if path.startswith(("../", "/")) else path

    def _check_unindexed(self, present: set[str]) -> None:
        if not present:
            other = min((name for name in self.names if name.endswith((".bin", ".gguf", ".pt", ".pth"))), default=None)
            only = f"no safetensors weights, only {other} and the like"
            self.problems.append(only if other else "a stub: metadata without any weights")
        numbered = [match for name in sorted(present) if (match := _NUMBERED_SHARD.fullmatch(name))]
        total = int(numbered[0][3]) if numbered else len(present)
        if max(total, len(present)) > 1:
            self.problems.append(f"{count_of(len(present), 'shard')} without model.safetensors.index.json")
        if 0 < len(numbered) < total:
            self.problems.append(f"{len(numbered)} of {total} shards are here")

    def _check_total(self, totals: list[Any], headers: list[Header]) -> None:
        """Doubt the index when its ``total_size`` agrees with no way of counting.

        It is never a problem, because publishers count differently: transformers counts the bytes of the tensors,
        nvidia/DeepSeek-R1-NVFP4 (its generate_metadata.py) those of whole files.
        """
        tensors = sum(sum(header.bytes_by_dtype.values()) for header in headers)
        files = sum(header.size for header in headers)
        stated = [total for total in totals if isinstance(total, int | float)]
        if stated and len(stated) == len(totals) and sum(stated) not in (tensors, files):
            self.doubts.append(f"the index says {sum(stated):.0f} bytes in all, the shards hold {tensors}")


def _link_leading_out(directory: Path, name: str, mounted: tuple[str, ...]) -> str | None:
    """The target of a link that the job cannot follow; None when all links on the way to the file stay within.

    A relative link that stays below the directory works wherever that is mounted; any other link works only below
    ``mounted``, the directories that the job sees under the same paths.
    """
    root, path = os.path.realpath(directory), name
    for _ in range(_MAX_LINKS):
        link_and_rest = _first_link(root, path)
        if link_and_rest is None:
            return None
        link, rest = link_and_rest
        target = str(Path(root, link).readlink())
        within = posixpath.normpath(posixpath.join(posixpath.dirname(link), target, rest))
        if not posixpath.isabs(target) and not within.startswith(".."):
            path = within
            continue
        absolute = posixpath.normpath(posixpath.join(root, posixpath.dirname(link), target, rest))
        real = os.path.realpath(absolute)
        ends = (absolute, real, root)
        is_mounted = any(all(Path(end).is_relative_to(mount) for end in ends) for mount in mounted)
        return None if is_mounted else target
    return None  # a circle: opening the file fails, which another check reports


def _first_link(root: str, path: str) -> tuple[str, str] | None:
    """The first part of a path below ``root`` that is a link, and what follows it."""
    parts = path.split("/")
    for end in range(1, len(parts) + 1):
        part = "/".join(parts[:end])
        if Path(root, part).is_symlink():
            return part, "/".join(parts[end:])
    return None
