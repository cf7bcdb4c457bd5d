"""The state of a run beside its networks' arrays: saved, taken up again, and gone back to.

What a checkpoint holds and how it is written is in `checkpoint`; here is what a Distiller puts in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boot.callbacks import LOG_FILE, SAMPLES_FOLDER, TrainState
from boot.checkpoint import (
    Identity,
    find_latest,
    layout_of,
    list_checkpoints,
    load_checkpoint,
    machine,
    none_intact,
    prune_checkpoints,
    read_manifest,
    save_checkpoint,
    versions,
)
from boot.config import RUN_CONFIG_FILE, DistillConfig
from boot.diffusers_io import PIPELINE_FILE, SCHEDULER, UNET
from boot.errors import CheckpointError, FormatError, ResumeMismatch, listed, shown
from boot.files import check_output_folder, write_atomically
from boot.manifest import MOST_ITEMS, check_kernels
from boot.reading import read_json_object, to_json
from boot.student import Student
from boot.teacher import Teacher

if TYPE_CHECKING:
    from boot.distiller import Distiller

KERNELS_FILE = "kernels.json"
# What a run writes, in its folder and as a student.
_WRITTEN = (PIPELINE_FILE, UNET, SCHEDULER, LOG_FILE, SAMPLES_FOLDER, "README.md")
MOST_KERNELS = 10_000  # pinning takes the square of their number: half a second

_log = logging.getLogger("boot")


class Snapshot(NamedTuple):
    """What a roll-back brings back, kept in memory by runs without a folder."""

    step: int
    updates: int
    critic_updates: int
    buffers: dict[str, NDArray[Any]]


# --------------------------------------------------------------------------------- save, restore


def save(distiller: Distiller) -> Path:
    """Write `output_dir/checkpoint-<step>` and delete the oldest beyond the limit.

    Raises ValueError without an output_dir, CheckpointError if it cannot be written.
    """
    if distiller.output_dir is None:
        raise ValueError("output_dir must be set to save checkpoints")
    state = {"counters": vars(distiller.state), **_kernels(distiller)}
    step, folder = distiller.state.step, distiller.output_dir
    path = save_checkpoint(folder, step, distiller._buffers(), _identity(distiller), state)
    prune_checkpoints(path, distiller.config.checkpoints_total_limit)
    return path


def _folders_of(weights: Path) -> list[Path]:
    """Return the folder of a model's weights and, if it is in one, that of its pipeline."""
    folder = weights.resolve().parent
    return [folder, folder.parent] if folder.name == UNET else [folder]


def open_output(config: DistillConfig, teacher: Teacher) -> Path | None:
    """Make or check the output folder: new or empty, unless the run continues another.

    Raises FileExistsError for one that has files, if nothing is resumed; if something is, for one
    that holds the teacher, or files that the run would overwrite and that are not of a run.
    """
    if config.output_dir is None:
        return None
    fresh = config.resume_from_checkpoint is None
    try:
        path = check_output_folder("output_dir", config.output_dir, must_be_empty=fresh)
    except FileExistsError as problem:
        raise FileExistsError(
            f"{problem}; resume_from_checkpoint='latest' continues the run in it"
        ) from None
    if teacher.weights_file is not None and path.resolve() in _folders_of(teacher.weights_file):
        raise FileExistsError(
            f"output_dir must be another folder than the teacher's, {str(path)!r}"
        )
    if fresh or list_checkpoints(path):
        return path
    others = [name for name in _WRITTEN if (path / name).exists()]
    if others and not (path / RUN_CONFIG_FILE).exists():
        raise FileExistsError(
            f"output_dir: {str(path)!r} holds no run to continue, but {listed(others, 3)}, which a "
            "run would overwrite; choose a new folder"
        )
    if config.resume_from_checkpoint == "latest":
        _log.info("no checkpoint in %s: starting at step 0", path)
    return path


def begin(distiller: Distiller) -> None:
    """Take up the run that a Distiller continues, if any: its checkpoint, its kernel choices."""
    kernels = distiller.output_dir and distiller.output_dir / KERNELS_FILE
    if kernels and kernels.is_file():
        try:
            stored = read_json_object(kernels, max_items=MOST_ITEMS)
            check_kernels(stored, kernels)
            _pin_kernels(distiller, stored, kernels)
        except (OSError, FormatError) as problem:
            _log.warning("ignoring the kernel choices in %s: %s", kernels, problem)
    while distiller._origin is not None:
        try:
            _restore(distiller, distiller._origin)
            return
        except CheckpointError as problem:  # intact, but with NaN in it, say: an older one will do
            if distiller.config.resume_from_checkpoint != "latest" or distiller.output_dir is None:
                raise
            _log.warning("ignoring a damaged checkpoint: %s", problem)
            distiller._origin = find_latest(distiller.output_dir, distiller._origin)
            if distiller._origin is None:
                raise none_intact(distiller.output_dir) from problem


def _restore(distiller: Distiller, checkpoint: Path) -> None:
    """Load buffers, counters and kernel choices of a checkpoint; errors as `load_checkpoint`."""
    manifest = load_checkpoint(checkpoint, distiller._buffers(), _identity(distiller))
    _weights_changed(distiller)
    distiller.state = TrainState(**manifest["state"]["counters"])
    _pin_kernels(distiller, manifest["state"], checkpoint)
    for name, now in versions().items():
        if manifest.get(name) != now:
            _log.warning(
                "%s has %s %s, now it is %s: the run continues, but its numbers may differ",
                checkpoint,
                name,
                shown(manifest.get(name)),
                now,
            )
    _log.info("continuing from %s", checkpoint)


