"""Groups of two processes under torchrun that lose one at random moments, and what their restarts make of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from faults.toy import Row, differences, left_behind, make_toy

MOST_RESTARTS = 5
LONGEST = 900.0  # seconds of a group, after which it counts as hung


def _group(words: list[str], output: Path, restarts: int) -> subprocess.Popen[bytes]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, f"--max-restarts={restarts}", "-m", "nas_moreau", *words, "--output", str(output), "--resume"]
    with open(output.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def members(group: subprocess.Popen[bytes]) -> list[int]:
    """Returns the process ids of a torchrun's members."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent == group.pid and b"\0RANK=" in entry.joinpath("environ").read_bytes():
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def _saved(output: Path) -> float:
    """Returns when the last checkpoint was written; 0 before the first."""
    try:
        return (output / "checkpoints" / "last.pt").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def kill_one(stage: str, count: int, folder: Path, seed: int = 0) -> Row:
    """Kills (-9) one of two processes `count` times, up to 5 times a run; each run must end as an undisturbed one."""
    begin, draw = time.monotonic(), random.Random(seed)
    words = [*make_toy(folder)[stage], f"{stage}.epochs=40", "device=cpu"]
    undisturbed = folder / f"{stage}-reference"
    if _group(words, undisturbed, 0).wait():
        raise SystemExit(undisturbed.with_suffix(".log").read_text())
    reference = left_behind(undisturbed)
    killed = well = 0
    wrong: list[str] = []
    while killed < count:
        output, here = folder / f"{stage}-{killed}", 0
        group, until = _group(words, output, MOST_RESTARTS), time.monotonic() + LONGEST
        while group.poll() is None and time.monotonic() < until:
            before = _saved(output)
            while group.poll() is None and _saved(output) == before and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.5))
            alive = members(group)
            if here < MOST_RESTARTS and killed + here < count and len(alive) == 2:
                os.kill(draw.choice(alive), signal.SIGKILL)
                here += 1
        code = group.poll()
        if code is None:
            for member in members(group):
                os.killpg(member, signal.SIGKILL)
            os.killpg(group.pid, signal.SIGKILL)
        bad = [f"exit code {code}"] if code != 0 else differences(output, reference)
        killed, well = killed + here, well + (0 if bad else here)
        wrong += bad
    note = f"in runs of up to {MOST_RESTARTS} kills, restarted by torchrun; equal bytes of alphas, weights, metrics"
    return Row(
        f"kill -9, one of two processes, {stage}", count, well, str(wrong) if wrong else note, time.monotonic() - begin
    )
