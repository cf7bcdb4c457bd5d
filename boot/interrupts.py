"""Ctrl-C at step borders: the first one is remembered, the second one acts at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class InterruptGuard:
    """While entered, SIGINT sets `interrupted` instead of raising KeyboardInterrupt.

    A second SIGINT raises it. Does nothing outside the main thread, where Python delivers no
    signals, and nothing where the application has its own handler for SIGINT.
    """

    def __init__(self) -> None:
        """Prepare; nothing is installed yet."""
        self.interrupted = False
        self._previous: Any = None
        self._active = False

    def __enter__(self) -> InterruptGuard:
        """Install the handler."""
        ours = threading.current_thread() is threading.main_thread()
        self._active = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._active:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            signal.default_int_handler(number, frame)
        self.interrupted = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the old handler back."""
        if self._active:
            signal.signal(signal.SIGINT, self._previous)
            self._active = False
