"""What the stages do about checkpoints: states as plain data, whose they are, whether they fit, going back to one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_moreau import distributed
from nas_moreau.architecture import SearchSpace
from nas_moreau.errors import InputError, first_line
from nas_moreau.runs import RunFolder, load_checkpoint, save_checkpoint
from nas_moreau.runs.checkpoint import Damaged, read_checkpoint
from nas_moreau.training.signals import NonFinite

MOST_ROLLBACKS = 3


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


def save(folder: RunFolder, space: SearchSpace, payload: dict[str, Any], best: bool = False) -> None:
    """Saves a stage's payload with the digests of what it was made with; of several processes the first does."""
    if folder.silent:
        return
    payload = {**payload, "processes": distributed.processes()}
    digests = {"configuration": folder.digest, "space": space.digest()}
    save_checkpoint(folder.path / "checkpoints", {**payload, "digests": digests}, best)


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


def restore(folder: RunFolder, space: SearchSpace, put_back: Callable[[dict[str, Any]], None]) -> str | None:
    """Hands the newest intact payload of a resumed run to `put_back`; returns a sentence on it, None without one.

    Raises:
        InputError: All checkpoints are damaged, or they belong to another configuration, space or network.
    """
    loaded = _load(folder) if folder.resuming else None
    if loaded is None:
        return None
    payload, note = loaded
    with _fitting(folder):
        expected = {"configuration": folder.digest, "space": space.digest()}
        for name, digest in payload.get("digests", {}).items():  # the first files had none
            if digest != expected[name]:
                raise InputError(
                    f"The checkpoint in {folder.path} was made with another {name} than the run has now.",
                    "Put the run's config.yaml or the space's file back as it was, or start again in another folder.",
                )
        if payload["stage"] != folder.stage:
            raise InputError(f"The checkpoint in {folder.path} is of a {payload['stage']}.", "Restore the right files.")
        if type(payload["step"]) is not int or payload["step"] < 0:
            raise ValueError(f"step is {payload['step']!r}")
        put_back(payload)
        halved = payload.get("rollbacks", 0)
    said = f"; step sizes are halved {halved} time{'s' * (halved > 1)}" if halved else ""
    before, now = payload.get("processes", 1), distributed.processes()
    if before != now:
        said += (
            f"; {now} process{'es' * (now > 1)} in place of {before}: the same batches, shared otherwise, so that "
            "rounding and BatchNorm's local statistics differ from here on"
        )
    sentence = f"{folder.stage}: resumed at step {payload['step']}; {note.rstrip('.')}{said}."
    folder.log(sentence)
    return sentence


def _load(folder: RunFolder) -> tuple[dict[str, Any], str] | None:
    """Returns what the first process reads, in all of them: they need no common file system."""
    return distributed.on_first(lambda: load_checkpoint(folder.path / "checkpoints"))


def with_rollbacks(folder: RunFolder, allowed: bool, attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns what `attempt` returns, which begins at the last checkpoint.

    Where a number is not finite and `allowed` is true, it is called again with the step sizes halved, 3 times at most
    in a run's life: the checkpoint keeps the count, so that a resumed run goes on with the same step sizes.

    Raises:
        NonFinite: It was not allowed, or did not help.
    """
    while True:
        try:
            return attempt()
        except NonFinite as error:
            folder.log(str(error))
            loaded = _load(folder) if allowed else None
            done = loaded[0].get("rollbacks", 0) if loaded else 0
            if loaded is None or done >= MOST_ROLLBACKS:
                folder.status("failed", reason=str(error))
                if loaded:
                    raise NonFinite(f"{error} Rolled back {done} times already.") from error
                raise
            if not folder.silent:
                save_checkpoint(folder.path / "checkpoints", loaded[0] | {"rollbacks": done + 1})
            folder.resuming = True
            folder.log(f"{folder.stage}: rolled back to step {loaded[0]['step']} with the step sizes halved")


def load_weights(network: nn.Module, run: str | PathLike[str]) -> None:
    """Loads the weights that a retraining folder is reported with (best.pt): the moving average, if it has one.

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
