"""NaN and infinity are detected in their step, and never saved.

On the CPU the host checks after every step. On an accelerator it would have to wait for the device each time. There
one flag lives on the device: once it is false, every later step returns the state before it, bit for bit, and the host
reads the flag when it logs, and before anything is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nas_moreau.training.signals import NonFinite

_STEP_KEYS = {"search": "search.weights.lr (or search.alphas.lr)", "retrain": "retrain.lr"}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FiniteGuard:
    """Checks the numbers of one stage.

    Args:
        stage: "search", "retrain" or the name of the task, for messages.
        device: The device of the numbers.
        lr: The weights' learning rate at a step (counted from 0), None if there is no single one.
        every_step: Read the flag after every step; by default only on the CPU.
    """

    def __init__(
        self, stage: str, device: torch.device, lr: Callable[[int], float] | None, every_step: bool | None = None
    ):
        self.stage, self._lr = stage, lr
        self.every_step = device.type == "cpu" if every_step is None else every_step
        self._names: list[str] = []
        self._sound = torch.ones((), dtype=torch.bool, device=device)
        self._sound_steps = torch.zeros((), dtype=torch.int64, device=device)
        self._fault: Tensor | None = None  # which names were finite in the first step that was not sound
        self._begin: int | None = None
        self._in_place: list[Tensor] = []
        self._kept: list[Tensor] = []

    def before(self, written: Callable[[], Sequence[Tensor]]) -> None:
        """Copies the tensors that the coming step changes in place, if they may have to be restored."""
        if self.every_step:
            return
        in_place = written()
        if len(self._kept) == len(in_place):
            copy_all(in_place, self._kept)
        else:
            self._kept = [tensor.detach().clone(memory_format=torch.preserve_format) for tensor in in_place]
        self._in_place = list(in_place)

    @torch.no_grad()
    def after(
        self, step: int, terms: Mapping[str, Tensor], values: Mapping[str, Any], new: Any = None, old: Any = None
    ) -> Any:
        """Checks a step, and returns the state to continue with: `new`, or `old` once the flag is false.

        Args:
            step: Steps done, this one included.
            terms: 0-dim tensors by name: losses and norms of directions.
            values: Nested tensors by name: weights and everything else that is saved.
            new: The nested state after the step.
            old: The state before it.

        Raises:
            NonFinite: On the CPU, if a number is not finite.
        """
        sizes = {name: size for name, value in values.items() if (size := _size(value)) is not None}
        named = {**terms, **sizes}
        flags = torch.stack([torch.isfinite(value) for value in named.values()])
        if self._fault is None or list(named) != self._names:
            self._names, self._fault = list(named), torch.ones_like(flags)
        if self.every_step:
            self._sound, self._fault, self._begin = flags.all(), flags, step - 1
            self.read()
            return new
        # in place: the same tensors in every step, so that a step can be recorded and replayed
        before = self._sound.clone()
        self._sound.logical_and_(flags.all())
        self._fault.copy_(torch.where(before & ~self._sound, flags, self._fault))
        self._begin = step - 1 if self._begin is None else self._begin
        self._sound_steps += self._sound
        if self._in_place:
            copy_all(select(self._sound, self._in_place, self._kept), self._in_place)
        return keep(self._sound, new, old)

    def read(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Waits for the device once, and returns `values` with 0-dim tensors replaced by numbers.

        Call it before anything is saved.

        Raises:
            NonFinite: The flag is false.
        """
        values = dict(values or {})
        names = [name for name, value in values.items() if isinstance(value, Tensor)]
        if self._fault is None and not names:
            return values
        state = [self._sound, self._sound_steps, *([] if self._fault is None else self._fault.unbind())]
        tensors = [*state, *(values[name].detach() for name in names)]
        numbers = torch.stack([tensor.to(torch.float64) for tensor in tensors]).tolist()
        (sound, steps, *flags), found = numbers[: len(state)], numbers[len(state) :]
        if not sound:
            step = (self._begin or 0) + int(steps) + 1
            raise NonFinite(self._message(step, [name for name, flag in zip(self._names, flags) if not flag]))
        return values | dict(zip(names, found))

    def _message(self, step: int, bad: list[str]) -> str:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        rate = "" if self._lr is None else f" (learning rate {self._lr(step - 1):.3g})"
        advice = "Use another --method, or other data."
        if self.stage in _STEP_KEYS:
            advice = (
                f"Start again with a smaller {_STEP_KEYS[self.stage]} or clip, or resume with --on-nonfinite rollback, "
                "which halves the steps."
            )
        return (
            f"The {self.stage} produced a number that is not finite at step {step}{rate}: "
            f"{', '.join(bad[:3])}{more}; that step is not saved. {advice}"
        )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors of nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)


