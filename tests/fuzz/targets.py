"""What is fuzzed: every reader of a file that boot did not write itself, one function per kind.

Each target takes the bytes of one hostile file and either accepts them or raises one of the classes
that its documentation names; anything else is a find. Targets keep nothing between calls.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from boot.callbacks import TrainState
from boot.checkpoint import MANIFEST_FILE, Identity, load_checkpoint, save_checkpoint
from boot.config import DistillConfig
from boot.diffusers_io import read_scheduler
from boot.errors import (
    BootError,
    CheckpointError,
    ConfigError,
    FormatError,
    ResumeMismatch,
    UnsupportedModel,
)
from boot.evaluation import load_reference
from boot.manifest import signed
from boot.metrics import Statistics
from boot.reading import parse_json
from boot.safetensors_io import load_tensors, read_index
from boot.student import StudentInfo
from boot.unet_config import UNet2DConfig
from boot.unet_keys import expected_tensors

MEMORY = "/dev/shm"  # file cases never touch a disk where the system has one in memory
FOLDER = Path(tempfile.mkdtemp(dir=MEMORY if os.path.isdir(MEMORY) else None))
WHO = Identity("teacher", "layout", {"seed": 0})


def _file(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


def safetensors(data: bytes) -> None:
    """A weights file."""
    load_tensors(_file("model.safetensors", data))


def index(data: bytes) -> None:
    """The index of a sharded model (the shards it names are not there)."""
    read_index(_file("index.json", data))


def json_text(data: bytes) -> None:
    """Any JSON that a model folder holds."""
    parse_json(data, "x.json")


def _object(data: bytes) -> dict[str, Any]:
    value = parse_json(data, "x.json")
    if not isinstance(value, dict):
        raise FormatError("x.json: not an object")
    return value


def unet_config(data: bytes) -> None:
    """config.json of a network, and the table of tensors it asks for."""
    expected_tensors(UNet2DConfig.from_dict(_object(data)))


def scheduler_config(data: bytes) -> None:
    """scheduler_config.json, and the noise schedule it asks for."""
    read_scheduler(_file("scheduler_config.json", data))


def distill_config(data: bytes) -> None:
    """Settings of a run."""
    DistillConfig.load(_file("config.json", data))


def student_info(data: bytes) -> None:
    """boot.json of a student."""
    info = StudentInfo.from_dict(_object(data), "boot.json")
    assert info.settings() and (info.teacher.get("name", ""), info.training.get("steps", 0))


def statistics(data: bytes) -> None:
    """An .npz of statistics."""
    Statistics.load(_file("reference.npz", data))


def reference(data: bytes) -> None:
    """An .npz of images, or of statistics."""
    load_reference(_file("images.npz", data))


def manifest(data: bytes) -> None:
    """manifest.json of a checkpoint, signed anew so that its fields are looked at."""
    with contextlib.suppress(FormatError):
        data = json.dumps(signed(_object(data))).encode()  # compact: large ones stay within limits
    folder = checkpoint()
    (folder / MANIFEST_FILE).write_bytes(data)
    found = load_checkpoint(folder, {"weights": np.zeros(2, np.float32)}, WHO)
    state = TrainState(**found["state"]["counters"])
    assert 0 <= state.updates <= state.step == found["step"] and 0 < state.rate_factor <= 1


@functools.cache
def checkpoint() -> Path:
    """A checkpoint whose manifest is to be replaced."""
    state = {"counters": vars(TrainState(3, 2, 1, 0, [2])), "kernels": {"a": {}}, "machine": {}}
    return save_checkpoint(FOLDER, 3, {"weights": np.ones(2, np.float32)}, WHO, state)


Target = tuple[Callable[[bytes], None], tuple[type[Exception], ...]]
OF_CONFIGS = (FormatError, ConfigError, UnsupportedModel, TypeError)

TARGETS: dict[str, Target] = {
    "safetensors": (safetensors, (FormatError,)),
    "index": (index, (FormatError,)),
    "json": (json_text, (FormatError,)),
    "unet_config": (unet_config, OF_CONFIGS),
    "scheduler_config": (scheduler_config, (FormatError, UnsupportedModel)),
    "distill_config": (distill_config, (FormatError, ConfigError)),
    "student_info": (student_info, (FormatError,)),
    "statistics": (statistics, (FormatError,)),
    "reference": (reference, (FormatError,)),
    "manifest": (manifest, (CheckpointError, ResumeMismatch)),
}


def run(name: str, data: bytes) -> str:
    """Give one file to a target; "accepted" or the name of the documented class it was refused by.

    Any other exception is a find and passes through.
    """
    function, allowed = TARGETS[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(data)
    except allowed as refusal:
        exact = type(refusal)
        assert exact in allowed or issubclass(exact, BootError), f"{exact} is not documented"
        return exact.__name__
    return "accepted"
