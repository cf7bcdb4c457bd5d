"""Every operation against its float64 oracle: values, gradients, threads, memory."""

from __future__ import annotations

import gc
import sys
from collections import defaultdict
from functools import lru_cache

import numpy as np
import oracle
import pytest
from cases import ACTS, AUTO, CASES, CONV2D, Array, Case, attrs_of, make_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import SANITIZED

from boot import _core

KERNELS = list(_core.conv_kernels())
SAME_SIZE = {"stride": 1, "pad_begin": 1, "pad_end": 1, "scale": 1}  # of a 3x3 convolution

# (case, number of the convolution kernel); other ops have one implementation.
RUNS = [
    (case, kernel)
    for case in CASES
    for kernel in (range(len(KERNELS)) if case.op == "conv2d" else [AUTO])
]


def run_name(run: tuple[Case, int]) -> str:
    case, kernel = run
    return f"{case} [{KERNELS[kernel]}]" if case.op == "conv2d" else str(case)


def attempt(call, kernel: int):
    """Run `call`; a pinned kernel that does not do this shape skips the test."""
    try:
        return call()
    except NotImplementedError as refusal:
        if kernel == AUTO:
            raise
        pytest.skip(str(refusal))


def differentiable(case: Case) -> list[str]:
    if case.op in oracle.NO_GRADIENT_OPS:
        return []
    return [name for name in case.shapes if (case.op, name) not in oracle.NOT_DIFFERENTIABLE]


@lru_cache(maxsize=64)
def truth(case: Case) -> Array:
    return oracle.forward(case.op, make_inputs(case), case.attrs)


@lru_cache(maxsize=64)
def directions(case: Case) -> dict[str, list[tuple[Array, float]]]:
    """For each float input: random directions v with <dy, J v>."""
    inputs, dy = make_inputs(case), output_gradient(case)
    rng = np.random.RandomState(7)
    found = defaultdict(list)
    for name in differentiable(case):
        for _ in range(2):
            v = rng.standard_normal(inputs[name].shape)
            jv = oracle.derivative(case.op, inputs, case.attrs, name, v)
            found[name].append((v, float(np.vdot(dy.astype(np.float64), jv))))
    return found


def output_gradient(case: Case) -> Array:
    return np.random.RandomState(5).standard_normal(truth(case).shape).astype(np.float32)


# ------------------------------------------------------------------------------- completeness


def test_every_op_has_a_case():
    assert {case.op for case in CASES} == set(_core.ops())


def test_every_input_and_attribute_is_exercised():
    for name, info in _core.ops().items():
        rows = [case for case in CASES if case.op == name]
        for word in info["inputs"].split():
            given_in = sum(word.rstrip("?") in case.shapes for case in rows)
            assert given_in, f"{name}: no case gives {word}"
            if word.endswith("?"):
                assert given_in < len(rows), f"{name}: no case leaves out {word}"
        for case in rows:
            assert set(attrs_of(case)) == set(info["attrs"].replace("?", "").split()), str(case)
        assert info["doc"]


def test_auto_is_the_first_conv_kernel_and_names_are_unique():
    assert KERNELS[AUTO] == "auto"
    assert len(set(KERNELS)) == len(KERNELS) >= 3


@pytest.mark.parametrize("kernel", range(1, len(KERNELS)), ids=KERNELS[1:])
def test_every_conv_kernel_does_some_of_the_cases(kernel):
    done = 0
    for case in CONV2D:
        try:
            _core.op_forward("conv2d", make_inputs(case), attrs_of(case, kernel))
            done += 1
        except NotImplementedError:
            pass
        if done >= 5:
            return
    pytest.fail(f"kernel {KERNELS[kernel]} ran only {done} of {len(CONV2D)} cases")


# ------------------------------------------------------------------------ values and gradients


