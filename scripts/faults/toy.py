"""The smallest runs there are, in processes that can be killed, and what two of them must have in common.

A process is forked from one that has imported everything, so that a hundred of them cost what they compute and no more.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

CONFIG = {
    "space": "toy",
    "checkpoint": {"every_steps": 1},
    "logging": {"every_steps": 1},
    "search": {
        "channels": 1,
        "layers": 2,
        "epochs": 3,
        "steps_per_epoch": 3,
        "batch_size": 4,
        "image_size": 8,
        "augment": {"crop": 1},
        "alphas": {"lr": 0.05, "lr_min": 0.05},
    },
    "retrain": {
        "channels": 1,
        "layers": 3,
        "epochs": 3,
        "steps_per_epoch": 3,
        "batch_size": 8,
        "auxiliary": False,
        "augment": {"crop": 1},
        "ema": 0.9,
        "mixup": 0.2,
        "evaluate_every": 1,
    },
}
STAGES = ("search", "retrain")
LOADED = (
    "matplotlib.backends.backend_svg",
    "nas_moreau.compare.job",
    "nas_moreau.problems.tasks",
    "nas_moreau.report.run",
    "nas_moreau.search.derive",
    "nas_moreau.search.stage",
    "nas_moreau.training.retrain",
    "rich.table",
    "tensorboard.backend.event_processing.event_accumulator",
    "timm",
    "torch.utils.tensorboard",
)
"""What the commands load when they run."""


class Row(NamedTuple):
    """One line of the table: what was done, how often, how often it ended well, and what else is worth saying."""

    name: str
    count: int
    well: int
    note: str
    seconds: float


def make_toy(folder: Path) -> dict[str, list[str]]:
    """Writes images and a configuration into `folder`; returns the words of each stage's command, without --output."""
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3
    data = folder / "toy.npz"
    np.savez(data, x_train=images, y_train=labels, x_test=images[:12], y_test=labels[:12])
    config = folder / "toy.yaml"
    config.write_text(yaml.safe_dump(CONFIG | {"data": {"name": f"npz:{data}"}}))
    return {"search": ["search", "--config", str(config)], "retrain": ["retrain", "DARTS_V2", "--config", str(config)]}


def import_everything() -> None:
    """Loads what the commands load, so that forked processes find it."""
    for name in LOADED:
        importlib.import_module(name)
    import torch

    from nas_moreau.runs import environment

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # which says at every purge that it purges
    torch.set_num_threads(1)
    commit = environment.current_commit()
    environment.current_commit = lambda: commit  # asking git takes longer than the rest of such a run


def fork(work: Callable[[], int], log: Path) -> int:
    """Runs `work` in a forked process that ends with its code, its output in `log`; returns the process id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def start(words: list[str], output: Path, resume: bool = False) -> int:
    """Starts a command in a separate process; returns its id. What it prints goes to OUTPUT.log."""
    from nas_moreau.cli import main

    more = ["--output", str(output), *(["--resume"] if resume else [])]
    return fork(lambda: main([*words, *more]), output.with_suffix(".log"))


def wait(child: int, seconds: float = 600.0) -> int | None:
    """Returns the exit code of a process (minus the signal that killed it), None if it still runs after `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def run(words: list[str], output: Path, resume: bool = False) -> int | None:
    """Runs a command to its end; returns its exit code."""
    return wait(start(words, output, resume))


def left_behind(folder: Path) -> dict[str, Any]:
    """Returns what must not differ between two runs of one configuration: tensors, tables, genotype, curves."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from nas_moreau.runs import load_checkpoint
    from nas_moreau.runs.tables import read_table

    payload, _ = load_checkpoint(folder / "checkpoints") or ({}, "")
    tensors = [
        tensor.numpy().tobytes()
        for key in ("x", "y", "buffers", "theta_buffers", "model", "ema")
        for tensor in (payload.get(key).values() if isinstance(payload.get(key), dict) else payload.get(key) or [])
    ]
    metrics = [{k: v for k, v in row.items() if k != "wall_seconds"} for row in read_table(folder / "metrics.csv")]
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    curves = {
        tag: [(event.step, event.value) for event in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
        if tag != "step/seconds" and not tag.startswith("resources/")  # times and memory
    }
    alphas = folder / "alphas.csv"
    return {
        "tensors": tensors,
        "metrics": metrics,
        "TensorBoard": curves,
        "alphas.csv": alphas.read_bytes() if alphas.exists() else b"",
        "genotype": (folder / "genotype.json").read_bytes(),
    }


def differences(folder: Path, reference: dict[str, Any]) -> list[str]:
    """Returns the names of what differs from the reference."""
    found = left_behind(folder)
    return [name for name in reference if found[name] != reference[name]]


def remove(output: Path) -> None:
    """Deletes a run and its log."""
    shutil.rmtree(output, ignore_errors=True)
    output.with_suffix(".log").unlink(missing_ok=True)
