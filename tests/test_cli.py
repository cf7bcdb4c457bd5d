"""The command line: what each command leaves behind, and errors of one line."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from models import CONFIG, PLAIN, make_teacher, save_teacher
from test_student import make_student

from boot import cli, flags
from boot.choices import SAMPLERS
from boot.config import DistillConfig
from boot.student import Student
from boot.teacher import Teacher

QUICK = ["--train-batch-size", "4", "--logging-steps", "2", "--sample-steps", "0"]
HERE = Path(__file__).parent  # not the checkout's root: its boot/ would hide the installed one


@pytest.fixture(autouse=True)
def keep_messages_as_they_are():
    """`main` sends log and warnings to stderr; the next test must not inherit that."""
    log = logging.getLogger("boot")
    handlers, level = log.handlers[:], log.level
    with warnings.catch_warnings():
        yield
    log.handlers[:] = handlers
    log.setLevel(level)


def steps_in(log):
    return [json.loads(line)["step"] for line in log.read_text().splitlines()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A teacher and a student of it, class-conditional and not."""
    root = tmp_path_factory.mktemp("models")
    save_teacher(root / "teacher")
    save_teacher(root / "plain-teacher", PLAIN)
    make_student().save_pretrained(root / "student")
    make_student(PLAIN).save_pretrained(root / "plain-student")
    return root


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def fails(capsys, *arguments):
    """Run a command that must fail; return its one line of stderr, without the prefix."""
    code = run(*arguments)
    captured = capsys.readouterr()
    assert code != 0
    lines = [line for line in captured.err.splitlines() if line.startswith("boot: error: ")]
    assert len(lines) == 1
    assert captured.err.splitlines()[-1] == lines[0]
    assert "Traceback" not in captured.err
    return lines[0].removeprefix("boot: error: ")


# --------------------------------------------------------------------------------------- distill


def test_distill_leaves_student_log_config_and_checkpoints(folders, tmp_path, capsys):
    out = tmp_path / "out"
    code = run(
        *("distill", folders / "teacher", "--output-dir", out, *QUICK),
        *("--max-train-steps", 4, "--checkpointing-steps", 2, "--seed", 3, "--delta", 0.1),
    )
    assert code == 0
    assert "student of 4 steps" in capsys.readouterr().out
    student = Student.from_pretrained(out)
    assert student.info.training["steps"] == 4
    config = DistillConfig.load(out / "distill_config.json")
    assert (config.seed, config.delta, config.train_batch_size) == (3, 0.1, 4)
    assert steps_in(out / "log.jsonl") == [2, 4]
    assert (out / "checkpoint-2/manifest.json").exists()
    assert (out / "checkpoint-4/manifest.json").exists()


def test_distill_resumes_and_is_refused_a_folder_with_files(folders, tmp_path, capsys):
    command = ("distill", folders / "teacher", "--output-dir", tmp_path, *QUICK)
    resume = ("--resume-from-checkpoint", "latest", "--checkpointing-steps", "2")
    (tmp_path / "notes").write_text("mine")
    assert "must be a new or empty folder" in fails(capsys, *command, "--max-train-steps", 2)
    assert run(*command, *resume, "--max-train-steps", 2) == 0
    assert run(*command, *resume, "--max-train-steps", 4) == 0
    assert "continuing from" in capsys.readouterr().err
    assert steps_in(tmp_path / "log.jsonl") == [2, 4]
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_config_file_gives_settings_and_flags_go_first(folders, tmp_path):
    (tmp_path / "run.json").write_text('{"max_train_steps": 2, "seed": 8, "train_batch_size": 3}')
    run(
        *("distill", folders / "teacher", "--config", tmp_path / "run.json"),
        *("--output-dir", tmp_path / "out", "--seed", 9, "--sample-steps", 0),
    )
    config = DistillConfig.load(tmp_path / "out/distill_config.json")
    assert (config.max_train_steps, config.seed, config.train_batch_size) == (2, 9, 3)


