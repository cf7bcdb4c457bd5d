"""Does a teacher behave as its declared prediction type and schedule say? Asked with noise alone.

The teacher draws images by a short DDIM run; they are noised again with known noise at several
levels, and the teacher denoises them. A right declaration passes tests that a wrong one fails:

- *type*: the error is below that of the best linear denoiser (Wiener), which knows nothing but the
  images' variance v: error / (v n / (v + n)), n = (sigma/alpha)^2.
- *mixing*: no p f + q x denoises better than the signal f itself. What a teacher says is a mixture
  of image and input; read as another type, another mixture would be the better image.
- *schedule*: told another time than that of the noise it is given, the teacher denoises worse. If a
  neighbouring time does better, its noise levels are not those of the declared schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot.errors import TeacherError
from boot.guidance import Clip
from boot.network import Images
from boot.noise import Stream, normal
from boot.samplers import sample_ddim
from boot.schedule import Float64, Schedule
from boot.signal_ode import diffuse
from boot.teacher import Teacher

LEVELS = (0.2, 0.5, 1.0, 2.0, 4.0)  # noise levels sigma / alpha that are tried
SHIFTS = (0.4, 0.63, 1.0, 1.6, 2.5)  # the network is told the time of level x shift
QUICK_LEVELS, QUICK_SHIFTS = (0.2, 0.5, 1.0, 4.0), (0.5, 1.0, 2.0)
TOP_LEVEL, LAST_LEVEL = 20.0, 0.05  # between them the DDIM run spreads its steps
NULL_LEVEL = 10.0  # where labels are compared, beside t_max
STEPS = 16  # of the DDIM run that draws the images
NUMBERS, MOST_IMAGES = 4096, 256  # values that all images together have, where so many images do
FLOOR = 0.05  # of an error ratio: below it, differences mean nothing

# Measured on the digits and fashion teachers: right 0.25 ... 0.30, wrong type 2.7 ... 45. A
# teacher of Gaussian data can do no better than Wiener: 1.
TYPE_LIMIT = 1.2
# Right: 0 ... 0.027 (images of 16 steps are not quite the teacher's own). Wrong: 0.04 and more.
MIXING_LIMIT, MIXING_FLOOR = 0.033, 0.02
# Right: 0 ... 0.016; wrong: cosine for linear 0.27, linear for cosine 0.60, sigmoid for it 0.11.
SCHEDULE_LIMIT = 0.025


@dataclass(frozen=True)
class Evidence:
    """What a probe found.

    errors: (levels, shifts) ratios to Wiener's error. mixed: (levels,) the same for the best
    p f + q x at the declared times. images: (N,C,H,W).
    """

    levels: tuple[float, ...]
    shifts: tuple[float, ...]
    errors: Float64
    mixed: Float64
    images: Images

    @property
    def declared(self) -> Float64:
        """Error ratio at each level with the declared times."""
        column: Float64 = self.errors[:, self.shifts.index(1.0)]
        return column

    @property
    def type_score(self) -> float:
        """The worst error ratio over the levels: below 1 for a denoiser, above for anything else.

        Infinite if the images or their denoised versions are not finite.
        """
        return float(self.declared.max())

    @property
    def mixing_score(self) -> float:
        """Largest over levels of log(error / error of the best p f + q x): 0 for a perfect teacher.

        Infinite if the images or their denoised versions are not finite.
        """
        if not np.isfinite(self.declared).all():
            return float("inf")
        ratio = (self.declared + MIXING_FLOOR) / (self.mixed + MIXING_FLOOR)
        return float(np.log(ratio).max())

    @property
    def fits(self) -> bool:
        """Whether the teacher behaves as the type that it was read as."""
        return self.type_score < TYPE_LIMIT and self.mixing_score < MIXING_LIMIT

    @property
    def schedule_score(self) -> float:
        """Mean over levels of log(error at the declared time / error at the best time)."""
        if not np.isfinite(self.errors).all():
            return float("inf")
        best = self.errors.min(axis=1)
        return float(np.mean(np.log((self.declared + FLOOR) / (best + FLOOR))))


@dataclass(frozen=True)
class Probe:
    """A teacher and the conditions under which it is asked. noise: two draws (N,C,H,W)."""

    teacher: Teacher
    labels: NDArray[np.int64] | None
    t_max: float
    noise: tuple[Images, Images]

    @classmethod
    def of(cls, teacher: Teacher, options: NDArray[np.int64] | None, t_max: float) -> Probe:
        """Draw noise for enough images to tell; labels go through `options` in turn."""
        shape = teacher.model.image_shape()
        assert shape is not None  # resolve_config has refused such a teacher
        count = int(np.clip(-(-NUMBERS // np.prod(shape)), 8, MOST_IMAGES))
        draws = [normal(0, Stream.CHECK_NOISE, i, 0, (count, *shape)) for i in (0, 1)]
        labels = None if options is None else options[np.arange(count) % len(options)]
        return cls(teacher, labels, t_max, (draws[0], draws[1]))

    def output(self, x: Images, t: float, labels: Any = None) -> Images:
        """Return the network's output at one time; TeacherError with the time if not finite."""
        index = np.full(len(x), float(self.teacher.schedule.timestep(t)))
        output = self.teacher.model.forward(x, index, self.labels if labels is None else labels)
        if not np.isfinite(output).all():
            bad = int(np.count_nonzero(~np.isfinite(output)))
            raise TeacherError(
                f"the teacher's output is not finite at t = {t:g} (timestep {index[0]:g}): "
                f"{bad} NaN or Inf of {output.size}"
            )
        return output

    def null_distance(self, null: int, classes: NDArray[np.int64]) -> float:
        """Return how far outputs for `null` are from the mean of all; 1: as the nearest class is.

        Where images are mostly noise: what a network says there without a class is about the mean
        of what it says for each, so below 1 if `null` means "no class". Up to twenty classes count,
        spread evenly: neighbours are often alike.
        """
        spread = np.linspace(0, len(classes) - 1, min(len(classes), 20)).round().astype(int)
        labels = np.array([*classes[spread], null])
        ratios = []
        for t in (self.t_max, time_of(self.teacher.schedule, NULL_LEVEL)):
            x = self.teacher.schedule.start(self.noise[0][:4], t)
            asked = np.concatenate([x] * len(labels)), t, np.repeat(labels, len(x))
            outputs = self.output(*asked).astype(np.float64).reshape(len(labels), -1)
            others = (outputs.sum(0) - outputs) / (len(labels) - 1)
            distances = np.sqrt(((outputs - others) ** 2).mean(1))
            ratios.append(float(distances[-1] / (distances[:-1].min() + 1e-30)))
        return float(np.mean(ratios))

    def evidence(
        self,
        prediction_type: str | None = None,
        schedule: Schedule | None = None,
        *,
        quick: bool = False,
        shifts: tuple[float, ...] | None = None,
    ) -> Evidence:
        """Probe the teacher as if it had this type and schedule; None: the declared one."""
        kind = prediction_type or self.teacher.prediction_type
        schedule = schedule or self.teacher.schedule
        levels = QUICK_LEVELS if quick else LEVELS
        shifts = shifts or (QUICK_SHIFTS if quick else SHIFTS)
        with np.errstate(all="ignore"):
            images = self._images(kind, schedule, self.teacher.clip)
            if not np.isfinite(images).all() or not _differ(images):
                errors = np.full((len(levels), len(shifts)), np.inf)
                mixed = errors[:, 0]
            else:
                errors, mixed = self._errors(kind, schedule, images, levels, shifts)
        return Evidence(levels, shifts, errors, mixed, images)

    def images(self, clip: Clip) -> Images:
        """Return images (N,C,H,W) of the teacher as declared, but clipped otherwise."""
        with np.errstate(all="ignore"):
            return self._images(self.teacher.prediction_type, self.teacher.schedule, clip)

    def _images(self, kind: str, schedule: Schedule, clip: Clip) -> Images:
        times = _times_by_level(schedule, self.t_max)

        def signal(x: Images, t: Float64) -> Images:
            if not np.isfinite(x).all():  # a wrong type without clip: let it end there
                return np.full_like(x, np.nan)
            alpha, sigma = schedule.alpha_sigma(t)
            output = self.output(x, float(t[0]))
            return clip.signal(kind, output, x, alpha, sigma)

        start = schedule.start(self.noise[0], times[0])
        return sample_ddim(schedule, signal, start, times)

    def _errors(
        self,
        kind: str,
        schedule: Schedule,
        images: Images,
        levels: tuple[float, ...],
        shifts: tuple[float, ...],
    ) -> tuple[Float64, Float64]:
        count, variance = len(images), float(np.var(images, dtype=np.float64))
        errors, mixed = np.empty((len(levels), len(shifts))), np.full(len(levels), np.inf)
        for row, level in enumerate(levels):
            t = np.full(count, time_of(schedule, level))
            alpha, sigma = schedule.alpha_sigma(t)
            x = diffuse(schedule, images, self.noise[1], t)
            n = float(sigma[0] / alpha[0]) ** 2
            wiener = variance * n / (variance + n)
            for column, shift in enumerate(shifts):
                output = self.output(x, time_of(schedule, level * shift))
                f = Clip().signal(kind, output, x, alpha, sigma)
                errors[row, column] = np.mean((f - images) ** 2, dtype=np.float64) / wiener
                if shift == 1.0 and np.isfinite(f).all():
                    mixed[row] = _best_mixture_error(f, x, images) / wiener
        return np.nan_to_num(errors, nan=np.inf), mixed


