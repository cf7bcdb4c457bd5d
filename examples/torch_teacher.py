"""Distil a teacher that is a torch module: no gradients are asked for, so it may be frozen."""

import argparse

import torch

from boot import Distiller, Teacher
from boot.continuous import EDMSchedule
from boot.toy import small_network


class Denoiser(torch.nn.Module):
    """A stand-in for a trained network: the denoised image at x = x_0 + sigma eps, exactly."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.linspace(-0.6, 0.6, 16).reshape(1, 1, 4, 4))
        self.register_buffer("std", torch.tensor(0.3))

    def forward(self, x, sigma):
        """Return E[x_0 | x]. x: (N,1,4,4); sigma: (N,)."""
        gain = self.std**2 / (self.std**2 + sigma.reshape(-1, 1, 1, 1) ** 2)
        return self.mean + gain * (x - self.mean)


def teacher_of(module):
    """Return a Teacher of a module f(x, sigma) -> image, on EDM's schedule."""
    module = module.eval()

    def denoise(x, sigma, condition):
        with torch.no_grad():
            return module(torch.from_numpy(x), torch.from_numpy(sigma).float())

    return Teacher.from_callable(
        denoise,
        prediction_type="sample",
        schedule=EDMSchedule(sigma_max=20.0),
        sample_shape=(1, 4, 4),
        name="torch",
    )


def main():
    """Train a student and print the mean image's ends, which should be -0.6 and 0.6."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-train-steps", type=int, default=300)
    steps = parser.parse_args().max_train_steps
    torch.set_num_threads(1)  # torch brings an OpenMP of its own: leave the cores to boot
    teacher = teacher_of(Denoiser())
    distiller = Distiller(teacher, student=small_network(teacher), max_train_steps=steps)
    distiller.fit()
    mean = distiller.student.sample(1000).mean(axis=0).ravel()
    print(f"student, 1 call: mean image from {mean[0]:.2f} to {mean[-1]:.2f}")


if __name__ == "__main__":
    main()
