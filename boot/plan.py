"""What a run will take before its first step: bytes by part, and seconds by measurement."""

from __future__ import annotations

import dataclasses
import html
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from boot import _core
from boot.calls import Call, phases, trace
from boot.config import DistillConfig
from boot.errors import ConfigError
from boot.moments import moments_bytes
from boot.network import Network
from boot.offload import can_offload
from boot.sizes import size_text

if TYPE_CHECKING:
    from boot.distiller import Distiller

TIMED_STEPS = 3
TIMED_WEIGHTS = 2**18  # the update is timed on copies of so many weights at most, and scaled


@dataclass(frozen=True)
class RunPlan:
    """Bytes and seconds of a distillation run, as planned for this machine.

    parts: bytes by part; they are held together at the peak of a run. working: bytes of working
    memory per call, of which the largest is in `parts`. seconds: of one step by part, {} if not
    timed. steps: of the whole run. memory_limit: of the run, None for any.
    """

    parts: dict[str, int]
    working: dict[str, int]
    train_batch_size: int
    steps: int
    memory_limit: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def peak_bytes(self) -> int:
        """Bytes that the run needs beside the interpreter and its libraries."""
        return sum(self.parts.values())

    @property
    def seconds_per_step(self) -> float | None:
        """Predicted seconds of one step; None if not timed."""
        return sum(self.seconds.values()) if self.seconds else None

    @property
    def seconds_total(self) -> float | None:
        """Predicted seconds of the run, without sample grids and checkpoints; None if not timed."""
        return None if self.seconds_per_step is None else self.seconds_per_step * self.steps

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        own = ("peak_bytes", "seconds_per_step", "seconds_total")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in own}}

    def rows(self) -> list[tuple[str, str]]:
        """Return the table that is shown, as (name, value)."""
        rows = [(name, size_text(size)) for name, size in self.parts.items()]
        rows.append(("peak memory of the run", size_text(self.peak_bytes)))
        if self.memory_limit is not None:
            rows.append(("memory_limit", size_text(self.memory_limit)))
        rows += [(f"working memory, {name}", size_text(s)) for name, s in self.working.items()]
        rows += [(f"time, {name}", f"{1e3 * s:.4g} ms") for name, s in self.seconds.items()]
        if self.seconds_per_step is not None and self.seconds_total is not None:
            rows.append(("time of a step", f"{1e3 * self.seconds_per_step:.4g} ms"))
            rows.append((f"time of {self.steps} steps", f"{self.seconds_total:.4g} s"))
        return rows

    def __repr__(self) -> str:
        """Show the table as text."""
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        lines = [f"RunPlan(train_batch_size={self.train_batch_size})"]
        return "\n".join(lines + [f"  {name:<{width}}  {value:>12}" for name, value in rows])

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        cells = [
            f"<tr><td>{html.escape(name)}</td><td style='text-align:right'>{html.escape(v)}</td>"
            for name, v in self.rows()
        ]
        return f"<table>{''.join(cells)}</table>"


# ----------------------------------------------------------------------------------- the bytes


def fixed_bytes(config: DistillConfig, teacher: int, student: int, start: int) -> dict[str, int]:
    """Return what the run holds whatever its batch size: weights, gradients, moments, average.

    teacher, student, start: bytes of the weights of these, 0 for a teacher that is no network of
    ours; start is what the student, and a critic, are copies of. A teacher that is offloaded is in
    memory when the student's gradients are not.
    """
    critic = start if config.guidance_scale_max is None else student  # it knows the scale too
    critic = critic if config.correction == "distribution" else 0
    moments = moments_bytes(config.moments_dtype, student + critic)
    parts = {
        "teacher weights": max(0, teacher - student) if config.offload_teacher else teacher,
        "student weights": student,
        "gradients": student + critic,
        "moments of AdamW": moments,
    }
    if critic > 0:
        parts["critic weights"] = critic
    if config.ema_decay > 0:
        parts["weight average"] = student
    if config.output_dir is None and 0 < config.checkpointing_steps <= config.max_train_steps:
        copies = student * (2 if config.ema_decay > 0 else 1)
        parts["copy to roll back to"] = copies + critic + moments
    return parts


def _weight_bytes(network: Network | None) -> int:
    return 0 if network is None else network.core.memory()["weights"]


