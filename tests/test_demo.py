"""`boot demo` in small: what it leaves, what it refuses, and the data it is made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boot import demo
from boot.demo import format_table, run_demo
from boot.errors import FormatError
from boot.metrics import Statistics, frechet_distance, gaussian_statistics
from boot.safetensors_io import read_header
from boot.student import Student
from boot.teacher import Teacher

GOLDEN = Path(__file__).parent / "golden" / "digits_teacher.npz"
COLUMNS = {"frechet_distance", "recall", "class_accuracy", "ms_per_image"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A demo of two training steps: the folder it left, and the report it returned."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, run_demo(folder, max_train_steps=2, num_images=100)


def test_demo_leaves_what_it_promises(finished):
    folder, report = finished
    assert {p.name for p in folder.iterdir()} == {"student", "samples.png", "report.json"}
    assert json.loads((folder / "report.json").read_text()) == report
    assert set(report["teacher"]) == {"50", "10", "4", "1"}
    for row in (*report["teacher"].values(), report["student"]):
        assert set(row) == COLUMNS
        assert all(np.isfinite(value) for value in row.values())
        assert row["ms_per_image"] > 0


def test_demo_measures_a_teacher_that_gets_better_with_steps(finished):
    teacher = finished[1]["teacher"]
    distances = [teacher[steps]["frechet_distance"] for steps in ("50", "10", "4", "1")]
    assert distances == sorted(distances)
    assert 2.5 < distances[-1] < 4.0  # with 100 images; 3.0 with 2,000
    assert teacher["50"]["recall"] > 0.8 > 0.3 > teacher["1"]["recall"]
    assert teacher["50"]["class_accuracy"] >= 0.98


def test_demo_report_is_about_the_student_it_saved(finished):
    folder, report = finished
    student = Student.from_pretrained(folder / "student")
    assert student.info.training["steps"] == report["run"]["train_steps"] == 2
    images = student.sample(100, seed=0)
    reference = Statistics.load(demo.REFERENCE_FILE)
    mean, cov = gaussian_statistics(images.reshape(100, -1))
    wanted = frechet_distance(reference.mean, reference.cov, mean, cov)
    assert report["student"]["frechet_distance"] == pytest.approx(wanted, rel=1e-3)


def test_demo_teacher_row_is_plain_ddim_from_t_max(finished):
    _, report = finished
    teacher = Teacher.from_pretrained(demo.TEACHER_FOLDER)
    labels = np.arange(100) % 10
    images = teacher.sample(
        100, num_inference_steps=4, guidance_scale=1.5, class_labels=labels, t_start=0.8
    )
    reference = Statistics.load(demo.REFERENCE_FILE)
    mean, cov = gaussian_statistics(images.reshape(100, -1))
    wanted = frechet_distance(reference.mean, reference.cov, mean, cov)
    assert report["teacher"]["4"]["frechet_distance"] == pytest.approx(wanted, rel=1e-3)


def test_demo_picture_shows_every_method(finished):
    folder, _ = finished
    with Image.open(folder / "samples.png") as image:
        assert image.format == "PNG" and image.mode == "RGB"
        width, height = image.size
    assert width > 20 * demo.IMAGES_PER_CLASS * 48 / 2 and height > 5 * 48


def test_table_is_plain_text_with_a_line_for_every_row(finished):
    table = format_table(finished[1])
    assert table.isascii()
    starts = [line[:17].strip() for line in table.splitlines()[1:6]]
    assert starts == [
        "teacher, 50 steps", "teacher, 10 steps", "teacher, 4 steps", "teacher, 1 step",
        "student, 1 step",
    ]  # fmt: skip


def test_demo_refuses_a_folder_with_files_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("precious")
    monkeypatch.setattr(demo, "Teacher", None)  # any work would fail with another error
    with pytest.raises(FileExistsError, match="new or empty"):
        run_demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"max_train_steps": 0}, "max_train_steps"), ({"num_images": 99}, "num_images")],
)
def test_demo_refuses_senseless_numbers(tmp_path, arguments, says):
    with pytest.raises(ValueError, match=says):
        run_demo(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_demo_that_is_interrupted_writes_nothing(tmp_path, monkeypatch):
    class Stopped:
        interrupted = True

    monkeypatch.setattr(demo.Distiller, "fit", lambda self: Stopped())
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


# ----------------------------------------------------------------------------------------- data


def test_packaged_teacher_is_the_original_within_a_thousandth():
    """Golden outputs: of the float32 network, by diffusers; see golden/make_digits_data.py."""
    golden = np.load(GOLDEN)
    teacher = Teacher.from_pretrained(demo.TEACHER_FOLDER)
    output = teacher.model(golden["x"], golden["t"], golden["class_labels"])
    assert np.abs(golden["output"]).max() > 3
    assert np.abs(output - golden["output"]).max() <= 1e-3


def test_packaged_data_are_small():
    weights = demo.TEACHER_FOLDER / "unet" / "diffusion_pytorch_model.safetensors"
    stored = read_header(weights).tensors
    assert {info.dtype for info in stored.values()} == {"F16", "F32"}
    files = [p for p in demo.DATA_FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 1_800_000
    assert all(p.stat().st_mode & 0o444 == 0o444 for p in files)


def test_a_broken_reference_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "digits_reference.npz"
    broken.write_text("version https://git-lfs.github.com/spec/v1\n")
    monkeypatch.setattr(demo, "REFERENCE_FILE", broken)
    with pytest.raises(FormatError, match="LFS"):
        run_demo(tmp_path / "out", max_train_steps=1, num_images=100)
