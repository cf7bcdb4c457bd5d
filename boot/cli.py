"""The command `boot`: distill, plan, sample, evaluate, check, report, info and demo.

Errors are one line on stderr and a non-zero exit code: 2 for a wrong command line, 1 for anything
else. `distill` saves and exits with 75 on Ctrl-C, SIGTERM and SIGUSR1 (130 and 128 + n for a second
one); elsewhere Ctrl-C gives 130. `--debug` shows the traceback.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boot._version import __version__
from boot.choices import SAMPLERS
from boot.errors import BootError, BootWarning
from boot.flags import (
    Parser,
    UsageError,
    add_config_flags,
    config_values,
    flag_of,
    integer,
    integers,
)
from boot.interrupts import EXIT_STOPPED, STOP_SIGNALS, InterruptGuard
from boot.presets import PRESETS, preset_config

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

_STUDENT_SCALES = "its default; others only if distilled for a range"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (sys.argv by default) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        namespace = build_parser().parse_args(arguments)
        _set_up_messages(namespace.quiet)
        return int(namespace.command(namespace))
    except KeyboardInterrupt:
        print("boot: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away: nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except Exception as problem:
        if debug:
            traceback.print_exc()
        print(f"boot: error: {one_line(problem)}", file=sys.stderr)
        return EXIT_USAGE if isinstance(problem, UsageError) else EXIT_ERROR


def one_line(problem: BaseException) -> str:
    """Return the message of an exception as one line, with its class where that says more."""
    text = str(problem)
    if isinstance(problem, OSError) and problem.strerror:
        where = f": {problem.filename}" if problem.filename else ""
        text = f"{problem.strerror}{where}"
    text = " ".join(text.split())
    expected = (BootError, UsageError, ValueError, TypeError, OSError, ImportError, ArithmeticError)
    if not text or not isinstance(problem, expected):
        return f"{type(problem).__name__}: {text}".rstrip(": ")
    return text


def _set_up_messages(quiet: bool) -> None:
    """Send log lines and warnings to stderr, one line each, as `boot: ...`."""
    log = logging.getLogger("boot")
    log.handlers[:] = [logging.StreamHandler()]
    log.handlers[0].setFormatter(logging.Formatter("boot: %(message)s"))
    log.setLevel(logging.WARNING if quiet else logging.INFO)

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        log.warning("warning: %s", " ".join(str(message).split()))

    warnings.simplefilter("default", BootWarning)
    warnings.showwarning = show


# ---------------------------------------------------------------------------------- the parser


def build_parser() -> Parser:
    """Return the parser of all subcommands."""
    common = Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    common.add_argument("--quiet", action="store_true", help="print no progress messages")
    parser = Parser(
        prog="boot",
        description="Turn a trained diffusion model into a one-step generator, without data.",
        epilog="boot COMMAND --help describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"boot {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Parser
    )

    def add(name: str, run: Any, text: str) -> Parser:
        sub: Parser = commands.add_parser(name, parents=[common], help=text, description=text)
        sub.set_defaults(command=run)
        return sub

    _add_run(add("distill", distill, "distil a diffusers teacher into a one-step student"))
    _add_plan(add("plan", plan, "say how much memory and time a distillation will take"))
    _add_sample(add("sample", sample, "generate images with a student or a teacher"))
    _add_evaluate(add("evaluate", evaluate, "compare a student with its teacher and real images"))
    _add_check(add("check", check, "look for what would waste a training run, in seconds"))
    add("report", report, "write report.html of a run's folder again").add_argument(
        "folder", metavar="OUTPUT_DIR", help="folder of a run"
    )
    _add_info(add("info", info, "say what a folder holds"))
    demo_parser = add("demo", demo, "distil the digits teacher that comes with boot, and show it")
    demo_parser.add_argument(
        "--output-dir", default="boot-demo", metavar="DIR", help="new folder [boot-demo]"
    )
    demo_parser.add_argument("--max-train-steps", type=integer, metavar="N", help="training steps")
    demo_parser.add_argument("--seed", type=integer, metavar="N", help="[0]")
    return parser


def _add_run(parser: Parser) -> None:
    """What describes a run: the same for distill, plan and check."""
    parser.add_argument("teacher", metavar="TEACHER", help="diffusers pipeline folder")
    parser.add_argument("--config", metavar="FILE", help="JSON file of settings; flags go first")
    results = "; ".join(
        f"{name}: {preset.purpose}, {preset_config(name).max_train_steps} steps ({preset.result})"
        for name, preset in PRESETS.items()
    )
    parser.add_argument(
        "--preset", metavar="NAME", help=f"{results}; flags go first [default]".replace("%", "%%")
    )
    add_config_flags(parser)


def _add_plan(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_run(parser)


def _add_sample(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder of a student or a teacher")
    parser.add_argument("--num-images", type=integer, default=64, metavar="N", help="[64]")
    parser.add_argument("--output", default="samples.png", metavar="PNG", help="[samples.png]")
    parser.add_argument("--npz", metavar="FILE", help="also write images, noise, class_labels")
    parser.add_argument(
        "--class-labels", type=integers, metavar="0,1,2", help="labels, repeated as needed"
    )
    parser.add_argument("--seed", type=integer, default=0, metavar="N", help="[0]")
    scales = f"[teacher: 1, off; student: {_STUDENT_SCALES}]"
    parser.add_argument("--guidance-scale", type=float, metavar="W", help=scales)
    teacher = parser.add_argument_group("for a teacher only")
    teacher.add_argument("--num-inference-steps", type=integer, metavar="N", help="[50]")
    teacher.add_argument("--sampler", choices=SAMPLERS, help="[ddim]")
    teacher.add_argument("--t-start", type=float, metavar="T", help="time to start from [1]")
    parser.add_argument("--num-threads", type=integer, metavar="N", help="CPU threads")
    parser.add_argument(
        "--memory-limit", metavar="BYTES", help="of working memory, such as 500MB: smaller chunks"
    )


def _add_evaluate(parser: Parser) -> None:
    parser.add_argument("student", metavar="STUDENT", help="folder of a student")
    parser.add_argument("--teacher", required=True, metavar="TEACHER", help="its teacher's folder")
    parser.add_argument(
        "--reference", metavar="NPZ", help="statistics of real images, or an array `images`"
    )
    parser.add_argument("--num-images", type=integer, default=2000, metavar="N", help="[2000]")
    parser.add_argument("--num-paired", type=integer, default=256, metavar="N", help="[256]")
    scales = f"[{_STUDENT_SCALES}]"
    parser.add_argument("--guidance-scale", type=float, metavar="W", help=scales)
    parser.add_argument("--seed", type=integer, default=0, metavar="N", help="[0]")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--num-threads", type=integer, metavar="N", help="CPU threads")


def _add_check(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--class-labels", type=integers, metavar="0,1,2", help="labels the student is wanted for"
    )
    _add_run(parser)


def _add_info(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder of a student or a teacher")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


# -------------------------------------------------------------------------------- the commands


def distill(arguments: argparse.Namespace) -> int:
    """Run `boot distill`."""
    with InterruptGuard(*STOP_SIGNALS):  # also around loading; `fit` joins it
        return _distill(arguments)


def _distill(arguments: argparse.Namespace) -> int:
    from boot.distiller import Distiller

    config = _config(arguments)
    if config.output_dir is None:
        raise UsageError("--output-dir must be given: the folder for the student")
    distiller = Distiller(arguments.teacher, config)
    history = distiller.fit()
    if history.interrupted:
        print(
            f"boot: interrupted at step {distiller.state.step}; continue with "
            f"{flag_of('resume_from_checkpoint')} latest",
            file=sys.stderr,
        )
        return EXIT_STOPPED
    print(f"student of {distiller.state.step} steps saved in {config.output_dir}")
    return 0


def _config(arguments: argparse.Namespace) -> Any:
    """Return the settings of --config or --preset, if any, and of the flags."""
    from boot.config import DistillConfig

    if arguments.config and arguments.preset:
        raise UsageError("--config and --preset exclude each other: give one of them")
    config = preset_config(arguments.preset or "default")
    if arguments.config:
        config = DistillConfig.load(arguments.config)
    return config.replace(**config_values(arguments))


def _without_folder(arguments: argparse.Namespace) -> Any:
    """Return the settings of a run that is only looked at, without a copy to roll back to."""
    nowhere = {"output_dir": None, "resume_from_checkpoint": None, "checkpointing_steps": 0}
    return _config(arguments).replace(**nowhere)


def plan(arguments: argparse.Namespace) -> int:
    """Run `boot plan`: what `boot distill` with these settings would take."""
    from boot.distiller import Distiller

    planned = Distiller(arguments.teacher, _without_folder(arguments)).plan()
    print(json.dumps(planned.to_dict()) if arguments.json else repr(planned))
    return 0


def _load(folder: str) -> Any:
    """Load a Student if the folder holds one, else a Teacher."""
    from boot.diffusers_io import INFO_FILE
    from boot.errors import check_folder
    from boot.student import Student
    from boot.teacher import Teacher

    is_student = (check_folder("folder", folder) / INFO_FILE).exists()
    return Student.from_pretrained(folder) if is_student else Teacher.from_pretrained(folder)


def _output_file(flag: str, text: str, ending: str) -> Path:
    """Check a file that is written at the end before the work that fills it begins."""
    from boot.errors import check_folder, check_path
    from boot.files import check_output_folder

    path = check_path(flag, text)
    if path.suffix != ending:
        raise ValueError(f"{flag} must be a file ending in {ending}, got {text!r}")
    if path.is_dir():
        raise IsADirectoryError(f"{flag} must be a file, but {text!r} is a folder")
    check_output_folder(flag, check_folder(flag, path.parent), must_be_empty=False)
    return path


def sample(arguments: argparse.Namespace) -> int:
    """Run `boot sample`."""
    import numpy as np

    from boot.errors import check_int
    from boot.images import save_grid
    from boot.sizes import check_bytes
    from boot.student import Student

    png = _output_file("--output", arguments.output, ".png")
    npz = None if arguments.npz is None else _output_file("--npz", arguments.npz, ".npz")
    count = check_int("--num-images", arguments.num_images, 1)
    _set_threads(arguments.num_threads)
    model = _load(arguments.folder)
    if arguments.memory_limit is not None:
        model.model.limit_memory(check_bytes("--memory-limit", arguments.memory_limit))
    names = ("num_inference_steps", "sampler", "t_start")
    options = {name: v for name in names if (v := getattr(arguments, name)) is not None}
    if isinstance(model, Student) and options:
        raise UsageError(f"{flag_of(next(iter(options)))} is for teachers; a student has one step")
    if arguments.guidance_scale is not None:
        options["guidance_scale"] = arguments.guidance_scale
    labels: Any = arguments.class_labels
    if labels is not None:
        labels = np.resize(np.array(labels, np.int64), count)
    scale = {"guidance_scale": options["guidance_scale"]} if "guidance_scale" in options else {}
    if isinstance(model, Student):
        model.check_scales(arguments.guidance_scale, count)
        scale = {}
    noise, labels = model.inputs(count, class_labels=labels, seed=arguments.seed, **scale)
    images = model.sample(noise=noise, class_labels=labels, **options)
    save_grid(png, images)
    if npz is not None:
        classes = {} if labels is None else {"class_labels": labels}
        _write_npz(npz, images=images, noise=noise, **classes)
    return 0


def _write_npz(path: Path, **arrays: Any) -> None:
    import numpy as np

    from boot.files import write_atomically

    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def _set_threads(count: int | None) -> None:
    from boot import _core
    from boot.errors import check_int

    if count is not None:
        _core.set_num_threads(check_int("--num-threads", count, 1, 1024))


def evaluate(arguments: argparse.Namespace) -> int:
    """Run `boot evaluate`."""
    from boot.evaluation import evaluate_student
    from boot.student import Student
    from boot.teacher import Teacher

    _set_threads(arguments.num_threads)
    student = Student.from_pretrained(arguments.student)
    if arguments.guidance_scale is not None:
        student = student.with_guidance(arguments.guidance_scale)
    numbers = evaluate_student(
        student,
        Teacher.from_pretrained(arguments.teacher),
        num_images=arguments.num_images,
        num_paired=arguments.num_paired,
        reference=arguments.reference,
        seed=arguments.seed,
    )
    _print_facts(numbers, arguments.json)
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Run `boot check`: exit code 1 if there is a problem."""
    from boot.distiller import Distiller

    distiller = Distiller(arguments.teacher, _without_folder(arguments))
    report = distiller.check(class_labels=arguments.class_labels)
    print(json.dumps(report.to_dict()) if arguments.json else report)
    return 0 if report.ok else EXIT_ERROR


def report(arguments: argparse.Namespace) -> int:
    """Run `boot report`."""
    from boot.report import write_report

    print(write_report(arguments.folder))
    return 0


def info(arguments: argparse.Namespace) -> int:
    """Run `boot info`."""
    from boot.describe import describe

    _print_facts(describe(_load(arguments.folder)), arguments.json)
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """Run `boot demo`."""
    from boot.demo import run_demo

    names = ("max_train_steps", "seed")
    options = {name: v for name in names if (v := getattr(arguments, name)) is not None}
    run_demo(arguments.output_dir, **options)
    return 0


def _print_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        print(f"{name:<{width}}  {text}")
