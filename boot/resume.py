"""The state of a run outside its networks' arrays: written to a checkpoint, and taken up again.

What a checkpoint holds and how it is written is in `checkpoint`; here is what a Distiller puts in.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from boot.callbacks import TrainState
from boot.checkpoint import (
    Identity,
    layout_of,
    load_checkpoint,
    machine,
    prune_checkpoints,
    save_checkpoint,
)

if TYPE_CHECKING:
    from boot.distiller import Distiller

_log = logging.getLogger("boot")


def save(distiller: Distiller) -> Path:
    """Write `output_dir/checkpoint-<step>` and delete the oldest beyond the limit.

    Raises ValueError without an output_dir, CheckpointError if it cannot be written.
    """
    if distiller.output_dir is None:
        raise ValueError("output_dir must be set to save checkpoints")
    state = {
        "counters": vars(distiller.state),
        "kernels": {name: net.kernels for name, net in distiller._networks().items()},
        "machine": machine(),
    }
    step, folder = distiller.state.step, distiller.output_dir
    path = save_checkpoint(folder, step, distiller._buffers(), _identity(distiller), state)
    prune_checkpoints(folder, distiller.config.checkpoints_total_limit)
    return path


def restore(distiller: Distiller, checkpoint: Path) -> None:
    """Load buffers, counters and kernel choices of a checkpoint; errors as `load_checkpoint`."""
    manifest = load_checkpoint(checkpoint, distiller._buffers(), _identity(distiller))
    state = manifest["state"]
    distiller.state = TrainState(**state["counters"])
    same_machine = state["machine"] == machine()
    for name, network in distiller._networks().items():
        network.weights_changed()
        if same_machine:
            network.pin_kernels(state["kernels"][name])
    _log.info("continuing from %s", checkpoint)
    if not same_machine:
        _log.warning(
            "the checkpoint was written on another kind of machine (%s): the run continues, "
            "but rounding differs in the last bits",
            state["machine"],
        )


def _identity(distiller: Distiller) -> Identity:
    layout = layout_of(distiller._training.model.core.parameters)
    return Identity(distiller.teacher.fingerprint, layout, distiller.config.to_dict())
