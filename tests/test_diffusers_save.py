"""Saved pipeline folders: complete or absent, and read alike by diffusers and by us."""

import json
import os
import random

import numpy as np
import pytest
from pipelines import (
    CONFIG,
    PLAIN,
    SCHEDULER,
    TENSORS,
    WEIGHTS,
    assert_holds_the_tensors,
    files_of,
    make_tensors,
    random_config,
    shard,
    without,
)

from boot.diffusers_io import UNet2DConfig, expected_tensors, load_pipeline, save_pipeline
from boot.safetensors_io import load_tensors


@pytest.fixture
def folder(tmp_path):
    """A valid pipeline folder, freshly written."""
    save_pipeline(tmp_path / "pipe", CONFIG, SCHEDULER, TENSORS)
    return tmp_path / "pipe"


# ------------------------------------------------------------------------------------------ saving


def test_save_writes_a_complete_folder_with_extras(tmp_path):
    extra = {"second.weight": np.ones(3, np.float32)}
    save_pipeline(
        tmp_path / "a" / "b",
        CONFIG,
        SCHEDULER,
        TENSORS,
        pipeline_class="DDPMPipeline",
        extra_files={"README.md": "# é\n", "boot.json": "{}"},
        extra_tensors={"boot.safetensors": extra},
    )
    out = tmp_path / "a" / "b"
    assert files_of(tmp_path / "a") == [
        f"b/{name}" for name in sorted([*PLAIN, "README.md", "boot.json", "boot.safetensors"])
    ]
    assert (out / "README.md").read_text(encoding="utf-8") == "# é\n"
    np.testing.assert_array_equal(load_tensors(out / "boot.safetensors")["second.weight"], 1)
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline"
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    scheduler = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["steps_offset"] == 1


def test_save_as_float16_is_half_the_size(tmp_path, folder):
    save_pipeline(tmp_path / "half", CONFIG, SCHEDULER, TENSORS, dtype="float16")
    assert_holds_the_tensors(load_pipeline(tmp_path / "half"))
    sizes = [(f / WEIGHTS).stat().st_size for f in (folder, tmp_path / "half")]
    assert sizes[1] < 0.7 * sizes[0]


def test_save_into_an_empty_folder(tmp_path):
    (tmp_path / "out").mkdir()
    save_pipeline(tmp_path / "out", CONFIG, SCHEDULER, TENSORS)
    assert files_of(tmp_path) == [f"out/{name}" for name in PLAIN]


def test_save_beside_other_files_needs_leave(folder):
    (folder / "checkpoint-5").mkdir()
    (folder / "log.jsonl").write_text("log")
    changed = make_tensors(seed=2)
    with pytest.raises(FileExistsError, match="must be a new or empty folder"):
        save_pipeline(folder, CONFIG, SCHEDULER, changed)
    assert_holds_the_tensors(load_pipeline(folder))
    save_pipeline(folder, CONFIG, SCHEDULER, changed, exist_ok=True)
    assert_holds_the_tensors(load_pipeline(folder), changed)
    assert (folder / "log.jsonl").read_text() == "log" and (folder / "checkpoint-5").is_dir()
    assert files_of(folder) == sorted([*PLAIN, "log.jsonl"])


def test_save_refuses_weights_that_would_shadow_the_new_ones(folder):
    shard(folder)
    with pytest.raises(FileExistsError, match="already has other weights: .*index.json"):
        save_pipeline(folder, CONFIG, SCHEDULER, TENSORS, exist_ok=True)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"tensors": without("conv_in.bias")}, ValueError, "missing: conv_in.bias; unexpected: no"),
        ({"tensors": {**TENSORS, "x": np.ones(1)}}, ValueError, "missing: none; unexpected: x"),
        (
            {"tensors": {**TENSORS, "conv_in.bias": np.ones((8, 1), "f4")}},
            ValueError,
            r"conv_in.bias must have shape \(8\), got \(8, 1\)",
        ),
        (
            {"tensors": {**TENSORS, "conv_in.bias": np.full(8, np.inf, "f4")}},
            ValueError,
            "conv_in.bias must be finite",
        ),
        (
            {"tensors": {**TENSORS, "conv_in.bias": np.full(8, 1e6, "f4")}, "dtype": "float16"},
            ValueError,
            "conv_in.bias has numbers too large for float16",
        ),
        ({"tensors": {**TENSORS, "conv_in.bias": np.ones(8, int)}}, TypeError, "got dtype int64"),
        ({"scheduler_config": {}}, ValueError, "scheduler_config must name its _class_name"),
        ({"scheduler_config": {"_class_name": "X"}}, ValueError, "got 'X'"),
        ({"dtype": "bfloat16"}, ValueError, "dtype must be one of 'float32', 'float16'"),
        ({"extra_files": {"../x": ""}}, ValueError, "bare names"),
        ({"extra_files": {"unet": ""}}, ValueError, "bare names"),
        ({"extra_files": {"model_index.json": ""}}, ValueError, "got 'model_index.json'"),
        ({"extra_tensors": {"diffusion_pytorch_model.x": {}}}, ValueError, "bare names"),
        ({"folder": 3}, TypeError, "folder must be a path"),
    ],
)
def test_save_refuses_before_it_writes(tmp_path, changes, error, text):
    arguments = {
        "folder": tmp_path / "out",
        "unet_config": CONFIG,
        "scheduler_config": SCHEDULER,
        "tensors": TENSORS,
    }
    with pytest.raises(error, match=text):
        save_pipeline(**{**arguments, **changes})
    assert files_of(tmp_path) == []


