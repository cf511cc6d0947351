"""A sign of life from work that prints nothing for long: what is being done, and for how long.

Of those that are open (`on_top`), the last one alone shows anything: a bar, while there is one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TextIO

from nas_moreau.text import duration, folded, printable

BAR_SECONDS, FIRST_SECONDS, PLAIN_SECONDS = 1.0, 5.0, 10.0
"""Seconds of silence after which a terminal shows a line, a file gets its first one, and the following ones."""
TICK_SECONDS = 0.5
"""Seconds between two looks whether a sign is due."""


class Sign(Protocol):
    """What shows that something is being done: a `Heartbeat`, or a bar."""

    def note(self, text: str, *, activity: bool = True, fold: bool = True) -> None:
        """Prints a message; with `activity`, it is also what is being done from now on."""

    def doing(self, text: str) -> None:
        """Sets what is being done from now on; "" for the usual."""

    def beat(self) -> None:
        """Shows the sign of life if it is due."""

    def pause(self, paused: bool) -> None:
        """Shows nothing until it is called with False: another one does."""


class Heartbeat:
    """Shows what is being done while nothing else is printed: redrawn in place on a terminal, else as lines.

    Args:
        text: What is being done, until the first message.
        stream: Standard error by default.
        clock: Returns seconds.
    """

    def __init__(self, text: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._usual, self._text = text, text
        self._stream, self._clock = sys.stderr if stream is None else stream, clock
        self._began = self._printed = clock()
        self._next = FIRST_SECONDS
        self._terminal, self._drawn, self._paused = self._stream.isatty(), False, False
        self._lock = threading.RLock()

    def note(self, text: str, *, activity: bool = True, fold: bool = True) -> None:
        """Prints a message.

        Args:
            text: One line or several.
            activity: Whether it is what is being done from now on.
            fold: Whether a terminal gets lines that are not wider than itself.
        """
        with self._lock:
            self._erase()
            self._write(message_lines(text, self._stream, fold) + "\n")
            self._printed, self._next = self._clock(), FIRST_SECONDS
            if activity:
                self.doing(text.rpartition("\n")[2])

    def doing(self, text: str) -> None:
        """Sets what is being done from now on; "" for what it was at the beginning."""
        with self._lock:
            self._text, self._began = text or self._usual, self._clock()

    def beat(self) -> None:
        """Shows the sign of life if it is due; called about twice a second."""
        with self._lock:
            now = self._clock()
            line = sign(self._text, now - self._began)
            if self._paused:
                return
            if self._terminal and now - self._printed >= BAR_SECONDS:
                self._draw(line)
            elif not self._terminal and now - self._printed >= self._next:
                self._write(f"{line}\n")
                self._printed, self._next = now, PLAIN_SECONDS

    def show(self) -> None:
        """Shows on a terminal what is being done, at once: loading a library can keep the thread that beats waiting."""
        with self._lock:
            if self._terminal and not self._paused:
                self._draw(f"{printable(self._text)} ...")

    def pause(self, paused: bool) -> None:
        """Removes the line from a terminal and shows nothing until it is called with False."""
        with self._lock:
            if paused:
                self._erase()
            elif self._paused:
                self._printed, self._next = self._clock(), FIRST_SECONDS
                self._began = self._printed
            self._paused = paused

    def close(self) -> None:
        """Removes the line from a terminal."""
        with self._lock, suppress(OSError):
            self._erase()

    def _draw(self, line: str) -> None:
        self._write(f"\r\x1b[K{line[: columns(self._stream) - 1]}")
        self._drawn = True

    def _erase(self) -> None:
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def sign(text: str, seconds: float) -> str:
    """Returns a sign of life: what is being done, and for how long."""
    return f"{printable(text)} ... {duration(int(seconds), digits=0)}"


def columns(stream: TextIO) -> int:
    """Returns the columns of a terminal; some do not report any."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def message_lines(text: str, stream: TextIO, fold: bool) -> str:
    """Returns a message as it is printed: a line with a command stays whole, to be copied.

    Args:
        text: One line or several.
        stream: Where it is printed.
        fold: Whether a terminal gets lines that are not wider than itself.
    """
    lines = [printable(line) for line in text.split("\n")]
    if fold and stream.isatty():
        lines = [line if "nas-moreau " in line else folded(line, columns(stream)) for line in lines]
    return "\n".join(lines)


_open: list[Sign] = []


def note(text: str = "", *, activity: bool = True, fold: bool = True) -> None:
    """Prints a message on standard error: standard output is for results.

    Args:
        text: One line or several.
        activity: Whether it is what the command does from now on.
        fold: Whether a terminal gets lines that are not wider than itself; commands in it could not be copied then.
    """
    with suppress(OSError):  # nobody reads it any more: the command goes on
        if _open:
            _open[-1].note(text, activity=activity, fold=fold)
        else:
            print(message_lines(text, sys.stderr, fold), file=sys.stderr, flush=True)


def doing(text: str = "") -> None:
    """Sets what the open sign of life, if there is one, shows as being done; "" for the usual."""
    if _open:
        _open[-1].doing(text)


@contextmanager
def on_top(shown: Sign) -> Iterator[None]:
    """Within this context `shown` beats, and those that were open before show nothing."""
    over = threading.Event()

    def work() -> None:
        with suppress(OSError, ValueError):  # who reads is gone: the command itself meets that, and reports it
            while not over.wait(TICK_SECONDS):
                shown.beat()

    pause(True)
    _open.append(shown)
    thread = threading.Thread(target=work, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _open.remove(shown)
        pause(False)


def pause(paused: bool) -> None:
    """Shows no sign of life until it is called with False: another process shows its own."""
    if _open:
        with suppress(OSError):
            _open[-1].pause(paused)


@contextmanager
def heartbeat(text: str) -> Iterator[None]:
    """Within this context, a command that prints nothing for some seconds shows what it does, and for how long.

    Args:
        text: What the command does, until its first message.
    """
    shown = Heartbeat(text)
    try:
        with on_top(shown):
            with suppress(OSError):
                shown.show()
            yield
    finally:
        shown.close()
