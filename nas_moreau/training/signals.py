"""How a stage ends before its last step: signals and the exceptions they become. Imports no torch."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
"""At these a stage saves and ends: Ctrl-C, a system that stops it, a terminal that is closed."""


class Interrupted(Exception):
    """A signal arrived; the step was finished and everything is saved, if there is a folder."""

    def __init__(self, number: int, folder: str | None):
        self.number, self.folder = number, folder
        saved = "nothing is saved: there is no run folder" if folder is None else f"everything is saved in {folder}"
        super().__init__(f"Stopped by {signal.Signals(number).name}; {saved}.")


class NonFinite(Exception):
    """A number became NaN or infinite; nothing of that step was saved."""


class StopTraining(Exception):
    """A signal arrived; the loop saves and ends. An evaluation that raises it is repeated on resume."""


class StoppedImmediately(KeyboardInterrupt):
    """A signal outside the steps of a stage, or a second SIGINT: there is no work in progress that is not saved."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(signal.Signals(number).name)


class StopRequest:
    """Within this context `SIGNALS` do not interrupt; they are recorded in `received`.

    A second SIGINT raises StoppedImmediately.

    Args:
        immediate: The first signal raises StoppedImmediately too.
    """

    def __init__(self, immediate: bool = False) -> None:
        self.received: int | None = None
        self._immediate = immediate
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            if number not in (signal.SIGINT, signal.SIGTERM) and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: the run is meant to outlive its terminal
            try:
                self._former[number] = signal.signal(number, self._receive)
            except ValueError:  # not in the main thread (a notebook's worker): signals belong to another one
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT and self.received == signal.SIGINT
        self.received = number
        if self._immediate or again:
            raise StoppedImmediately(number)

    def check(self) -> None:
        """Raises StopTraining if a signal has arrived; long work that can be repeated calls it regularly."""
        if self.received:
            raise StopTraining
