"""The words that settings may take, and the values that stand for None: each kept once."""

from __future__ import annotations

SAMPLERS = ("ddim", "heun", "dpm")  # of whole images; `samplers` has their code
SOLVERS = ("heun", "midpoint", "euler")
DELTA_SCHEDULES = ("constant", "linear")
T_DISTRIBUTIONS = ("uniform", "progressive")
CORRECTIONS = ("none", "rollout", "distribution")
LOSSES = ("l2", "pseudo_huber")
LOSS_WEIGHTS = (
    "inverse_c2",
    "inverse_c",
    "uniform",
    "truncated_snr",
    "snr_plus_one",
    "min_snr_gamma",
)
MOMENTS_DTYPES = ("float32", "bfloat16")
REPORTERS = ("jsonl", "tensorboard", "none")

AUTO_GUIDANCE_SCALE = 1.5  # for a class-conditional teacher when guidance_scale is None
AUTO_T_MAX = 0.98  # t_max=None: the largest t up to this one ...
AUTO_ALPHA_FLOOR = 0.039  # ... with alpha_t at least this, if the teacher predicts epsilon
AUTO_CORRECTION_GUIDANCE = 0.3  # correction_guidance_scale=None: so far from 1 to guidance_scale
