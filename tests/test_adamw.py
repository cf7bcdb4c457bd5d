"""AdamW with clipping and weight averaging against its definition in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from boot import _core

Array = NDArray[Any]

SETTINGS: dict[str, float] = {
    "learning_rate": 1e-2,
    "beta1": 0.9,
    "beta2": 0.99,
    "epsilon": 1e-8,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "ema_decay": 0.995,
}
VARIANTS = {
    "all": {},
    "no decay": {"weight_decay": 0.0},
    "no clipping": {"max_grad_norm": 0.0},
    "loose clipping": {"max_grad_norm": 1e6},
    "diffusers": {"beta2": 0.999, "weight_decay": 1e-6, "learning_rate": 1e-4},
    "large epsilon": {"epsilon": 0.1},
    "frozen average": {"ema_decay": 1.0},
    "average is the weights": {"ema_decay": 0.0},
}


def fresh(count: int, seed: int = 0) -> dict[str, Array]:
    """Weights, moments of zero, and an average that starts as the weights."""
    weights = np.random.RandomState(seed).standard_normal(count).astype(np.float32)
    zeros = np.zeros(count, np.float32)
    return {"weights": weights, "m": zeros.copy(), "v": zeros.copy(), "ema": weights.copy()}


def gradient(count: int, step: int) -> Array:
    return np.random.RandomState(100 + step).standard_normal(count).astype(np.float32)


def update(state: dict[str, Array], grads: Array, step: int, s: dict[str, float]) -> float:
    """One step of the definition, in the precision of `state`."""
    g = grads.astype(np.float64)
    norm = float(np.sqrt(np.sum(g**2)))
    if s["max_grad_norm"]:
        g = g * min(1.0, s["max_grad_norm"] / (norm + 1e-6))
    state["m"] = s["beta1"] * state["m"] + (1 - s["beta1"]) * g
    state["v"] = s["beta2"] * state["v"] + (1 - s["beta2"]) * g**2
    mean = state["m"] / (1 - s["beta1"] ** step)
    square = state["v"] / (1 - s["beta2"] ** step)
    decayed = state["weights"] * (1 - s["learning_rate"] * s["weight_decay"])
    state["weights"] = decayed - s["learning_rate"] * mean / (np.sqrt(square) + s["epsilon"])
    state["ema"] = s["ema_decay"] * state["ema"] + (1 - s["ema_decay"]) * state["weights"]
    return norm


def run(state: dict[str, Array], grads: Array, step: int, s: dict[str, float]) -> float:
    return _core.adamw_step(
        state["weights"], grads, state["m"], state["v"], state["ema"], step=step, **s
    )


@pytest.mark.parametrize("count", [1, 7, 16, 1000, 100_003])
@pytest.mark.parametrize("variant", VARIANTS)
def test_five_steps_match_the_definition(variant, count):
    settings = {**SETTINGS, **VARIANTS[variant]}
    state = fresh(count)
    exact = {name: a.astype(np.float64) for name, a in state.items()}
    for step in range(1, 6):
        grads = gradient(count, step)
        found = run(state, grads, step, settings)
        assert found == pytest.approx(update(exact, grads, step, settings), rel=1e-5)
        np.testing.assert_array_equal(grads, gradient(count, step))
    for name, expected in exact.items():
        # v: the rounding of beta2 to float32 is 1.3e-5 of 1 - beta2 = 0.001.
        scale = max(np.abs(expected).max(), 0.0 if name == "v" else 0.1)
        tolerance = 2e-5 if name == "v" else 2e-6
        assert np.abs(state[name] - expected).max() <= tolerance * scale, name


def test_average_is_optional():
    state, other = fresh(50), fresh(50)
    run(state, gradient(50, 1), 1, SETTINGS)
    _core.adamw_step(
        other["weights"], gradient(50, 1), other["m"], other["v"], None, step=1, **SETTINGS
    )
    np.testing.assert_array_equal(other["weights"], state["weights"])


def test_gradient_norm_of_a_long_buffer_keeps_its_digits():
    """One float32 sum over a million equal squares would be off in the third digit."""
    grads = np.full(1_000_003, 0.1, np.float32)
    expected = float(np.float32(0.1)) * np.sqrt(1_000_003)
    assert run(fresh(len(grads)), grads, 1, SETTINGS) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 12_345, 99_999])
def test_non_finite_gradient_raises_and_touches_nothing(bad, place):
    state, grads = fresh(100_000), gradient(100_000, 1)
    run(state, grads, 1, SETTINGS)
    before = {name: a.copy() for name, a in state.items()}
    grads[place] = bad
    with pytest.raises(FloatingPointError):
        run(state, grads, 2, SETTINGS)
    for name, a in state.items():
        np.testing.assert_array_equal(a, before[name], err_msg=name)


@pytest.fixture
def threads():
    """Give back the thread count after a test that changes it."""
    count = _core.get_num_threads()
    yield
    _core.set_num_threads(count)


def test_same_bits_for_any_number_of_threads(threads):
    results = []
    for count in (1, 2, 4):
        _core.set_num_threads(count)
        state = fresh(300_001)
        norms = [run(state, gradient(300_001, step), step, SETTINGS) for step in (1, 2)]
        results.append((norms, state))
    for norms, state in results[1:]:
        assert norms == results[0][0]
        for name, a in state.items():
            np.testing.assert_array_equal(a, results[0][1][name], err_msg=name)


# ------------------------------------------------------------------------- moments in bfloat16


def widened(bits: Array) -> Array:
    """The numbers that are meant by the bits of bfloat16, in float64."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def halves(count: int, seed: int = 0) -> dict[str, Array]:
    """A state in the middle of a run, its moments in bfloat16 and spread over many powers of 2."""
    rng = np.random.RandomState(seed)
    state = fresh(count, seed)
    m = rng.standard_normal(count) * 10.0 ** rng.uniform(-6, 0, count)
    v = 10.0 ** rng.uniform(-12, 0, count)
    for name, values in (("m", m), ("v", v)):
        state[name] = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return state


