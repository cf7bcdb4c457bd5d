"""Kernel choices kept between processes: used again, and ignored where they make no sense."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models import PLAIN, make, make_teacher, noise

from boot import kernel_cache
from boot.kernel_cache import cache_file, known_kernels, machine_key, remember_kernels

KEY = "forward n2 8x8x8 o8 k3 s1 p1,1 t1"


@pytest.fixture
def path(tmp_path, monkeypatch):
    path = tmp_path / "cache" / "kernels.json"
    monkeypatch.setenv("BOOT_KERNEL_CACHE", str(path))
    return path


def run(count=2, size=8):
    model = make_teacher(PLAIN).model
    return model, model.forward(noise(count, size=size), np.full(count, 500.0))


def test_a_second_network_times_nothing_and_computes_the_same_bits(path):
    first, out = run()
    assert first.core.timed_kernels > 0
    assert known_kernels() == first.kernels
    second, again = run()
    assert second.core.timed_kernels == 0
    assert second.kernels == first.kernels
    np.testing.assert_array_equal(again, out)
    run(3)
    assert set(first.kernels) < set(known_kernels())  # added, not replaced


def test_training_finds_its_kernels_too(path):
    make(thread_independent=False).step()
    again = make()
    again.step()
    assert all(net.core.timed_kernels == 0 for net in again._networks().values())


def test_choices_of_another_machine_or_build_are_not_used(path, monkeypatch):
    run()
    monkeypatch.setattr(kernel_cache, "machine_key", lambda: "another")
    assert known_kernels() == {}
    model, _ = run()
    assert model.core.timed_kernels > 0
    assert set(json.loads(path.read_text())) == {machine_key(), "another"}


def test_pins_go_before_what_is_remembered(path):
    first, _ = run()
    model = make_teacher(PLAIN).model
    able = [key for key in first.kernels if "doubled" not in key]  # what oneDNN can do
    model.pin_kernels(dict.fromkeys(able, "direct"))
    model.forward(noise(2), np.full(2, 500.0))
    assert len(able) > 3 and {model.kernels[key] for key in able} == {"direct"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"machine": 3}',
        b"[" * 100_000,
        json.dumps({machine_key(): {KEY: "no such kernel", "": "direct", "x" * 200: "direct"}}),
        json.dumps({machine_key(): {KEY: 5, "bad\nkey": "direct"}}),
    ],
)
def test_a_damaged_file_is_ignored_and_replaced(path, content):
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert known_kernels() == {}
    remember_kernels({KEY: "direct"})
    assert known_kernels() == {KEY: "direct"}


def test_a_kernel_that_cannot_do_the_shape_is_not_used(path):
    first, _ = run()
    remember_kernels(dict.fromkeys(first.kernels, "winograd"))
    remember_kernels({"forward n2 8x8x8 o8 k3 s2 p0,1 t1": "winograd", KEY: "plain"})
    assert all(" k3 s1 " in key for key in known_kernels())
    run()
    # Too many pixels for `taps`, which only the core knows: such hints are as good as none.
    keys = [key.replace(" 8x8x", " 64x64x") for key in first.kernels if key.startswith("forward")]
    large = {key: "taps" for key in keys if " 64x64x" in key}
    remember_kernels(large)
    assert large and large.items() <= known_kernels().items()
    network, _ = run(size=64)
    assert large.keys() <= network.kernels.keys()
    assert "taps" not in [network.kernels[key] for key in large]


def test_nothing_is_kept_where_that_is_switched_off_or_impossible(tmp_path, monkeypatch):
    monkeypatch.setenv("BOOT_KERNEL_CACHE", "off")
    assert cache_file() is None and known_kernels() == {}
    remember_kernels({KEY: "direct"})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BOOT_KERNEL_CACHE", str(tmp_path / "file" / "kernels.json"))
    remember_kernels({KEY: "direct"})
    assert known_kernels() == {}


def test_the_file_is_where_caches_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("BOOT_KERNEL_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file() == tmp_path / "boot" / "kernels.json"


def test_the_file_does_not_grow_without_end(path, monkeypatch):
    for i in range(kernel_cache.MAX_MACHINES + 2):
        monkeypatch.setattr(kernel_cache, "machine_key", lambda i=i: f"machine {i}")
        remember_kernels({KEY: "direct"})
    assert len(json.loads(path.read_text())) == kernel_cache.MAX_MACHINES
    remember_kernels({f"forward n{i}": "direct" for i in range(kernel_cache.MAX_KERNELS + 5)})
    assert len(known_kernels()) == kernel_cache.MAX_KERNELS
