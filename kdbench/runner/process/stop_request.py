"""What the user, or a scheduler, wants of a run that goes on: finish this cell, or stop now."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from kdbench.common.lifetime import STOP_SIGNALS

# Said by a person at the keyboard: once is a wish, twice an order. The others are orders: said by
# a scheduler, a service manager or a terminal that goes away, before a kill that follows soon.
_ASKS = (signal.SIGINT,)
# These have one meaning everywhere. What a program that a run is part of does with the rest stays.
_ALWAYS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Hears signals while it is entered, and remembers what they ask for.

    Nothing is raised from within a handler: a run looks at `after_cell` and `now` where it can
    stop in order, so that no row is half written by it. What was ignored when the run began, as a
    hang-up under nohup, stays so, and so does a handler of the caller's for SIGUSR1, SIGUSR2,
    SIGQUIT or SIGXCPU. Outside of the main thread, which alone can hear signals, it
    hears nothing, and can be told by `ask` and `order`.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._order: str | None = None
        self._before: dict[int, Any] = {}

    def after_cell(self) -> bool:
        """Whether no cell is to be started any more."""
        return self._asked > 0 or self.now is not None

    @property
    def now(self) -> str | None:
        """Who wants the running cell to be stopped, in words; None: nobody."""
        if self._order is not None:
            return self._order
        return "stopped by the user" if self._asked > 1 else None

    def ask(self) -> None:
        """Want the run to end after the running cell; the second time, now."""
        self._asked += 1

    def order(self, words: str) -> None:
        """Want the run to end now; `words` say who does."""
        self._order = self._order or words

    def __enter__(self) -> Self:
        """Hear signals from now on."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.Signals[name] for name in STOP_SIGNALS):
                before = signal.getsignal(number)
                always = number in _ALWAYS and before != signal.SIG_IGN
                if always or before == signal.SIG_DFL:
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave signals to whoever heard them before."""
        for number, handler in self._before.items():
            # None: it was not set from Python, and cannot be set back from it
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if number in _ASKS:
            self.ask()
        else:
            self.order(f"stopped by {signal.Signals(number).name}")
