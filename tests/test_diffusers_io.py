"""Pipeline folders: every layout and weight format is read, every bad one is refused by name."""

import os
import shutil

import numpy as np
import pytest
from pipelines import (
    CONFIG,
    INDEX,
    SCHEDULER,
    TENSORS,
    WEIGHTS,
    assert_holds_the_tensors,
    edit,
    make_tensors,
    shard,
    without,
)

from boot import diffusers_io
from boot.diffusers_io import (
    LoadedPipeline,
    SchedulerConfig,
    find_weights,
    load_pipeline,
    save_pipeline,
)
from boot.errors import BootWarning, FormatError, UnsupportedModel
from boot.safetensors_io import save_tensors


@pytest.fixture
def folder(tmp_path):
    """A valid pipeline folder, freshly written."""
    save_pipeline(tmp_path / "pipe", CONFIG, SCHEDULER, TENSORS)
    return tmp_path / "pipe"


# ----------------------------------------------------------------------------------------- layouts


def test_pipeline_folder(folder):
    pipeline = load_pipeline(folder)
    assert isinstance(pipeline, LoadedPipeline)
    assert pipeline.unet == CONFIG
    assert pipeline.scheduler == SchedulerConfig(prediction_type="v_prediction", clip_sample=True)
    assert_holds_the_tensors(pipeline)
    assert pipeline.source == {
        "folder": str(folder),
        "pipeline_class": "DDIMPipeline",
        "scheduler_class": "DDIMScheduler",
        "diffusers_version": diffusers_io.DIFFUSERS_VERSION,
        "weights": WEIGHTS,
    }
    assert_holds_the_tensors(load_pipeline(str(folder)))


