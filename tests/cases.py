"""The test and benchmark cases of every operation: one row per op and shape.

A row gives shapes and attributes; `make_inputs` draws the numbers. Convolutions are crossed with
every kernel name by the tests, so a row never names one.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]

AUTO = 0  # the convolution "kernel" that means: choose by timing
ACTS = {"none": 0, "silu": 1, "gelu": 2, "mish": 3, "relu": 4}


@dataclass(frozen=True)
class Case:
    """One op on one set of shapes."""

    op: str
    shapes: dict[str, Shape]  # by input name; optional inputs that are absent have no entry
    attrs: dict[str, float] = field(default_factory=dict)
    tolerance: float = 1e-5  # relative L2 error of output and gradients against float64
    offset: float = 0.0  # mean of the first input
    spread: float = 1.0  # standard deviation of the activations

    def __hash__(self) -> int:
        """Hash of the name: the fields are dicts."""
        return hash(str(self))

    def __str__(self) -> str:
        """Name of the case in test reports and benchmark tables."""
        sizes = " ".join(f"{k}{'x'.join(map(str, s))}" for k, s in self.shapes.items())
        attrs = " ".join(f"{k}={v:g}" for k, v in self.attrs.items())
        return f"{self.op}: {sizes} {attrs}".strip()


def attrs_of(case: Case, kernel: int = AUTO) -> dict[str, float]:
    """Every attribute of a case, with the convolution kernel to use."""
    own = {"upsampled": 0, **case.attrs, "kernel": kernel} if case.op == "conv2d" else case.attrs
    return dict(own)


def make_inputs(case: Case) -> dict[str, Array]:
    """Draw the inputs of a case: float32, the same numbers on every machine."""
    rng = np.random.RandomState(zlib.crc32(str(case).encode()))
    inputs: dict[str, Array] = {}
    for i, (name, shape) in enumerate(case.shapes.items()):
        if name == "ids":
            inputs[name] = rng.randint(0, case.shapes["weight"][0], shape).astype(np.int64)
        elif name == "t":  # fractional timesteps; positive, for the logarithm
            inputs[name] = rng.uniform(0.02, 999.0, shape)
        elif name in ("weight", "right", "left") and len(shape) > 1:  # keep outputs near unit size
            inputs[name] = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        else:
            inputs[name] = case.spread * rng.standard_normal(shape) + (case.offset if i == 0 else 0)
        if name not in ("ids", "t"):
            inputs[name] = inputs[name].astype(np.float32)
    return inputs


def _conv(
    n: int,
    h: int,
    w: int,
    i: int,
    o: int,
    k: int = 3,
    stride: int = 1,
    pad: tuple[int, int] | None = None,
    extras: str = "bias",
    scale: float = 1.0,
    upsampled: bool = False,
) -> Case:
    """x: (n, h, w, i), upsampled or as it is."""
    begin, end = pad if pad is not None else (k // 2, k // 2)
    ho, wo = (((size << upsampled) + begin + end - k) // stride + 1 for size in (h, w))
    shapes: dict[str, Shape] = {"x": (n, h, w, i), "weight": (o, i, k, k)}
    optional: dict[str, Shape] = {"bias": (o,), "temb": (n, o), "residual": (n, ho, wo, o)}
    shapes |= {name: optional[name] for name in extras.split()}
    attrs = {"stride": stride, "pad_begin": begin, "pad_end": end, "scale": scale}
    return Case("conv2d", shapes, attrs | ({"upsampled": 1} if upsampled else {}))


def _norm(
    n: int,
    h: int,
    w: int,
    c: int,
    groups: int,
    act: str = "silu",
    eps: float = 1e-5,
    scale_shift: bool = False,
    more: int = 0,
    **settings: float,
) -> Case:
    """Of `c` channels, of which the last `more` are in an array of their own."""
    shapes: dict[str, Shape] = {"x": (n, h, w, c - more), "weight": (c,), "bias": (c,)}
    if scale_shift:
        shapes["scale_shift"] = (n, 2 * c)
    if more:
        shapes["more"] = (n, h, w, more)
    attrs = {"num_groups": groups, "eps": eps, "act": ACTS[act]}
    return Case("group_norm", shapes, attrs, **settings)


def _attention(n: int, h: int, w: int, c: int, heads: int, **more: float) -> Case:
    return Case("attention", dict.fromkeys("qkv", (n, h, w, c)), {"heads": heads}, **more)


def _linear(
    x: Shape, weight: Shape, bias: bool = True, more: int = 0, residual: bool = False
) -> Case:
    """Of x's channels the last `more` are in an array of their own."""
    shapes = {"x": (*x[:3], x[3] - more), "weight": weight}
    if bias:
        shapes["bias"] = weight[:1]
    if more:
        shapes["more"] = (*x[:3], more)
    if residual:
        shapes["residual"] = (*x[:3], weight[0])
    return Case("linear", shapes)


