"""Progress of a run: bars and numbers on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_FIRST_SECONDS, _PLAIN_SECONDS = 5.0, 10.0
"""Seconds before the first plain line, and between two of them."""
_BAR_SECONDS = 0.1
"""Seconds between two drawings of the bar."""


class Progress:
    """Shows steps done, remaining time and current numbers.

    Where nobody reads them any more (a closed pipe or terminal), nothing more is shown: the run goes on.

    Args:
        total_steps: Number of steps of the whole run.
        description: Name of the run ("search").
        stream: Standard error by default; a terminal gets a bar, anything else lines of text.
        start: Steps that were done before (a resumed run), so that the remaining time is that of the new ones.
        clock: Returns seconds.
        epoch_steps: Steps of an epoch; if they are given, a terminal also gets a bar for the epoch.
    """

    def __init__(
        self,
        total_steps: int,
        description: str,
        stream: TextIO | None = None,
        start: int = 0,
        clock: Callable[[], float] = time.monotonic,
        epoch_steps: int | None = None,
    ):
        self.total, self.description, self.start = total_steps, description, start
        self._stream = sys.stderr if stream is None else stream
        self._clock, self._began = clock, clock()
        self._shown = self._began
        self._first: tuple[int, float] | None = None  # the first step shown, and when
        self._wait = _FIRST_SECONDS
        self._read = True  # whether somebody reads it
        self._bar: Any = None
        if self._stream.isatty():
            with self._while_read():
                self._bar = Display(self._stream, description, total_steps, start, epoch_steps)

    def update(self, step: int, **numbers: float | str) -> None:
        """Shows that `step` steps are done, with some numbers, but not more often than one can read.

        Args:
            step: Of the whole run.
            numbers: By name ("_" is shown as a space); texts are shown as they are.
        """
        now = self._clock()
        self._first = self._first or (step, now)
        if now - self._shown < (self._wait if self._bar is None else _BAR_SECONDS) and step < self.total:
            return
        self._shown, self._wait = now, _PLAIN_SECONDS
        text = "  ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in numbers.items())
        if self._bar is not None:
            with self._while_read():
                self._bar.show(step, text, self.time_left(step, now))
            return
        share = f"{100 * step / self.total:3.0f} %" if self.total else ""
        parts = (f"{self.description} {step}/{self.total}", share, text, f"{self.time_left(step, now)} left")
        self._write("  ".join(part for part in parts if part))

    def line(self, text: str) -> None:
        """Prints a line that stays, above the bar if there is one."""
        if self._bar is not None:
            with self._while_read():
                self._bar.line(text)
        else:
            self._write(text)

    def cell(self, text: str) -> None:
        """Sets the line about the current cell below the bars of a terminal."""
        if self._bar is not None:
            self._bar.cell = text

    def time_left(self, step: int, now: float) -> str:
        """Returns the remaining time as h:mm:ss; "?" before it is known."""
        left = self.seconds_left(step, now)
        if left is None:
            return "?"
        seconds = round(left)
        return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"

    def seconds_left(self, step: int, now: float | None = None) -> float | None:
        """Returns the remaining time in seconds, from the mean of the steps done here; None before there are two.

        The first step is left out: it may compile, or find empty caches.
        """
        now = self._clock() if now is None else now
        first, began = self._first or (step, now)
        return (now - began) / (step - first) * max(0, self.total - step) if step > first else None

    def _write(self, text: str) -> None:
        if self._read:
            with self._while_read():
                self._stream.write(text + "\n")
                self._stream.flush()

    @contextmanager
    def _while_read(self) -> Iterator[None]:
        """Within this context a stream that takes nothing more ends the display, and nothing else."""
        try:
            yield
        except OSError:
            self._read, self._bar = False, None

    def close(self) -> None:
        """Stops the display; its last state stays on the screen."""
        if self._bar is not None:
            with self._while_read():
                self._bar.stop()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{float(value):.4g}"


class Display:
    """Bars for the epoch and for all steps, a line of numbers and one about the cell, redrawn in place by rich.

    No thread refreshes it: it is drawn on every call, so that signals and prints are the only other writers.
    """

    def __init__(self, stream: TextIO, description: str, total: int, start: int, epoch_steps: int | None):
        from rich import progress
        from rich.console import Console
        from rich.live import Live

        class Open(Console):
            """A console that leaves it to its owner what follows when nobody reads it."""

            def on_broken_pipe(self) -> None:
                """Raises the error that rich would turn into the end of the program."""
                raise BrokenPipeError

        self.cell, self._numbers, self._epoch_steps, self._total = "", "", epoch_steps, total
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=30),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[left]}", markup=False),
            auto_refresh=False,
        )
        if epoch_steps:
            self._bars.add_task("epoch", total=epoch_steps, left="")
        self._bars.add_task(description, total=total, completed=start, left="? left")
        self._live = Live(console=Open(file=stream), auto_refresh=False, get_renderable=self._render)
        self._live.start()

    def _render(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        lines = [Text(text, no_wrap=True, overflow="ellipsis") for text in (self._numbers, self.cell) if text]
        return Group(self._bars.get_renderable(), *lines)

    def show(self, step: int, numbers: str, left: str) -> None:
        """Draws everything with `step` steps done."""
        *epoch, whole = self._bars.task_ids
        if epoch and self._epoch_steps:
            number = min(max(0, step - 1), self._total - 1) // self._epoch_steps
            count = -(-self._total // self._epoch_steps)
            self._bars.update(
                epoch[0], completed=step - number * self._epoch_steps, description=f"epoch {number + 1}/{count}"
            )
        self._bars.update(whole, completed=step, left=f"{left} left")
        self._numbers = numbers
        self._live.refresh()

    def line(self, text: str) -> None:
        """Prints a line above that stays."""
        self._live.console.print(text, markup=False, highlight=False)
        self._live.refresh()

    def stop(self) -> None:
        """Stops the display; its last state stays on the screen."""
        self._live.stop()
