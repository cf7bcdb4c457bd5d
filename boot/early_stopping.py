"""Stops a run whose number of interest, such as the paired error, falls no more."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from boot.callbacks import LOG_FILE, Callback, Control, TrainState, lines_up_to
from boot.config import DistillConfig
from boot.errors import ConfigError, check_float, check_int, nearest_hint, shown

_log = logging.getLogger("boot")


class EarlyStopping(Callback):
    """Stops a run when a number that should fall has not fallen for `patience` measurements.

    monitor: a name in the logs; `paired_error` is measured every `eval_steps` steps. min_delta: a
    smaller decrease does not count. A resumed run goes on counting from its log.jsonl. If the logs
    never had the number, a warning at the end says so.
    """

    def __init__(
        self, patience: int = 5, min_delta: float = 0.0, monitor: str = "paired_error"
    ) -> None:
        """Check the arguments; TypeError or ValueError."""
        self.patience = check_int("patience", patience, 1)
        self.min_delta = check_float("min_delta", min_delta, 0)
        if not isinstance(monitor, str):
            raise TypeError(f"monitor must be a string, got {shown(monitor)}")
        self.monitor = monitor
        self.best, self.best_step, self.waited = math.inf, 0, 0
        self._seen: set[str] = set()

    def __repr__(self) -> str:
        """Show the arguments."""
        return (
            f"EarlyStopping(patience={self.patience}, min_delta={self.min_delta:g}, "
            f"monitor={self.monitor!r})"
        )

    def on_train_begin(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Start afresh, or from what the log of this run holds."""
        if self.monitor.startswith("paired_error") and not config.eval_steps:
            raise ConfigError(f"eval_steps must be > 0 for EarlyStopping on {self.monitor}, got 0")
        self.best, self.best_step, self.waited = math.inf, 0, 0
        self._seen = set()
        folder = kwargs["distiller"].output_dir
        if state.step and folder is not None and (folder / LOG_FILE).exists():
            for line in lines_up_to(folder / LOG_FILE, state.step):
                self._take(json.loads(line))

    def on_log(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Ask for the end of training if it is time."""
        if self._take(kwargs["logs"]) and self.waited >= self.patience:
            control.should_training_stop = True
            _log.info(
                "stopping at step %d: %s has not fallen below %.4g (step %d) in %d measurements",
                state.step,
                self.monitor,
                self.best,
                self.best_step,
                self.waited,
            )

    def on_train_end(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Warn if there were logs, and none had the number: then nothing was watched."""
        if self._seen and self.monitor not in self._seen:
            hint = nearest_hint(self.monitor, self._seen)
            _log.warning("%r watched nothing: the logs had no %r%s", self, self.monitor, hint)

    def _take(self, logs: Mapping[str, Any]) -> bool:
        """Count one log line; return whether it had the number. One that is not finite counts."""
        self._seen.update(logs)
        if self.monitor not in logs:
            return False
        value = logs[self.monitor]
        if value is not None and value < self.best - self.min_delta:
            self.best, self.best_step, self.waited = value, int(logs["step"]), 0
        else:
            self.waited += 1
        return True