@torch.no_grad()
def copy_all(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Copies each tensor to the one at its place, in few kernels: those of one type together."""
    for group in group_by(lambda tensor: tensor.dtype, targets):
        torch._foreach_copy_([targets[i] for i in group], [sources[i] for i in group])


def group_by(key: Callable[[Tensor], Any], tensors: Sequence[Tensor]) -> list[list[int]]:
    """Returns the places of the tensors with equal keys."""
    places: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        places.setdefault(key(tensor), []).append(i)
    return list(places.values())


def _size(value: Any) -> Tensor | None:
    """Returns a number that is finite if all floating-point numbers in `value` are (and their sum too)."""
    floats = [tensor for tensor in tensors_in(value) if tensor.is_floating_point() and tensor.numel()]
    if not floats:
        return None
    # sums of absolute values: many tensors in one kernel, which largest ones are not
    groups = group_by(lambda tensor: tensor.dtype, floats)
    lists = [[floats[i] for i in group] for group in groups]
    sums = [torch.stack(torch._foreach_norm(tensors, 1, dtype=_wide(tensors[0]))).sum() for tensors in lists]
    return torch.stack([size.double() for size in sums]).sum()


def _wide(tensor: Tensor) -> torch.dtype:
    """Returns the type of a tensor's sum: that of float16 overflows at 65,504."""
    return torch.float32 if tensor.element_size() < 4 else tensor.dtype


def keep(sound: Tensor, new: Any, old: Any) -> Any:
    """Returns the nested state `new` with every tensor taken from `old` where `sound` is false."""
    pairs = list(_pairs(new, old))
    chosen = iter(select(sound, [a for a, _ in pairs], [b for _, b in pairs]))
    return _replaced(new, old, chosen)


def _alike(new: Any, old: Any) -> bool:
    return isinstance(old, Tensor) and new.shape == old.shape and new.dtype == old.dtype


def _pairs(new: Any, old: Any) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(new, Tensor):
        if _alike(new, old):
            yield new, old
    elif isinstance(new, (list, tuple)) and isinstance(old, (list, tuple)) and len(new) == len(old):
        for a, b in zip(new, old):
            yield from _pairs(a, b)


def _replaced(new: Any, old: Any, chosen: Iterator[Tensor]) -> Any:
    if isinstance(new, Tensor):
        return next(chosen) if _alike(new, old) else new
    if isinstance(new, (list, tuple)) and isinstance(old, (list, tuple)) and len(new) == len(old):
        parts = [_replaced(a, b, chosen) for a, b in zip(new, old)]
        return type(new)(*parts) if hasattr(new, "_fields") else type(new)(parts)
    return new


def select(sound: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    """Returns `new` where the 0-dim `sound` is true, else `old`, bit for bit, in few kernels and without a wait.

    Done on the bits as integers, old + sound * (new - old), whose wrap-around is exact: NaN times zero would be NaN.
    """
    chosen: list[Tensor] = list(new)
    for indices in group_by(lambda tensor: tensor.element_size(), new):
        bits = _BITS[new[indices[0]].element_size()]
        before = [old[i].detach().view(bits) for i in indices]
        change = torch._foreach_sub([new[i].detach().view(bits) for i in indices], before)
        torch._foreach_mul_(change, sound.to(bits))
        torch._foreach_add_(change, before)
        for i, tensor in zip(indices, change):
            chosen[i] = tensor.view(new[i].dtype)
    return chosen
