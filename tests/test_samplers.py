"""The teacher's samplers and guidance: exact solutions, diffusers' formulas, equal noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from models import CLASSES, PLAIN, make_teacher, noise
from test_schedule import COSINE, LINEAR, ZERO_SNR, gaussian_signal

from boot import choices, toy
from boot.continuous import CosineSchedule, FlowSchedule, TrigFlowSchedule
from boot.guidance import Clip, Guidance, dynamic_threshold, guided_output
from boot.samplers import SAMPLERS, sample_ddim, sample_dpm, sample_heun
from boot.signal_ode import diffuse, trajectory

MEAN, STD = 0.3, 0.5


def exact_solution(schedule, x, t, s):
    """The probability-flow ODE of N(MEAN, STD^2) images, from t to s: each marginal is Gaussian."""
    alpha_t, sigma_t = schedule.alpha_sigma(t)
    alpha_s, sigma_s = schedule.alpha_sigma(s)
    std_t = np.sqrt(alpha_t**2 * STD**2 + sigma_t**2)
    std_s = np.sqrt(alpha_s**2 * STD**2 + sigma_s**2)
    return alpha_s * MEAN + std_s / std_t * (x - alpha_t * MEAN)


def error(sampler, steps, end=0.0, schedule=COSINE, start=0.98):
    """RMS distance from the exact solution."""
    x = noise(16)
    times = schedule.times(start, end, steps)
    found = sampler(schedule, gaussian_signal(schedule, MEAN, STD), x, times)
    return np.sqrt(((found - exact_solution(schedule, x, start, end)) ** 2).mean())


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_ddim_converges_to_the_exact_solution_at_first_order(end):
    errors = [error(sample_ddim, steps, end) for steps in (20, 40, 80)]
    assert errors[-1] < 0.01
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 1.9 < coarse / fine < 2.1


def test_heun_converges_at_second_order():
    errors = [error(sample_heun, steps, 0.1) for steps in (20, 40, 80)]
    assert errors[-1] < 2e-4
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 3.6 < coarse / fine < 4.2
    # Down to the image its last step is DDIM's, yet half the steps do better.
    assert error(sample_heun, 40) < error(sample_ddim, 80) / 2


def test_dpm_solver_converges_at_second_order():
    errors = [error(sample_dpm, steps, 0.1) for steps in (25, 50, 100)]
    assert errors[-1] < 5e-4
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 3.4 < coarse / fine < 4.6
    assert error(sample_dpm, 40) < error(sample_ddim, 40) / 2


def test_ddim_in_x_and_the_signal_ode_are_the_same_steps():
    schedule, x = LINEAR, noise()
    signal = gaussian_signal(schedule)
    times = schedule.times(0.8, 0.1, 7)
    # The same start: y(t_max) = f means x = alpha f + sigma eps there.
    y = trajectory(schedule, signal, x, times)
    start = diffuse(schedule, y[0], x, np.full(4, 0.8))
    found = sample_ddim(schedule, signal, start, times)
    expected = diffuse(schedule, y[-1], x, np.full(4, 0.1))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("sampler", [sample_ddim, sample_heun, sample_dpm])
def test_zero_terminal_snr_starts_from_pure_noise(sampler):
    x = noise(16)
    times = ZERO_SNR.times(1.0, 0.0, 250)
    found = sampler(ZERO_SNR, gaussian_signal(ZERO_SNR, MEAN, STD), x, times)
    expected = exact_solution(ZERO_SNR, x, 1.0, 0.0)
    assert np.sqrt(((found - expected) ** 2).mean()) < 0.01


# ------------------------------------------------------------------------------------- guidance


def test_guided_output_is_the_formula_and_one_call_of_twice_the_batch(monkeypatch):
    teacher = make_teacher()
    x, labels, index = noise(3), np.array([0, 1, 0]), np.array([10.0, 500.5, 999.0])
    cond = teacher.model(x, index, labels)
    null = teacher.model(x, index, np.full(3, 2))
    sizes = []
    forward = teacher.model.forward
    monkeypatch.setattr(
        teacher.model, "forward", lambda x, *rest: (sizes.append(len(x)), forward(x, *rest))[1]
    )
    found = guided_output(teacher.model, x, index, labels, Guidance(2.5, 2))
    np.testing.assert_allclose(found, null + 2.5 * (cond - null), atol=2e-5)
    off = guided_output(teacher.model, x, index, labels, Guidance(1.0, 2))
    np.testing.assert_allclose(off, cond, atol=1e-5)
    assert sizes == [6, 3]


def test_a_scale_of_zero_is_the_unconditional_model():
    teacher = make_teacher()
    x, index = noise(2), np.array([100.0, 200.0])
    found = guided_output(teacher.model, x, index, np.array([0, 1]), Guidance(0.0, 2))
    np.testing.assert_allclose(found, teacher.model(x, index, 2), atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_signal_is_the_denoised_image_of_each_prediction_type(prediction_type):
    teacher = make_teacher(PLAIN, prediction_type=prediction_type, clip_sample=False)
    x, t = noise(3), np.array([0.1, 0.5, 0.8])
    alpha, sigma = (a.reshape(-1, 1, 1, 1) for a in teacher.schedule.alpha_sigma(t))
    output = teacher.model(x, teacher.schedule.index(t)).astype(np.float64)
    expected = {
        "epsilon": (x - sigma * output) / alpha,
        "v_prediction": alpha * x - sigma * output,
        "sample": output,
    }[prediction_type]
    np.testing.assert_allclose(teacher.signal(x, t), expected, rtol=1e-5, atol=1e-5)


def test_the_clip_comes_after_the_guidance():
    teacher = make_teacher(clip_sample_range=0.7)
    x, t, labels = noise(4), np.full(4, 0.3), np.array([0, 1, 0, 1])
    free = teacher.signal(x, t, labels, Guidance(3.0, 2), Clip())
    assert np.abs(free).max() > 0.7
    found = teacher.signal(x, t, labels, Guidance(3.0, 2))
    np.testing.assert_array_equal(found, np.clip(free, -0.7, 0.7).astype(np.float32))


def test_dynamic_threshold_is_the_formula_of_diffusers():
    f = 3 * noise(5)
    f[0] /= 100
    for ratio, highest in ((0.9, 1.0), (0.995, 1.5), (0.5, 10.0)):
        found = dynamic_threshold(f, ratio, highest)
        for image, result in zip(f, found, strict=True):
            s = np.clip(np.quantile(np.abs(image), ratio), 1, highest)
            np.testing.assert_allclose(result, np.clip(image, -s, s) / s, atol=1e-6)
    teacher = make_teacher(PLAIN, thresholding=True, dynamic_thresholding_ratio=0.9)
    x, t = noise(3), np.full(3, 0.5)
    free = teacher.signal(x, t, clip=Clip())
    np.testing.assert_allclose(teacher.signal(x, t), dynamic_threshold(free, 0.9, 1.0), atol=1e-6)


def test_nan_is_not_clipped_away():
    teacher = make_teacher(PLAIN)
    teacher.model.weights[:] = np.nan
    teacher.model.weights_changed()
    with pytest.raises(FloatingPointError, match="teacher's output has 128 NaN or Inf among 128"):
        teacher.signal(noise(2), np.full(2, 0.5))


# ------------------------------------------------------------------------------- teacher.sample


def ddim_by_hand(teacher, x, labels, scale, steps, t_start):
    """diffusers' DDIMScheduler, trailing, set_alpha_to_one, clip_sample: in float64."""
    table = np.concatenate([[1.0], teacher.schedule.alphas_cumprod])
    ends = np.rint(np.linspace(round(1000 * t_start), 0, steps + 1)).astype(int)
    x = x.astype(np.float64)
    for at, to in zip(ends[:-1], ends[1:], strict=True):
        cond = teacher.model(x, at - 1, labels).astype(np.float64)
        null = teacher.model(x, at - 1, CLASSES - 1).astype(np.float64)
        eps = null + scale * (cond - null)
        image = np.clip((x - np.sqrt(1 - table[at]) * eps) / np.sqrt(table[at]), -1, 1)
        eps = (x - np.sqrt(table[at]) * image) / np.sqrt(1 - table[at])
        x = np.sqrt(table[to]) * image + np.sqrt(1 - table[to]) * eps
    return np.clip(x, -1, 1)


