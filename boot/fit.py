"""The loop around training steps: callbacks, log, checkpoints, and where Ctrl-C may stop it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

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
from boot.interrupts import InterruptGuard

if TYPE_CHECKING:
    from boot.distiller import Distiller


def run(distiller: Distiller, callbacks: Iterable[Callback]) -> History:
    """Train to `config.max_train_steps`; stop earlier at a step border on Ctrl-C or by a callback.

    on_train_end is sent whatever happens. Stopping early saves a checkpoint if there is a folder.
    """
    history, control = History(), Control()
    hooks = [history, *_built_in(distiller), *callbacks]

    def emit(event: str, **kwargs: Any) -> None:
        for hook in hooks:
            handler = getattr(hook, event)
            handler(distiller.config, distiller.state, control, distiller=distiller, **kwargs)

    with InterruptGuard() as guard:
        emit("on_train_begin")
        try:
            _loop(distiller, control, guard, emit)
        finally:
            emit("on_train_end")
    history.interrupted = guard.interrupted
    return history


def _loop(distiller: Distiller, control: Control, guard: InterruptGuard, emit: Any) -> None:
    config, start = distiller.config, time.monotonic()
    saved = distiller.state.step

    def is_due(every: int) -> bool:
        return every > 0 and distiller.state.step % every == 0

    while distiller.state.step < config.max_train_steps:
        emit("on_step_begin")
        logs = distiller.step()
        emit("on_step_end", logs=logs)
        if is_due(config.logging_steps) or control.should_log:
            control.should_log = False
            emit("on_log", logs={**logs, "seconds": round(time.monotonic() - start, 3)})
        stopping = guard.interrupted or control.should_training_stop
        wanted = is_due(config.checkpointing_steps) or control.should_save or stopping
        if wanted and distiller.output_dir is not None and distiller.state.step > saved:
            control.should_save, saved = False, distiller.state.step
            emit("on_save", path=distiller.save_checkpoint())
        if stopping:
            return


def _built_in(distiller: Distiller) -> list[Callback]:
    config, folder = distiller.config, distiller.output_dir
    built_in: list[Callback] = [ProgressBar()]
    if folder is not None:
        if config.report_to == "jsonl":
            built_in.append(JsonlLog(folder / LOG_FILE))
        if config.report_to == "tensorboard":
            built_in.append(TensorBoardLog(folder / "tensorboard"))
        built_in.append(SampleGrid(folder / SAMPLES_FOLDER))
    return built_in
