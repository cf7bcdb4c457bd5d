"""Teachers declared as what they are not: pairs of types and of schedules, of exact callables."""

from __future__ import annotations

import numpy as np
import pytest
from test_continuous import ALL as CONTINUOUS
from test_schedule import COSINE, LINEAR

from boot import toy
from boot.check import check
from boot.continuous import FlowSchedule
from boot.distiller import Distiller
from boot.errors import TeacherError
from boot.scheduler_config import TEACHER_PREDICTIONS

MIXTURE = toy.GaussianMixture.random((1, 8, 8), components=4)
ONE = toy.GaussianMixture(np.full((1, 1, 4, 4), 0.3), np.ones(1), np.ones(1))
SCHEDULES = [LINEAR, COSINE, *CONTINUOUS]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: repr(s)[:16])


def run_of(mixture, actual, said, schedule, claimed=None):
    """A run whose callable is of one type and schedule, and declared to be of another."""
    teacher = mixture.teacher(claimed or schedule, said)
    teacher.model.function = mixture.teacher(schedule, actual).model.function
    return Distiller(teacher, student=toy.small_network(teacher), train_batch_size=4)


def codes(findings):
    return [finding.code for finding in findings]


@pytest.mark.parametrize("actual", TEACHER_PREDICTIONS)
@each_schedule
def test_every_wrong_type_is_a_problem_and_the_right_one_is_none(schedule, actual):
    for said in TEACHER_PREDICTIONS:
        report = check(run_of(MIXTURE, actual, said, schedule), quick=True)
        if said == actual:
            assert report.ok and not report.warnings, report
        else:
            assert codes(report.problems) == ["prediction_type"], report
            assert f"{said!r} does not fit" in report.problems[0].message
            assert f"read as {actual!r}" in report.problems[0].message


@pytest.mark.parametrize("actual", TEACHER_PREDICTIONS)
@pytest.mark.parametrize("std", [0.05, 0.3, 0.9])
def test_no_spread_of_the_data_gives_a_false_alarm(std, actual):
    mixture = toy.GaussianMixture.random((1, 4, 4), classes=3, std=std)
    for schedule in (LINEAR, *CONTINUOUS[2:]):
        report = check(run_of(mixture, actual, actual, schedule))
        assert report.ok
        assert set(codes(report.warnings)) <= ({"signal_range"} if std >= 0.3 else set())


@pytest.mark.parametrize("schedule", [LINEAR, FlowSchedule()], ids=["linear", "flow"])
def test_a_network_that_is_constant_at_one_level_only_is_no_constant_teacher(schedule):
    # Of unit Gaussian data a flow network says the same of all images where alpha = sigma.
    assert check(run_of(ONE, "flow", "flow", schedule), quick=True).ok


def missed(kind, claimed, quick):
    """How many of the other schedules pass for the claimed one without a finding."""
    reports = [
        check(run_of(MIXTURE, kind, kind, schedule, claimed), quick=quick)
        for schedule in CONTINUOUS
        if schedule is not claimed
    ]
    telling = {"schedule", "no_denoiser", "prediction_type"}
    return sum(not telling & set(codes(r.problems + r.warnings)) for r in reports)


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
@pytest.mark.parametrize("claimed", CONTINUOUS, ids=lambda s: type(s).__name__)
def test_a_wrong_schedule_of_a_callable_is_found(claimed, kind, quick):
    assert missed(kind, claimed, quick) == 0


@pytest.mark.parametrize("quick, limit", [(True, 10), (False, 8)], ids=["quick", "full"])
def test_wrong_schedules_of_sample_callables_pass_no_more_often_than_docs_check_says(quick, limit):
    assert sum(missed("sample", claimed, quick) for claimed in CONTINUOUS) <= limit


def test_a_wrong_type_of_a_callable_stops_fit_before_step_one():
    run = run_of(MIXTURE, "epsilon", "flow", CONTINUOUS[0])
    with pytest.raises(TeacherError, match="prediction_type 'flow' does not fit"):
        run.fit(max_train_steps=2)
    assert run.state.step == 0
