"""Guidance, its interval, rescale and negative class, and thresholding, against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from models import CONFIG, PLAIN, make, make_teacher, noise

from boot.distiller import Distiller, Draw
from boot.errors import ConfigError
from boot.evaluation import teacher_signals
from boot.guidance import Clip, Guidance, dynamic_threshold, guided_output, rescaled
from boot.resolve import teaching_of

TIMES = np.array([0.1, 0.3, 0.5, 0.7])
LABELS = np.array([0, 1, 1, 0])


def parts(teacher, x, t, n):
    """Outputs with class and under condition n, in float64."""
    index = 1000 * t - 1
    out = [teacher.model(x, index, labels).astype(np.float64) for labels in (LABELS, n)]
    return out[0], out[1]


def signal(teacher, output, x, t):
    """The signal of an epsilon teacher, not clipped."""
    alpha, sigma = (a.reshape(-1, 1, 1, 1) for a in teacher.schedule.alpha_sigma(t))
    return (x - sigma * output) / alpha


FREE = Clip()


def test_each_sample_may_have_a_scale_of_its_own():
    teacher, x = make_teacher(), noise(4)
    w = np.array([0.0, 1.0, 2.5, 7.0])
    c, n = parts(teacher, x, TIMES, 2)
    expected = signal(teacher, n + w.reshape(-1, 1, 1, 1) * (c - n), x, TIMES)
    guidance = Guidance(1.5, 2, varies=True)
    np.testing.assert_allclose(
        teacher.signal(x, TIMES, LABELS, guidance, FREE, w), expected, atol=5e-4
    )


@pytest.mark.parametrize("low, high", [(0.2, 0.6), (0.3, 0.5), (0.0, 0.2), (0.8, 1.0)])
def test_guidance_acts_inside_its_interval_only(low, high):
    teacher, x = make_teacher(), noise(4)
    c, n = parts(teacher, x, TIMES, 2)
    inside = ((low <= TIMES) & (high >= TIMES)).reshape(-1, 1, 1, 1)
    expected = signal(teacher, np.where(inside, n + 3 * (c - n), c), x, TIMES)
    guidance = teacher.guidance(3.0, guidance_t_min=low, guidance_t_max=high)
    found = teacher.signal(x, TIMES, LABELS, guidance, FREE)
    np.testing.assert_allclose(found, expected, atol=5e-4)


def test_outside_the_interval_one_network_call_does(monkeypatch):
    teacher = make_teacher()
    sizes = []
    forward = teacher.model.forward
    monkeypatch.setattr(
        teacher.model, "forward", lambda x, *rest: sizes.append(len(x)) or forward(x, *rest)
    )
    guidance = teacher.guidance(3.0, guidance_t_min=0.4)
    for t in (0.2, 0.6):
        teacher.signal(noise(4), np.full(4, t), LABELS, guidance)
    assert sizes == [4, 8]


def test_a_negative_class_takes_the_place_of_no_class():
    teacher, x = make_teacher(), noise(4)
    c, n = parts(teacher, x, TIMES, 1)
    guidance = teacher.guidance(2.0, negative_class_label=1)
    found = teacher.signal(x, TIMES, LABELS, guidance, FREE)
    np.testing.assert_allclose(found, signal(teacher, n + 2 * (c - n), x, TIMES), atol=5e-4)
    assert guidance.null_label == 2  # still the label that is not drawn


@pytest.mark.parametrize("phi", [0.3, 1.0])
def test_rescale_gives_the_deviation_of_the_conditional_output_back(phi):
    """The formula of diffusers' rescale_noise_cfg."""
    teacher, x = make_teacher(), noise(4)
    c, n = parts(teacher, x, TIMES, 2)
    o = n + 5 * (c - n)
    factor = c.std(axis=(1, 2, 3), keepdims=True) / o.std(axis=(1, 2, 3), keepdims=True)
    expected = phi * (o * factor) + (1 - phi) * o
    guidance = teacher.guidance(5.0, guidance_rescale=phi)
    found = guided_output(teacher.model, x, 1000 * TIMES - 1, LABELS, guidance)
    np.testing.assert_allclose(found, expected, atol=5e-4)
    assert np.abs(expected - o).max() > 0.05


def test_rescale_of_a_constant_image_leaves_it():
    flat = np.full((2, 1, 4, 4), 3.0, np.float32)
    np.testing.assert_array_equal(rescaled(flat, noise(2, size=4), 0.7), flat)


@pytest.mark.parametrize("ratio, highest", [(0.9, 1.5), (0.5, 10.0), (0.995, 1.0)])
def test_thresholding_is_a_setting(ratio, highest):
    distiller = make(
        thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=highest, t_max=0.9
    )
    clip, teacher, x = distiller._clip, distiller.teacher, 2 * noise(4)
    assert clip == Clip(1.0, True, ratio, highest)
    free = teacher.signal(x, TIMES, LABELS, clip=FREE).astype(np.float64)
    expected = []
    for image in free:
        s = min(max(np.quantile(np.abs(image), ratio), 1.0), highest)
        expected.append(np.clip(image, -s, s) / s)
    found = teacher.signal(x, TIMES, LABELS, clip=clip)
    np.testing.assert_allclose(found, expected, atol=5e-4)
    assert np.abs(dynamic_threshold(x, ratio, highest)).max() <= 1


