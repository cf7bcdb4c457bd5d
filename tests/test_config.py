"""The run's settings: defaults, limits, round trips, hints, and the learning-rate course."""

import dataclasses

import numpy as np
import pytest

from boot.config import DistillConfig
from boot.errors import ConfigError, FormatError
from boot.learning_rate import auto_learning_rate


def test_defaults_are_the_winners_of_the_experiments():
    config = DistillConfig()
    assert (config.adam_beta1, config.adam_beta2, config.adam_epsilon) == (0.9, 0.99, 1e-8)
    assert (config.delta, config.solver, config.loss_weight) == (0.04, "midpoint", "inverse_c2")
    assert (config.boundary_weight, config.boundary_fraction) == (0.0, 0.25)
    assert (config.ema_decay, config.max_grad_norm, config.c_floor) == (0.998, 1.0, 0.02)
    assert config.lr_scheduler == "hold_then_linear" and config.t_min == 0.001


def test_every_field_is_described():
    options = DistillConfig.options()
    assert [o.name for o in options] == [f.name for f in dataclasses.fields(DistillConfig)]
    for option in options:
        assert len(option.help) > 10, option.name
        assert option.default == getattr(DistillConfig(), option.name)
        assert option.kind in (int, float, bool, str)
        if option.optional:
            assert "None:" in option.help, f"{option.name} must say what None means"


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DistillConfig().delta = 0.5


GOOD = {
    "max_train_steps": 10,
    "learning_rate": 1e-3,
    "guidance_scale": 1.0,
    "t_max": 0.8,
    "clip_sample": False,
    "clip_sample_range": 2.0,
    "seed": 2**64 - 1,
    "output_dir": "out",
    "checkpoints_total_limit": None,
    "resume_from_checkpoint": "latest",
    "report_to": "none",
}


def test_round_trips(tmp_path):
    config = DistillConfig.from_dict(GOOD)
    assert DistillConfig.from_dict(config.to_dict()) == config
    config.save(tmp_path / "config.json")
    assert DistillConfig.load(tmp_path / "config.json") == config
    assert config.replace() == config
    assert config.replace(delta=0.1).delta == 0.1 and config.delta == 0.04


def test_numbers_of_other_libraries_become_plain(tmp_path):
    config = DistillConfig(max_train_steps=np.int32(5), delta=np.float32(0.5), output_dir=tmp_path)
    assert type(config.max_train_steps) is int
    assert type(config.delta) is float and config.delta == 0.5
    assert config.output_dir == str(tmp_path)
    assert type(DistillConfig(boundary_weight=1).boundary_weight) is float


@pytest.mark.parametrize(
    ("key", "value", "error", "text"),
    [
        ("lerning_rate", 1, ConfigError, r"unknown setting 'lerning_rate' \(did you mean 'learnin"),
        ("batch_size", 1, ConfigError, r"did you mean 'train_batch_size'\?"),
        ("zzz", 1, ConfigError, "unknown setting 'zzz'; known: max_train_steps"),
        ("max_train_steps", 0, ConfigError, "max_train_steps must be an integer >= 1 .*, got 0"),
        ("max_train_steps", 1.5, TypeError, "max_train_steps must be an integer"),
        ("max_train_steps", None, TypeError, "max_train_steps must be of type int, got None"),
        ("train_batch_size", True, TypeError, "train_batch_size must be an integer"),
        ("train_batch_size", -1, ConfigError, ">= 1 and <= 1048576, got -1"),
        ("learning_rate", 0, ConfigError, "> 0 and <= 1, got 0"),
        ("learning_rate", float("nan"), ConfigError, "learning_rate must be finite"),
        ("learning_rate", "1e-3", TypeError, "learning_rate must be a number, got '1e-3'"),
        ("lr_scheduler", "cosin", ConfigError, r"did you mean 'cosine'\?"),
        ("lr_scheduler", 1, TypeError, "lr_scheduler must be a string"),
        ("lr_warmup_steps", -1, ConfigError, "lr_warmup_steps must be an integer >= 0"),
        ("adam_beta1", 1.0, ConfigError, ">= 0 and < 1, got 1.0"),
        ("adam_beta2", -0.1, ConfigError, ">= 0 and < 1, got -0.1"),
        ("adam_epsilon", 0, ConfigError, "adam_epsilon must be finite and >= 1e-30"),
        ("adam_epsilon", 1e-46, ConfigError, "adam_epsilon must be finite and >= 1e-30"),
        ("adam_weight_decay", 2, ConfigError, "<= 1, got 2"),
        ("max_grad_norm", -1, ConfigError, "max_grad_norm must be finite and >= 0"),
        ("max_grad_norm", float("inf"), ConfigError, "max_grad_norm must be finite"),
        ("ema_decay", 1, ConfigError, "ema_decay must be finite and >= 0 and < 1"),
        ("guidance_scale", -1, ConfigError, "guidance_scale must be finite and >= 0"),
        ("null_class_label", -1, ConfigError, "null_class_label must be an integer >= 0"),
        ("null_class_label", 1.0, TypeError, "null_class_label must be an integer"),
        ("boundary_weight", -0.1, ConfigError, "boundary_weight"),
        ("boundary_fraction", 1.1, ConfigError, "<= 1, got 1.1"),
        ("delta", 0, ConfigError, "delta must be finite and > 0 and <= 1, got 0"),
        ("solver", "Heun", ConfigError, "'heun', 'midpoint', 'euler'; got 'Heun'"),
        ("loss_weight", "c2", ConfigError, "'inverse_c2', 'inverse_c', 'uniform'"),
        ("c_floor", 0, ConfigError, "c_floor must be finite and > 0"),
        ("t_max", 1.01, ConfigError, "t_max must be finite and > 0 and <= 1"),
        ("t_min", 0, ConfigError, "t_min must be finite and > 0 and < 1"),
        ("clip_sample", 1, TypeError, "clip_sample must be True or False"),
        ("clip_sample_range", 0, ConfigError, "clip_sample_range must be finite and > 0"),
        ("seed", -1, OverflowError, "seed must be an integer >= 0"),
        ("seed", 2**64, OverflowError, "<= 18446744073709551615"),
        ("seed", "1", TypeError, "seed must be an integer"),
        ("num_threads", 0, ConfigError, "num_threads must be an integer >= 1"),
        ("output_dir", 3, TypeError, "output_dir must be a path"),
        ("output_dir", "", ConfigError, "output_dir must be a non-empty path"),
        ("logging_steps", 0, ConfigError, "logging_steps must be an integer >= 1"),
        ("sample_steps", -1, ConfigError, "sample_steps must be an integer >= 0"),
        ("num_sample_images", 0, ConfigError, "num_sample_images must be an integer >= 1"),
        ("checkpointing_steps", -1, ConfigError, "checkpointing_steps must be an integer >= 0"),
        ("checkpoints_total_limit", 0, ConfigError, "checkpoints_total_limit"),
        ("resume_from_checkpoint", True, TypeError, "resume_from_checkpoint must be a path"),
        ("report_to", "wandb", ConfigError, "'jsonl', 'tensorboard', 'none'; got 'wandb'"),
    ],
)
def test_bad_settings_are_refused_with_what_is_allowed(key, value, error, text):
    with pytest.raises(error, match=text):
        DistillConfig.from_dict({key: value})
    with pytest.raises(error, match=text):
        DistillConfig().replace(**{key: value})


