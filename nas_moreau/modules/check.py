"""The check before a search: every Choice on its real inputs, the loss on a batch; one sentence for each fault."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nas_moreau.data.splitting import seeded
from nas_moreau.errors import InputError, first_line, quoted
from nas_moreau.modules.choice import Choice, Mixture, Places, find_choices, observed

ModuleLoss = Callable[[nn.Module, Any], Tensor]
"""(module, batch) -> scalar."""


@dataclass
class Call:
    """How a Choice was called: the arguments of its first call, and how often in one evaluation of the loss."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    count: int = 1


@dataclass
class Checked:
    """What the check has seen.

    Attributes:
        places: The Choices.
        calls: Place of a Choice in the module -> how it was called.
        rebound: Buffers to which the module assigns new tensors.
        call: How the module itself was called first; None if the loss calls only methods of it.
    """

    places: Places
    calls: dict[str, Call] = field(default_factory=dict)
    rebound: frozenset[str] = frozenset()
    call: Call | None = None


def check_module(module: nn.Module, loss: ModuleLoss, batch: Any) -> Checked:
    """Returns the Choices of a module and how they are called, after one evaluation of the loss with every option.

    Parameters of lazy modules have their shapes afterwards; running statistics and the mode stay as they were.

    Args:
        module: Holds Choices.
        loss: The user's loss.
        batch: A batch of the training data, on the module's device.

    Raises:
        InputError: There is no Choice, one is never called, an option fails, works in place, or returns another form
            than the first; or the loss is not a scalar that depends on the module.
    """
    if not callable(loss):
        raise InputError(f"The loss is {quoted(loss)}.", "Give a function of (module, batch) that returns a scalar.")
    checked = Checked(find_choices(module))
    _refuse_hooks(checked.places)
    paths = {id(choice): path for path, choice in module.named_modules() if isinstance(choice, Choice)}

    def observer(choice: Choice, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if id(choice) not in paths:
            raise InputError(
                f"{choice.title} with the options {', '.join(choice.names)} is called, but is not a submodule of the "
                "module.",
                "Keep it as an attribute, or in an nn.ModuleList or nn.ModuleDict.",
            )
        path = paths[id(choice)]
        call = checked.calls.get(path)
        if call is None:
            checked.calls[path] = Call(_detached(args), _detached(kwargs))
        else:
            call.count += 1
        return _all_options(choice, f"the Choice '{checked.places.paths[path]}'", args, kwargs)

    def first_call(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        checked.call = checked.call or Call(_detached(args), _detached(kwargs))

    handle = module.register_forward_pre_hook(first_call, with_kwargs=True)
    try:
        with observed(observer):
            value, checked.rebound = evaluate_once(loss, module, batch)
    finally:
        handle.remove()
    _refuse_other_losses(value, module)
    for path, name in checked.places.paths.items():
        if path not in checked.calls:
            raise InputError(
                f"The Choice '{name}' is never called when the loss is evaluated.",
                "Call it in the module's forward, or remove it.",
            )
    return checked


def _refuse_hooks(places: Places) -> None:
    """Raises InputError where a Choice has hooks: they would not be in the network that is found."""
    for path, choice in places.choices.items():
        if any(getattr(choice, hooks) for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")):
            raise InputError(
                f"The Choice '{places.paths[path]}' has hooks, which would not be in the network that is found.",
                "Register them on its options, or on a module around it.",
            )


def evaluate_once(loss: ModuleLoss, module: nn.Module, batch: Any) -> tuple[Any, frozenset[str]]:
    """Returns what the loss returns in training mode, and the buffers to which the module assigned new tensors.

    Buffers, mode and random generators are as before afterwards.

    Args:
        loss: The user's loss.
        module: The module.
        batch: A batch.

    Raises:
        InputError: The loss fails.
    """
    with left_as_it_was(module), seeded(0):
        before = dict(module.named_buffers())
        value = evaluate(loss, module, batch)
        after = dict(module.named_buffers())
    return value, frozenset(name for name, buffer in before.items() if after.get(name) is not buffer)


def check_metric(metric: Callable[[nn.Module, Any], Any], module: nn.Module, batch: Any) -> None:
    """Evaluates a metric once, so that a fault in it shows before the search.

    Args:
        metric: (module, batch) -> number.
        module: Stays as it is.
        batch: A batch.

    Raises:
        InputError: It fails, or returns something else than a number.
    """
    with left_as_it_was(module), seeded(0), torch.no_grad():
        module.eval()
        try:
            value = metric(module, batch)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"The metric fails on a batch of {_described(batch)}: {type(error).__name__}: {first_line(error)}.",
                "It is called as metric(module, batch), in evaluation mode; try that by hand.",
            ) from error
    number_of(value)


def number_of(value: Any) -> Any:
    """Returns what a metric returned as a number, or as a 0-dim tensor of float64.

    Raises:
        InputError: It is something else.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().double().reshape(())
    if isinstance(value, bool | int | float):
        return float(value)
    raise InputError(
        f"The metric returns a {type(value).__name__}, not a number.", "Return the mean over the batch, for example."
    )


def record_calls(module: nn.Module, loss: ModuleLoss, batch: Any) -> tuple[dict[str, Call], Call | None]:
    """Returns how every Choice is called, by its place, and how the module is called, in one evaluation of the loss.

    Calls of a Choice are those within the first call of the module: a loss may call it several times. Every Choice
    computes its mixture, so that Choices within options are called too.

    Args:
        module: Holds Choices; in the mode in which it is.
        loss: The user's loss.
        batch: A batch.

    Raises:
        InputError: The loss fails.
    """
    paths = {id(choice): path for path, choice in module.named_modules() if isinstance(choice, Choice)}
    calls: dict[str, Call] = {}
    whole: Call | None = None
    depth, returned = 0, False

    def observer(choice: Choice, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if depth and not returned:
            calls.setdefault(paths[id(choice)], Call(_detached(args), _detached(kwargs), 0)).count += 1
        return choice.candidates.mixed(Mixture(torch.softmax(choice.alphas, -1)), args, kwargs)

    def begin(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal whole, depth
        whole = Call(_detached(args), _detached(kwargs)) if whole is None else whole
        depth += 1

    def end(part: nn.Module, args: Any, output: Any) -> None:
        nonlocal depth, returned
        depth -= 1  # a module may call itself
        returned = returned or not depth

    handles = module.register_forward_pre_hook(begin, with_kwargs=True), module.register_forward_hook(end)
    try:
        with observed(observer):
            evaluate(loss, module, batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls, whole


def evaluate(loss: ModuleLoss, module: nn.Module, batch: Any) -> Any:
    """Returns what the user's loss returns; an error in it becomes one sentence.

    Raises:
        InputError: The loss or the module failed.
    """
    try:
        return loss(module, batch)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The loss fails on a batch of {_described(batch)}: {type(error).__name__}: {first_line(error)}.",
            "It is called as loss(module, batch), with a batch as the data give it; try that by hand.",
        ) from error


def _refuse_other_losses(value: Any, module: nn.Module) -> None:
    if not isinstance(value, Tensor):
        raise InputError(
            f"The loss returns {quoted(value)}, not a tensor.", "Return a 0-dim tensor, such as a mean of losses."
        )
    if value.ndim:
        raise InputError(
            f"The loss returns a tensor of shape {tuple(value.shape)}, not a scalar.", "Take its mean over the batch."
        )
    if not value.is_floating_point():
        raise InputError(f"The loss returns {value.dtype}, which has no gradient.", "Return a floating-point tensor.")
    if not value.requires_grad:
        raise InputError(
            "The loss does not depend on the module's parameters.",
            "Compute it from the module's output, without detach(), item() or torch.no_grad().",
        )
    if not torch.isfinite(value):
        raise InputError(f"The loss of the first batch is {value.item()}.", "Correct the loss, or the data.")


@contextmanager
def left_as_it_was(module: nn.Module) -> Iterator[None]:
    """Restores buffers and mode at the end."""
    modes = [(part, part.training) for part in module.modules()]
    owned = [(part._buffers, key, buffer) for part in module.modules() for key, buffer in part._buffers.items()]
    lazy = nn.parameter.is_lazy
    kept = [None if buffer is None or lazy(buffer) else buffer.clone() for _, _, buffer in owned]
    module.train()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of lazy modules, which are new
            yield
    finally:
        with torch.no_grad():
            for (buffers, key, buffer), value in zip(owned, kept):
                if value is not None and buffer is not None:
                    buffer.copy_(value)
                    buffers[key] = buffer
        for part, mode in modes:
            part.training = mode


def _all_options(choice: Choice, title: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns the weighted sum of a Choice, after a comparison of the outputs of its options."""
    given = list(tensors_of((args, kwargs)))
    versions = [tensor._version for tensor in given]
    outputs = []
    for number, name in enumerate(choice.names):
        try:
            outputs += choice.candidates.outputs([number], args, kwargs)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"Option '{name}' of {title} fails on its input ({_described(args)}): {type(error).__name__}: "
                f"{first_line(error)}.",
                "Every option must accept what the Choice is called with.",
            ) from error
        if [tensor._version for tensor in given] != versions:
            raise InputError(
                f"Option '{name}' of {title} changes its input in place, which the other options then get.",
                "Use its form that is not in place (inplace=False).",
            )
        first, found = _form(outputs[0]), _form(outputs[-1])
        if found != first:
            raise InputError(
                f"Option '{name}' of {title} returns {found}, where option '{choice.names[0]}' returns {first}.",
                "Options of one Choice must return the same shapes: add a projection, a stride or padding.",
            )
    for parts in zip(*(_others(output) for output in outputs)):
        for name, part in zip(choice.names, parts):
            if part is not parts[0] and not (isinstance(part, _PLAIN) and part == parts[0]):
                raise InputError(
                    f"Option '{name}' of {title} returns a part of type {type(part).__name__}, which has no weighted "
                    "sum.",
                    "Return tensors, or tuples, lists and dicts of tensors.",
                )
    for i, parts in enumerate(zip(*(tensors_of(output) for output in outputs))):
        if not (parts[0].is_floating_point() or parts[0].is_complex()) and any(
            not torch.equal(part, parts[0]) for part in parts
        ):
            raise InputError(
                f"The options of {title} return different integers (tensor {i} of their output), which have no "
                "weighted sum.",
                "Compute them outside of the Choice.",
            )
    return choice.candidates.mixed(Mixture(torch.softmax(choice.alphas, -1)), args, kwargs)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in tuples, lists and dicts."""
    return (part for part in _parts(value) if isinstance(part, Tensor))


def _others(value: Any) -> Iterator[Any]:
    """Yields the parts that are not tensors in tuples, lists and dicts."""
    return (part for part in _parts(value) if not isinstance(part, Tensor))


def _parts(value: Any) -> Iterator[Any]:
    """Yields what tuples, lists and dicts hold, at any depth."""
    if isinstance(value, dict | tuple | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part)
    else:
        yield value


_PLAIN = (bool, int, float, str, bytes)


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _detached(part) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_detached, value))
    return type(value)(map(_detached, value)) if isinstance(value, tuple | list) else value


def _form(value: Any) -> str:
    """Returns the structure of an output: shapes of tensors, and other values as they are."""
    if isinstance(value, Tensor):
        kind = "" if value.is_floating_point() else f"{value.dtype} ".removeprefix("torch.")
        return f"{kind}{tuple(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_form(part)}" for key, part in value.items()) + "}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}[{', '.join(map(_form, value))}]"
    return quoted(value) if isinstance(value, _PLAIN) or value is None else type(value).__name__


def _described(value: Any) -> str:
    """Returns the shapes of the tensors in a value, for a message."""
    shapes = [f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}" for tensor in tensors_of(value)]
    return ", ".join(shapes[:4]) + (" ..." if len(shapes) > 4 else "") if shapes else quoted(value)
