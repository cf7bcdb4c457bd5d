"""Wrong calls: each must raise the exact exception, say what is wrong, and change nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shutil
import struct

import numpy as np
import pytest
from models import CONFIG, PLAIN, make_teacher, noise, save_teacher
from pipelines import edit
from test_student import make_student

from boot.config import DistillConfig
from boot.distiller import Distiller
from boot.errors import ConfigError, FormatError, UnsupportedModel
from boot.evaluation import load_reference
from boot.metrics import Statistics
from boot.safetensors_io import load_tensors, save_tensors
from boot.student import Student
from boot.teacher import Teacher

X = noise(2)
CLASSED = make_teacher(CONFIG)
FREE = make_teacher(PLAIN)
IDENTITY = make_teacher(dataclasses.replace(CONFIG, class_embed_type="identity"))
STUDENT = make_student(CONFIG)
FREE_STUDENT = make_student(PLAIN)
MODELS = [CLASSED.model, FREE.model, IDENTITY.model, STUDENT.model, FREE_STUDENT.model]


def with_nan(x):
    x = x.copy()
    x[0, 0, 0, 0] = np.nan
    return x


class Lazy:
    """An array that fails when asked for its values."""

    def __array__(self, *args, **kwargs):
        raise RuntimeError("on another device")


# (call, exception, pattern of its message)
CALLS = [
    # ------------------------------------------------------------------- teacher.model: the images
    (lambda: FREE.model(X.astype(np.int32), 5), TypeError, "sample must hold float.*int32"),
    (lambda: FREE.model(X.astype(bool), 5), TypeError, "sample must hold float.*bool"),
    (lambda: FREE.model(X.astype(complex), 5), TypeError, "sample must hold float.*complex"),
    (lambda: FREE.model(X.astype(object), 5), TypeError, "sample must hold float.*object"),
    (lambda: FREE.model(X.astype("U8"), 5), TypeError, "sample must hold float.*U8"),
    (lambda: FREE.model(X.tolist(), 5), TypeError, r"sample must be an array.*list"),
    (lambda: FREE.model(None, 5), TypeError, "sample must be an array.*None"),
    (lambda: FREE.model("noise", 5), TypeError, "sample must be an array.*str"),
    (lambda: FREE.model(Lazy(), 5), TypeError, "sample: Lazy cannot become an array: on another"),
    (lambda: FREE.model(np.ma.masked_array(X, X > 0), 5), TypeError, "sample must not be a masked"),
    (lambda: FREE.model(X[0], 5), ValueError, r"sample must have shape \(any, 1, any, any\)"),
    (lambda: FREE.model(X[None], 5), ValueError, r"sample must have shape.*got \(1, 2, 1, 8, 8\)"),
    (lambda: FREE.model(np.float32(1), 5), TypeError, "sample must be an array"),
    (lambda: FREE.model(noise(2, channels=3), 5), ValueError, r"\(any, 1, .*got \(2, 3, 8, 8\)"),
    (lambda: FREE.model(noise(2, size=7), 5), ValueError, "multiples of 2.*7, 7"),
    (lambda: FREE.model(X[:0], 5), ValueError, r"sample must not be empty, got shape \(0, 1"),
    (lambda: FREE.model(X[..., :0], 5), ValueError, "sample must not be empty"),
    (lambda: FREE.model(with_nan(X), 5), ValueError, "sample must be finite.*1 NaN or Inf of 128"),
    (lambda: FREE.model(np.full_like(X, np.inf), 5), ValueError, "sample must be finite.*128 NaN"),
    (lambda: FREE.model(np.full((2, 1, 8, 8), 1e300), 5), ValueError, "finite in float32"),
    # ---------------------------------------------------------------- teacher.model: the timesteps
    (lambda: FREE.model(X, -1), ValueError, r"timestep must be finite and >= 0.0 and <= 999.0"),
    (lambda: FREE.model(X, 1000), ValueError, r"timestep must be .*<= 999.0, got 1000.0"),
    (lambda: FREE.model(X, [5, 1000]), ValueError, r"timestep must be .*<= 999.0, got 1000.0"),
    (lambda: FREE.model(X, float("nan")), ValueError, "timestep must be finite.*nan"),
    (lambda: FREE.model(X, np.array([1.0, np.inf])), ValueError, "timestep must be finite.*inf"),
    (lambda: FREE.model(X, [1, 2, 3]), ValueError, r"must be a number or have shape \(2,\)"),
    (lambda: FREE.model(X, np.zeros((2, 1))), ValueError, r"shape \(2,\), got \(2, 1\)"),
    (lambda: FREE.model(X, "5"), TypeError, "timestep must be numbers.*'5'"),
    (lambda: FREE.model(X, None), TypeError, "timestep must be numbers.*None"),
    (lambda: FREE.model(X, True), TypeError, "timestep must be numbers.*True"),
    (lambda: FREE.model(X, [1, "2"]), TypeError, r"timestep\[1\] must be a number"),
    (lambda: FREE.model(X, np.array(["1", "2"])), TypeError, "timestep must hold numbers"),
    (lambda: FREE.model(X, 5, target_timestep=3), ValueError, "target_timestep must be None"),
    # -------------------------------------------------------------------- teacher.model: the labels
    (lambda: FREE.model(X, 5, 0), ValueError, "class_labels must be None: the model is not class"),
    (lambda: CLASSED.model(X, 5), ValueError, "class_labels must be given"),
    (lambda: CLASSED.model(X, 5, 3), ValueError, r"class_labels must be 0 \.\.\. 2, got 3"),
    (lambda: CLASSED.model(X, 5, -1), ValueError, r"class_labels must be 0 \.\.\. 2, got -1"),
    (lambda: CLASSED.model(X, 5, [0, 2**63]), ValueError, r"must be 0 \.\.\. 2, got 92233"),
    (lambda: CLASSED.model(X, 5, [0, 1, 2]), ValueError, r"shape \(2,\), got \(3,\)"),
    (lambda: CLASSED.model(X, 5, [[0], [1]]), TypeError, r"class_labels\[0\] must be an integer"),
    (lambda: CLASSED.model(X, 5, [0.0, 1.0]), TypeError, r"class_labels\[0\] must be an integer"),
    (lambda: CLASSED.model(X, 5, np.zeros(2)), TypeError, "must hold integers, got dtype float64"),
    (lambda: CLASSED.model(X, 5, "0"), TypeError, "class_labels must be integers.*'0'"),
    (lambda: CLASSED.model(X, 5, True), TypeError, "class_labels must be integers.*True"),
    (lambda: IDENTITY.model(X, 5, [0, 1]), TypeError, "class_labels must be an array"),
    (lambda: IDENTITY.model(X, 5, np.zeros((2, 5))), ValueError, r"shape \(2, 32\), got \(2, 5\)"),
    # ------------------------------------------------------------------------------ teacher.sample
    (lambda: FREE.sample(), TypeError, "n, the number of images, or noise must be given"),
    (lambda: FREE.sample(0), ValueError, "n must be an integer >= 1.*got 0"),
    (lambda: FREE.sample(-3), ValueError, "n must be an integer >= 1.*got -3"),
    (lambda: FREE.sample(2.0), TypeError, "n must be an integer, got 2.0"),
    (lambda: FREE.sample("2"), TypeError, "n must be an integer, got '2'"),
    (lambda: FREE.sample(2**40), ValueError, "n must be an integer .*<= 2147483648"),
    (lambda: FREE.sample(3, noise=X), ValueError, "n must be 2, the number of images in noise"),
    (lambda: FREE.sample(noise=with_nan(X)), ValueError, "noise must be finite"),
    (lambda: FREE.sample(2, seed=-1), OverflowError, "seed must be an integer >= 0"),
    (lambda: FREE.sample(2, seed=2**64), OverflowError, "seed must be .*<= 18446744073709551615"),
    (lambda: FREE.sample(2, seed=1.5), TypeError, "seed must be an integer, got 1.5"),
    (lambda: FREE.sample(2, num_inference_steps=0), ValueError, "num_inference_steps must be"),
    (lambda: FREE.sample(2, num_inference_steps=1001), ValueError, r"1 \.\.\. 1000 for t_start 1"),
    (lambda: FREE.sample(2, num_inference_steps=9, t_start=0.008), ValueError, r"1 \.\.\. 8"),
    (lambda: FREE.sample(2, num_inference_steps=2.5), TypeError, "num_inference_steps must be an"),
    (lambda: FREE.sample(2, sampler="dpmm"), ValueError, "sampler must be one of 'ddim'"),
    (lambda: FREE.sample(2, sampler=1), TypeError, "sampler must be a string"),
    (lambda: FREE.sample(2, t_start=0), ValueError, "t_start must be finite and > 0"),
    (lambda: FREE.sample(2, t_start=1.5), ValueError, "t_start must be finite and .*<= 1"),
    (lambda: FREE.sample(2, guidance_scale=2), ValueError, "guidance_scale must be 1 for 'tiny'"),
    (lambda: FREE.sample(2, null_class_label=0), ValueError, "null_class_label must be None"),
    (lambda: FREE.sample(2, class_labels=0), ValueError, "class_labels must be None"),
    (lambda: CLASSED.sample(2, guidance_scale=-1), ValueError, "guidance_scale must be finite"),
    (lambda: CLASSED.sample(2, guidance_scale=np.nan), ValueError, "guidance_scale must be finite"),
    (lambda: CLASSED.sample(2, guidance_scale="2"), TypeError, "guidance_scale must be a number"),
    (lambda: CLASSED.sample(2, null_class_label=3), ValueError, "null_class_label must be .*<= 2"),
    (lambda: CLASSED.sample(2, class_labels=[0, 1, 2]), ValueError, r"shape \(2,\), got \(3,\)"),
    (lambda: IDENTITY.sample(2), UnsupportedModel, "class_embed_type: labels of a 'identity'"),
    # ------------------------------------------------------------------------------------- student
    (lambda: STUDENT(X, 0.0001, 0), ValueError, "t must be finite and >= 0.001 and <= 0.8"),
    (lambda: STUDENT(X, 0.9, 0), ValueError, "t must be finite and .*<= 0.8, got 0.9"),
    (lambda: STUDENT(X, [0.1, np.nan], 0), ValueError, r"t\[1\] must be finite"),
    (lambda: STUDENT(X, "0.5", 0), TypeError, "t must be numbers"),
    (lambda: STUDENT(X, [0.1] * 3, 0), ValueError, r"t must be a number or have shape \(2,\)"),
    (lambda: STUDENT(X, 0.5), ValueError, "class_labels must be given"),
    (lambda: STUDENT(X, 0.5, 7), ValueError, r"class_labels must be 0 \.\.\. 2, got 7"),
    (lambda: STUDENT(X[0], 0.5, 0), ValueError, "noise must have shape"),
    (lambda: STUDENT(X.astype("i8"), 0.5, 0), TypeError, "noise must hold float"),
    (lambda: STUDENT(with_nan(X), 0.5, 0), ValueError, "noise must be finite"),
    (lambda: STUDENT.sample(), TypeError, "n, the number of images, or noise must be given"),
    (lambda: STUDENT.sample(0), ValueError, "n must be an integer >= 1"),
    (lambda: STUDENT.sample(2, seed="0"), TypeError, "seed must be an integer"),
    (lambda: STUDENT.sample(2, class_labels=[0, 9]), ValueError, r"must be 0 \.\.\. 2, got 9"),
    (lambda: STUDENT.sample(noise=noise(2, size=5)), ValueError, "noise must have a height"),
    (lambda: FREE_STUDENT.sample(2, class_labels=1), ValueError, "class_labels must be None"),
    (lambda: FREE_STUDENT.sample(3, noise=X), ValueError, "n must be 2"),
    (lambda: STUDENT.model(X, 5, 0), TypeError, "target_timestep must be numbers.*None"),
    (lambda: STUDENT.model(X, 5, 0, target_timestep=1e9), ValueError, "target_timestep must be"),
    # ----------------------------------------------------------------------------------- distiller
    (lambda: Distiller(FREE, lerning_rate=1), ConfigError, r"'lerning_rate' \(did you mean 'learn"),
    (lambda: Distiller(FREE, learning_rate=0), ConfigError, "learning_rate must be finite and > 0"),
    (lambda: Distiller(FREE, learning_rate="1"), TypeError, "learning_rate must be a number"),
    (lambda: Distiller(FREE, train_batch_size=0), ConfigError, "train_batch_size must be"),
    (lambda: Distiller(FREE, train_batch_size=1.5), TypeError, "train_batch_size must be"),
    (lambda: Distiller(FREE, train_batch_size=2**40), ConfigError, "train_batch_size must be .*<="),
    (lambda: Distiller(FREE, train_batch_size=2**80), ConfigError, "train_batch_size must be .*<="),
    (lambda: Distiller(FREE, logging_steps=2**80), ConfigError, "logging_steps must be .*<="),
    (lambda: Distiller(FREE, train_batch_size=2).plan(timed="x"), TypeError, "timed must be True"),
    (lambda: Distiller(FREE, ema_decay=1.0), ConfigError, "ema_decay must be finite and .*< 1"),
    (lambda: Distiller(FREE, delta=0), ConfigError, "delta must be finite and > 0"),
    (lambda: Distiller(FREE, solver="rk4"), ConfigError, "solver must be one of"),
    (lambda: Distiller(FREE, t_max=0.1, t_min=0.2), ConfigError, "t_min must be < t_max"),
    (lambda: Distiller(FREE, t_max=1.2), ConfigError, "t_max must be finite and .*<= 1"),
    (lambda: Distiller(FREE, seed=-1), OverflowError, "seed must be"),
    (lambda: Distiller(FREE, boundary_weight=np.nan), ConfigError, "boundary_weight must be"),
    (lambda: Distiller(FREE, guidance_scale=2), ValueError, "guidance_scale must be 1"),
    (lambda: Distiller(CLASSED, null_class_label=3), ValueError, "null_class_label must be .*<= 2"),
    (lambda: Distiller(FREE, {"seed": 1}), TypeError, "config must be a DistillConfig"),
    (lambda: Distiller(None), TypeError, "teacher must be a Teacher or a folder, got NoneType"),
    (lambda: Distiller(FREE.model), TypeError, "a Teacher or a folder, got Network"),
    (lambda: Distiller("/no/such/folder"), FileNotFoundError, "there is no folder '/no/such"),
    (lambda: Distiller(FREE, train_batch_size=2).fit(0), ValueError, "max_train_steps must be"),
    (lambda: Distiller(FREE, train_batch_size=2).fit("9"), TypeError, "max_train_steps must be"),
    (lambda: DistillConfig.from_dict({"sed": 1}), ConfigError, r"'sed' \(did you mean 'seed'\?\)"),
    # ----------------------------------------------------------------------------------- reference
    (lambda: load_reference(X[0]), ValueError, "images must have shape"),
    (lambda: load_reference(with_nan(X)), ValueError, "images must be finite"),
    (lambda: load_reference(X[:1]), ValueError, "at least 2 rows"),
    (lambda: load_reference("/no/such/file.npz"), FileNotFoundError, "there is no file"),
    (lambda: load_reference("/"), IsADirectoryError, "must be a file"),
    (lambda: Statistics.from_images(X, features=3), TypeError, "features must be a function"),
]  # fmt: skip


def state():
    return [model.weights.copy() for model in MODELS]


@pytest.mark.parametrize("call, error, message", CALLS, ids=[m for _, _, m in CALLS])
def test_a_bad_call_raises_the_exact_error_and_changes_nothing(call, error, message):
    before, given = state(), X.copy()
    with pytest.raises(error) as caught:
        call()
    assert caught.type is error
    assert re.search(message, str(caught.value)), str(caught.value)
    np.testing.assert_array_equal(X, given)
    for a, b in zip(before, state(), strict=True):
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------ folders

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def rewrite(**changes):
    """Change, add or (None) remove tensors of the weights file."""

    def damage(folder):
        tensors = load_tensors(folder / WEIGHTS)
        for name, value in changes.items():
            name = name.replace("__", ".")
            tensors.pop(name, None)
            if value is not None:
                tensors[name] = value
        save_tensors(folder / WEIGHTS, tensors)

    return damage


def content(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def header_claims(length):
    def damage(folder):
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])

    return damage


def only_pickles(folder):
    (folder / WEIGHTS).unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def half(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
THREE = {f"extra{i}": np.zeros(1, "f4") for i in range(3)}

# (what to do to a good teacher folder, exception, pattern)
FOLDERS = [
    (lambda f: shutil.rmtree(f), FileNotFoundError, "there is no folder"),
    (lambda f: (shutil.rmtree(f), f.write_text("")), NotADirectoryError, "is a file"),
    (lambda f: (f / UNET).unlink(), FileNotFoundError, "not a diffusers pipeline or model folder"),
    (lambda f: (f / SCHEDULER).unlink(), FileNotFoundError, "has no scheduler_config.json"),
    (lambda f: (f / WEIGHTS).unlink(), FileNotFoundError, "has no weights"),
    (only_pickles, FormatError, "only pickled weights.*never"),
    (content(WEIGHTS, pickle.dumps({"a": np.zeros(3)})), FormatError, "is a pickle"),
    (content(WEIGHTS, POINTER), FormatError, "is a Git LFS pointer"),
    (content(WEIGHTS, b"<!DOCTYPE html><html>" + b" " * 99), FormatError, "is an HTML page"),
    (content(WEIGHTS, b""), FormatError, "not a safetensors file: 0 bytes"),
    (half, FormatError, "is cut short"),
    (header_claims(2**62), FormatError, r"claims 4611686018427387904 bytes"),
    (header_claims(10), FormatError, "not valid JSON"),
    (rewrite(conv_in__bias=None), FormatError, "missing.*conv_in.bias"),
    (rewrite(**THREE), FormatError, "unexpected.*extra0, extra1, extra2"),
    (rewrite(conv_in__bias=np.zeros(5, "f4")), FormatError, r"conv_in.bias.*\(?5"),
    (rewrite(conv_in__bias=np.full(8, np.nan, "f4")), FormatError, "NaN.*conv_in.bias"),
    (content(UNET, b"{"), FormatError, r"config.json is not valid JSON"),
    (content(UNET, b"[]"), FormatError, "must hold a JSON object"),
    (content(UNET, POINTER), FormatError, "is a Git LFS pointer"),
    (content("model_index.json", b'{"_class_name": ["x", "Y"]}'), UnsupportedModel, "_class_name"),
    (lambda f: edit(f / UNET, act_fn="tanh"), UnsupportedModel, "act_fn: 'tanh'"),
    (lambda f: edit(f / UNET, in_channels="1"), FormatError, "in_channels must be an integer"),
    (lambda f: edit(f / UNET, out_channels=2), UnsupportedModel, "out_channels: 2"),
    (lambda f: edit(f / UNET, norm_num_groups=3), FormatError, "norm_num_groups must divide"),
    (
        lambda f: edit(f / UNET, down_block_types=["SkipDownBlock2D", "AttnDownBlock2D"]),
        UnsupportedModel,
        r"down_block_types\[0\]: 'SkipDownBlock2D'",
    ),
    (
        lambda f: edit(f / SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler"),
        UnsupportedModel,
        "_class_name: 'FlowMatchEulerDiscreteScheduler'",
    ),
    (lambda f: edit(f / SCHEDULER, beta_schedule="exp"), UnsupportedModel, "beta_schedule: 'exp'"),
    (lambda f: edit(f / SCHEDULER, prediction_type="flow"), UnsupportedModel, "prediction_type"),
    (lambda f: edit(f / SCHEDULER, beta_start=-1), FormatError, "beta_start must be"),
    (lambda f: edit(f / SCHEDULER, num_train_timesteps=0), FormatError, "num_train_timesteps"),
    (lambda f: edit(f / SCHEDULER, trained_betas=[0.1]), FormatError, "trained_betas"),
]  # fmt: skip


@pytest.mark.parametrize("damage, error, message", FOLDERS, ids=[m for _, _, m in FOLDERS])
def test_a_bad_folder_is_named_before_anything_is_made_of_it(tmp_path, damage, error, message):
    folder, out = tmp_path / "teacher", tmp_path / "out"
    save_teacher(folder)
    damage(folder)
    with pytest.raises(error) as caught:
        Teacher.from_pretrained(folder)
    assert caught.type is error
    assert re.search(message, str(caught.value)), str(caught.value)
    assert str(folder) in str(caught.value)
    with pytest.raises(error):
        Distiller(folder, output_dir=str(out))
    assert not out.exists()


# ----------------------------------------------------------------------------------- output folders


def test_output_folders_are_checked_before_anything_is_computed_or_overwritten(tmp_path):
    file, full = tmp_path / "file", tmp_path / "full"
    file.write_text("mine")
    full.mkdir()
    (full / "notes").write_text("mine")
    for target, error, message in (
        (file, NotADirectoryError, "is a file"),
        (full, FileExistsError, "must be a new or empty folder"),
        (file / "below", NotADirectoryError, "is a file|not writable"),
    ):
        with pytest.raises(error, match=message):
            Distiller(FREE, output_dir=str(target))
        with pytest.raises(error, match=message):
            STUDENT.save_pretrained(target)
    assert file.read_text() == "mine"
    assert os.listdir(full) == ["notes"]
    with pytest.raises(ValueError, match="dtype must be one of"):
        STUDENT.save_pretrained(tmp_path / "new", dtype="int8")
    with pytest.raises(TypeError, match="folder must be a path"):
        STUDENT.save_pretrained(3)
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]


def test_a_student_folder_is_required_where_a_student_is_meant(tmp_path):
    save_teacher(tmp_path / "t")
    with pytest.raises(FormatError, match="is not a student: it has no boot.json"):
        Student.from_pretrained(tmp_path / "t")
    STUDENT.save_pretrained(tmp_path / "s")
    (tmp_path / "s/boot.json").write_text(json.dumps({"format_version": 1})[:-1])
    with pytest.raises(FormatError, match=r"boot.json is not valid JSON"):
        Student.from_pretrained(tmp_path / "s")
    (tmp_path / "s/boot.safetensors").unlink()
    with pytest.raises(FormatError, match=r"boot.json is not valid JSON"):
        Student.from_pretrained(tmp_path / "s")


# ------------------------------------------------------------------ odd inputs that are quite right


@pytest.mark.parametrize(
    "odd",
    [
        lambda x: x.astype(np.float64),
        lambda x: x[::-1].copy()[::-1],
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=3)[..., ::2],
        lambda x: x.astype(">f4"),
        lambda x: np.frombuffer(b"\0" + x.tobytes(), np.float32, offset=1).reshape(x.shape),
    ],
    ids=["float64", "negative", "fortran", "strided", "big-endian", "unaligned"],
)
def test_strides_alignment_and_byte_order_are_read_right(odd):
    x = noise(3)
    expected = FREE.model(x, 7)
    strange = odd(x)
    kept = strange.copy()
    np.testing.assert_allclose(FREE.model(strange, 7), expected, atol=1e-6)
    np.testing.assert_array_equal(strange, kept)


def test_there_are_enough_bad_calls():
    assert len(CALLS) + len(FOLDERS) >= 80
