"""What the files of a checkpoint state about its weights: whether they are complete, and their number formats.

The header of a safetensors file shows whether the file is whole. The format (huggingface/safetensors, README): eight
bytes, little-endian, the length N of the header; N bytes of JSON, ``{name: {"dtype", "shape", "data_offsets": [begin,
end]}, "__metadata__": {…}}``; then the data, to the end of the file.

Formats are named ``nvfp4 mxfp4 fp4 mxfp8 fp8 int4 int8 bf16 fp16 fp32``. Where each producer declares them:

==================  =======================================================================================
modelopt            ``quant_algo`` (NVFP4, MXFP8, FP8, W4A16_AWQ, MIXED_PRECISION with ``quantized_layers``), in
                    `config.json` or only in `hf_quant_config.json` (nvidia/DeepSeek-R1-NVFP4)
MiniMax             ``quant_method: mxfp8`` (MiniMaxAI/MiniMax-M3-MXFP8), ``moe_quant_algo`` for the experts
OpenAI              ``quant_method: mxfp4`` (gpt-oss)
DeepSeek            ``quant_method: fp8``; V4 adds ``expert_dtype: fp4 | fp8`` at the top level: one directory holds
                    fp8 linears and fp4 experts, and the matrices call that fp4
compressed-tensors  ``config_groups.*.weights`` with ``num_bits`` and ``type`` (Kimi-K2: int 4; Kimi-K3: float 4,
                    ``mxfp4-pack-quantized``), under ``text_config`` in multimodal models
AMD quark           ``global_quant_config.weight.dtype`` (fp4 is MXFP4)
Intel auto-round    ``bits`` of ``data_type`` (int, fp, mx_fp, nv_fp), layers of their own in ``extra_config``
SGLang              ``quant_method: w4afp8``: int4 weights, fp8 activations
torchao, fp_quant   ``quant_type`` (Int4WeightOnlyConfig, …), ``forward_dtype`` (nvfp4, mxfp4)
==================  =======================================================================================
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from launcher.core.lines import count_of
from launcher.core.reading import prepare_type
from launcher.core.rights import describe_os_error

HEADER_LIMIT = 100_000_000
"""Longest header that the reference reader accepts, in bytes."""

LFS_POINTER = b"version https://git-lfs"
"""The beginning of the file that `git clone` without git-lfs makes in place of the real one."""

_PLACEHOLDERS = (
    (LFS_POINTER, "a Git-LFS pointer, not the file itself"),
    (b"version https://hawser.github.com/", "a Git-LFS pointer, not the file itself"),
    (b"version http://git-media.io/", "a Git-LFS pointer, not the file itself"),
    (b"/annex/objects/", "a git-annex pointer, not the file itself"),
    (b"# xet version", "a Xet pointer, not the file itself"),
    (b"<!doctype html", "an HTML page, not the file itself"),
    (b"<html", "an HTML page, not the file itself"),
    (b"<?xml", "an XML page (an error of the server?), not the file itself"),
)
"""How files begin that stand in the place of the real one (without leading spaces, in lower case)."""

_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Bits of an element (huggingface/safetensors, tensor.rs). Sizes of other dtypes are not checked."""

_MAX_EXTENTS = 1000

_SAMPLE_FROM, _SAMPLES, _SAMPLE_SIZE = 16 << 20, 8, 4096
"""From this many bytes of weights on, samples are read: their number, and the bytes of each. Holes read as zeros where
a file system does not report them, and in a copy."""


class DamagedFile(Exception):
    """A file is not what its name promises. The message gives the reason in a few words, which follow "is"."""


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class Header:
    """The size of a safetensors file in bytes, the names of its tensors, and their bytes by dtype.

    ``layout`` is a hash of the tensors' names, dtypes and shapes.
    """

    size: int
    tensors: frozenset[str]
    bytes_by_dtype: Mapping[str, int]
    layout: str = ""


def wrong_size(size: int, expected: int) -> str:
    """By how much a file of ``size`` bytes is too short or too long."""
    by = abs(size - expected)
    return f"{count_of(by, 'byte')} too {'short' if size < expected else 'long'}"


