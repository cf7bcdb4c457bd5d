"""Distil a teacher that is a NumPy function: an exact rectified-flow velocity, written by hand."""

import argparse

import numpy as np

from boot import Distiller, Teacher
from boot.continuous import FlowSchedule
from boot.toy import small_network

MEANS = np.stack([np.full((1, 4, 4), -0.6), np.tri(4)[None] - 0.4])  # two images
STD = 0.4


def velocity(x, t, condition):
    """Return eps - x_0, the average over both images given x = (1 - t) x_0 + t eps."""
    t = t.reshape(-1, 1, 1, 1)
    variance = ((1 - t) * STD) ** 2 + t**2
    rest = x[:, None] - (1 - t[:, None]) * MEANS  # (N, 2, 1, 4, 4)
    score = -0.5 * (rest**2).sum((2, 3, 4), keepdims=True) / variance[:, None]
    weight = np.exp(score - score.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    gain = (1 - t[:, None]) * STD**2 / variance[:, None]
    x_0 = (weight * (MEANS + gain * rest)).sum(1)
    return (x - (1 - t) * x_0) / t - x_0


def main():
    """Train a student and print how far it is from fifty steps of the teacher."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-train-steps", type=int, default=600)
    steps = parser.parse_args().max_train_steps
    teacher = Teacher.from_callable(
        velocity, prediction_type="flow", schedule=FlowSchedule(), sample_shape=(1, 4, 4)
    )
    distiller = Distiller(teacher, student=small_network(teacher), max_train_steps=steps)
    distiller.fit()
    t_max = distiller.config.t_max
    expected = teacher.sample(256, num_inference_steps=50, t_start=t_max, sampler="heun")
    for name, images in (
        ("student, 1 call", distiller.student.sample(256)),
        ("teacher, 1 call", teacher.sample(256, num_inference_steps=1, t_start=t_max)),
    ):
        print(f"{name}: RMSE {np.sqrt(((images - expected) ** 2).mean()):.3f}")


if __name__ == "__main__":
    main()
