"""Reads and writes diffusers pipeline folders: configs and weights, never code and never pickles.

A pipeline folder has `model_index.json` and one subfolder per component; in the google/ddpm-*
repositories the components lie flat beside `model_index.json`. A bare model folder (`config.json`
and weights) is read too if a scheduler config lies in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot.config import RUN_CONFIG_FILE
from boot.errors import (
    ConfigError,
    FormatError,
    UnsupportedModel,
    check_array,
    check_choice,
    check_folder,
    check_path,
    listed,
    shown,
)
from boot.files import check_output_folder, folder_atomically, write_atomically
from boot.reading import check_inside, read_json_object, to_json
from boot.safetensors_io import TensorInfo, read_header, read_index, read_tensors, save_tensors
from boot.schedule import Schedule
from boot.scheduler_config import SchedulerConfig
from boot.unet_config import MODEL_CLASS, UNet2DConfig
from boot.unet_keys import expected_tensors, match_tensors

__all__ = [
    "DIFFUSERS_VERSION",
    "LoadedPipeline",
    "SchedulerConfig",
    "UNet2DConfig",
    "expected_tensors",
    "find_tensors",
    "find_weights",
    "fingerprint",
    "load_pipeline",
    "load_weights",
    "read_scheduler",
    "save_pipeline",
]

DIFFUSERS_VERSION = "0.42.1"  # the version whose reading of our files the tests check

PIPELINE_FILE = "model_index.json"
INFO_FILE = "boot.json"  # beside it, if it is a student
MODEL_FILE = "config.json"
SCHEDULER_FILE = "scheduler_config.json"
UNET, SCHEDULER = "unet", "scheduler"
WEIGHTS_STEM = "diffusion_pytorch_model"
WEIGHTS_FILE = f"{WEIGHTS_STEM}.safetensors"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")

_VARIANT = re.compile(
    rf"{WEIGHTS_STEM}\.(?:(\w+)\.safetensors|safetensors\.index\.(\w+)\.json)", re.ASCII
)

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class LoadedPipeline:
    """What a folder holds: checked configs, float32 tensors under diffusers' names, and its origin.

    tensors are in the order of `expected_tensors(unet)`, all finite. source: JSON-ready facts
    (`folder`, `pipeline_class`, `scheduler_class`, `diffusers_version`, `weights`).
    """

    unet: UNet2DConfig
    scheduler: SchedulerConfig
    schedule: Schedule  # the noise process that `scheduler` describes
    tensors: Tensors
    folder: Path
    source: dict[str, Any]

    def fingerprint(self) -> str:
        """Return a SHA-256 (hex) of configs and tensors: equal for equal networks and processes."""
        return fingerprint(self.unet, self.scheduler, self.tensors)


def fingerprint(
    unet: UNet2DConfig, scheduler: SchedulerConfig, tensors: Mapping[str, NDArray[np.float32]]
) -> str:
    """Return a SHA-256 (hex) of a network and its noise process, whatever files hold them."""
    digest = hashlib.sha256(json.dumps([unet.to_core(), scheduler.to_dict()]).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name], "<f4")
        digest.update(f"{name} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


# -------------------------------------------------------------------------------------- reading


def load_pipeline(folder: str | os.PathLike[str], *, variant: str | None = None) -> LoadedPipeline:
    """Read a diffusers pipeline folder, a flat one, or a bare model folder with a scheduler config.

    variant: "fp16" and the like picks `diffusion_pytorch_model.fp16.safetensors`; None picks the
    file without a variant, or else the only variant there is. Weights may be F16, BF16, F32 or F64
    and sharded. Links may not lead out of the folder, other than to the blobs of a Hugging Face
    cache (`boot.reading.check_inside`). Raises FileNotFoundError and NotADirectoryError for what is
    not there, FormatError for what is malformed or does not fit, UnsupportedModel for what `boot`
    cannot run.
    """
    root = check_folder("folder", folder)
    index = _read_pipeline_index(root)
    model_folder, scheduler_file = _find_components(root, index is not None)
    unet_values = read_json_object(check_inside(model_folder / MODEL_FILE, root))
    unet = _config_from(UNet2DConfig, unet_values, model_folder / MODEL_FILE)
    scheduler, schedule, scheduler_class = read_scheduler(check_inside(scheduler_file, root))
    if unet.out_channels != unet.in_channels:
        raise UnsupportedModel(
            f"{model_folder / MODEL_FILE}: out_channels: {unet.out_channels} is not supported with "
            f"in_channels {unet.in_channels}: models that also predict a variance, or take a "
            "conditioning image, cannot be distilled"
        )
    weights = check_inside(find_weights(model_folder, variant), root)
    source = {
        "folder": str(root.resolve()),
        "pipeline_class": (index or {}).get("_class_name"),
        "scheduler_class": scheduler_class,
        "diffusers_version": unet_values.get("_diffusers_version"),
        "weights": str(weights.relative_to(root)),
    }
    return LoadedPipeline(unet, scheduler, schedule, load_weights(weights, unet), root, source)


def read_scheduler(path: Path) -> tuple[SchedulerConfig, Schedule, str | None]:
    """Read a scheduler config: what it says, the noise process that follows, and its class.

    Raises an OSError, FormatError (also if the numbers make no noise process) or UnsupportedModel.
    """
    values = read_json_object(path, infinite=True)  # DPM-Solver's lambda_min_clipped is -Infinity
    config: SchedulerConfig = _config_from(SchedulerConfig, values, path)
    try:
        return config, Schedule.from_config(config), values.get("_class_name")
    except ValueError as problem:  # betas of 1, or a single timestep
        raise FormatError(f"{path}: {problem}") from None


def _config_from(kind: Any, values: dict[str, Any], path: Path) -> Any:
    """Build a config object from a file's content; every error names the file."""
    try:
        return kind.from_dict(values)
    except UnsupportedModel as problem:
        raise UnsupportedModel(f"{path}: {problem}") from None
    except (TypeError, ConfigError) as problem:
        raise FormatError(f"{path}: {problem}") from None