@pytest.mark.parametrize("steps, t_start", [(1, 0.8), (4, 0.8), (7, 1.0)])
def test_teacher_sample_is_guided_ddim(steps, t_start):
    teacher, x, labels = make_teacher(), noise(4), np.array([0, 1, 1, 0])
    found = teacher.sample(
        noise=x,
        class_labels=labels,
        guidance_scale=1.5,
        num_inference_steps=steps,
        t_start=t_start,
    )
    expected = ddim_by_hand(teacher, x, labels, 1.5, steps, t_start)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_image_i_of_a_seed_is_the_same_in_any_batch():
    teacher = make_teacher()
    # From t = 0.5: at t = 1 this epsilon teacher divides by alpha = 0.006, which makes the last
    # bits of another batch size's kernels visible.
    teacher.model.chunk_size = lambda height, width: 3
    whole = teacher.sample(8, seed=3, num_inference_steps=2, t_start=0.5)
    few = teacher.sample(2, seed=3, num_inference_steps=2, t_start=0.5)
    assert whole.shape == (8, 1, 8, 8)
    assert whole.dtype == np.float32
    assert np.abs(whole).max() <= 1
    np.testing.assert_allclose(whole[:2], few, atol=1e-4)
    other = teacher.sample(2, seed=4, num_inference_steps=2, t_start=0.5)
    assert np.abs(other - few).max() > 0.1


