"""The config of a diffusers `UNet2DModel`, checked key by key.

Keys, defaults and rules are those of diffusers. What `boot` cannot run is refused here, by the name
of the config key, before any weight is read.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boot.errors import (
    MOST_LISTED,
    BootWarning,
    ConfigError,
    UnsupportedModel,
    check_bool,
    check_float,
    check_int,
    check_supported,
    listed,
    nearest_hint,
    plain,
    shown,
    type_name,
)

MODEL_CLASS = "UNet2DModel"

# block type -> (has attention, how it resamples: None = as downsample_type / upsample_type says).
# Only the Attn blocks look at that option: the plain blocks always use a convolution, the Resnet
# blocks always a resampling resnet.
DOWN_BLOCKS: dict[str, tuple[bool, str | None]] = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "resnet"),
}
UP_BLOCKS: dict[str, tuple[bool, str | None]] = {
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, "resnet"),
}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "mish": "mish", "gelu": "gelu", "relu": "relu"}
TIME_EMBEDDINGS = ("positional", "fourier", "learned")
SAMPLERS = ("conv", "resnet")
TIME_SHIFTS = ("default", "scale_shift")
CLASS_EMBEDDINGS = ("timestep", "identity")

# Caps that keep a hostile config from asking for absurd work before the file is compared with it.
MAX_CHANNELS = 65_536
MAX_LEVELS = 16
MAX_LAYERS = 128
MAX_ROWS = 2**24


@dataclass(frozen=True)
class UNet2DConfig:
    """All keys of `UNet2DModel`, with the defaults of diffusers.

    Raises TypeError for a value of a wrong type, ConfigError (a ValueError) for one that no model
    can have, UnsupportedModel for one that diffusers knows and `boot` does not.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False  # x becomes 2x - 1 first
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None  # None: 4 * block_out_channels[0]
    freq_shift: float = 0
    flip_sin_to_cos: bool = True  # "positional" only; "fourier" is always sine first
    down_block_types: tuple[str, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
    )
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2  # up blocks have one more
    mid_block_scale_factor: float = 1  # the mid block's resnets and attention divide by it
    downsample_padding: int = 1  # 0: pad right and bottom by one
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0  # no effect here: boot runs and trains networks without dropout
    act_fn: str = "silu"  # of the resnets; time MLP and output always use SiLU
    attention_head_dim: int | None = 8  # channels per head; None: one head
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None  # mid block only
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True  # mid block only
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None  # rows of the table of "learned" time embeddings

    def __post_init__(self) -> None:
        """Check every key; numbers become plain Python numbers, lists become tuples."""
        self._check_counts()
        self._check_words()
        self._check_lists()
        self._check_widths()

    def _set(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)

    def _check_counts(self) -> None:
        def whole(key: str, lo: int, hi: int, optional: bool = False) -> None:
            value = getattr(self, key)
            if value is not None or not optional:
                self._set(key, check_int(key, value, lo, hi, error=ConfigError))

        for key in ("in_channels", "out_channels", "norm_num_groups"):
            whole(key, 1, MAX_CHANNELS)
        for key in ("attention_head_dim", "attn_norm_num_groups"):
            whole(key, 1, MAX_CHANNELS, optional=True)
        whole("time_embedding_dim", 1, 2**20, optional=True)
        whole("layers_per_block", 1, MAX_LAYERS)
        for key in ("num_class_embeds", "num_train_timesteps"):
            whole(key, 1, MAX_ROWS, optional=True)
        for key in ("center_input_sample", "flip_sin_to_cos", "add_attention"):
            self._set(key, check_bool(key, getattr(self, key)))
        self._set("norm_eps", check_float("norm_eps", self.norm_eps, 0, 1, error=ConfigError))
        self._set("dropout", check_float("dropout", self.dropout, 0, 1, error=ConfigError))
        self._set("freq_shift", check_float("freq_shift", self.freq_shift, error=ConfigError))
        factor = self.mid_block_scale_factor
        factor = check_float("mid_block_scale_factor", factor, 0, above=True, error=ConfigError)
        self._set("mid_block_scale_factor", factor)
        if check_int("downsample_padding", self.downsample_padding, 0, error=ConfigError) > 1:
            found = self.downsample_padding
            raise UnsupportedModel(f"downsample_padding: {found} is not supported; supported: 0, 1")
        size = self.sample_size
        if isinstance(size, (list, tuple)):
            if len(size) != 2:
                raise ConfigError(f"sample_size must be a size or two, got {shown(size)}")
            pair = [check_int("sample_size", side, 1, 2**20, error=ConfigError) for side in size]
            self._set("sample_size", tuple(pair))
        else:
            whole("sample_size", 1, 2**20, optional=True)

    def _check_words(self) -> None:
        if isinstance(self.act_fn, str):
            self._set("act_fn", self.act_fn.lower())
        for key, allowed, optional in (
            ("time_embedding_type", TIME_EMBEDDINGS, False),
            ("downsample_type", SAMPLERS, False),
            ("upsample_type", SAMPLERS, False),
            ("act_fn", tuple(ACTIVATIONS), False),
            ("resnet_time_scale_shift", TIME_SHIFTS, False),
            ("class_embed_type", CLASS_EMBEDDINGS, True),
            ("mid_block_type", ("UNetMidBlock2D",), True),
        ):
            value = getattr(self, key)
            if value is not None or not optional:
                check_supported(key, value, allowed)
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise ConfigError("num_train_timesteps must be set for learned time embeddings")

    def _check_lists(self) -> None:
        for key in ("block_out_channels", "down_block_types", "up_block_types"):
            value = getattr(self, key)
            if not isinstance(value, (list, tuple)):
                raise TypeError(f"{key} must be a list, got {shown(value)} ({type_name(value)})")
            if not 1 <= len(value) <= MAX_LEVELS or len(value) != len(self.block_out_channels):
                raise ConfigError(
                    "down_block_types, up_block_types and block_out_channels must be equally long, "
                    f"1 ... {MAX_LEVELS} entries; {key} has {len(value)}"
                )
            self._set(key, tuple(value))
        for i, width in enumerate(self.block_out_channels):
            check_int(f"block_out_channels[{i}]", width, 1, MAX_CHANNELS, error=ConfigError)
        for key, allowed in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            for i, name in enumerate(getattr(self, key)):
                check_supported(f"{key}[{i}]", _plain_block(name), tuple(allowed))

    def _check_widths(self) -> None:
        widths = self.block_out_channels
        for width in widths:
            _divides("norm_num_groups", self.norm_num_groups, width)
        if self.time_embedding_type == "positional" and widths[0] // 2 <= self.freq_shift:
            raise ConfigError(
                f"freq_shift must be < {widths[0] // 2}, half of block_out_channels[0], got "
                f"{self.freq_shift}"
            )
        mid_attention = self.mid_block_type is not None and self.add_attention
        if mid_attention and self.attn_norm_num_groups is not None:
            _divides("attn_norm_num_groups", self.attn_norm_num_groups, widths[-1])
        if self.attention_head_dim is None:
            return
        attended = [w for w, b in zip(widths, self.down_blocks, strict=True) if DOWN_BLOCKS[b][0]]
        attended += [
            w for w, b in zip(widths[::-1], self.up_blocks, strict=True) if UP_BLOCKS[b][0]
        ]
        for width in attended + ([widths[-1]] if mid_attention else []):
            if width % self.attention_head_dim:
                raise UnsupportedModel(
                    "attention_head_dim must divide the width of every block with attention: "
                    f"{self.attention_head_dim} does not divide {width}"
                )

    # ------------------------------------------------------------------------------ what it says

    @property
    def down_blocks(self) -> tuple[str, ...]:
        """Down block types without the `UNetRes` that old configs put before them."""
        return tuple(_plain_block(name) for name in self.down_block_types)

    @property
    def up_blocks(self) -> tuple[str, ...]:
        """Up block types without the `UNetRes` that old configs put before them."""
        return tuple(_plain_block(name) for name in self.up_block_types)

    @property
    def time_dim(self) -> int:
        """Width of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def num_classes(self) -> int | None:
        """Rows of the class embedding table, or None if the model has no such table."""
        return self.num_class_embeds if self.class_embed_type is None else None

    @property
    def mid_attention_groups(self) -> int | None:
        """Groups of the group norm before the mid block's attention; None: there is no norm."""
        if self.attn_norm_num_groups is not None:
            return self.attn_norm_num_groups
        return self.norm_num_groups if self.resnet_time_scale_shift == "default" else None

    @property
    def size_multiple(self) -> int:
        """Height and width of an input must be multiples of this."""
        return int(2 ** (len(self.block_out_channels) - 1))

    # --------------------------------------------------------------------------------- in and out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UNet2DConfig:
        """Make a config from the content of a diffusers `config.json`.

        Keys that start with `_` are dropped, missing keys take their defaults, unknown keys are
        reported by a BootWarning and ignored: all as diffusers does.
        """
        _check_class(values)
        known = {item.name for item in dataclasses.fields(cls)}
        kept = {key: value for key, value in values.items() if not key.startswith("_")}
        unknown = [key for key in kept if key not in known]
        if unknown:
            # Only as many as the message shows get a hint, which takes a while to find.
            first = [plain(key) + nearest_hint(key, known) for key in unknown[:MOST_LISTED]]
            unknown[:MOST_LISTED] = first
            message = f"{MODEL_CLASS} config: ignoring unknown keys {listed(unknown)}"
            warnings.warn(message, BootWarning, stacklevel=2)
        if "attention_head_dim" not in kept and _before_0_1(values.get("_diffusers_version")):
            warnings.warn(
                "attention_head_dim is missing from a config older than diffusers 0.1: it is read "
                "as 8 channels per head, as diffusers reads it, but models of that time had one "
                'head. If samples look wrong, add "attention_head_dim": null to config.json.',
                BootWarning,
                stacklevel=2,
            )
        return cls(**{key: value for key, value in kept.items() if key in known})

    def to_dict(self) -> dict[str, Any]:
        """Return every key as a JSON-ready value (tuples as lists)."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def to_core(self) -> dict[str, Any]:
        """Return every key in one normal form, for the C network builder.

        Block types have no `UNetRes`, act_fn no alias, time_embedding_dim is a number.
        """
        values = self.to_dict()
        values["down_block_types"] = list(self.down_blocks)
        values["up_block_types"] = list(self.up_blocks)
        values["act_fn"] = ACTIVATIONS[self.act_fn]
        values["time_embedding_dim"] = self.time_dim
        return values


def _plain_block(name: Any) -> Any:
    return name.removeprefix("UNetRes") if isinstance(name, str) else name


def _divides(key: str, groups: int, width: int) -> None:
    if width % groups:
        raise ConfigError(f"{key} must divide every block width: {groups} does not divide {width}")


def _check_class(values: Mapping[str, Any]) -> None:
    check_supported("_class_name", values.get("_class_name", MODEL_CLASS), [MODEL_CLASS])
    if "auto_map" in values:
        raise UnsupportedModel("auto_map: models that bring their own code are not supported")


def _before_0_1(version: object) -> bool:
    """Whether a version text is below 0.1; a missing or odd one counts as old."""
    numbers = re.match(r"(\d{1,6})\.(\d{1,6})", version) if isinstance(version, str) else None
    return numbers is None or (int(numbers[1]), int(numbers[2])) < (0, 1)
