"""More than one step: what a student's images gain from further calls, without further training.

The student knows the signal y(eps, t) at every t, but only along trajectories that it starts
itself: its input is pure noise, never an x_t. So it cannot simply go on from an image. The ways:

- *jump*: x_t = alpha_t y(eps, t) + sigma_t eps is a point of the teacher's trajectory, as far as
  the student is right. The teacher goes the rest of the way, k steps from t to 0.
- *renoise*: the finished image y(eps, t_min) gets fresh noise, x_t = alpha_t y + sigma_t eps', and
  the teacher goes on from there. That forgets the student's errors below the noise, but also what
  eps said of the image.
- *resample*: the same without a teacher. The student can go on from x_t once it knows which start
  noise leads there, and that is a fixed point: eps <- (x_t - alpha_t y(eps, t)) / sigma_t. Near the
  noise end alpha_t / sigma_t is small and a few rounds find it; near the image end they do not
  converge, so t must not be small.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from boot import _core
from boot.errors import check_choice, check_float, check_int, shown
from boot.network import Images
from boot.noise import Stream, normal
from boot.resolve import teaching_of
from boot.samplers import SAMPLERS
from boot.schedule import Float64, Schedule
from boot.signal_ode import diffuse
from boot.teacher import Teacher

if TYPE_CHECKING:
    from boot.student import Student

_log = logging.getLogger("boot")


def check_refine(
    student: Student, teacher: Teacher, t: Any, num_teacher_steps: Any, sampler: Any
) -> Float64:
    """Return the times t ... 0 of the teacher's steps, or raise TypeError or ValueError."""
    check_pair(student, teacher)
    check_choice("sampler", sampler, tuple(SAMPLERS))
    steps = check_int("num_teacher_steps", num_teacher_steps, 1)
    t = check_float("t", t, student.info.t_min, student.info.t_max)
    available = teacher.schedule.most_steps(t)
    if steps > available:
        raise ValueError(
            f"num_teacher_steps must be 1 ... {available} for t {t:g}, got {num_teacher_steps}"
        )
    return teacher.schedule.times(t, 0.0, steps)


def check_pair(student: Student, teacher: Teacher) -> None:
    """Raise ValueError if the teacher makes other images, or other classes, than the student.

    Log a warning if it fits, but is not the one that the student was distilled from.
    """
    if not isinstance(teacher, Teacher):
        raise TypeError(f"teacher must be a Teacher, got {shown(teacher)}")
    ours, theirs = student.model.config, teacher.model.config
    for key in ("in_channels", "sample_size", "num_class_embeds"):
        mine, other = getattr(ours, key), getattr(theirs, key)
        if mine != other:
            raise ValueError(
                f"teacher does not fit the student: {key} must be {mine!r}, got {other!r}"
            )
    expected = student.info.teacher.get("sha256")
    if expected is not None and expected != teacher.fingerprint:
        _log.warning("the student was distilled from another teacher than %r", teacher.name)


def teacher_steps(
    student: Student,
    teacher: Teacher,
    x: Images,
    labels: Any,
    w: Float64 | None,
    times: Float64,
    sampler: str,
) -> Images:
    """Integrate the teacher's ODE from x at times[0] to times[-1], guided as when it taught.

    x: (N,C,H,W); labels, w: (N,) or None; times: falling, of the grid. Unchecked.
    """
    guidance, clip = teaching_of(student.info, teacher)
    images: Images = np.empty_like(x)
    size = teacher.model.chunk_size(x.shape[2], x.shape[3])
    for begin in range(0, len(x), size):
        rows = slice(begin, begin + size)
        chosen, scales = (None if a is None else a[rows] for a in (labels, w))

        def signal(x: Images, t: Float64, chosen: Any = chosen, scales: Any = scales) -> Images:
            return teacher.signal(x, t, chosen, guidance, clip, scales)

        images[rows] = SAMPLERS[sampler](teacher.schedule, signal, x[rows], times)
    return images


def jump(
    student: Student, schedule: Schedule, eps: Images, labels: Any, w: Float64 | None, t: float
) -> Images:
    """Return x_t = alpha_t y(eps, t) + sigma_t eps, the student's point of the trajectory at t.

    schedule: of the one who goes on from x_t. The student's own is the variance-preserving form of
    its teacher's: the same signals at the same times, but another x.
    """
    times = np.full(len(eps), t)
    return diffuse(schedule, student.signal(eps, times, labels, w), eps, times)


def renoise(schedule: Schedule, images: Images, t: float, seed: int, number: int = 0) -> Images:
    """Return x_t = alpha_t image + sigma_t eps' with fresh noise, the `number`-th of its seed.

    schedule: of the one who goes on from x_t, see `jump`.
    """
    fresh = normal(seed, Stream.SECOND_NOISE, number, 0, images.shape)
    return diffuse(schedule, images, fresh, np.full(len(images), t))


def start_noise(
    student: Student, x: Images, labels: Any, w: Float64 | None, t: float, rounds: int
) -> Images:
    """Return eps with alpha_t y(eps, t) + sigma_t eps = x, nearly: `rounds` fixed-point rounds.

    x, alpha and sigma are those of the student's own schedule. Starts from x itself, which is
    mostly noise. One call of the student a round.
    """
    times, eps = np.full(len(x), t), x
    alpha, sigma = student.schedule.alpha_sigma(times)
    for _ in range(rounds):
        y = student.signal(eps, times, labels, w)
        eps = _core.diffuse(y, x, -alpha / sigma, 1.0 / sigma)
    return eps
