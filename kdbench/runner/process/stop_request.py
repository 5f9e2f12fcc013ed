"""How the user or a scheduler asks a run to stop: after this cell, or now."""

import signal
import threading
from types import FrameType
from typing import Any, Self

from kdbench.common.lifetime import STOP_SIGNALS

# Other signals keep a handler that the calling program has set.
_ALWAYS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Handles signals while it is entered, and remembers what they ask for.

    Its handlers raise nothing: a run checks `after_cell` and `now` where it can stop safely, so no
    row is half written. Signals that were ignored, such as a hang-up under nohup, stay ignored,
    and the caller's handlers for SIGUSR1, SIGUSR2, SIGQUIT and SIGXCPU stay too. Outside the main
    thread it receives no signals; use `ask` and `order`.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._order: str | None = None
        self._before: dict[int, Any] = {}

    def after_cell(self) -> bool:
        """Whether no further cell should start."""
        return self._asked > 0 or self.now is not None

    @property
    def now(self) -> str | None:
        """Who wants the running cell to stop now; None for nobody."""
        return self._order or ("stopped by the user" if self._asked > 1 else None)

    def ask(self) -> None:
        """Ask for a stop after the running cell; the second time, now."""
        self._asked += 1

    def order(self, who: str) -> None:
        """Stop the run now; `who` wants that, as text."""
        self._order = self._order or who

    def __enter__(self) -> Self:
        """Handle signals from now on."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.Signals[name] for name in STOP_SIGNALS):
                before = signal.getsignal(number)
                always = number in _ALWAYS and before != signal.SIG_IGN
                if always or before == signal.SIG_DFL:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            # None: not set from Python, so Python cannot restore it
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        # A person presses Ctrl-C once to ask and twice to insist. Other signals come from a
        # scheduler, a service manager or a terminal that closes, before a kill that follows soon.
        if number == signal.SIGINT:
            self.ask()
        else:
            self.order(f"stopped by {signal.Signals(number).name}")
