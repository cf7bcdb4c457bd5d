"""Checkpoints: the whole state of a training run in one folder, written atomically and verified.

`checkpoint-N/` holds `state.safetensors` (flat buffers: weights, ema, m, v), `config.json` and,
last, `manifest.json` with the size and SHA-256 of the others. Randomness needs no state: it
follows from the seed and the step number.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot import _core
from boot._version import __version__
from boot.errors import (
    MOST_LISTED,
    CheckpointError,
    FormatError,
    ResumeMismatch,
    check_computed,
    listed,
    plain,
    shown,
)
from boot.files import folder_atomically, remove, temporary_beside, write_synced
from boot.manifest import (
    CONFIG_FILE,
    FORMAT_VERSION,
    MOST_ITEMS,
    STATE_FILE,
    check_manifest,
    signed,
)
from boot.moments import put
from boot.reading import open_regular, read_json_object, to_json
from boot.safetensors_io import TensorInfo, read_header, read_tensors, save_tensors

MANIFEST_FILE = "manifest.json"

# Settings that may differ between a checkpoint and the run that continues it: they change where
# things are written and how long training takes, not what a step computes. max_train_steps moves
# the end of the learning rate's course, which is what continuing for longer means.
FREE_SETTINGS = frozenset(
    "max_train_steps output_dir num_threads memory_limit gradient_checkpointing offload_teacher "
    "logging_steps sample_steps num_sample_images checkpointing_steps checkpoints_total_limit "
    "resume_from_checkpoint report_to check_teacher eval_steps".split()
)

_NAME = re.compile(r"checkpoint-(\d{1,12})", re.ASCII)
_log = logging.getLogger("boot")

Buffers = Mapping[str, NDArray[Any]]  # float32, and uint16 for the bits of bfloat16


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to: SHA-256 of the teacher, of the weights' layout, settings."""

    teacher: str
    layout: str
    config: dict[str, Any]


def layout_of(parameters: list[tuple[str, tuple[int, ...], int]]) -> str:
    """Return a SHA-256 of names, shapes and offsets in the flat buffers."""
    return hashlib.sha256(repr([(n, tuple(s), o) for n, s, o in parameters]).encode()).hexdigest()


def machine() -> dict[str, Any]:
    """Return what the bits of a training step depend on, beside kernels and settings."""
    config = _core.show_config()
    return {key: config[key] for key in ("isa", "onednn_isa", "onednn_version", "threads")}


def versions() -> dict[str, str]:
    """Return the versions that a bit-for-bit resume needs to be the same."""
    return {"boot_version": __version__, "numpy_version": np.__version__}


def path_of(output_dir: Path, step: int) -> Path:
    """Return where the checkpoint of a step is, or would be."""
    return output_dir / f"checkpoint-{step}"


# -------------------------------------------------------------------------------------- writing


def save_checkpoint(
    output_dir: Path, step: int, buffers: Buffers, identity: Identity, state: Mapping[str, Any]
) -> Path:
    """Write `output_dir/checkpoint-<step>` durably and return its path.

    buffers: flat arrays by name. state: whatever else the run needs, JSON-ready. A crash at
    any instant leaves no folder of that name or a complete one. Raises CheckpointError with the
    reason; whatever checkpoints there were are as they were.
    """
    path = path_of(output_dir, step)
    try:
        with folder_atomically(path) as temporary:
            save_tensors(temporary / STATE_FILE, buffers)
            _write_text(temporary / CONFIG_FILE, to_json(identity.config))
            manifest = {
                "format_version": FORMAT_VERSION,
                **versions(),
                "step": step,
                "state": dict(state),
                "teacher": identity.teacher,
                "layout": identity.layout,
                "files": {n: _measure(temporary / n) for n in (STATE_FILE, CONFIG_FILE)},
            }
            manifest = signed(manifest)
            check_manifest(manifest, path / MANIFEST_FILE)  # what cannot be read is not written
            _write_text(temporary / MANIFEST_FILE, to_json(manifest))
    except OSError as problem:
        needed = sum(array.nbytes for array in buffers.values())
        free = shutil.disk_usage(output_dir).free if output_dir.is_dir() else 0
        raise CheckpointError(
            problem.errno,
            f"checkpoint not written: {problem.strerror or problem} ({needed:,} bytes needed, "
            f"{free:,} free)",
            str(path),
        ) from problem
    return path


