"""Classifier-free guidance of the teacher, and the clip of its signal: the whole story in one file.

Guided signal: f = f(x, t, n) + w (f(x, t, c) - f(x, t, n)), where n is the label that means "no
class" and w the guidance scale (1: off). Every prediction type is affine in the network's output,
so guiding outputs is the same as guiding signals, and cheaper; the clip must come after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boot import _core
from boot.network import Images, Network

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Guidance:
    """What guides a teacher: the scale w and the label of condition n.

    scale: w >= 0; 1 is off, 0 is the unconditional model. null_label: a row of the class table, or
    None for a model without classes (then scale is 1). varies: w comes with each sample, and
    `scale` is only what stands in where none is given.
    """

    scale: float = 1.0
    null_label: int | None = None
    varies: bool = False

    @property
    def active(self) -> bool:
        """Whether guiding changes anything; if not, one network call does."""
        return (self.varies or self.scale != 1.0) and self.null_label is not None

    def scales(self, count: int, w: Float64 | None = None) -> Float64:
        """Return the guidance scale of each of `count` samples: w (count,), or else `scale`."""
        return np.full(count, self.scale) if w is None else w


def guided_output(
    network: Network,
    x: Images,
    timesteps: NDArray[np.float64],
    labels: NDArray[np.int64] | None,
    guidance: Guidance,
    w: Float64 | None = None,
) -> Images:
    """Return the network's guided output. x: (N,C,H,W); timesteps, labels, w: (N,).

    w: a scale for each sample; None: the one of `guidance`. The pair (with class, without class)
    runs as one batch of 2N, unless no sample needs the second.
    """
    scales = guidance.scales(len(x), w)
    if not guidance.active or labels is None or (scales == 1.0).all():
        return network.forward(x, timesteps, labels)
    null = np.full_like(labels, guidance.null_label)
    both = network.forward(
        np.concatenate([x, x]),
        np.concatenate([timesteps, timesteps]),
        np.concatenate([labels, null]),
    )
    count = len(x)
    return _core.guide(both[:count], both[count:], scales)


@dataclass(frozen=True)
class Clip:
    """How a signal is kept in the range of images, as a diffusers scheduler config says it.

    limit: clip to [-limit, limit]; 0: no clip. thresholding: dynamic thresholding instead (Saharia
    et al. 2022): per image s = quantile(|f|, ratio) kept in [1, highest], f = clip(f, -s, s) / s.
    """

    limit: float = 0.0
    thresholding: bool = False
    ratio: float = 0.995
    highest: float = 1.0

    @property
    def active(self) -> bool:
        """Whether signals are bounded at all."""
        return self.thresholding or self.limit > 0

    @property
    def largest(self) -> float:
        """The bound of a clipped signal; 1 if there is none."""
        return 1.0 if self.thresholding or self.limit == 0 else self.limit

    def signal(
        self,
        prediction_type: str,
        output: Images,
        x: Images,
        alpha: NDArray[np.float64],
        sigma: NDArray[np.float64],
    ) -> Images:
        """Turn a network's output at x into the clipped signal f. Arrays (N,C,H,W) and (N,)."""
        limit = 0.0 if self.thresholding else self.limit
        f = _core.signal_from_output(prediction_type, output, x, alpha, sigma, limit)
        return dynamic_threshold(f, self.ratio, self.highest) if self.thresholding else f


def dynamic_threshold(f: Images, ratio: float, highest: float) -> Images:
    """Return f = clip(f, -s, s) / s with s = quantile(|f|, ratio) of each image in [1, highest]."""
    flat = np.abs(f.reshape(len(f), -1))
    s = np.clip(np.quantile(flat, ratio, axis=1), 1.0, max(1.0, highest))
    s = s.astype(np.float32).reshape(-1, 1, 1, 1)
    clipped: Images = np.clip(f, -s, s) / s
    return clipped
