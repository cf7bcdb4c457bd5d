"""More than one step: jump, fresh noise and resampling, against their formulas and bad input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from models import CONFIG, PLAIN, make_teacher, noise
from test_continuous import each as each_schedule
from test_student import INFO, RANGED, make_student

from boot import refine, toy
from boot.distiller import Distiller
from boot.noise import Stream, normal
from boot.resolve import teaching_of
from boot.signal_ode import diffuse, trajectory
from boot.student import Student

TEACHER = make_teacher()


def alpha_sigma(t):
    return tuple(float(a) for a in TEACHER.schedule.alpha_sigma(t))


def ddim(x, times, labels, scale):
    """Plain DDIM of the guided teacher, step by step."""
    guidance = TEACHER.guidance(scale)
    for t, s in zip(times[:-1], times[1:], strict=True):
        f = TEACHER.signal(x, np.full(len(x), t), labels, guidance)
        alpha, sigma = alpha_sigma(t)
        eps = (x - alpha * f) / sigma
        alpha, sigma = alpha_sigma(s)
        x = (alpha * f + sigma * eps).astype(np.float32)
    return np.clip(x, -1, 1)


def test_the_jump_is_a_point_of_the_trajectory_and_the_teacher_goes_on():
    student = make_student()
    eps, labels = student.inputs(3)
    alpha, sigma = alpha_sigma(0.4)
    x = alpha * student(eps, 0.4, labels) + sigma * eps
    np.testing.assert_allclose(
        refine.jump(student, student.schedule, eps, labels, None, 0.4), x, atol=1e-5
    )
    found = student.refine(TEACHER, 3, num_teacher_steps=2, t=0.4)
    np.testing.assert_allclose(found, ddim(x, [0.4, 0.2, 0.0], labels, 1.5), atol=1e-3)


def test_fresh_noise_starts_from_the_finished_image():
    student = make_student()
    eps, labels = student.inputs(3, seed=5)
    alpha, sigma = alpha_sigma(0.5)
    fresh = normal(5, Stream.SECOND_NOISE, 0, 0, eps.shape)
    x = alpha * student.sample(3, seed=5) + sigma * fresh
    found = student.refine(TEACHER, 3, seed=5, num_teacher_steps=1, t=0.5, fresh_noise=True)
    np.testing.assert_allclose(found, ddim(x, [0.5, 0.0], labels, 1.5), atol=1e-3)
    assert np.abs(fresh - eps).max() > 1


def test_a_student_that_is_right_is_not_changed_by_the_teacher():
    """At t_max a fresh student of a v teacher is the teacher: its jump starts the teacher's path.

    There x = alpha f + sigma eps instead of eps, which the exact step forgets but for alpha.
    """
    teacher = make_teacher(prediction_type="v_prediction", clip_sample=False)
    student = Student.from_teacher(teacher, INFO)
    eps, labels = student.inputs(4)
    x = refine.jump(student, student.schedule, eps, labels, None, 0.8)
    signal = teacher.signal(eps, np.full(4, 0.8), labels)
    np.testing.assert_allclose(
        x, diffuse(teacher.schedule, signal, eps, np.full(4, 0.8)), atol=1e-5
    )


MIXTURE = toy.GaussianMixture.random((1, 4, 4), components=2, std=0.15)


@each_schedule
def test_on_every_schedule_the_teacher_goes_on_in_its_own_units(schedule, monkeypatch):
    """A student that knows the teacher's ODE exactly is led to where the ODE leads."""
    teacher = MIXTURE.teacher(schedule, "sample", fingerprint="mixture")
    student = Distiller(teacher, student=toy.small_network(teacher)).student
    t_max = student.info.t_max

    def ode(eps, t):
        times = schedule.times(t_max, t, 100)
        return trajectory(schedule, teacher.signal, eps, times, "heun")[-1]

    def exact(eps, target, labels, w, clip=0.0):
        y = ode(eps, float(schedule.time(target[0])))
        return np.clip(y, -clip, clip) if clip else y

    monkeypatch.setattr(student, "_signal", exact)
    eps, _ = student.inputs(16)
    image = np.clip(ode(eps, student.info.t_min), -1, 1)
    options = {"num_teacher_steps": 40, "t": 0.5, "sampler": "heun"}
    found = student.refine(teacher, noise=eps, **options)
    np.testing.assert_allclose(found, image, atol=0.02)

    x = diffuse(schedule, image, normal(0, Stream.SECOND_NOISE, 0, 0, eps.shape), np.full(16, 0.5))
    times = schedule.times(0.5, 0.0, 40)
    fresh = refine.teacher_steps(student, teacher, x, None, None, times, "heun")
    found = student.refine(teacher, noise=eps, fresh_noise=True, **options)
    np.testing.assert_allclose(found, np.clip(fresh, -1, 1), atol=1e-4)
    data = MIXTURE.sample(256)[0]
    assert found.std() == pytest.approx(data.std(), rel=0.3)  # images, whatever the units of x