def test_thresholding_follows_the_teacher_or_the_config():
    dynamic = make_teacher(clip_sample=False, thresholding=True, dynamic_thresholding_ratio=0.8)
    assert make(teacher=dynamic)._clip == Clip(0.0, True, 0.8, 1.0)
    assert make(teacher=dynamic, sample_max_value=2.0)._clip.highest == 2.0
    assert not make(teacher=dynamic, thresholding=False)._clip.thresholding
    assert not make(teacher=dynamic, clip_sample=False)._clip.thresholding
    assert make(clip_sample=False, thresholding=True)._clip.thresholding


OPTIONS = {
    "guidance_scale": 3.0,
    "negative_class_label": 1,
    "guidance_rescale": 0.5,
    "guidance_t_min": 0.1,
    "guidance_t_max": 0.6,
}


def test_the_run_and_its_evaluation_use_the_guidance_of_the_settings():
    distiller = make(**OPTIONS, thresholding=True, sample_max_value=3.0)
    expected = Guidance(3.0, 2, False, 1, 0.5, 0.1, 0.6)
    assert distiller._guidance == expected
    info = distiller.student.info
    assert teaching_of(info, distiller.teacher) == (expected, distiller._clip)
    student, teacher = distiller.student, distiller.teacher
    eps, labels = student.inputs(3)
    times, found = teacher_signals(student, teacher, eps, labels, delta=0.4)
    y = distiller._f(eps, np.full(3, times[0]), Draw(eps, labels, np.full(3, times[0]), None))
    np.testing.assert_allclose(found[0], y, atol=1e-6)
    chosen = student.with_guidance(3.0)
    assert teaching_of(chosen.info, teacher) == (expected, distiller._clip)


def test_the_teacher_samples_with_all_of_it():
    teacher = make_teacher()
    eps, labels = teacher.inputs(4, guidance_scale=3.0)
    images = teacher.sample(noise=eps, class_labels=labels, num_inference_steps=3, **OPTIONS)
    plain = teacher.sample(noise=eps, num_inference_steps=3, guidance_scale=3.0)
    assert np.abs(images - plain).max() > 1e-3
    with pytest.raises(TypeError, match="no_such"):
        teacher.sample(2, no_such=1)


@pytest.mark.parametrize(
    "settings, problem, message",
    [
        ({"guidance_rescale": 1.1}, ConfigError, "guidance_rescale must be finite and.*got 1.1"),
        ({"guidance_t_min": 0.7, "guidance_t_max": 0.2}, ConfigError, "guidance_t_min must be <="),
        ({"guidance_t_min": -0.1}, ConfigError, "guidance_t_min must be finite"),
        ({"negative_class_label": 3}, ValueError, r"negative_class_label must be.*2.*got 3"),
        ({"negative_class_label": 1.5}, TypeError, "negative_class_label must be an int"),
        ({"sample_max_value": 0.5}, ConfigError, "sample_max_value must be finite and >= 1"),
        ({"dynamic_thresholding_ratio": 2}, ConfigError, "dynamic_thresholding_ratio must be"),
        ({"thresholding": 1}, TypeError, "thresholding must be True or False"),
    ],
)
def test_settings_out_of_range_are_named(settings, problem, message):
    with pytest.raises(problem, match=message):
        make(CONFIG, **settings)


GUIDING = [
    ("guidance_scale", 2.0, "1"),
    ("null_class_label", 0, "None"),
    ("negative_class_label", 0, "None"),
    ("guidance_rescale", 0.7, "0"),
    ("guidance_t_min", 0.2, "0"),
    ("guidance_t_max", 0.9, "1"),
]


@pytest.mark.parametrize("name, value, wanted", GUIDING)
def test_a_teacher_without_classes_takes_no_option_of_guidance(name, value, wanted):
    message = f"{name} must be {wanted} for 'tiny', which has no class table.*got {value}"
    with pytest.raises(ValueError, match=message):
        Distiller(make_teacher(PLAIN), **{name: value})
    with pytest.raises(ValueError, match=message):
        make_teacher(PLAIN).sample(2, **{name: value})


@pytest.mark.parametrize("name, value", [(name, value) for name, value, _ in GUIDING[2:]])
def test_options_of_a_guidance_that_is_off_are_warned_of(name, value, caplog):
    make(guidance_scale=1.0, **{name: value})
    assert caplog.text.count(f"guidance_scale is 1, which leaves without effect: {name}") == 1
    caplog.clear()
    make_teacher().sample(2, num_inference_steps=1, **{name: value})
    assert f"leaves without effect: {name}" in caplog.text
    caplog.clear()
    make(guidance_scale=2.0, **{name: value})
    make(guidance_scale=1.0, guidance_scale_max=2.0, **{name: value})
    make(guidance_scale=1.0)
    assert "without effect" not in caplog.text


def test_an_interval_outside_the_times_of_the_run_is_warned_of(caplog):
    make(guidance_scale=2.0, guidance_t_min=0.9)  # t_max is 0.8
    assert "nothing will be guided: guidance_t_min ... guidance_t_max is 0.9 ... 1" in caplog.text
    assert "times that are trained are 0.001 ... 0.8" in caplog.text
    caplog.clear()
    make(guidance_scale=2.0, guidance_t_min=0.7)
    assert "nothing will be guided" not in caplog.text
