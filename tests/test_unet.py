"""The U-Net of the core against diffusers: every block type and option, values and gradients.

The numbers come from golden files that diffusers itself wrote (`golden/make_unet.py`).
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from golden_unets import (
    CIFAR10,
    FOLDER,
    NAMES,
    Array,
    assert_gradients_agree,
    assert_outputs_agree,
    assign,
    build,
    gradients,
    load,
    model_config,
)

from boot import _core
from boot.unet_keys import expected_tensors


def golden_script():
    spec = importlib.util.spec_from_file_location("make_unet", FOLDER / "make_unet.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_golden_files_are_those_of_the_script():
    script = golden_script()
    assert set(NAMES) == set(script.CASES)
    for name, case in script.CASES.items():
        assert load(name).config == case.config, f"{name}: run golden/make_unet.py again"
        assert load(name).timesteps.tolist() == list(case.timesteps)
    assert sum((FOLDER / f"unet_{name}.npz").stat().st_size for name in NAMES) < 1.5e6


def test_golden_files_cover_every_supported_option():
    configs = [model_config(load(name).config) for name in NAMES]

    def values(key: str) -> set:
        return {getattr(config, key) for config in configs}

    blocks = {block for c in configs for block in (*c.down_block_types, *c.up_block_types)}
    for block in ("DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"):
        assert {block, f"UNetRes{block}"} <= blocks or block in blocks
    assert {"ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"} <= blocks
    assert values("time_embedding_type") == {"positional", "fourier", "learned"}
    assert values("class_embed_type") == {None, "timestep", "identity"}
    assert values("act_fn") >= {"silu", "gelu", "mish", "relu"}
    assert values("resnet_time_scale_shift") == {"default", "scale_shift"}
    assert values("mid_block_type") == {"UNetMidBlock2D", None}
    assert values("downsample_padding") == {0, 1}
    for key in ("flip_sin_to_cos", "add_attention", "center_input_sample"):
        assert values(key) == {True, False}, key
    for key in ("downsample_type", "upsample_type"):
        assert values(key) == {"conv", "resnet"}, key
    for key in ("num_class_embeds", "attn_norm_num_groups", "attention_head_dim", "freq_shift"):
        assert len(values(key)) > 1, key
    assert values("attention_head_dim") >= {None, 8}
    assert max(values("mid_block_scale_factor")) > 1


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_diffusers(name):
    golden = load(name)
    config = model_config(golden.config)
    network = _core.UNet2D(config.to_core())
    shapes = {key: tuple(shape) for key, shape, _ in network.parameters}
    assert shapes == {key: value.shape for key, value in golden.weights.items()}
    assert shapes == dict(expected_tensors(config))
    offsets = [offset for _, _, offset in network.parameters]
    ends = [offset + int(np.prod(shape)) for _, shape, offset in network.parameters]
    gaps = [b - e for b, e in zip([*offsets, network.weights.size], [0, *ends], strict=True)]
    assert min(gaps) >= 0 and max(gaps) < 16  # tensors may start at 64-byte borders


def test_flat_gradients_are_zero_between_tensors():
    golden = load("odd_width")
    network = build(golden.config, golden.weights)
    network.forward(golden.sample, golden.timesteps, train=True)
    network.backward(golden.doutput)
    between = np.ones(network.weights.size, bool)
    for _, shape, offset in network.parameters:
        between[offset : offset + int(np.prod(shape))] = False
    assert not network.weights[between].any() and not network.grads[between].any()


def test_cifar_network_has_the_published_number_of_parameters():
    network = _core.UNet2D(model_config(CIFAR10).to_core())
    sizes = [int(np.prod(shape)) for _, shape, _ in network.parameters]
    assert (len(sizes), sum(sizes)) == (328, 35_746_307)


@pytest.mark.parametrize("name", NAMES)
def test_output_matches_diffusers(name):
    golden = load(name)
    network = build(golden.config, golden.weights)
    found = network.forward(golden.sample, golden.timesteps, golden.labels)
    assert_outputs_agree(found, golden.output)


@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_matches_diffusers(name):
    golden = load(name)
    network = build(golden.config, golden.weights)
    found = network.forward(golden.sample, golden.timesteps, golden.labels, train=True)
    assert_outputs_agree(found, golden.output)
    network.backward(golden.doutput)
    without = {key for key, _, _ in network.parameters} - set(golden.grads)
    assert without == ({"time_proj.weight"} if name == "fourier" else set())
    assert_gradients_agree(gradients(network), golden.grads)
    for key in without:  # not trained: diffusers keeps them fixed
        assert not gradients(network)[key].any()


def test_gradients_are_overwritten_not_added():
    golden = load("ddpm")
    network = build(golden.config, golden.weights)
    network.grads[:] = np.nan
    for _ in range(2):
        network.forward(golden.sample, golden.timesteps, train=True)
        network.backward(golden.doutput)
    assert_gradients_agree(gradients(network), golden.grads)


@pytest.mark.parametrize("name", ["ddpm", "adm", "resnet_sampling_up"])
def test_results_do_not_depend_on_what_ran_before(name):
    golden = load(name)
    network = build(golden.config, golden.weights)
    first = network.forward(golden.sample, golden.timesteps, golden.labels)
    network.forward(golden.sample * 3, golden.timesteps, golden.labels, train=True)
    network.backward(golden.doutput)
    wide = np.concatenate([golden.sample] * 2, axis=3)
    network.forward(wide, golden.timesteps, golden.labels)
    again = network.forward(golden.sample, golden.timesteps, golden.labels)
    np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("name", ["ddpm", "adm", "class_identity"])
def test_images_of_a_batch_do_not_touch_each_other(name):
    golden = load(name)
    network = build(golden.config, golden.weights)
    for i in range(len(golden.sample)):
        one = slice(i, i + 1)
        labels = None if golden.labels is None else golden.labels[one]
        found = network.forward(golden.sample[one], golden.timesteps[one], labels)
        assert_outputs_agree(found, golden.output[one])


def test_backward_after_another_forward_is_refused_not_wrong():
    golden = load("ddpm")
    network = build(golden.config, golden.weights)
    network.forward(golden.sample, golden.timesteps, train=True)
    network.forward(golden.sample[:1] * 2, golden.timesteps[:1])
    with pytest.raises(RuntimeError, match="forward"):  # the memory it needs has been used again
        network.backward(golden.doutput)


def test_weights_can_be_changed_between_calls():
    golden, other = load("ddpm"), build(load("ddpm").config, load("ddpm").weights)
    zeros = {key: np.zeros_like(value) for key, value in golden.weights.items()}
    assign(other, zeros)
    assert not other.forward(golden.sample, golden.timesteps).any()
    assign(other, golden.weights)
    assert_outputs_agree(other.forward(golden.sample, golden.timesteps), golden.output)


def test_two_networks_run_in_two_threads():
    names = ["ddpm", "three_levels"]
    networks = [build(load(name).config, load(name).weights) for name in names]
    found: list[list[Array]] = [[], []]

    def work(i: int) -> None:
        golden = load(names[i])
        for _ in range(20):
            networks[i].forward(golden.sample, golden.timesteps, train=True)
            networks[i].backward(golden.doutput)
            found[i].append(networks[i].forward(golden.sample, golden.timesteps))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i, name in enumerate(names):
        assert len(found[i]) == 20
        for output in found[i]:
            assert_outputs_agree(output, load(name).output)
        assert_gradients_agree(gradients(networks[i]), load(name).grads)


# ----------------------------------------------------------------------- the student's embedding

TARGET = "boot_target_embedding"
TIME = "time_embedding"
PARTS = ["linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"]


def with_target(weights: dict[str, Array], source: dict[str, Array]) -> dict[str, Array]:
    """Add a target embedding, its numbers taken from the time embedding of `source`."""
    return weights | {f"{TARGET}.{part}": source[f"{TIME}.{part}"] for part in PARTS}


def without_time(weights: dict[str, Array]) -> dict[str, Array]:
    """Silence the time embedding, so that only the target embedding speaks."""
    zeros = {f"{TIME}.{part}": np.zeros_like(weights[f"{TIME}.{part}"]) for part in PARTS[2:]}
    return weights | zeros


def test_zero_target_embedding_changes_nothing():
    golden = load("adm")
    weights = with_target(golden.weights, without_time(golden.weights))
    network = build(golden.config, weights, target_embedding=True)
    targets = np.array([11.5, 700.0])
    found = network.forward(golden.sample, golden.timesteps, golden.labels, targets)
    assert_outputs_agree(found, golden.output)


@pytest.mark.parametrize("name", ["ddpm", "adm", "odd_width"])
def test_target_embedding_takes_the_place_of_the_time_embedding(name):
    golden = load(name)
    weights = with_target(without_time(golden.weights), golden.weights)
    network = build(golden.config, weights, target_embedding=True)
    other_times = golden.timesteps[::-1].copy()
    call = (golden.sample, other_times, golden.labels, golden.timesteps)
    assert_outputs_agree(network.forward(*call), golden.output)
    network.forward(*call, train=True)
    network.backward(golden.doutput)
    found = gradients(network)
    renamed = {
        key.replace(TIME, TARGET) if key.startswith(TIME) else key: value
        for key, value in golden.grads.items()
    }
    assert_gradients_agree(found, renamed)
    # Both embeddings are added, so the last bias of each gets the same gradient.
    np.testing.assert_array_equal(found[f"{TIME}.{PARTS[3]}"], found[f"{TARGET}.{PARTS[3]}"])


GUIDANCE = "boot_guidance_embedding"


@pytest.mark.parametrize("name", ["defaults", "class_timestep", "three_levels"])
def test_guidance_embedding_takes_the_place_of_the_time_embedding(name):
    """Both have the same sinusoids here, so diffusers' numbers are those of the guidance input."""
    golden = load(name)
    weights = without_time(golden.weights)
    weights |= {f"{GUIDANCE}.{part}": golden.weights[f"{TIME}.{part}"] for part in PARTS}
    network = build(golden.config, weights, guidance_embedding=True)
    call = (golden.sample, golden.timesteps[::-1].copy(), golden.labels, None, golden.timesteps)
    network.forward(*call, train=True)
    network.backward(golden.doutput)
    assert_outputs_agree(network.forward(*call), golden.output)
    renamed = {key.replace(TIME, GUIDANCE): value for key, value in golden.grads.items()}
    found = gradients(network)
    assert_gradients_agree({key: found[key] for key in renamed}, renamed)


