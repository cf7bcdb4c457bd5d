"""The method is exact: on a known mixture the student comes near the teacher's ODE, always."""

from __future__ import annotations

import numpy as np
import pytest
from test_continuous import ALL as CONTINUOUS
from test_schedule import COSINE, LINEAR

from boot import toy
from boot.distiller import Distiller
from boot.scheduler_config import TEACHER_PREDICTIONS
from boot.signal_ode import trajectory

MIXTURE = toy.GaussianMixture.random((1, 2, 2), components=2, std=0.6)
TRAINING = {
    "train_batch_size": 32,
    "max_train_steps": 250,
    "learning_rate": 1e-2,
    "lr_warmup_steps": 20,
    "ema_decay": 0.95,
    "delta": 0.08,
}


def rmse(a, b):
    return float(np.sqrt(((a - b) ** 2).mean()))


@pytest.mark.parametrize("prediction_type", TEACHER_PREDICTIONS)
@pytest.mark.parametrize("schedule", [LINEAR, COSINE, *CONTINUOUS], ids=lambda s: repr(s)[:16])
def test_training_brings_the_student_to_the_teachers_ode(schedule, prediction_type):
    teacher = MIXTURE.teacher(schedule, prediction_type)
    run = Distiller(teacher, student=toy.small_network(teacher), **TRAINING)
    t_max, t_min = run.config.t_max, run.config.t_min
    eps, _ = run.student.inputs(128, seed=5)
    fine = trajectory(schedule, teacher.signal, eps, schedule.times(t_max, t_min, 150), "heun")
    one_step = teacher.signal(schedule.start(eps, t_max), np.full(len(eps), t_max))

    def error():
        return rmse(run.student(eps), fine[-1])

    ddim, before = rmse(one_step, fine[-1]), error()
    for _ in range(TRAINING["max_train_steps"]):
        run.step()
    assert before > 0.9 * ddim
    assert error() < ddim / 5


@pytest.mark.parametrize("pair", [(COSINE, CONTINUOUS[0]), (LINEAR, CONTINUOUS[1])])
def test_a_table_and_its_formula_teach_the_same(pair):
    # The tables are the continuous schedules but for the cap of a last beta, and steps of 1/1000.
    students = []
    for schedule in pair:
        teacher = MIXTURE.teacher(schedule, "v_prediction")
        run = Distiller(teacher, student=toy.small_network(teacher), **TRAINING)
        for _ in range(100):
            run.step()
        students.append(run.student.sample(64, seed=5))
    assert rmse(*students) < 0.02