def why_unreadable(path: Path, error: OSError) -> str:
    """Why a path could not be opened, in a few words that follow "is"; for a refused one also its owner."""
    broken = isinstance(error, FileNotFoundError) and path.is_symlink()
    reason = describe_os_error(error, path)
    return "a link to nothing" if broken else reason[:1].lower() + reason[1:]


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[int, int]]:
    """Within the block: the descriptor and the size in bytes of a file that has content and is no placeholder.

    Raises DamagedFile for any other file, and when it cannot be read within the block.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise DamagedFile(why_unreadable(path, error)) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DamagedFile("not a regular file")
        if status.st_size == 0:
            raise DamagedFile("empty")
        head = os.pread(descriptor, 64, 0).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
        if placeholder := next((description for prefix, description in _PLACEHOLDERS if head.startswith(prefix)), None):
            raise DamagedFile(placeholder)
        if written_bytes(descriptor, 0, status.st_size) == 0:
            raise DamagedFile(f"one hole: none of its {status.st_size} bytes was ever written")
        yield descriptor, status.st_size
    except OSError as error:
        raise DamagedFile(str(error.strerror).lower()) from None
    finally:
        os.close(descriptor)


def read_header(path: Path) -> Header:
    """Read and check a file's header.

    Raises DamagedFile when the file is truncated, longer than its header says, or another kind of file.
    """
    with open_regular(path) as (descriptor, size):
        length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        if size < 8 or length > HEADER_LIMIT:
            raise DamagedFile("not a safetensors file")
        if 8 + length > size:
            raise DamagedFile(f"truncated within its header ({size} bytes)")
        raw = os.pread(descriptor, length, 8)
        stored, data = written_bytes(descriptor, 8 + length, size), size - 8 - length
        if stored < data / 2:  # a sparse copy leaves out zeros, but weights have few
            raise DamagedFile(f"hollow: of {data} bytes of weights {data - stored} were never written")
        if data > _SAMPLE_FROM:
            places = (8 + length + data * i // _SAMPLES for i in range(_SAMPLES))
            if not any(any(os.pread(descriptor, _SAMPLE_SIZE, place)) for place in places):
                raise DamagedFile(f"hollow: zeros at all of {_SAMPLES} places of its {data} bytes of weights")
    return parse_header(raw, size)


def parse_header(raw: bytes, size: int | None = None) -> Header:
    """Parse a header's JSON; ``size`` is the size of the file, None if it was checked before. Raises DamagedFile."""
    try:
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(entry, type=prepare_type(_Tensor)) for name, entry in entries.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DamagedFile("not a safetensors file: its header is not the JSON it should be") from None
    expected = 8 + len(raw) + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if size is not None and size != expected:
        raise DamagedFile(f"{wrong_size(size, expected)} ({size} bytes)")
    by_dtype: Counter[str] = Counter()
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, count = tensor.data_offsets[0], tensor.data_offsets[1] - tensor.data_offsets[0]
        bits = math.prod(tensor.shape) * _BITS.get(tensor.dtype, 0)
        if (
            begin != end
            or count < 0
            or min(tensor.shape, default=0) < 0
            or (tensor.dtype in _BITS and bits != count * 8)
        ):  # readers of the format refuse it
            raise DamagedFile(f"not a safetensors file: {name} does not lie where, or is not as long as, it has to be")
        end = tensor.data_offsets[1]
        by_dtype[tensor.dtype] += count
    layout = hashlib.sha256(b"\n".join(sorted(f"{n} {t.dtype} {t.shape}".encode() for n, t in tensors.items())))
    return Header(expected, frozenset(tensors), by_dtype, layout.hexdigest())


def written_bytes(descriptor: int, begin: int, end: int) -> int:
    """The number of bytes in a range of a file that are no holes; all of them if the file system does not tell."""
    total, at = 0, begin
    try:
        for _ in range(_MAX_EXTENTS):
            if at >= end:
                return total
            data = os.lseek(descriptor, at, os.SEEK_DATA)
            at = os.lseek(descriptor, data, os.SEEK_HOLE)
            total += max(0, min(at, end) - min(data, end))
    except OSError as error:
        return total if error.errno == errno.ENXIO else end - begin
    return total + max(0, end - at)


Identity = Literal["match", "mismatch", "unknown"]

_ACCEPTED_FORMATS: dict[str, frozenset[str]] = {
    "fp4": frozenset({"fp4", "nvfp4", "mxfp4"}),
    "fp8": frozenset({"fp8", "mxfp8"}),
    **{name: frozenset({name}) for name in ("nvfp4", "mxfp4", "mxfp8", "int4", "int8", "bf16", "fp16", "fp32")},
}
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
_TEXT_MODELS = ("text_config", "llm_config", "language_config")
_UNQUANTISED = frozenset({"bf16", "fp16", "fp32"})
_FLOATS = frozenset({"BF16", "F16", "F32", "F64"})


