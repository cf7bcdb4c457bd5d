"""What a network of ours and a callable of the user's have in common: images in, images out."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from boot.errors import check_array, check_labels

Images = NDArray[np.float32]


class ImageConfig(Protocol):
    """What is asked of any model's config: a subset of the keys of `UNet2DConfig`."""

    @property
    def in_channels(self) -> int: ...
    @property
    def sample_size(self) -> int | tuple[int, int] | None: ...
    @property
    def num_class_embeds(self) -> int | None: ...
    @property
    def num_classes(self) -> int | None: ...
    @property
    def class_embed_type(self) -> str | None: ...
    @property
    def time_embedding_type(self) -> str: ...
    @property
    def time_dim(self) -> int: ...
    @property
    def size_multiple(self) -> int: ...


class ImageModel:
    """A model of a noise process: `forward(x, timesteps, labels)`, and the checks of its inputs."""

    config: ImageConfig

    def forward(
        self,
        sample: Images,
        timesteps: NDArray[np.float64],
        class_labels: NDArray[Any] | None = None,
    ) -> Images:
        """Run checked inputs, (N,C,H,W), (N,) and (N,) or None; return (N,C,H,W) float32."""
        raise NotImplementedError

    def chunk_size(self, height: int, width: int) -> int:
        """Return how many images of this size one inference call takes."""
        raise NotImplementedError

    def image_shape(self) -> tuple[int, int, int] | None:
        """Return (C, H, W) of the images the config was made for, or None if it does not say."""
        size = self.config.sample_size
        if size is None:
            return None
        height, width = size if isinstance(size, tuple) else (size, size)
        return self.config.in_channels, height, width

    def check_sample(self, name: str, value: Any) -> Images:
        """Return images as (N,C,H,W) float32, C-contiguous; TypeError or ValueError otherwise."""
        array = check_array(name, value, (None, self.config.in_channels, None, None))
        multiple = self.config.size_multiple
        if array.shape[2] % multiple or array.shape[3] % multiple:
            raise ValueError(
                f"{name} must have a height and width that are multiples of {multiple}, got "
                f"shape {array.shape}"
            )
        return array

    def check_labels(self, name: str, value: Any, count: int) -> NDArray[Any] | None:
        """Return labels as the model wants them: (N,) int64, (N,T) float32, or None."""
        config = self.config
        if config.class_embed_type is None and config.num_class_embeds is None:
            if value is not None:
                raise ValueError(f"{name} must be None: the model is not class-conditional")
            return None
        if value is None:
            raise ValueError(f"{name} must be given: the model is class-conditional")
        if config.class_embed_type == "identity":
            return check_array(name, value, (count, config.time_dim))
        rows = config.num_classes or 2**31
        return check_labels(name, value, count, rows)
