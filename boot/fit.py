"""The loop around training steps: callbacks, log, checkpoints, and where signals may stop it."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boot import resume, steps
from boot.callbacks import (
    LOG_FILE,
    SAMPLES_FOLDER,
    Callback,
    Control,
    History,
    JsonlLog,
    ProgressBar,
    SampleGrid,
    TensorBoardLog,
)
from boot.check import check_before_training
from boot.checkpoint import find_latest, path_of
from boot.config import MOST_STEPS, RUN_CONFIG_FILE
from boot.errors import BootWarning, CheckpointError, check_int, shown
from boot.files import remove_leftovers, sync_file
from boot.interrupts import EXIT_STOPPED, STOP_SIGNALS, InterruptGuard
from boot.locks import locked_folder
from boot.pairs import PairedError
from boot.report import ReportPage

if TYPE_CHECKING:
    from boot.distiller import Distiller

EVENTS = [name for name in vars(Callback) if name.startswith("on_")]

_log = logging.getLogger("boot")


def run(distiller: Distiller, max_train_steps: Any, callbacks: Any) -> History:
    """Train to `max_train_steps` (None: the config's) and save the student; see `Distiller.fit`.

    Stops earlier at a step border on a signal or by a callback, with a checkpoint if there is a
    folder. on_train_end is sent whatever happens.
    """
    hooks = _checked(callbacks)
    with steps.alone(distiller):
        if max_train_steps is not None:
            total = check_int("max_train_steps", max_train_steps, 1, MOST_STEPS)
            before = distiller.config.max_train_steps
            if distiller.state.step > 0 and total != before:
                _log.info(
                    "max_train_steps was %d, now %d: learning rate and correction follow the new "
                    "course from step %d on",
                    *(before, total, distiller.state.step),
                )
            distiller.config = distiller.config.replace(max_train_steps=total)
    if distiller.state.step > distiller.config.max_train_steps:
        _log.warning(
            "the run is at step %d, beyond max_train_steps %d: nothing to train",
            distiller.state.step,
            distiller.config.max_train_steps,
        )
    outer, folder = InterruptGuard.active(), distiller.output_dir
    own = contextlib.nullcontext(outer) if outer else InterruptGuard(*STOP_SIGNALS)
    alone = locked_folder(folder) if folder is not None else contextlib.nullcontext()
    with own as guard, alone:
        # Nothing is written before: a refused run must not leave files that refuse the next one.
        if distiller.config.check_teacher and distiller.state.step == 0:
            check_before_training(distiller)
        hooks = [*_built_in(distiller), *hooks]
        if folder is not None:
            for kind in (folder, folder / SAMPLES_FOLDER):
                remove_leftovers(kind)
            distiller.config.save(folder / RUN_CONFIG_FILE)
        history, failed = _train(distiller, hooks, guard)
        _record_kernels(distiller)  # measurements and sample grids have chosen more
        if folder is not None and not history.interrupted:
            _save_student(distiller, folder)
    if failed is not None:
        _report(distiller, failed, history.interrupted)
    if history.interrupted and outer is None and guard.received != STOP_SIGNALS[0]:
        raise SystemExit(EXIT_STOPPED)
    return history


def _checked(callbacks: Any) -> list[Callback]:
    """Return callbacks as a list; TypeError for anything that has not a method for every event."""
    if not isinstance(callbacks, Iterable) or isinstance(callbacks, (str, bytes, Mapping)):
        raise TypeError(f"callbacks must be a list of Callback objects, got {shown(callbacks)}")
    hooks: list[Callback] = []
    for i, hook in enumerate(callbacks):
        if isinstance(hook, type):
            raise TypeError(f"callbacks[{i}] must be an object, got the class {hook.__name__}")
        missing = [name for name in EVENTS if not callable(getattr(hook, name, None))]
        if missing:
            what = f"got {shown(hook)} without {missing[0]}"
            raise TypeError(f"callbacks[{i}] must be a Callback, {what}")
        hooks.append(hook)
    return hooks


def _train(
    distiller: Distiller, callbacks: list[Callback], guard: InterruptGuard
) -> tuple[History, CheckpointError | None]:
    """Run the loop between on_train_begin and on_train_end."""
    history, control = History(), Control()
    hooks = [history, *callbacks]

    def emit(event: str, **kwargs: Any) -> None:
        for hook in hooks:
            handler = getattr(hook, event)
            handler(distiller.config, distiller.state, control, distiller=distiller, **kwargs)

    emit("on_train_begin")
    try:
        failed = _loop(distiller, control, guard, emit)
    finally:
        emit("on_train_end")
    finished = distiller.state.step >= distiller.config.max_train_steps
    history.interrupted = guard.interrupted and not finished
    return history, failed


def _loop(
    distiller: Distiller, control: Control, guard: InterruptGuard, emit: Any
) -> CheckpointError | None:
    """Take steps; return why the last checkpoint could not be written, None if it was."""
    config, start = distiller.config, time.monotonic()
    first, folder = distiller.state.step, distiller.output_dir
    # Steps may have been taken outside `fit`, or the run comes from another folder.
    saved = first if first == 0 or folder is None or path_of(folder, first).is_dir() else -1
    failed, chosen = None, -1

    def is_due(every: int) -> bool:
        return every > 0 and distiller.state.step % every == 0

    def save() -> None:
        nonlocal saved, failed
        if folder is not None and distiller.state.step > saved:
            control.should_save = False
            path, failed = _save(distiller, folder)
            if path is not None:
                saved = distiller.state.step
                emit("on_save", path=path)

    stopping = guard.interrupted
    if stopping and first > 0:
        save()
    while distiller.state.step < config.max_train_steps and not stopping:
        try:
            emit("on_step_begin")
            logs = distiller.step()
            if resume.count_kernels(distiller) != chosen:
                chosen = resume.count_kernels(distiller)
                _record_kernels(distiller)
            emit("on_step_end", logs=logs)
        except MemoryError:  # no update is half done: the state is that of the last step
            save()
            raise
        last = distiller.state.step == config.max_train_steps
        if is_due(config.logging_steps) or control.should_log or last:
            control.should_log = False
            emit("on_log", logs={**logs, "seconds": round(time.monotonic() - start, 3)})
        stopping = guard.interrupted or control.should_training_stop
        due = is_due(config.checkpointing_steps) or (last and config.checkpointing_steps > 0)
        if due or control.should_save or stopping:
            save()
    return failed


def _record_kernels(distiller: Distiller) -> None:
    try:
        resume.record_kernels(distiller)
    except OSError as problem:
        _log.warning("kernel choices not written, the run goes on: %s", problem)


def _save(distiller: Distiller, folder: Path) -> tuple[Path | None, CheckpointError | None]:
    """Write a checkpoint; a failure is a loud warning, for the training is worth more."""
    try:
        with contextlib.suppress(FileNotFoundError):
            sync_file(folder / LOG_FILE)  # its lines must not be younger than the checkpoint
        return distiller.save_checkpoint(), None
    except OSError as problem:
        _log.warning("%s: training goes on, and tries again at the next checkpoint", problem)
        if isinstance(problem, CheckpointError):
            return None, problem
        return None, CheckpointError(problem.errno, problem.strerror, problem.filename)


def _save_student(distiller: Distiller, folder: Path) -> None:
    """Save what the run was for; where that fails, say what there is to save it from later."""
    try:
        distiller.student.save_pretrained(folder, overwrite=True)
    except OSError as problem:
        newest, step = find_latest(folder), distiller.state.step
        text = f"training ended at step {step}, but the student was not saved: "
        text += f"{problem.strerror or problem}; the newest intact checkpoint is {newest}"
        if newest is not None and newest.name == f"checkpoint-{step}":
            text += ": the same run with resume_from_checkpoint='latest' saves the student"
        else:
            text += "; the state is intact in memory: call save_checkpoint or fit again"
        raise CheckpointError(problem.errno, text, str(folder)) from problem


def _report(distiller: Distiller, failed: CheckpointError, interrupted: bool) -> None:
    """Say at the end of `fit` that the last checkpoint is missing: an error if it was needed."""
    newest = find_latest(distiller.output_dir) if distiller.output_dir else None
    text = f"{failed.strerror}; the newest intact checkpoint is {newest}"
    if interrupted:
        text += "; the state is intact in memory: call save_checkpoint or fit again"
        raise CheckpointError(failed.errno, text, failed.filename) from failed
    warnings.warn(f"training is complete, but the last {text}", BootWarning, stacklevel=4)


def _built_in(distiller: Distiller) -> list[Callback]:
    config, folder = distiller.config, distiller.output_dir
    # PairedError goes first: its numbers join the logs that the others show.
    pictures = None if folder is None else folder / SAMPLES_FOLDER
    built_in: list[Callback] = [PairedError(pictures), ProgressBar()]
    if folder is not None:
        if config.report_to == "jsonl":
            built_in.append(JsonlLog(folder / LOG_FILE))
        if config.report_to == "tensorboard":
            built_in.append(TensorBoardLog(folder / "tensorboard"))
        built_in.append(SampleGrid(folder / SAMPLES_FOLDER))
        built_in.append(ReportPage(folder))  # last: it shows what the others wrote
    return built_in
