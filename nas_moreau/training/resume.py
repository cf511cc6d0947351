"""A stage's run folder and checkpoints: saving, exact resume, and going back with halved step sizes.

Of several processes rank 0 alone opens the folder, writes and reads; the others get what it read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nas_moreau import distributed
from nas_moreau.errors import InputError, first_line
from nas_moreau.runs import RunFolder, save_checkpoint
from nas_moreau.runs.configuration import LOCAL, configuration_digest
from nas_moreau.runs.identity import Identity, refuse_other
from nas_moreau.runs.own_checkpoints import own_best, own_checkpoint, settle
from nas_moreau.training.signals import NonFinite

MAX_ROLLBACKS = 3
"""Going back that often divides the step sizes by 8 (our choice)."""


@dataclass
class Counters:
    """How far a stage has come. Every checkpoint holds them.

    Attributes:
        step: Steps done.
        epochs: Epochs that are done, their evaluation included.
        seconds: Wall-clock time of the stage, earlier sessions included.
        evaluating: Seconds of it that were spent in evaluations.
        best: The best accuracy of an epoch on images that are not trained on, -1 before the first.
        rollbacks: How often the stage went back to a checkpoint with halved step sizes.
        logged: The numbers logged to TensorBoard at this step; a resumed run logs them again.
    """

    step: int = 0
    epochs: int = 0
    seconds: float = 0.0
    evaluating: float = 0.0
    best: float = -1.0
    rollbacks: int = 0
    logged: dict[str, Any] = field(default_factory=dict)

    def check(self, epoch_steps: int) -> None:
        """Raises ValueError for counts that no run can have; `epoch_steps` are the steps of an epoch."""
        counts = {"step": self.step, "epochs": self.epochs, "rollbacks": self.rollbacks}
        if any(type(count) is not int or count < 0 for count in counts.values()) or self.rollbacks > MAX_ROLLBACKS:
            raise ValueError(f"counts are {counts}")
        if not self.step // epoch_steps - 1 <= self.epochs <= -(-self.step // epoch_steps):
            raise ValueError(f"{self.epochs} epochs in {self.step} steps")
        if not all(type(time) in (int, float) and 0 <= time < math.inf for time in (self.seconds, self.evaluating)):
            raise ValueError(f"seconds are {self.seconds}, {self.evaluating}")


class Resumable(Protocol):
    """What can be saved and restored.

    Attributes:
        name: What runs, for messages.
        counters: How far it has come.
        epoch_steps: Steps of an epoch.
    """

    name: str
    counters: Counters
    epoch_steps: int

    def state_dict(self) -> dict[str, Any]:
        """Returns the state without the counters: tensors and plain values."""

    def load_state_dict(self, payload: dict[str, Any]) -> None:
        """Restores the state; `counters` are restored already."""


def open_folder(
    output: str | PathLike[str], config: dict[str, Any], stage: str, resume: bool, identity: Identity
) -> RunFolder:
    """Opens the folder as `RunFolder.open` does; ranks other than 0 get one that writes nothing.

    Args:
        output: The folder.
        config: The configuration in full.
        stage: What runs in it.
        resume: Continue an earlier run.
        identity: Digests of what else the run is made of.

    Raises:
        InputError: On all ranks, as on rank 0; or a rank has another configuration or other data than rank 0.
    """
    _check_ranks({"configuration": configuration_digest(config, LOCAL), **identity})
    opened: list[RunFolder] = []

    def enter() -> tuple[bool, bool]:
        opened.append(RunFolder.open(output, config, stage, resume, identity))
        return opened[0].resuming, opened[0].finished

    resuming, finished = distributed.run_on_rank0(enter)
    return opened[0] if opened else RunFolder(Path(output), stage, None, resuming=resuming, finished=finished)


def _check_ranks(own: Identity) -> None:
    first, name = distributed.run_on_rank0(lambda: own), f"rank {distributed.rank()}"
    cure = "Give all processes the same command and the same data."
    distributed.run_on_all_ranks(lambda: refuse_other(first, own, name, "rank 0", cure))


def finished_result(folder: RunFolder) -> dict[str, Any]:
    """Returns the result of a folder that is finished."""
    return distributed.run_on_rank0(lambda: folder.read_result() or {})


def pack(state: Any) -> Any:
    """Returns a (nested) NamedTuple state as lists, tensors and plain values, for a checkpoint."""
    return [pack(part) for part in state] if isinstance(state, (tuple, list)) else state


def unpack(template: Any, packed: Any, device: torch.device) -> Any:
    """Returns what `pack` was given, in the types of `template` (the method's state at k = 0)."""
    if isinstance(packed, Tensor):
        # counts of a recorded step are tensors
        return int(packed) if type(template) is int else packed.to(device)
    if not isinstance(packed, list):
        return packed
    whole = isinstance(template, (tuple, list)) and len(template) == len(packed)
    parts: Iterator[Any] = (unpack(template[i] if whole else None, part, device) for i, part in enumerate(packed))
    if whole and isinstance(template, tuple):
        return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)
    return list(parts)


