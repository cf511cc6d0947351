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


class _Handlers:
    """Puts `receive` in the place of the handlers of SIGINT and SIGTERM while it is open."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def receive(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError

    def __enter__(self) -> Any:
        for number in SIGNALS:
            try:
                self._former[number] = signal.signal(number, self.receive)
            except ValueError:  # not in the main thread (a notebook's worker): signals are somebody else's
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)


class StopAtOnce(_Handlers):
    """While it is open, SIGINT and SIGTERM raise StoppedAtOnce; `received` holds the signal."""

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        raise StoppedAtOnce(number)


class StopRequest(_Handlers):
    """While it is open, SIGINT and SIGTERM only ask: `received` holds the signal. A second SIGINT raises at once."""

    def receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise StoppedAtOnce(number)
        self.received = number

    def give_up(self) -> None:
        """Raises Abandoned once a signal has arrived; long work that can be made again calls it now and then."""
        if self.received:
            raise Abandoned
