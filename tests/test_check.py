"""`Distiller.check`: wrong declarations are found, and right ones never are."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from models import PLAIN, make, make_teacher

from boot import toy
from boot.check import check
from boot.cli import main
from boot.continuous import FlowSchedule
from boot.demo import TEACHER_FOLDER
from boot.distiller import Distiller
from boot.errors import TeacherError
from boot.network import Network
from boot.probe import MIXING_LIMIT, SCHEDULE_LIMIT, TYPE_LIMIT, Probe
from boot.schedule import Schedule
from boot.scheduler_config import SchedulerConfig
from boot.teacher import Teacher

TYPES = ("epsilon", "v_prediction", "sample")
SCHEDULES = {
    "linear": {"beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "zero_snr": {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
}


@pytest.fixture(scope="module")
def digits():
    return Teacher.from_pretrained(TEACHER_FOLDER)


def declared(teacher, **changes):
    """The same network under another declaration."""
    return Teacher(teacher.model, dataclasses.replace(teacher.scheduler, **changes), name="other")


def codes(findings):
    return [finding.code for finding in findings]


class Mixture:
    """A network in closed form: E[x_0 | x_t] for a mixture of Gaussians around a few images."""

    def __init__(self, prediction_type, schedule, spread=0.2):
        rng = np.random.default_rng(0)
        self.means = rng.uniform(-0.8, 0.8, (6, 64)).astype(np.float64)
        self.kind, self.schedule, self.spread = prediction_type, schedule, spread

    def image_shape(self):
        return 1, 8, 8

    def forward(self, x, index, labels=None):
        alpha, sigma = self.schedule.alpha_sigma((index[0] + 1) / 1000)
        flat = x.reshape(len(x), -1).astype(np.float64)
        total = alpha**2 * self.spread**2 + sigma**2
        gap = flat[:, None] - alpha * self.means
        logits = -(gap**2).sum(2) / (2 * total)
        weight = np.exp(logits - logits.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        gain = alpha * self.spread**2 / total
        f = (weight[..., None] * (self.means + gain * gap)).sum(1)
        eps = (flat - alpha * f) / sigma
        out = {"sample": f, "epsilon": eps, "v_prediction": alpha * eps - sigma * f}[self.kind]
        return out.reshape(x.shape).astype(np.float32)


def mixture_probe(actual, said, spread=0.2):
    """A probe of a mixture network of one (type, schedule), declared to be of another."""
    kind, process = said
    schedule = Schedule.from_config(SchedulerConfig(**SCHEDULES[actual[1]]))
    teacher = make_teacher(PLAIN, prediction_type=kind, **SCHEDULES[process])
    teacher.model = Mixture(actual[0], schedule, spread)
    if spread >= 1.0:  # such data go far beyond [-1, 1]
        teacher.clip = dataclasses.replace(teacher.clip, limit=0.0)
    return Probe.of(teacher, None, teacher.schedule.default_t_max(kind))


# ------------------------------------------------------------------------------- no false alarms


def test_a_good_teacher_has_no_findings(digits):
    report = Distiller(digits, train_batch_size=8).check()
    assert report.ok
    assert not report.warnings
    assert report.facts["denoising_error"] < 0.5
    assert report.facts["schedule_error"] < SCHEDULE_LIMIT / 2
    assert report.facts["mixing_error"] < MIXING_LIMIT / 2
    assert report.facts["seconds_per_step"] > 0
    assert report.facts["peak_bytes"] > 0
    assert "default" in report.facts["t_max"]


@pytest.mark.parametrize("spread", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("process", sorted(SCHEDULES))
@pytest.mark.parametrize("kind", TYPES)
def test_every_right_declaration_passes(kind, process, spread):
    evidence = mixture_probe((kind, process), (kind, process), spread).evidence()
    assert evidence.fits
    assert evidence.schedule_score < SCHEDULE_LIMIT


def test_a_check_changes_nothing_in_the_run():
    checked, plain = make(), make()
    checked.check()
    assert checked.step()["loss"] == pytest.approx(plain.step()["loss"], rel=1e-4)
    assert checked.state == plain.state


# ------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("quick", [True, False])
def test_a_wrong_prediction_type_is_a_problem_that_names_the_right_one(digits, kind, clip, quick):
    wrong = declared(digits, prediction_type=kind, clip_sample=clip)
    report = check(Distiller(wrong), quick=quick)
    assert codes(report.problems) == ["prediction_type"]
    assert f"{kind!r} does not fit" in report.problems[0].message
    assert "read as 'epsilon'" in report.problems[0].message


def test_fit_refuses_a_wrong_prediction_type_before_step_one(digits):
    distiller = Distiller(declared(digits, prediction_type="v_prediction"), max_train_steps=2)
    with pytest.raises(TeacherError, match="prediction_type 'v_prediction' does not fit"):
        distiller.fit()
    assert distiller.state.step == 0


@pytest.mark.parametrize("said", TYPES)
@pytest.mark.parametrize("actual", TYPES)
def test_mixtures_of_every_type_fit_their_own_type_alone(actual, said):
    score = mixture_probe((actual, "cosine"), (said, "cosine")).evidence().type_score
    assert (score < TYPE_LIMIT) == (actual == said)


@pytest.mark.parametrize("process", ["cosine", "scaled_linear", "sigmoid"])
def test_a_wrong_schedule_is_warned_of_and_the_right_one_named(digits, process, caplog):
    wrong = declared(digits, **SCHEDULES[process])
    distiller = Distiller(wrong, max_train_steps=1, train_batch_size=4)
    report = distiller.check()
    assert report.ok
    assert codes(report.warnings)[-1] == "schedule"
    assert "trained with beta_schedule 'linear'" in report.warnings[-1].message
    distiller.fit()
    assert "check: schedule: the noise schedule does not fit" in caplog.text


@pytest.mark.parametrize("pair", [("linear", "cosine"), ("cosine", "linear")])
@pytest.mark.parametrize("kind", TYPES)
def test_swapped_schedules_of_mixtures_are_seen(kind, pair):
    evidence = mixture_probe((kind, pair[0]), (kind, pair[1])).evidence()
    assert evidence.type_score > TYPE_LIMIT or evidence.schedule_score > SCHEDULE_LIMIT


def test_a_t_max_with_signal_left_is_warned_of(digits):
    report = check(Distiller(digits, t_max=0.4), quick=True)
    assert codes(report.warnings) == ["terminal_snr"]
    assert "0.4 (as set)" in report.facts["t_max"]


@pytest.mark.parametrize(
    "clip", [{}, {"clip_sample": True}, {"thresholding": True}], ids=["off", "clip", "dynamic"]
)
def test_a_teacher_beyond_the_range_of_images_is_warned_of_unless_the_run_clips(clip):
    distiller = make(PLAIN, teacher=make_teacher(PLAIN, clip_sample=False), **clip)
    bias = distiller.teacher.model.parameters["conv_out.bias"]
    bias[:] = 1e4
    distiller.teacher.model.weights_changed()
    report = check(distiller, quick=True)
    assert ("signal_range" in codes(report.warnings)) == (not clip), report


def test_a_run_that_clips_a_wide_teacher_or_unclips_another_is_judged_by_what_it_does():
    wide = toy.GaussianMixture.random((1, 4, 4), components=2, std=0.9)
    for declared_clip in (False, True):
        teacher = wide.teacher(FlowSchedule(), "flow", clip_sample=declared_clip)
        student = toy.small_network(teacher)
        for clip in (False, True):
            report = check(Distiller(teacher, student=student, clip_sample=clip), quick=True)
            assert report.ok
            found = codes(report.warnings)
            assert ("signal_range" in found) == (not clip)
            assert declared_clip or set(found) <= {"signal_range"}  # as declared it is a denoiser


# ------------------------------------------------------------------- broken and ill-used teachers


def test_a_constant_teacher_is_a_problem():
    distiller = make(PLAIN)
    distiller.teacher.model.parameters["conv_out.weight"][:] = 0.0
    distiller.teacher.model.weights_changed()
    assert codes(distiller.check().problems) == ["constant_teacher"]
    with pytest.raises(TeacherError, match="does not depend on the image"):
        distiller.fit()
    assert distiller.state.step == 0


def test_a_nan_teacher_is_a_problem_that_names_the_time():
    distiller = make(PLAIN)
    distiller.teacher.model.parameters["conv_out.bias"][:] = np.nan
    distiller.teacher.model.weights_changed()
    report = distiller.check()
    assert codes(report.problems) == ["not_finite"]
    assert "not finite at t = 0." in report.problems[0].message
    with pytest.raises(TeacherError, match="NaN or Inf of"):
        distiller.fit()


def test_labels_for_an_unconditional_teacher_are_an_error():
    with pytest.raises(ValueError, match=r"class_labels must be None: 'tiny' is an unconditional"):
        make(PLAIN).check(class_labels=[0, 1])
    with pytest.raises(ValueError, match=r"guidance_scale must be 1 for 'tiny'"):
        make(PLAIN, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"class_labels must be 0 ... 2, got 7"):
        make().check(class_labels=[0, 7])
    assert make().check(class_labels=[0, 1]).facts["classes"] == 3
    wanted = make().check(class_labels=[0, 2])
    assert codes(wanted.problems)[0] == "wanted_label"
    assert "label 2 means 'no class' in this run" in str(wanted)
    assert codes(wanted.problems)[-1] == "wanted_label"
    assert "wanted_label" not in codes(make(guidance_scale=1.0).check(class_labels=[2]).problems)


def test_a_class_that_is_taken_for_no_class_is_warned_of(digits):
    """diffusers has no convention for a null row: the last one may be a class."""
    right = Distiller(digits, train_batch_size=4)
    assert "null_label" not in codes(check(right, quick=True).warnings)
    assert check(right, quick=True).facts["null_label_distance"] < 0.4
    config = dataclasses.replace(digits.model.config, num_class_embeds=10)
    model = Network(config, max_timestep=digits.model.max_timestep)
    tensors = dict(digits.model.parameters)
    tensors["class_embedding.weight"] = tensors["class_embedding.weight"][:10]
    model.load(tensors)
    cut = Teacher(model, digits.scheduler, name="cut")
    found = check(Distiller(cut, train_batch_size=4), quick=True).warnings
    assert codes(found) == ["null_label"]
    assert "label 9 is taken to mean 'no class'" in str(found[0])
    unguided = Distiller(cut, train_batch_size=4, guidance_scale=1.0)
    assert "null_label" not in codes(check(unguided, quick=True).warnings)


def test_labels_and_guidance_without_effect_are_warned_of():
    distiller = make()
    distiller.teacher.model.parameters["class_embedding.weight"][:] = 0.0
    distiller.teacher.model.weights_changed()
    found = codes(check(distiller, quick=True).warnings)
    assert found[:2] == ["labels_ignored", "guidance_ignored"]


def test_the_effect_of_guidance_is_that_of_the_negative_class():
    plain, negative = make(), make(negative_class_label=1)
    classes = negative.teacher.model.parameters["class_embedding.weight"]
    classes[1] = classes[0]  # the classes are one, and the null label is another
    negative.teacher.model.weights_changed()
    effects = [check(run, quick=True).facts["guidance_effect"] for run in (plain, negative)]
    assert effects[0] > 1e-3 and effects[1] < 1e-6
    warned = check(negative, quick=True).warnings
    assert "label 1 gives the same output" in str(warned)
    assert not [f for f in check(plain, quick=True).warnings if f.code == "guidance_ignored"]


def test_the_check_of_fit_can_be_turned_off():
    distiller = make(PLAIN, check_teacher=False)
    distiller.teacher.model.parameters["conv_out.weight"][:] = 0.0
    distiller.teacher.model.weights_changed()
    distiller.fit(max_train_steps=1)
    assert distiller.state.step == 1


# ------------------------------------------------------------------------------- the report


def test_the_report_shows_itself_everywhere(digits):
    report = check(Distiller(declared(digits, prediction_type="sample")), quick=True)
    assert "PROBLEM  prediction_type: " in repr(report)
    assert repr(report).endswith("1 problem(s), 0 warning(s)")
    assert "<li>prediction_type: prediction_type &#x27;sample&#x27;" in report._repr_html_()
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False


def test_boot_check(capsys, tmp_path):
    arguments = ["check", str(TEACHER_FOLDER), "--train-batch-size", "4"]
    assert main(arguments) == 0
    assert "no problem found, 0 warning(s)" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["prediction_type"] == "epsilon"
    wrong = tmp_path / "wrong"
    (wrong / "scheduler").mkdir(parents=True)
    shutil.copy(TEACHER_FOLDER / "model_index.json", wrong)
    shutil.copytree(TEACHER_FOLDER / "unet", wrong / "unet")
    config = json.loads((TEACHER_FOLDER / "scheduler/scheduler_config.json").read_text())
    config["prediction_type"] = "v_prediction"
    (wrong / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    assert main(["check", str(wrong)]) == 1
    assert "PROBLEM  prediction_type" in capsys.readouterr().out