def _linear_pair(
    x: Shape, middle: int, out: int, transposed: bool = False, biases: bool = True
) -> Case:
    left = (middle, out) if transposed else (out, middle)
    shapes = {"x": x, "right": (middle, x[-1]), "left": left}
    if biases:
        shapes |= {"right_bias": (middle,), "left_bias": (left[0],)}
    return Case("linear_pair", shapes, {"transposed": float(transposed)})


def _sinusoid(n: int, dim: int, flip: int, shift: float) -> Case:
    # Angles reach 1000 rad, where float32 holds them to 3e-5: diffusers rounds the same way.
    attrs = {"dim": dim, "flip_sin_to_cos": flip, "freq_shift": shift}
    return Case("timestep_embedding", {"t": (n,)}, attrs, tolerance=2e-4)


CONV2D = [
    # 3x3, stride 1: sizes around the tile sizes of fast kernels, odd ones, single rows and columns
    _conv(1, 1, 1, 1, 1),
    _conv(1, 1, 7, 3, 5),
    _conv(2, 9, 1, 4, 3, extras=""),
    _conv(1, 5, 7, 1, 6),
    _conv(2, 5, 7, 6, 1, extras="bias temb"),
    _conv(1, 2, 3, 17, 19, extras="bias residual", scale=0.5),
    _conv(3, 4, 4, 48, 40, extras="bias temb residual"),
    _conv(2, 6, 10, 13, 33, extras="bias temb"),
    _conv(3, 8, 8, 32, 32),
    _conv(2, 16, 16, 64, 64, extras="bias temb"),
    _conv(1, 8, 8, 260, 64),  # few tiles, many channels: weights are packed piece by piece
    _conv(2, 16, 16, 64, 32, extras="bias residual", scale=2**-0.5),
    _conv(1, 15, 17, 40, 24, extras="bias temb residual", scale=0.25),
    _conv(1, 32, 32, 128, 128, extras="bias"),
    _conv(1, 32, 32, 3, 64),
    _conv(1, 32, 32, 64, 3),
    _conv(1, 5, 7, 32, 160, extras="bias temb residual", scale=0.5),
    _conv(2, 20, 16, 224, 64, extras="temb"),
    _conv(1, 1, 1, 1, 1, upsampled=True),
    _conv(2, 3, 5, 17, 19, extras="", upsampled=True),
    _conv(3, 4, 4, 96, 96, upsampled=True),
    _conv(1, 8, 7, 40, 72, extras="bias temb residual", scale=0.5, upsampled=True),
    _conv(2, 16, 16, 64, 64, upsampled=True),
    _conv(1, 7, 9, 8, 16, pad=(0, 0)),
    _conv(1, 6, 6, 16, 8, pad=(0, 1)),
    # 3x3, stride 2: symmetric padding, and diffusers' downsample_padding = 0 (right and bottom)
    _conv(2, 8, 8, 16, 24, stride=2),
    _conv(1, 7, 5, 5, 3, stride=2),
    _conv(1, 2, 2, 4, 4, stride=2),
    _conv(2, 8, 8, 16, 24, stride=2, pad=(0, 1)),
    _conv(1, 9, 6, 3, 7, stride=2, pad=(0, 1), extras=""),
    _conv(2, 32, 32, 32, 32, stride=2, pad=(0, 1)),
    # 1x1
    _conv(1, 1, 1, 1, 1, k=1),
    _conv(2, 5, 7, 24, 9, k=1),
    _conv(3, 8, 8, 96, 64, k=1, extras="bias residual", scale=0.5),
    _conv(1, 16, 16, 384, 128, k=1, extras=""),
    _conv(1, 7, 8, 16, 12, k=1, stride=2),
]

