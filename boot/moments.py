"""AdamW's moments, m and v, as arrays: float32, or the bits of bfloat16 in uint16.

What bfloat16 means for an update is in csrc/optim/adamw.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Moments = NDArray[np.float32] | NDArray[np.uint16]

_STORED = {"float32": np.float32, "bfloat16": np.uint16}


def zero_moments(dtype: str, weights: NDArray[np.float32]) -> tuple[Moments, Moments]:
    """Return m and v of flat weights before the first update. dtype: float32 or bfloat16."""
    return np.zeros_like(weights, _STORED[dtype]), np.zeros_like(weights, _STORED[dtype])


def moments_bytes(dtype: str, weights: int) -> int:
    """Return the bytes that m and v of so many bytes of float32 weights take together."""
    return 2 * weights * np.dtype(_STORED[dtype]).itemsize // 4


def put(buffer: NDArray[Any], values: NDArray[np.float32]) -> None:
    """Copy numbers into an array of weights or moments; of bfloat16 they must be ones already."""
    if buffer.dtype == np.uint16:
        np.right_shift(values.view(np.uint32), 16, out=buffer, casting="unsafe")
    else:
        buffer[...] = values
