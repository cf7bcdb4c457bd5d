"""UNet2DModel configs: what is read, what is refused by key, and which tensors follow."""

import dataclasses
import inspect
import json
import math
import random
import warnings

import pytest
from pipelines import random_config

from boot.errors import BootWarning, ConfigError, FormatError, UnsupportedModel
from boot.unet_config import UNet2DConfig
from boot.unet_keys import current_name, expected_tensors, match_tensors

CIFAR10 = {  # google/ddpm-cifar10-32
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.1.1",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "sample_size": 32,
}
CAT256 = {  # google/ddpm-cat-256 and its kin
    **CIFAR10,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
    "sample_size": 256,
}
SMALL = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 4,
}


def count(shapes):
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize(
    ("config", "tensors", "numbers"), [(CIFAR10, 328, 35_746_307), (CAT256, 450, 113_673_219)]
)
def test_published_models_have_their_published_size(config, tensors, numbers):
    shapes = expected_tensors(UNet2DConfig.from_dict(config))
    assert (len(shapes), count(shapes)) == (tensors, numbers)


def test_round_trip():
    config = UNet2DConfig.from_dict(CIFAR10)
    assert UNet2DConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.sample_size == 32 and config.size_multiple == 8
    assert UNet2DConfig.from_dict({**SMALL, "sample_size": [8, 4]}).sample_size == (8, 4)
    assert UNet2DConfig(**SMALL) == UNet2DConfig.from_dict(SMALL)