def test_guidance_is_for_networks_that_embed_it():
    golden = load("defaults")
    call = (golden.sample, golden.timesteps, golden.labels, None)
    with pytest.raises(ValueError, match="guidance given to a network without guidance embedding"):
        build(golden.config, golden.weights).forward(*call, golden.timesteps)
    embeds = _core.UNet2D(model_config(golden.config).to_core(), guidance_embedding=True)
    with pytest.raises(ValueError, match="guidance missing: this network has a guidance"):
        embeds.forward(*call)
    with pytest.raises(ValueError, match="guidance: expected shape"):
        embeds.forward(*call, golden.timesteps[:1])


# ------------------------------------------------------------------------------------ plans


def test_plan_counts_bytes_and_names_kernels():
    golden = load("ddpm")
    network = build(golden.config, golden.weights)
    training, inference = network.plan(4, 16, 16, True), network.plan(4, 16, 16, False)
    assert 0 < inference["peak_bytes"] < training["peak_bytes"]
    assert network.plan(8, 16, 16, True)["peak_bytes"] > training["peak_bytes"]
    assert training["kernels"]
    for row in training["kernels"]:
        assert row[-2] in _core.conv_kernels()[1:] and row[-1] >= 0


def test_pinned_kernels_are_reproducible_to_the_bit():
    golden = load("ddpm")
    first = build(golden.config, golden.weights)
    output = first.forward(golden.sample, golden.timesteps, train=True)
    first.backward(golden.doutput)
    second = build(golden.config, golden.weights)
    second.pin_kernels({key: kernel for key, kernel, _ in first.kernels})
    np.testing.assert_array_equal(
        second.forward(golden.sample, golden.timesteps, train=True), output
    )
    second.backward(golden.doutput)
    np.testing.assert_array_equal(second.grads, first.grads)
    assert {row[:2] for row in second.kernels} == {row[:2] for row in first.kernels}


