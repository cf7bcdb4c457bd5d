"""How a teacher is guided and its signal kept in range: the whole story in one file.

In the order in which it happens, for a sample (x, t) of class c:

1. Guidance (Ho and Salimans 2022): o = o(n) + w (o(c) - o(n)), where o is the network's output, n
   the condition to get away from and w the guidance scale (1: off). n is the label that means "no
   class", or a class of its own: the *negative class*, as a negative prompt is for text.
2. Only where it helps (Kynkaanniemi et al. 2024): w counts as 1 outside an interval of t.
3. Guidance rescale (Lin et al. 2023, section 3.4): guiding with a large w makes outputs too strong.
   o <- phi o std(o(c)) / std(o) + (1 - phi) o, with the standard deviation of each image.
4. The output becomes the signal f, which is clipped, or thresholded dynamically (Saharia et al.
   2022): per image s = quantile(|f|, ratio) kept in [1, highest], f <- clip(f, -s, s) / s.

Every prediction type is affine in the network's output, so guiding outputs is the same as guiding
signals, and cheaper. Rescaling is not: it acts on the output, as diffusers' `rescale_noise_cfg`
does. A student is taught all of it, and does none of it when it samples.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from boot import _core
from boot.choices import AUTO_CORRECTION_GUIDANCE
from boot.image_model import ImageModel, Images

Float64 = NDArray[np.float64]
_Scale = TypeVar("_Scale", float, Float64)

_log = logging.getLogger("boot")


@dataclass(frozen=True)
class Guidance:
    """What guides a teacher. `Teacher.guidance` makes one and checks it against the teacher.

    scale: w >= 0; 1 is off, 0 is the condition n alone. null_label: the row of the class table that
    means "no class", or None for a model without classes (then scale is 1). varies: w comes with
    each sample, and `scale` is only what stands in where none is given. negative_label: class to
    get away from instead of "no class". rescale: phi in [0, 1]; 0 is off. t_low, t_high: guide only
    where t_low <= t <= t_high.
    """

    scale: float = 1.0
    null_label: int | None = None
    varies: bool = False
    negative_label: int | None = None
    rescale: float = 0.0
    t_low: float = 0.0
    t_high: float = 1.0

    @property
    def active(self) -> bool:
        """Whether guiding changes anything; if not, one network call does."""
        return (self.varies or self.scale != 1.0) and self.null_label is not None

    @property
    def away_from(self) -> int | None:
        """The label n: the negative class, or else what means "no class"."""
        return self.null_label if self.negative_label is None else self.negative_label

    @property
    def idle(self) -> list[str]:
        """Names of the settings that were changed and have no effect, since nothing is guided."""
        changed = {
            "negative_class_label": self.negative_label is not None,
            "guidance_rescale": self.rescale > 0.0,
            "guidance_t_min": self.t_low > 0.0,
            "guidance_t_max": self.t_high < 1.0,
        }
        return [] if self.active else [name for name, is_so in changed.items() if is_so]

    def scales(self, t: Float64, w: Float64 | None = None) -> Float64:
        """Return the scale of each sample: w (N,), or else `scale`, and 1 outside the interval."""
        inside = (t >= self.t_low) & (t <= self.t_high)
        return np.where(inside, self.scale if w is None else w, 1.0)


def critic_scale(w: _Scale) -> _Scale:
    """Return the guidance scale of a critic's teacher for a student of scale w: 1 + 0.3 (w - 1).

    Full guidance narrows the distribution that the student is pulled to; none takes back what
    guidance has taught it (docs/ablation.md).
    """
    return 1.0 + AUTO_CORRECTION_GUIDANCE * (w - 1.0)


def warn_of_idle(guidance: Guidance) -> None:
    """Log a warning if there are settings of a guidance that is off."""
    if guidance.idle:
        names = ", ".join(guidance.idle)
        _log.warning("guidance_scale is 1, which leaves without effect: %s", names)


def guided_output(
    network: ImageModel,
    x: Images,
    timesteps: NDArray[np.float64],
    labels: NDArray[np.int64] | None,
    guidance: Guidance,
    scales: Float64 | None = None,
) -> Images:
    """Return the network's guided output. x: (N,C,H,W); timesteps, labels, scales: (N,).

    scales: from `Guidance.scales`; None: the guidance's own for every sample. The pair (condition
    c, condition n) runs as one batch of 2N, unless no sample needs the second.
    """
    count = len(x)
    w = np.full(count, guidance.scale) if scales is None else scales
    if not guidance.active or labels is None or (w == 1.0).all():
        return network.forward(x, timesteps, labels)
    both = network.forward(
        np.concatenate([x, x]),
        np.concatenate([timesteps, timesteps]),
        np.concatenate([labels, np.full_like(labels, guidance.away_from)]),
    )
    guided = _core.guide(both[:count], both[count:], w)
    if guidance.rescale == 0.0:
        return guided
    return rescaled(guided, both[:count], guidance.rescale)


def rescaled(guided: Images, conditional: Images, phi: float) -> Images:
    """Return phi * guided * std(conditional) / std(guided) + (1 - phi) * guided, image by image."""
    axes = (1, 2, 3)
    own = guided.std(axes, dtype=np.float64, keepdims=True)
    wanted = conditional.std(axes, dtype=np.float64, keepdims=True)
    ratio = np.divide(wanted, own, out=np.ones_like(own), where=own > 0)
    result: Images = guided * (phi * ratio + (1.0 - phi)).astype(np.float32)
    return result


@dataclass(frozen=True)
class Clip:
    """How a signal is kept in the range of images, as a diffusers scheduler config says it.

    limit: clip to [-limit, limit]; 0: no clip. thresholding: dynamic thresholding instead, with
    `ratio` in [0, 1] and `highest` >= 1.
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
