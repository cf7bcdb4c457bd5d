"""Reads and writes safetensors files: strict checks first, then plain reads into float32 arrays.

Format: 8-byte little-endian header length N, N bytes of JSON, then the data. The JSON maps each
name to {dtype, shape, data_offsets}; `__metadata__` maps strings to strings. Reading trusts
nothing: offsets must tile the data exactly, sizes must agree, and the file is read (not mapped), so
a file cut short meanwhile is an exception and not a crash of the process.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from boot.errors import FormatError, as_ndarray, check_path, listed, plain, shown
from boot.files import write_atomically
from boot.reading import (
    JSON_MAX_BYTES,
    check_inside,
    impostor,
    open_regular,
    parse_json,
    read_json_object,
)

NAME_MAX_BYTES = 512
MAX_TENSORS = 20_000
MAX_DIMS = 8
_COUNT_MAX = 2**63 - 1

# dtype name -> bits per element, as the reference reader knows them.
_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
# The float types boot reads, with the NumPy type of their stored bytes (BF16 has none: its bits are
# the upper half of a float32).
READABLE = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
_WRITABLE = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: dtype name, shape, and its bytes [begin, end) counted in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    file: Path


@dataclass(frozen=True)
class Header:
    """A checked safetensors header: tensors by name (in file order of their data) and metadata."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