def test_every_pin_is_obeyed():
    golden = load("ddpm")
    timed = build(golden.config, golden.weights)
    timed.forward(golden.sample, golden.timesteps, train=True)
    network = build(golden.config, golden.weights)
    network.pin_kernels({key: "plain" for key, _, _ in timed.kernels})
    found = network.forward(golden.sample, golden.timesteps, train=True)
    network.backward(golden.doutput)
    assert {kernel for _, kernel, _ in network.kernels} == {"plain"}
    assert_outputs_agree(found, golden.output)
    assert_gradients_agree(gradients(network), golden.grads)


# --------------------------------------------------------------------------------- bad input


def network_and_input():
    golden = load("adm")
    return build(golden.config, golden.weights), golden


def test_backward_before_forward_is_refused():
    network, golden = network_and_input()
    with pytest.raises((RuntimeError, ValueError)):
        network.backward(golden.doutput)
    network.forward(golden.sample, golden.timesteps, golden.labels)  # keeps nothing
    with pytest.raises((RuntimeError, ValueError)):
        network.backward(golden.doutput)


BAD_CALLS = {
    "channels": lambda g: (g.sample[:, :2], g.timesteps, g.labels),
    "rank": lambda g: (g.sample[0], g.timesteps, g.labels),
    "odd size": lambda g: (g.sample[:, :, :7], g.timesteps, g.labels),
    "empty": lambda g: (g.sample[:0], g.timesteps[:0], g.labels[:0]),
    "timesteps": lambda g: (g.sample, g.timesteps[:1], g.labels),
    "labels missing": lambda g: (g.sample, g.timesteps, None),
    "labels": lambda g: (g.sample, g.timesteps, g.labels[:1]),
    "label too large": lambda g: (g.sample, g.timesteps, np.array([0, 5])),
    "label negative": lambda g: (g.sample, g.timesteps, np.array([0, -1])),
    "target": lambda g: (g.sample, g.timesteps, g.labels, g.timesteps),
    "type": lambda g: ("sample", g.timesteps, g.labels),
}