def _bytes(
    distiller: Distiller, calls: list[Call], arrays: int, estimate: bool, share: float = 1.0
) -> tuple[dict[str, int], dict[str, int]]:
    """Return (parts, working memory per call) for batches of `share` times the planned size."""
    networks = distiller._networks()
    working: dict[str, int] = {}
    packs: dict[str, tuple[int, int]] = {}
    largest, grads = (0, 0), dict[str, int]()
    for call in calls:
        batch = max(1, round(call.batch * share))
        if call.fixed:  # under a limit such calls are made in as small chunks as need be
            batch = call.batch if distiller.config.memory_limit is None else 1
        core = networks[call.network].core
        plan = core.plan(batch, call.height, call.width, call.train, estimate)
        activations, scratch = plan["activation_bytes"], plan["scratch_bytes"]
        working[str(dataclasses.replace(call, batch=batch))] = activations + scratch
        largest = max(largest, (activations, scratch), key=sum)
        grads[call.network] = max(grads.get(call.network, 0), plan["grad_bytes"])
        common, own = packs.get(call.network, (0, 0))
        packs[call.network] = (max(common, plan["pack_bytes"]), own + plan["own_pack_bytes"])
    teacher, student = (_weight_bytes(networks.get(name)) for name in ("teacher", "training"))
    parts = fixed_bytes(distiller.config, teacher, student, _weight_bytes(distiller._start))
    parts["gradients"] = sum(grads.values())
    parts["packed weights"] = sum(common + own for common, own in packs.values())
    if not estimate:  # packs that plans share are counted once
        parts["packed weights"] = sum(networks[n].core.memory()["planned_packs"] for n in packs)
    parts["activations"], parts["kernel scratch"] = largest
    parts["arrays of a batch"] = round(arrays * share)
    if distiller.config.memory_limit is not None:  # what finds no room is packed at every call
        room = distiller.config.memory_limit - sum(parts.values()) + parts["packed weights"]
        parts["packed weights"] = min(parts["packed weights"], max(0, room))
    return parts, working


def make_plan(distiller: Distiller, *, timed: bool = True, estimate: bool = False) -> RunPlan:
    """Plan every call of a step, and time some rehearsed steps that leave the run as it is.

    estimate: do not choose kernels by timing: quick, and right where they are chosen later.
    """
    config = distiller.config
    calls, arrays = trace(distiller)
    parts, working = _bytes(distiller, calls, arrays, estimate)
    seconds = _rehearse(distiller) if timed else {}
    steps = config.max_train_steps
    size, limit = config.train_batch_size, config.memory_limit
    return RunPlan(parts, working, size, steps, limit, seconds)


# ---------------------------------------------------------------------------------- the seconds


def _rehearse(distiller: Distiller) -> dict[str, float]:
    """Return the seconds of a step by part, from steps whose update goes to arrays thrown away."""
    model, critic = distiller._training.model, distiller._critic
    size = min(len(model.weights), TIMED_WEIGHTS)
    seconds = {"losses": 0.0, "backward": 0.0, "update": 0.0}
    for corrected, share in phases(distiller).items():
        weights = len(model.weights)
        if corrected and critic is not None:
            weights += len(critic.model.weights)
        times: dict[str, list[float]] = {name: [] for name in seconds}
        for i in range(1 + TIMED_STEPS):
            start = perf_counter()
            losses = distiller._loss_and_gradient(distiller._draw(), corrected)
            middle = perf_counter()
            distiller._training.backward(losses.gradient)
            end = perf_counter()
            if i > 0:  # the first one warms up
                times["losses"].append(middle - start)
                times["backward"].append(end - middle)
                times["update"].append(weights / size * _time_update(distiller, size))
        for name, values in times.items():
            seconds[name] += share * median(values)
    return seconds


def _time_update(distiller: Distiller, size: int) -> float:
    """Return the seconds of an optimiser step over the first `size` weights, on copies."""
    config, model = distiller.config, distiller._training.model
    weights = model.weights[:size].copy()
    m, v = distiller._m[:size].copy(), distiller._v[:size].copy()
    average = weights.copy() if config.ema_decay > 0 else None
    gradient = np.nan_to_num(model.core.grads[:size])
    start = perf_counter()
    _core.adamw_step(
        weights,
        gradient,
        m,
        v,
        average,
        step=1,
        learning_rate=0.0,
        beta1=config.adam_beta1,
        beta2=config.adam_beta2,
        epsilon=config.adam_epsilon,
        weight_decay=0.0,
        max_grad_norm=config.max_grad_norm,
        ema_decay=config.ema_decay,
    )
    return perf_counter() - start


