"""A sign of life from commands that work for long without printing: what they do, and for how long."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import TextIO

from nas_moreau.report.format import duration
from nas_moreau.text import folded, printable

BAR_SECONDS, FIRST_SECONDS, PLAIN_SECONDS = 1.0, 5.0, 10.0
"""Seconds of silence after which a terminal shows a line, a file gets its first one, and the following ones."""


class Heartbeat:
    """Shows what is being done while nothing else is printed: redrawn in place on a terminal, else as lines.

    Args:
        text: What is being done, until the first message.
        stream: Standard error by default.
        clock: Returns seconds.
    """

    def __init__(self, text: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._text, self._stream, self._clock = text, sys.stderr if stream is None else stream, clock
        self._began = self._printed = clock()
        self._next = FIRST_SECONDS
        self._terminal, self._drawn = self._stream.isatty(), False
        self._lock = threading.Lock()

    def note(self, text: str, *, activity: bool = True, fold: bool = True) -> None:
        """Prints a message.

        Args:
            text: One line or several.
            activity: Whether it is what is being done from now on.
            fold: Whether a terminal gets lines that are not wider than itself.
        """
        with self._lock:
            self._erase()
            self._write(_lines(text, self._stream, fold) + "\n")
            self._printed, self._next = self._clock(), FIRST_SECONDS
            if activity:
                self._text, self._began = text.rpartition("\n")[2], self._printed

    def beat(self) -> None:
        """Shows the sign of life if it is due; called about once a second."""
        with self._lock:
            now = self._clock()
            line = f"{printable(self._text)} ... {duration(int(now - self._began), digits=0)}"
            if self._terminal and now - self._printed >= BAR_SECONDS:
                self._write(f"\r\x1b[K{line[: columns(self._stream) - 1]}")
                self._drawn = True
            elif not self._terminal and now - self._printed >= self._next:
                self._write(f"{line}\n")
                self._printed, self._next = now, PLAIN_SECONDS

    def close(self) -> None:
        """Removes the line from a terminal."""
        with self._lock, suppress(OSError):
            self._erase()

    def _erase(self) -> None:
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def columns(stream: TextIO) -> int:
    """Returns the columns of a terminal; some do not report any."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _lines(text: str, stream: TextIO, fold: bool) -> str:
    """Returns a message as it is printed: a line with a command stays whole, to be copied."""
    lines = [printable(line) for line in text.split("\n")]
    if fold and stream.isatty():
        lines = [line if "nas-moreau " in line else folded(line, columns(stream)) for line in lines]
    return "\n".join(lines)


_beating: list[Heartbeat] = []


def note(text: str = "", *, activity: bool = True, fold: bool = True) -> None:
    """Prints a message on standard error: standard output is for results.

    Args:
        text: One line or several.
        activity: Whether it is what the command does from now on.
        fold: Whether a terminal gets lines that are not wider than itself; commands in it could not be copied then.
    """
    with suppress(OSError):  # nobody reads it any more: the command goes on
        if _beating:
            _beating[-1].note(text, activity=activity, fold=fold)
        else:
            print(_lines(text, sys.stderr, fold), file=sys.stderr, flush=True)


@contextmanager
def heartbeat(text: str) -> Iterator[Callable[[], None]]:
    """Within this context, a command that prints nothing for some seconds shows what it does, and for how long.

    It yields a function that ends this early: before a bar is shown.

    Args:
        text: What the command does, until its first message.
    """
    shown, over = Heartbeat(text), threading.Event()

    def work() -> None:
        with suppress(OSError, ValueError):  # who reads is gone: the command itself meets that, and reports it
            while not over.wait(1.0):
                shown.beat()

    def end() -> None:
        if shown in _beating:
            _beating.remove(shown)
            over.set()
            thread.join()
            shown.close()

    thread = threading.Thread(target=work, name="heartbeat", daemon=True)
    _beating.append(shown)
    thread.start()
    try:
        yield end
    finally:
        end()


@contextmanager
def silence(quiet: bool) -> Iterator[None]:
    """Within this context nothing is printed on standard error if `quiet`; errors are printed after it."""
    if not quiet:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stderr(nothing):
        yield