def test_core_form_is_normal():
    config = UNet2DConfig.from_dict(
        {
            **SMALL,
            "act_fn": "Swish",
            "down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"],
            "up_block_types": ["UNetResAttnUpBlock2D", "UNetResUpBlock2D"],
            "time_embedding_dim": None,
        }
    )
    core = config.to_core()
    assert core["act_fn"] == "silu" and core["time_embedding_dim"] == 32
    assert core["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]
    assert core["up_block_types"] == ["AttnUpBlock2D", "UpBlock2D"]
    assert set(core) == {field.name for field in dataclasses.fields(UNet2DConfig)}
    assert config.to_dict()["down_block_types"][0] == "UNetResDownBlock2D"


def test_groups_of_the_mid_attention():
    assert UNet2DConfig(**SMALL).mid_attention_groups == 4
    shifted = {**SMALL, "resnet_time_scale_shift": "scale_shift"}
    assert UNet2DConfig(**shifted).mid_attention_groups is None
    assert UNet2DConfig(**shifted, attn_norm_num_groups=8).mid_attention_groups == 8


def test_unknown_keys_warn_private_keys_do_not():
    with pytest.warns(BootWarning, match=r"ignoring unknown keys freq_shft \(did you mean"):
        UNet2DConfig.from_dict({**SMALL, "freq_shft": 1})
    many = {f"freq_shft{i}": 1 for i in range(30)} | {"x" * 10_000: 1}
    with pytest.warns(BootWarning, match=r"freq_shft19 \(did you mean.*, and 11 more$") as caught:
        UNet2DConfig.from_dict({**SMALL, **many})
    assert len(str(caught[0].message)) < 2000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        UNet2DConfig.from_dict({**SMALL, "_boot": {"x": 1}, "_name_or_path": "x"})


@pytest.mark.parametrize(
    ("version", "warns"), [("0.0.4", True), (None, True), ("0.1.1", False), ("1.0", False)]
)
def test_a_missing_head_width_warns_for_the_oldest_files_only(version, warns):
    values = {k: v for k, v in CIFAR10.items() if k != "attention_head_dim"}
    values["_diffusers_version"] = version
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert UNet2DConfig.from_dict(values).attention_head_dim == 8
    assert [str(w.message)[:18] for w in caught] == ["attention_head_dim"] * warns


REFUSED = [
    ("_class_name", "UNet2DConditionModel", UnsupportedModel, "_class_name: 'UNet2DCond.*not supp"),
    ("_class_name", ["UNet2DModel"], TypeError, "_class_name must be a string"),
    ("auto_map", {}, UnsupportedModel, "auto_map: models that bring their own code"),
    ("down_block_types", ["SkipDownBlock2D", "DownBlock2D"], UnsupportedModel, "types.0.: 'SkipD"),
    ("down_block_types", ["DownBlock2D", "KDownBlock2D"], UnsupportedModel, "down_block_types.1."),
    ("down_block_types", ["DownBlock2D", 3], TypeError, "down_block_types.1. must be a string"),
    ("down_block_types", ["DownBlock2D"], ConfigError, "equally long.*down_block_types has 1"),
    ("down_block_types", "DownBlock2D", TypeError, "down_block_types must be a list"),
    ("up_block_types", ["AttnSkipUpBlock2D", "UpBlock2D"], UnsupportedModel, "up_block_types.0."),
    ("up_block_types", ["DownBlock2D", "UpBlock2D"], UnsupportedModel, "supported: UpBlock2D, Att"),
    ("mid_block_type", "UNetMidBlock2DCrossAttn", UnsupportedModel, "mid_block_type: 'UNetMidBl"),
    (
        "act_fn",
        "tanh",
        UnsupportedModel,
        "act_fn: 'tanh'.*supported: silu, swish, mish, gelu, relu",
    ),
    ("act_fn", None, TypeError, "act_fn must be a string"),
    ("time_embedding_type", "sinus", UnsupportedModel, "time_embedding_type: 'sinus'"),
    ("time_embedding_type", "learned", ConfigError, "num_train_timesteps must be set"),
    ("resnet_time_scale_shift", "ada_group", UnsupportedModel, "resnet_time_scale_shift: 'ada_gr"),
    ("class_embed_type", "projection", UnsupportedModel, "class_embed_type: 'projection'"),
    ("downsample_type", "fir", UnsupportedModel, "downsample_type: 'fir'"),
    ("upsample_type", None, TypeError, "upsample_type must be a string"),
    ("downsample_padding", 2, UnsupportedModel, "downsample_padding: 2 is not supported"),
    ("downsample_padding", -1, ConfigError, "downsample_padding must be an integer >= 0"),
    ("attention_head_dim", 3, UnsupportedModel, "attention_head_dim must divide .*: 3 does not"),
    ("attention_head_dim", 32, UnsupportedModel, "32 does not divide 16"),
    ("attention_head_dim", 0, ConfigError, "attention_head_dim must be an integer >= 1"),
    ("attention_head_dim", [4, 4], TypeError, "attention_head_dim must be an integer"),
    ("norm_num_groups", 3, ConfigError, "norm_num_groups must divide .*: 3 does not divide 8"),
    ("norm_num_groups", None, TypeError, "norm_num_groups must be an integer"),
    ("attn_norm_num_groups", 5, ConfigError, "attn_norm_num_groups must divide"),
    ("block_out_channels", [8, 0], ConfigError, "block_out_channels.1. must be an integer >= 1"),
    ("block_out_channels", [8, 16.0], TypeError, "block_out_channels.1. must be an integer"),
    ("block_out_channels", [8] * 3, ConfigError, "equally long"),
    ("block_out_channels", [], ConfigError, "equally long"),
    ("block_out_channels", [8, 10**6], ConfigError, "<= 65536, got 1000000"),
    ("layers_per_block", 0, ConfigError, "layers_per_block must be an integer >= 1"),
    ("layers_per_block", 10**9, ConfigError, "<= 128, got 1000000000"),
    ("in_channels", True, TypeError, "in_channels must be an integer, got True"),
    ("in_channels", "3", TypeError, "in_channels must be an integer"),
    ("out_channels", 0, ConfigError, "out_channels must be an integer >= 1"),
    ("sample_size", [8], ConfigError, "sample_size must be a size or two"),
    ("sample_size", [8, 0], ConfigError, "sample_size must be an integer >= 1"),
    ("sample_size", "8", TypeError, "sample_size must be an integer"),
    ("freq_shift", 4, ConfigError, "freq_shift must be < 4, half of block_out_channels"),
    ("norm_eps", -1e-5, ConfigError, "norm_eps must be finite and >= 0"),
    ("dropout", 1.5, ConfigError, "dropout must be finite and >= 0 and <= 1"),
    ("mid_block_scale_factor", 0, ConfigError, "mid_block_scale_factor must be finite and > 0"),
    ("flip_sin_to_cos", 1, TypeError, "flip_sin_to_cos must be True or False"),
    ("num_class_embeds", 0, ConfigError, "num_class_embeds must be an integer >= 1"),
    ("num_class_embeds", 2**40, ConfigError, "<= 16777216"),
    ("time_embedding_dim", 0, ConfigError, "time_embedding_dim must be an integer >= 1"),
]


@pytest.mark.parametrize(("key", "value", "error", "text"), REFUSED)
def test_refused_by_the_name_of_the_key(key, value, error, text):
    with pytest.raises(error, match=text):
        UNet2DConfig.from_dict({**SMALL, key: value})


# -------------------------------------------------------------------------------------- matching

FOUND = {
    "mid_block.attentions.0.query.weight": (4, 4, 1, 1),
    "mid_block.attentions.0.proj_attn.bias": (4,),
    "conv_in.weight": (4, 3, 3, 3),
}
WANTED = {
    "conv_in.weight": (4, 3, 3, 3),
    "mid_block.attentions.0.to_q.weight": (4, 4),
    "mid_block.attentions.0.to_out.0.bias": (4,),
}


def test_old_attention_names_and_shapes_are_matched():
    assert match_tensors(WANTED, FOUND, "f") == {
        "conv_in.weight": "conv_in.weight",
        "mid_block.attentions.0.to_q.weight": "mid_block.attentions.0.query.weight",
        "mid_block.attentions.0.to_out.0.bias": "mid_block.attentions.0.proj_attn.bias",
    }
    assert current_name("down_blocks.1.attentions.10.value.bias") == (
        "down_blocks.1.attentions.10.to_v.bias"
    )
    assert current_name("some.key.weight") == "some.key.weight"


def test_mismatches_are_listed_in_three_lists():
    found = {"conv_in.weight": (4, 3, 1, 1), "extra": (1,), "more": (2,)}
    with pytest.raises(FormatError) as caught:
        match_tensors(WANTED, found, "model.safetensors")
    text = str(caught.value)
    assert text.startswith("model.safetensors: the tensors do not fit the config; 2 missing: mid_")
    assert "; 2 unexpected: extra, more; 1 misshapen: conv_in.weight (found (4, 3, 1, 1)," in text


def test_only_attention_matrices_may_be_1x1_convolutions():
    with pytest.raises(FormatError, match=r"1 misshapen: linear.weight"):
        match_tensors({"linear.weight": (4, 4)}, {"linear.weight": (4, 4, 1, 1)}, "f")


def test_a_tensor_under_both_names_is_unexpected():
    both = {**FOUND, "mid_block.attentions.0.to_q.weight": (4, 4)}
    with pytest.raises(FormatError, match="1 unexpected: mid_block.attentions.0.query.weight"):
        match_tensors(WANTED, both, "f")


def test_at_most_20_names_are_listed():
    with pytest.raises(FormatError, match=r"50 missing: n0, .*n19, and 30 more$"):
        match_tensors({f"n{i}": (1,) for i in range(50)}, {}, "f")


# ----------------------------------------------------------------------------- against diffusers


def diffusers_shapes(config):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        model = diffusers.UNet2DModel(**config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("seed", range(40))
def test_tensors_are_those_of_diffusers(seed):
    config = random_config(random.Random(seed))
    assert expected_tensors(UNet2DConfig.from_dict(config)) == diffusers_shapes(config)


@pytest.mark.parametrize("config", [CIFAR10, CAT256, {}])
def test_tensors_of_published_and_default_configs_are_those_of_diffusers(config):
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    assert expected_tensors(UNet2DConfig(**plain)) == diffusers_shapes(plain)


def test_keys_and_defaults_are_those_of_diffusers():
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    parameters = dict(inspect.signature(diffusers.UNet2DModel.__init__).parameters)
    del parameters["self"]
    ours = {field.name: field.default for field in dataclasses.fields(UNet2DConfig)}
    assert ours == {name: parameter.default for name, parameter in parameters.items()}
