"""Signals that ask a run to stop: the first one is remembered, the second one acts at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

# What stops a run: Ctrl-C, the polite kill, and what batch systems send before the time is up.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h, "try again later": saved, and may be continued


class InterruptGuard:
    """While entered, a signal sets `received` instead of ending the program.

    A second one, of whatever kind, acts at once: SIGINT raises KeyboardInterrupt (in a `hold`, at
    its end), others end the process as if there were no guard. Does nothing outside the main
    thread, where Python delivers no signals, and nothing about signals for which the application
    has its own handler. A child that is forked meanwhile heeds signals as if there were no guard.
    """

    def __init__(self, *signals: int) -> None:
        """Prepare for these signals, SIGINT if none are named; nothing is installed yet."""
        self.received: int | None = None
        self._signals = signals or (signal.SIGINT,)
        self._previous: dict[int, Any] = {}
        self._held = self._late = False
        self._process = os.getpid()

    @property
    def interrupted(self) -> bool:
        """Whether a signal has come."""
        return self.received is not None

    @classmethod
    def active(cls) -> InterruptGuard | None:
        """Return the guard that is entered around the caller in the main thread, if any."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                guard = getattr(signal.getsignal(number), "__self__", None)
                if isinstance(guard, cls):
                    return guard
        return None

    def __enter__(self) -> InterruptGuard:
        """Install the handlers."""
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                default = signal.SIG_DFL
                if number == signal.SIGINT:
                    default = signal.default_int_handler  # type: ignore[assignment]
                if signal.getsignal(number) is default:
                    self._previous[number] = default
                    signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a fork: nobody would look at `received` there
            self._act(number, frame)
        elif self.received is None:
            self.received = number
        elif number == signal.SIGINT and self._held:
            self._late = True
        else:
            self._act(number, frame)

    def _act(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Let a second Ctrl-C, too, wait for the end of this: what is half done would stay so."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if self._late:
                self._late = False
                raise KeyboardInterrupt

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the old handlers back."""
        while self._previous:
            signal.signal(*self._previous.popitem())