OTHERS = [
    _linear((2, 1, 1, 8), (5, 8)),
    _linear((1, 1, 1, 1), (1, 1), bias=False),
    _linear((3, 4, 4, 64), (64, 64)),
    _linear((2, 5, 7, 24), (36, 24, 1, 1), bias=False),
    _linear((2, 16, 16, 96), (128, 96, 1, 1)),
    _linear((64, 1, 1, 128), (256, 128)),
    _linear((1, 1, 1, 512), (512, 512)),
    _linear((1, 1, 1, 2), (1, 2), more=1),
    _linear((2, 5, 7, 24), (36, 24, 1, 1), bias=False, more=7),
    _linear((3, 16, 16, 96), (32, 96, 1, 1), more=32),
    _linear((1, 8, 8, 640), (48, 640, 1, 1), more=40),
    _linear((1, 1, 1, 1), (1, 1), residual=True),
    _linear((2, 5, 7, 24), (36, 24), bias=False, more=7, residual=True),
    _linear((3, 8, 8, 64), (64, 64), residual=True),
    _linear_pair((1, 1, 1, 1), 1, 1),
    _linear_pair((2, 3, 5, 7), 11, 13),
    _linear_pair((2, 3, 5, 7), 11, 13, transposed=True),
    _linear_pair((1, 4, 4, 64), 64, 64, transposed=True),
    _linear_pair((3, 8, 8, 64), 64, 64),
    _linear_pair((2, 4, 4, 33), 40, 17, biases=False),
    _linear_pair((2, 4, 4, 33), 40, 17, transposed=True, biases=False),
    _linear_pair((4, 16, 16, 256), 256, 256, transposed=True),
    _norm(1, 1, 1, 2, 1, eps=0.1),  # two numbers are always normalised to +-1 when eps is small
    _norm(1, 1, 7, 4, 4, act="none"),
    _norm(2, 5, 7, 6, 3),
    _norm(2, 5, 7, 12, 1, act="gelu"),
    _norm(3, 8, 8, 32, 16, act="mish", eps=1e-6),
    _norm(1, 1, 1, 64, 16, act="relu"),
    _norm(2, 4, 4, 48, 4, scale_shift=True),
    _norm(2, 3, 3, 8, 8, act="none", scale_shift=True),
    _norm(1, 5, 3, 24, 2, act="gelu", scale_shift=True),
    _norm(2, 16, 16, 64, 32),
    _norm(1, 1, 1, 4, 2, eps=0.1, more=1),
    _norm(2, 5, 7, 6, 3, more=3),  # the seam is in the middle of a group
    _norm(1, 4, 4, 96, 4, more=40),
    _norm(1, 4, 4, 64, 4, more=32, act="none"),
    _norm(2, 3, 5, 40, 8, scale_shift=True, more=21),
    _norm(3, 16, 16, 96, 16, more=32),
    _norm(1, 32, 32, 160, 32, more=64),
    _norm(1, 16, 16, 32, 8, act="none", more=8, offset=300.0, tolerance=5e-5),
    _norm(1, 32, 32, 128, 32, eps=1e-6),
    # A mean of 300 standard deviations: (x - mean) in float32 keeps 300 * 6e-8 of rounding.
    _norm(1, 16, 16, 32, 8, act="none", offset=300.0, tolerance=5e-5),
    *[Case("activation", {"x": (2, 5, 7, 9)}, {"act": code}) for code in ACTS.values()],
    *[Case("activation", {"x": (1, 16, 16, 96)}, {"act": code}) for code in ACTS.values()],
    _attention(1, 1, 1, 1, 1),
    _attention(2, 1, 3, 4, 2),
    _attention(1, 5, 7, 6, 3),
    _attention(2, 4, 4, 64, 1),
    _attention(3, 7, 7, 32, 4),
    _attention(2, 8, 8, 96, 3),
    _attention(1, 16, 16, 128, 1),
    _attention(1, 32, 32, 16, 2),
    _attention(1, 8, 8, 16, 2, spread=3.0, tolerance=3e-5),  # peaked softmax: logits of +-30
    Case("add", {"a": (1, 1, 1, 1), "b": (1, 1, 1, 1)}, {"scale": 1.0}),
    Case("add", {"a": (2, 5, 7, 9), "b": (2, 5, 7, 9)}, {"scale": 0.5}),
    Case("add", {"a": (3, 16, 16, 64), "b": (3, 16, 16, 64)}, {"scale": 2**-0.5}),
    Case("upsample_nearest", {"x": (1, 1, 1, 1)}),
    Case("upsample_nearest", {"x": (2, 5, 7, 9)}),
    Case("upsample_nearest", {"x": (2, 16, 16, 64)}),
    Case("mean2x2", {"x": (1, 2, 2, 1)}),
    Case("mean2x2", {"x": (2, 6, 10, 9)}),
    Case("mean2x2", {"x": (1, 5, 7, 4)}),
    Case("mean2x2", {"x": (2, 32, 32, 32)}),
    Case("concat", {"a": (1, 1, 1, 1), "b": (1, 1, 1, 1)}),
    Case("concat", {"a": (2, 5, 7, 3), "b": (2, 5, 7, 10)}),
    Case("concat", {"a": (2, 16, 16, 64), "b": (2, 16, 16, 32)}),
    _sinusoid(1, 2, 0, 0.0),
    _sinusoid(4, 32, 1, 0.0),
    _sinusoid(3, 33, 1, 1.0),
    _sinusoid(3, 128, 0, 1.0),
    Case("fourier_embedding", {"t": (3,), "weight": (16,)}, {"flip_sin_to_cos": 0}, 1e-4),
    Case("fourier_embedding", {"t": (1,), "weight": (5,)}, {"flip_sin_to_cos": 1}, 1e-4),
    Case("embedding", {"ids": (1,), "weight": (1, 1)}),
    Case("embedding", {"ids": (9,), "weight": (4, 24)}),  # repeated ids: gradients add up
    Case("embedding", {"ids": (5,), "weight": (11, 128)}),
    Case("to_nhwc", {"x": (1, 1, 1, 1)}, {"scale": 1.0, "shift": 0.0}),
    Case("to_nhwc", {"x": (2, 3, 5, 7)}, {"scale": 2.0, "shift": -1.0}),
    Case("to_nhwc", {"x": (4, 3, 32, 32)}, {"scale": 1.0, "shift": 0.0}),
    Case("to_nchw", {"x": (1, 1, 1, 1)}),
    Case("to_nchw", {"x": (2, 5, 7, 3), "t": (2,)}),
    Case("to_nchw", {"x": (4, 32, 32, 3)}),
]

CASES = CONV2D + OTHERS
