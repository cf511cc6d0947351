"""How a stage ends before its end: by a signal. Imports no torch."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A signal arrived; the step was finished and everything is saved."""

    def __init__(self, number: int, folder: str):
        self.number, self.folder = number, folder
        super().__init__(f"Stopped by {signal.Signals(number).name}; everything is saved in {folder}.")


class NonFinite(Exception):
    """A number became NaN or infinite; nothing of that step was saved."""


class Abandoned(Exception):
    """An evaluation was given up because a signal arrived; it can be made again from what is saved."""


class StoppedAtOnce(KeyboardInterrupt):
    """A signal outside the steps of a stage, or a second SIGINT: nothing is under way that is not saved already."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(signal.Signals(number).name)


class StopRequest:
    """While it is open, SIGINT and SIGTERM only ask: `received` holds the signal. A second SIGINT raises StoppedAtOnce.

    Args:
        at_once: The first signal raises already.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.received: int | None = None
        self._at_once = at_once
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            try:
                self._former[number] = signal.signal(number, self._receive)
            except ValueError:  # not in the main thread (a notebook's worker): signals are somebody else's
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT and self.received == signal.SIGINT
        self.received = number
        if self._at_once or again:
            raise StoppedAtOnce(number)

    def give_up(self) -> None:
        """Raises Abandoned once a signal has arrived; long work that can be made again calls it now and then."""
        if self.received:
            raise Abandoned
