"""Wrong calls of the C core itself: each raises, says what is wrong, and changes nothing."""

from __future__ import annotations

import re

import numpy as np
import pytest
from models import CONFIG, PLAIN, noise

from boot import _core
from boot.network import Network

X, ONES = noise(2), np.ones(2)
FREE, CLASSED = Network(PLAIN).core, Network(CONFIG).core
STUDENT = Network(PLAIN, target_embedding=True).core
T = np.full(2, 500.0)
VECTOR = np.ones(8, np.float32)
GIB = 2**30


def config(**changes):
    return {**PLAIN.to_core(), **changes}


def adamw(step=1, **changes):
    state = {"weights": VECTOR, "grads": VECTOR, "m": VECTOR, "v": VECTOR, "ema": None}
    numbers = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8,
               "weight_decay": 0.0, "max_grad_norm": 1.0, "ema_decay": 0.9}  # fmt: skip
    return lambda: _core.adamw_step(**{**state, **numbers, "step": step, **changes})


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


CALLS = [
    # ---------------------------------------------------------------------------------- threads
    (lambda: _core.set_num_threads(0), ValueError, r"num_threads is 0, expected .*\[1, 1024\]"),
    (lambda: _core.set_num_threads(1025), ValueError, "num_threads is 1025"),
    (lambda: _core.set_num_threads(-1), ValueError, "num_threads is -1"),
    (lambda: _core.set_num_threads(2**70), OverflowError, "too large"),
    (lambda: _core.set_num_threads("2"), TypeError, "str"),
    (lambda: _core.set_num_threads(None), TypeError, "NoneType"),
    # ------------------------------------------------------------------------------------ create
    (lambda: _core.UNet2D([]), TypeError, "dict"),
    (lambda: _core.UNet2D({}), ValueError, "block_out_channels: expected a list"),
    (lambda: _core.UNet2D(config(block_out_channels=[])), ValueError, "block_out_channels: exp"),
    (lambda: _core.UNet2D(config(block_out_channels=[8] * 99)), ValueError, "block_out_channels"),
    (lambda: _core.UNet2D(config(block_out_channels=[8, 0])), ValueError, "0, expected a width"),
    (lambda: _core.UNet2D(config(block_out_channels=[8, 2**20])), ValueError, "1048576, expected"),
    (lambda: _core.UNet2D(config(block_out_channels=["8", 8])), TypeError, "str"),
    (lambda: _core.UNet2D(config(block_out_channels=[8, 2**70])), OverflowError, "too "),
    (lambda: _core.UNet2D(config(down_block_types=["DownBlock2D"])), ValueError, "down_block_ty"),
    (lambda: _core.UNet2D(config(up_block_types=None)), ValueError, "up_block_types: expected"),
    (lambda: _core.UNet2D(config(up_block_types=["X", "UpBlock2D"])), NotImplementedError, '"X"'),
    (lambda: _core.UNet2D(config(up_block_types=[1, 2])), TypeError, "str"),
    (lambda: _core.UNet2D(config(act_fn="tanh")), NotImplementedError, 'act_fn: "tanh"'),
    (lambda: _core.UNet2D(config(act_fn=b"silu")), TypeError, "str"),
    (lambda: _core.UNet2D(config(norm_num_groups=3)), ValueError, "group"),
    (lambda: _core.UNet2D(config(norm_num_groups=0)), ValueError, "group"),
    (lambda: _core.UNet2D(config(in_channels=0)), ValueError, "sample.*empty"),
    (lambda: _core.UNet2D(config(in_channels=-1)), ValueError, "sample.*empty"),
    (lambda: _core.UNet2D(config(in_channels=2**62)), ValueError, "channels|size"),
    (lambda: _core.UNet2D(config(out_channels=2**62)), ValueError, "channels|size"),
    (lambda: _core.UNet2D(config(layers_per_block=2**40)), NotImplementedError, "layers_per_block"),
    (lambda: _core.UNet2D(config(norm_eps=float("nan"))), ValueError, "eps"),
    (lambda: _core.UNet2D(config(norm_eps=-1.0)), ValueError, "eps"),
    (lambda: _core.UNet2D(config(norm_eps="x")), TypeError, "number"),
    (lambda: _core.UNet2D(config(time_embedding_type="learned")), ValueError, "num_train_timest"),
    (lambda: _core.UNet2D(config(time_embedding_dim=-4)), ValueError, "size 1 x -4"),
    (lambda: _core.UNet2D(config(downsample_padding=7)), ValueError, "pad"),
    # ------------------------------------------------------------------------------------ forward
    (lambda: FREE.forward(), TypeError, "sample"),
    (lambda: FREE.forward(X, T, T), ValueError, "class_labels given to a network without"),
    (lambda: CLASSED.forward(X, T), ValueError, "class_labels missing"),
    (lambda: CLASSED.forward(X, T, [0, 9]), ValueError, "embedding"),
    (lambda: CLASSED.forward(X, T, [-1, 0]), ValueError, "embedding"),
    (lambda: CLASSED.forward(X, T, [np.nan, 0]), ValueError, "embedding"),
    (lambda: CLASSED.forward(X, T, [0]), ValueError, r"class_labels: expected shape \(2,\)"),
    (lambda: FREE.forward(X, T, target_timesteps=T), ValueError, "target_timesteps given"),
    (lambda: STUDENT.forward(X, T), ValueError, "target_timesteps missing"),
    (lambda: STUDENT.forward(X, T, target_timesteps=T[:1]), ValueError, "target_timesteps: exp"),
    (lambda: FREE.forward(X, T[:1]), ValueError, r"timesteps: expected shape \(2,\)"),
    (lambda: FREE.forward(X, T[:, None]), ValueError, "timesteps: expected shape"),
    (lambda: FREE.forward(X, "500"), TypeError, "timesteps has an element type"),
    (lambda: FREE.forward(X, T.astype(complex)), TypeError, "timesteps has an element type"),
    (lambda: FREE.forward(X, T.astype(object)), TypeError, "timesteps has an element type"),
    (lambda: FREE.forward(X.astype(int), T), TypeError, "sample has an element type"),
    (lambda: FREE.forward(None, T), TypeError, "sample has an element type"),
    (lambda: FREE.forward(X[0], T), ValueError, "sample has 3 dimensions, expected 4"),
    (lambda: FREE.forward(X[:0], T[:0]), ValueError, r"sample is \(0, 1, 8, 8\), expected \(N >="),
    (lambda: FREE.forward(X[..., :0], T), ValueError, ""),
    (lambda: FREE.forward(X[..., :7], T), ValueError, ""),
    (lambda: FREE.forward(noise(2, channels=2), T), ValueError, r"\(2, 2, 8, 8\), expected .* 1,"),
    (lambda: FREE.forward(X, T, trian=True), TypeError, "trian"),
    # ----------------------------------------------------------------------------------- backward
    (lambda: FREE.backward(X), RuntimeError, "no training forward came before it"),
    (lambda: FREE.backward(X[0]), ValueError, "doutput has 3 dimensions"),
    (lambda: FREE.backward(None), TypeError, "doutput has an element type"),
    (lambda: (FREE.forward(X, T, train=True), FREE.backward(X[:1])), ValueError, "doutput: exp"),
    # -------------------------------------------------------------------------- plans and kernels
    (lambda: FREE.plan(0, 8, 8, False), ValueError, "plan: 0 x 8 x 8, expected at"),
    (lambda: FREE.plan(1, -8, 8, False), ValueError, "plan: 1 x -8 x 8"),
    (lambda: FREE.plan(1, 7, 8, False), ValueError, ""),
    (lambda: FREE.plan(1.5, 8, 8, False), TypeError, "float"),
    (lambda: FREE.plan(2**70, 8, 8, False), OverflowError, "int"),
    (lambda: FREE.plan(), TypeError, "argument"),
    (lambda: FREE.profile(1, 8, 8, False, 0), ValueError, "repeats must be at least 1"),
    (lambda: FREE.profile(0, 8, 8, False, 1), ValueError, "profile: sizes"),
    (lambda: FREE.pin_kernels([("a", "b")]), TypeError, "dict"),
    (lambda: FREE.pin_kernels({1: "direct"}), TypeError, "str"),
    (lambda: FREE.pin_kernels({"key": 1}), TypeError, "str"),
    (lambda: FREE.share_arena(None), TypeError, "UNet2D"),
    (lambda: FREE.share_arena(), TypeError, "argument"),
    (lambda: setattr(FREE, "weights", VECTOR), AttributeError, ""),
    # ------------------------------------------------------------------------------------- method
    (lambda: _core.diffuse(X, X[:1], ONES, ONES), ValueError, "y and eps have different shapes"),
    (lambda: _core.diffuse(X, X, ONES[:1], ONES), ValueError, "alpha has 1 elements, expected 2"),
    (lambda: _core.diffuse(X, X, ONES, [[1, 1]]), ValueError, "sigma has 2 dimensions, expected 1"),
    (lambda: _core.diffuse(X, X, ONES, "ab"), ValueError, ""),
    (lambda: _core.diffuse(X, X, ONES), TypeError, "diffuse"),
    (lambda: _core.diffuse(X[0], X[0], ONES, ONES), ValueError, "y has 3 dimensions"),
    (lambda: _core.guide(X, X.astype(int), ONES), TypeError, "f_null has an element type"),
    (lambda: _core.guide(X, X, np.ones(3)), ValueError, "w has 3 elements, expected 2"),
    (lambda: _core.signal_step(X, noise(2, size=4), ONES), ValueError, "y and f have different"),
    (lambda: _core.signal_step_heun(X, X, X[:1], ONES), ValueError, "y and f2 have different"),
    (lambda: _core.signal_from_output("eps", X, X, ONES, ONES, 0), ValueError, '"eps", expected e'),
    (lambda: _core.signal_from_output("sample", X, X, ONES, ONES, "1"), TypeError, "real number"),
    (lambda: _core.signal_from_output("sample", X, X[:1], ONES, ONES, 0), ValueError, "x_t"),
    (lambda: _core.weighted_mse(X, X[:1], ONES), ValueError, "y and target have different"),
    (lambda: _core.weighted_mse(X, X, None), (TypeError, ValueError), ""),
    (lambda: _core.alphas_cumprod("linear", 0, 1e-4, 0.02, None, False), ValueError, "timesteps"),
    (lambda: _core.alphas_cumprod("no", 9, 1e-4, 0.02, None, False), ValueError, '"no", expected'),
    (lambda: _core.alphas_cumprod("linear", 9, 1e-4, 0.02, [0.1], False), ValueError, "1 elements"),
    # ---------------------------------------------------------------------------------- optimiser
    (adamw(weights=VECTOR.astype("f8")), TypeError, "weights is not a float32 array"),
    (adamw(weights=None), TypeError, "weights is not a float32 array"),
    (adamw(weights=read_only(VECTOR)), ValueError, "weights: expected a writable"),
    (adamw(weights=VECTOR.reshape(2, 4)), ValueError, "weights: expected a writable"),
    (adamw(grads=VECTOR[:4]), ValueError, "grads: expected a writable contiguous vector as long"),
    (adamw(m=np.ones(16, "f4")[::2]), ValueError, "m: expected a writable contiguous"),
    (adamw(v=[1.0] * 8), TypeError, "v is not a float32 array"),
    (adamw(ema=VECTOR[:1]), ValueError, "ema: expected a writable contiguous"),
    (adamw(step=0), ValueError, "step is 0, expected at least 1"),
    (adamw(step=1.5), TypeError, "float"),
    (adamw(epsilon=0.0), ValueError, "epsilon is 0, expected at least 1e-30"),
    (adamw(epsilon=float("nan")), ValueError, "epsilon is nan, expected at least 1e-30"),
    (lambda: _core.check_grads([1.0], 1.0), TypeError, "grads is not a float32 array"),
    (lambda: _core.check_grads(VECTOR), TypeError, "argument"),
    (adamw(beta1="x"), TypeError, "real number"),
    (lambda: _core.adamw_step(VECTOR, VECTOR, VECTOR, VECTOR, None, step=1), TypeError, "argument"),
    # --------------------------------------------------------------------------------- operations
    (lambda: _core.op_forward("nothing", {}, {}), ValueError, 'unknown op "nothing"'),
    (lambda: _core.op_forward("add", [], {}), TypeError, "dict"),
    (lambda: _core.op_forward("add", {"a": X}, {}), ValueError, "add: input b is missing"),
    (lambda: _core.op_forward("add", {"a": X, "b": X}, {}), ValueError, "attribute scale is miss"),
    (lambda: _core.op_backward("add", {"a": X, "b": X}, {"scale": 1}, X[:1]), ValueError, "dy"),
    (lambda: _core.bench_conv(0, 8, 8, 8, 8, 3, 1, 1, 1, "plain", 0, 1), ValueError, "bench_conv"),
    (lambda: _core.bench_conv(1, 8, 8, 8, 8, 3, 1, 1, 1, "no", 0, 1), ValueError, "bench_conv"),
    (lambda: _core.bench_conv(1, 8, 8, 8, 8, 3, 1, 1, 1, "plain", 3, 1), ValueError, "direction"),
    (lambda: _core.bench_conv(1, 8, 8, 8, 8, 3, 1, 1, 1, "plain", 0, 0), ValueError, "repeats"),
    (lambda: _core.bench_conv(1, 8, 8, 8, 8, 3, 1, 9, 1, "plain", 0, 1), ValueError, "bench_conv"),
]  # fmt: skip


