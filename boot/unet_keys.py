"""The tensors of a diffusers `UNet2DModel`: names and shapes from the config, old names included.

This is the one list of key names. A file is compared with it by its header alone, before any weight
is read, and every difference is reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from boot.errors import FormatError, listed
from boot.unet_config import DOWN_BLOCKS, UP_BLOCKS, UNet2DConfig

# Up to diffusers 0.16 the attention matrices had these names.
LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEGACY_NAME = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
_ATTENTION_MATRIX = re.compile(r".*\.attentions\.\d+\.(to_q|to_k|to_v|to_out\.0)\.weight")


def current_name(name: str) -> str:
    """Translate a tensor name from before diffusers 0.17; other names pass unchanged."""
    match = _LEGACY_NAME.fullmatch(name)
    return f"{match[1]}.{LEGACY_ATTENTION[match[2]]}.{match[3]}" if match else name


def match_tensors(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, str]:
    """Pair the expected tensors with those of a file: {expected name: name in the file}.

    expected, found: shapes by name. Old attention names are accepted, and attention matrices of
    shape (C, C, 1, 1), which conversions from 1x1 convolutions leave. Raises FormatError, starting
    with `where`, that lists missing, unexpected and misshapen tensors, up to 20 names of each.
    """
    stored: dict[str, str] = {}
    for name in found:
        target = current_name(name)
        # A file with both the old and the new name keeps the old one as an unexpected tensor.
        stored[name if target in found else target] = name
    missing = [name for name in expected if name not in stored]
    unexpected = [name for name in stored if name not in expected]
    misshapen = [
        f"{name} (found {found[stored[name]]}, expected {shape})"
        for name, shape in expected.items()
        if name in stored and not _fits(name, found[stored[name]], shape)
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    problems = [f"{len(names)} {kind}: {listed(names)}" for kind, names in lists if names]
    if problems:
        raise FormatError(f"{where}: the tensors do not fit the config; {'; '.join(problems)}")
    return {name: stored[name] for name in expected}


def _fits(name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if found == shape:
        return True
    return found == (*shape, 1, 1) and _ATTENTION_MATRIX.fullmatch(name) is not None


def expected_tensors(config: UNet2DConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of the model, in the order of a forward pass.

    Convolutions are (out, in, height, width), linear layers (out, in). Names are those that
    diffusers writes today; ddpm-cifar10-32 has 328 tensors with 35,746,307 numbers.
    """
    tree = _KeyTree(config)
    tree.head()
    tree.down()
    tree.mid()
    tree.up()
    tree.norm("conv_norm_out", config.block_out_channels[0])
    tree.conv("conv_out", config.block_out_channels[0], config.out_channels)
    return tree.shapes


class _KeyTree:
    """Collects names and shapes; one method per kind of layer or block."""

    def __init__(self, config: UNet2DConfig) -> None:
        self.config = config
        self.shapes: dict[str, tuple[int, ...]] = {}

    def linear(self, name: str, inputs: int, outputs: int) -> None:
        self.shapes[f"{name}.weight"] = (outputs, inputs)
        self.shapes[f"{name}.bias"] = (outputs,)

    def conv(self, name: str, inputs: int, outputs: int, kernel: int = 3) -> None:
        self.shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        self.shapes[f"{name}.bias"] = (outputs,)

    def norm(self, name: str, width: int) -> None:
        self.shapes[f"{name}.weight"] = (width,)
        self.shapes[f"{name}.bias"] = (width,)

    def mlp(self, name: str, inputs: int) -> None:
        self.linear(f"{name}.linear_1", inputs, self.config.time_dim)
        self.linear(f"{name}.linear_2", self.config.time_dim, self.config.time_dim)

    def resnet(self, name: str, inputs: int, outputs: int) -> None:
        halves = 2 if self.config.resnet_time_scale_shift == "scale_shift" else 1
        self.norm(f"{name}.norm1", inputs)
        self.conv(f"{name}.conv1", inputs, outputs)
        self.linear(f"{name}.time_emb_proj", self.config.time_dim, halves * outputs)
        self.norm(f"{name}.norm2", outputs)
        self.conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            self.conv(f"{name}.conv_shortcut", inputs, outputs, kernel=1)

    def attention(self, name: str, width: int, with_norm: bool = True) -> None:
        if with_norm:
            self.norm(f"{name}.group_norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            self.linear(f"{name}.{part}", width, width)

    def sampler(self, name: str, width: int, kind: str) -> None:
        if kind == "resnet":
            self.resnet(name, width, width)
        else:
            self.conv(f"{name}.conv", width, width)

    def head(self) -> None:
        config, width = self.config, self.config.block_out_channels[0]
        self.conv("conv_in", config.in_channels, width)
        features = 2 * width if config.time_embedding_type == "fourier" else width
        if config.time_embedding_type == "fourier":
            self.shapes["time_proj.weight"] = (width,)
        elif config.time_embedding_type == "learned":
            self.shapes["time_proj.weight"] = (config.num_train_timesteps or 0, width)
        self.mlp("time_embedding", features)
        if config.num_classes is not None:
            self.shapes["class_embedding.weight"] = (config.num_classes, config.time_dim)
        elif config.class_embed_type == "timestep":
            self.mlp("class_embedding", features)

    def down(self) -> None:
        widths = self.config.block_out_channels
        for i, (block, width) in enumerate(zip(self.config.down_blocks, widths, strict=True)):
            has_attention, kind = DOWN_BLOCKS[block]
            for j in range(self.config.layers_per_block):
                inputs = widths[max(i - 1, 0)] if j == 0 else width
                self.resnet(f"down_blocks.{i}.resnets.{j}", inputs, width)
                if has_attention:
                    self.attention(f"down_blocks.{i}.attentions.{j}", width)
            if i < len(widths) - 1:
                name = f"down_blocks.{i}.downsamplers.0"
                self.sampler(name, width, kind or self.config.downsample_type)

    def mid(self) -> None:
        if self.config.mid_block_type is None:
            return
        width = self.config.block_out_channels[-1]
        self.resnet("mid_block.resnets.0", width, width)
        if self.config.add_attention:
            with_norm = self.config.mid_attention_groups is not None
            self.attention("mid_block.attentions.0", width, with_norm)
        self.resnet("mid_block.resnets.1", width, width)

    def up(self) -> None:
        widths = self.config.block_out_channels[::-1]
        last = len(widths) - 1
        for i, (block, width) in enumerate(zip(self.config.up_blocks, widths, strict=True)):
            has_attention, kind = UP_BLOCKS[block]
            for j in range(self.config.layers_per_block + 1):
                below = widths[max(i - 1, 0)] if j == 0 else width
                is_last = j == self.config.layers_per_block
                skip = widths[min(i + 1, last)] if is_last else width
                self.resnet(f"up_blocks.{i}.resnets.{j}", below + skip, width)
                if has_attention:
                    self.attention(f"up_blocks.{i}.attentions.{j}", width)
            if i < last:
                self.sampler(
                    f"up_blocks.{i}.upsamplers.0", width, kind or self.config.upsample_type
                )