def _best_mixture_error(f: Images, x: Images, images: Images) -> float:
    """Return the least mean square of p f + q x - images over all numbers p and q."""
    columns = np.stack([f.ravel(), x.ravel()], axis=1).astype(np.float64)
    columns /= np.sqrt((columns**2).sum(0)) + 1e-30
    wanted = images.ravel().astype(np.float64)
    best = np.linalg.lstsq(columns, wanted, rcond=1e-6)[0]
    return float(np.mean((columns @ best - wanted) ** 2))


def _differ(images: Images) -> bool:
    """Return whether the images are not all the same one, which is no test for a denoiser."""
    return float(images.var(axis=0).mean()) > 1e-4 * float((images**2).mean()) + 1e-12


def _times_by_level(schedule: Schedule, t_max: float) -> Float64:
    """Return falling times from t_max to 0, evenly spread in the logarithm of the noise level.

    Evenly spread times would leave a linear schedule two steps below level 1, and images too smooth
    to calibrate a denoiser with.
    """
    top = float(np.exp(schedule.lambda_(t_max)))
    levels = np.geomspace(min(top, TOP_LEVEL), LAST_LEVEL, STEPS - 1)
    times = {schedule.snap(t_max), *(time_of(schedule, level) for level in levels)}
    falling = sorted((t for t in times if t <= t_max + 1e-9), reverse=True)
    return np.array([*falling, 0.0])


def time_of(schedule: Schedule, level: float) -> float:
    """Return the time of the schedule's grid at which sigma / alpha is nearest to a level."""
    grid = np.arange(1, schedule.num_train_timesteps + 1) / schedule.num_train_timesteps
    return float(grid[np.argmin(np.abs(schedule.lambda_(grid) - np.log(level)))])
