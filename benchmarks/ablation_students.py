"""Students that do what `boot.student` advises against, for the ablation only.

Each overrides how a student calls its network; training and sampling go through the same two
methods, so nothing else changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from boot import _core
from boot.network import Images
from boot.schedule import Float64
from boot.student import Student


class EpsilonMap(Student):
    """y = (eps - sigma_T F) / alpha_T: the map of an epsilon teacher, frozen at t_max."""

    def _output_map(self, eps: Images, output: Images) -> Images:
        alpha, sigma = np.full(len(eps), self._alpha), np.full(len(eps), self._sigma)
        return _core.signal_from_output("epsilon", output, eps, alpha, sigma, 0.0)

    def backward(self, dy: Images) -> None:
        self.model.backward(dy * np.float32(-self._sigma / self._alpha))


class InputTimeMap(Student):
    """y = alpha_t eps - sigma_t F: a map that depends on the target time."""

    def signal(
        self, eps: Images, t: Float64, labels: Any = None, w: Float64 | None = None
    ) -> Images:
        self._now = self.schedule.alpha_sigma(t)
        return super().signal(eps, t, labels, w)

    def signal_train(
        self, eps: Images, t: Float64, labels: Any = None, w: Float64 | None = None
    ) -> Images:
        self._now = self.schedule.alpha_sigma(t)
        return super().signal_train(eps, t, labels, w)

    def _output_map(self, eps: Images, output: Images) -> Images:
        return _core.signal_from_output("v_prediction", output, eps, *self._now, 0.0)

    def backward(self, dy: Images) -> None:
        sigma = self._now[1].astype(np.float32).reshape(-1, 1, 1, 1)
        self.model.backward(dy * -sigma)


class TeacherTime(Student):
    """The network's own time embedding is told the target time; the second one is constant."""

    def signal(
        self, eps: Images, t: Float64, labels: Any = None, w: Float64 | None = None
    ) -> Images:
        return self._output_map(eps, self.model.forward(*self._inputs(eps, t, labels, w)))

    def signal_train(
        self, eps: Images, t: Float64, labels: Any = None, w: Float64 | None = None
    ) -> Images:
        return self._output_map(eps, self.model.forward_train(*self._inputs(eps, t, labels, w)))

    def _inputs(self, eps: Images, t: Float64, labels: Any, w: Float64 | None) -> tuple[Any, ...]:
        constant = np.full(len(eps), self._index)
        return eps, self.schedule.index(t), labels, constant, self._scales(w, len(eps))