def state():
    nets = [FREE.weights, CLASSED.weights, STUDENT.weights, X, ONES, T, VECTOR]
    return [array.copy() for array in nets], _core.get_num_threads()


@pytest.mark.parametrize("call, error, message", CALLS, ids=range(len(CALLS)))
def test_a_bad_call_of_the_core_is_refused_and_changes_nothing(call, error, message):
    before = state()
    with pytest.raises(error) as caught:
        call()
    assert isinstance(error, tuple) or caught.type is error
    assert re.search(message, str(caught.value)), str(caught.value)
    after = state()
    assert before[1] == after[1]
    for a, b in zip(before[0], after[0], strict=True):
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------- sizes beyond 2^31

LARGE = [1, 2**31 - 1, 2**31, 2**32, 2**40, 2**62]


@pytest.mark.parametrize("size", LARGE[1:])
@pytest.mark.parametrize("place", range(3))
def test_a_plan_of_any_size_is_right_or_refused(size, place):
    sizes = [1, 8, 8]
    sizes[place] = size if place == 0 else size // 2 * 2
    try:
        plan = FREE.plan(*sizes, False)
    except (ValueError, MemoryError, NotImplementedError):
        return
    least = 4 * sizes[0] * sizes[1] * sizes[2] * PLAIN.block_out_channels[0]
    assert plan["activation_bytes"] >= least


