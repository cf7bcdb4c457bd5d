"""What operations do with bad input and with odd memory layouts."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, attrs_of, make_inputs

from boot import _core

KERNELS = list(_core.conv_kernels())
SOME = {case.op: case for case in reversed(CASES)}  # the first case of each op


@pytest.mark.parametrize("op", sorted(_core.ops()))
@pytest.mark.parametrize("damage", ["dtype", "rank", "missing", "unknown", "object", "attribute"])
def test_bad_input_is_refused_by_name(op, damage):
    case = SOME[op]
    inputs: dict[str, object] = dict(make_inputs(case))
    attrs: dict[str, object] = dict(attrs_of(case))
    last = list(case.shapes)[-1]
    if damage == "dtype":
        inputs[last] = np.zeros(case.shapes[last], np.complex64)
    elif damage == "rank":
        inputs[last] = np.zeros((1,) * 6, np.float32)
    elif damage == "missing":
        del inputs[next(iter(case.shapes))]
    elif damage == "unknown":
        inputs["surplus"] = np.zeros(3, np.float32)
    elif damage == "object":
        inputs[last] = "text"
    else:
        attrs["surplus"] = 1.0
    # What is wrong with one array alone may be found before the op is known: its name will do.
    with pytest.raises((ValueError, TypeError), match=f"{op}|^{last}"):
        _core.op_forward(op, inputs, attrs)


@pytest.mark.parametrize(
    "op, name, shape",
    [
        ("conv2d", "weight", (5, 4, 3, 3)),
        ("conv2d", "weight", (5, 1, 5, 5)),
        ("conv2d", "weight", (5, 1, 3, 1)),
        ("conv2d", "bias", (7,)),
        ("linear", "weight", (5, 9)),
        ("linear", "bias", (6,)),
        ("linear", "more", (2, 1, 1, 1)),
        ("linear", "residual", (2, 1, 1, 1)),
        ("group_norm", "bias", (3,)),
        ("group_norm", "weight", (1,)),
        ("group_norm", "more", (1, 1, 1, 1)),
        ("attention", "k", (1, 1, 2, 1)),
        ("add", "b", (1, 1, 1, 2)),
        ("concat", "b", (1, 2, 1, 1)),
        ("concat", "b", (2, 1, 1, 1)),
    ],
)
def test_wrong_shape_is_refused_with_the_ops_name(op, name, shape):
    case = SOME[op]
    inputs = {**make_inputs(case), name: np.zeros(shape, np.float32)}
    with pytest.raises(ValueError, match=op):
        _core.op_forward(op, inputs, attrs_of(case))


@pytest.mark.parametrize(
    "op, attr, value",
    [
        ("conv2d", "stride", 3.0),
        ("conv2d", "stride", 0.0),
        ("conv2d", "pad_begin", 2.0),
        ("conv2d", "kernel", float(len(KERNELS))),
        ("conv2d", "kernel", 0.5),
        ("group_norm", "num_groups", 0.0),
        ("group_norm", "num_groups", 3.0),
        ("group_norm", "eps", -1.0),
        ("group_norm", "eps", float("nan")),
        ("group_norm", "act", 9.0),
        ("activation", "act", -1.0),
        ("activation", "act", 1.5),
        ("attention", "heads", 2.0),
        ("attention", "heads", 0.0),
        ("timestep_embedding", "dim", 1.0),
    ],
)
def test_wrong_attribute_is_refused_with_the_ops_name(op, attr, value):
    case = SOME[op]
    with pytest.raises(ValueError, match=op):
        _core.op_forward(op, make_inputs(case), {**attrs_of(case), attr: value})


@pytest.mark.parametrize("ids", [[-1], [1], [2**40]])
def test_embedding_id_outside_the_table_is_refused(ids):
    inputs = {"ids": np.array(ids, np.int64), "weight": np.zeros((1, 3), np.float32)}
    with pytest.raises(ValueError, match="embedding"):
        _core.op_forward("embedding", inputs, {})


def test_unknown_op_is_refused_by_name():
    with pytest.raises((ValueError, KeyError), match="convolve"):
        _core.op_forward("convolve", {}, {})


def test_wrong_shape_of_dy_is_refused():
    inputs = make_inputs(SOME["add"])
    with pytest.raises(ValueError, match="add"):
        _core.op_backward("add", inputs, {"scale": 1.0}, np.zeros((1, 1, 1, 2), np.float32))


@pytest.mark.parametrize("change", ["transposed", "reversed", "big endian", "unaligned", "sliced"])
def test_any_memory_layout_gives_the_right_result(change):
    x = np.random.RandomState(3).standard_normal((2, 3, 4, 5)).astype(np.float32)
    other = x
    if change == "transposed":
        other = np.asfortranarray(x)
    elif change == "reversed":
        other = x[::-1, ::-1].copy()[::-1, ::-1]
    elif change == "big endian":
        other = x.astype(">f4")
    elif change == "unaligned":
        other = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    else:
        other = np.repeat(x, 2, axis=3)[..., ::2]
    np.testing.assert_array_equal(other, x)
    y = _core.op_forward("activation", {"x": other}, {"act": 1})
    np.testing.assert_array_equal(y, _core.op_forward("activation", {"x": x}, {"act": 1}))