def ulps(found: Array, exact: Array) -> Array:
    """Signed errors, in the distance of bfloat16's numbers at `exact`."""
    return (found - exact) / 2.0 ** (np.floor(np.log2(np.abs(exact))) - 7)


def test_moments_in_bfloat16_are_rounded_by_chance_to_a_neighbour_and_in_the_mean_not_at_all():
    count = 200_003
    state, settings = halves(count), {**SETTINGS, "max_grad_norm": 0.0}
    exact = {name: a.astype(np.float64) for name, a in state.items()}
    exact |= {name: widened(state[name]) for name in "mv"}
    grads = gradient(count, 3)
    assert run(state, grads, 3, settings) == pytest.approx(update(exact, grads, 3, settings))
    errors = {name: ulps(widened(state[name]), exact[name]) for name in "mv"}
    for name, error in errors.items():
        assert np.abs(error).max() < 1.001, name
        assert 0.3 < error.std() < 0.5, name  # to nearest it would be 0.29, and cut off, biased
        assert abs(error.mean()) < 5 * error.std() / np.sqrt(count), name
        for lag in (1, 2, 16):
            assert abs(np.mean(error[lag:] * error[:-lag])) < 5 * error.var() / np.sqrt(count), name
    # Rounding is of magnitudes: with the same chance for both, sizes would go up together.
    product = np.mean(errors["m"] * np.sign(exact["m"]) * errors["v"])
    assert abs(product) < 5 * errors["m"].std() * errors["v"].std() / np.sqrt(count)
    for name in ("weights", "ema"):  # they take the moments as they are before rounding
        np.testing.assert_allclose(state[name], exact[name], atol=3e-6 * np.abs(exact[name]).max())


def test_the_rounding_is_a_function_of_step_and_index_alone(threads):
    settings, whole = {**SETTINGS, "max_grad_norm": 0.0}, halves(100_003)
    run(whole, gradient(100_003, 1), 1, settings)
    for count, size in ((1, 100_003), (2, 100_003), (4, 50_001), (1, 16_385), (2, 7), (1, 1)):
        _core.set_num_threads(count)
        part = {name: a[:size].copy() for name, a in halves(100_003).items()}
        run(part, gradient(100_003, 1)[:size].copy(), 1, settings)
        for name, a in part.items():
            np.testing.assert_array_equal(a, whole[name][:size], err_msg=name)
    other = halves(100_003)
    run(other, gradient(100_003, 1), 2, settings)
    for name in "mv":  # that many agree by chance; another block has other bits too
        assert 0.2 < np.mean(other[name] != whole[name]) < 0.7
    even, a, b = np.full(2 * 16_384, 0.7, np.float32), *np.zeros((2, 2 * 16_384), np.uint16)
    _core.adamw_step(even.copy(), even, a, b, None, step=1, **settings)
    for moments in (a, b):
        assert 0.2 < np.mean(moments[:16_384] != moments[16_384:]) < 0.6


def test_the_second_moment_does_not_freeze():
    """Of a constant gradient it goes to its square, in steps far below half a bfloat16 ulp."""
    count, settings = 4096, {**SETTINGS, **VARIANTS["diffusers"], "max_grad_norm": 0.0}
    grads = np.full(count, 0.3, np.float32)
    m, v = np.zeros((2, count), np.uint16)
    weights = np.zeros(count, np.float32)
    for step in range(1, 2001):
        _core.adamw_step(weights, grads, m, v, None, step=step, **settings)
    exact = 0.09 * (1 - 0.999**2000)
    assert widened(v).mean() == pytest.approx(exact, rel=0.01)
    assert widened(v).std() < 0.1 * exact
    assert widened(m).mean() == pytest.approx(0.3, rel=0.001)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_gradient_touches_no_moment_in_bfloat16(bad):
    state, grads = halves(50_000), gradient(50_000, 1)
    before = {name: a.copy() for name, a in state.items()}
    grads[33_333] = bad
    with pytest.raises(FloatingPointError):
        run(state, grads, 2, SETTINGS)
    for name, a in state.items():
        np.testing.assert_array_equal(a, before[name], err_msg=name)


@pytest.mark.parametrize("wrong", ["m", "v", "weights", "ema"])
def test_both_moments_have_one_type_and_nothing_else_has_it(wrong):
    state = halves(64)
    state[wrong] = np.zeros(64, np.float32 if wrong in "mv" else np.uint16)
    name = "v" if wrong == "m" else wrong
    with pytest.raises(TypeError, match=f"{name} is not a (float32|uint16) array"):
        run(state, gradient(64, 1), 1, SETTINGS)


@pytest.mark.parametrize("damage", ["length", "dtype", "read only", "strided", "step", "missing"])
def test_bad_buffers_are_refused(damage):
    state, grads, step, settings = fresh(64), gradient(64, 1), 1, dict(SETTINGS)
    if damage == "length":
        state["m"] = state["m"][:63].copy()
    elif damage == "dtype":
        state["weights"] = state["weights"].astype(np.float64)
    elif damage == "read only":
        state["weights"].flags.writeable = False
    elif damage == "strided":
        state["v"] = np.zeros(128, np.float32)[::2]
    elif damage == "step":
        step = 0
    else:
        del settings["beta1"]
    with pytest.raises((ValueError, TypeError)):
        run(state, grads, step, settings)