# -------------------------------------------------------------------------------------- reading


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a safetensors file.

    Raises FileNotFoundError, IsADirectoryError, PermissionError, or FormatError that says what is
    wrong and, for a Git LFS pointer, a web page or a pickle, what the file really is.
    """
    where = check_path("path", path)
    with open_regular(where) as file:
        return _read_header(file, where)


def _read_header(file: io.BufferedReader, path: Path) -> Header:
    size = os.fstat(file.fileno()).st_size
    head = file.read(64)
    if size < 10 or len(head) < 9:
        raise FormatError(f"{path} is not a safetensors file: {size} bytes, at least 10 are needed")
    length = struct.unpack("<Q", head[:8])[0]
    limit = min(JSON_MAX_BYTES, size - 8)
    if length > limit or head[8:9] != b"{":
        kind = impostor(head)
        if kind:
            raise FormatError(f"{path} is {kind}")
        if length > size - 8:
            raise FormatError(
                f"{path}: the header claims {length} bytes, at most {limit} are possible in a file "
                f"of {size}: the download is cut short, or this is not a safetensors file"
            )
        if length > limit:
            raise FormatError(f"{path}: a header of {length} bytes, at most {limit} are allowed")
        raise FormatError(f"{path}: the header must start with '{{', got {head[8:9]!r}")
    file.seek(8)
    text = file.read(length)
    if len(text) != length:
        raise FormatError(f"{path} was cut short while it was read")
    entries = parse_json(text, f"{path} (header)")
    if not isinstance(entries, dict):
        raise FormatError(f"{path}: the header must be a JSON object")
    metadata = _check_metadata(entries.pop("__metadata__", {}), path)
    if len(entries) > MAX_TENSORS:
        raise FormatError(f"{path}: {len(entries)} tensors, at most {MAX_TENSORS} are allowed")
    infos = [_check_entry(name, entry, 8 + length, path) for name, entry in entries.items()]
    return Header(_check_tiling(infos, 8 + length, size, path), metadata)


def _check_metadata(metadata: Any, path: Path) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise FormatError(f"{path}: __metadata__ must be an object, got {shown(metadata)}")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise FormatError(
                f"{path}: __metadata__[{shown(key)}] must be text, got {shown(value)}"
            )
    return metadata


def _check_entry(name: str, entry: Any, data_start: int, path: Path) -> TensorInfo:
    where = f"{path}: tensor {shown(name)}"
    if not name or "\0" in name or len(name.encode("utf-8", "surrogatepass")) > NAME_MAX_BYTES:
        raise FormatError(f"{where}: names must be 1 ... {NAME_MAX_BYTES} bytes without NUL")
    if not name.isprintable():
        raise FormatError(f"{where}: names must be printable text")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        found = f"keys {listed(map(plain, entry))}" if isinstance(entry, dict) else shown(entry)
        raise FormatError(f"{where} must have dtype, shape and data_offsets, got {found}")
    dtype, shape = entry["dtype"], _check_sizes(entry["shape"], f"{where}: shape", MAX_DIMS)
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise FormatError(f"{where}: dtype must be one of {', '.join(_BITS)}; got {shown(dtype)}")
    offsets = _check_sizes(entry["data_offsets"], f"{where}: data_offsets", 2)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{where}: data_offsets must be [begin, end], got {list(offsets)}")
    bits = _BITS[dtype]
    if bits * math.prod(size or 1 for size in shape) > _COUNT_MAX:  # NumPy counts so, 0 or not
        raise FormatError(f"{where}: shape {list(shape)} overflows")
    bits *= math.prod(shape)
    begin, end = offsets
    if bits % 8 or bits // 8 != end - begin:
        raise FormatError(
            f"{where}: shape {list(shape)} of {dtype} needs {bits / 8:g} bytes, but data_offsets "
            f"{list(offsets)} give {end - begin}"
        )
    return TensorInfo(name, dtype, shape, data_start + begin, data_start + end, path)


def _check_sizes(value: Any, where: str, most: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > most:
        raise FormatError(f"{where} must be a list of at most {most} sizes, got {shown(value)}")
    for size in value:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= _COUNT_MAX:
            raise FormatError(f"{where} must hold integers >= 0, got {shown(size)}")
    return tuple(value)


def _check_tiling(
    infos: list[TensorInfo], start: int, size: int, path: Path
) -> dict[str, TensorInfo]:
    """Require that the tensors cover the data exactly: no hole, no overlap, no rest."""
    infos.sort(key=lambda info: (info.begin, info.end))
    position = start
    for info in infos:
        if info.begin != position:
            what = "overlaps the tensor before it" if info.begin < position else "leaves a hole"
            raise FormatError(
                f"{path}: tensor {shown(info.name)} {what}: it begins at byte {info.begin}, "
                f"expected {position}"
            )
        position = info.end
    if position != size:
        what = "is cut short" if position > size else "has bytes after the last tensor"
        raise FormatError(f"{path} {what}: the header describes {position} bytes, it has {size}")
    return {info.name: info for info in infos}


def read_tensors(infos: Iterable[TensorInfo]) -> dict[str, NDArray[np.float32]]:
    """Read the given tensors as float32 arrays, in the given order, opening each file once.

    F16, BF16 and F64 are converted. FormatError for other dtypes and for files cut short meanwhile.
    Those of F32 share one block of memory: the system backs it with huge pages, and clears them in
    a fraction of the time that thousands of small ones take.
    """
    wanted = list(infos)
    result: dict[str, NDArray[np.float32]] = {}
    block = np.empty(sum(i.end - i.begin for i in wanted if i.dtype == "F32"), np.uint8)
    used = 0
    with contextlib.ExitStack() as stack:
        files: dict[Path, io.BufferedReader] = {}
        for info in sorted(wanted, key=lambda info: (str(info.file), info.begin)):
            if info.file not in files:
                files[info.file] = stack.enter_context(open_regular(info.file))
            size = info.end - info.begin
            if info.dtype == "F32":
                room = block[used : used + size]
                used += size
            else:
                room = np.empty(size, np.uint8)
            result[info.name] = _read_tensor(files[info.file], info, room)
    return {info.name: result[info.name] for info in wanted}


def _read_tensor(
    file: io.BufferedReader, info: TensorInfo, room: NDArray[np.uint8]
) -> NDArray[np.float32]:
    if info.dtype not in READABLE:
        raise FormatError(
            f"{info.file}: tensor {shown(info.name)} has dtype {info.dtype}; boot reads "
            f"{', '.join(READABLE)}"
        )
    file.seek(info.begin)
    if file.readinto(room.data) != len(room):
        raise FormatError(f"{info.file} was cut short while it was read")
    return as_float32(room.view(READABLE[info.dtype]).reshape(info.shape), info.dtype)


def as_float32(raw: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return stored numbers, in the array type that READABLE has for `dtype`, as float32."""
    if dtype == "BF16":
        widened = np.left_shift(raw, 16, dtype=np.uint32)  # a scalar if the shape is ()
        return np.asarray(widened).view(np.float32)
    with np.errstate(over="ignore"):  # F64 beyond float32 becomes Inf; callers check finiteness
        result: NDArray[np.float32] = raw.astype(np.float32, copy=False)
    return result


