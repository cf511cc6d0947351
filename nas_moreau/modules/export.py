"""The found module as a file for other programs, compared with the module: torch.export and ONNX."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_moreau.errors import InputError, first_line
from nas_moreau.modules.check import Call, tensors_of
from nas_moreau.modules.samples import to_device
from nas_moreau.runs.atomic import write_atomic

FORMATS = ("torch-export", "onnx")
TOLERANCE = 1e-4
"""Largest difference of an output, for outputs up to 1; relative beyond."""


def export_module(network: nn.Module, call: Call | None, form: str, path: str | PathLike[str]) -> Path:
    """Writes a module to a file, compares the file's outputs with the module's, and returns the path.

    Args:
        network: In evaluation mode.
        call: Arguments to call it with; the first axis of tensors may have any length afterwards.
        form: "torch-export" or "onnx".
        path: The file; nothing is left there if the outputs differ.

    Raises:
        InputError: The format is unknown, the module cannot be exported, or the outputs differ.
    """
    if form not in FORMATS:
        raise InputError(f"Unknown format '{form}'.", f"Known are {', '.join(FORMATS)}.")
    if call is None:
        raise InputError(
            "The loss calls only methods of the module, so its inputs are not known.",
            "Export found.network() by torch.export with inputs of your own.",
        )
    target = Path(path)
    if not target.parent.is_dir() or target.is_dir():
        raise InputError(f"{target} cannot be written.", "Give a file in a folder that exists.")
    example, network = _on_cpu(call), network.cpu()
    write = _torch_export if form == "torch-export" else _onnx
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's remarks on its own parts
            run = write(network, example, target)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The module cannot be exported as {form}: {type(error).__name__}: {first_line(error)}.",
            "Its forward must have no branches on values of tensors.",
        ) from error
    with torch.no_grad():
        wanted = list(tensors_of(network(*example.args, **example.kwargs)))
        found = [tensor.detach() for tensor in run(example)]
    for a, b in zip(wanted, found, strict=True):
        limit = TOLERANCE * max(1.0, float(a.abs().max()))
        if a.shape != b.shape or not float((a - b).abs().max()) <= limit:
            target.unlink(missing_ok=True)
            raise InputError(f"The outputs of the {form} file differ from the module's.", "Use the other format.")
    return target


def _on_cpu(call: Call) -> Call:
    device = torch.device("cpu")
    return Call(to_device(call.args, device), to_device(call.kwargs, device))


def _shapes(value: Any, batch: Any, count: int) -> Any:
    """Returns torch.export's declaration that the first axis, where it is the batch, has any length."""
    if isinstance(value, Tensor):
        return {0: batch} if value.ndim and len(value) == count else None
    if isinstance(value, dict):
        return {key: _shapes(part, batch, count) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_shapes(part, batch, count) for part in value)
    return None


def _program(network: nn.Module, call: Call) -> Any:
    count = next((len(tensor) for tensor in tensors_of((call.args, call.kwargs)) if tensor.ndim), 1)
    if count > 1:
        batch = torch.export.Dim("batch", min=1)
        shapes = (*(_shapes(arg, batch, count) for arg in call.args),)
        named = {key: _shapes(part, batch, count) for key, part in call.kwargs.items()}
        try:
            # keyword arguments are declared by name, positional ones by place
            declared = shapes if not named else {**dict(zip(_names(network), shapes)), **named}
            return torch.export.export(network, call.args, call.kwargs, dynamic_shapes=declared)
        except Exception:
            pass
    return torch.export.export(network, call.args, call.kwargs)


def _names(network: nn.Module) -> Sequence[str]:
    return list(inspect.signature(network.forward).parameters)


def _torch_export(network: nn.Module, call: Call, path: Path) -> Callable[[Call], list[Tensor]]:
    torch.export.save(_program(network, call), path)
    loaded = torch.export.load(path).module()
    return lambda given: list(tensors_of(loaded(*given.args, **given.kwargs)))


def _onnx(network: nn.Module, call: Call, path: Path) -> Callable[[Call], list[Tensor]]:
    try:
        import onnx  # noqa: F401 (needed by torch's exporter)
        import onnxruntime
        import onnxscript  # noqa: F401 (needed by torch's exporter)
    except ImportError as error:
        raise InputError(f"ONNX needs the package {error.name}.", "Run pip install 'nas_moreau[export]'.") from None
    program = torch.onnx.export(_program(network, call), dynamo=True, external_data=False, verbose=False)
    assert program is not None, "what the exporter makes where it is given no file"
    write_atomic(path, program.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(given: Call) -> list[Tensor]:
        inputs = [tensor.numpy() for tensor in tensors_of((given.args, given.kwargs))]
        return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, inputs)))]

    return run