def test_every_setting_has_a_flag_with_its_own_help():
    parser = flags.Parser()
    flags.add_config_flags(parser)
    text = " ".join(parser.format_help().split())
    for option in DistillConfig.options():
        assert flags.flag_of(option.name) in text
        assert " ".join(option.help.split())[:30] in text
        assert f"[default: {option.default}]" in text
    spelled = parser.parse_args(["--output_dir", "x", "--t-max", "none", "--clip-sample", "false"])
    assert vars(spelled) == {"output_dir": "x", "t_max": None, "clip_sample": False}


def test_ctrl_c_ends_a_run_with_75_a_checkpoint_and_advice(folders, tmp_path):
    out = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "boot", "distill", str(folders / "teacher"), *QUICK),
        *("--output-dir", str(out), "--max-train-steps", "1000000"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=HERE) as process:
        log = out / "log.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (log.exists() and log.stat().st_size):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75
    found = re.search(r"interrupted at step (\d+); continue with --resume-from-checkpoint", stderr)
    assert found, stderr
    assert (out / f"checkpoint-{found[1]}/manifest.json").exists()
    assert "Traceback" not in stderr


# ---------------------------------------------------------------------------------------- sample


def test_sample_a_student_writes_a_grid_and_arrays(folders, tmp_path):
    png, npz = tmp_path / "grid.png", tmp_path / "all.npz"
    code = run(
        *("sample", folders / "student", "--num-images", 5, "--output", png, "--npz", npz),
        *("--class-labels", "1,0", "--seed", 7),
    )
    assert code == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    with np.load(npz) as arrays:
        assert set(arrays.files) == {"images", "noise", "class_labels"}
        assert arrays["class_labels"].tolist() == [1, 0, 1, 0, 1]
        student = Student.from_pretrained(folders / "student")
        expected = student.sample(5, seed=7, class_labels=[1, 0, 1, 0, 1])
        np.testing.assert_allclose(arrays["images"], expected, atol=1e-5)
        again = student.sample(noise=arrays["noise"], class_labels=arrays["class_labels"])
        np.testing.assert_allclose(arrays["images"], again, atol=1e-5)


def test_sample_a_teacher_with_the_same_noise(folders, tmp_path):
    for kind in ("teacher", "student"):
        run(
            *("sample", folders / f"plain-{kind}", "--num-images", 3),
            *("--output", tmp_path / "x.png", "--npz", tmp_path / f"{kind}.npz", "--seed", 2),
            *(("--num-inference-steps", 2, "--t-start", 0.8) if kind == "teacher" else ()),
        )
    teacher, student = (np.load(tmp_path / f"{kind}.npz") for kind in ("teacher", "student"))
    np.testing.assert_array_equal(teacher["noise"], student["noise"])
    assert "class_labels" not in teacher
    expected = Teacher.from_pretrained(folders / "plain-teacher").sample(
        3, seed=2, num_inference_steps=2, t_start=0.8
    )
    np.testing.assert_allclose(teacher["images"], expected, atol=1e-4)


def test_sample_a_teacher_by_any_sampler(folders, tmp_path):
    images = {}
    for sampler in SAMPLERS:
        flags = ("--num-inference-steps", 4, "--sampler", sampler, "--npz", tmp_path / "x.npz")
        run(
            *("sample", folders / "plain-teacher", "--num-images", 2, *flags),
            *("--output", tmp_path / "x.png", "--t-start", 0.8),
        )
        with np.load(tmp_path / "x.npz") as arrays:
            images[sampler] = arrays["images"]
    assert np.abs(images["dpm"] - images["ddim"]).max() > 1e-4


# -------------------------------------------------------------------------------- evaluate, info


def test_evaluate_prints_numbers_or_one_json_object(folders, tmp_path, capsys):
    real = np.clip(np.random.default_rng(0).normal(0, 0.5, (50, 1, 8, 8)), -1, 1)
    np.savez(tmp_path / "real.npz", images=real, labels=np.arange(50) % 2)
    command = (
        *("evaluate", folders / "student", "--teacher", folders / "teacher"),
        *("--num-images", 40, "--num-paired", 4, "--reference", tmp_path / "real.npz"),
    )
    assert run(*command, "--json", "--quiet") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert {"paired_rmse", "frechet_distance", "recall", "class_accuracy"} <= set(numbers)
    assert "fid" not in json.dumps(numbers).lower()
    assert run(*command, "--quiet") == 0
    text = capsys.readouterr().out
    shown = float(re.search(r"^paired_rmse +(\S+)$", text, re.M)[1])
    assert shown == pytest.approx(numbers["paired_rmse"], rel=1e-3)


