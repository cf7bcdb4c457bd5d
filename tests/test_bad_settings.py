"""Wrong settings: every field of every config refuses what its own description does not allow.

The calls are made from the descriptions, so a new setting is covered on the day it is added.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
from pipelines import CONFIG

from boot.config import DistillConfig
from boot.errors import ConfigError, UnsupportedModel
from boot.scheduler_config import SchedulerConfig
from boot.unet_config import UNet2DConfig

NOTHING_LIKE_IT = object()


def numbers_outside(option):
    """(value, error, pattern) of numbers beyond the limits of an option."""
    error = OverflowError if option.name == "seed" else ConfigError
    step = 1 if option.kind is int else 1e-6
    if option.lo is not None:
        low = option.lo if option.above else option.lo - step
        yield option.kind(low), error, rf"^{option.name} must be .*>=? {option.lo:g}"
    if option.hi is not None:
        high = option.hi if option.below else option.hi + step
        yield option.kind(high), error, rf"^{option.name} must be .*<=? "
    if option.kind is float:
        for value in (math.nan, math.inf, -math.inf, 10**400):
            yield value, ConfigError, rf"^{option.name} must be finite"


def bad_values(option):
    """(value, error, pattern) of everything an option must refuse."""
    name = option.name
    wrong = {int: [1.5, "1", True, [1]], float: ["0.5", True, [0.5]], bool: [1, 0, "yes"]}
    texts = [1.5, True, [1]] if option.unit == "bytes" else wrong.get(option.kind)  # "1" is a size
    for value in texts or [1, True, ["x"]]:
        yield value, TypeError, rf"^{name} must be "
    yield NOTHING_LIKE_IT, TypeError, rf"^{name} must be .*object"
    if not option.optional:
        yield None, TypeError, rf"^{name} must be .*None"
    if option.kind in (int, float):
        yield from numbers_outside(option)
    if option.choices:
        near = option.choices[0] + "s"
        yield near, ConfigError, rf"^{name} must be one of .*did you mean '{option.choices[0]}'"
    elif option.kind is str:
        yield "", ConfigError, rf"^{name} must be a non-empty path"
        yield "a\0b", ConfigError, rf"^{name} must be a non-empty path without NUL"


SETTINGS = [
    (option.name, value, error, pattern)
    for option in DistillConfig.options()
    for value, error, pattern in bad_values(option)
]


@pytest.mark.parametrize("name, value, error, pattern", SETTINGS)
def test_a_bad_setting_is_refused_by_name(name, value, error, pattern):
    good = DistillConfig()
    for make in (
        lambda: DistillConfig(**{name: value}),
        lambda: good.replace(**{name: value}),
        lambda: DistillConfig.from_dict({name: value}),
    ):
        with pytest.raises(error, match=pattern) as caught:
            make()
        assert caught.type is error
    assert good == DistillConfig()


def test_every_setting_has_bad_values():
    assert {name for name, *_ in SETTINGS} == {f.name for f in dataclasses.fields(DistillConfig)}


SCHEDULER = [
    ("num_train_timesteps", 0, ConfigError, "num_train_timesteps must be an integer >= 1"),
    ("num_train_timesteps", 10**7, ConfigError, "num_train_timesteps must be .*<= 1000000"),
    ("num_train_timesteps", 10.0, TypeError, "num_train_timesteps must be an integer"),
    ("num_train_timesteps", True, TypeError, "num_train_timesteps must be an integer"),
    ("beta_start", 0, ConfigError, "beta_start must be finite and > 0"),
    ("beta_start", 2, ConfigError, "beta_start must be finite and .*<= 1"),
    ("beta_end", math.nan, ConfigError, "beta_end must be finite"),
    ("beta_end", "0.02", TypeError, "beta_end must be a number"),
    ("beta_end", None, TypeError, "beta_end must be a number"),
    ("beta_schedule", "quadratic", UnsupportedModel, "beta_schedule: 'quadratic' is not supported"),
    ("beta_schedule", 3, TypeError, "beta_schedule must be a string"),
    ("prediction_type", "flow", UnsupportedModel, "prediction_type: 'flow' is not supported"),
    ("prediction_type", None, TypeError, "prediction_type must be a string"),
    ("rescale_betas_zero_snr", 1, TypeError, "rescale_betas_zero_snr must be True or False"),
    ("clip_sample", "no", TypeError, "clip_sample must be True or False"),
    ("clip_sample_range", 0, ConfigError, "clip_sample_range must be finite and > 0"),
    ("clip_sample_range", math.inf, ConfigError, "clip_sample_range must be finite"),
    ("thresholding", 0, TypeError, "thresholding must be True or False"),
    ("dynamic_thresholding_ratio", 1.5, ConfigError, "dynamic_thresholding_ratio must be .*<= 1"),
    ("sample_max_value", -1, ConfigError, "sample_max_value must be finite and > 0"),
    ("trained_betas", [0.1], ConfigError, "must have num_train_timesteps = 1000 entries, got 1"),
    ("trained_betas", 0.1, TypeError, "trained_betas must be a list"),
    ("trained_betas", [0.1] * 999 + [2.0], ConfigError, r"trained_betas\[999\] must be .*<= 1"),
    ("trained_betas", [0.1] * 999 + ["a"], TypeError, r"trained_betas\[999\] must be a number"),
]


@pytest.mark.parametrize("name, value, error, pattern", SCHEDULER)
def test_a_bad_scheduler_key_is_refused_by_name(name, value, error, pattern):
    for make in (
        lambda: SchedulerConfig(**{name: value}),
        lambda: SchedulerConfig.from_dict({name: value, "_class_name": "DDPMScheduler"}),
    ):
        with pytest.raises(error, match=pattern) as caught:
            make()
        assert caught.type is error


@pytest.mark.parametrize("name", sorted(f.name for f in dataclasses.fields(UNet2DConfig)))
def test_every_key_of_a_network_refuses_an_object(name):
    with pytest.raises((TypeError, ValueError, NotImplementedError), match=name):
        dataclasses.replace(CONFIG, **{name: NOTHING_LIKE_IT})