@pytest.mark.parametrize("bad", BAD_CALLS)
def test_bad_call_is_refused_and_leaves_the_network_usable(bad):
    network, golden = network_and_input()
    with pytest.raises((ValueError, TypeError)):
        network.forward(*BAD_CALLS[bad](golden))
    found = network.forward(golden.sample, golden.timesteps, golden.labels)
    assert_outputs_agree(found, golden.output)


def test_wrong_shape_of_doutput_is_refused():
    network, golden = network_and_input()
    network.forward(golden.sample, golden.timesteps, golden.labels, train=True)
    with pytest.raises(ValueError):
        network.backward(golden.doutput[:1])


BAD_CONFIGS = {
    "block_out_channels": None,
    "down_block_types": ["DownBlock2D", "SkipDownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "act_fn": "tanh",
    "time_embedding_type": "rotary",
    "resnet_time_scale_shift": "spatial",
    "norm_num_groups": 3,
}


@pytest.mark.parametrize("key", BAD_CONFIGS)
def test_bad_core_config_is_refused(key):
    config = model_config(load("ddpm").config).to_core()
    with pytest.raises((ValueError, TypeError, NotImplementedError)):
        _core.UNet2D({**config, key: BAD_CONFIGS[key]})


def test_golden_folder_is_beside_this_file():
    assert Path(__file__).parent / "golden" == FOLDER
    assert len(NAMES) >= 15
