"""A step recorded once as one graph of the device, and replayed.

Eager, a step of a supernet is tens of thousands of launches, and the device waits for the host; a replay is one launch.
A recording repeats operations on the same memory. So whatever changes from step to step lies in tensors that are filled
before a replay (batches, step sizes), and results are copied back to where the next replay reads them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nas_moreau import distributed
from nas_moreau.config import PerformanceConfig
from nas_moreau.errors import InputError, first_line
from nas_moreau.training.finite_guard import copy_all

WARM_UP = 3
"""Eager steps before a recording: libraries choose kernels, momentum gets buffers, and the last two are compared."""

NOT_REPLAYED = "a step is not replayed as one graph of the device"

Step = Callable[[Any, Any], tuple[Any, Any]]
"""(state, inputs) -> (new state, what else is of interest), nested lists, tuples and dicts of tensors and plain values.
Other tensors that it changes, it changes in place."""

Recorder = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]
"""Records a function; returns what it returned, in the memory that every replay writes to, and the replay."""


def recorder_of(device: torch.device) -> Recorder | None:
    """Returns how steps are recorded on a device; None if it cannot."""
    module: Any = getattr(torch, device.type, None)
    if device.type == "cpu" or not hasattr(module, "CUDAGraph"):
        return None

    def record(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        graph = module.CUDAGraph()
        with module.graph(graph):
            found = function()
        return found, graph.replay

    return record


def choose_recorder(
    performance: PerformanceConfig, device: torch.device, obstacle: str | None
) -> tuple[Recorder | None, str | None]:
    """Returns how `performance.capture` says that steps are recorded, or None and why they are not.

    Args:
        performance: The configuration's section.
        device: Where the steps run.
        obstacle: Why these steps cannot be recorded on any device; None if they can.

    Raises:
        InputError: Steps are to be recorded and cannot.
    """
    if performance.capture is False:
        return None, None
    record = recorder_of(device)
    if record is None:
        obstacle = f"the device {device.type} has no graphs"
    elif distributed.world_size() > 1:
        obstacle = "several processes exchange gradients within it"
    elif performance.activation_checkpointing:
        obstacle = "performance.activation_checkpointing waits for the device"
    elif performance.compile:
        obstacle = "performance.compile compiles within the first steps"
    if obstacle is None:
        return record, None
    if performance.capture is True:
        raise InputError(
            f"performance.capture=true, but the step cannot be recorded: {obstacle}.",
            "Set performance.capture=auto, which then runs it step by step.",
        )
    return None, None if record is None else obstacle


class CapturedStep:
    """A step that is eager at first, then recorded and replayed; eager again where it cannot be recorded.

    Args:
        step: See `Step`.
        device: Of all tensors.
        record: See `recorder_of`.
        note: Called with a sentence when the step was recorded, or could not be.
        carried: Returns tensors outside of the state by which a step may hand something to the next one; they must stay
            the same, filled in place.
    """

    def __init__(
        self,
        step: Step,
        device: torch.device,
        record: Recorder,
        note: Callable[[str], None],
        carried: Callable[[], list[Tensor]] = list,
    ):
        self._step, self._device, self._record, self._note = step, device, record, note
        self._carried, self._handed = carried, list[list[Tensor]]()
        self._module: Any = getattr(torch, device.type)
        self._side = self._module.Stream(device) if recorder_of(device) is record else None
        self._eager_steps = 0
        self._seen: list[Operations] = []
        self._replay: Callable[[], None] | None = None
        self._state: Any = None
        self._inputs: Any = None
        self._refused = self._exceptional = False

    def __call__(self, state: Any, inputs: Any) -> tuple[Any, Any]:
        """Does a step.

        Args:
            state: What the last step returned, or any other state of its form.
            inputs: Of this step. Their tensors may be others each time; a step with other plain values, or tensors of
                other forms, is run eagerly.

        Returns:
            The new state, which the next step overwrites, and what else the step returned, which stays as it is.
        """
        if self._replay is None and not self._refused and self._eager_steps >= WARM_UP:
            self._capture(state, inputs)
        if self._replay is not None:
            moved = [*_pairs(state, self._state), *_pairs(inputs, self._inputs)]
            if all(_alike(a, b) for a, b in moved) and all(_equal(a, b) for a, b in _pairs(inputs, self._inputs)):
                _copy(moved)
                self._replay()
                self._state = _moved_on(state, self._state, *self._recorded)
                return self._state, copied(self._out)
            if not self._exceptional:
                self._note(
                    "a batch has another form than the recorded one, or other plain values: its step is not replayed"
                )
            self._exceptional = True
        self._eager_steps += 1
        if self._refused or not WARM_UP - 2 < self._eager_steps <= WARM_UP:
            return self._eagerly(state, inputs)
        with Operations() as operations:
            found = self._eagerly(state, inputs)
        self._seen.append(operations)
        self._handed.append(self._carried())
        return found

    def _eagerly(self, state: Any, inputs: Any) -> tuple[Any, Any]:
        if self._side is None:
            return self._step(state, inputs)
        # a recording needs what was prepared on a stream other than the default one
        self._side.wait_stream(self._module.current_stream())
        with self._module.stream(self._side):
            found = self._step(state, inputs)
        self._module.current_stream().wait_stream(self._side)
        return found

    def _capture(self, state: Any, inputs: Any) -> None:
        # a number that Python computes would stay what it was in the recording
        if changing := self._seen[0].first_difference(self._seen[1]):
            self._refuse(f"it is another one each time, first at {changing}")
            return
        before, after = self._handed
        if len(before) != len(after) or any(a is not b for a, b in zip(before, after)):
            self._refuse("the module keeps new tensors in its attributes, which the next step may read")
            return
        if opaque := [leaf for leaf in _leaves(inputs) if not isinstance(leaf, (Tensor, *_PLAIN))]:
            self._refuse(f"its batch holds a {type(opaque[0]).__name__}, whose tensors are not known")
            return
        begin, draws = time.monotonic(), _host_draws(self._device)
        held, given = copied(state), copied(inputs)

        def whole() -> tuple[Any, Any]:
            new, out = self._step(held, given)
            own = {id(b) for _, b in _pairs(new, held)}
            pairs = [(a, b) for a, b in _pairs(new, held) if isinstance(b, Tensor) and a is not b]
            # one that the step only moved to another place must not be overwritten before it is read
            _copy([(a.clone() if id(a) in own else a, b) for a, b in pairs])
            return new, out

        reason = ""
        try:
            (new, out), replay = self._record(whole)
        except RuntimeError as error:
            reason = first_line(error).rstrip(".")
        if _host_draws(self._device) != draws:
            reason = "it draws random numbers on the host"
            _set_host_draws(draws)
        if reason:
            self._refuse(reason)
            return
        self._replay, self._out, self._recorded, self._seen = replay, out, (state, new), []
        self._state, self._inputs = held, given
        self._note(f"from here on a step is one graph of the device, recorded in {time.monotonic() - begin:.1f} s")

    def _refuse(self, reason: str) -> None:
        self._refused, self._seen, self._handed = True, [], []
        self._note(f"{NOT_REPLAYED}: {reason}")


class Operations(TorchDispatchMode):
    """Notes, while it is entered, which operations run, with the forms of their tensors and all other arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noted: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._noted.append((func, tuple(_form(leaf) for leaf in _leaves((args, kwargs)))))
        return func(*args, **kwargs)

    def first_difference(self, other: Operations) -> str | None:
        """Returns the first operation that another run has not, or with other arguments; None if there is none."""
        for (function, form), there in zip(self._noted, other._noted):
            if (function, form) != there:
                return str(function)
        return None if len(self._noted) == len(other._noted) else "its end"


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value