def load_tensors(path: str | os.PathLike[str]) -> dict[str, NDArray[np.float32]]:
    """Read a whole safetensors file as {name: float32 array}; errors as in `read_header`."""
    return read_tensors(read_header(path).tensors.values())


def read_index(path: str | os.PathLike[str]) -> dict[str, TensorInfo]:
    """Read the index of a sharded model, and the headers of its shards.

    Shards are named inside the index, so only bare names of files in its own folder are accepted,
    and a link must not lead elsewhere (other than to the blobs of a Hugging Face cache).
    FormatError if a shard is missing, lacks a tensor, or holds one that the index does not list.
    """
    where = check_path("path", path)
    weight_map = read_json_object(where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{where} must have a weight_map object, got {shown(weight_map)}")
    shards: dict[str, Header] = {}
    for shard in weight_map.values():
        if not isinstance(shard, str) or shard not in shards:
            file = _shard_path(where, shard)
            shards[shard] = read_header(file)
    result = {}
    for name, shard in weight_map.items():
        if name not in shards[shard].tensors:
            raise FormatError(f"{where}: {shard} does not hold the tensor {shown(name)}")
        result[name] = shards[shard].tensors[name]
    unlisted = [n for header in shards.values() for n in header.tensors if n not in result]
    doubled = sum(len(header.tensors) for header in shards.values()) - len(result) - len(unlisted)
    if unlisted or doubled:
        found = listed(unlisted) or f"{doubled} tensors in two shards"
        raise FormatError(f"{where}: the shards hold tensors that the index does not list: {found}")
    return result


def _shard_path(index: Path, shard: Any) -> Path:
    bare = isinstance(shard, str) and shard == os.path.basename(shard) and shard.isprintable()
    if not bare or shard in ("", ".", "..") or "\\" in shard or not shard.endswith(".safetensors"):
        raise FormatError(
            f"{index}: weight_map may name only *.safetensors files in its own folder, got "
            f"{shown(shard)}"
        )
    path: Path = index.parent / shard
    if not path.exists():
        raise FormatError(f"{index} names the shard {shard!r}, which is not there")
    return check_inside(path, index.parent)


# -------------------------------------------------------------------------------------- writing


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write float16, float32 or float64 arrays to a safetensors file, atomically.

    A uint16 array is one of bfloat16, given by its bits.
    Data are ordered by item size, largest first, then by name (what the reference writer does), and
    the header is padded to 8 bytes, so every tensor is aligned. `metadata` defaults to
    {"format": "pt"}, which some readers insist on. Raises TypeError, ValueError or an OSError; the
    old file stays as it was if anything fails.
    """
    target = check_path("path", path)
    header, arrays = _layout(tensors, {"format": "pt"} if metadata is None else metadata)

    def write(file: BinaryIO) -> None:
        file.write(struct.pack("<Q", len(header)) + header)
        for array in arrays:
            file.write(array.reshape(-1).view(np.uint8).data)

    write_atomically(target, write)


def _layout(
    tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> tuple[bytes, list[NDArray[Any]]]:
    """Return the padded JSON header and the arrays in the order in which they must follow."""
    stored: dict[str, tuple[str, NDArray[Any]]] = {}
    for name, value in tensors.items():
        if not isinstance(name, str) or not name or name == "__metadata__":
            raise ValueError(f"tensor names must be non-empty strings, got {shown(name)}")
        if not name.isprintable() or len(name.encode()) > NAME_MAX_BYTES:
            raise ValueError(f"tensor names must be printable and at most {NAME_MAX_BYTES} bytes")
        array = as_ndarray(name, value)
        bits = f"F{8 * array.dtype.itemsize}"
        dtype = {"f": bits, "u": f"B{bits}"}.get(array.dtype.kind, "")
        if dtype not in _WRITABLE:
            raise TypeError(f"{name} must be float16, float32 or float64, got {array.dtype}")
        if array.ndim > MAX_DIMS:
            raise ValueError(f"{name} has {array.ndim} dimensions, at most {MAX_DIMS} are allowed")
        stored[name] = dtype, np.ascontiguousarray(array, _WRITABLE[dtype]).reshape(array.shape)
    order = sorted(stored, key=lambda name: (-stored[name][1].itemsize, name))
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in order:
        dtype, array = stored[name]
        end = position + array.nbytes
        entries[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    return header + b" " * (-len(header) % 8), [stored[name][1] for name in order]