@pytest.mark.parametrize("run", RUNS, ids=run_name)
def test_forward_matches_oracle(run):
    case, kernel = run
    inputs = make_inputs(case)
    before = {name: a.copy() for name, a in inputs.items()}
    y = attempt(lambda: _core.op_forward(case.op, inputs, attrs_of(case, kernel)), kernel)
    expected = truth(case)
    assert y.dtype == np.float32 and y.shape == expected.shape
    error = np.linalg.norm(y - expected)
    assert error <= case.tolerance * np.linalg.norm(expected) + 1e-30
    # No single element may hide in the norm: 30 tolerances of the largest.
    assert np.abs(y - expected).max() <= 30 * case.tolerance * np.abs(expected).max() + 1e-30
    for name, a in inputs.items():
        np.testing.assert_array_equal(a, before[name], err_msg=f"{name} was modified")


@pytest.mark.parametrize("run", [r for r in RUNS if differentiable(r[0])], ids=run_name)
def test_backward_matches_oracle_derivative(run):
    case, kernel = run
    inputs, dy = make_inputs(case), output_gradient(case)
    before = {name: a.copy() for name, a in inputs.items()}
    grads = attempt(lambda: _core.op_backward(case.op, inputs, attrs_of(case, kernel), dy), kernel)
    assert set(grads) >= set(differentiable(case))
    for name, wanted in directions(case).items():
        dx = grads[name]
        assert dx.dtype == np.float32 and dx.shape == inputs[name].shape, name
        # An exactly zero gradient (one token's softmax) is compared with the size of dy instead.
        scale = max(np.linalg.norm(dx), 0.01 * np.linalg.norm(dy))
        for v, expected in wanted:
            found = np.vdot(dx.astype(np.float64), v)
            assert abs(found - expected) <= 3 * case.tolerance * scale, f"{name}: {case}"
    for name, a in inputs.items():
        np.testing.assert_array_equal(a, before[name], err_msg=f"{name} was modified")
    np.testing.assert_array_equal(dy, output_gradient(case), err_msg="dy was modified")


