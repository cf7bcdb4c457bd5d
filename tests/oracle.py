"""NumPy float64 forwards of every operation, one function per op, written for clarity.

These are the judges of the kernels: each follows the definition, none calls `boot`. Activations are
(N, H, W, C), weights have diffusers' shapes. Gradients are not written by hand: `derivative`
differentiates an oracle along a direction.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Inputs through which no gradient flows.
NOT_DIFFERENTIABLE = {("embedding", "ids"), ("to_nchw", "t")}
NO_GRADIENT_OPS = {"timestep_embedding", "fourier_embedding"}


def activate(x: Array, code: float) -> Array:
    """Activation number `code` of x, element by element."""
    if code == 0:
        return x
    if code == 1:  # SiLU = x sigmoid(x)
        return x * sigmoid(x)
    if code == 2:  # GELU, exact
        erf = np.vectorize(math.erf, otypes=[np.float64])
        return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))
    if code == 3:  # Mish = x tanh(log(1 + e^x))
        return x * np.tanh(np.logaddexp(0.0, x))
    if code == 4:  # ReLU
        return np.where(np.isnan(x), x, np.maximum(x, 0.0))
    raise ValueError(f"act must be 0 ... 4, got {code}")


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x) without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    temb: Array | None = None,
    residual: Array | None = None,
    *,
    stride: float,
    pad_begin: float,
    pad_end: float,
    scale: float,
    kernel: float = 0,
    upsampled: float = 0,
) -> Array:
    """(conv(x) + bias + temb + residual) * scale; `kernel` says how to compute, not what."""
    step, k = int(stride), weight.shape[2]
    x = upsample_nearest(x) if upsampled else x
    pad = (int(pad_begin), int(pad_end))
    padded = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    # windows: (N, Ho, Wo, I, k, k)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(1, 2))[
        :, ::step, ::step
    ]
    y = np.tensordot(windows, weight, axes=([3, 4, 5], [1, 2, 3]))
    if bias is not None:
        y = y + bias
    if temb is not None:
        y = y + temb[:, None, None, :]
    if residual is not None:
        y = y + residual
    return y * scale


def _joined(x: Array, more: Array | None) -> Array:
    return x if more is None else np.concatenate([x, more], axis=-1)


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    more: Array | None = None,
    residual: Array | None = None,
) -> Array:
    """[x, more] W^T + bias + residual over the last dimension; a weight may be (O, I, 1, 1)."""
    y = _joined(x, more) @ weight.reshape(weight.shape[0], -1).T
    if bias is not None:
        y = y + bias
    return y if residual is None else y + residual


def linear_pair(
    x: Array,
    right: Array,
    left: Array,
    right_bias: Array | None = None,
    left_bias: Array | None = None,
    *,
    transposed: float,
) -> Array:
    """Linear `right`, then linear `left`; transposed: then the product with left, without bias."""
    y = linear(x, right, right_bias)
    return y @ left if transposed else linear(y, left, left_bias)


def group_norm(
    x: Array,
    weight: Array,
    bias: Array,
    scale_shift: Array | None = None,
    more: Array | None = None,
    *,
    num_groups: float,
    eps: float,
    act: float,
) -> Array:
    """act(GN([x, more]) (1 + s) + b), (s, b) the two halves of scale_shift: (N, 2C)."""
    x = _joined(x, more)
    n, h, w, c = x.shape
    groups = x.reshape(n, h * w, int(num_groups), -1)
    mean = groups.mean(axis=(1, 3), keepdims=True)
    variance = groups.var(axis=(1, 3), keepdims=True)
    y = ((groups - mean) / np.sqrt(variance + eps)).reshape(x.shape) * weight + bias
    if scale_shift is not None:
        s, b = scale_shift[:, None, None, :c], scale_shift[:, None, None, c:]
        y = y * (1.0 + s) + b
    return activate(y, act)


def activation(x: Array, *, act: float) -> Array:
    """act(x), element by element."""
    return activate(x, act)


def attention(q: Array, k: Array, v: Array, *, heads: float) -> Array:
    """softmax(q k^T / sqrt(d)) v over the H W tokens of each image and head, d = C / heads."""
    n, h, w, c = q.shape
    d = c // int(heads)

    def split(a: Array) -> Array:  # (N, heads, tokens, d)
        return a.reshape(n, h * w, int(heads), d).transpose(0, 2, 1, 3)

    logits = split(q) @ split(k).transpose(0, 1, 3, 2) / math.sqrt(d)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return (p @ split(v)).transpose(0, 2, 1, 3).reshape(q.shape)


def add(a: Array, b: Array, *, scale: float) -> Array:
    """(a + b) * scale."""
    return (a + b) * scale


def upsample_nearest(x: Array) -> Array:
    """Every pixel becomes a 2x2 block."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def mean2x2(x: Array) -> Array:
    """Mean over 2x2 blocks; an odd last row or column is dropped (as torch's avg_pool2d does)."""
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :h, :w]
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4.0


