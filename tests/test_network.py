"""The wrapper round a core network: loading by name, counting, chunks and kernels."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from models import CONFIG, make_teacher, noise, tensors
from test_student import make_student

import boot
from boot.errors import FormatError
from boot.network import Network
from boot.unet_config import UNet2DConfig


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


@pytest.mark.parametrize("problem", ["missing", "unexpected", "misshapen"])
def test_network_load_refuses_each_problem_alone(problem):
    network = make_teacher().model
    before, given = network.weights.copy(), tensors(seed=3)
    if problem == "missing":
        del given["conv_in.bias"]
    else:
        name = {"unexpected": "extra", "misshapen": "conv_out.bias"}[problem]
        given[name] = np.zeros((1, 1), "f4")  # would broadcast
    with pytest.raises(FormatError, match=rf"{problem}: (?!none)"):
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


@pytest.mark.parametrize("kernel", ["direct", "winograd"])
def test_packed_weights_follow_the_weights(kernel):
    net, plain = network_with_weights(0), network_with_weights(0)
    for count in (1, 3, 1):
        x, t, labels = inputs(count)
        plain.forward(x, t, labels)
        # winograd knows no stride, and the direct one takes no image that is upsampled on the way
        able = [key for key in plain.kernels if " s1 " in key and "doubled" not in key]
        for each in (net, plain):
            each.pin_kernels(plain.kernels | dict.fromkeys(able, kernel))
            each.keep_packed(each is net)
        for _ in range(2):
            expected = plain.forward(x, t, labels)
            for _ in range(2):  # packs, then finds them packed
                np.testing.assert_allclose(net.forward(x, t, labels), expected, atol=1e-5)
            for each in (net, plain):  # packs that are kept are out of date now
                each.weights[:] *= 1.5
                each.weights_changed()
        assert net.kernels[able[1]] == kernel


@pytest.mark.parametrize("kernel", ["winograd", "winograd_pairs"])
def test_packed_weights_give_the_same_bits(kernel):
    config = dataclasses.replace(CONFIG, block_out_channels=(32, 64), norm_num_groups=8)
    outs = []
    for packed in (False, True):
        net = Network(config)
        net.weights[:] = 0.05 * np.random.default_rng(0).standard_normal(net.weights.size)
        net.weights_changed()
        net.keep_packed(packed)
        x, t, labels = inputs(2)
        net.forward(x, t, labels)
        wanted = {
            key: kernel if re.search(r"x(32|64) o\d+ k3 s1 p1,1", key) else "direct"
            for key in net.kernels
            if "doubled" not in key
        }
        net.pin_kernels(net.kernels | dict.fromkeys(net.kernels, "winograd") | wanted)
        try:
            outs += [net.forward(x, t, labels) for _ in range(2)]
        except NotImplementedError:
            pytest.skip("this processor has no such kernel")
        assert kernel in net.kernels.values()
    for out in outs[1:]:
        np.testing.assert_array_equal(out, outs[0])


def test_a_network_beyond_the_caches_is_timed_on_cold_weights_and_reads_them_once():
    """In one shard, that is: each shard would read all packed weights from memory."""
    config = dataclasses.replace(
        CONFIG, block_out_channels=(320, 320), norm_num_groups=32, num_class_embeds=None
    )
    net, x, t = Network(config), noise(2), np.full(2, 500.0)
    assert net.num_parameters > 8_000_000
    net.weights[:] = np.random.default_rng(1).standard_normal(len(net.weights)) * 0.01
    net.weights_changed()
    expected = net.forward(x, t)
    net.keep_packed(True)
    before = boot.get_num_threads()
    try:
        boot.set_num_threads(2)
        found = net.forward(x, t), net.forward(x, t)
    finally:
        boot.set_num_threads(before)
    for each in found:
        np.testing.assert_allclose(each, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())
    kept = [key for key in net.kernels if key.endswith(" packed cold")]
    assert len(kept) > 5
    assert all(" n2 " in key for key in kept)  # not n1: a shard each


def test_a_network_beyond_a_cores_own_cache_is_timed_on_weights_from_further_away():
    small, large = (
        Network(CONFIG),
        Network(dataclasses.replace(CONFIG, block_out_channels=(64, 96))),
    )
    assert small.num_parameters < 250_000 < large.num_parameters < 8_000_000
    for net, ending in ((small, " packed"), (large, " packed far")):
        net.keep_packed(True)
        net.forward(noise(1), np.full(1, 500.0), np.zeros(1, np.int64))
        assert net.kernels
        assert all(key.endswith(ending) for key in net.kernels)


def test_the_first_call_which_keeps_no_packed_weights_gives_the_same_bits():
    config = dataclasses.replace(CONFIG, block_out_channels=(32, 256), norm_num_groups=32)
    net, x, t, labels = Network(config), noise(1), np.full(1, 500.0), np.zeros(1, np.int64)
    net.weights[:] = np.random.default_rng(1).standard_normal(len(net.weights)) * 0.02
    net.keep_packed(True)
    first, second = net.forward(x, t, labels), net.forward(x, t, labels)
    assert first.tobytes() == second.tobytes()


def test_a_network_in_training_keeps_no_packed_weights_and_computes_the_same():
    kept, trained = network_with_weights(1), network_with_weights(1)
    x, t, labels = inputs(4)
    for net in (kept, trained):
        net.keep_packed(True)
    trained.core.configure(in_training=True)
    for net in (kept, trained):
        net.forward(x, t, labels)
    outs = [net.forward(x, t, labels) for net in (kept, trained)]
    np.testing.assert_allclose(outs[1], outs[0], rtol=1e-5, atol=1e-5 * abs(outs[0]).max())
    assert kept.core.memory()["packed"] > 0
    assert kept.core.memory()["planned_packs"] > 0
    assert trained.core.memory()["packed"] == 0
    assert trained.core.memory()["planned_packs"] == 0


def test_networks_that_share_an_arena_compute_what_they_did_alone():
    one, two = network_with_weights(1), network_with_weights(2)
    x, t, labels = inputs(2)
    alone = one.forward(x, t, labels), two.forward(x, t, labels)
    two.share_arena(one)
    for _ in range(2):
        np.testing.assert_array_equal(one.forward(x, t, labels), alone[0])
        np.testing.assert_array_equal(two.forward(x, t, labels), alone[1])
    two.core.forward(x, t, labels, train=True)
    one.forward(x, t, labels)  # overwrites what backward would need
    with pytest.raises(RuntimeError, match="no training forward"):
        two.core.backward(np.ones_like(alone[1]))
    with pytest.raises(TypeError, match="UNet2D"):
        two.core.share_arena(one)


# ---------------------------------------------------------------------- gradient checkpointing

# google/ddpm-cifar10-32, where benchmarks/networks.py has it from: 35.7 M parameters.
CIFAR10 = UNet2DConfig(
    sample_size=32,
    block_out_channels=(128, 256, 256, 256),
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=None,
    downsample_padding=0,
    norm_eps=1e-6,
)
RESAMPLING = dataclasses.replace(
    CONFIG,
    sample_size=16,
    downsample_type="resnet",
    upsample_type="resnet",
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    resnet_time_scale_shift="scale_shift",
)


def outputs_and_gradients(network, x):
    out = network.forward_train(x, np.full(len(x), 500.0), np.zeros(len(x), np.int64), None)
    network.backward(out)
    return out, network.core.grads.copy()


@pytest.mark.parametrize("config", [CONFIG, RESAMPLING], ids=["plain", "resampling"])
def test_gradient_checkpointing_changes_no_bit_and_needs_less(config):
    network = Network(config)
    network.weights[:] = 0.1 * np.random.default_rng(3).standard_normal(network.weights.size)
    size = config.sample_size
    x = np.random.default_rng(4).standard_normal((3, 1, size, size)).astype(np.float32)
    plain = outputs_and_gradients(network, x)
    kept = network.core.plan(3, size, size, True)
    network.core.configure(gradient_checkpointing=True)
    again = outputs_and_gradients(network, x)  # the same kernels: they are known by now
    assert np.abs(plain[1]).max() > 0
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_array_equal(a, b)
    recomputed = network.core.plan(3, size, size, True)
    assert recomputed["activation_bytes"] < kept["activation_bytes"]
    kinds = [
        kind for kind, op, _, _ in network.core.profile(3, size, size, True, 1) if op == "conv2d"
    ]
    assert "again" in kinds


def test_gradient_checkpointing_saves_a_third_of_the_activations_of_ddpm_cifar10():
    network = Network(CIFAR10)
    sizes = []
    for on in (False, True):
        network.core.configure(gradient_checkpointing=on)
        sizes.append(network.core.plan(8, 32, 32, True, True)["activation_bytes"])
        same = network.core.plan(8, 32, 32, False, True)["activation_bytes"]
    print(f"activations: {sizes[0] / 2**20:.0f} MiB, with checkpointing {sizes[1] / 2**20:.0f}")
    assert sizes[1] < 0.68 * sizes[0]
    assert same < sizes[1]