def test_info_tells_students_from_teachers(folders, capsys):
    assert run("info", folders / "student", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "student"
    assert facts["t_max"] == 0.8
    assert run("info", folders / "teacher") == 0
    text = capsys.readouterr().out
    assert re.search(r"^kind +teacher$", text, re.M)
    assert re.search(r"^images +1x8x8$", text, re.M)
    assert make_teacher(CONFIG).fingerprint in text


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "the following arguments are required: COMMAND"),
        (("distil",), "invalid choice: 'distil'"),
        (("distill",), "the following arguments are required: TEACHER"),
        (("distill", "{teacher}"), "--output-dir must be given"),
        (("distill", "{teacher}", "--output-dir", "{new}", "--learning-rat", "1"),
         r"unknown argument --learning-rat \(did you mean '--learning-rate'\?\)"),
        (("distill", "{teacher}", "--output-dir", "{new}", "--seed", "x"),
         "argument --seed.*must be an integer, got 'x'"),
        (("distill", "{teacher}", "--output-dir", "{new}", "--t-max", "high"),
         "must be a number or none, got 'high'"),
        (("distill", "{teacher}", "--output-dir", "{new}", "--clip-sample", "1"),
         "must be true or false or none, got '1'"),
        (("distill", "{teacher}", "--output-dir", "{new}", "--learning-rate", "-1"),
         "learning_rate must be finite and > 0"),
        (("distill", "{teacher}", "--output-dir", "{new}", "--solver", "rk4"),
         "solver must be one of 'heun', 'midpoint', 'euler'; got 'rk4'"),
        (("distill", "{new}", "--output-dir", "{new}"), "there is no folder"),
        (("distill", "{teacher}", "--output-dir", "{teacher}"), "must be a new or empty folder"),
        (("distill", "{teacher}", "--output-dir", "{file}"), "is a file"),
        (("distill", "{teacher}", "--output-dir", "{new}", "--config", "{file}"), "JSON"),
        (("distill", "{teacher}", "--output-dir", "{new}", "--config", "{new}"), "No such file"),
        (("sample", "{new}"), "there is no folder"),
        (("sample", "{empty}"), "it is not a diffusers pipeline or model folder"),
        (("sample", "{student}", "--output", "{tmp}/x.jpg"), r"must be a file ending in \.png"),
        (("sample", "{student}", "--output", "{tmp}/x.png", "--npz", "x.zip"), r"ending in \.npz"),
        (("sample", "{student}", "--output", "{tmp}/x.png", "--num-images", "0"),
         "--num-images must be an integer >= 1, got 0"),
        (("sample", "{student}", "--output", "{tmp}/x.png", "--num-images", "two"),
         "must be an integer, got 'two'"),
        (("sample", "{student}", "--output", "{tmp}/x.png", "--class-labels", "1,x"),
         "must be an integer, got 'x'"),
        (("sample", "{student}", "--output", "{tmp}/x.png", "--class-labels", "3"),
         r"class_labels must be 0 \.\.\. 2, got 3"),
        (("sample", "{student}", "--output", "{tmp}/x.png", "--seed", "-1"), "seed must be"),
        (("sample", "{student}", "--output", "{tmp}/x.png", "--num-inference-steps", "4"),
         "--num-inference-steps is for teachers"),
        (("sample", "{teacher}", "--output", "{tmp}/x.png", "--num-inference-steps", "5000"),
         r"num_inference_steps must be 1 \.\.\. 1000"),
        (("sample", "{teacher}", "--output", "{tmp}/x.png", "--sampler", "plms"),
         "invalid choice: 'plms' .choose from '?ddim'?, '?heun'?, '?dpm'?"),
        (("sample", "{student}", "--output", "{tmp}/x.png", "--guidance-scale", "nan"),
         "guidance_scale must be finite, got nan"),
        (("sample", "{teacher}", "--output", "{tmp}/x.png", "--t-start", "0"), "t_start must be"),
        (("sample", "{student}", "--output", "{file}/x.png"), "is a file"),
        (("sample", "{student}", "--output", "{new}/x.png"), "--output: there is no folder"),
        (("evaluate", "{student}"), "the following arguments are required: --teacher"),
        (("evaluate", "{teacher}", "--teacher", "{teacher}"), "is not a student"),
        (("evaluate", "{student}", "--teacher", "{plain}"), "teacher does not fit the student"),
        (("evaluate", "{student}", "--teacher", "{teacher}", "--reference", "{new}"),
         "there is no file"),
        (("evaluate", "{student}", "--teacher", "{teacher}", "--reference", "{file}"),
         "must be an .npz of statistics or images"),
        (("info", "{file}"), "must be a folder"),
        (("info", "{student}", "--num-threads", "0"), "unknown argument --num-threads"),
    ],
)  # fmt: skip
def test_errors_are_one_line(folders, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not JSON")
    (tmp_path / "empty").mkdir()
    places = {
        "teacher": folders / "teacher",
        "plain": folders / "plain-teacher",
        "student": folders / "student",
        "file": tmp_path / "file",
        "empty": tmp_path / "empty",
        "new": tmp_path / "new",
        "tmp": tmp_path,
    }
    before = sorted(tmp_path.rglob("*"))
    text = fails(capsys, *(argument.format(**places) for argument in arguments))
    assert re.search(message, text), text
    assert sorted(tmp_path.rglob("*")) == before  # nothing was written


def test_debug_shows_the_traceback_too(capsys, tmp_path):
    assert run("info", tmp_path / "none", "--debug") == 1
    captured = capsys.readouterr().err
    assert "Traceback" in captured
    assert captured.splitlines()[-1].startswith("boot: error: ")


def test_unexpected_exceptions_name_their_class(capsys, monkeypatch, tmp_path):
    def broken(folder):
        raise KeyError("oops")

    monkeypatch.setattr(cli, "_load", broken)
    assert "KeyError: 'oops'" in fails(capsys, "info", tmp_path)
    monkeypatch.setattr(cli, "_load", lambda folder: [][1])
    assert fails(capsys, "info", tmp_path).startswith("IndexError: ")

    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load", interrupted)
    assert run("info", tmp_path) == 130
    assert capsys.readouterr().err == "boot: interrupted\n"


def test_exit_codes_tell_wrong_usage_from_failure(capsys, tmp_path):
    assert run("nothing") == 2
    assert run("info", tmp_path / "none") == 1


def test_demo_passes_its_options_on_and_checks_its_folder_first(tmp_path, capsys, monkeypatch):
    (tmp_path / "notes").write_text("mine")
    assert "must be a new or empty folder" in fails(capsys, "demo", "--output-dir", tmp_path)
    import boot.demo

    calls = []
    monkeypatch.setattr(boot.demo, "run_demo", lambda *args, **kwargs: calls.append((args, kwargs)))
    run("demo", "--output-dir", "x")
    run("demo", "--output-dir", "x", "--max-train-steps", 3, "--seed", 1)
    assert calls == [(("x",), {}), (("x",), {"max_train_steps": 3, "seed": 1})]


def test_messages_of_many_lines_become_one():
    assert cli.one_line(ValueError("a\n  b\n\nc")) == "a b c"
    assert cli.one_line(FileNotFoundError(2, "No such file", "x")) == "No such file: x"
    assert cli.one_line(MemoryError()) == "MemoryError"


def test_warnings_become_log_lines(folders, tmp_path, capsys):
    from pipelines import edit

    save_teacher(tmp_path / "t")
    edit(tmp_path / "t/unet/config.json", unheard_of=3)
    assert run("info", tmp_path / "t") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "unheard_of" in line]
    assert len(lines) == 1
    assert lines[0].startswith("boot: warning: ")
