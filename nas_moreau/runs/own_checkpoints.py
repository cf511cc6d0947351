"""Checkpoints of a run that are its own: whoever reads one compares what it was made with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_moreau.errors import InputError
from nas_moreau.runs.atomic import sync_folder
from nas_moreau.runs.checkpoint import Damaged, load_checkpoint, read_checkpoint
from nas_moreau.runs.identity import recorded_identity, refuse_other


def own_checkpoint(run: Path) -> tuple[dict[str, Any], str] | None:
    """Returns the newest intact checkpoint of a run and a note on its file, None if there is none.

    Raises:
        InputError: All are damaged, or it belongs to another run.
    """
    loaded = load_checkpoint(run / "checkpoints")
    if loaded is not None:
        _refuse_foreign(loaded[0], run, "checkpoint")
    return loaded


def settle(run: Path) -> None:
    """Completes a save that was killed between its two renames; the caller holds the lock of the run."""
    last, temporary = run / "checkpoints" / "last.pt", run / "checkpoints" / "last.pt.tmp"
    if temporary.exists() and not last.exists():
        try:
            read_checkpoint(temporary)
        except Damaged:
            return
        os.replace(temporary, last)
        sync_folder(last.parent)


def own_best(run: Path) -> dict[str, Any]:
    """Returns the checkpoint that a finished stage reports (best.pt).

    Raises:
        InputError: There is none, it is damaged, or it belongs to another run.
    """
    path = run / "checkpoints" / "best.pt"
    try:
        payload = read_checkpoint(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.", "Finish the retraining first (retrain --resume).") from None
    except Damaged as error:
        raise InputError(f"{path} cannot be used: it {error}.", "Retrain, or give another run.") from None
    _refuse_foreign(payload, run, "best.pt")
    return payload


def _refuse_foreign(payload: Mapping[str, Any], run: Path, what: str) -> None:
    expected = recorded_identity(run)
    digests = payload.get("digests")
    if not isinstance(digests, dict) or not {"configuration", *expected} - {"weights"} <= digests.keys():
        raise InputError(f"The {what} in {run} does not name what it was made with.", "Restore the run's own files.")
    found = dict(digests)
    if "weights" in expected and what == "best.pt":
        try:
            found["weights"] = weights_digest(payload)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"The {what} in {run} holds no weights ({error}).", "Restore the run's files.") from None
    refuse_other(expected, found, f"the {what} in {run}", "the run itself")


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Returns 32 hexadecimal digits of the names, types, shapes and bytes of tensors (of weights, on any device)."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        plain = tensor.detach().to("cpu").contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)};".encode())
        found.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def weights_digest(payload: Mapping[str, Any]) -> str:
    """Returns the digest of the weights that a retraining's checkpoint reports: the moving average, if there is one."""
    return tensors_digest((payload["ema"] or payload["model"]).items())
