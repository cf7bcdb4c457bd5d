"""Settings that only make sense together: what no single one of them can be checked for.

A setting that would have no effect is refused where it was surely meant to have one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from boot.errors import ConfigError, check_float

if TYPE_CHECKING:
    from boot.config import DistillConfig


def check_combinations(config: DistillConfig) -> None:
    """Raise ConfigError for settings, each within its own limits, that do not fit each other."""
    _check_guidance(config)
    if config.t_max is not None and config.t_min >= config.t_max:
        raise ConfigError(f"t_min must be < t_max = {config.t_max}, got {config.t_min}")
    if config.delta_schedule != "linear":
        _check_unused(config, "delta_start", "delta_schedule linear")


def _check_guidance(config: DistillConfig) -> None:
    start, end = config.guidance_t_min, config.guidance_t_max
    if start > end:
        raise ConfigError(f"guidance_t_min must be <= guidance_t_max = {end}, got {start}")
    lo, hi, scale = config.guidance_scale_min, config.guidance_scale_max, config.guidance_scale
    if hi is None:
        _check_unused(config, "guidance_scale_min", "guidance_scale_max")
        return
    if lo >= hi:
        raise ConfigError(f"guidance_scale_min must be < guidance_scale_max = {hi}, got {lo}")
    if scale is not None:
        check_float("guidance_scale", scale, lo, hi, error=ConfigError)


def _check_unused(config: DistillConfig, name: str, needed: str) -> None:
    """Refuse a setting that was changed and has no effect without another one."""
    default = next(option.default for option in config.options() if option.name == name)
    found = getattr(config, name)
    if found != default:
        raise ConfigError(
            f"{name} must be {default:g}, its default, without {needed}, got {found}: it has no "
            "effect"
        )
