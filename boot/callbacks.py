"""What happens around training steps: progress bar, log file, sample grids, and your own hooks.

Event names and arguments are those of transformers' TrainerCallback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boot.config import DistillConfig
from boot.curves import loss_chart, paired_chart
from boot.files import append, write_atomically
from boot.htmlparts import escape

if TYPE_CHECKING:
    from boot.distiller import Distiller

LOG_FILE = "log.jsonl"
SAMPLES_FOLDER = "samples"
_log = logging.getLogger("boot")


@dataclasses.dataclass
class TrainState:
    """Counters of a run: all that a checkpoint stores beside the buffers.

    step: finished steps, skipped ones included. updates: optimiser updates that the weights have
    seen. skipped: steps without an update because a number was not finite. bad_in_a_row: such steps
    since the last good one. bad_steps: the numbers of those among the last 1,000 steps, since the
    last roll-back. rollbacks: returns to an earlier state because of them. rate_factor: what the
    learning rate is multiplied by since. critic_updates: those of the critic's weights, if any.
    """

    step: int = 0
    updates: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    bad_steps: list[int] = dataclasses.field(default_factory=list)
    rollbacks: int = 0
    rate_factor: float = 1.0
    critic_updates: int = 0


@dataclasses.dataclass
class Control:
    """Flags that a callback may set; the loop looks at them at every step border."""

    should_training_stop: bool = False
    should_log: bool = False
    should_save: bool = False


class Callback:
    """Base class: override the events you need.

    Every event gets (config, state, control, **kwargs); kwargs always has `distiller`, and `logs`
    (the numbers of the step) from on_step_end on.
    """

    def on_train_begin(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Before the first step of a `fit`."""

    def on_step_begin(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Before every step."""

    def on_step_end(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """After every step; set control.should_training_stop here to stop."""

    def on_log(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Every `logging_steps` steps."""

    def on_save(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """After a checkpoint was written; kwargs has its `path`."""

    def on_train_end(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """After the last step of a `fit`, also when it was interrupted or failed."""


class History(Callback):
    """Collects the logged numbers: `.history` maps each name to its values over time.

    All lists are as long as `history["step"]`; None stands where a number was not measured.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.history: dict[str, list[Any]] = {}
        self.interrupted = False

    def on_log(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Append the numbers of this step."""
        logs = kwargs["logs"]
        count = max(map(len, self.history.values()), default=0)
        for name in {**self.history, **logs}:
            self.history.setdefault(name, [None] * count).append(logs.get(name))

    def to_dict(self) -> dict[str, list[Any]]:
        """Return a copy of the history as plain lists."""
        return {name: list(values) for name, values in self.history.items()}

    def __repr__(self) -> str:
        """Show the length and the last loss."""
        losses = self.history.get("loss", [])
        last = f", last loss {losses[-1]:.4g}" if losses else ""
        return f"History({len(losses)} logged steps{last})"

    def _repr_html_(self) -> str:
        """Show the curves of paired error and loss in a notebook."""
        names, columns = list(self.history), list(self.history.values())
        rows = (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))
        log = [{name: v for name, v in row.items() if v is not None} for row in rows]
        return f"<div>{escape(repr(self))}</div>{paired_chart(log)}{loss_chart(log)}"


class ProgressBar(Callback):
    """A tqdm bar with rate, loss and time left; plain lines where stderr is not a terminal."""

    def __init__(self) -> None:
        """Create the bar when training begins."""
        self._bar: Any = None
        self._loss = math.nan
        self._paired = ""
        self._last_line = 0.0

    def on_train_begin(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Open the bar, at the step a resumed run starts from."""
        self._loss, self._last_line = math.nan, time.monotonic()
        if sys.stderr.isatty() or "ipykernel" in sys.modules:
            from tqdm.auto import tqdm

            self._bar = tqdm(
                total=config.max_train_steps, initial=state.step, unit="step", desc="distil"
            )

    def on_step_end(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Advance; the loss shown is an average over about the last 50 steps."""
        loss = kwargs["logs"]["loss"]
        if math.isfinite(loss):
            self._loss = loss if math.isnan(self._loss) else 0.98 * self._loss + 0.02 * loss
        if "paired_error" in kwargs["logs"]:
            self._paired = f", paired error {kwargs['logs']['paired_error']:.4f}"
        text = f"loss {self._loss:.4f}{self._paired}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(state.step - self._bar.n)
        elif time.monotonic() - self._last_line >= 10.0:  # a log file wants few lines
            self._last_line = time.monotonic()
            _log.info("step %d of %d, %s", state.step, config.max_train_steps, text)

    def on_train_end(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class JsonlLog(Callback):
    """Appends the numbers of each logged step to `output_dir/log.jsonl`, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        """Write to `path`."""
        self._path = path
        self._waiting = b""

    def on_train_begin(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Drop lines of steps after the one that this run continues from: they will come again."""
        if self._path.exists():
            write_atomically(self._path, "".join(lines_up_to(self._path, state.step)))

    def on_log(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Append one line; numbers that are not finite become null, which JSON can hold."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in kwargs["logs"].items()
        }
        self._waiting += json.dumps(finite).encode() + b"\n"
        self._write("log line not written, it will be tried again")

    def on_train_end(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Write out what is left."""
        if self._waiting:
            self._write(f"{self._waiting.count(10)} log lines not written")

    def _write(self, failure: str) -> None:
        """Append what waits; a full disk must not end the training."""
        try:
            append(self._path, self._waiting)
            self._waiting = b""
        except OSError as problem:
            _log.warning("%s: %s", failure, problem)


def lines_up_to(path: Path, step: int) -> Iterable[str]:
    """Yield the whole lines of a log.jsonl of steps up to this one."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            kept = line.endswith("\n") and int(json.loads(line)["step"]) <= step
        except (ValueError, KeyError, TypeError):
            kept = False  # a line cut short by a crash
        if kept:
            yield line


class TensorBoardLog(Callback):
    """Writes the numbers of each logged step to `output_dir/tensorboard`.

    A writer that has failed once fails for ever: the points wait for another one, in a new file.
    """

    RETRY_SECONDS = 60.0  # each try leaves a traceback of the writer's own thread on stderr

    def __init__(self, folder: Path) -> None:
        """Import the writer now, so that a missing package is an error before training."""
        try:
            from tensorboard.summary import Writer
        except ImportError:
            raise ImportError(
                "report_to='tensorboard' needs the package tensorboard: pip install tensorboard"
            ) from None
        self._folder, self._make = folder, Writer
        self._writer: Any = Writer(str(folder))
        self._waiting: list[tuple[str, float, int]] = []
        self._next_try = 0.0

    def on_log(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Add one point to each curve."""
        for name, value in kwargs["logs"].items():
            if name != "step" and math.isfinite(value):
                self._waiting.append((f"train/{name}", value, state.step))
        if time.monotonic() >= self._next_try:
            self._write("they will be tried again")

    def on_train_end(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Write out what is left."""
        self._write("the run has ended")
        self._close()

    def _write(self, outlook: str) -> None:
        """Write what waits; a full disk must not end the training."""
        try:
            if self._waiting and self._writer is None:
                self._writer = self._make(str(self._folder))
            for point in self._waiting:
                self._writer.add_scalar(*point)
            if self._waiting:
                self._writer.flush()  # here and not later in its thread, so that we hear of errors
            self._waiting = []
        except OSError as problem:
            _log.warning("TensorBoard's numbers not written, %s: %s", outlook, problem)
            self._next_try = time.monotonic() + self.RETRY_SECONDS
            self._close()

    def _close(self) -> None:
        """Let go of the writer, and of files in which it could not write a byte."""
        writer, self._writer = self._writer, None
        with contextlib.suppress(OSError):
            if writer is not None:
                writer.close()
        for path in self._folder.glob("events.out.tfevents.*"):
            with contextlib.suppress(OSError):
                if path.stat().st_size == 0:
                    path.unlink()


class SampleGrid(Callback):
    """Writes a grid of the student's images, always from the same noise, every `sample_steps`."""

    def __init__(self, folder: Path) -> None:
        """Write `folder/step-000500.png` and so on."""
        self._folder = folder

    def on_step_end(
        self, config: DistillConfig, state: TrainState, control: Control, **kwargs: Any
    ) -> None:
        """Write one picture if it is time."""
        last = state.step == config.max_train_steps
        if config.sample_steps and (state.step % config.sample_steps == 0 or last):
            from boot.images import save_grid

            distiller: Distiller = kwargs["distiller"]
            images = distiller.student.sample(config.num_sample_images, seed=config.seed)
            try:
                self._folder.mkdir(exist_ok=True)
                save_grid(self._folder / f"step-{state.step:06d}.png", images)
            except OSError as problem:
                _log.warning("sample grid not written, training goes on: %s", problem)