def _write_text(path: Path, text: str) -> None:
    write_synced(path, lambda file: file.write(text.encode("utf-8")))


def _measure(path: Path) -> dict[str, Any]:
    """Return the size and SHA-256 of a file, from what is stored and not from what was meant."""
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def prune_checkpoints(path: Path, limit: int | None) -> None:
    """Delete all but `limit` checkpoints beside `path`, the one just written.

    That one is read back and verified first, and kept; of the others the newest intact ones are.
    Damaged ones do not count, and go once there are `limit` intact ones. Raises CheckpointError,
    with nothing deleted, if the new one is damaged.
    """
    others = [other for other in list_checkpoints(path.parent) if other != path]
    if limit is None or len(others) < limit:
        return
    read_manifest(path)
    wanted, spare = limit - 1, list[Path]()
    for other in others:
        if wanted > 0 and _is_intact(other):
            wanted -= 1
        else:
            spare.append(other)
    for other in spare if wanted == 0 else ():
        # Renamed first: half a deleted folder must not look like a checkpoint.
        aside = temporary_beside(other)
        with contextlib.suppress(OSError):
            os.rename(other, aside)
            remove(aside)


def _is_intact(path: Path) -> bool:
    try:
        read_manifest(path)
    except CheckpointError as problem:
        _log.warning("ignoring a damaged checkpoint: %s", problem)
        return False
    return True


# -------------------------------------------------------------------------------------- reading


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint folder's name."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else 0


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoint folders in a folder, newest (highest step) first, unverified."""
    if not output_dir.is_dir():
        return []
    found = [p for p in output_dir.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def find_latest(output_dir: Path, before: Path | None = None) -> Path | None:
    """Return the newest intact checkpoint of a folder, or None; damaged ones are named in the log.

    Validity comes from content: every file of the manifest must have its size and SHA-256.
    before: look only at those older than this one.
    """
    paths = list_checkpoints(output_dir)
    if before is not None:
        paths = paths[paths.index(before) + 1 :]
    return next((path for path in paths if _is_intact(path)), None)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint after checking it and comparing every file with it.

    Raises CheckpointError naming the file that is missing, cut short or changed, or the field of
    the manifest that is wrong.
    """
    where = path / MANIFEST_FILE
    try:
        manifest = read_json_object(where, max_items=MOST_ITEMS)
        check_manifest(manifest, where)
        named = _NAME.fullmatch(path.name)
        if named and int(named[1]) != manifest["step"]:
            raise CheckpointError(f"{where} is of step {manifest['step']}: of another checkpoint")
        for name, expected in manifest["files"].items():
            found = _measure(path / name)
            if found != expected:
                raise CheckpointError(
                    f"{path / name} is damaged: {found['bytes']} bytes, SHA-256 "
                    f"{found['sha256'][:12]}..., but the manifest says {shown(expected)}"
                )
    except CheckpointError:
        raise
    except (OSError, FormatError) as problem:
        raise CheckpointError(f"{path} cannot be read: {problem}") from problem
    return manifest


