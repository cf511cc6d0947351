"""How a stage ends before its end: a signal, or a number that is not finite."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from types import FrameType

import torch
from torch import Tensor


class Interrupted(Exception):
    """A signal arrived; the step was finished and everything is saved."""

    def __init__(self, number: int, folder: str):
        self.number, self.folder = number, folder
        super().__init__(f"Stopped by {signal.Signals(number).name}; everything is saved in {folder}.")


class NonFinite(Exception):
    """A loss or a direction became NaN or infinite; nothing of that step was saved."""


class StopRequest:
    """While it is open, SIGINT and SIGTERM only ask: `received` holds the signal. A second SIGINT raises at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, object] = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._former[number] = signal.signal(number, self._receive)
            except ValueError:  # not in the main thread (a notebook's worker): signals are somebody else's
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)


def check_finite(terms: Mapping[str, Tensor], stage: str, step: int, lr: float) -> None:
    """Raises NonFinite, naming the terms, when one of the 0-dim tensors is NaN or infinite (waits for the device)."""
    values = torch.stack([value.detach().float() for value in terms.values()]).tolist()
    bad = [name for name, value in zip(terms, values) if not abs(value) < float("inf")]
    if bad:
        raise NonFinite(
            f"The {stage} met a number that is not finite at step {step} (learning rate {lr:.3g}): {', '.join(bad)}. "
            f"Lower {stage}.{'weights.lr' if stage == 'search' else 'lr'} or its clip, and resume from the last checkpoint."
        )