# ------------------------------------------------------------------------------------ the limit


def check_fixed(config: DistillConfig, network: Network) -> None:
    """Raise ConfigError if the limit does not even hold what no batch size changes.

    network: what the student is to be a copy of.
    """
    limit, weights = config.memory_limit, _weight_bytes(network)
    parts = fixed_bytes(config, weights, weights, weights)
    if limit is not None and sum(parts.values()) >= limit:
        listing = ", ".join(f"{name} {size_text(size)}" for name, size in parts.items())
        smaller = config.replace(ema_decay=0.0, moments_dtype="bfloat16")
        least = sum(fixed_bytes(smaller, *[weights] * 3).values())
        less = f"; with ema_decay 0 and moments_dtype bfloat16 they are {size_text(least)}"
        less = less if smaller != config else ""
        raise ConfigError(
            f"memory_limit must be more than {size_text(sum(parts.values()))} for this teacher, "
            f"got {size_text(limit)}: weights and optimiser alone take that ({listing}){less}"
        )


def enforce_limit(distiller: Distiller) -> None:
    """Raise ConfigError unless the run fits its memory_limit, and bind the core to that limit.

    First by an estimate that takes no time, then with the kernels that the run will use.
    """
    limit = distiller.config.memory_limit
    networks = distiller._networks().values()
    for network in networks:
        network.limit_memory(None)
    if limit is None:
        return
    calls, arrays = trace(distiller)
    for estimate in (True, False):
        parts, _ = _bytes(distiller, calls, arrays, estimate)
        if sum(parts.values()) > limit:
            for network in networks:
                network.keep_packed(False)  # slower, but smaller; what is advised counts on it
            parts, _ = _bytes(distiller, calls, arrays, estimate)
        if sum(parts.values()) > limit:
            raise ConfigError(_too_large(distiller, calls, arrays, sum(parts.values()), limit))
        bounded = ("activations", "kernel scratch", "packed weights")
        others = sum(size for name, size in parts.items() if name not in bounded)
        for network in networks:
            network.limit_memory(limit - others)


def _too_large(
    distiller: Distiller, calls: list[Call], arrays: int, needed: int, limit: int
) -> str:
    """Say by how much a run misses its limit, and what would make it fit."""
    config, advice = distiller.config, []
    fits = _largest_batch(distiller, calls, arrays, limit)
    if fits:
        advice.append(f"train_batch_size to {fits} (fits)")
    if not config.gradient_checkpointing:
        training = distiller._training.model.core
        training.configure(gradient_checkpointing=True)
        try:
            less = needed - sum(_bytes(distiller, calls, arrays, estimate=True)[0].values())
        finally:
            training.configure(gradient_checkpointing=False)
        if less > 0:
            advice.append(f"gradient_checkpointing to true (saves {size_text(less)})")
    if not config.offload_teacher and can_offload(distiller.teacher):
        saved = min(map(_weight_bytes, (distiller.teacher.network, distiller._training.model)))
        advice.append(f"offload_teacher to true (saves {size_text(saved)})")
    if config.moments_dtype == "float32":
        saved = sum(a.nbytes for name, a in distiller._buffers().items() if name[-1] in "mv") // 2
        advice.append(f"moments_dtype to bfloat16 (saves {size_text(saved)})")
    if distiller._critic is not None:
        saved = _weight_bytes(distiller._critic.model)  # and as much for its gradient
        saved = 2 * saved + moments_bytes(config.moments_dtype, saved)
        advice.append(f"correction to none (saves {size_text(saved)})")
    if config.ema_decay > 0:
        saved = _weight_bytes(distiller._average.model)
        advice.append(f"ema_decay to 0 (saves {size_text(saved)})")
    return (
        f"memory_limit: the run needs {size_text(needed)}, the limit is {size_text(limit)}; raise "
        f"it, or set {', or '.join(advice) or 'a smaller teacher'}"
    )


def _largest_batch(distiller: Distiller, calls: list[Call], arrays: int, limit: int) -> int:
    """Return the largest train_batch_size that fits, 0 if none does."""
    size = distiller.config.train_batch_size
    low, high = 0, size
    while high - low > 1:
        middle = (low + high) // 2
        parts, _ = _bytes(distiller, calls, arrays, True, middle / size)
        low, high = (middle, high) if sum(parts.values()) <= limit else (low, middle)
    return low
