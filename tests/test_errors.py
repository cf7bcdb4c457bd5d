"""The exceptions and the input checks: right values pass, wrong ones say what is wrong."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from boot import errors
from boot.errors import (
    check_array,
    check_bool,
    check_choice,
    check_float,
    check_folder,
    check_int,
    check_labels,
    check_path,
    check_seed,
    check_supported,
    check_timesteps,
)
from boot.files import check_output_folder


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (errors.FormatError, (ValueError,)),
        (errors.UnsupportedModel, (NotImplementedError,)),
        (errors.CheckpointError, (OSError,)),
        (errors.ResumeMismatch, (ValueError,)),
        (errors.TrainingDiverged, (ArithmeticError,)),
        (errors.ConfigError, (ValueError,)),
    ],
)
def test_every_boot_error_can_be_caught_as_its_builtin_kind(error, bases):
    assert issubclass(error, (errors.BootError, *bases))
    assert issubclass(error, errors.BootError)


class Foreign:
    """An object of another library that can turn itself into an array."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        if self.array is None:
            raise RuntimeError("it requires grad")
        return np.asarray(self.array, dtype)


# ---------------------------------------------------------------------------------------- arrays

BASE = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 8


def unaligned(values):
    raw = np.zeros(values.nbytes + 1, np.uint8)
    view = raw[1:].view(np.float32).reshape(values.shape)
    view[...] = values
    assert not view.flags.aligned
    return view


@pytest.mark.parametrize(
    "value",
    [
        BASE,
        BASE.astype(np.float64),
        BASE.astype(np.float16),
        BASE.astype(">f4"),
        BASE.astype(">f8"),
        np.asfortranarray(BASE),
        BASE[::-1, :, ::-1][::-1, :, ::-1],
        unaligned(BASE),
        Foreign(BASE),
        np.repeat(BASE, 2, axis=1)[:, ::2],
    ],
    ids="f4 f8 f2 big4 big8 fortran negative unaligned foreign strided".split(),
)
def test_check_array_gives_float32_c_order_with_the_same_values(value):
    result = check_array("x", value, (2, None, 4))
    assert result.dtype == np.dtype("=f4")
    assert result.flags.c_contiguous and result.flags.aligned
    np.testing.assert_array_equal(result, BASE)


def test_check_array_does_not_copy_what_is_already_right_and_never_writes():
    assert check_array("x", BASE) is BASE or np.shares_memory(check_array("x", BASE), BASE)
    frozen = BASE[::-1].copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(check_array("x", frozen[::-1]), BASE)


def test_check_array_finite_can_be_waived():
    value = np.array([np.nan, np.inf], np.float32)
    assert np.isnan(check_array("x", value, finite=False)[0])


INF = np.array([1, np.inf], np.float32)


@pytest.mark.parametrize(
    ("value", "shape", "error", "text"),
    [
        ([1.0, 2.0], None, TypeError, "x must be an array, got .*list"),
        (1.5, None, TypeError, "x must be an array, got 1.5 .float"),
        (None, None, TypeError, "x must be an array, got None"),
        ("abc", None, TypeError, "x must be an array"),
        (np.float32(1), None, TypeError, "x must be an array"),
        (np.ndarray, None, TypeError, "x must be an array"),
        (np.arange(3), None, TypeError, "float16, float32 or float64, got dtype int64"),
        (np.ones(3, bool), None, TypeError, "got dtype bool"),
        (np.ones(3, complex), None, TypeError, "got dtype complex128"),
        (np.ones(3, np.longdouble), None, TypeError, "got dtype float128"),
        (np.array(["a"]), None, TypeError, "got dtype <U1"),
        (np.array([1.0], object), None, TypeError, "got dtype object"),
        (np.ma.masked_array([1.0], mask=[1]), None, TypeError, "masked"),
        (Foreign(None), None, TypeError, "Foreign cannot become an array: it requires grad"),
        (BASE, (2, 3), ValueError, r"x must have shape \(2, 3\), got \(2, 3, 4\)"),
        (BASE, (2, None, 5), ValueError, r"shape \(2, any, 5\), got \(2, 3, 4\)"),
        (np.ones((0, 3), np.float32), None, ValueError, r"not be empty, got shape \(0, 3\)"),
        (np.ones((0, 3), np.float32), (None, 3), ValueError, "not be empty"),
        (np.array([1, np.nan, np.nan]), None, ValueError, "finite in float32, got 2 .* of 3"),
        (INF, None, ValueError, "finite in float32, got 1 .* of 2"),
        (np.array([1e300]), None, ValueError, "finite in float32"),
    ],
)
def test_check_array_refuses(value, shape, error, text):
    with pytest.raises(error, match=text):
        check_array("x", value, shape)