def _read_pipeline_index(root: Path) -> dict[str, Any] | None:
    """Read `model_index.json` if there is one; refuse pipelines that are more than a U-Net."""
    path = root / PIPELINE_FILE
    if not path.exists():
        return None
    values = read_json_object(check_inside(path, root))
    name = values.get("_class_name")
    if not isinstance(name, str):
        raise UnsupportedModel(
            f"{path}: _class_name must be the name of a diffusers pipeline, got {shown(name)}: "
            "pipelines that bring their own code are not supported"
        )
    components = {k: v for k, v in values.items() if not k.startswith("_") and isinstance(v, list)}
    for key, value in components.items():
        if value == [None, None]:
            continue
        if key not in (UNET, SCHEDULER):
            raise UnsupportedModel(
                f"{path}: {key}: {name} has a component that is not supported; supported: "
                f"pipelines of one {UNET} and one {SCHEDULER}"
            )
        if len(value) != 2 or not all(isinstance(word, str) for word in value):
            raise FormatError(f"{path}: {key} must be [library, class], got {shown(value)}")
        if value[0] != "diffusers" or (key == UNET and value[1] != MODEL_CLASS):
            raise UnsupportedModel(
                f"{path}: {key}: {shown(value)} is not supported; supported: "
                f"['diffusers', '{MODEL_CLASS if key == UNET else '...Scheduler'}']"
            )
    for key in (UNET, SCHEDULER):
        if components.get(key, [None, None]) == [None, None]:
            raise UnsupportedModel(f"{path}: {key}: {name} has no {key}, which boot needs")
    return values


