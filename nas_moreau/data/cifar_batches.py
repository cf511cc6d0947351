"""Reads the batches of CIFAR-10 and CIFAR-100 as their archives hold them: for Python (pickled) or for C (.bin).

The pickles are read by an unpickler that makes NumPy arrays and nothing else, so that a forged file runs no code.
"""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas_moreau.data.images import Images, Loaded
from nas_moreau.errors import InputError

_FORMS = {
    "CIFAR-10": (tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta", "labels", "label_names"),
    "CIFAR-100": (("train",), "test", "meta", "fine_labels", "fine_label_names"),
}
"""Set -> training files, test file, file of names, key of labels, key of names."""
_BINARY = (tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt")
_PIXELS = 3 * 32 * 32
_LARGEST = 1 << 28
_MAKERS = {("_reconstruct", "multiarray"), ("ndarray", "numpy"), ("dtype", "numpy"), ("_frombuffer", "numeric")}


def are_batches(directory: Path) -> bool:
    """Returns whether a folder holds batches of CIFAR."""
    pickled = any(all((directory / name).is_file() for name in (form[0][0], form[1])) for form in _FORMS.values())
    return pickled or (directory / _BINARY[0][0]).is_file()


def read_batches(directory: Path) -> Loaded:
    """Returns the images of a folder of batches with their class names.

    Raises:
        InputError: A file is missing, damaged or of another content.
    """
    if (directory / _BINARY[0][0]).is_file():
        return _read_binary(directory)
    kind = next(kind for kind, form in _FORMS.items() if (directory / form[0][0]).is_file())
    train, test, meta, key, names = _FORMS[kind]
    _require(directory, [*train, test, meta])
    classes = tuple(str(name) for name in _pickled(directory / meta).get(names, ()))
    parts = []
    for files in (train, (test,)):
        read = [_pickled(directory / name) for name in files]
        parts.append(
            _images([np.asarray(batch.get("data")) for batch in read], [batch.get(key) for batch in read], directory)
        )
    _check(parts, classes, directory)
    return Loaded(parts[0], parts[1], classes, (f"{directory.name} holds the batches of {kind}.",))


def _read_binary(directory: Path) -> Loaded:
    train, test, meta = _BINARY
    _require(directory, [*train, test, meta])
    classes = tuple((directory / meta).read_text(encoding="utf-8", errors="replace").split())
    parts = []
    for files in (train, (test,)):
        read = [np.frombuffer(_content(directory / name), dtype=np.uint8) for name in files]
        if any(len(batch) == 0 or len(batch) % (1 + _PIXELS) for batch in read):
            raise InputError(f"A file in {directory} is cut short.", "Unpack the archive again.")
        rows = [batch.reshape(-1, 1 + _PIXELS) for batch in read]
        parts.append(_images([batch[:, 1:] for batch in rows], [batch[:, 0] for batch in rows], directory))
    _check(parts, classes, directory)
    return Loaded(parts[0], parts[1], classes, (f"{directory.name} holds the batches of CIFAR-10.",))


def _require(directory: Path, names: list[str]) -> None:
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise InputError(f"{directory} lacks {', '.join(missing)}.", "Unpack the archive again.")


def _content(path: Path) -> bytes:
    if path.stat().st_size > _LARGEST:
        raise InputError(f"{path} is larger than any batch of CIFAR.", "Unpack the archive again.")
    return path.read_bytes()


def _images(pixels: list[np.ndarray], labels: list[Any], directory: Path) -> Images:
    try:
        x = np.concatenate(pixels)
        y = np.concatenate([np.asarray(part) for part in labels])
        if x.dtype != np.uint8 or x.shape != (len(y), _PIXELS) or y.dtype.kind not in "iu":
            raise ValueError(f"pixels are {x.dtype} {x.shape}, labels {y.dtype} {y.shape}")
    except (ValueError, TypeError) as error:
        raise InputError(
            f"The batches in {directory} do not fit together ({error}).", "Unpack the archive again."
        ) from None
    return Images(torch.from_numpy(x.reshape(-1, 3, 32, 32).copy()), torch.from_numpy(y.astype(np.int64)))


def _check(parts: list[Images], classes: tuple[str, ...], directory: Path) -> None:
    labels = torch.cat([part.labels for part in parts])
    if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        raise InputError(
            f"The batches in {directory} have labels beyond their {len(classes)} class names.",
            "Unpack the archive again.",
        )


class _Arrays(pickle.Unpickler):
    """Makes lists, dictionaries, text, numbers and NumPy arrays; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (name, module.rpartition(".")[2]) in _MAKERS and module.split(".")[0] == "numpy":
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _pickled(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the files are of NumPy 1
            found = _Arrays(io.BytesIO(_content(path)), encoding="latin1").load()
    except Exception as error:  # damaged pickles raise anything
        if isinstance(error, (InputError, PermissionError)):
            raise
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}).", "Unpack the archive again.") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no batch of CIFAR.", "Unpack the archive again.")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}