def _identity(distiller: Distiller) -> Identity:
    layout = layout_of(distiller._training.model.core.parameters)
    start, own = distiller._start, distiller._start is distiller.teacher.network
    # The config of a student that is not the teacher's copy is as good as a setting.
    settings = {**distiller.config.to_dict(), "student": None if own else start.config.to_core()}
    return Identity(distiller.teacher.fingerprint, layout, settings)


def _weights_changed(distiller: Distiller) -> None:
    for name, network in distiller._networks().items():
        if name != "teacher":
            network.weights_changed()


# --------------------------------------------------------------------------------------- kernels


def count_kernels(distiller: Distiller) -> int:
    """Return how many kernels are chosen so far: more after the first step, and a critic's."""
    return sum(network.core.chosen_kernels for network in distiller._networks().values())


def record_kernels(distiller: Distiller) -> None:
    """Write the kernels chosen so far to the output folder, for a run that is killed early.

    Kernels are chosen by timing, and their choice decides the last bits of every number. Whoever
    starts a run with this file in its folder (and resume_from_checkpoint="latest") gets the same.
    """
    if distiller.output_dir is not None:
        write_atomically(distiller.output_dir / KERNELS_FILE, to_json(_kernels(distiller)))


def _kernels(distiller: Distiller) -> dict[str, Any]:
    kernels = {name: network.kernels for name, network in distiller._networks().items()}
    return {"kernels": kernels, "machine": machine()}


def _pin_kernels(distiller: Distiller, stored: dict[str, Any], where: Path) -> None:
    if stored["machine"] != machine():
        now = machine()
        then = stored["machine"] if isinstance(stored["machine"], dict) else {}
        _log.warning(
            "%s was written on another kind of machine, or with other threads: the run "
            "continues, but rounding differs in the last bits (%s)",
            where,
            "; ".join(
                f"{name} was {shown(then.get(name), 40)}, now {shown(value, 40)}"
                for name, value in now.items()
                if then.get(name) != value
            ),
        )
        return
    if sum(map(len, stored["kernels"].values())) > MOST_KERNELS:
        _log.warning("%s has too many kernels; choosing anew, which changes last bits", where)
        return
    for name, network in distiller._networks().items():
        try:
            network.pin_kernels(stored["kernels"].get(name, {}))
        except ValueError as problem:  # written by a version with other kernels
            _log.warning("%s: %s; choosing kernels anew, which changes last bits", where, problem)


# ------------------------------------------------------------------------------------- roll back


def remember(distiller: Distiller) -> None:
    """Keep a copy of the state in memory, where there is no folder for checkpoints."""
    state, every = distiller.state, distiller.config.checkpointing_steps
    if distiller.output_dir is None and every and state.step % every == 0:
        before, now = distiller._snapshot, distiller._buffers()
        buffers = before.buffers if before else {name: np.empty_like(a) for name, a in now.items()}
        for name, buffer in now.items():
            np.copyto(buffers[name], buffer)
        distiller._snapshot = Snapshot(state.step, state.updates, state.critic_updates, buffers)


def roll_back(distiller: Distiller) -> str:
    """Bring back weights, average, moments and update count of the last good state; say which.

    That is the snapshot in memory, else the newest intact checkpoint (one written after a good step
    if there is one), else the start. The step number goes on, so that the noise is fresh: the same
    batch would fail in the same way.
    """
    buffers, snapshot, state = distiller._buffers(), distiller._snapshot, distiller.state
    if snapshot is not None:
        for name, buffer in buffers.items():
            buffer[...] = snapshot.buffers[name]
        state.updates, state.critic_updates = snapshot.updates, snapshot.critic_updates
        where = f"step {snapshot.step}"
    else:
        for path in sorted(_checkpoints_before(distiller), key=_is_bad):
            try:
                manifest = load_checkpoint(path, buffers, _identity(distiller))
            except (CheckpointError, ResumeMismatch) as problem:
                _log.warning("ignoring a damaged or foreign checkpoint: %s", problem)
                continue
            counters = TrainState(**manifest["state"]["counters"])
            state.updates, state.critic_updates = counters.updates, counters.critic_updates
            where = str(path)
            break
        else:
            _start_again(distiller, buffers)
            where = "the start"
    _weights_changed(distiller)
    return where


def _start_again(distiller: Distiller, buffers: dict[str, NDArray[Any]]) -> None:
    """Give every buffer the value that it began with."""
    info, network = distiller._student_info(), distiller._start
    start = Student.from_teacher(distiller.teacher, info, network).model.weights
    first = {"weights": start, "ema": start}
    for name, buffer in buffers.items():
        buffer[...] = first.get(name, 0.0)  # the others are moments, or the critic's
    if distiller._critic is not None:
        distiller._critic.begin()
    distiller.state.updates = distiller.state.critic_updates = 0


def _checkpoints_before(distiller: Distiller) -> Iterator[Path]:
    """Yield the intact checkpoints of this run, newest first."""
    folder, origin = distiller.output_dir, distiller._origin
    paths = [] if folder is None else list_checkpoints(folder)
    if origin is not None and origin not in paths:
        paths.append(origin)
    for path in paths:
        try:
            if read_manifest(path)["step"] <= distiller.state.step:
                yield path
        except CheckpointError as problem:
            _log.warning("ignoring a damaged checkpoint: %s", problem)


def _is_bad(path: Path) -> bool:
    return bool(read_manifest(path)["state"]["counters"]["bad_in_a_row"])
