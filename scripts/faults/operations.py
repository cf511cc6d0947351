"""Processes that are killed before their n-th operation on a file, and clocks that jump between two sessions.

An audit hook counts the operations: whatever opens a file for writing, renames, removes, truncates or makes a folder,
and os.write and os.fsync, which have no audit event.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.commands import children_in_this_process, steps
from faults.toy import Row, fork, remove, wait

CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"})
SHARE = {"search": 2, "retrain": 2, "run": 1, "compare": 2, "solve": 5, "derive --write": 4}
"""Of 16 kills."""
SHIFTS = (-86_400, -3600, -1, 3600)
"""Seconds that the clock jumps between two sessions."""


def count_operations(place: Path, reached: Callable[[int], None]) -> None:
    """From now on calls `reached` with the number of each operation on a file below `place`, before it is done."""
    done, prefix = [0], str(place)

    def count() -> None:
        reached(done[0])
        done[0] += 1

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes and str(path).startswith(prefix):
                count()
        elif event in CHANGES and str(arguments[0]).startswith(prefix):
            count()

    sys.addaudithook(hook)
    for name in ("write", "fsync"):
        setattr(os, name, _counted(getattr(os, name), prefix, count))


def _counted(original: Callable[..., Any], prefix: str, count: Callable[[], None]) -> Callable[..., Any]:
    def call(handle: int, *arguments: Any) -> Any:
        try:
            inside = os.readlink(f"/proc/self/fd/{handle}").startswith(prefix)
        except OSError:
            inside = False
        if inside:
            count()
        return original(handle, *arguments)

    return call


def kills(count: int, folder: Path, seed: int = 5) -> list[Row]:
    """Kills every command before `count` operations in all; each is then run again to its end."""
    children_in_this_process()
    made = steps(folder)
    return [
        _kills_of(name, step, max(1, round(count * SHARE[name] / 16)), folder / name.replace(" ", ""), seed)
        for name, step in made.items()
    ]


def _kills_of(name: str, step: Any, count: int, folder: Path, seed: int) -> Row:
    draw, begin = random.Random(f"{seed} {name}"), time.monotonic()
    folder.mkdir()
    reference, total = _undisturbed(step, folder)
    # without repetition: each operation at most once as long as there are enough
    places = draw.sample(range(total), min(count, total))
    places += [draw.randrange(total) for _ in range(count - len(places))]
    well, wrong = 0, Counter[str]()
    for number, place in enumerate(places):
        output = folder / f"r{number}"
        died = wait(fork(lambda output=output, place=place: _die(step, output, place), output.with_suffix(".log")))
        bad = [] if died == -signal.SIGKILL else [f"not killed but {died} before operation {place}"]
        again = wait(fork(lambda output=output: _end(step, output, reference), output.with_suffix(".log")))
        bad += [f"{place}: {output.with_suffix('.log').read_text()[-160:]!r}"] * (again != 0)
        well += not bad
        wrong.update(bad)
        remove(output)
    note = f"of {total} operations; run again: equal bytes of everything but times"
    shown = str(list(wrong)[:3]) if wrong else note
    return Row(f"kill -9 before a file operation, {name}", count, well, shown, time.monotonic() - begin)


def _prepared(step: Any, output: Path) -> None:
    if step.prepare is not None and not output.exists():
        step.prepare(output)


def _undisturbed(step: Any, folder: Path) -> tuple[Any, int]:
    """Returns what a run leaves behind and how many operations it takes."""
    output, counted = folder / "reference", folder / "count"
    _prepared(step, output)

    def work() -> int:
        seen = [0]
        count_operations(output, lambda number: seen.__setitem__(0, number + 1))
        code = step.run(output)
        counted.write_text(str(seen[0]))
        return code

    if wait(fork(work, output.with_suffix(".log"))) != 0:
        raise SystemExit(output.with_suffix(".log").read_text())
    return step.left(output), int(counted.read_text())


def _die(step: Any, output: Path, place: int) -> int:
    _prepared(step, output)
    count_operations(output, lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == place else None)
    return step.run(output)


def _end(step: Any, output: Path, reference: Any, clock: float = 0.0) -> int:
    if clock:
        real = time.time
        time.time = lambda: real() + clock
    if step.prepare is None and not output.exists():
        output.mkdir()  # killed before the folder was made
    _prepared(step, output)
    code = step.run(output, resume=True)
    if code != 0:
        return code
    found = step.left(output)
    differing = [key for key in reference if found[key] != reference[key]]
    if differing:
        print(f"differing: {differing}", flush=True)
    return 1 if differing else 0


def clocks(count: int, folder: Path, seed: int = 6) -> Row:
    """Kills a search or a retraining before an operation and lets the clock jump before it is resumed."""
    children_in_this_process()
    draw, begin, well, wrong = random.Random(seed), time.monotonic(), 0, []
    made = {name: step for name, step in steps(folder).items() if name in ("search", "retrain")}
    for stage in made:
        (folder / stage).mkdir()
    references = {name: _undisturbed(step, folder / name) for name, step in made.items()}
    for number in range(count):
        name, shift = draw.choice(sorted(made)), SHIFTS[number % len(SHIFTS)]
        reference, total = references[name]
        output, place = folder / f"c{number}", draw.randrange(total // 3, total)
        log = output.with_suffix(".log")
        wait(fork(lambda name=name, output=output, place=place: _die(made[name], output, place), log))
        end = wait(fork(lambda name=name, output=output, r=reference, s=shift: _end(made[name], output, r, s), log))
        well += end == 0
        wrong += [f"{name}, {shift} s: {log.read_text()[-160:]!r}"] * (end != 0)
        remove(output)
    note = f"by {', '.join(map(str, SHIFTS))} s before the resume; equal bytes, no point of TensorBoard doubled or lost"
    return Row("clock shifts", count, well, str(wrong[:3]) if wrong else note, time.monotonic() - begin)
