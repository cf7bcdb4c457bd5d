"""`Distiller.check()`: what would go wrong, found in seconds and before the first training step.

The numbers behind the findings come from `probe`; here they get their limits and their words.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from boot.callable_model import BadOutput
from boot.errors import TeacherError, check_labels
from boot.guidance import Guidance
from boot.htmlparts import bullets, facts_table
from boot.network import Images
from boot.plan import make_plan
from boot.probe import SCHEDULE_LIMIT, TYPE_LIMIT, Evidence, Probe, time_of
from boot.schedule import Schedule
from boot.scheduler_config import TEACHER_PREDICTIONS
from boot.sizes import size_text

if TYPE_CHECKING:
    from boot.distiller import Distiller

SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid", "beta_start": 1e-4, "beta_end": 0.02},
}
CLEARLY_BETTER = 0.6  # another declaration is named if its score is below this part of ours
MIXING_WARNING = 0.1  # mixing score of a teacher that no declaration of its type explains
TERMINAL_LIMIT = 0.15  # alpha / sigma at t_max: more, and pure noise is not where the ODE starts
RANGE_LIMIT = 1.2  # of unclipped images: samples are clipped to [-1, 1]
NULL_LIMIT = 0.5  # see Probe.null_distance; measured: 0.30 and 0.32, classes 0.64 to 2.3
SAME = 1e-6  # relative difference of outputs below which something has no influence

_log = logging.getLogger("boot")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. code: a stable word for programs; message: a sentence for people."""

    code: str
    message: str

    def __str__(self) -> str:
        """Show code and message."""
        return f"{self.code}: {self.message}"