def _form(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype
    return leaf if isinstance(leaf, (bool, int, float, str, torch.dtype, torch.device)) else type(leaf)


def copied(value: Any) -> Any:
    """Returns nested lists, tuples and dicts with copies of their tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(*map(copied, value)) if hasattr(value, "_fields") else type(value)(map(copied, value))
    return value


def _pairs(given: Any, held: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the leaves at the same places; where the forms differ, (None, the held part). Skips what is the same."""
    if given is held:
        return
    if isinstance(held, (list, tuple, dict)):
        if type(given) is not type(held) or len(given) != len(held):
            yield None, held
            return
        keys: Any = held if isinstance(held, dict) else range(len(held))
        if isinstance(held, dict) and set(held) != set(given):
            yield None, held
            return
        for key in keys:
            yield from _pairs(given[key], held[key])
    else:
        yield given, held


def _alike(given: Any, held: Any) -> bool:
    if isinstance(held, Tensor):
        dense = isinstance(given, Tensor) and given.layout is held.layout is torch.strided
        return dense and given.shape == held.shape and given.dtype == held.dtype
    return not isinstance(held, (list, tuple, dict)) and not isinstance(given, Tensor)


_PLAIN = (bool, int, float, str, bytes, type(None))


def _equal(given: Any, held: Any) -> bool:
    """Returns whether plain values are the same."""
    return isinstance(held, Tensor) or (type(given) is type(held) and given == held)


def _copy(pairs: list[tuple[Any, Any]]) -> None:
    """Copies the first tensor of every pair to the second."""
    tensors = [(a, b) for a, b in pairs if isinstance(b, Tensor)]
    copy_all([a for a, _ in tensors], [b for _, b in tensors])


def _moved_on(given: Any, held: Any, before: Any, after: Any) -> Any:
    """Returns the next state: the held tensors, and counts moved on as they were from `before` to `after`."""
    if isinstance(held, tuple):
        parts = [_moved_on(*leaves) for leaves in zip(given, held, before, after)]
        return type(held)(*parts) if hasattr(held, "_fields") else tuple(parts)
    if type(given) is int:
        return given + after - before
    return held if isinstance(held, (Tensor, list, dict)) else given


def _host_draws(device: torch.device) -> Any:
    """Returns the states of the generators that a replay on the device does not draw from."""
    name, keys, *rest = np.random.get_state()
    of_torch = None if device.type == "cpu" else torch.get_rng_state().tolist()
    return random.getstate(), of_torch, (name, list(keys), *rest)


def _set_host_draws(draws: Any) -> None:
    python, of_torch, (name, keys, *rest) = draws
    random.setstate(python)
    if of_torch is not None:
        torch.set_rng_state(torch.tensor(of_torch, dtype=torch.uint8, device="cpu"))
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