@dataclass(frozen=True)
class Quantisation:
    """The ``formats`` of the weights (empty: not known), and the same as ``text`` for people.

    ``experts`` is the format of the routed experts, if it differs from the others.
    """

    formats: frozenset[str]
    text: str
    experts: str | None = None


def declared_quantisation(config: Mapping[str, Any], hf_quant_config: Mapping[str, Any] | None = None) -> Quantisation:
    """What `config.json` declares about the weights, and modelopt's `hf_quant_config.json` if there is one."""
    models = text_models(config)
    keys = ("quantization_config", "compression_config")
    quantisation = next((quant for key in keys for model in models if isinstance(quant := model.get(key), dict)), None)
    beside = hf_quant_config.get("quantization") if hf_quant_config else None
    if not quantisation and isinstance(beside, dict):
        quantisation = beside
    if not quantisation:
        name = next((str(value) for model in models if (value := model.get("torch_dtype") or model.get("dtype"))), None)
        dtype = _DTYPES.get((name or "").removeprefix("torch."))
        return Quantisation(frozenset({dtype}) if dtype else frozenset(), f"not quantised, {name or 'no dtype said'}")
    method, formats = _method_and_formats(quantisation)
    if isinstance(beside, dict) and formats and (other := _method_and_formats(beside)[1]) and not formats & other:
        both = f"config.json says {'/'.join(formats)}, hf_quant_config.json {'/'.join(other)}"
        return Quantisation(frozenset(), both)
    experts = _format_of_experts(quantisation, models)
    if not experts and str(config.get("model_type", "")).startswith("deepseek_v4") and "fp8" in formats:
        return Quantisation(frozenset(), "fp8, expert_dtype not said (an engine would take it for fp4)")
    text = " + ".join(sorted(formats)) or "of a kind not known here"
    text += "" if method in formats else f" by {method}"
    if not experts:
        return Quantisation(formats, text)
    return Quantisation(formats | {experts}, f"{text}, experts {experts}", experts)


