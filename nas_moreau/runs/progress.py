"""How far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

_PLAIN_SECONDS = 10.0  # between two plain lines
_BAR_SECONDS = 0.1  # between two drawings of the bar


class Progress:
    """Shows steps done, the time left and the numbers that matter.

    Args:
        total_steps: How many steps there are altogether.
        description: What is going on, a word or two.
        stream: Where it is shown; a terminal gets a bar, anything else lines of text.
        start: Steps that were done before (a resumed run), so that the time left counts new ones alone.
        clock: Seconds, growing.
    """

    def __init__(
        self,
        total_steps: int,
        description: str,
        stream: TextIO | None = None,
        start: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.description, self.start = total_steps, description, start
        self._stream = sys.stderr if stream is None else stream
        self._clock, self._began = clock, clock()
        self._shown = self._began
        self._bar: Any = None
        if self._stream.isatty():
            self._bar = _open_bar(self._stream, description, total_steps, start)

    def update(self, step: int, **numbers: float) -> None:
        """Says that `step` steps are done; numbers are shown beside it, at most as often as one can read."""
        now = self._clock()
        if now - self._shown < (_PLAIN_SECONDS if self._bar is None else _BAR_SECONDS) and step < self.total:
            return
        self._shown = now
        text = "  ".join(f"{name} {_number(value)}" for name, value in numbers.items())
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, numbers=text, left=self.time_left(step, now))
            self._bar.refresh()
            return
        share = f"{100 * step / self.total:3.0f} %" if self.total else ""
        parts = (f"{self.description} {step}/{self.total}", share, text, f"{self.time_left(step, now)} left")
        self._write("  ".join(part for part in parts if part))

    def line(self, text: str) -> None:
        """Shows a line that stays, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
            self._bar.refresh()
        else:
            self._write(text)

    def time_left(self, step: int, now: float) -> str:
        """Returns the time left as h:mm:ss, from the mean of the steps done here; "?" before the first."""
        done = step - self.start
        if done <= 0:
            return "?"
        seconds = round((now - self._began) / done * max(0, self.total - step))
        return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leaves the last state on the screen and the cursor below it."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _number(value: float) -> str:
    return f"{float(value):.4g}"


def _open_bar(stream: TextIO, description: str, total: int, start: int) -> Any:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=30),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[left]} left", markup=False),
        progress.TextColumn("{task.fields[numbers]}", markup=False),
    )
    # No refreshing thread: the bar is drawn by `update`, so signals and prints meet no second writer.
    bar = progress.Progress(*columns, console=Console(file=stream), auto_refresh=False)
    bar.add_task(description, total=total, completed=start, numbers="", left="?")
    bar.start()
    return bar