def test_a_failing_save_leaves_nothing_behind(tmp_path, folder, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    before = files_of(tmp_path)
    monkeypatch.setattr(os, "replace", fail)
    for target in (tmp_path / "new", folder):
        with pytest.raises(OSError, match="No space left"):
            save_pipeline(target, CONFIG, SCHEDULER, make_tensors(seed=3), exist_ok=True)
    assert files_of(tmp_path) == before
    assert_holds_the_tensors(load_pipeline(folder))


def test_save_into_a_place_that_cannot_be_written(folder):
    with pytest.raises(NotADirectoryError, match="is a file"):
        save_pipeline(folder / WEIGHTS, CONFIG, SCHEDULER, TENSORS)
    if os.path.isdir("/proc"):
        with pytest.raises(OSError, match="folder is not writable"):
            save_pipeline("/proc/boot/student", CONFIG, SCHEDULER, TENSORS)


# --------------------------------------------------------------------------------- with diffusers


@pytest.fixture
def diffusers():
    pytest.importorskip("torch")
    return pytest.importorskip("diffusers")


def assert_model_holds(model, tensors=TENSORS):
    state = model.state_dict()
    assert set(state) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(state[name].float().numpy(), array, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_diffusers_loads_what_we_save(diffusers, tmp_path, dtype):
    save_pipeline(
        tmp_path / "pipe",
        CONFIG,
        SCHEDULER,
        TENSORS,
        dtype=dtype,
        extra_files={"boot.json": "{}", "README.md": "x"},
        extra_tensors={"boot.safetensors": {"x": np.ones(1, np.float32)}},
    )
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "pipe")
    assert_model_holds(pipeline.unet)
    assert pipeline.unet.config.num_class_embeds == 3
    assert pipeline.unet.config.block_out_channels == [8, 16]
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.steps_offset == 1


@pytest.mark.parametrize(
    "options", [{}, {"max_shard_size": "10KB"}, {"variant": "fp16"}], ids=["one", "shards", "fp16"]
)
def test_we_load_what_diffusers_saves(diffusers, tmp_path, options):
    import torch

    model = diffusers.UNet2DModel(**CONFIG.to_dict())
    model.load_state_dict({name: torch.from_numpy(a) for name, a in TENSORS.items()})
    if "variant" in options:
        model = model.half()
    scheduler = diffusers.PNDMScheduler(beta_schedule="squaredcos_cap_v2")
    pipeline = diffusers.DDPMPipeline(model, scheduler)
    pipeline.save_pretrained(tmp_path / "pipe", **options)
    loaded = load_pipeline(tmp_path / "pipe")
    assert loaded.unet == CONFIG
    assert loaded.scheduler.beta_schedule == "squaredcos_cap_v2"
    assert loaded.scheduler.clip_sample is loaded.scheduler.thresholding is False
    assert_holds_the_tensors(loaded)
    assert ("index" in loaded.source["weights"]) == ("max_shard_size" in options)


def test_we_load_bfloat16_from_diffusers(diffusers, tmp_path):
    import torch

    model = diffusers.UNet2DModel(**CONFIG.to_dict()).bfloat16()
    diffusers.DDPMPipeline(model, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    loaded = load_pipeline(tmp_path / "pipe")
    assert model.dtype is torch.bfloat16
    assert_model_holds(model, loaded.tensors)


# ----------------------------------------------------------------------------------- with the core


@pytest.mark.parametrize("seed", range(40))
def test_the_core_builds_the_same_tensors(seed):
    core = pytest.importorskip("boot._core")
    config = UNet2DConfig(**random_config(random.Random(seed)))
    parameters = core.UNet2D(config.to_core()).parameters
    assert {name: tuple(shape) for name, shape, _ in parameters} == expected_tensors(config)
