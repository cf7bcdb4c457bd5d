"""Random numbers of samples: the published generator, and NumPy's own distributions on it."""

from __future__ import annotations

import numpy as np
import pytest

from boot import _core
from boot.noise import Stream, choice, normal, uniform


def philox_4x64(counter, key):
    """Philox 4x64-10 as Salmon et al. (2011) define it, on Python integers."""
    mask = 2**64 - 1
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c2, 2**64)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return c0, c1, c2, c3


def test_the_reference_generator_gives_the_published_vector():
    # From the known-answer file of the authors' Random123 library.
    assert philox_4x64((0, 0, 0, 0), (0, 0))[:2] == (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC)


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_uniform_is_philox_at_the_counter_of_each_sample(seed):
    found = uniform(seed, Stream.TRAIN_TIME, 12, 3, 4)
    for i, value in enumerate(found):
        # NumPy increments the counter before it generates.
        word = philox_4x64((1, 0, 3 + i, 12), (seed, int(Stream.TRAIN_TIME)))[0]
        assert value == (word >> 11) * 2.0**-53


def test_samples_do_not_depend_on_the_batch_split():
    whole = normal(5, Stream.SAMPLE_NOISE, 0, 0, (10, 1, 4, 4))
    parts = [
        normal(5, Stream.SAMPLE_NOISE, 0, i, (k, 1, 4, 4)) for i, k in ((0, 3), (3, 1), (4, 6))
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert whole.dtype == np.float32


def test_seed_stream_step_and_sample_all_matter():
    draws = [
        normal(seed, stream, step, first, (1, 64))
        for seed in (0, 1)
        for stream in (Stream.TRAIN_NOISE, Stream.SAMPLE_NOISE)
        for step in (0, 1)
        for first in (0, 1)
    ]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.5


def test_noise_is_standard_normal():
    x = normal(0, Stream.TRAIN_NOISE, 0, 0, (400, 256)).astype(np.float64).ravel()
    n = len(x)
    assert abs(x.mean()) < 4 / np.sqrt(n)
    assert abs(x.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((x**4).mean() - 3) < 4 * np.sqrt(96 / n)


def test_choice_takes_every_option_equally_often():
    options = np.array([3, 5, 8])
    drawn = choice(0, Stream.TRAIN_LABEL, 0, 0, 3000, options)
    counts = [(drawn == option).sum() for option in options]
    assert sum(counts) == 3000
    assert max(counts) - min(counts) < 200


@pytest.mark.parametrize("shape", [(1,), (3, 5), (64, 1, 8, 8), (2, 3, 64, 64), (3, 0), (0, 4)])
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_normal_is_what_numpy_draws_at_each_sample(seed, shape):
    found = normal(seed, Stream.SAMPLE_NOISE, 7, 2**40, shape)
    assert (found.shape, found.dtype) == (shape, np.float32)
    key = np.array([seed, Stream.SAMPLE_NOISE], np.uint64)
    for i, sample in enumerate(found):
        counter = np.array([0, 0, 2**40 + i, 7], np.uint64)
        generator = np.random.Generator(np.random.Philox(counter=counter, key=key))
        wanted = generator.standard_normal(sample.shape, dtype=np.float32)
        np.testing.assert_array_equal(sample, wanted)


def test_a_long_row_carries_the_counter_on():
    # More than 2^15 blocks of four numbers, and halves of them for ziggurat's tail in between.
    (found,) = normal(3, Stream.TOY, 0, 0, (1, 300_000))
    key = np.array([3, Stream.TOY], np.uint64)
    generator = np.random.Generator(np.random.Philox(counter=0, key=key))
    np.testing.assert_array_equal(found, generator.standard_normal(300_000, dtype=np.float32))


@pytest.mark.parametrize(
    ("place", "shape", "error", "words"),
    [
        ((-1, 0, 0, 0), (2, 3), OverflowError, "negative"),
        ((0, 0, 2**64, 0), (2, 3), OverflowError, "too big"),
        ((0.5, 0, 0, 0), (2, 3), TypeError, "integer"),
        ((0, 0, 0, 0), (), ValueError, "shape is ()"),
        ((0, 0, 0, 0), (-2, 3), ValueError, "negative"),
        ((0, 0, 0, 0), (2, "x"), TypeError, "integer"),
    ],
)
def test_bad_places_and_shapes_are_refused(place, shape, error, words):
    with pytest.raises(error, match=words.replace("(", r"\(").replace(")", r"\)")):
        _core.normal(*place, shape)


def test_bad_numbers_of_samples_are_refused():
    with pytest.raises(ValueError, match="negative"):
        _core.uniform(0, 0, 0, 0, -1)
    with pytest.raises(OverflowError):
        _core.uniform(0, -1, 0, 0, 1)