def test_another_teacher_is_warned_of(caplog):
    teacher = make_teacher()
    info = dataclasses.replace(INFO, teacher={"sha256": teacher.fingerprint})
    student = Student.from_teacher(teacher, info)
    student.refine(make_teacher(), 2, num_teacher_steps=1)
    assert "another teacher" not in caplog.text
    student.refine(make_teacher(seed=1), 2, num_teacher_steps=1)
    assert "the student was distilled from another teacher than 'tiny'" in caplog.text


def test_scales_reach_student_and_teacher():
    student = make_student(info=RANGED)
    eps, labels = student.inputs(2)
    w = np.array([1.0, 4.0])
    both = student.refine(TEACHER, 2, num_teacher_steps=2, t=0.5, guidance_scale=w)
    for i in range(2):
        x = refine.jump(student, student.schedule, eps, labels, w, 0.5)[i : i + 1]
        alone = ddim(x, [0.5, 0.25, 0.0], labels[i : i + 1], w[i])
        np.testing.assert_allclose(both[i : i + 1], alone, atol=2e-3)
    assert teaching_of(student.info, TEACHER)[0].varies


def test_chunks_do_not_change_the_images(monkeypatch):
    student = make_student()
    whole = student.refine(TEACHER, 5, num_teacher_steps=2, sampler="heun")
    monkeypatch.setattr(type(TEACHER.model), "chunk_size", lambda *_: 2)
    found = student.refine(TEACHER, 5, num_teacher_steps=2, sampler="heun")
    np.testing.assert_allclose(found, whole, atol=1e-3)


def test_the_start_noise_is_found_near_the_noise_end():
    student = make_student()
    eps, labels = student.inputs(4)
    x = refine.renoise(student.schedule, student.sample(4), 0.7, seed=3)

    def residual(rounds):
        found = refine.start_noise(student, x, labels, None, 0.7, rounds)
        return np.abs(refine.jump(student, student.schedule, found, labels, None, 0.7) - x).max()

    assert residual(6) < 0.1 * residual(1)
    assert residual(6) < 1e-2
    x = refine.jump(student, student.schedule, eps, labels, None, 0.7)
    found = refine.start_noise(student, x, labels, None, 0.7, 8)
    np.testing.assert_allclose(found, eps, atol=1e-2)  # the noise that it was made from


def test_resampling_is_noise_search_and_one_more_call():
    student = make_student()
    labels = student.inputs(3)[1]
    np.testing.assert_array_equal(student.resample(3, t=0.7, num_rounds=0), student.sample(3))
    x = refine.renoise(student.schedule, student.sample(3), 0.7, seed=0)
    eps = refine.start_noise(student, x, labels, None, 0.7, 4)
    expected = student.sample(noise=eps, class_labels=labels)
    np.testing.assert_allclose(student.resample(3, t=0.7), expected, atol=1e-5)
    np.testing.assert_allclose(student.resample(2, t=0.7), expected[:2], atol=1e-4)
    twice = student.resample(3, t=0.7, num_rounds=2)
    assert np.abs(twice - expected).max() > 1e-3


@pytest.mark.parametrize(
    "options, problem, message",
    [
        ({"num_teacher_steps": 0}, ValueError, "num_teacher_steps"),
        ({"num_teacher_steps": 600}, ValueError, r"num_teacher_steps must be 1 \.\.\. 500 for t"),
        ({"num_teacher_steps": 2.0}, TypeError, "num_teacher_steps must be an int"),
        ({"t": 0.9}, ValueError, "t must be finite and.*0.8"),
        ({"t": 0.0}, ValueError, "t must be finite"),
        ({"sampler": "euler"}, ValueError, "sampler must be"),
        ({"fresh_noise": 1}, TypeError, "fresh_noise must be True or False"),
        ({"teacher": make_teacher(PLAIN)}, ValueError, "num_class_embeds must be 3, got None"),
        ({"teacher": "folder"}, TypeError, "teacher must be a Teacher, got 'folder'"),
    ],
)
def test_bad_input_is_named(options, problem, message):
    with pytest.raises(problem, match=message):
        make_student().refine(
            **{"teacher": TEACHER, "n": 2, "num_teacher_steps": 2, "t": 0.5, **options}
        )
    assert CONFIG.num_class_embeds == 3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"t": 0.9}, "t must be"),
        ({"num_rounds": -1}, "num_rounds"),
        ({"num_corrections": 0}, "num"),
    ],
)
def test_bad_input_of_resampling_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_student().resample(2, **{"t": 0.7, **options})
    assert noise(1).shape == (1, 1, 8, 8)
