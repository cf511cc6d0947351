"""Processes that are killed or signalled at random moments, and what their resumed runs make of it."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.toy import Row, differences, fork, left_behind, make_toy, remove, run, start, wait

# Moments are drawn from the length of a run, which follows the load of the machine: longer after a run that was met,
# shorter after one that had come to its end before.
LONGER, SHORTER = 1.03, 0.9


def _reference(words: list[str], folder: Path) -> tuple[dict[str, Any], float]:
    """Runs a command undisturbed; returns what it left and how long it took."""
    begin = time.monotonic()
    code = run(words, folder / "reference")
    seconds = time.monotonic() - begin
    if code != 0:
        raise SystemExit((folder / "reference.log").read_text())
    found = left_behind(folder / "reference")
    remove(folder / "reference")
    return found, seconds


def kill(stage: str, count: int, folder: Path, seed: int = 0) -> Row:
    """Kills (-9) a stage at `count` random moments; each run is then resumed to its end, some after a second kill."""
    draw, words = random.Random(seed), make_toy(folder)[stage]
    begin = time.monotonic()
    reference, seconds = _reference(words, folder)
    killed = well = epochs = 0
    wrong: Counter[str] = Counter()
    while killed < count:
        output = folder / f"{stage}-{killed}"
        child = start(words, output)
        time.sleep(draw.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        ended = wait(child) != -signal.SIGKILL
        seconds *= LONGER if not ended else SHORTER
        if ended:
            remove(output)
            continue
        killed += 1
        epochs += (output / "checkpoints" / "last.pt").exists()
        if draw.random() < 1 / 3:
            child = start(words, output, resume=True)
            time.sleep(draw.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            wait(child)
        code = run(words, output, resume=True)
        bad = [f"exit code {code}"] if code != 0 else differences(output, reference)
        well += not bad
        wrong.update(bad)
        if not bad:
            remove(output)
    note = (
        f"{epochs} of them after the first checkpoint; equal bytes of alphas, weights, genotype, metrics; no point of "
    )
    note += "TensorBoard doubled or lost"
    return Row(f"kill -9, {stage}", count, well, str(dict(wrong)) if wrong else note, time.monotonic() - begin)


POINTS = (
    "before the file is opened",
    "before it is written",
    "in the midst of writing",
    "before its fsync",
    "before last.pt becomes previous.pt",
    "between the two renames",
    "before the folder's fsync",
)


def save_points(folder: Path, rounds: int = 3) -> Row:
    """Kills (-9) a process at each point inside the save of a third checkpoint; a whole one must load."""
    from nas_moreau.runs import load_checkpoint, save_checkpoint

    begin, well = time.monotonic(), 0
    for turn in range(rounds):
        for point in range(len(POINTS)):
            place = folder / f"save-{turn}-{point}"
            for number in (1, 2):
                save_checkpoint(place, {"number": number, "filler": list(range(1000 * turn))})
            child = fork(lambda place=place, point=point, turn=turn: _save_and_die(place, point, turn), folder / "log")
            code = wait(child)
            loaded = load_checkpoint(place)
            # once last.pt has become previous.pt, the new file counts under whichever name it has
            expected = 2 if point < 5 else 3
            well += code == -signal.SIGKILL and loaded is not None and loaded[0]["number"] == expected
    note = f"{len(POINTS)} points, {rounds} times each: {'; '.join(POINTS)}"
    return Row("kill -9 inside a save", rounds * len(POINTS), well, note, time.monotonic() - begin)


def _save_and_die(place: Path, point: int, turn: int) -> int:
    from nas_moreau.runs import save_checkpoint

    # calls of the system in a save, in order; the third point is the second one, half done
    order = ["open", "write", "fsync", "replace", "replace", "open"]
    target = {0: 0, 1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5}[point]
    done = [0]

    def dying(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            if done[0] == target and order[target] == name:
                if point == 2:
                    original(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            done[0] += 1
            return original(*arguments, **keywords)

        return call

    for name in set(order):
        setattr(os, name, dying(name))
    save_checkpoint(place, {"number": 3, "filler": list(range(1000 * turn))})
    return 0


def signals(count: int, folder: Path, seed: int = 1) -> Row:
    """Sends SIGTERM or SIGINT at `count` random moments; checks code, time, command, status, and the resumed run."""
    draw, commands = random.Random(seed), make_toy(folder)
    begin, slowest, well, done, begun = time.monotonic(), 0.0, 0, 0, 0
    references = {stage: _reference(words, folder) for stage, words in commands.items()}
    times = {stage: seconds for stage, (_, seconds) in references.items()}
    wrong: Counter[str] = Counter()
    while done < count:
        stage = draw.choice(sorted(commands))
        number = draw.choice((signal.SIGTERM, signal.SIGINT))
        output = folder / f"signal-{done}"
        child = start(commands[stage], output)
        while not _listens(child):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, times[stage]))
        sent = time.monotonic()
        os.kill(child, number)
        code = wait(child)
        times[stage] *= LONGER if code != 0 else SHORTER
        if code == 0:
            remove(output)
            continue
        done += 1
        slowest = max(slowest, time.monotonic() - sent)
        log = output.with_suffix(".log").read_text()
        bad = [] if code == 128 + number else [f"exit code {code}"]
        begun += output.exists()
        if output.exists() != ("nas-moreau" in log and "--resume" in log):
            bad.append("no command" if output.exists() else "a command for a folder that was not made")
        status = output / "status.json"
        if status.exists() and json.loads(status.read_text())["state"] != "interrupted":
            bad.append("status")
        code = run(commands[stage], output, resume=True)
        bad += [f"resumed: exit code {code}"] if code != 0 else differences(output, references[stage][0])
        well += not bad
        wrong.update(bad)
        if not bad:
            remove(output)
    note = (
        str(dict(wrong))
        if wrong
        else f"exit codes 130 and 143, {begun} of them with a folder that the printed command resumes, equal bytes "
        f"when resumed; slowest {slowest:.1f} s"
    )
    return Row("SIGINT and SIGTERM", count, well, note, time.monotonic() - begin)


def _listens(child: int) -> bool:
    """Returns whether a process has installed a handler for SIGTERM (Linux)."""
    for line in Path(f"/proc/{child}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return True
