"""Types of the C core. Arrays are converted by copy where needed; errors are Python exceptions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

def show_config() -> dict[str, Any]: ...
def set_num_threads(num_threads: int, /) -> None: ...
def get_num_threads() -> int: ...
def conv_kernels() -> list[str]: ...
def bench_conv(*args: Any) -> Any: ...
def ops() -> dict[str, dict[str, Any]]: ...
def op_forward(
    name: str, inputs: Mapping[str, NDArray[Any]], attrs: Mapping[str, float], /
) -> Float32: ...
def op_backward(
    name: str, inputs: Mapping[str, NDArray[Any]], attrs: Mapping[str, float], dy: Float32, /
) -> dict[str, Float32]: ...
def alphas_cumprod(
    beta_schedule: str,
    num_train_timesteps: int,
    beta_start: float,
    beta_end: float,
    trained_betas: ArrayLike | None,
    rescale_zero_snr: bool,
    /,
) -> Float64: ...
def signal_from_output(
    prediction_type: str,
    output: Float32,
    x_t: Float32,
    alpha: Float64,
    sigma: Float64,
    clip: float,
    /,
) -> Float32: ...
def diffuse(y: Float32, eps: Float32, alpha: Float64, sigma: Float64, /) -> Float32: ...
def signal_step(y: Float32, f: Float32, c: Float64, /) -> Float32: ...
def signal_step_heun(y: Float32, f: Float32, f2: Float32, c: Float64, /) -> Float32: ...
def guide(f_cond: Float32, f_null: Float32, w: Float64, /) -> Float32: ...
def weighted_mse(y: Float32, target: Float32, weight: Float64, /) -> tuple[float, Float32]: ...
def weighted_huber(
    y: Float32, target: Float32, weight: Float64, c: float, /
) -> tuple[float, Float32]: ...
def adamw_step(
    weights: Float32,
    grads: Float32,
    m: Float32,
    v: Float32,
    ema: Float32 | None,
    *,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    max_grad_norm: float,
    ema_decay: float,
) -> float: ...

class UNet2D:
    def __init__(
        self,
        config: Mapping[str, Any],
        target_embedding: bool = False,
        guidance_embedding: bool = False,
    ) -> None: ...
    @property
    def parameters(self) -> list[tuple[str, tuple[int, ...], int]]: ...
    @property
    def weights(self) -> Float32: ...
    @property
    def grads(self) -> Float32: ...
    @property
    def kernels(self) -> list[tuple[str, str, float]]: ...
    @property
    def timed_kernels(self) -> int: ...
    def hint_kernels(self, kernels: Mapping[str, str], /) -> None: ...
    def weights_changed(self) -> None: ...
    def configure(
        self,
        *,
        keep_packed: bool = ...,
        gradient_checkpointing: bool = ...,
        thread_independent: bool = ...,
        memory_limit: int = ...,
    ) -> None: ...
    def memory(self) -> dict[str, int]: ...
    def share_arena(self, other: UNet2D, /) -> None: ...
    def profile(
        self, batch: int, height: int, width: int, train: bool, repeats: int, /
    ) -> list[tuple[str, str, str, float]]: ...
    def pin_kernels(self, kernels: Mapping[str, str], /) -> None: ...
    def plan(
        self, batch: int, height: int, width: int, train: bool, estimate: bool = False, /
    ) -> dict[str, Any]: ...
    def forward(
        self,
        sample: Float32,
        timesteps: Float64,
        class_labels: NDArray[Any] | None = None,
        target_timesteps: Float64 | None = None,
        guidance: Float64 | None = None,
        train: bool = False,
    ) -> Float32: ...
    def backward(self, doutput: Float32, /) -> None: ...