@pytest.mark.parametrize("sizes", [(2**28, 2**9, 2**9), (2**48, 1, 2), (2**40, 2**30, 4)])
def test_a_tensor_of_more_numbers_than_its_limit_is_refused_by_value(sizes):
    with pytest.raises(ValueError, match=r"expected a product in \[0, 2\^48\]"):
        FREE.plan(*sizes, False)


@pytest.mark.parametrize("size", LARGE[1:])
def test_a_convolution_of_any_size_is_timed_or_refused(size):
    for place in range(5):
        sizes = [1, 8, 8, 8, 8]
        sizes[place] = size
        with pytest.raises((ValueError, MemoryError, NotImplementedError)):
            _core.bench_conv(*sizes, 3, 1, 1, 1, "plain", 0, 1)
    top = 2**20  # allowed one by one, and far beyond int64 together
    with pytest.raises((ValueError, MemoryError, NotImplementedError)):
        _core.bench_conv(top, top, top, top, top, 3, 1, 1, 1, "plain", 0, 1)


@pytest.mark.parametrize("shape", [(2, 1, 2**20, 2**24), (2, 1, 2**24, 2**24), (2**40, 1, 8, 8)])
def test_images_of_more_than_two_to_the_31_numbers_are_refused_without_memory(shape):
    huge = np.broadcast_to(np.float32(0), shape)  # all strides 0: takes four bytes
    with pytest.raises((ValueError, MemoryError)):
        FREE.forward(huge, T)