def text_models(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A config, and within that of a multimodal model those of its text models."""
    return [config, *(part for key in _TEXT_MODELS if isinstance(part := config.get(key), dict))]


def compare_precision(
    precision: str | None, quantisation: Quantisation, bytes_by_dtype: Mapping[str, int]
) -> tuple[Identity, str | None]:
    """Whether the weights have the requested ``precision`` (``fp4 fp8 bf16 int4``, or the name of a format).

    Returns the identity and, unless it is a match, the reason. If a checkpoint has several formats, that of the experts
    decides, or else the narrowest; if only another one of them has the precision, the identity is unknown.
    ``bytes_by_dtype`` comes from the shards' headers (empty: not known) and overrules a contradicting declaration.
    """
    accepted = _ACCEPTED_FORMATS.get((precision or "").lower())
    if accepted is None:
        return "unknown", f"precision {precision!r} is not known here" if precision else "no precision was asked for"
    if not quantisation.formats:
        return "unknown", f"config.json does not tell ({quantisation.text})"
    stored = sum(bytes_by_dtype.values())
    packed = stored - sum(count for dtype, count in bytes_by_dtype.items() if dtype in _FLOATS)
    declaration = f"config.json says {quantisation.text}"
    if stored and not packed and not quantisation.formats & _UNQUANTISED:
        return "mismatch", f"{declaration}, yet every tensor is stored as {'/'.join(bytes_by_dtype)}"
    if packed > stored / 2 and quantisation.formats <= _UNQUANTISED:
        return "unknown", f"{declaration}, yet most of the weights are stored in another way"
    decisive = quantisation.experts or min(quantisation.formats, key=lambda name: (_bits(name), name))
    if decisive in accepted:
        return "match", None
    if quantisation.formats & accepted:
        return "unknown", f"{precision} was asked for, and only a part of the weights is ({quantisation.text})"
    return "mismatch", f"{precision} was asked for, and the weights are {quantisation.text}"


def _method_and_formats(quant: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    method = str(quant.get("quant_method") or "modelopt").lower()
    return method, frozenset(name for name in _formats(method, quant) if name)


def _bits(name: str) -> int:
    return int(re.sub(r"\D", "", name))


def _formats(method: str, quant: Mapping[str, Any]) -> Iterator[str | None]:
    algorithm, groups = quant.get("quant_algo"), quant.get("config_groups")
    is_mixed = isinstance(algorithm, str) and algorithm.upper() == "MIXED_PRECISION"
    if isinstance(algorithm, str) and algorithm and not (is_mixed and isinstance(groups, dict)):
        layers = quant.get("quantized_layers") if is_mixed else None
        for layer in layers.values() if isinstance(layers, dict) else [quant]:
            yield _format_named_in(layer.get("quant_algo")) if isinstance(layer, dict) else None
    elif method == "quark":
        layered = quant.get("layer_quant_config")
        for part in (quant.get("global_quant_config"), *(layered.values() if isinstance(layered, dict) else ())):
            weights = part.get("weight") if isinstance(part, dict) else None
            for weight in weights if isinstance(weights, list) else [weights]:
                dtype = weight.get("dtype") if isinstance(weight, dict) else None
                yield "mxfp4" if dtype == "fp4" else _format_named_in(dtype)
    elif isinstance(groups, dict):
        for group in groups.values():
            yield _format_of_group(group, quant.get("format"))
    elif (bits := quant.get("bits") or quant.get("w_bit")) in _WIDTHS:
        yield _format_of_bits(bits, quant.get("data_type") or ("fp" if method == "deepspeedfp" else "int"))
        extra = quant.get("extra_config")
        for layer in extra.values() if isinstance(extra, dict) else ():
            if isinstance(layer, dict) and (own := layer.get("bits", bits)) in _WIDTHS:
                yield _format_of_bits(own, layer.get("data_type") or quant.get("data_type") or "int")
    else:
        stated = quant.get("forward_dtype") if method == "fp_quant" else quant.get("quant_type")
        yield _format_named_in(method) or (_format_named_in(stated) if method in ("fp_quant", "torchao") else None)


_WIDTHS = (2, 3, 4, 5, 6, 8)
_NUMBER_KINDS = {"int": "int", "fp": "fp", "float": "fp", "mxfp": "mxfp", "nvfp": "nvfp"}


def _format_of_bits(bits: int, data_type: Any) -> str | None:
    """The format of a width and auto-round's ``data_type`` (``mx_fp``, ``nv_fp4``, ``mx_fp_rceil``, ``int_asym``)."""
    kind = re.match(r"(mx|nv)?_?(fp|float|int)", str(data_type).lower())
    base = _NUMBER_KINDS.get("".join(part or "" for part in kind.groups())) if kind else None
    return f"{base}{bits}" if base else None


def _format_named_in(text: Any) -> str | None:
    """The format that a modelopt algorithm, a quant_method or a dtype names; None when it names none.

    W4A8 and the like name weights and activations: the weights count.
    """
    upper = str(text).upper().replace("FLOAT", "FP")
    if match := re.search(r"(NVFP|MXFP|MXINT)_?(\d+)", upper):
        return f"{match[1]}{match[2]}".lower()
    if match := re.search(r"\bW(\d)A(?=\d|FP|INT)", upper):
        return f"fp{match[1]}" if re.search(rf"FP{match[1]}(?!\d)", upper) else f"int{match[1]}"
    match = re.search(r"(INT|(?<!B)FP)_?(4|6|8)(?!\d)", upper)
    return f"{match[1]}{match[2]}".lower() if match else None


def _format_of_group(group: Any, overall: Any) -> str | None:
    weights = group.get("weights") if isinstance(group, dict) else None
    bits, kind = (weights.get("num_bits"), weights.get("type")) if isinstance(weights, dict) else (None, None)
    if bits not in (4, 8) or kind not in ("int", "float"):
        return None
    name = _format_named_in(group.get("format") or overall)
    return name if kind == "float" and name and _bits(name) == bits else f"{'int' if kind == 'int' else 'fp'}{bits}"


def _format_of_experts(quant: Mapping[str, Any], models: list[Mapping[str, Any]]) -> str | None:
    for key, names in (("moe_quant_algo", {}), ("expert_dtype", {"fp4": "mxfp4", **_DTYPES})):
        for section in (quant, *models):
            if isinstance(stated := section.get(key), str):
                return names.get(stated) or _format_named_in(stated)
    return None