@st.composite
def conv_cases(draw) -> Case:
    k = draw(st.sampled_from([1, 3]))
    pads = [(0, 0)] if k == 1 else [(1, 1), (0, 1), (0, 0), (1, 0)]
    begin, end = draw(st.sampled_from(pads))
    stride = draw(st.sampled_from([1, 1, 2]))
    smallest = max(1, k - begin - end)
    n, h, w = (
        draw(st.integers(1, 3)),
        draw(st.integers(smallest, 19)),
        draw(st.integers(smallest, 19)),
    )
    i, o = draw(st.integers(1, 35)), draw(st.integers(1, 35))
    ho, wo = ((size + begin + end - k) // stride + 1 for size in (h, w))
    shapes = {"x": (n, h, w, i), "weight": (o, i, k, k)}
    for name, shape in {"bias": (o,), "temb": (n, o), "residual": (n, ho, wo, o)}.items():
        if draw(st.booleans()):
            shapes[name] = shape
    scale = draw(st.sampled_from([1.0, 0.5]))
    attrs = {"stride": stride, "pad_begin": begin, "pad_end": end, "scale": scale}
    return Case("conv2d", shapes, attrs)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(case=conv_cases())
def test_conv2d_kernels_match_oracle_on_drawn_shapes(case):
    inputs, dy = make_inputs(case), output_gradient(case)
    expected, wanted = truth(case), directions(case)
    for kernel in range(1, len(KERNELS)):  # "auto" is one of these, and slow to choose
        try:
            y = _core.op_forward("conv2d", inputs, attrs_of(case, kernel))
            grads = _core.op_backward("conv2d", inputs, attrs_of(case, kernel), dy)
        except NotImplementedError:
            continue
        assert np.linalg.norm(y - expected) <= 1e-5 * np.linalg.norm(expected), KERNELS[kernel]
        for name, pairs in wanted.items():
            scale = np.linalg.norm(grads[name])
            for v, value in pairs:
                found = np.vdot(grads[name].astype(np.float64), v)
                assert abs(found - value) <= 3e-5 * scale, (KERNELS[kernel], name)


def sums_of_2x2(x):
    n, h, w, c = x.shape
    return x.astype(np.float64).reshape(n, h // 2, 2, w // 2, 2, c).sum(axis=(2, 4))


def is_close(found, expected, tolerance=1e-5):
    return np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    small=st.tuples(st.integers(1, 3), *[st.integers(1, 10)] * 2, *[st.integers(1, 35)] * 2),
)
def test_an_upsampled_image_is_the_small_one_repeated(small):
    n, h, w, i, o = small
    case = Case("conv2d", {"x": (n, h, w, i), "weight": (o, i, 3, 3)}, SAME_SIZE)
    inputs = make_inputs(case)
    large = {**inputs, "x": inputs["x"].repeat(2, axis=1).repeat(2, axis=2)}
    dy = np.random.default_rng(1).standard_normal((n, 2 * h, 2 * w, o)).astype(np.float32)
    y = oracle.forward("conv2d", large, case.attrs)
    plain = _core.op_backward("conv2d", large, attrs_of(case, KERNELS.index("plain")), dy)
    found_one = False
    for kernel in range(1, len(KERNELS)):
        attrs = {**attrs_of(case, kernel), "upsampled": 1}
        try:
            found = _core.op_forward("conv2d", inputs, attrs)
            grads = _core.op_backward("conv2d", inputs, attrs, dy)
        except NotImplementedError:
            continue
        found_one = True
        assert is_close(found, y), KERNELS[kernel]
        assert is_close(grads["weight"], plain["weight"], 3e-5), KERNELS[kernel]
        assert is_close(grads["x"], sums_of_2x2(plain["x"]), 3e-5), KERNELS[kernel]
    assert found_one


# ------------------------------------------------------------------------------- extreme values


@pytest.mark.parametrize("act", ACTS)
def test_activation_is_right_from_tiny_to_huge(act):
    x = np.concatenate([-np.geomspace(1e4, 1e-6, 400), [0.0], np.geomspace(1e-6, 1e4, 400)])
    inputs = {"x": x.astype(np.float32).reshape(1, 1, 1, -1)}
    attrs = {"act": ACTS[act]}
    y = _core.op_forward("activation", inputs, attrs)
    expected = oracle.forward("activation", inputs, attrs)
    np.testing.assert_allclose(y, expected, rtol=4e-6, atol=2e-7)
    dx = _core.op_backward("activation", inputs, attrs, np.ones_like(y))["x"]
    slope = oracle.derivative("activation", inputs, attrs, "x", np.ones(y.shape))
    away_from_kink = np.abs(inputs["x"]) > 2e-5
    np.testing.assert_allclose(dx[away_from_kink], slope[away_from_kink], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("act", ACTS)
def test_activation_lets_nan_through(act):
    x = np.array([1.0, np.nan, -1.0], np.float32).reshape(1, 1, 1, 3)
    y = _core.op_forward("activation", {"x": x}, {"act": ACTS[act]})
    assert np.isnan(y).tolist() == [[[[False, True, False]]]]


def test_attention_with_enormous_logits_stays_finite():
    q = np.full((1, 2, 2, 4), 300.0, np.float32)
    q[0, 0, 0] = -300.0
    v = np.arange(16, dtype=np.float32).reshape(q.shape)
    y = _core.op_forward("attention", {"q": q, "k": q, "v": v}, {"heads": 1})
    expected = oracle.forward("attention", {"q": q, "k": q, "v": v}, {"heads": 1})
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1e20, 1e-23])
def test_group_norm_where_single_precision_cannot_hold_the_variance(size):
    x = np.zeros((1, 2, 1, 2), np.float32)
    x[..., 1] = size
    inputs = {"x": x, "weight": np.ones(2, np.float32), "bias": np.zeros(2, np.float32)}
    y = _core.op_forward("group_norm", inputs, {"num_groups": 1, "eps": 0.0, "act": ACTS["none"]})
    np.testing.assert_allclose(y, [[[[-1, 1]], [[-1, 1]]]], rtol=1e-6)


