"""The worker of `boot` itself: a training step, one-step sampling, a network call."""

from __future__ import annotations

from typing import Any

from harness import Call, Job, serve


def training_step(job: Job) -> tuple[Call, dict[str, Any]]:
    """`Distiller.step()` with the settings that the peers have."""
    import boot

    settings: dict[str, Any] = {
        "train_batch_size": job["batch"],
        "guidance_scale": job["guidance_scale"],
        "solver": "euler",
        "boundary_weight": 0.0,
        "boundary_fraction": 0.0,
        "delta": 0.04,
        "t_max": job["t_max"],
        "learning_rate": 1e-4,
        "max_grad_norm": 1.0,
        "correction": "none",
        "ema_decay": 0.999 if job["ema"] else 0.0,
        "max_train_steps": 10**6,
        "seed": 0,
    }
    if job["guidance_scale"] is None:
        del settings["guidance_scale"]
    settings |= job.get("settings", {})
    distiller = boot.Distiller(job["folder"], **settings)
    return distiller.step, facts()


def one_step_sample(job: Job) -> tuple[Call, dict[str, Any]]:
    """`Student.sample` on given noise."""
    import numpy as np

    import boot
    from boot.student import Student, StudentInfo

    teacher = boot.Teacher.from_pretrained(job["folder"])
    student = Student.from_teacher(teacher, StudentInfo(t_max=job["t_max"], t_min=0.001))
    shape = teacher.model.image_shape()
    noise = np.random.default_rng(0).standard_normal((job["batch"], *shape)).astype(np.float32)
    labels = None if job["guidance_scale"] is None else np.arange(job["batch"]) % 10
    student.model.keep_packed(True)  # as Student.from_pretrained does
    return lambda: student.sample(noise=noise, class_labels=labels), facts()


def facts() -> dict[str, Any]:
    """Version and build of the core."""
    import boot

    return {"boot": boot.__version__, "core": boot.show_config()}


def prepare(job: Job) -> tuple[Call, dict[str, Any]]:
    """Pick the task."""
    import boot

    boot.set_num_threads(job["threads"])
    return {"step": training_step, "sample": one_step_sample}[job["task"]](job)


if __name__ == "__main__":
    serve(prepare)