def _find_components(root: Path, is_pipeline: bool) -> tuple[Path, Path]:
    """Return the folder of the U-Net and the file of the scheduler config."""
    model_folder = root / UNET if (root / UNET).is_dir() else root
    scheduler_folder = root / SCHEDULER if (root / SCHEDULER).is_dir() else root
    if not (model_folder / MODEL_FILE).exists():
        wanted = MODEL_FILE if is_pipeline else f"{PIPELINE_FILE} or {MODEL_FILE}"
        if (root / RUN_CONFIG_FILE).exists():
            raise FileNotFoundError(
                f"{str(root)!r} holds a run that is not finished, and no student yet: boot distill "
                "with --resume-from-checkpoint latest goes on with it"
            )
        raise FileNotFoundError(
            f"{str(model_folder)!r} has no {wanted}: it is not a diffusers pipeline or model folder"
        )
    scheduler_file = scheduler_folder / SCHEDULER_FILE
    if not scheduler_file.exists():
        above = (root.parent / PIPELINE_FILE).exists()
        hint = f"; give the pipeline folder {str(root.parent)!r} instead" if above else ""
        raise FileNotFoundError(f"{str(scheduler_folder)!r} has no {SCHEDULER_FILE}{hint}")
    return model_folder, scheduler_file


def find_weights(folder: Path, variant: str | None = None) -> Path:
    """Return the weights file of a model folder, or its shard index, which goes first.

    Raises ValueError for a choice of several variants, FormatError if there are only pickles,
    FileNotFoundError if there is nothing.
    """
    if variant is not None and not (isinstance(variant, str) and re.fullmatch(r"\w+", variant)):
        raise ValueError(f"variant must be a word such as 'fp16', got {shown(variant)}")
    dot = f".{variant}" if variant else ""
    for name in (f"{WEIGHTS_FILE}.index{dot}.json", f"{WEIGHTS_STEM}{dot}.safetensors"):
        if (folder / name).exists():
            return folder / name
    names = sorted(path.name for path in folder.iterdir())
    matches = [match for match in map(_VARIANT.fullmatch, names) if match]
    variants = sorted({match[1] or match[2] for match in matches})
    if variant is None and len(variants) == 1:
        return find_weights(folder, variants[0])
    if variants:
        missing = f"the variant {variant!r}" if variant else "weights without a variant"
        raise ValueError(
            f"variant must be one of {', '.join(map(repr, variants))}: {str(folder)!r} does not "
            f"have {missing}"
        )
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        raise FormatError(
            f"{str(folder)!r} has only pickled weights ({listed(pickles, 3)}), which boot never "
            f"loads; convert them once with diffusers: model.save_pretrained(folder)"
        )
    raise FileNotFoundError(f"{str(folder)!r} has no weights: expected {WEIGHTS_FILE}")


def find_tensors(path: Path, config: UNet2DConfig) -> dict[str, TensorInfo]:
    """Say where each of `expected_tensors(config)` lies, from headers alone; see `load_weights`."""
    infos: Mapping[str, TensorInfo]
    infos = read_index(path) if path.suffix == ".json" else read_header(path).tensors
    shapes = {name: info.shape for name, info in infos.items()}
    stored = match_tensors(expected_tensors(config), shapes, str(path))
    return {name: infos[given] for name, given in stored.items()}


def load_weights(path: Path, config: UNet2DConfig) -> Tensors:
    """Read the weights of a U-Net from a safetensors file or shard index, as float32.

    Old tensor names are accepted; anything missing, unexpected, misshapen or not finite is a
    FormatError, found from the headers before any data is read.
    """
    infos, expected = find_tensors(path, config), expected_tensors(config)
    arrays = read_tensors(infos.values())
    tensors = {n: arrays[infos[n].name].reshape(shape) for n, shape in expected.items()}
    broken = [name for name, array in tensors.items() if not np.isfinite(array).all()]
    if broken:
        raise FormatError(f"{path}: NaN or infinite numbers in {listed(broken)}")
    return tensors


# -------------------------------------------------------------------------------------- writing


