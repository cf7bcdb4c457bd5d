"""Is it learning? The student against the teacher's ODE from the same noise, at several times.

The teacher's path y_t is computed once, by Heun steps with the guidance and clip of the training;
then a measurement is one student call per time. No random number of the training is used, and
nothing of the run is changed: a run that measures takes the same steps as one that does not.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boot.callbacks import Callback, Control, TrainState
from boot.calls import number_of_pairs
from boot.config import DistillConfig
from boot.evaluation import teacher_signals
from boot.metrics import paired_rmse
from boot.network import Images
from boot.schedule import Float64

if TYPE_CHECKING:
    from boot.distiller import Distiller

PATH_STEPS = 20  # Heun steps of the teacher's path
TIMES = 5  # of them compared: t_max, t_min, and evenly between
TEACHER_PICTURE = "teacher.png"

_log = logging.getLogger("boot")


class Pairs:
    """Fixed noise (N,C,H,W) and the teacher's signals for it at `times`, falling to t_min."""

    def __init__(self, distiller: Distiller, count: int | None = None) -> None:
        """Compute the teacher's path for the first `count` images of the run's sample grids."""
        count = number_of_pairs(distiller.config) if count is None else count
        student = distiller.student
        self.noise, self.labels = student.inputs(count, seed=distiller.config.seed)
        times, signals = teacher_signals(
            student,
            distiller.teacher,
            self.noise,
            self.labels,
            solver="heun",
            times=_path_times(distiller),
        )
        chosen = np.unique(np.rint(np.linspace(0, len(times) - 1, TIMES)).astype(int))
        self.times: Float64 = times[chosen]
        self.signals: list[Images] = [signals[i] for i in chosen]

    def errors(self, distiller: Distiller) -> NDArray[np.float64]:
        """Return the root mean square difference between student and teacher at each time.

        NaN where either is not finite: what to do about that is the training step's business.
        """
        student, rows = distiller.student, np.ones(len(self.noise))
        return np.array(
            [
                _rmse(student.signal(self.noise, t * rows, self.labels), y)
                for t, y in zip(self.times, self.signals, strict=True)
            ]
        )


def _rmse(a: Images, b: Images) -> float:
    finite = np.isfinite(a).all() and np.isfinite(b).all()
    return paired_rmse(a, b) if finite else math.nan


def _path_times(distiller: Distiller) -> Float64:
    """Return the times of the teacher's path, on the schedule's grid."""
    schedule, t_max, t_min = distiller._schedule, distiller._t_max, distiller._t_min
    available = round((t_max - t_min) * schedule.num_train_timesteps)
    return schedule.times(t_max, t_min, max(1, min(PATH_STEPS, available)))


class PairedError(Callback):
    """Measures every `eval_steps` steps, and at the last one; the numbers join the step's logs.

    `paired_error` is the one at t_min, of the images; `paired_error_t0.2` and so on are those of
    the signals at other times. Also draws `samples/teacher.png`, what the student is to reach.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Compute the teacher's path when it is first needed. folder: of the sample grids."""
        self._folder = folder
        self._pairs: Pairs | None = None

    def on_train_begin(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Draw the teacher's images for the noise of the sample grids, once per folder."""
        if self._folder is None or not config.sample_steps:
            return
        from boot.images import save_grid  # Pillow: only where something is drawn

        path = self._folder / TEACHER_PICTURE
        if not path.exists():
            pairs = Pairs(kwargs["distiller"], config.num_sample_images)
            self._folder.mkdir(exist_ok=True)
            save_grid(path, np.clip(pairs.signals[-1], -1.0, 1.0))

    def on_step_end(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Measure if it is time, and ask for a log line."""
        last = state.step == config.max_train_steps
        if not config.eval_steps or (state.step % config.eval_steps and not last):
            return
        distiller: Distiller = kwargs["distiller"]
        logs: dict[str, float] = kwargs["logs"]
        try:
            pairs = self._pairs or Pairs(distiller)
        except (FloatingPointError, MemoryError) as problem:  # not a measurement's business
            _log.warning("paired error not measured at step %d: %s", state.step, problem)
            logs["paired_error"] = math.nan
            return
        errors = pairs.errors(distiller)
        # NaN may be in the teacher's path: do not keep that.
        self._pairs = pairs if np.isfinite(errors).all() else None
        logs["paired_error"] = float(errors[-1])
        for t, error in zip(pairs.times[:-1], errors[:-1], strict=True):
            logs[f"paired_error_t{t:.3g}"] = float(error)
        control.should_log = True
