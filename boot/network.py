"""A U-Net of the C core behind checks: NCHW arrays in and out, weights by their diffusers names."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boot import _core
from boot.errors import FormatError, check_timesteps, listed, shown
from boot.image_model import ImageModel
from boot.image_model import Images as Images
from boot.kernel_cache import known_kernels, remember_kernels
from boot.noise import Stream, normal
from boot.unet_config import UNet2DConfig

if TYPE_CHECKING:
    from boot.offload import Offload

TARGET_EMBEDDING = "boot_target_embedding"
GUIDANCE_EMBEDDING = "boot_guidance_embedding"
OWN_EMBEDDINGS = (TARGET_EMBEDDING, GUIDANCE_EMBEDDING)
EMBEDDING_PARTS = ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")
_TARGET_SOURCE = "time_embedding"

LARGEST_GUIDANCE_SCALE = 100.0
PACK_PARAMETERS = 8_000_000
_GUIDANCE_STRETCH = 8.0

# Inference runs in chunks of about this many activations per full-width layer: enough to keep all
# cores busy, small enough that sampling 10,000 images needs no more memory than sampling a few.
_CHUNK_ACTIVATIONS = 2**21
_CHUNK_IMAGES = 256


def guidance_position(scales: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """Return 8 log(1 + w), of which the core takes sinusoidal features; None stays None.

    The frequencies of the features are 1 ... 1e-4. With this position the highest one makes just
    under three turns over w in [0, 8], and six up to 100: fine enough to tell neighbouring scales
    apart, coarse enough to join them. The lower ones are nearly linear in the position. The
    logarithm serves small scales best, where a step of w changes an image most. (Meng et al. 2023
    feed sinusoidal features of w to their distilled students too.)
    """
    return None if scales is None else _GUIDANCE_STRETCH * np.log1p(scales)


class Network(ImageModel):
    """A `UNet2DModel`, optionally with embeddings of a student's target time and guidance scale.

    Calling it checks every input before anything is computed; `forward` is the unchecked way in for
    code that has already checked. Weights live in one flat float32 buffer; `parameters` maps the
    names that diffusers uses to views into it.
    """

    config: UNet2DConfig

    def __init__(
        self,
        config: UNet2DConfig,
        *,
        target_embedding: bool = False,
        guidance_embedding: bool = False,
        max_timestep: float | None = None,
    ) -> None:
        """Build the network with weights of zero.

        max_timestep: largest timestep accepted, N - 1 of the schedule; None for no limit.
        """
        self.config = config
        self.max_timestep = max_timestep
        self.target_embedding = target_embedding
        self.guidance_embedding = guidance_embedding
        self.core = _core.UNet2D(config.to_core(), target_embedding, guidance_embedding)
        self.core.hint_kernels(known_kernels())
        self._memory_limit: int | None = None
        self._timed = 0  # choices that the core had timed when they were last remembered
        # Brings the weights back before they are used, if they may be away; see `offload`.
        self.offload: Offload | None = None
        # Makes room for a training pass, if somebody gave it.
        self.before_training: weakref.WeakMethod[Callable[[], None]] | None = None
        self.gradients_held = False  # from backward to update: nothing may discard them
        self._parameters: dict[str, NDArray[np.float32]] = {}
        for name, shape, offset in self.core.parameters:
            size = int(np.prod(shape, dtype=np.int64))
            view = self.core.weights[offset : offset + size].reshape(shape)
            self._parameters[name] = view

    def __repr__(self) -> str:
        """Show channels, widths and size, not arrays."""
        c = self.config
        return (
            f"Network({c.in_channels} -> {c.out_channels} channels, widths "
            f"{c.block_out_channels}, {self.num_parameters:,} parameters)"
        )

    # ---------------------------------------------------------------------------------- weights

    @property
    def num_parameters(self) -> int:
        """Count of all numbers in the weights (the flat buffer also has padding)."""
        return sum(view.size for view in self._parameters.values())

    @property
    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """Views into the weights by the names that diffusers uses; the rest is as for `weights`."""
        self._bring_back()
        return self._parameters

    def _bring_back(self) -> None:
        if self.offload is not None:
            self.offload.fetch()

    def _make_room(self) -> None:
        make_room = self.before_training and self.before_training()
        if make_room:
            make_room()

    @property
    def weights(self) -> NDArray[np.float32]:
        """The flat buffer of all weights; call `weights_changed` after writing into it.

        Of a teacher that is offloaded it reads as zeros during a step's backward pass and update,
        and until the weights are asked for again.
        """
        self._bring_back()
        return self.core.weights

    def weights_changed(self) -> None:
        """Tell the core that weights were written, so that it prepares its layouts anew."""
        if self.offload is not None:
            self.offload.stay()
        self.core.weights_changed()

    def load(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Copy tensors into the weights; all of them must be there, with the right shapes.

        The embeddings of target time and guidance scale may be left out: they then start with a
        second layer of zero, so that the network's output does not depend on them yet. The first
        layer is a copy of the time embedding's, or for the guidance scale drawn from N(0, 2/C0).
        Raises FormatError, with the weights untouched, for missing, unexpected or misshapen ones.
        """
        given = dict(tensors)
        if self.target_embedding and f"{TARGET_EMBEDDING}.linear_1.weight" not in given:
            given.update(self._initial_embedding(TARGET_EMBEDDING, given))
        if self.guidance_embedding and f"{GUIDANCE_EMBEDDING}.linear_1.weight" not in given:
            given.update(self._initial_embedding(GUIDANCE_EMBEDDING, given))
        wanted = self.parameters
        missing = [name for name in wanted if name not in given]
        unexpected = [name for name in given if name not in wanted]
        misshapen = [
            f"{name} {given[name].shape} instead of {view.shape}"
            for name, view in wanted.items()
            if name in given and given[name].shape != view.shape
        ]
        if missing or unexpected or misshapen:
            raise FormatError(
                f"the tensors do not fit the config; missing: {listed(missing) or 'none'}; "
                f"unexpected: {listed(unexpected) or 'none'}; "
                f"misshapen: {listed(misshapen) or 'none'}"
            )
        for name, view in wanted.items():
            view[...] = given[name]
        self.weights_changed()

    def _initial_embedding(self, prefix: str, given: Mapping[str, Any]) -> dict[str, Any]:
        result = {}
        for part in EMBEDDING_PARTS:
            shape = self.parameters[f"{prefix}.{part}"].shape
            value = np.zeros(shape, np.float32)
            if prefix == TARGET_EMBEDDING and part.startswith("linear_1"):
                value = given.get(f"{_TARGET_SOURCE}.{part}", value)
            elif part == "linear_1.weight":
                value = normal(0, Stream.FIRST_WEIGHTS, 0, 0, shape)
                value *= np.float32(np.sqrt(2.0 / shape[1]))
            result[f"{prefix}.{part}"] = value
        return result

    @property
    def kernels(self) -> dict[str, str]:
        """The kernel chosen by timing for each layer shape and direction so far."""
        return {key: kernel for key, kernel, _ in self.core.kernels}

    def pin_kernels(self, kernels: Mapping[str, str]) -> None:
        """Use these kernels instead of timing: the same ones give the same bits again.

        Raises ValueError, before anything is pinned, for one that this version does not have.
        """
        known = _core.conv_kernels()[1:]  # the first is "auto"
        for key, kernel in kernels.items():
            if kernel not in known:
                raise ValueError(
                    f"the kernel of {shown(key)} must be one of {', '.join(known)}, got "
                    f"{shown(kernel)}"
                )
        self.core.pin_kernels(dict(kernels))

    @property
    def is_small(self) -> bool:
        """Whether it may keep packed weights, four times as large, and run in shards."""
        return self.num_parameters <= PACK_PARAMETERS

    def keep_packed(self, keep: bool) -> None:
        """Keep weights in the layout of the kernels between inference calls, or do not.

        Faster at small batches, for about four times the memory of the 3x3 weights; off at first.
        """
        self.core.configure(keep_packed=keep)

    def limit_memory(self, limit: int | None) -> None:
        """Let activations and packed weights take this many bytes at most; None: any number.

        Inference then runs in smaller chunks. A call that cannot fit raises MemoryError. Networks
        that share an arena share the limit: set it for each of them.
        """
        self._memory_limit = limit
        self.core.configure(memory_limit=limit or 0)

    def share_arena(self, other: Network) -> None:
        """Work in the memory of another network, for networks that run in turn.

        A forward of one then forbids the backward of the other's earlier `forward_train`.
        """
        self.core.share_arena(other.core)

    # ---------------------------------------------------------------------------------- running

    def __call__(
        self,
        sample: Any,
        timestep: Any,
        class_labels: Any = None,
        *,
        target_timestep: Any = None,
        guidance_scale: Any = None,
    ) -> Images:
        """Run the network on a batch: what diffusers' `unet(...).sample` returns.

        sample: (N,C,H,W) float, finite, H and W multiples of `config.size_multiple`. timestep: a
        number or (N,), integer or fractional (never truncated). class_labels: an integer or (N,)
        for a class table, (N,T) floats for `class_embed_type: identity`, None without either.
        target_timestep: like timestep, for networks with a target embedding only. guidance_scale:
        a number or (N,) in [0, 100], for networks with a guidance embedding only.
        Returns (N,C_out,H,W) float32. Raises TypeError or ValueError before computing anything.
        """
        x = self.check_sample("sample", sample)
        count = len(x)
        timesteps = self._check_timestep("timestep", timestep, count)
        labels = self.check_labels("class_labels", class_labels, count)
        targets = None
        if self.target_embedding:
            targets = self._check_timestep("target_timestep", target_timestep, count)
        elif target_timestep is not None:
            raise ValueError("target_timestep must be None: this network has no target embedding")
        scales = None
        if self.guidance_embedding:
            highest = LARGEST_GUIDANCE_SCALE
            scales = check_timesteps("guidance_scale", guidance_scale, count, 0.0, highest)
        elif guidance_scale is not None:
            raise ValueError("guidance_scale must be None: this network has no guidance embedding")
        return self.forward(x, timesteps, labels, targets, scales)

    def forward(
        self,
        sample: Images,
        timesteps: NDArray[np.float64],
        class_labels: NDArray[Any] | None = None,
        target_timesteps: NDArray[np.float64] | None = None,
        guidance_scales: NDArray[np.float64] | None = None,
    ) -> Images:
        """Run checked, C-contiguous inputs in chunks, keeping nothing for a backward pass."""
        self._bring_back()
        count = len(sample)
        position = guidance_position(guidance_scales)
        limit = self.chunk_size(sample.shape[2], sample.shape[3])
        if count <= limit:
            out = self.core.forward(sample, timesteps, class_labels, target_timesteps, position)
            self._keep_choices()
            return out
        # Chunks of one size, the last one filled up with repeats: one plan serves them all.
        chunks = -(-count // limit)
        size = -(-count // chunks)
        out = np.empty((count, self.config.out_channels, *sample.shape[2:]), np.float32)
        for begin in range(0, count, size):
            rows = np.minimum(np.arange(begin, begin + size), count - 1)
            labels = None if class_labels is None else class_labels[rows]
            targets = None if target_timesteps is None else target_timesteps[rows]
            where = None if position is None else position[rows]
            part = self.core.forward(sample[rows], timesteps[rows], labels, targets, where)
            out[begin : begin + size] = part[: count - begin]
        self._keep_choices()
        return out

    def forward_train(
        self,
        sample: Images,
        timesteps: NDArray[np.float64],
        class_labels: NDArray[Any] | None,
        target_timesteps: NDArray[np.float64] | None,
        guidance_scales: NDArray[np.float64] | None = None,
    ) -> Images:
        """Run a whole batch at once and keep what `backward` needs."""
        self._bring_back()
        self._make_room()
        position = guidance_position(guidance_scales)
        out = self.core.forward(
            sample, timesteps, class_labels, target_timesteps, position, train=True
        )
        self._keep_choices()
        return out

    def _keep_choices(self) -> None:
        """Remember kernels that were timed just now, for other processes on this machine."""
        if self.core.timed_kernels != self._timed:
            self._timed = self.core.timed_kernels
            remember_kernels(self.kernels)

    def backward(self, doutput: Images) -> None:
        """Fill the flat gradients from d loss / d output of the last `forward_train`."""
        self._make_room()
        self.core.backward(doutput)

    def chunk_size(self, height: int, width: int) -> int:
        """Return how many images of this size one inference call takes, within the memory limit."""
        per_image = height * width * self.config.block_out_channels[0]
        size = max(1, min(_CHUNK_IMAGES, _CHUNK_ACTIVATIONS // per_image))
        while self._memory_limit and size > 1:
            plan = self.core.plan(size, height, width, False, True)
            parts = ("activation_bytes", "scratch_bytes", "pack_bytes", "own_pack_bytes")
            if sum(plan[part] for part in parts) <= self._memory_limit:
                break
            size //= 2
        return size

    # ----------------------------------------------------------------------------------- checks

    def _check_timestep(self, name: str, value: Any, count: int) -> NDArray[np.float64]:
        kind = self.config.time_embedding_type
        if kind == "fourier":  # noise levels, of which the network takes the logarithm
            steps = check_timesteps(name, value, count, 0.0)
            if not (steps > 0).all():
                raise ValueError(f"{name} must be > 0 for fourier time embeddings, got 0")
            return steps
        highest = self.max_timestep
        if kind == "learned":
            highest = float((self.config.num_train_timesteps or 1) - 1)
        steps = check_timesteps(name, value, count, 0.0, highest)
        if kind == "learned" and (steps != np.rint(steps)).any():
            raise ValueError(f"{name} must be whole numbers for learned time embeddings")
        return steps


def worst_gradient(network: Network) -> str:
    """Name the parameter whose gradient is not finite, or else the one with the largest number."""
    grads, bad, largest = network.core.grads, [], ("", -1.0)
    for name, shape, offset in network.core.parameters:
        part = grads[offset : offset + math.prod(shape)]
        count = part.size - np.count_nonzero(np.isfinite(part))
        if count:
            bad.append(f"{name} has {count} NaN or Inf among {part.size} numbers")
        elif (size := float(np.abs(part).max())) > largest[1]:
            largest = (name, size)
    if not bad:
        return f"the gradient of {largest[0]} is as large as {largest[1]:g}"
    more = f", and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
    return f"the gradient of {bad[0]}{more}"
