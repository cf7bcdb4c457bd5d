"""Scheduler configs: the noise process is read from any sampler's file, the rest is refused."""

import inspect
import json

import numpy as np
import pytest

from boot.diffusers_io import read_scheduler
from boot.errors import ConfigError, FormatError, UnsupportedModel
from boot.scheduler_config import SCHEDULER_CLASSES, SchedulerConfig


def test_reads_only_the_noise_process():
    config = SchedulerConfig.from_dict(
        {
            "_class_name": "PNDMScheduler",
            "_diffusers_version": "0.6.0",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "trained_betas": None,
            "tensor_format": "pt",
        }
    )
    assert config == SchedulerConfig(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )


def test_round_trip():
    config = SchedulerConfig(num_train_timesteps=3, trained_betas=(0.1, 0.2, 1), clip_sample=True)
    again = SchedulerConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.trained_betas == (0.1, 0.2, 1.0)


def test_missing_keys_take_the_defaults_of_the_class():
    assert SchedulerConfig.from_dict({}).clip_sample is True  # as DDPMScheduler
    assert SchedulerConfig.from_dict({"_class_name": "PNDMScheduler"}).clip_sample is False
    lcm = SchedulerConfig.from_dict({"_class_name": "LCMScheduler"})
    assert (lcm.beta_start, lcm.beta_schedule) == (0.00085, "scaled_linear")


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            UnsupportedModel,
            "_class_name: 'Flow",
        ),
        ({"_class_name": "ScoreSdeVeScheduler"}, UnsupportedModel, "_class_name: 'ScoreSdeVe"),
        ({"_class_name": "os.system"}, UnsupportedModel, "_class_name: 'os.system' is not supp"),
        ({"_class_name": ["a.py", "X"]}, TypeError, "_class_name must be a string"),
        ({"beta_schedule": "laplace"}, UnsupportedModel, "beta_schedule: 'laplace' is not supp"),
        ({"beta_schedule": "linaer"}, UnsupportedModel, r"did you mean 'linear'\?"),
        ({"beta_schedule": None}, TypeError, "beta_schedule must be a string"),
        ({"prediction_type": "flow_prediction"}, UnsupportedModel, "prediction_type: 'flow_pre"),
        ({"use_flow_sigmas": True}, UnsupportedModel, "use_flow_sigmas"),
        ({"predict_epsilon": False}, UnsupportedModel, "predict_epsilon.*prediction_type"),
        ({"num_train_timesteps": 0}, ConfigError, "num_train_timesteps must be an integer >= 1"),
        ({"num_train_timesteps": 10**12}, ConfigError, "<= 1000000"),
        ({"num_train_timesteps": 10.0}, TypeError, "num_train_timesteps must be an integer"),
        ({"beta_start": 0}, ConfigError, "beta_start must be finite and > 0 and <= 1"),
        ({"beta_end": 1.5}, ConfigError, "beta_end must be finite and > 0 and <= 1"),
        ({"beta_end": "0.02"}, TypeError, "beta_end must be a number"),
        ({"clip_sample": 1}, TypeError, "clip_sample must be True or False"),
        ({"clip_sample_range": -1}, ConfigError, "clip_sample_range must be finite and > 0"),
        ({"dynamic_thresholding_ratio": 2}, ConfigError, "dynamic_thresholding_ratio"),
        ({"sample_max_value": 0}, ConfigError, "sample_max_value"),
        ({"thresholding": None}, TypeError, "thresholding must be True or False"),
        ({"trained_betas": 0.1}, TypeError, "trained_betas must be a list"),
        ({"trained_betas": [0.1]}, ConfigError, "num_train_timesteps = 1000 entries, got 1"),
        ({"trained_betas": [0.1] * 100_001}, ConfigError, "trained_betas must have at most 100000"),
        (
            {"trained_betas": [0.1, 0], "num_train_timesteps": 2},
            ConfigError,
            r"trained_betas\[1\] must be finite and > 0",
        ),
    ],
)
def test_refused_by_the_name_of_the_key(values, error, text):
    with pytest.raises(error, match=text):
        SchedulerConfig.from_dict(values)


def test_an_old_key_is_fine_if_the_new_one_decides():
    values = {"predict_epsilon": False, "prediction_type": "sample"}
    assert SchedulerConfig.from_dict(values).prediction_type == "sample"


@pytest.mark.parametrize("name", SCHEDULER_CLASSES)
def test_defaults_are_those_of_the_class_in_diffusers(name):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)
    if hasattr(scheduler, "_backends"):
        pytest.skip("diffusers hides this class without its optional dependency")
    theirs = inspect.signature(scheduler.__init__).parameters
    for key, value in SchedulerConfig.from_dict({"_class_name": name}).to_dict().items():
        if key in theirs:
            assert value == theirs[key].default, key


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of NumPy
@pytest.mark.parametrize("name", SCHEDULER_CLASSES)
def test_what_diffusers_saves_is_read(name, tmp_path):
    """DPM-Solver's configs hold -Infinity, which is no JSON."""
    pytest.importorskip("torch")
    scheduler = getattr(pytest.importorskip("diffusers"), name)
    if hasattr(scheduler, "_backends"):
        pytest.skip("diffusers hides this class without its optional dependency")
    theirs = scheduler()
    theirs.save_pretrained(tmp_path)
    _, schedule, kind = read_scheduler(tmp_path / "scheduler_config.json")
    assert kind == name
    np.testing.assert_allclose(schedule.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=2e-5)


def test_an_infinite_number_that_matters_is_refused(tmp_path):
    path = tmp_path / "scheduler_config.json"
    path.write_text('{"beta_end": Infinity, "lambda_min_clipped": -Infinity}')
    with pytest.raises(FormatError, match="beta_end must be finite"):
        read_scheduler(path)
