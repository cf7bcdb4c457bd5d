"""Which calls a run makes of its networks, before its first step.

They are not listed here a second time: the method itself runs once on networks that only write
down how they are called, and answer with zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boot import _core
from boot.config import DistillConfig
from boot.probe import Probe

if TYPE_CHECKING:
    from boot.distiller import Distiller


PAIRS = 16  # at most; never fewer than 8


@dataclass(frozen=True, order=True)
class Call:
    """One way a network is called in a run. network: teacher, training, average or critic.

    fixed: its batch does not follow train_batch_size.
    """

    network: str
    batch: int
    height: int
    width: int
    train: bool
    fixed: bool = False

    def __str__(self) -> str:
        """Name it in a table."""
        return f"{self.network} x{self.batch}{' and backward' if self.train else ''}"


def number_of_pairs(config: DistillConfig) -> int:
    """Return how many images a run is measured by."""
    return min(PAIRS, max(8, config.train_batch_size))


class _Recorder:
    """Stands in for a network's core: notes the shape of each call and answers with zeros."""

    def __init__(self, name: str, core: Any, channels: int, calls: list[Call]) -> None:
        self._name, self._core, self._channels, self._calls = name, core, channels, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def forward(self, sample: Any, *inputs: Any, train: bool = False) -> Any:
        count, _, height, width = sample.shape
        self._calls.append(Call(self._name, count, height, width, train))
        return np.zeros((count, self._channels, height, width), np.float32)

    def backward(self, doutput: Any) -> None:
        pass


@contextmanager
def _recording(distiller: Distiller) -> Iterator[list[Call]]:
    """Let the networks note their calls instead of computing."""
    calls: list[Call] = []
    cores = {name: network.core for name, network in distiller._networks().items()}
    try:
        for name, network in distiller._networks().items():
            if isinstance(network.core, _Recorder):  # the average may be the training network
                continue
            recorder: Any = _Recorder(name, network.core, network.config.out_channels, calls)
            network.core = recorder
        yield calls
    finally:
        for name, network in distiller._networks().items():
            network.core = cores[name]


def phases(distiller: Distiller) -> dict[bool, float]:
    """Return the kinds of step of a run, without and with a critic, and their parts of it."""
    if distiller._critic is None:
        return {False: 1.0}
    start = distiller.config.correction_start
    return {False: start, True: 1.0 - start} if start > 0 else {True: 1.0}


def trace(distiller: Distiller) -> tuple[list[Call], int]:
    """Return the distinct calls of a run, and the peak bytes of its Python arrays."""
    config, student, teacher = distiller.config, distiller.student, distiller.teacher

    def at_once(count: int) -> None:
        """The student's and, if it is a network (a callable would be called), the teacher's."""
        noise, labels = student.inputs(count)
        t = np.full(count, distiller._t_max)
        student.signal(noise, t, labels)
        if teacher.network is not None:
            teacher.signal(noise, t, labels, distiller._guidance)

    def measure() -> None:
        if config.eval_steps:
            at_once(number_of_pairs(config))
        if config.sample_steps:
            at_once(config.num_sample_images)
        if config.check_teacher and teacher.network is not None:
            probe = Probe.of(teacher, distiller._labels, distiller._t_max)
            probe.output(probe.noise[0], distiller._t_max)

    def steps() -> None:
        for corrected in phases(distiller):
            losses = distiller._loss_and_gradient(distiller._draw(), corrected)
            distiller._training.backward(losses.gradient)

    with _recording(distiller) as calls:
        _, arrays = _core.peak_array_bytes(steps)
        of_steps = set(calls)
        _, others = _core.peak_array_bytes(measure)
        measuring = {dataclasses.replace(c, fixed=True) for c in set(calls) - of_steps}
    return sorted(of_steps | measuring), max(arrays, others)