def concat(a: Array, b: Array) -> Array:
    """Join along channels."""
    return np.concatenate([a, b], axis=-1)


def timestep_embedding(t: Array, *, dim: float, flip_sin_to_cos: float, freq_shift: float) -> Array:
    """Sinusoids of t: (N) at h = dim // 2 frequencies, y: (N, 1, 1, dim)."""
    half = int(dim) // 2
    frequency = np.exp(-math.log(10000.0) * np.arange(half) / (half - freq_shift))
    angle = np.asarray(t, np.float64)[:, None] * frequency
    pair = [np.cos(angle), np.sin(angle)] if flip_sin_to_cos else [np.sin(angle), np.cos(angle)]
    zeros = np.zeros((len(angle), int(dim) % 2))
    return np.concatenate([*pair, zeros], axis=1)[:, None, None, :]


def fourier_embedding(t: Array, weight: Array, *, flip_sin_to_cos: float) -> Array:
    """Sinusoids of 2 pi log(t) weight; t: (N), weight: (C0), y: (N, 1, 1, 2 C0)."""
    angle = 2.0 * math.pi * np.log(np.asarray(t, np.float64))[:, None] * weight
    pair = [np.cos(angle), np.sin(angle)] if flip_sin_to_cos else [np.sin(angle), np.cos(angle)]
    return np.concatenate(pair, axis=1)[:, None, None, :]


def embedding(ids: Array, weight: Array) -> Array:
    """Rows of a table. ids: (N) integers, weight: (K, T), y: (N, 1, 1, T)."""
    return weight[np.asarray(ids, np.int64)][:, None, None, :]


def to_nhwc(x: Array, *, scale: float, shift: float) -> Array:
    """Layout (N, C, H, W) to (N, H, W, C), and scale x + shift."""
    return scale * x.transpose(0, 2, 3, 1) + shift


def to_nchw(x: Array, t: Array | None = None) -> Array:
    """Layout (N, H, W, C) to (N, C, H, W), divided by t: (N) if that is given."""
    y = x.transpose(0, 3, 1, 2)
    return y if t is None else y / t[:, None, None, None]


def forward(name: str, inputs: dict[str, Array], attrs: dict[str, float]) -> Array:
    """Run the oracle of op `name` on float64 copies of the inputs."""
    exact = {key: a.astype(np.float64) if a.dtype.kind == "f" else a for key, a in inputs.items()}
    result: Array = globals()[name](**exact, **attrs)
    return result


def derivative(
    name: str, inputs: dict[str, Array], attrs: dict[str, float], which: str, direction: Array
) -> Array:
    """J v: how the oracle's output changes when input `which` moves along `direction`.

    Central differences in float64: error O(step^2), about 1e-9 relative here.
    """
    step = 1e-5
    base = inputs[which].astype(np.float64)
    ahead = forward(name, {**inputs, which: base + step * direction}, attrs)
    behind = forward(name, {**inputs, which: base - step * direction}, attrs)
    return (ahead - behind) / (2.0 * step)
