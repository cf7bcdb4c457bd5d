"""Memory limits: a run that fits stays within, one that does not is refused with what helps."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from models import CONFIG, PLAIN, SMALL, make, make_teacher, noise, save_teacher
from test_plan import WORKING, held

from boot.distiller import Distiller
from boot.errors import ConfigError
from boot.network import Network


def test_a_run_that_cannot_fit_is_refused_with_what_would_fit():
    limit = int(0.7 * unpacked_peak(24))
    with pytest.raises(ConfigError, match=r"the run needs .* train_batch_size to \d") as caught:
        make(memory_limit=limit, train_batch_size=24, **BY_RULE)
    fits = int(str(caught.value).split("train_batch_size to ")[1].split()[0])
    assert 1 <= fits < 24
    distiller = make(memory_limit=limit, train_batch_size=fits, **BY_RULE)
    distiller.step()
    planned = distiller.plan(timed=False)
    assert planned.peak_bytes <= limit
    assert held(distiller)["arena"] <= sum(planned.parts[name] for name in WORKING)


def test_advice_names_every_setting_that_helps(tmp_path):
    with pytest.raises(ConfigError, match=r"gradient_checkpointing to true.*ema_decay to 0"):
        make(memory_limit=int(0.6 * unpacked_peak(64)), train_batch_size=64, **BY_RULE)
    with pytest.raises(ConfigError, match=r"optimiser alone.*moments_dtype bfloat16 they are"):
        make(memory_limit=10_000)
    teacher = save_teacher(tmp_path / "teacher")
    limits = {"memory_limit": int(0.6 * unpacked_peak(64)), "train_batch_size": 64}
    size = r"\(saves [\d.]+ KiB\)"
    both = rf"offload_teacher to true {size}, or moments_dtype to bfloat16 {size}"
    with pytest.raises(ConfigError, match=both):
        Distiller(teacher, **{**SMALL, **limits, **BY_RULE})
    with pytest.raises(ConfigError) as caught:  # a teacher without a file is not offloaded
        make(**limits, **BY_RULE, moments_dtype="bfloat16")
    assert not re.search("offload_teacher|moments_dtype", str(caught.value))


# Kernels by rule: timing may choose one with much scratch, and then a larger batch takes less.
BY_RULE = {"thread_independent": True}


def unpacked_peak(batch):
    """Without packed weights, which a limit gives up before anything else."""
    distiller = make(train_batch_size=batch, **BY_RULE)
    for network in distiller._networks().values():
        network.keep_packed(False)
    return distiller.plan(timed=False).peak_bytes


def test_the_core_itself_keeps_to_the_limit():
    network = make_teacher(PLAIN).model
    few, many = (network.core.plan(n, 8, 8, False) for n in (1, 64))
    limit = few["activation_bytes"] + few["scratch_bytes"] + 100_000
    assert limit < many["activation_bytes"] + many["scratch_bytes"]
    network.core.configure(memory_limit=limit)
    network.forward(noise(1), np.full(1, 500.0))
    with pytest.raises(MemoryError, match="memory limit leaves"):
        network.forward(noise(64), np.full(64, 500.0))
    memory = network.core.memory()
    assert 0 < memory["arena"] + memory["packed"] <= limit
    network.core.configure(memory_limit=0)
    network.forward(noise(64), np.full(64, 500.0))
    assert network.core.memory()["arena"] > limit


def test_calls_that_are_made_in_chunks_ask_nothing_of_a_limit(tmp_path):
    """A sample grid is larger than a small batch: it is drawn in as small parts as need be."""
    settings = {"train_batch_size": 2, "max_train_steps": 2, "sample_steps": 1, **BY_RULE}
    limit = make(**settings, num_sample_images=2).plan(timed=False).peak_bytes
    run = make(output_dir=str(tmp_path), num_sample_images=64, memory_limit=limit, **settings)
    run.fit()
    memory = held(run)
    planned = run.plan(timed=False)
    assert planned.peak_bytes <= limit
    assert sum(memory.values()) <= limit
    free = make(**settings, num_sample_images=64).plan(timed=False)
    assert "average x64" in free.working and free.peak_bytes > limit


def test_packed_weights_make_room_for_activations():
    """They only save time: another network's go too, and a limit that holds without them does."""
    one, two = (make_teacher(CONFIG).model for _ in range(2))
    two.share_arena(one)
    for network in (one, two):
        network.core.configure(thread_independent=True)
        network.keep_packed(True)
    few, many = ((noise(n), np.full(n, 500.0), np.zeros(n, np.int64)) for n in (2, 30))
    expected = [network.forward(*inputs) for network in (one, two) for inputs in (few, many)]
    plan = one.core.plan(30, 8, 8, False)
    limit = plan["activation_bytes"] + plan["scratch_bytes"] + 50_000
    one, two = (make_teacher(CONFIG).model for _ in range(2))
    two.share_arena(one)
    found = []
    for network in (one, two):
        network.core.configure(thread_independent=True, memory_limit=limit)
        network.keep_packed(True)
    for _ in range(2):
        found = []
        for network in (one, two):
            for inputs in (few, many):
                found.append(network.forward(*inputs))
                packed = sum(n.core.memory()["packed"] for n in (one, two))
                assert network.core.memory()["arena"] + packed <= limit
    assert packed > 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    fresh = make_teacher(CONFIG).model
    for network in (one, fresh):
        network.weights[:] *= 1.2
        network.weights_changed()
    for inputs in (few, many, few):
        np.testing.assert_allclose(one.forward(*inputs), fresh.forward(*inputs), atol=1e-4)


def test_scratch_ends_where_the_arena_of_another_shard_may_begin():
    """Group norms of 35 channels want an odd number of floats; arenas begin at cache lines."""
    config = dataclasses.replace(
        PLAIN,
        block_out_channels=(35,) * len(PLAIN.block_out_channels),
        norm_num_groups=5,
        attention_head_dim=None,
    )
    core = Network(config).core
    core.configure(keep_packed=True)
    plan = core.plan(2, 8, 8, True)
    assert plan["scratch_bytes"] % (64 * plan["shards"]) == 0


def test_sampling_keeps_to_the_limit_by_smaller_chunks(tmp_path):
    network = make_teacher(PLAIN).model
    x, t = noise(40), np.full(40, 500.0)
    whole = network.forward(x, t)
    six = network.core.plan(6, 8, 8, False, True)
    limit = six["activation_bytes"] + six["scratch_bytes"]
    network = make_teacher(PLAIN).model
    network.limit_memory(limit)
    assert 1 < network.chunk_size(8, 8) < 40
    np.testing.assert_allclose(network.forward(x, t), whole, atol=1e-5)
    assert network.core.memory()["arena"] <= limit


def run(network):
    """Twice: packed weights are kept from a plan's second run on."""
    for _ in range(2):
        network.forward(noise(2), np.full(2, 500.0))


def test_packs_of_kernels_that_are_gone_are_given_back():
    network = make_teacher(PLAIN).model
    network.keep_packed(True)
    run(network)
    able = [key for key in network.kernels if "doubled" not in key]  # what oneDNN can do
    network.pin_kernels(dict.fromkeys(able, "direct"))
    run(network)  # oneDNN's layouts belong to one plan each
    before = network.core.memory()["packed"]
    network.core.configure(gradient_checkpointing=True)  # forgets the plans
    between = network.core.memory()["packed"]
    assert 0 < between < before
    run(network)
    assert network.core.memory()["packed"] == before
    network.keep_packed(False)
    assert network.core.memory()["packed"] == 0
