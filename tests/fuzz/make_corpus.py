"""Writes the seed files of the fuzz corpus: one small good file of every kind, by boot itself."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from models import DDPM, PLAIN, save_teacher
from pipelines import CONFIG, shard
from targets import checkpoint

from boot.checkpoint import MANIFEST_FILE
from boot.config import DistillConfig
from boot.metrics import Statistics
from boot.reading import to_json
from boot.safetensors_io import save_tensors

CORPUS = Path(__file__).resolve().parent / "corpus"


def put(target: str, name: str, data: bytes | str) -> None:
    """Write one seed."""
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def weights() -> None:
    """Every readable type, an empty file, and shapes with zeros."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        save_tensors(path, {"a": np.ones((2, 3), "f4"), "b": np.ones(4, "f2"), "c": np.ones(1)})
        put("safetensors", "three", path.read_bytes())
        save_tensors(path, {"zero": np.ones((0, 3), "f4"), "scalar": np.ones((), "f4")}, {"k": "v"})
        put("safetensors", "odd-shapes", path.read_bytes())
    header = b'{"h":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    put("safetensors", "bf16", struct.pack("<Q", len(header)) + header + bytes(4))
    header = b'{"z":{"dtype":"F32","shape":[0,4611686018427387904],"data_offsets":[0,0]}}'
    put("safetensors", "zero-times-huge", struct.pack("<Q", len(header)) + header)  # a find
    put("safetensors", "empty", struct.pack("<Q", 2) + b"{}")


def main() -> None:
    """Write them all."""
    shutil.rmtree(CORPUS, ignore_errors=True)
    weights()
    with tempfile.TemporaryDirectory() as name:
        folder = save_teacher(Path(name) / "t", CONFIG)
        shard(folder)
        index = next(folder.glob("unet/*.index.json"))
        put("index", "two-shards", index.read_bytes())
        put("unet_config", "class", (folder / "unet/config.json").read_bytes())
        put("scheduler_config", "ddpm", (folder / "scheduler/scheduler_config.json").read_bytes())
    unet = {"_class_name": "UNet2DModel", **PLAIN.to_core(), "time_embedding_type": "fourier"}
    put("unet_config", "fourier", to_json(unet))
    put("unet_config", "negative-padding", to_json({**unet, "downsample_padding": -1}))  # a find
    betas = {"_class_name": "DDIMScheduler", **DDPM.to_dict(), "num_train_timesteps": 4}
    put("scheduler_config", "betas", to_json({**betas, "trained_betas": [0.1, 0.2, 0.3, 0.4]}))
    put("distill_config", "defaults", DistillConfig().to_json())
    info = {"format_version": 1, "t_max": 0.8, "t_min": 0.001, "guidance_scale": 1.5}
    put("student_info", "student", json.dumps({**info, "null_class_label": 2, "teacher": {}}))
    origin = {"name": "digits", "sha256": "00"}
    training = {"steps": 9, "config": DistillConfig().to_dict()}
    put("student_info", "whole", json.dumps({**info, "teacher": origin, "training": training}))
    put("json", "nested", '{"a": [1, -2.5e3, {"b": [true, null, "\\u00e9"]}], "c": {}}')
    with tempfile.TemporaryDirectory() as name:
        rows = np.random.default_rng(0).standard_normal((6, 2))
        statistics = Statistics.from_features(rows, labels=np.arange(6) % 2)
        put("statistics", "classes", statistics.save(Path(name) / "s.npz").read_bytes())
        images = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 1, 2, 2)
        np.savez(Path(name) / "i.npz", images=images, labels=np.arange(6) % 2)
        put("reference", "images", (Path(name) / "i.npz").read_bytes())
        put("reference", "statistics", (Path(name) / "s.npz").read_bytes())
    put("manifest", "small", (checkpoint() / MANIFEST_FILE).read_bytes())


if __name__ == "__main__":
    main()
