"""A stage's run folder and checkpoints: saving, exact resume, and going back with halved step sizes.

Of several processes rank 0 alone opens the folder, writes and reads; the others get what it read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nas_moreau import distributed
from nas_moreau.architecture import SearchSpace
from nas_moreau.errors import InputError, first_line
from nas_moreau.runs import RunFolder, load_checkpoint, save_checkpoint
from nas_moreau.runs.checkpoint import Damaged, read_checkpoint
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


class Resumable(Protocol):
    """What can be saved and restored.

    Attributes:
        name: What runs, for messages.
        counters: How far it has come.
    """

    name: str
    counters: Counters

    @property
    def space(self) -> SearchSpace | None:
        """Its search space, None if it has none."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state without the counters: tensors and plain values."""

    def load_state_dict(self, payload: dict[str, Any]) -> None:
        """Restores the state; `counters` are restored already."""


def open_folder(output: str | PathLike[str], config: dict[str, Any], stage: str, resume: bool) -> RunFolder:
    """Opens the folder as `RunFolder.open` does; ranks other than 0 get one that writes nothing.

    Raises:
        InputError: On all ranks, as on rank 0.
    """
    opened: list[RunFolder] = []

    def enter() -> tuple[bool, bool, str]:
        opened.append(RunFolder.open(output, config, stage, resume))
        return opened[0].resuming, opened[0].finished, opened[0].digest

    resuming, finished, digest = distributed.run_on_rank0(enter)
    if opened:
        return opened[0]
    return RunFolder(Path(output), stage, None, resuming=resuming, finished=finished, digest=digest)


def finished_result(folder: RunFolder) -> dict[str, Any]:
    """Returns the result of a folder that is finished."""
    return distributed.run_on_rank0(lambda: folder.read_result() or {})


def pack(state: Any) -> Any:
    """Returns a (nested) NamedTuple state as lists, tensors and plain values, for a checkpoint."""
    return [pack(part) for part in state] if isinstance(state, (tuple, list)) else state


def unpack(template: Any, packed: Any, device: torch.device) -> Any:
    """Returns what `pack` was given, in the types of `template` (the method's state at k = 0)."""
    if isinstance(packed, Tensor):
        return packed.to(device)
    if not isinstance(packed, list):
        return packed
    whole = isinstance(template, (tuple, list)) and len(template) == len(packed)
    parts: Iterator[Any] = (unpack(template[i] if whole else None, part, device) for i, part in enumerate(packed))
    if whole and isinstance(template, tuple):
        return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)
    return list(parts)


def _digests(folder: RunFolder, space: SearchSpace | None) -> dict[str, str]:
    return {"configuration": folder.digest} | ({} if space is None else {"space": space.digest()})


def save(job: Resumable, folder: RunFolder, best: bool = False) -> None:
    """Writes a checkpoint of the job, with the digests of what it was made with."""
    if folder.silent:
        return
    payload = {
        "stage": folder.stage,
        "counters": asdict(job.counters),
        "processes": distributed.world_size(),
        "digests": _digests(folder, job.space),
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
        _check_origin(payload, folder, job.space)
        job.counters = Counters(**payload["counters"])
        if type(job.counters.step) is not int or job.counters.step < 0:
            raise ValueError(f"step is {job.counters.step!r}")
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
    sentence = f"{job.name}: resumed at step {job.counters.step}; {note.rstrip('.')}{changes}."
    folder.log(sentence)
    return sentence


def _load(folder: RunFolder) -> tuple[dict[str, Any], str] | None:
    """Returns what rank 0 reads, on all ranks: they need no common file system."""
    return distributed.run_on_rank0(lambda: load_checkpoint(folder.path / "checkpoints"))


def _check_origin(payload: dict[str, Any], folder: RunFolder, space: SearchSpace | None) -> None:
    expected = _digests(folder, space)
    for name, digest in payload["digests"].items():
        if digest != expected[name]:
            raise InputError(
                f"The checkpoint in {folder.path} was made with another {name} than the run has now.",
                "Put the run's config.yaml or the space's file back as it was, or start again in another folder.",
            )
    if payload["stage"] != folder.stage:
        raise InputError(f"The checkpoint in {folder.path} is of a {payload['stage']}.", "Restore the right files.")


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
        InputError: There is no such checkpoint, it is damaged, or it belongs to another network.
    """
    path = Path(run) / "checkpoints" / "best.pt"
    try:
        payload = read_checkpoint(path)
        network.load_state_dict(payload["ema"] or payload["model"])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.", "Finish the retraining first (retrain --resume).") from None
    except (Damaged, KeyError, RuntimeError) as error:
        raise InputError(f"{path} cannot be used: {first_line(error)}.", "Retrain, or give another run.") from None