# ---------------------------------------------------------------------------------------- scalars


def test_check_int_accepts_integers_of_any_kind():
    assert check_int("n", np.int32(3), 1, 3) == 3
    assert type(check_int("n", np.uint64(2**64 - 1))) is int
    assert check_int("n", -5) == -5


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (True, TypeError, "n must be an integer, got True .bool"),
        (np.True_, TypeError, "n must be an integer"),
        (1.0, TypeError, "n must be an integer, got 1.0 .float"),
        ("3", TypeError, "n must be an integer, got '3' .str"),
        (None, TypeError, "n must be an integer, got None"),
        (np.array(3), TypeError, "n must be an integer, got .* .ndarray of int64"),
        (0, ValueError, "n must be an integer >= 1 and <= 9, got 0"),
        (10, ValueError, "n must be an integer >= 1 and <= 9, got 10"),
    ],
)
def test_check_int_refuses(value, error, text):
    with pytest.raises(error, match=text):
        check_int("n", value, 1, 9)


def test_check_int_names_one_sided_ranges():
    with pytest.raises(ValueError, match="n must be an integer >= 1, got 0"):
        check_int("n", 0, 1)
    with pytest.raises(OverflowError, match="n must be an integer <= 5, got 6"):
        check_int("n", 6, hi=5, error=OverflowError)


def test_check_float_accepts_real_numbers():
    assert check_float("v", np.float32(0.5), 0, 1) == 0.5
    assert type(check_float("v", 1)) is float
    assert check_float("v", Fraction(1, 4)) == 0.25
    assert check_float("v", 1, 0, 1) == 1.0


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (True, TypeError, "v must be a number, got True"),
        ("0.5", TypeError, "v must be a number, got '0.5'"),
        (None, TypeError, "v must be a number, got None"),
        (1j, TypeError, "v must be a number"),
        (np.array(0.5), TypeError, "v must be a number"),
        (float("nan"), ValueError, "v must be finite and > 0 and < 1, got nan"),
        (float("inf"), ValueError, "v must be finite"),
        (10**400, ValueError, "v must be finite"),
        (0, ValueError, "v must be finite and > 0 and < 1, got 0"),
        (1.0, ValueError, "v must be finite and > 0 and < 1, got 1.0"),
        (-2, ValueError, "v must be finite and > 0 and < 1, got -2"),
    ],
)
def test_check_float_refuses(value, error, text):
    with pytest.raises(error, match=text):
        check_float("v", value, 0, 1, above=True, below=True)


def test_check_float_names_open_ranges():
    with pytest.raises(ValueError, match="v must be finite, got nan"):
        check_float("v", float("nan"))
    with pytest.raises(ValueError, match="<= 2, got 3"):
        check_float("v", 3, hi=2)


def test_check_bool_accepts_only_bools():
    assert check_bool("b", np.False_) is False
    for value in (0, 1, "true", None):
        with pytest.raises(TypeError, match="b must be True or False"):
            check_bool("b", value)


def test_check_choice_suggests_the_nearest():
    assert check_choice("solver", "heun", ("heun", "euler")) == "heun"
    with pytest.raises(ValueError, match=r"'heun', 'euler'; got 'huen' \(did you mean 'heun'\?\)"):
        check_choice("solver", "huen", ("heun", "euler"))
    with pytest.raises(TypeError, match="solver must be a string"):
        check_choice("solver", 3, ("heun", "euler"))


def test_check_supported_names_the_config_key():
    assert check_supported("act_fn", "silu", ["silu"]) == "silu"
    with pytest.raises(errors.UnsupportedModel, match="act_fn: 'tanh' is not supported"):
        check_supported("act_fn", "tanh", ["silu"])


def test_check_seed_covers_64_bits():
    assert check_seed("seed", 2**64 - 1) == 2**64 - 1
    for value in (-1, 2**64):
        with pytest.raises(OverflowError, match="seed must be an integer"):
            check_seed("seed", value)
    with pytest.raises(TypeError):
        check_seed("seed", 1.5)


# -------------------------------------------------------------------------- labels and timesteps