def test_t_min_must_lie_below_t_max():
    with pytest.raises(ConfigError, match="t_min must be < t_max = 0.5, got 0.5"):
        DistillConfig(t_max=0.5, t_min=0.5)


def test_from_dict_wants_a_mapping_with_string_keys():
    with pytest.raises(TypeError, match="settings must be a mapping, got list"):
        DistillConfig.from_dict([("delta", 0.1)])
    with pytest.raises(TypeError, match="names of settings must be strings, got 3"):
        DistillConfig.from_dict({3: 0.1})


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        ('{"deltaa": 1}', ConfigError, "run.json: unknown setting 'deltaa'"),
        ('{"delta": "x"}', ConfigError, "run.json: delta must be a number"),
        ('{"seed": -1}', ConfigError, "run.json: seed must be"),
        ('{"delta": 0.1, "delta": 0.2}', FormatError, "run.json: the key 'delta' appears twice"),
        ("[]", FormatError, "run.json must hold a JSON object"),
    ],
)
def test_load_names_the_file(tmp_path, content, error, text):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(error, match=text):
        DistillConfig.load(path)


# -------------------------------------------------------------------------------- learning rate


def factors(**settings):
    config = DistillConfig(max_train_steps=100, lr_warmup_steps=10, **settings)
    return [config.learning_rate_factor(step) for step in range(101)]


@pytest.mark.parametrize("name", ["hold_then_linear", "constant", "linear", "cosine"])
def test_every_course_warms_up_linearly_and_stays_within_its_peak(name):
    course = factors(lr_scheduler=name)
    np.testing.assert_allclose(course[:10], np.arange(1, 11) / 10)
    assert max(course) == 1.0 and min(course) >= 0.0
    assert all(a >= b for a, b in zip(course[10:], course[11:], strict=False))


def test_courses_end_where_they_should():
    assert factors(lr_scheduler="constant")[100] == 1.0
    hold = factors()
    assert hold[60] == 1.0 and hold[80] == pytest.approx(0.5) and hold[100] == 0.0
    assert factors(lr_scheduler="linear")[55] == pytest.approx(0.5)
    cosine = factors(lr_scheduler="cosine")
    assert cosine[55] == pytest.approx(0.5) and cosine[100] == pytest.approx(0.0, abs=1e-15)
    assert DistillConfig(max_train_steps=100).learning_rate_factor(10**6) == 0.0


def test_a_warm_up_longer_than_the_run_only_rises():
    config = DistillConfig(max_train_steps=5, lr_warmup_steps=100)
    assert [config.learning_rate_factor(s) for s in range(5)] == [0.01, 0.02, 0.03, 0.04, 0.05]


def test_no_warm_up_starts_at_the_peak():
    assert DistillConfig(lr_warmup_steps=0).learning_rate_factor(0) == 1.0


def test_auto_learning_rate_shrinks_with_the_network():
    assert auto_learning_rate(700_000) == 2e-3
    assert auto_learning_rate(1_856_833) == pytest.approx(7.54e-4, rel=1e-3)
    assert auto_learning_rate(35_746_307) == 2e-4