@dataclass(frozen=True)
class CheckReport:
    """What a check found: `problems` (training would be wasted), `warnings`, and `facts`."""

    facts: dict[str, Any]
    problems: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no problem; warnings are allowed."""
        return not self.problems

    def raise_for_problems(self) -> None:
        """Raise TeacherError with every problem, if there is one."""
        if self.problems:
            raise TeacherError("; ".join(map(str, self.problems)))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {"ok": self.ok, **dataclasses.asdict(self)}

    def __repr__(self) -> str:
        """Show facts and findings as lines of text."""
        width = max(map(len, self.facts), default=0)
        lines = [f"{name:<{width}}  {_text(value)}" for name, value in self.facts.items()]
        lines += [f"PROBLEM  {finding}" for finding in self.problems]
        lines += [f"warning  {finding}" for finding in self.warnings]
        verdict = "no problem found" if self.ok else f"{len(self.problems)} problem(s)"
        return "\n".join([*lines, f"{verdict}, {len(self.warnings)} warning(s)"])

    def _repr_html_(self) -> str:
        """Show the same in a notebook."""
        parts = [facts_table({name: _text(value) for name, value in self.facts.items()})]
        for title, findings in (("Problems", self.problems), ("Warnings", self.warnings)):
            if findings:
                parts.append(f"<strong>{title}</strong>{bullets(findings)}")
        return "".join(parts)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check(distiller: Distiller, *, quick: bool = False, class_labels: Any = None) -> CheckReport:
    """Look for what would waste a training run. Changes nothing in the run and draws none of its
    random numbers.

    quick: only what a few teacher calls tell, as `fit` does before its first step. class_labels:
    labels that the student is wanted for; ValueError if the teacher is unconditional or has no
    such class. Returns a CheckReport; a teacher that fails is a problem in it, not an exception.
    """
    wanted = [] if class_labels is None else _check_wanted_labels(distiller, class_labels)
    report = CheckReport(_setup(distiller))
    _check_terminal(distiller, report)
    probe = Probe.of(distiller.teacher, distiller._labels, distiller._t_max)
    try:
        if _check_influences(distiller, probe, report):
            evidence = probe.evidence(quick=quick)
            _check_type(probe, evidence, report, quick)
            if not report.problems:
                _check_null_label(distiller, probe, evidence, report)
                _check_schedule(probe, evidence, report, quick)
                _check_range(distiller, probe, evidence, report)
        if not quick and not report.problems:
            report.facts.update(_cost(distiller))
    except (TeacherError, FloatingPointError) as problem:
        code = "bad_output" if isinstance(problem, BadOutput) else "not_finite"
        report.problems.append(Finding(code, str(problem)))
    report.problems.extend(wanted)  # last: what else is found does not depend on it
    return report


def check_before_training(distiller: Distiller) -> None:
    """Run the quick part: raise TeacherError for a problem, log warnings. For `fit`."""
    report = check(distiller, quick=True)
    for finding in report.warnings:
        _log.warning("check: %s", finding)
    try:
        report.raise_for_problems()
    except TeacherError as problem:
        raise TeacherError(f"{problem} (check_teacher=False trains all the same)") from None


# ---------------------------------------------------------------------------------- the setup


def _check_wanted_labels(distiller: Distiller, class_labels: Any) -> list[Finding]:
    teacher, guidance = distiller.teacher, distiller._guidance
    if teacher.num_classes is None:
        raise ValueError(f"class_labels must be None: {teacher.name!r} is an unconditional teacher")
    wanted = check_labels("class_labels", class_labels, np.size(class_labels), teacher.num_classes)
    if guidance.active and guidance.null_label in wanted:
        message = (
            f"label {guidance.null_label} means 'no class' in this run, which does not train it; "
            "set guidance_scale to 1, or another null_class_label"
        )
        return [Finding("wanted_label", message)]
    return []


def _setup(distiller: Distiller) -> dict[str, Any]:
    teacher, schedule, t_max = distiller.teacher, distiller.teacher.schedule, distiller._t_max
    kind = teacher.prediction_type
    alpha, sigma = (float(value) for value in schedule.alpha_sigma(t_max))
    default = schedule.default_t_max(kind)
    reason = "as set"
    if t_max == default:
        reason = "default: the largest t up to 0.98"
        if kind == "epsilon":
            reason += " with alpha >= 0.039, as errors of an epsilon teacher grow by 1/alpha"
    guidance = distiller.config.guidance_scale
    return {
        "teacher": teacher.name,
        "images": "x".join(map(str, teacher.model.image_shape() or ())),
        "prediction_type": kind,
        "terminal_alpha": float(schedule.alpha_sigma(1.0)[0]),
        "t_max": f"{t_max:g} ({reason})",
        "alpha_at_t_max": alpha,
        "log_snr_at_t_max": 2.0 * float(np.log(alpha / sigma)) if alpha > 0 else -float("inf"),
        "t_min": distiller._t_min,
        "guidance_scale": 1.0 if guidance is None else guidance,
        "classes": teacher.num_classes,
    }


def _check_terminal(distiller: Distiller, report: CheckReport) -> None:
    alpha, sigma = (float(v) for v in distiller.teacher.schedule.alpha_sigma(distiller._t_max))
    if alpha > TERMINAL_LIMIT * sigma:
        message = (
            f"t_max = {distiller._t_max:g} has alpha / sigma = {alpha / sigma:.3g}: the student "
            "starts from pure noise, but the teacher still expects signal there; raise t_max"
        )
        report.warnings.append(Finding("terminal_snr", message))


# ------------------------------------------------------------------------- what changes outputs


def _difference(a: Images, b: Images) -> float:
    """Largest difference relative to the size of a."""
    return float(np.abs(a - b).max() / (np.abs(a).max() + 1e-30))


def _check_influences(distiller: Distiller, probe: Probe, report: CheckReport) -> bool:
    """Check that image, class and guidance matter; return whether the output depends on x."""
    # Two levels: a flow network of Gaussian data, say, is constant at one alone.
    times = [time_of(distiller.teacher.schedule, level) for level in (1.0, 0.5)]
    x, labels, t = probe.noise[0], probe.labels, times[0]
    output = probe.output(x, t)
    if _difference(output, probe.output(probe.noise[1], t)) < SAME:
        t = times[1]
        output = probe.output(x, t)
        if _difference(output, probe.output(probe.noise[1], t)) < SAME:
            message = "the teacher's output does not depend on the image (seen at t = "
            message += " and ".join(f"{time:g}" for time in times) + ")"
            report.problems.append(Finding("constant_teacher", message))
            return False
    if labels is None or len(np.unique(labels)) < 2:
        return True
    if _difference(output, probe.output(x, t, np.roll(labels, 1))) < SAME:
        message = "class labels do not change the teacher's output"
        report.warnings.append(Finding("labels_ignored", message))
    guidance: Guidance = distiller._guidance
    if guidance.active:
        other = guidance.away_from
        effect = _difference(output, probe.output(x, t, np.full_like(labels, other)))
        report.facts["guidance_effect"] = effect
        if effect < SAME:
            message = (
                f"guidance_scale {guidance.scale:g} changes nothing: label {other} gives the same "
                "output as the classes; use 1, which saves half of the calls"
            )
            report.warnings.append(Finding("guidance_ignored", message))
    return True


def _check_null_label(
    distiller: Distiller, probe: Probe, evidence: Evidence, report: CheckReport
) -> None:
    """Warn of a label that guidance takes for "no class" and that looks like a class."""
    null, labels = distiller._guidance.null_label, distiller._labels
    if not distiller._guidance.active or null is None or labels is None or len(labels) < 2:
        return
    if not evidence.fits:
        return
    distance = probe.null_distance(null, labels)
    report.facts["null_label_distance"] = distance
    if distance > NULL_LIMIT:
        message = (
            f"label {null} is taken to mean 'no class', but what the teacher says for it is "
            f"{distance:.2g} times as far from the mean of all labels as for the nearest class; if "
            "it is a class, set guidance_scale to 1 (it is not trained otherwise), or "
            "null_class_label"
        )
        report.warnings.append(Finding("null_label", message))


# ------------------------------------------------------------- prediction type, schedule, range


def _check_type(probe: Probe, evidence: Evidence, report: CheckReport, quick: bool) -> None:
    score, mixing = evidence.type_score, evidence.mixing_score
    declared = probe.teacher.prediction_type
    report.facts["denoising_error"], report.facts["mixing_error"] = score, mixing
    if evidence.fits:
        return
    others = {
        kind: probe.evidence(kind, quick=quick, shifts=(1.0,))
        for kind in TEACHER_PREDICTIONS
        if kind != declared
    }
    best = min(others, key=lambda kind: others[kind].mixing_score)
    found = f"denoising its own images, the {declared} teacher errs {score:.3g} times as much as a "
    found += "linear filter"
    other = others[best]
    limit = min(MIXING_WARNING, CLEARLY_BETTER * mixing)
    if other.type_score < TYPE_LIMIT and other.mixing_score < limit:
        message = (
            f"prediction_type {declared!r} does not fit: {found}, and {np.expm1(mixing):.1%} more "
            f"than with its input mixed in; read as {best!r} it errs {other.type_score:.3g} times "
            f"as much, and {np.expm1(other.mixing_score):.1%} more"
        )
        report.problems.append(Finding("prediction_type", message))
        return
    if score < TYPE_LIMIT and mixing < MIXING_WARNING:
        return
    message = (
        f"{found}, and {np.expm1(mixing):.0%} more than with its input mixed in, and no other "
    )
    message += "prediction type fits: is it trained, and its noise schedule the right one?"
    report.warnings.append(Finding("no_denoiser", message))


def _check_schedule(probe: Probe, evidence: Evidence, report: CheckReport, quick: bool) -> None:
    score = evidence.schedule_score
    report.facts["schedule_error"] = score
    if score < SCHEDULE_LIMIT or not np.isfinite(score):
        return
    message = (
        f"the noise schedule does not fit: the teacher denoises better when told another time "
        f"than that of the noise (error {np.expm1(score):.0%} above the best)"
    )
    better = None if quick else _better_schedule(probe, score)
    if better is not None:
        message += f"; it behaves as trained with beta_schedule {better!r}"
    report.warnings.append(Finding("schedule", message))


def _better_schedule(probe: Probe, score: float) -> str | None:
    """Return the well-known schedule that a teacher fits, if one does."""
    config = probe.teacher.scheduler
    scores = {}
    for name, values in SCHEDULES.items():
        other = dataclasses.replace(config, trained_betas=None, **values)
        evidence = probe.evidence(schedule=Schedule.from_config(other))
        if evidence.type_score < TYPE_LIMIT:
            scores[name] = evidence.schedule_score
    best = min(scores, key=lambda name: scores[name], default=None)
    if best is None or scores[best] > min(SCHEDULE_LIMIT, CLEARLY_BETTER * score):
        return None
    return best


def _check_range(
    distiller: Distiller, probe: Probe, evidence: Evidence, report: CheckReport
) -> None:
    # A type or schedule shows on the teacher's own images; this asks for those of the run.
    clip, images = distiller._clip, evidence.images
    if clip != probe.teacher.clip:
        images = probe.images(clip)
    largest = float(np.abs(images).max())
    beyond = float(np.mean(~(np.abs(images) <= RANGE_LIMIT)))
    report.facts["signal_range"] = f"{images.min():.3g} ... {images.max():.3g}"
    if beyond > 0.01:
        message = (
            f"{beyond:.0%} of the teacher's pixels lie beyond [-{RANGE_LIMIT}, {RANGE_LIMIT}] "
            f"(largest {largest:.3g}): samples are clipped to [-1, 1]; set clip_sample, or scale "
            "the teacher"
        )
        report.warnings.append(Finding("signal_range", message))


# ---------------------------------------------------------------------------------------- cost


def _cost(distiller: Distiller) -> dict[str, Any]:
    """Rehearse a few steps without changing the run: see `plan`."""
    plan = make_plan(distiller)
    seconds = plan.seconds_per_step or 0.0
    left = max(0, distiller.config.max_train_steps - distiller.state.step)
    return {
        "seconds_per_step": seconds,
        "predicted_seconds": seconds * left,
        "predicted_time": f"{_duration(seconds * left)} for {left} steps",
        "peak_bytes": plan.peak_bytes,
        "peak_memory": size_text(plan.peak_bytes),
    }


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