@pytest.mark.parametrize("value", [3, np.int8(3), [3], (3, 3), np.array([3, 3]), np.array(3)])
def test_check_labels_fills_the_batch(value):
    labels = check_labels("class_labels", value, 2, 10)
    assert labels.dtype == np.int64 and labels.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (None, TypeError, "class_labels must be integers, got None"),
        (True, TypeError, "class_labels must be integers"),
        ("3", TypeError, "class_labels must be integers"),
        (1.0, TypeError, "class_labels must be an array"),
        ([1, 2.0], TypeError, r"class_labels\[1\] must be an integer"),
        (np.array([1.0, 2.0]), TypeError, "class_labels must hold integers, got dtype float64"),
        (np.array([True, False]), TypeError, "got dtype bool"),
        ([1, 2, 3], ValueError, r"must have shape \(2,\), got \(3,\)"),
        (np.ones((2, 1), int), ValueError, r"must have shape \(2,\), got \(2, 1\)"),
        ([], ValueError, r"must have shape \(2,\), got \(0,\)"),
        ([0, 10], ValueError, r"class_labels must be 0 \.\.\. 9, got 10"),
        (np.array([-1, 0]), ValueError, "got -1"),
        ([2**70, 0], ValueError, "got 1180591620717411303424"),
        (np.array([2**64 - 1, 0], np.uint64), ValueError, "got 18446744073709551615"),
    ],
)
def test_check_labels_refuses(value, error, text):
    with pytest.raises(error, match=text):
        check_labels("class_labels", value, 2, 10)


@pytest.mark.parametrize("value", [7, 7.0, np.float32(7), [7, 7], np.array([7, 7]), np.array(7.0)])
def test_check_timesteps_fills_the_batch(value):
    steps = check_timesteps("timestep", value, 2)
    assert steps.dtype == np.float64 and steps.tolist() == [7.0, 7.0]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("7", TypeError, "timestep must be numbers"),
        (None, TypeError, "timestep must be numbers"),
        (np.array([True, False]), TypeError, "got dtype bool"),
        ([1, "2"], TypeError, r"timestep\[1\] must be a number"),
        (np.ones(3), ValueError, r"shape \(2,\), got \(3,\)"),
        (np.ones((2, 2)), ValueError, r"got \(2, 2\)"),
        (1000, ValueError, "timestep must be finite and >= 0 and <= 999, got 1000"),
        (np.array([-1, 5]), ValueError, "got -1"),
        (np.array([np.nan, 5]), ValueError, "timestep must be finite"),
    ],
)
def test_check_timesteps_refuses(value, error, text):
    with pytest.raises(error, match=text):
        check_timesteps("timestep", value, 2, 0, 999)


# ------------------------------------------------------------------------------------------ paths


def test_check_path_and_folder(tmp_path):
    assert check_path("p", str(tmp_path)) == tmp_path
    assert check_folder("p", tmp_path) == tmp_path
    (tmp_path / "file").write_text("")
    for value, error, text in [
        (3, TypeError, "p must be a path, got 3"),
        (b"x", TypeError, "p must be a path"),
        (["x"], TypeError, "p must be a path"),
        ("", ValueError, "non-empty"),
        ("a\0b", ValueError, "NUL"),
        (tmp_path / "gone", FileNotFoundError, "there is no folder"),
        (tmp_path / "file", NotADirectoryError, "must be a folder"),
    ]:
        with pytest.raises(error, match=text):
            check_folder("p", value)


def test_check_output_folder(tmp_path):
    made = check_output_folder("out", tmp_path / "a" / "b")
    assert made.is_dir() and not list(made.iterdir())
    (made / "old").write_text("x")
    with pytest.raises(FileExistsError, match="out must be a new or empty folder"):
        check_output_folder("out", made)
    assert check_output_folder("out", made, must_be_empty=False) == made
    with pytest.raises(NotADirectoryError, match="is a file"):
        check_output_folder("out", made / "old")
    with pytest.raises(NotADirectoryError, match="out is not writable"):
        check_output_folder("out", made / "old" / "deeper")


def test_check_output_folder_reports_a_read_only_place():
    read_only = Path("/proc")  # mode bits do not stop root, a file system without files does
    if not read_only.is_dir():
        pytest.skip("there is no /proc here")
    with pytest.raises(OSError, match=re.escape("out is not writable")):
        check_output_folder("out", read_only / "boot-student")


def test_messages_stay_short():
    assert len(errors.shown("x" * 1000)) <= 80
    assert errors.listed(range(30)).endswith("19, and 10 more")
    assert errors.nearest_hint("lerning_rate", ["learning_rate"]) == (
        " (did you mean 'learning_rate'?)"
    )
    assert errors.nearest_hint("zzz", ["learning_rate"]) == ""
    assert errors.nearest_hint("a" * 101, ["a" * 100]) == ""  # would take the square of its length
    assert errors.shown("x" * 81) == "'" + "x" * 76 + "..."
    assert errors.shown("x" * 78) == "'" + "x" * 78 + "'"
