"""Is a checkpoint whole, and is it the one that was declared?

A directory at the right path proves nothing. Benchmarks have been run on stubs of metadata, downloads that stopped,
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
"""The key of config.json that marks a stand-in, made for rehearsals: its weights are not worth measuring."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "tekken.json", "vocab.json", "vocab.txt")
_LIKE_A_TOKENIZER = re.compile(r"tokeni[sz]|vocab|spiece|sentencepiece|bpe|\.spm$|\.model$", re.IGNORECASE)
_NO_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Tokenizers of transformers that read bytes or code points, and need no file."""

_SETTINGS = re.compile(
    r"(generation|tokenizer|preprocessor|processor|video_preprocessor|quantize|quant|adapter)_config\.json"
    r"|special_tokens_map\.json|added_tokens\.json|chat_template\.json|quant_cfg\.json"
)
"""Files of settings that engines parse where they are there."""

_READ = re.compile(r"(?!\.)[^/]+\.(json|model|txt|jinja|py|tiktoken|vocab|spm)")
"""Files at the top that engines read, or may read: none of them may be a pointer, an error page or a hole."""

_ERROR_KEYS = frozenset({"error", "errors", "detail", "message", "status", "statusCode", "code"})
"""Keys of what hubs and stores answer in the place of a file."""

_INDEX = "model.safetensors.index.json"
_LEFTOVER = re.compile(r"\.(incomplete|part|partial|tmp|aria2)$|^\..+\.[A-Za-z0-9]{6}$")
_NUMBERED = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")

_MOST_LINKS = 40
"""Links in a row that Linux follows."""


@dataclass(frozen=True)
class CheckpointReport:
    """What is known of a checkpoint.

    ``problems`` keep it from being whole; ``doubts`` do not, and are worth a look. ``identity`` compares the weights
    with the precision asked for, and architecture and sizes with every fingerprint that is at hand; ``identity_reason``
    says why it is not a match. ``known_by`` are the fingerprints that agree: without one, nobody knows which model it
    is. ``fingerprint`` is what the files say. ``bytes`` is the size of all shards together. ``rehearsal`` says that it
    is a stand-in, made for rehearsals (`REHEARSAL_KEY`).
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

    def compared(self, wanted: Fingerprint, source: str) -> CheckpointReport:
        """The report after a comparison with a fingerprint; ``source`` says where that stands."""
        if not wanted or not self.fingerprint:
            return self
        if said := contradictions(wanted, self.fingerprint, source):
            return dataclasses.replace(self, identity="mismatch", identity_reason="; ".join(said))
        return dataclasses.replace(self, known_by=(*self.known_by, source))

    def as_dict(self) -> dict[str, Any]:
        """For records and summaries."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def examine(
    path: Path, *, precision: str | None, unfinished: bool = False, mounted: tuple[str, ...] | None = None
) -> CheckpointReport:
    """Look at a checkpoint directory: one listing, a small read for each shard, a stat for each file of a manifest.

    ``precision`` is what the benchmark declares (``fp4 fp8 bf16 int4``). ``unfinished``: it is being staged by the
    caller, and may look so. ``mounted`` are the directories that the job sees under the same paths, none where it sees
    the checkpoint alone: links that lead elsewhere are problems then; with None they are followed. Never raises for
    what lies there.
    """
    try:
        names = frozenset(entry.name for entry in path.iterdir())
    except OSError as error:
        reason = "no such directory" if isinstance(error, FileNotFoundError) else why_unreadable(path, error)
        return CheckpointReport(path, False, "unknown", reason, "not known", 0, 0, (reason,))
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
    found = declared_quantisation(config, examination.beside())
    same, why = compare_precision(precision, found, by_dtype)
    report = CheckpointReport(
        path=path,
        whole=not examination.problems,
        identity=same,
        identity_reason=why,
        quantisation=found.text,
        bytes=sum(header.size for header in headers.values()),
        shards=len(headers),
        problems=tuple(examination.problems),
        doubts=tuple(examination.doubts),
        rehearsal=bool(config.get(REHEARSAL_KEY)),
        fingerprint=fingerprint_of(config, found, headers) if config else {},
    )
    learnt = examination.manifest
    if learnt is None or not learnt.fingerprint or not report.whole:
        return report
    return report.compared(learnt.fingerprint, f"what was verified at {learnt.created or 'its staging'}")


class _Examination:
    """What is found in one directory: ``problems`` and ``doubts``, in the order of the checks."""

    def __init__(self, path: Path, names: frozenset[str]) -> None:
        self.path, self.names = path, names
        self.problems: list[str] = []
        self.doubts: list[str] = []
        self.manifest: Manifest | None = None

    def check_manifest(self) -> None:
        """Compare with `.complete.json` by names and sizes; a directory whose staging never ended is no checkpoint."""
        if STAGING_NAME.fullmatch(self.path.name) or (WORK_DIRECTORY in self.names and MANIFEST_NAME not in self.names):
            self.problems.append("half staged: its staging has not ended, or was killed")
            return
        manifest = self.path / MANIFEST_NAME
        if MANIFEST_NAME in self.names and not os.access(manifest, os.R_OK):
            self.doubts.append(
                f"{MANIFEST_NAME} cannot be read, and nothing is compared with it: {owner_and_mode(manifest)}"
            )
            return
        with self.noting(MANIFEST_NAME):
            self.manifest = Manifest.read(self.path)
        if self.manifest is not None:
            self.problems += self.manifest.differences(self.path)
            self.doubts += [f"{name} came after the checkpoint was staged" for name in self.manifest.extra(self.path)]

    def read_config(self) -> Mapping[str, Any] | None:
        if "config.json" in self.names:
            return self.mapping("config.json")
        hub = "; this is a cache entry, the checkpoint is below snapshots/" if "snapshots" in self.names else ""
        self.problems.append(f"config.json is missing{hub}")
        return None

    def beside(self) -> Mapping[str, Any] | None:
        """modelopt's `hf_quant_config.json`; the layers of a mixed one may stand in `quant_cfg.json`."""
        if "hf_quant_config.json" not in self.names:
            return None
        found, said = self.mapping("hf_quant_config.json") or {}, "quant_cfg.json" in self.names
        layers = (self.mapping("quant_cfg.json") or {}).get("quantized_layers") if said else None
        quantisation = found.get("quantization")
        if isinstance(layers, dict) and isinstance(quantisation, dict) and "quantized_layers" not in quantisation:
            return {**found, "quantization": {**quantisation, "quantized_layers": layers}}
        return found

    def mapping(self, name: str) -> Mapping[str, Any] | None:
        """A JSON object as Python's json reads it (with NaN and Infinity, as its readers do), or None after noting what
        is wrong with the file."""
        with self.noting(name), open_regular(self.path / name) as (descriptor, size):
            raw = os.pread(descriptor, size, 0)
            found: Any = None
            try:
                found = msgspec.json.decode(raw, type=dict[str, Any])
            except msgspec.DecodeError:  # of what both refuse, msgspec says where
                with contextlib.suppress(ValueError):
                    found = json.loads(raw.decode())
                if not isinstance(found, dict):
                    raise
            if found and found.keys() <= _ERROR_KEYS:
                raise DamagedFile("a server's error, not the file itself")
            return dict(found)
        return None

    @contextlib.contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Note what is found wrong with a file within the block, and go on after it."""
        said = ""
        try:
            yield
        except DamagedFile as damage:
            said = f"{name} is {damage}"
        except ModelError as error:
            said = f"{name}: {error.message}"
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            said = f"{name} cannot be parsed: {error}"
        if said and said not in self.problems:  # of a file that several checks read it is said once
            self.problems.append(said)

    def check_tokenizer(self) -> None:
        found = [name for name in _TOKENIZERS if name in self.names]
        found += [name for name in self.names if name.endswith(".tiktoken")]
        if found == ["vocab.json"] and "merges.txt" not in self.names:
            self.problems.append("merges.txt is missing beside vocab.json")
        for name in found:
            if name.endswith(".json"):
                self.mapping(name)
        if found:
            return
        settings = self.mapping("tokenizer_config.json") or {} if "tokenizer_config.json" in self.names else {}
        other = sorted(n for n in self.names if _LIKE_A_TOKENIZER.search(n) and n != "tokenizer_config.json")
        if other:
            self.doubts.append(f"no tokenizer of a name that is known here; {other[0]} may be one")
        elif settings.get("tokenizer_class") not in _NO_VOCABULARY:
            self.problems.append("no tokenizer (tokenizer.json, tokenizer.model, vocab.json with merges.txt)")

    def check_files(self) -> None:
        """What engines read beside weights and config is itself, no pointer to it; and settings can be parsed."""
        for name in sorted(name for name in self.names if _READ.fullmatch(name)):
            if _SETTINGS.fullmatch(name):
                self.mapping(name)
            elif name not in ("config.json", _INDEX) and not self._may_be_empty(name):
                with self.noting(name), open_regular(self.path / name):
                    pass

    def _may_be_empty(self, name: str) -> bool:
        """Whether it is an empty file of a kind that may be one, as `__init__.py` is."""
        with contextlib.suppress(OSError):
            is_plain = name.endswith((".py", ".txt", ".jinja")) and name not in (*_TOKENIZERS, "merges.txt")
            return is_plain and (self.path / name).stat().st_size == 0
        return False

    def check_links(self, mounted: tuple[str, ...]) -> None:
        """Links must lead to where the job sees them too."""
        out = {name: to for name in sorted(self.names) if (to := _way_out(self.path, name, mounted))}
        for name in list(out)[:3]:
            self.problems.append(f"{name} is a link that leads out of what the job mounts: {out[name]}")
        if len(out) > 3:
            more = count_of(len(out) - 3, "more link leads", "more links lead")
            self.problems.append(f"{more} out of what the job mounts")

    def find_leftovers(self) -> None:
        """Note what downloads and copies leave: huggingface_hub's ``*.incomplete``, our and rsync's temporaries."""
        below = (self.path / ".cache" / "huggingface").glob("**/*.incomplete")
        left = [str(file.relative_to(self.path)) for file in below]
        left += [name for name in self.names if _LEFTOVER.search(name)]
        self.doubts += [f"{name} is left over from a copy" for name in sorted(left)]

    def check_shards(self) -> dict[str, Header]:
        """Read every shard's header, and note what is missing or damaged. The headers of the sound ones, by name."""
        present = {name for name in self.names if name.endswith(".safetensors")}
        wanted, totals = self._read_indexes(present)
        below = (name for name in wanted if "/" in name and not name.startswith(("../", "/")))
        present |= {name for name in below if (self.path / name).exists()}
        if wanted and not wanted.keys() & present:
            self.problems.append(f"a stub: the index names {count_of(len(wanted), 'shard')} and none of them is here")
        else:
            self.problems += [f"{shard} is missing" for shard in sorted(wanted.keys() - present)]
        headers: dict[str, Header] = {}
        for shard in sorted(present):
            with self.noting(shard):
                headers[shard] = read_header(self.path / shard)
                if absent := wanted.get(shard, set()) - headers[shard].tensors:
                    some = f"{count_of(len(absent), 'tensor')} that the index places there, as {min(absent)}"
                    self.problems.append(f"{shard} lacks {some}")
                elif shard in wanted and (more := headers[shard].tensors - wanted[shard]):
                    some = f"{count_of(len(more), 'tensor')} that the index does not name, as {min(more)}"
                    self.doubts.append(f"{shard} has {some}: transformers passes them over")
                if wanted and shard not in wanted:
                    self.doubts.append(f"{shard} is not in the index; engines that load every shard will read it")
        if wanted and wanted.keys() <= headers.keys():
            self._check_total(totals, [headers[name] for name in wanted])
        return headers

    def _read_indexes(self, present: set[str]) -> tuple[dict[str, set[str]], list[Any]]:
        """Which tensors the indexes place in which shard, and each index's ``total_size`` (None without one).

        Beside transformers' index another one is that of a second copy of the weights, which may be left out.
        """
        wanted: dict[str, set[str]] = {}
        totals: list[Any] = []
        indexes = sorted((name for name in self.names if name.endswith(".safetensors.index.json")), key=_INDEX.__ne__)
        for index in indexes:
            if (content := self.mapping(index)) is None:
                continue
            weights, metadata = content.get("weight_map"), content.get("metadata")
            if not isinstance(weights, dict) or not weights:
                self.problems.append(f"{index} holds no weight_map")
                continue
            placed: dict[str, set[str]] = {}
            for tensor, shard in weights.items():
                placed.setdefault(self._shard(index, str(shard)), set()).add(tensor)
            if index != indexes[0] and indexes[0] == _INDEX and (absent := placed.keys() - present):
                some = count_of(len(absent), "shard that is", "shards that are")
                self.doubts.append(f"{index} names {some} not here; {_INDEX} is what engines read")
                continue
            for name, tensors in placed.items():
                wanted.setdefault(name, set()).update(tensors)
            totals.append(metadata.get("total_size") if isinstance(metadata, dict) else None)
        if not indexes:
            self._check_unindexed(present)
        return wanted, totals

    def _shard(self, index: str, said: str) -> str:
        """The path of a shard below the checkpoint. transformers takes any; vLLM only names beside the index."""
        doubt = f"{index} names shards by paths: vLLM reads only those beside the index"
        if "/" in said and doubt not in self.doubts:
            self.doubts.append(doubt)
        name = posixpath.normpath(said)
        return said if name.startswith(("../", "/")) else name

    def _check_unindexed(self, present: set[str]) -> None:
        if not present:
            other = min((name for name in self.names if name.endswith((".bin", ".gguf", ".pt", ".pth"))), default=None)
            only = f"no safetensors weights, only {other} and the like"
            self.problems.append(only if other else "a stub: metadata without any weights")
        numbered = [found for name in sorted(present) if (found := _NUMBERED.fullmatch(name))]
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