def flatten(folder):
    for path in (*folder.glob("unet/*"), *folder.glob("scheduler/*")):
        shutil.move(path, folder / path.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()


def test_flat_folder(folder):
    flatten(folder)
    pipeline = load_pipeline(folder)
    assert_holds_the_tensors(pipeline)
    assert pipeline.source["weights"] == "diffusion_pytorch_model.safetensors"


def test_bare_model_folder_with_a_scheduler_config(folder):
    flatten(folder)
    (folder / "model_index.json").unlink()
    pipeline = load_pipeline(folder)
    assert_holds_the_tensors(pipeline)
    assert pipeline.source["pipeline_class"] is None
    (folder / "scheduler").mkdir()
    shutil.move(folder / "scheduler_config.json", folder / "scheduler" / "scheduler_config.json")
    assert_holds_the_tensors(load_pipeline(folder))


def test_null_components_and_options_are_ignored(folder):
    edit(folder / "model_index.json", safety_checker=[None, None], requires_safety_checker=True)
    assert_holds_the_tensors(load_pipeline(folder))


# ------------------------------------------------------------------------------- kinds of weights


def test_sharded_weights(folder):
    shard(folder)
    pipeline = load_pipeline(folder)
    assert_holds_the_tensors(pipeline)
    assert pipeline.source["weights"] == INDEX


def test_a_shard_index_goes_before_a_single_file(folder):
    save_tensors(folder / "keep.safetensors", TENSORS)
    shard(folder)
    save_tensors(folder / WEIGHTS, {"wrong": np.ones(1, np.float32)})
    assert_holds_the_tensors(load_pipeline(folder))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_lone_variant_is_found_and_can_be_named(folder, sharded):
    if sharded:
        shard(folder, ".fp16")
    else:
        (folder / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert_holds_the_tensors(load_pipeline(folder))
    assert_holds_the_tensors(load_pipeline(folder, variant="fp16"))
    with pytest.raises(ValueError, match="variant must be one of 'fp16': .* have the variant 'ema"):
        load_pipeline(folder, variant="ema")


def test_of_several_variants_one_must_be_named(folder):
    for variant in ("fp16", "non_ema"):
        target = folder / "unet" / f"diffusion_pytorch_model.{variant}.safetensors"
        shutil.copy(folder / WEIGHTS, target)
    assert find_weights(folder / "unet").name == "diffusion_pytorch_model.safetensors"
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="variant must be one of 'fp16', 'non_ema'"):
        load_pipeline(folder)
    assert_holds_the_tensors(load_pipeline(folder, variant="non_ema"))
    with pytest.raises(ValueError, match="variant must be a word"):
        load_pipeline(folder, variant="../x")


def test_half_precision_weights(folder):
    halves = {name: array.astype(np.float16) for name, array in TENSORS.items()}
    save_tensors(folder / WEIGHTS, halves)
    assert_holds_the_tensors(load_pipeline(folder))


def test_legacy_attention_names_and_1x1_matrices(folder):
    old = {}
    for name, array in TENSORS.items():
        for before, now in (("query", "to_q"), ("key", "to_k"), ("value", "to_v")):
            name = name.replace(f".{now}.", f".{before}.")
        name = name.replace(".to_out.0.", ".proj_attn.")
        conv_like = "attentions" in name and array.ndim == 2
        old[name] = array[:, :, None, None] if conv_like else array
    assert sum("proj_attn" in name for name in old) == 8
    save_tensors(folder / WEIGHTS, old)
    assert_holds_the_tensors(load_pipeline(folder))


# -------------------------------------------------------------------------------------- bad folders


def rewrite(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1429\n"

BAD_FOLDERS = {
    "lfs weights": (lambda f: rewrite(f / WEIGHTS, LFS), FormatError, "is a Git LFS pointer"),
    "lfs config": (
        lambda f: rewrite(f / "unet" / "config.json", LFS),
        FormatError,
        "config.json is a Git LFS pointer",
    ),
    "html index": (
        lambda f: rewrite(f / "model_index.json", "<!doctype html>"),
        FormatError,
        "model_index.json is an HTML page",
    ),
    "cut": (
        lambda f: os.truncate(f / WEIGHTS, 5000),
        FormatError,
        "cut short",
    ),
    "no weights": (
        lambda f: (f / WEIGHTS).unlink(),
        FileNotFoundError,
        "no weights: expected diffusion_pytorch_model.safetensors",
    ),
    "pickle only": (
        lambda f: (f / WEIGHTS).rename(f / "unet" / "diffusion_pytorch_model.bin"),
        FormatError,
        r"only pickled weights \(diffusion_pytorch_model.bin\), which boot never loads",
    ),
    "checkpoint only": (
        lambda f: (f / WEIGHTS).rename(f / "unet" / "last.ckpt"),
        FormatError,
        "only pickled weights",
    ),
    "no model config": (
        lambda f: (f / "unet" / "config.json").unlink(),
        FileNotFoundError,
        "unet' has no config.json",
    ),
    "no scheduler": (
        lambda f: (f / "scheduler" / "scheduler_config.json").unlink(),
        FileNotFoundError,
        "has no scheduler_config.json",
    ),
    "not a pipeline": (
        lambda f: (shutil.rmtree(f / "unet"), (f / "model_index.json").unlink()),
        FileNotFoundError,
        "has no model_index.json or config.json",
    ),
    "other model": (
        lambda f: edit(f / "unet" / "config.json", _class_name="UNet2DConditionModel"),
        UnsupportedModel,
        "config.json: _class_name: 'UNet2DConditionModel' is not supported",
    ),
    "other block": (
        lambda f: edit(f / "unet" / "config.json", up_block_types=["KUpBlock2D", "UpBlock2D"]),
        UnsupportedModel,
        "config.json: up_block_types.0.: 'KUpBlock2D'",
    ),
    "bad config value": (
        lambda f: edit(f / "unet" / "config.json", norm_num_groups=3),
        FormatError,
        "config.json: norm_num_groups must divide",
    ),
    "bad config type": (
        lambda f: edit(f / "unet" / "config.json", in_channels="1"),
        FormatError,
        "config.json: in_channels must be an integer",
    ),
    "huge config": (
        lambda f: edit(f / "unet" / "config.json", layers_per_block=10**15),
        FormatError,
        "config.json: layers_per_block",
    ),
    "duplicate key": (
        lambda f: rewrite(f / "unet" / "config.json", '{"in_channels": 1, "in_channels": 3}'),
        FormatError,
        "the key 'in_channels' appears twice",
    ),
    "learned variance": (
        lambda f: edit(f / "unet" / "config.json", out_channels=2),
        UnsupportedModel,
        "out_channels: 2 is not supported with in_channels 1",
    ),
    "other scheduler": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", _class_name="EDMEulerScheduler"),
        UnsupportedModel,
        "scheduler_config.json: _class_name: 'EDMEulerScheduler' is not supported",
    ),
    "other schedule": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", beta_schedule="exp"),
        UnsupportedModel,
        "scheduler_config.json: beta_schedule: 'exp' is not supported",
    ),
    "one timestep": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", num_train_timesteps=1),
        FormatError,
        "scheduler_config.json: alphas_cumprod must have shape",
    ),
    "a beta of one": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", beta_end=1.0),
        FormatError,
        "scheduler_config.json: beta_schedule linear: beta 1 at index",
    ),
    "custom pipeline": (
        lambda f: edit(f / "model_index.json", _class_name=["my_pipeline", "MyPipeline"]),
        UnsupportedModel,
        r"_class_name must be the name .*, got \['my_pipeline', 'MyPipeline'\]",
    ),
    "latent pipeline": (
        lambda f: edit(f / "model_index.json", vqvae=["diffusers", "VQModel"]),
        UnsupportedModel,
        "model_index.json: vqvae: DDIMPipeline has a component that is not supported",
    ),
    "custom component": (
        lambda f: edit(f / "model_index.json", unet=["my_code", "UNet2DModel"]),
        UnsupportedModel,
        "unet: .'my_code', 'UNet2DModel'. is not supported",
    ),
    "conditional pipeline": (
        lambda f: edit(f / "model_index.json", unet=["diffusers", "UNet2DConditionModel"]),
        UnsupportedModel,
        "unet: .'diffusers', 'UNet2DConditionModel'. is not supported",
    ),
    "malformed component": (
        lambda f: edit(f / "model_index.json", unet=["diffusers"]),
        FormatError,
        r"unet must be \[library, class\]",
    ),
    "no unet": (
        lambda f: edit(f / "model_index.json", unet=[None, None]),
        UnsupportedModel,
        "unet: DDIMPipeline has no unet",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders_are_refused_by_name(folder, case):
    spoil, error, text = BAD_FOLDERS[case]
    spoil(folder)
    with pytest.raises(error, match=text) as caught:
        load_pipeline(folder)
    assert "\n" not in str(caught.value)


def test_folders_that_are_not_there(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_pipeline(tmp_path / "gone")
    with pytest.raises(NotADirectoryError, match="must be a folder"):
        load_pipeline(folder / WEIGHTS)
    with pytest.raises(TypeError, match="folder must be a path"):
        load_pipeline(None)
    with pytest.raises(FileNotFoundError, match="give the pipeline folder .*pipe' instead"):
        load_pipeline(folder / "unet")


BAD_TENSORS = [
    (without("conv_in.bias"), "1 missing: conv_in.bias"),
    ({**TENSORS, "extra": np.ones(1, "f4")}, "1 unexpected: extra"),
    ({**TENSORS, "conv_in.bias": np.ones(7, "f4")}, r"conv_in.bias .found \(7,\), expected \(8,\)"),
    ({}, r"missing: conv_in.weight, .* more$"),
    ({**TENSORS, "conv_in.bias": np.full(8, np.nan, "f4")}, "NaN or infinite numbers in conv_in.b"),
    ({**TENSORS, "conv_in.bias": np.full(8, 1e300)}, "NaN or infinite numbers in conv_in.bias"),
]


@pytest.mark.parametrize(("tensors", "text"), BAD_TENSORS, ids=range(len(BAD_TENSORS)))
def test_tensors_that_do_not_fit_are_listed(folder, tensors, text):
    save_tensors(folder / WEIGHTS, tensors)
    with pytest.raises(FormatError, match=text):
        load_pipeline(folder)


def test_integer_tensors_are_refused(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content.replace(b'"dtype":"F32"', b'"dtype":"I32"'))
    with pytest.raises(FormatError, match="has dtype I32; boot reads F16, BF16, F32, F64"):
        load_pipeline(folder)


def test_old_configs_warn(folder):
    edit(folder / "unet" / "config.json", attention_head_dim=None, _diffusers_version="0.0.4")
    with pytest.warns(BootWarning, match="attention_head_dim is missing"):
        assert load_pipeline(folder).unet.attention_head_dim == 8


# ------------------------------------------------------------------------------------- fingerprint


def test_fingerprint_tells_networks_apart_but_not_files(folder, tmp_path):
    first = load_pipeline(folder).fingerprint()
    shard(folder)
    assert load_pipeline(folder).fingerprint() == first
    save_pipeline(tmp_path / "b", CONFIG, SCHEDULER, make_tensors(seed=1))
    assert load_pipeline(tmp_path / "b").fingerprint() != first
    save_pipeline(tmp_path / "c", CONFIG, {**SCHEDULER, "beta_end": 0.03}, TENSORS)
    assert load_pipeline(tmp_path / "c").fingerprint() != first