def test_default_labels_go_round_and_leave_the_null_row_out_when_guided():
    teacher = make_teacher()
    x, labels = teacher.inputs(7)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert teacher.inputs(5, guidance_scale=1.5)[1].tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_array_equal(x, teacher.inputs(7, class_labels=1)[0])
    assert make_teacher(PLAIN).inputs(3)[1] is None


def test_null_label_may_be_another_row():
    teacher = make_teacher()
    assert teacher.guidance(1.5) == Guidance(1.5, 2)
    assert teacher.guidance(1.5, 0).null_label == 0
    one = teacher.sample(
        2, class_labels=1, guidance_scale=0.0, null_class_label=0, num_inference_steps=1
    )
    other = teacher.sample(2, class_labels=0, num_inference_steps=1)
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_model_without_sample_size_takes_noise_of_any_fitting_size():
    teacher = make_teacher(dataclasses.replace(PLAIN, sample_size=None))
    found = teacher.sample(noise=noise(2, size=4), num_inference_steps=1)
    assert found.shape == (2, 1, 4, 4)
    with pytest.raises(ValueError, match="noise must be given"):
        teacher.sample(2)


def test_every_sampler_is_a_choice():
    assert tuple(SAMPLERS) == choices.SAMPLERS


@pytest.mark.parametrize("schedule", [CosineSchedule(), FlowSchedule(), TrigFlowSchedule()])
def test_an_epsilon_teacher_must_start_where_there_is_signal(schedule):
    teacher = toy.GaussianMixture.random((1, 4, 4)).teacher(schedule, "epsilon")
    with pytest.raises(ValueError, match="t_start must be smaller than 1: an epsilon teacher"):
        teacher.sample(2, num_inference_steps=2)
    assert teacher.sample(2, num_inference_steps=2, t_start=0.9).shape == (2, 1, 4, 4)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm"])
def test_more_steps_approach_one_limit(sampler):
    teacher = make_teacher(PLAIN, prediction_type="v_prediction", clip_sample=False)
    limit = teacher.sample(4, num_inference_steps=200, sampler="heun")
    coarse, fine = (
        np.abs(teacher.sample(4, num_inference_steps=n, sampler=sampler) - limit).mean()
        for n in (5, 25)
    )
    assert fine < coarse / 2