def _way_out(directory: Path, name: str, mounted: tuple[str, ...]) -> str | None:
    """Where a file of a directory leads that a job would not find; None when all its links stay within.

    A relative link that stays below the directory is found under whatever name that is mounted; any other one only
    below ``mounted``, directories that the job sees under the same paths.
    """
    root, at = os.path.realpath(directory), name
    for _ in range(_MOST_LINKS):
        step = _first_link(root, at)
        if step is None:
            return None
        link, rest = step
        target = str(Path(root, link).readlink())
        within = posixpath.normpath(posixpath.join(posixpath.dirname(link), target, rest))
        if not posixpath.isabs(target) and not within.startswith(".."):
            at = within
            continue
        absolute = posixpath.normpath(posixpath.join(root, posixpath.dirname(link), target, rest))
        real = os.path.realpath(absolute)
        seen = any(all(Path(path).is_relative_to(tree) for path in (absolute, real, root)) for tree in mounted)
        return None if seen else target
    return None  # a circle, which whoever opens the file says


def _first_link(root: str, at: str) -> tuple[str, str] | None:
    """The first part of a path below ``root`` that is a link, and what follows it."""
    parts = at.split("/")
    for end in range(1, len(parts) + 1):
        part = "/".join(parts[:end])
        if Path(root, part).is_symlink():
            return part, "/".join(parts[end:])
    return None
