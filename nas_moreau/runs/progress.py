"""Progress of a run: bars and numbers on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

from nas_moreau.runs.heartbeat import BAR_SECONDS, FIRST_SECONDS, PLAIN_SECONDS, message_lines, on_top, sign

_DRAWING_SECONDS = 0.1
"""Seconds between two drawings of the bar."""


class Progress:
    """Shows steps done, remaining time and current numbers; between steps, what is being done and for how long.

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
        self._shown = self._printed = self._began
        self._activity, self._since = "", self._began  # what is done between two steps, and since when
        self._paused, self._next_sign = False, FIRST_SECONDS
        self._lock, self._open = threading.RLock(), ExitStack()
        self._first: tuple[int, float] | None = None  # the first step shown, and when
        self._wait = FIRST_SECONDS
        self._read = True  # whether somebody reads it
        self._bar: Any = None
        self._epoch_steps = epoch_steps

    def update(self, step: int, **numbers: float | str) -> None:
        """Shows that `step` steps are done, with some numbers, but not more often than one can read.

        Args:
            step: Of the whole run.
            numbers: By name ("_" is shown as a space); texts are shown as they are.
        """
        with self._lock:
            now = self._clock()
            self._first = self._first or (step, now)
            self._activity, self._since, self._next_sign = "", now, PLAIN_SECONDS + FIRST_SECONDS
            if now - self._shown < (self._wait if self._bar is None else _DRAWING_SECONDS) and step < self.total:
                return
            self._shown = self._printed = now
            self._wait = PLAIN_SECONDS
            text = "  ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in numbers.items())
            if self._bar is not None:
                with self._while_read():
                    self._bar.show(step, text, self.time_left(step, now))
                return
            share = f"{100 * step / self.total:3.0f} %" if self.total else ""
            parts = (f"{self.description} {step}/{self.total}", share, text, f"{self.time_left(step, now)} left")
            self._write("  ".join(part for part in parts if part))

    def line(self, text: str) -> None:
        """Prints lines that stay, above the bar if there is one; a terminal gets none wider than itself."""
        self._keep(message_lines(text, self._stream, True))

    def _keep(self, text: str) -> None:
        with self._lock:
            self._printed = self._clock()
            if self._bar is not None:
                with self._while_read():
                    self._bar.line(text)
            else:
                self._write(text)

    def note(self, text: str, *, activity: bool = True, fold: bool = True) -> None:
        """Prints a message that stays, above the bar if there is one.

        Args:
            text: One line or several.
            activity: Whether it is what is being done from now on, until the next step.
            fold: Whether a terminal gets lines that are not wider than itself.
        """
        self._keep(message_lines(text, self._stream, fold))
        if activity:
            self.doing(text.rpartition("\n")[2])

    def doing(self, text: str) -> None:
        """Sets what is being done until the next step; "" for the step."""
        with self._lock:
            self._activity, self._since = text, self._clock()
            self._next_sign = FIRST_SECONDS if text else PLAIN_SECONDS + FIRST_SECONDS

    def beat(self) -> None:
        """Shows what is being done, and for how long, where nothing else was shown for a while."""
        with self._lock:
            now, terminal = self._clock(), self._bar is not None
            if self._paused or now - self._printed < (BAR_SECONDS if terminal else self._next_sign):
                return
            text = sign(self._activity or self.description, now - self._since)
            if self._bar is not None:
                with self._while_read():
                    self._bar.sign(text)
            else:
                self._printed, self._next_sign = now, PLAIN_SECONDS
                self._write(text)

    def pause(self, paused: bool) -> None:
        """Shows no signs of life until it is called with False: another one does."""
        with self._lock:
            if self._paused and not paused:
                self._printed = self._clock()
            self._paused = paused

    def cell(self, text: str) -> None:
        """Sets the line about the current cell below the bars of a terminal."""
        with self._lock:
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
        """Removes the display."""
        with self._lock, self._while_read():
            if self._bar is not None:
                self._bar.stop()
            self._bar, self._paused = None, True
        self._open.close()

    def __enter__(self) -> Progress:
        self._open.enter_context(on_top(self))
        if self._stream.isatty():
            with self._lock, self._while_read():
                self._bar = Display(self._stream, self.description, self.total, self.start, self._epoch_steps)
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{float(value):.4g}"


class Display:
    """Bars for the epoch and for all steps, a line of numbers and one about the cell, redrawn in place by rich.

    No thread of rich refreshes it: it is drawn on every call, of which `Progress` lets no two overlap.
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

        self.cell, self._numbers, self._sign, self._epoch_steps, self._total = "", "", "", epoch_steps, total
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
        self._live = Live(console=Open(file=stream), auto_refresh=False, transient=True, get_renderable=self._render)
        self._live.start()

    def _render(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        lines = [Text(text, no_wrap=True, overflow="ellipsis") for text in (self.cell, self._sign) if text]
        return Group(self._bars.get_renderable(), *([Text(self._numbers)] if self._numbers else []), *lines)

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
        self._numbers, self._sign = numbers, ""
        self._live.refresh()

    def sign(self, text: str) -> None:
        """Draws everything with a sign of life below, until the next step."""
        self._sign = text
        self._live.refresh()

    def line(self, text: str) -> None:
        """Prints a line above that stays."""
        self._sign = ""
        self._live.console.print(text, markup=False, highlight=False)
        self._live.refresh()

    def stop(self) -> None:
        """Removes the display."""
        self._live.stop()