def save_pipeline(
    folder: str | os.PathLike[str],
    unet_config: UNet2DConfig,
    scheduler_config: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    *,
    pipeline_class: str = "DDIMPipeline",
    extra_files: Mapping[str, str] | None = None,
    extra_tensors: Mapping[str, Mapping[str, NDArray[Any]]] | None = None,
    dtype: str = "float32",
    exist_ok: bool = False,
) -> None:
    """Write a pipeline folder that diffusers loads, all of it or nothing.

    scheduler_config: content of `scheduler_config.json`, with its `_class_name`. tensors: exactly
    those of `expected_tensors(unet_config)`, finite. extra_files: text by file name, beside
    `model_index.json`. extra_tensors: the same for safetensors files. dtype: "float32" or
    "float16". exist_ok: the folder may hold other files; its pipeline is replaced file by file,
    `model_index.json` last. Raises ValueError, TypeError, FileExistsError or another OSError before
    anything is replaced.
    """
    name = scheduler_config.get("_class_name")
    if not isinstance(name, str) or not name.endswith("Scheduler"):
        raise ValueError(f"scheduler_config must name its _class_name, got {shown(name)}")
    check_choice("dtype", dtype, ("float32", "float16"))
    arrays = _check_tensors(unet_config, tensors, dtype)
    extras = {**(extra_files or {}), **(extra_tensors or {})}
    _check_extra_names(extras)
    target = check_path("folder", folder)
    if target.exists():
        check_output_folder("folder", target, must_be_empty=not exist_ok)
    else:
        check_output_folder("folder", target.parent, must_be_empty=False)
    _refuse_other_weights(target / UNET)
    version = {"_diffusers_version": DIFFUSERS_VERSION}
    index = {
        "_class_name": pipeline_class,
        **version,
        SCHEDULER: ["diffusers", name],
        UNET: ["diffusers", MODEL_CLASS],
    }
    model = {"_class_name": MODEL_CLASS, **version, **unet_config.to_dict()}
    with folder_atomically(target, last=PIPELINE_FILE) as temporary:
        (temporary / UNET).mkdir()
        (temporary / SCHEDULER).mkdir()
        save_tensors(temporary / UNET / WEIGHTS_FILE, arrays)
        write_atomically(temporary / UNET / MODEL_FILE, to_json(model))
        scheduler = to_json({**version, **scheduler_config})
        write_atomically(temporary / SCHEDULER / SCHEDULER_FILE, scheduler)
        for file, values in (extra_tensors or {}).items():
            save_tensors(temporary / file, values)
        for file, text in (extra_files or {}).items():
            write_atomically(temporary / file, text)
        write_atomically(temporary / PIPELINE_FILE, to_json(index))


def _check_tensors(
    config: UNet2DConfig, tensors: Mapping[str, NDArray[Any]], dtype: str
) -> dict[str, NDArray[Any]]:
    expected = expected_tensors(config)
    if set(tensors) != set(expected):
        missing = listed(name for name in expected if name not in tensors)
        unexpected = listed(name for name in tensors if name not in expected)
        raise ValueError(
            f"tensors must be those of the config; missing: {missing or 'none'}; unexpected: "
            f"{unexpected or 'none'}"
        )
    arrays: dict[str, NDArray[Any]] = {}
    for name, shape in expected.items():
        array = check_array(name, tensors[name], shape)
        with np.errstate(over="ignore"):
            arrays[name] = array.astype(dtype, copy=False)
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} has numbers too large for {dtype}")
    return arrays


def _check_extra_names(names: Mapping[str, object]) -> None:
    reserved = (PIPELINE_FILE, UNET, SCHEDULER, MODEL_FILE, SCHEDULER_FILE)
    for name in names:
        bare = isinstance(name, str) and name == os.path.basename(name) and name.isprintable()
        if not bare or name in ("", ".", "..") or name in reserved or name.startswith(WEIGHTS_STEM):
            raise ValueError(
                f"extra files must have bare names other than {', '.join(reserved)}, got "
                f"{shown(name)}"
            )


def _refuse_other_weights(folder: Path) -> None:
    """Refuse a folder whose shards or variants a later load would take for the new weights."""
    if folder.is_dir():
        others = [p.name for p in folder.iterdir() if p.name.startswith(WEIGHTS_STEM)]
        others = [name for name in others if name != WEIGHTS_FILE]
        if others:
            raise FileExistsError(f"{str(folder)!r} already has other weights: {listed(others)}")