def test_columns_leave_large_images_to_others():
    """Their parts, spread, would take more room than the images."""
    stride_2, data = (3, 2, 1, 1), 1
    assert _core.bench_conv(1, 64, 64, 64, 8, *stride_2, "columns", data, 1) > 0
    with pytest.raises(NotImplementedError):
        _core.bench_conv(1, 256, 256, 128, 8, *stride_2, "columns", data, 1)


def test_group_norm_of_a_constant_is_the_bias():
    # Variance 0: 1/sqrt(eps) = 316 amplifies the rounding of x - mean, 12.5 * 6e-8.
    x = np.full((1, 4, 4, 6), 12.5, np.float32)
    weight, bias = np.full(6, 2.0, np.float32), np.arange(6, dtype=np.float32)
    attrs = {"num_groups": 2, "eps": 1e-5, "act": 0}
    y = _core.op_forward("group_norm", {"x": x, "weight": weight, "bias": bias}, attrs)
    np.testing.assert_allclose(y, np.broadcast_to(bias, y.shape), atol=1e-3)


# ---------------------------------------------------------------------------- threads and memory


def same_bits_runs() -> list[tuple[Case, int]]:
    """One large case of each op; for convolutions the kernels that are not oneDNN's."""
    largest: dict[str, Case] = {}
    for case in CASES:
        size = sum(int(np.prod(s)) for s in case.shapes.values())
        held = largest.get(case.op)
        if held is None or size > sum(int(np.prod(s)) for s in held.shapes.values()):
            largest[case.op] = case
    own = [i for i, name in enumerate(KERNELS) if i and name != "direct" and "dnnl" not in name]
    conv = next(c for c in CONV2D if c.shapes["x"] == (2, 16, 16, 64))
    others = [(case, AUTO) for op, case in largest.items() if op != "conv2d"]
    return others + [(conv, kernel) for kernel in own]


@pytest.fixture
def threads():
    """Give back the thread count after a test that changes it."""
    count = _core.get_num_threads()
    yield
    _core.set_num_threads(count)


@pytest.mark.parametrize("run", same_bits_runs(), ids=run_name)
def test_same_bits_for_any_number_of_threads(run, threads):
    case, kernel = run
    inputs, dy, attrs = make_inputs(case), output_gradient(case), attrs_of(case, kernel)
    results = []
    for count in (1, 2, 4):
        _core.set_num_threads(count)
        assert _core.get_num_threads() == count
        y = attempt(lambda: _core.op_forward(case.op, inputs, attrs), kernel)
        grads = _core.op_backward(case.op, inputs, attrs, dy) if differentiable(case) else {}
        results.append({"y": y, **grads})
    for other in results[1:]:
        for name, a in results[0].items():
            np.testing.assert_array_equal(other[name], a, err_msg=name)


def resident_bytes() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
@pytest.mark.parametrize("op", sorted(_core.ops()))
def test_calls_leak_neither_memory_nor_references(op):
    case = [c for c in CASES if c.op == op][1]
    inputs, dy = make_inputs(case), output_gradient(case)
    attrs = attrs_of(case, KERNELS.index("direct") if op == "conv2d" else AUTO)

    def repeat(times: int) -> None:
        for _ in range(times):
            _core.op_forward(op, inputs, attrs)
            if differentiable(case):
                _core.op_backward(op, inputs, attrs, dy)
            with pytest.raises((ValueError, TypeError)):
                _core.op_forward(op, {}, attrs)

    counted = [inputs, attrs, dy, *inputs.values()]
    repeat(30)
    gc.collect()
    references, resident = [sys.getrefcount(a) for a in counted], resident_bytes()
    repeat(200)
    gc.collect()
    assert [sys.getrefcount(a) for a in counted] == references
    assert SANITIZED or resident_bytes() - resident < 8 * 2**20
