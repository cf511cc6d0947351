"""Starts groups of processes with torchrun on this machine, none of which outlives its test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nas_moreau.distributed import child_environment

LIMIT = 400  # seconds after which a group is killed: none hangs the tests, and a busy machine has its time


def environment() -> dict[str, str]:
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    return child_environment() | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"}


def start(processes: int, words: Sequence[str], options: Sequence[str] = ("--standalone",)) -> subprocess.Popen:
    """Starts torchrun in a session of its own; `words` is a script or `-m MODULE`, with its arguments."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, f"--nproc-per-node={processes}", *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )


def workers(torchrun: subprocess.Popen) -> list[int]:
    """Returns the process ids of the workers that torchrun has started, by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            words = entry.joinpath("environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        rank = next((int(word[5:]) for word in words if word.startswith(b"RANK=")), None)
        if entry.name.isdigit() and parent == torchrun.pid and rank is not None:
            found[rank] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


def end(torchrun: subprocess.Popen) -> tuple[int, str, str]:
    """Waits for torchrun, kills what has not ended in time, and returns exit code, output and messages."""
    try:
        out, err = torchrun.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        for process in workers(torchrun):  # each has a session of its own
            os.killpg(process, signal.SIGKILL)
        os.killpg(torchrun.pid, signal.SIGKILL)
        out, err = torchrun.communicate()
        raise AssertionError(f"torchrun did not end in {LIMIT} s:\n{out}\n{err}") from None
    return torchrun.returncode, out, err


def torchrun(processes: int, words: Sequence[str], options: Sequence[str] = ("--standalone",)) -> tuple[int, str, str]:
    return end(start(processes, words, options))