def save(job: Resumable, folder: RunFolder, best: bool = False) -> None:
    """Writes a checkpoint of the job, with the digests of what it was made with."""
    if folder.silent:
        return
    payload = {
        "stage": folder.stage,
        "counters": asdict(job.counters),
        "processes": distributed.world_size(),
        "digests": dict(folder.identity),
        **job.state_dict(),
    }
    save_checkpoint(folder.path / "checkpoints", payload, best)


def restore(job: Resumable, folder: RunFolder) -> str | None:
    """Restores the job from the newest intact checkpoint of a resumed run.

    Returns:
        A sentence on what was resumed; None if there is no checkpoint.

    Raises:
        InputError: All checkpoints are damaged, or they belong to another configuration, space or network.
    """
    loaded = _load(folder) if folder.resuming else None
    if loaded is None:
        return None
    payload, note = loaded
    with _fitting(folder):
        if payload["stage"] != folder.stage:
            raise InputError(f"The checkpoint in {folder.path} is of a {payload['stage']}.", "Restore the right files.")
        job.counters = Counters(**payload["counters"])
        job.counters.check(job.epoch_steps)
        job.load_state_dict(payload)
        before, now = payload["processes"], distributed.world_size()
    changes, halved = "", job.counters.rollbacks
    if halved:
        changes += f"; step sizes are halved {halved} time{'s' * (halved > 1)}"
    if before != now:
        changes += (
            f"; {now} process{'es' * (now > 1)} instead of {before}: the same batches in other shards, so rounding and "
            "BatchNorm's local statistics differ from here on"
        )
    if folder.changes:
        changes += f"; bytes will differ from here on: {folder.changes}"
    sentence = f"{job.name}: resumed at step {job.counters.step}; {note.rstrip('.')}{changes}."
    folder.log(sentence)
    return sentence


def _load(folder: RunFolder) -> tuple[dict[str, Any], str] | None:
    """Returns what rank 0 reads, on all ranks: they need no common file system."""

    def read() -> tuple[dict[str, Any], str] | None:
        if folder.silent:  # nothing is written; its path is that of the working folder
            return None
        settle(folder.path)
        return own_checkpoint(folder.path)

    return distributed.run_on_rank0(read)


@contextmanager
def _fitting(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"{type(error).__name__}: {first_line(error, 100)}"
        raise InputError(
            f"The checkpoint in {folder.path} does not fit this run ({reason}).",
            "Restore the folder as it was, or start again in another one.",
        ) from error


def roll_back(job: Resumable, folder: RunFolder, error: NonFinite, allowed: bool) -> None:
    """Prepares the folder for another attempt from its last checkpoint, with the step sizes halved.

    The checkpoint keeps the count, so that a resumed run continues with the same step sizes.

    Raises:
        NonFinite: It is not allowed, there is no checkpoint, or the stage went back `MAX_ROLLBACKS` times already.
    """
    folder.log(str(error))
    loaded = _load(folder) if allowed else None
    done = loaded[0]["counters"]["rollbacks"] if loaded else 0
    if loaded is None or done >= MAX_ROLLBACKS:
        folder.status("failed", reason=str(error))
        if loaded:
            raise NonFinite(f"{error} Rolled back {done} times already.") from error
        raise error
    payload = loaded[0]
    payload["counters"]["rollbacks"] = done + 1
    if not folder.silent:
        save_checkpoint(folder.path / "checkpoints", payload)
    folder.resuming = True
    folder.log(f"{job.name}: rolled back to step {payload['counters']['step']} with the step sizes halved")


def load_weights(network: nn.Module, run: str | PathLike[str]) -> None:
    """Loads the weights that a retraining reports (best.pt): the moving average, if it has one.

    Raises:
        InputError: There is no such checkpoint, it is damaged, or it belongs to another run or network.
    """
    payload = own_best(Path(run))
    try:
        weights = payload["ema"] or payload["model"]
        own = network.state_dict()
        check_like(weights, {name: own[name] for name in weights})
        network.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"best.pt in {run} does not fit its network: {first_line(error)}.", "Retrain, or give another run."
        ) from None


def check_like(found: Any, template: Any) -> None:
    """Raises ValueError unless tensors, in lists or dicts, have the names, shapes and types of a template's."""
    keys = (lambda part: list(part)) if isinstance(template, Mapping) else (lambda part: list(range(len(part))))
    if isinstance(found, Mapping) != isinstance(template, Mapping) or set(keys(found)) != set(keys(template)):
        raise ValueError(f"{len(found)} tensors where {len(template)} of other names should be")
    for key in keys(template):
        a, b = found[key], template[key]
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(f"{key} is {a.dtype} {tuple(a.shape)}, not {b.dtype} {tuple(b.shape)}")
