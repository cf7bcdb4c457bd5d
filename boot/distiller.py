"""Distillation: the training loop of BOOT, and the run around it.

Signal-ODE, notation and equations: see `signal_ode`. The method is `Distiller._loss_and_gradient`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boot import _core, resume, steps
from boot.callbacks import Callback, History, TrainState
from boot.check import CheckReport, check
from boot.checkpoint import resolve_resume
from boot.config import DistillConfig
from boot.correction import Advance, Aims
from boot.critic import Critic, Pull, takes_part
from boot.draws import Draw, draw_step
from boot.errors import ConfigError, check_bool, check_computed, shown, type_name
from boot.evaluation import evaluate_student
from boot.fit import run
from boot.htmlparts import facts_table
from boot.inputs import drawn_labels
from boot.moments import zero_moments
from boot.network import Images, Network
from boot.offload import take_turns
from boot.plan import RunPlan, check_fixed, enforce_limit, make_plan
from boot.presets import preset_config
from boot.resolve import clip_for, critic_guidance_for, guidance_for, resolve_config
from boot.schedule import Float64
from boot.signal_ode import diffuse, substeps
from boot.student import Student
from boot.student_info import StudentInfo
from boot.student_init import starting_network
from boot.targets import delta, distance, weights
from boot.teacher import Teacher


class Losses(NamedTuple):
    """The terms of the loss, and its gradient with respect to the student's output.

    critic: the critic's own loss; None in steps without one.
    """

    bootstrap: float
    boundary: float
    critic: float | None
    gradient: Images


class Distiller:
    """Distils a diffusion teacher into a one-step student, without data.

        distiller = Distiller("path/to/teacher", train_batch_size=32)
        distiller.fit(max_train_steps=1000)
        images = distiller.student.sample(16)

    `step()` does one training step, for loops of your own. `config` holds every setting, resolved.
    """

    def __init__(
        self,
        teacher: Teacher | str | os.PathLike[str],
        config: DistillConfig | None = None,
        *,
        student: Any = None,
        preset: str | None = None,
        **overrides: Any,
    ) -> None:
        """Prepare a run; with `resume_from_checkpoint`, load the state it continues from.

        teacher: a Teacher or the folder of one. student: what the student starts from: a
        UNet2DConfig or its dict (random weights), or the folder of a model; None: a copy of the
        teacher, see `student_init`. preset: "fast", "default" or "quality" (see `presets`), in
        place of a config. overrides: settings of DistillConfig by name; they win.
        Raises ConfigError for unknown or unfit settings, FileExistsError for an output_dir that
        has files (unless resuming), ResumeMismatch or CheckpointError for a bad checkpoint.
        """
        if config is not None and not isinstance(config, DistillConfig):
            raise TypeError(f"config must be a DistillConfig, got {shown(config)}")
        if preset is not None:
            if config is not None:
                raise ConfigError("config and preset exclude each other: give one of them")
            config = preset_config(preset)
        config = (config or DistillConfig()).replace(**overrides)
        if isinstance(teacher, (str, os.PathLike)):
            teacher = Teacher.from_pretrained(teacher)
        elif not isinstance(teacher, Teacher):
            raise TypeError(f"teacher must be a Teacher or a folder, got {type_name(teacher)}")
        self.teacher = teacher
        self._start = starting_network(student, teacher, config.seed)
        self.config = resolve_config(config, teacher, self._start)
        self.state = TrainState()
        self.output_dir = resume.open_output(self.config, teacher)
        if self.config.num_threads is not None:
            _core.set_num_threads(self.config.num_threads)
        self._settle()
        self._busy = threading.Lock()
        check_fixed(self.config, self._start)
        self._make_networks()
        enforce_limit(self)
        self._origin = resolve_resume(self.config.resume_from_checkpoint, self.output_dir)
        self._snapshot: resume.Snapshot | None = None
        resume.begin(self)

    def _settle(self) -> None:
        """Work out what follows from the config and stays the same for the whole run."""
        config, teacher = self.config, self.teacher
        self._schedule = teacher.schedule
        self._guidance = guidance_for(config, teacher)
        self._clip = clip_for(config, teacher)
        self._labels = drawn_labels(teacher.model, self._guidance)
        self._t_max, self._t_min = float(config.t_max or 1.0), config.t_min
        # A network with a table of time embeddings knows whole timesteps only.
        networks = (teacher.model, self._start)
        whole_steps = any(n.config.time_embedding_type == "learned" for n in networks)
        self._grid = self._schedule.num_train_timesteps if whole_steps else None
        with_boundary = config.boundary_weight > 0 and config.boundary_fraction > 0
        rows = max(1, round(config.train_batch_size * config.boundary_fraction))
        self._boundary_rows = rows if with_boundary else 0
        rows = max(1, round(config.train_batch_size * (config.correction_fraction or 0.0)))
        self._rollout_rows = rows if config.correction == "rollout" else 0

    def _make_networks(self) -> None:
        """Create the student in training, its weight average, and the optimiser's moments.

        The average is itself a student: its weights are the buffer that the optimiser averages
        into, so it can be sampled at any step and costs no copy.
        """
        info = self._student_info()
        self._training = Student.from_teacher(self.teacher, info, self._start)
        self._average = self._training
        if self.config.ema_decay > 0:
            self._average = Student.from_teacher(self.teacher, info, self._start)
        self._critic: Critic | None = None
        if self.config.correction == "distribution":
            guidance = critic_guidance_for(self.config, self.teacher)
            self._critic = Critic(self.config, self.teacher, self._start, self._clip, guidance)
        # They run in turn, so one working memory serves them all.
        for network in self._networks().values():
            if network is not self._start:
                network.share_arena(self._start)
            network.core.configure(thread_independent=self.config.thread_independent)
        training = self._training.model
        training.core.configure(in_training=True)
        training.core.configure(gradient_checkpointing=self.config.gradient_checkpointing)
        if self.config.offload_teacher:
            take_turns(self.teacher, training)
        self._m, self._v = zero_moments(self.config.moments_dtype, training.weights)

    def __repr__(self) -> str:
        return f"Distiller({self.teacher!r}, step {self.state.step}/{self.config.max_train_steps})"

    def _repr_html_(self) -> str:
        """Show the run and its student in a notebook."""
        facts = {"teacher": repr(self.teacher), "output_dir": self.output_dir}
        steps = f"step {self.state.step} of {self.config.max_train_steps}"
        return facts_table(facts, f"Distillation, {steps}") + self.student._repr_html_()

    # ------------------------------------------------------------------------------ the method

    def _loss_and_gradient(self, draw: Draw, corrected: bool | None = None) -> Losses:
        """Compute the BOOT loss of one batch, and its gradient with respect to y.

            y* = y_t + C (f - y_t)        f = teacher(alpha_t y_t + sigma_t eps, t)   (or Heun)
            loss = omega || y(eps, s) - y* ||^2  +  beta || y(eps, t_max) - f(eps, t_max) ||^2

        Only y(eps, s) and y(eps, t_max) are differentiated. The boundary term takes the first rows
        of the batch again at t_max, and a correction follows the first rows further (see
        `correction`) or judges their images (see `critic`): all ride along in the calls that are
        made anyway. corrected: whether there is a critic in this step; None: as the step says.
        """
        config, student = self.config, self._training
        eps, t = draw.eps, draw.t
        delta = self._delta()
        s = np.maximum(t - delta, self._t_min)
        size, ends = len(eps), np.arange(self._boundary_rows)
        t_end = np.full(len(ends), self._t_max)

        judged = np.arange(self._judged_rows(corrected))
        t_image = np.full(len(judged), self._t_min)
        first = draw.again(judged)
        y_t = student.signal(first.eps, _join(t, t_image), first.labels, first.w)
        check_computed("the student's signal y(eps, t)", y_t)
        y_t, images = y_t[:size], y_t[size:]
        pull = self._judge(images, draw, judged)
        x_t = diffuse(self._schedule, y_t, eps, t)
        x_end = self._schedule.start(eps[ends], self._t_max) if len(ends) else eps[:0]
        f = self._f(_join(x_t, x_end), _join(t, t_end), draw.again(ends))
        f, f_end = f[:size], f[size:]
        aims = Aims(np.arange(size), t, s, self._solve(y_t, f, t, s, draw))
        if self._rollout_rows > 0:
            steps = config.correction_steps
            aims = aims.rollout(self._rollout_rows, steps, delta, self._t_min, self._go_on(draw))

        asked = draw.again(_join(aims.rows[size:], ends, judged))
        times = _join(aims.s, t_end, t_image)
        y = student.signal_train(asked.eps, times, asked.labels, asked.w)
        omega = weights(config, self._schedule, aims.t, aims.s)
        omega[size:] *= (config.correction_weight or 0.0) * (aims.s < aims.t)[size:]
        beta = np.full(len(ends), config.boundary_weight)
        y, y_end = y[: len(aims.rows)], y[len(aims.rows) :][: len(ends)]
        bootstrap, dy = distance(config, y, aims.target, omega / size)
        boundary, dy_end = distance(config, y_end, f_end, beta / max(len(ends), 1))
        return Losses(bootstrap, boundary, pull.loss, _join(dy, dy_end, pull.gradient))

    def _judged_rows(self, corrected: bool | None) -> int:
        """How many images of the student the critic sees in this step."""
        now = takes_part(self.config, self.state.step) if corrected is None else corrected
        return self._critic.rows if now and self._critic is not None else 0

    def _judge(self, images: Images, draw: Draw, rows: NDArray[np.int64]) -> Pull:
        """What the critic says about the images of some rows; here its gradient is made."""
        if self._critic is None or len(images) == 0:
            return Pull(None, images)
        done, some = self.state.critic_updates, draw.take(rows)
        return self._critic.judge(
            self.config, images, some.labels, self.state.step, done, self._grid, some.w
        )

    def _delta(self) -> float:
        """The step of the Signal-ODE now, on the grid of a network that knows whole steps only."""
        now = delta(self.config, self.state.step)
        return now if self._grid is None else self._schedule.snap(now)

    def _solve(self, y: Images, f: Images, t: Float64, s: Float64, draw: Draw) -> Images:
        """The teacher's y_s from y at t, where its signal is f: y* of the loss."""
        config, eps = self.config, draw.eps

        def signal(x: Images, t: Float64) -> Images:
            return self._f(x, t, draw)

        count = config.teacher_substeps
        return substeps(self._schedule, signal, eps, y, f, t, s, config.solver, count, self._grid)

    def _go_on(self, draw: Draw) -> Advance:
        """The same for some rows of a batch, from a y that the teacher has not seen yet."""

        def go(rows: NDArray[np.int64], y: Images, t: Float64, s: Float64) -> Images:
            some = draw.take(rows)
            f = self._f(diffuse(self._schedule, y, some.eps, t), t, some)
            return self._solve(y, f, t, s, some)

        return go

    def _f(self, x: Images, t: Float64, draw: Draw) -> Images:
        """The guided, clipped signal of the teacher at (x, t)."""
        return self.teacher.signal(x, t, draw.labels, self._guidance, self._clip, draw.w)

    def _draw(self) -> Draw:
        """Draw noise, labels and times of the current step: functions of (seed, step, sample)."""
        shape, step = self.teacher.model.image_shape(), self.state.step
        assert shape is not None  # resolve_config has refused such a teacher
        lowest = min(self._t_min + self._delta(), self._t_max)
        return draw_step(self.config, step, shape, self._labels, self._t_min, lowest, self._grid)

    def _update(self, losses: Losses, learning_rate: float) -> float:
        """Backpropagate, and update weights, moments and average; return the gradient's norm."""
        config, model, updates = self.config, self._training.model, self.state.updates
        self._training.backward(losses.gradient)
        averaged = self._average is not self._training
        norm = _core.adamw_step(
            model.weights,
            model.core.grads,
            self._m,
            self._v,
            self._average.model.weights if averaged else None,
            step=updates + 1,
            learning_rate=learning_rate,
            beta1=config.adam_beta1,
            beta2=config.adam_beta2,
            epsilon=config.adam_epsilon,
            weight_decay=config.adam_weight_decay,
            max_grad_norm=config.max_grad_norm,
            # Early on a long average would still be mostly the teacher: shorten it (as many do).
            ema_decay=min(config.ema_decay, (1 + updates) / (10 + updates)),
        )
        model.weights_changed()
        self._average.model.weights_changed()
        if self._critic is not None and losses.critic is not None:
            self._critic.update(config, self.state.critic_updates)
        return norm

    # ------------------------------------------------------------------------------- one step

    def step(self) -> dict[str, float]:
        """Do one training step and return its numbers.

        Keys: step (finished steps), loss, loss_bootstrap, loss_boundary, learning_rate, grad_norm
        (before clipping), skipped (steps without update so far), rollbacks. The learning rate
        follows the course set by max_train_steps. A step with a NaN or Inf in teacher, loss or
        gradient changes no weight and is counted; three in a row, or ten of 1,000, bring back the
        last good checkpoint at half the learning rate; the third time TrainingDiverged is raised
        (docs/reliability.md). Ctrl-C is held back until the step is complete. Raises RuntimeError
        if another thread is in a step.
        """
        return steps.take(self)

    # -------------------------------------------------------------------------------- the run

    def plan(self, *, timed: bool = True) -> RunPlan:
        """Say what the run will take before its first step: bytes by part, and seconds.

        timed: rehearse a few steps, which change nothing; False: bytes only. Returns a RunPlan,
        which prints as a table. Raises RuntimeError if another thread is in a step.
        """
        with steps.alone(self):
            return make_plan(self, timed=check_bool("timed", timed))

    def fit(
        self, max_train_steps: int | None = None, callbacks: Iterable[Callback] = ()
    ) -> History:
        """Train up to a total number of steps, and save the student if there is an output_dir.

        max_train_steps: total, counted from the start of the run; None: as the config says. A run
        that is there already does nothing. callbacks: beside the built-in ones. Ctrl-C, SIGTERM and
        SIGUSR1 stop at a step border (a second one at once) with a checkpoint; `fit` may then be
        called again. Returns a History whose `interrupted` says whether that happened; after
        SIGTERM and SIGUSR1 raises SystemExit(75) instead.

        A checkpoint that cannot be written is a warning, and tried again at the next one that is
        due; CheckpointError is raised only if the run stops early without, or if the student cannot
        be saved at the end. Raises TeacherError for a teacher that cannot be distilled, before
        anything is written, TrainingDiverged (see `step`), and RuntimeError if another process
        trains in the same folder.
        """
        return run(self, max_train_steps, callbacks)

    # ---------------------------------------------------------------------------- the student

    @property
    def student(self) -> Student:
        """The student as it is now: the weight average, or the raw weights if ema_decay is 0.

        It shares its weights with the run; save it, or load the saved one, to keep it.
        """
        self._average.info = self._student_info()
        return self._average

    def _student_info(self) -> StudentInfo:
        config = self.config
        return StudentInfo(
            t_max=self._t_max,
            t_min=self._t_min,
            clip_sample=self._clip.active,
            clip_sample_range=self._clip.largest,
            guidance_scale=1.0 if config.guidance_scale is None else config.guidance_scale,
            null_class_label=config.null_class_label,
            guidance_scale_min=config.guidance_scale_min if config.guidance_scale_max else None,
            guidance_scale_max=config.guidance_scale_max,
            teacher={"name": self.teacher.name, "sha256": self.teacher.fingerprint},
            training={"steps": self.state.step, "config": config.to_dict()},
        )

    def check(self, *, class_labels: Any = None) -> CheckReport:
        """Look for what would waste the run, in seconds; see `check.check`. Trains nothing."""
        return check(self, class_labels=class_labels)

    def evaluate(self, num_images: int = 2000, **options: Any) -> dict[str, Any]:
        """Compare the student with its teacher, and with real images if a reference is given.

        See `evaluation.evaluate_student` for the options and the numbers.
        """
        return evaluate_student(self.student, self.teacher, num_images=num_images, **options)

    # --------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self) -> Path:
        """Write `output_dir/checkpoint-<step>` and delete the oldest beyond the limit.

        Raises ValueError without an output_dir, CheckpointError if it cannot be written, and
        RuntimeError if another thread is in a step, whose arrays are half of the next one's.
        """
        with steps.alone(self):
            return resume.save(self)

    def _buffers(self) -> dict[str, NDArray[Any]]:
        buffers = {"weights": self._training.model.weights, "m": self._m, "v": self._v}
        if self._average is not self._training:
            buffers["ema"] = self._average.model.weights
        return buffers if self._critic is None else buffers | self._critic.buffers()

    def _networks(self) -> dict[str, Network]:
        networks = {"training": self._training.model, "average": self._average.model}
        if self.teacher.network is not None:
            networks["teacher"] = self.teacher.network
        if self._critic is not None:
            networks["critic"] = self._critic.model
        return networks


def _join(*parts: Any) -> Any:
    """Put arrays behind each other; the first itself, not a copy, if the others are empty."""
    return np.concatenate(parts) if any(len(part) for part in parts[1:]) else parts[0]
