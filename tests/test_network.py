"""The wrapper round a core network: loading by name, counting, chunks and kernels."""

from __future__ import annotations

import numpy as np
import pytest
from models import CONFIG, make_teacher, noise, tensors
from test_student import make_student

from boot.errors import FormatError
from boot.network import Network


def test_parameters_are_counted_without_padding():
    teacher = make_teacher()
    assert teacher.model.num_parameters == sum(a.size for a in tensors().values())
    time_dim, width = CONFIG.time_dim, CONFIG.block_out_channels[0]
    extra = time_dim * (width + 1) + time_dim * (time_dim + 1)
    assert make_student().model.num_parameters == teacher.model.num_parameters + extra


def test_network_load_names_every_problem_and_changes_nothing():
    network = make_teacher().model
    before, given = network.weights.copy(), tensors(seed=3)
    del given["conv_in.bias"]
    given["conv_out.bias"] = np.zeros(7, "f4")
    given["extra"] = np.zeros(1, "f4")
    message = r"missing: conv_in.bias; unexpected: extra; misshapen: conv_out.bias \(7,\)"
    with pytest.raises(FormatError, match=message):
        network.load(given)
    np.testing.assert_array_equal(network.weights, before)


def test_chunks_give_the_same_images():
    student = make_student()
    whole = student.sample(10)
    student.model.chunk_size = lambda height, width: 4
    np.testing.assert_allclose(student.sample(10), whole, atol=1e-5)


def test_a_chunk_is_bounded_by_count_and_by_work():
    model = make_teacher().model
    assert model.chunk_size(8, 8) == 256
    assert 1 <= model.chunk_size(256, 256) < 16
    assert model.chunk_size(4096, 4096) == 1


def test_pinned_kernels_are_used_and_listed():
    one, other = make_teacher().model, make_teacher().model
    one(noise(2), 5, 0)
    other.pin_kernels(one.kernels)
    np.testing.assert_array_equal(other(noise(2), 5, 0), one(noise(2), 5, 0))
    assert other.kernels == one.kernels
    assert "winograd" in str(one.kernels) or "direct" in str(one.kernels)


def test_the_view_of_a_parameter_is_the_weight_itself():
    model = make_teacher().model
    before = model(noise(2), 5, 0)
    model.parameters["conv_out.bias"][:] += 1
    model.weights_changed()
    np.testing.assert_allclose(model(noise(2), 5, 0), before + 1, atol=1e-5)
    assert repr(model).startswith("Network(1 -> 1 channels, widths (8, 16), ")


def network_with_weights(seed):
    net = Network(CONFIG)
    net.weights[:] = 0.05 * np.random.default_rng(seed).standard_normal(net.weights.size)
    net.weights_changed()
    return net


def inputs(count):
    rng = np.random.default_rng(count)
    shape = (count, CONFIG.in_channels, 8, 8)
    labels = None if CONFIG.num_classes is None else np.zeros(count, np.int64)
    return rng.standard_normal(shape).astype(np.float32), np.full(count, 500.0), labels


def test_packed_weights_follow_the_weights():
    net = network_with_weights(0)
    for count in (1, 3, 1):
        x, t, labels = inputs(count)
        for _ in range(2):
            net.core.keep_packed(False)
            plain = net.forward(x, t, labels)
            net.core.keep_packed(True)
            for _ in range(2):  # packs, then finds them packed
                np.testing.assert_allclose(net.forward(x, t, labels), plain, atol=1e-5)
            net.weights[:] *= 1.5
            net.weights_changed()


def test_networks_that_share_an_arena_compute_what_they_did_alone():
    one, two = network_with_weights(1), network_with_weights(2)
    x, t, labels = inputs(2)
    alone = one.forward(x, t, labels), two.forward(x, t, labels)
    two.core.share_arena(one.core)
    for _ in range(2):
        np.testing.assert_array_equal(one.forward(x, t, labels), alone[0])
        np.testing.assert_array_equal(two.forward(x, t, labels), alone[1])
    two.core.forward(x, t, labels, train=True)
    one.forward(x, t, labels)  # overwrites what backward would need
    with pytest.raises(RuntimeError, match="no training forward"):
        two.core.backward(np.ones_like(alone[1]))
    with pytest.raises(TypeError, match="UNet2D"):
        two.core.share_arena(one)
