"""Correction of compounding errors: let the teacher go on from where the student got to.

A plain target is one step away from the student's own y_t, so an image-end error is handed down
through all bootstraps before it, about (t_max - t_min) / delta of them. A rollout starts from the
student's y_t as well, errors included, but follows the teacher's ODE for several steps, and asks
the student for every signal on that path. What was wrong at t is thereby answered by the teacher,
over a span of many deltas, and fewer bootstraps lie between noise and image. No data is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from boot.network import Images
from boot.schedule import Float64

# (rows of the batch, y_t, t, s) -> y_s by the teacher
Advance = Callable[[NDArray[np.int64], Images, Float64, Float64], Images]


class Aims(NamedTuple):
    """What the student is asked for: `target` at s, reached from its own y_t, for rows of a batch.

    rows: (M,) indices into the batch; t, s: (M,); target: (M,C,H,W).
    """

    rows: NDArray[np.int64]
    t: Float64
    s: Float64
    target: Images

    def rollout(self, count: int, steps: int, delta: float, t_min: float, go: Advance) -> Aims:
        """Return these aims and those of the first `count` rows, followed for `steps` more steps.

        Steps are of length delta and end at t_min; t stays the time of the student's own signal,
        where the path began. Rows that have arrived wait there with t = s: they must get no weight.
        So there are always as many rows, and networks one batch size.
        """
        parts = [self]
        last = Aims._make(a[:count] for a in self)
        for _ in range(steps):
            s = np.maximum(last.s - delta, t_min)
            target = go(last.rows, last.target, last.s, s)
            start = np.where(s < last.s, last.t, s)
            last = Aims(last.rows, start, s, target)
            parts.append(last)
        return Aims._make(np.concatenate(column) for column in zip(*parts, strict=True))