def load_checkpoint(path: Path, buffers: Buffers, identity: Identity) -> dict[str, Any]:
    """Verify a checkpoint, copy its arrays into `buffers`, and return its manifest.

    Raises CheckpointError if it is damaged or holds NaN or Inf, ResumeMismatch if it belongs to
    another teacher or to other settings; the buffers are then untouched.
    """
    manifest = read_manifest(path)
    try:
        infos = read_header(path / STATE_FILE).tensors
        config = read_json_object(path / CONFIG_FILE, max_items=MOST_ITEMS)
    except (OSError, FormatError) as problem:
        raise CheckpointError(f"{path} cannot be read: {problem}") from problem
    differences = _differences(manifest, config, identity)
    if differences:
        told, left = "; ".join(differences[:MOST_LISTED]), len(differences) - MOST_LISTED
        more = f"; and {left} more" if left > 0 else ""
        raise ResumeMismatch(f"{path} cannot be continued with this run: {told}{more}")
    for name, buffer in buffers.items():
        if name not in infos or infos[name].shape != buffer.shape:
            raise CheckpointError(f"{path / STATE_FILE}: no array {name!r} of {buffer.shape}")
        if buffer.dtype == np.uint16 and infos[name].dtype != "BF16":
            raise CheckpointError(f"{path / STATE_FILE}: the array {name!r} is not of bfloat16")
        _read(infos[name])
    for name, buffer in buffers.items():
        put(buffer, _read(infos[name]))  # once more: one at a time takes the least memory
    return manifest


def _read(info: TensorInfo) -> NDArray[np.float32]:
    """Return an array of a checkpoint, all of it finite."""
    try:
        array = read_tensors([info])[info.name]
        check_computed(f"the array {info.name!r}", array)
    except (OSError, FormatError) as problem:
        raise CheckpointError(f"{info.file} cannot be read: {problem}") from problem
    except FloatingPointError as problem:
        raise CheckpointError(f"{info.file}: {problem}") from None
    return array


def _differences(manifest: dict[str, Any], config: dict[str, Any], identity: Identity) -> list[str]:
    """Say what differs, in words that name the setting and both values."""
    result = []
    if manifest["teacher"] != identity.teacher:
        result.append(
            f"another teacher (SHA-256 {shown(manifest['teacher'], 14)}, now "
            f"{shown(identity.teacher, 14)})"
        )
    elif manifest["layout"] != identity.layout:
        result.append("another order of weights (written by another version of boot)")
    names = (set(config) | set(identity.config)) - FREE_SETTINGS
    result += [
        f"{plain(name)} was {shown(config.get(name))}, now {shown(identity.config.get(name))}"
        for name in sorted(names)
        if config.get(name) != identity.config.get(name)
    ]
    return result


def resolve_resume(wanted: str | None, output_dir: Path | None) -> Path | None:
    """Return the checkpoint that `resume_from_checkpoint` means, or None to start afresh.

    "latest" is the newest intact one of output_dir; anything else is the path of a checkpoint.
    Raises FileNotFoundError for a path that is not there, ValueError for "latest" without a folder,
    CheckpointError if that has checkpoints, but no intact one: to start afresh would cut the log.
    """
    if wanted is None:
        return None
    if wanted != "latest":
        path = Path(os.path.abspath(wanted))
        if not (path / MANIFEST_FILE).is_file():
            found = list_checkpoints(path)
            hint = f"; it holds {listed([p.name for p in found], 5)}" if found else ""
            raise FileNotFoundError(
                f"resume_from_checkpoint must be 'latest' or a checkpoint folder, but "
                f"{wanted!r} has no {MANIFEST_FILE}{hint}"
            )
        return path
    if output_dir is None:
        raise ValueError("resume_from_checkpoint='latest' needs an output_dir to look in")
    latest = find_latest(output_dir)
    if latest is None and list_checkpoints(output_dir):
        raise none_intact(output_dir)
    return latest


def none_intact(output_dir: Path) -> CheckpointError:
    """Return the error for "latest" where there are checkpoints, all of them damaged."""
    return CheckpointError(
        f"resume_from_checkpoint='latest': every checkpoint in {str(output_dir)!r} is damaged "
        f"({listed(path.name for path in list_checkpoints(output_dir))}); move them away to start "
        "afresh"
    )
